"""Where and how to compute: device choice, mixed precision, reproducibility."""

from __future__ import annotations

import contextlib
import warnings

import torch

from caml_core.errors import CamlError


def pick_device(name: str = "auto") -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU; anything else is a name that torch knows.

    Also makes the run repeatable (deterministic kernels, no autotuning) and, on a CPU, flushes denormal floats to
    zero: with them one training run in ten is several times slower.

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
    return device


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
