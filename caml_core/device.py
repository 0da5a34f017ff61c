"""Where and how to compute: device choice, mixed precision, reproducibility."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from caml_core.errors import CamlError

ONE_THREAD_UP_TO = 100e6  # multiply-adds of a batch forward: below, the other threads save a fifth at most


def pick_device(name: str = "auto") -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU; anything else is a name that torch knows.

    Also makes the run repeatable (deterministic kernels, no autotuning) and, on a CPU, flushes denormal floats to
    zero: with them one training run in ten is several times slower; and keeps memory (`keep_memory`).

    Raises:
        CamlError: the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CamlError(
            what=f"device {name!r} cannot be used: {str(error).splitlines()[0]}",
            expected="auto, cpu, or cuda on a machine with a GPU",
            remedy="use --device auto",
        ) from error
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(True)
    keep_memory()
    return device


def keep_memory() -> None:
    """Where the C library is glibc, keep what a layer frees for the next one; else nothing.

    By default glibc gives large blocks back to the kernel, which must hand them out again, zeroed, page by page: up to
    two thirds of the time that features take.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to 32 MiB (the most it takes) come from the heap
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: which keeps up to 1 GiB


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 mixed precision on a GPU that has it (an A100; a T4 imitates it, slowly); elsewhere nothing."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def device_name(device: torch.device) -> str:
    """Name for the record of a run: the GPU's, or `cpu (n threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


@contextlib.contextmanager
def threads_for(network: nn.Module, x: Tensor, batch_size: int) -> Iterator[None]:
    """Train a small network on one thread of the CPU; a larger one keeps all.

    The threads of a parallel sum wait for the slowest, and where another program takes a core that takes as long as the
    kernel likes: a small network trains several times slower then (`benchmarks/threads.py`). How many threads add up
    may change a sum's last digits, so the rule looks at the network and the batch, never at the load.

    Args:
        x: inputs (N, ...), of which one is tried.
    """
    before = torch.get_num_threads()
    on_cpu = all(p.device.type == "cpu" for p in network.parameters())
    small = on_cpu and before > 1 and batch_size * multiply_adds(network, x[:1]) <= ONE_THREAD_UP_TO
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)


@torch.no_grad()
def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Of a forward pass, counted in convolutions and linear layers; the network is left as it is."""
    total = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * layer.weight[0].numel()  # type: ignore[index, operator]

    trial = copy.deepcopy(network).eval()
    for layer in trial.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            layer.register_forward_hook(count)
    trial(x)
    return total


@contextlib.contextmanager
def seeded(seed: int, stream: int = 0):  # type: ignore[no-untyped-def]
    """Run the block under its own torch seed and give the caller's random state back afterwards.

    Args:
        seed: the run's seed.
        stream: which part of the run (an epoch, a round): each gets its own random numbers, so a resumed run
            draws what an uninterrupted one would, with no state to restore.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork_rng warns on machines with many GPUs
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(seed, stream))
            yield


def stream_seed(seed: int, stream: int) -> int:
    """One 63-bit seed from (seed, stream), by a fixed integer hash (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
