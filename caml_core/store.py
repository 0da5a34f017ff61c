"""Files that are whole or absent: atomic writes, checksums, npz caches, safetensors checkpoints. Nothing is a pickle.

A file is written under a temporary name in its folder and renamed at the end, so that a kill or a full disk never
leaves half of it under its name. PyTorch waits until tensors are asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from caml_core.errors import CamlError

if TYPE_CHECKING:
    from torch import Tensor

META = "__meta__"
ABANDONED = 3600  # seconds without a write after which half a file belongs to nobody


def cache_dir() -> Path:
    """The user's cache folder: `$CAML_CACHE`, else `$XDG_CACHE_HOME/caml_core`, else `~/.cache/caml_core`."""
    given, xdg = os.environ.get("CAML_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    try:  # an XDG_CACHE_HOME that is empty or relative counts as not set, says its specification
        folder = Path(given) if given else Path(xdg if os.path.isabs(xdg) else "~/.cache") / "caml_core"
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise CamlError(f"no place for the cache: {error}", "a home folder, or CAML_CACHE", "set CAML_CACHE") from error


def hub_is_reachable() -> bool:
    """Whether the Hub's host name resolves (or a proxy is set), asked before a download that would retry for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    with contextlib.suppress(OSError):
        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
        return bool(urllib.request.getproxies().get("https") or socket.getaddrinfo(host, 443))
    return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Every fault of the disk in this block, a full one above all, as one CamlError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own word for a full disk
        what = f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
        remedy = "free some space, or set CAML_CACHE (caches) or --out (results) to another folder"
        raise CamlError(what, "a writable folder with free space", remedy) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise."""
    path = Path(path)
    start = f".{path.name[:99]}."
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{start}*.part"):  # of a run that was killed
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=".part")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # mkstemp makes private files; a cache may be shared
            with open(name, "rb+") as done:
                os.fsync(done.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CamlError(f"cannot read {path}: {error.strerror}", "a readable file", "check its permissions") from error


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Raise a CamlError when the file is not the one with this SHA-256."""
    if sha256(path) != expected:
        raise CamlError(f"wrong checksum: {path}", f"SHA-256 {expected}", remedy)


def read_sums(file: Path) -> dict[str, str]:
    """Relative path to SHA-256, from lines as `sha256sum` writes them; nothing when there is no such file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return {path.lstrip("*").removeprefix("./"): digest for digest, path in pairs}


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_npz(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Save arrays and a JSON-able `meta` in one uncompressed npz (each member carries a CRC-32)."""
    record = json.dumps({"meta": dict(meta), "arrays": sorted(arrays)})  # names: a damaged index can lose one
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **{META: np.frombuffer(record.encode(), np.uint8), **arrays})  # type: ignore[arg-type]


def load_npz(path: Path, expect_meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Load what `save_npz` wrote; `CamlError` where it is missing, damaged, or was made with another meta."""
    expected, remedy = "a whole npz, made from exactly these weights, data and settings", "delete it; it is made again"
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
        found = json.loads(arrays.pop(META).tobytes())
    except Exception as error:  # a damaged zip has many ways to fail
        raise CamlError(f"cache file {path} is missing or broken ({error})", expected, remedy) from error
    if found != (wanted := json.loads(json.dumps({"meta": dict(expect_meta), "arrays": sorted(arrays)}))):
        raise CamlError(f"cache file {path} was made for something else: {found}, not {wanted}", expected, remedy)
    return arrays


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Save tensors and a JSON-able `meta` as one safetensors file, atomically."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        # Copies, since the format has no way to say that two names share their memory (tied weights).
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata={"meta": json.dumps(dict(meta))})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what `save_checkpoint` wrote; `CamlError` where the file is missing or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["meta"])
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        what = f"checkpoint {path} is missing or broken ({error})"
        raise CamlError(what, "a whole safetensors file written by this package", "delete it, start again") from error


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, in this order."""
    digest = hashlib.sha256()
    for name, tensor in named:
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict, whatever its order."""
    return hash_tensors(sorted(state.items()))
