"""Will it fit? What a training step keeps in memory, measured on a few examples, against what the device has free.

A step needs three things: the parameters with their gradients and the optimiser's state, which do not grow with the
batch; what the forward pass keeps for the backward pass, which grows with it; and a margin for what cannot be
counted, such as the scratch space of kernels. Where a batch is too large for the device it goes through in pieces:
slower, with the same loss.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caml_core.device import seeded
from caml_core.errors import CamlError

SHARE = 0.85  # of the free memory to plan with


def free_bytes(device: torch.device) -> float:
    """Memory that a process can still have on the device, bytes; infinity where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own stock
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of what `run` computes, each stretch of memory counted once."""
    kept: dict[int, torch.UntypedStorage] = {}  # holds on to them, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def step_bytes(forward: Callable[[int], object]) -> tuple[float, float]:
    """Bytes that a forward pass keeps whatever the batch, and for each example: the line through two and four of them.

    Args:
        forward: computes the loss of so many examples; must leave the network as it is.
    """
    with seeded(0):  # a trial draws no random numbers of the run
        two, four = (kept_bytes(functools.partial(forward, n)) for n in (2, 4))
    return 2 * two - four, (four - two) / 2


def piece_that_fits(
    forward: Callable[[int], object], batch_size: int, device: torch.device, state: float = 0, smallest: int = 2
) -> int:
    """`batch_size` where a step of it fits into the free memory, else the largest half, quarter, ... that does.

    Args:
        forward: see `step_bytes`.
        state: bytes that the step needs beside, such as those of gradients and of the optimiser's state.
        smallest: piece that makes sense; `batch_size` where the batch cannot be split.

    Raises:
        CamlError: not even the smallest piece fits.
    """
    fixed, each = step_bytes(forward)
    free, piece = SHARE * free_bytes(device), batch_size
    while state + fixed + each * piece > free and piece > smallest:
        piece = max(smallest, piece // 2)
    needed = f"about {(state + fixed + each * piece) / 1e9:.1f} GB"
    if state + fixed + each * piece > free:
        raise CamlError(
            what=f"a training step of {piece} examples needs {needed} on {device}",
            expected=f"at most {free / 1e9:.1f} GB, {SHARE:.0%} of what is free there",
            remedy="end other programs on it, or choose a smaller --batch-size or --backbone (CAML: --order first)",
        )
    if piece < batch_size:
        warnings.warn(
            f"a batch of {batch_size} does not fit into {free / 1e9:.1f} GB on {device}: it goes through in pieces of "
            f"{piece} ({needed}), which takes longer; BatchNorm, where there is any, sees the pieces",
            stacklevel=2,
        )
    return piece


def in_pieces(network: nn.Module, x: Tensor, piece: int, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`network(x)`, a piece of the batch at a time; the backward pass computes each piece again, so that one is kept.

    Args:
        forward: in place of the network's own.
    """
    forward = forward or network
    if len(x) <= piece:
        return forward(x)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _statistics_held(network)

    parts = [checkpoint(forward, part, use_reentrant=False, context_fn=contexts) for part in x.split(piece)]
    return torch.cat(parts)


@contextlib.contextmanager
def _statistics_held(network: nn.Module) -> Iterator[None]:
    """BatchNorm's running averages take in a piece once, not again when it is computed again."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device when it takes at most half of what is free there, otherwise where it is, with a message."""
    free = free_bytes(device)
    if x.device.type == device.type or x.nbytes <= free / 2:
        return x.to(device)
    warnings.warn(
        f"{x.nbytes / 1e9:.1f} GB of examples stay in main memory, since {device} has {free / 1e9:.1f} GB free; each "
        "batch is copied there, which takes longer",
        stacklevel=2,
    )
    return x
