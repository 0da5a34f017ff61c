"""What a notebook needs on Google Colab: the few missing packages, and a word on what to expect there."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

from caml_core.errors import CamlError

#: Colab builds these against its own GPU driver; replacing one breaks the rest of its stack.
NEVER_INSTALLED = frozenset({"torch", "torchvision", "torchaudio", "numpy"})


def on_colab() -> bool:
    """Whether this Python is the kernel of a Colab notebook."""
    return "google.colab" in sys.modules


def setup(minutes: Mapping[str, float] | None = None) -> None:
    """Install what Colab lacks, then print versions, device and expected minutes; do nothing elsewhere.

    Args:
        minutes: expected run time of the notebook by machine, such as ``{"Colab CPU": 4, "T4": 1}``.
    """
    if not on_colab():
        return
    absent = missing_requirements("caml_core")
    if absent:
        _pip_install(absent)
        importlib.invalidate_caches()
    print(f"caml_core {metadata.version('caml_core')}, Python {platform.python_version()}, {_torch_line()}")
    if minutes:
        print("Expected time: " + ", ".join(f"{name} about {_time(value)}" for name, value in minutes.items()))


def missing_requirements(
    package: str,
    requirements: Sequence[str] | None = None,
    installed: Callable[[str], bool] | None = None,
) -> list[str]:
    """The run-time requirements of ``package`` that are not installed, as pip wants them.

    A package that is there in another version than the one asked for stays as it is, extras are not looked
    at, and ``NEVER_INSTALLED`` is never part of the answer.
    """
    if requirements is None:
        requirements = metadata.requires(package) or []
    present = installed or _is_installed
    absent = []
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement and name.lower() not in NEVER_INSTALLED and not present(name):
            absent.append(requirement)
    return absent


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _pip_install(requirements: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise CamlError(
            what=f"pip could not install {', '.join(requirements)}:\n{last_lines}",
            expected="a Colab session that can reach the package index",
            remedy="check the connection, then run the first cell again",
        )


def _torch_line() -> str:
    """Version of torch and the device the notebook will use."""
    try:
        import torch
    except ImportError:
        return "torch is missing: choose a standard Colab runtime"
    if torch.cuda.is_available():
        return f"torch {torch.__version__} on {torch.cuda.get_device_name()}"
    return (
        f"torch {torch.__version__} on the CPU: no GPU here, the quick profile is meant for that "
        "(Runtime > Change runtime type gives one)"
    )


def _time(minutes: float) -> str:
    return f"{minutes:g} minute" + ("" if minutes == 1 else "s")
