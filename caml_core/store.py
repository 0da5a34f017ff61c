"""Files that are whole or absent: atomic writes, checksums, npz caches and safetensors checkpoints.

Everything long-lived goes through `atomic`: it is written under a temporary name in the same folder and renamed
at the end, so a kill or a full disk never leaves half a file under its final name. Nothing here is a pickle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from caml_core.errors import CamlError

_META = "__meta__"


def cache_dir() -> Path:
    """The user's cache folder: `$CAML_CACHE`, else `$XDG_CACHE_HOME/caml_core`, else `~/.cache/caml_core`."""
    if explicit := os.environ.get("CAML_CACHE"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "caml_core"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    Raises:
        CamlError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a cache may be shared
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        ):
            raise
        raise CamlError(
            what=f"cannot write {path}: {error.strerror}",
            expected="a writable folder with free space",
            remedy="free some space, or set CAML_CACHE (caches) or --out (results) to another folder",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CamlError(
            what=f"cannot read {path}: {error.strerror}",
            expected="a readable file",
            remedy="check the path and its permissions",
        ) from error


def read_sums(file: Path) -> dict[str, str]:
    """Relative path to SHA-256, from lines as `sha256sum` writes them; nothing when there is no such file.

    Raises:
        CamlError: a line that is not a checksum and a path.
    """
    if not file.is_file():
        return {}
    pairs = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if broken := [pair for pair in pairs if len(pair) != 2]:
        raise CamlError(
            what=f"{file} has a line without a path: {broken[0][0][:80]}",
            expected="a checksum and a path in each line",
            remedy="write it anew with sha256sum, or delete it",
        )
    return {path.lstrip("*").removeprefix("./"): digest for digest, path in pairs}


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_npz(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Save arrays and a JSON-able `meta` in one uncompressed npz (each member carries a CRC-32)."""
    record = json.dumps(
        {"meta": dict(meta), "arrays": sorted(arrays)}, sort_keys=True
    )  # names: a damaged index can lose one
    packed = {_META: np.frombuffer(record.encode(), dtype=np.uint8), **arrays}
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **packed)  # type: ignore[arg-type]


def load_npz(path: Path, expect_meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Load what `save_npz` wrote, refusing a file that is broken or was made for something else.

    Raises:
        CamlError: the file is missing, truncated, fails its CRC, or its meta differs from `expect_meta`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        record = json.loads(arrays.pop(_META).tobytes())
        meta = record["meta"]
        if record["arrays"] != sorted(arrays):
            raise ValueError(f"it holds {sorted(arrays)}, not {record['arrays']}")
    except (OSError, LookupError, TypeError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        # RuntimeError and its child NotImplementedError: a damaged header that claims encryption or a later zip version
        raise CamlError(
            what=f"cache file {path} is missing or broken ({error})",
            expected="a whole npz written by this package",
            remedy="delete the file; it is made again",
        ) from error
    wanted = json.loads(json.dumps(dict(expect_meta)))
    if meta != wanted:
        differs = {k: (meta.get(k), wanted.get(k)) for k in {*meta, *wanted} if meta.get(k) != wanted.get(k)}
        raise CamlError(
            what=f"cache file {path} was made for something else: {differs} (found, wanted)",
            expected="a cache of exactly these weights, data and settings",
            remedy="delete the file; it is made again",
        )
    return arrays


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Save tensors and a JSON-able `meta` as one safetensors file, atomically."""
    with atomic(path) as temporary:
        packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(packed, temporary, metadata={"meta": json.dumps(dict(meta))})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what `save_checkpoint` wrote.

    Raises:
        CamlError: the file is broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {})["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CamlError(
            what=f"checkpoint {path} is missing or broken ({error})",
            expected="a whole safetensors file written by this package",
            remedy="delete it and start again",
        ) from error


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
