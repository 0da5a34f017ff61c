"""Where and how to compute: device choice, mixed precision, reproducibility."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from caml_core.errors import CamlError


def pick_device(name: str = "auto") -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU; anything else is a name that torch knows, or a `CamlError`.

    Also makes the run repeatable (no autotuning) and fast on a CPU: memory is kept, and denormal floats, with which one
    training in ten is several times slower, become zero.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f"device {name!r} cannot be used: {str(error).splitlines()[0]}"
        raise CamlError(what, "auto, cpu, or cuda on a machine with a GPU", "use --device auto") from error
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_flush_denormal(True)
    keep_memory()
    return device


def keep_memory() -> None:
    """Where the C library is glibc, keep what a layer frees for the next one; else nothing.

    By default large blocks go back to the kernel and return zeroed: up to two thirds of the time that features take.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to 32 MiB (the most it takes) come from the heap,
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: which keeps up to 1 GiB


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 mixed precision on a GPU that has it (an A100; a T4 imitates it, slowly); elsewhere nothing."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def device_name(device: torch.device) -> str:
    """Name for the record of a run: the GPU's, or `cpu (n threads)`."""
    cpu = f"{device.type} ({torch.get_num_threads()} threads)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


@contextlib.contextmanager
def seeded(seed: int, stream: int = 0) -> Iterator[None]:
    """Run the block under its own torch seed and give the caller's random state back afterwards.

    Each `stream` (an epoch, a round) has its own numbers: a resumed run draws as one that was never stopped.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream_seed(seed, stream))
        yield


def stream_seed(seed: int, stream: int) -> int:
    """One 63-bit seed from (seed, stream), by a fixed integer hash (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
