"""What a notebook needs on Google Colab: the missing packages, a word on what to expect there, and a lasting cache.

A Colab session loses its disk when it ends. What the book downloads or computes once lies in one folder, `CAML_CACHE`,
so it is enough to have that folder elsewhere: `restore("drive")`, or `CAML_RESTORE=drive` set before the first cell,
points it at Google Drive. Pointing, not copying back and forth: a session ends without asking, and files are whole or
absent (`caml_core.store`), so the next one goes on from whatever is there. The price is that Drive is slow, most of all
for many small files; the cache holds few and large ones. Give datasets on the session's own disk by `CAML_DATA`.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from caml_core.errors import CamlError

#: Colab builds these against its own GPU driver; replacing one breaks the rest of its stack.
NEVER_INSTALLED = frozenset({"torch", "torchvision", "torchaudio", "numpy"})

DRIVE = Path("/content/drive")
ROOM = 1e9  # bytes that should be free where the cache is kept


def on_colab() -> bool:
    """Whether this Python is the kernel of a Colab notebook."""
    return "google.colab" in sys.modules


def setup(minutes: Mapping[str, float] | None = None) -> None:
    """Install what Colab lacks, then print versions, device, memory and expected minutes; do nothing elsewhere.

    With CAML_RESTORE=drive or CAML_RESTORE=/some/folder it also calls `restore`.

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
    if wanted := os.environ.get("CAML_RESTORE"):
        restore(wanted)
    if minutes:
        print("Expected time: " + ", ".join(f"{name} about {_time(value)}" for name, value in minutes.items()))


def restore(where: str | Path = "drive") -> Path:
    """Keep the cache in a folder that outlives the session, and go on from what an earlier session left there.

    Args:
        where: "drive" (mounts Google Drive, which asks for permission, and uses its folder caml_core), or a folder.

    Returns:
        The folder, which `CAML_CACHE` names from now on.

    Raises:
        CamlError: Drive cannot be mounted; the folder does not exist, cannot be written, or has less than 1 GB free.
    """
    from caml_core.store import write_text

    folder = _drive() if str(where) == "drive" else Path(where).expanduser().resolve()
    if not folder.is_dir():
        raise CamlError(
            what=f"there is no folder {folder}",
            expected="drive, or a folder that exists",
            remedy="create the folder, or correct CAML_RESTORE",
        )
    if (free := shutil.disk_usage(folder).free) < ROOM:
        raise CamlError(
            what=f"{folder} has {free / 1e9:.1f} GB free",
            expected=f"at least {ROOM / 1e9:.0f} GB",
            remedy="free some space there, or choose another folder",
        )
    write_text(folder / "README.txt", "What the book keeps between sessions. It can be deleted: it is made again.\n")
    os.environ["CAML_CACHE"] = str(folder)
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    print(f"The cache is {folder}: {len(sizes) - 1} files, {sum(sizes) / 1e9:.1f} GB; {free / 1e9:.0f} GB free")
    return folder


def _drive() -> Path:
    """The book's folder on Google Drive, mounted where it is not yet."""
    try:
        from google.colab import drive

        drive.mount(str(DRIVE))
        folder = DRIVE / "MyDrive" / "caml_core"
        folder.mkdir(exist_ok=True)
    except Exception as error:  # Colab raises whatever its browser side reports
        raise CamlError(
            what=f"Google Drive is not mounted: {type(error).__name__}: {error}",
            expected="a Colab session that was given access to Drive",
            remedy="run the cell again and allow the access, or give restore() a folder",
        ) from error
    return folder


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
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties()
        return (
            f"torch {torch.__version__} on {gpu.name} with {gpu.total_memory / 1e9:.0f} GB, {ram:.0f} GB of main memory"
        )
    return (
        f"torch {torch.__version__} on the CPU with {ram:.0f} GB of memory: no GPU here, the quick profile is meant "
        "for that (Runtime > Change runtime type gives one)"
    )


def _time(minutes: float) -> str:
    return f"{minutes:g} minute" + ("" if minutes == 1 else "s")
