"""How many threads of a CPU a training gets."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ONE_THREAD_UP_TO = 100e6  # multiply-adds of a batch forward: below, the other threads save a fifth at most


@contextlib.contextmanager
def threads_for(network: nn.Module, x: Tensor, batch_size: int) -> Iterator[None]:
    """Train a small network on one thread of the CPU; a larger one keeps all. One of the inputs x (N, ...) is tried.

    The threads of a parallel sum wait for the slowest: where another program takes a core, a small network trains
    several times slower (`benchmarks/threads.py`). How many threads add up may change a sum's last digits, so the rule
    looks at the network and the batch, never at the load.
    """
    before = torch.get_num_threads()
    on_cpu = all(p.device.type == "cpu" for p in network.parameters())
    if on_cpu and before > 1 and batch_size * multiply_adds(network, x[:1]) <= ONE_THREAD_UP_TO:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Of a forward pass, as PyTorch counts them; the network is left as it is."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).eval()(x)
    return counter.get_total_flops() // 2
