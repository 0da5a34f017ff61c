"""Images decoded once: one file of uint8 pixels at the training size, memory-mapped ever after.

The pixels are those of the Waterbirds, CelebA and MetaShift protocols: both sides to 256 pixels, whatever the shape of
the image, then the middle 224 x 224 (another size keeps the ratio). What will be cropped is not computed at all.

The file is named by the content of the images, not by their names or times: archives give a changed image its old
time back, and a copied folder gives an unchanged one a new time. So a changed image is never served stale, and a
folder may move. Reading the encoded images to know that costs a thirtieth of decoding them.

It is a safetensors file with x, and the CRC-32 of every block of images. All are checked when it is opened, because
the likely damage, a disk that fails or a copy that stopped, is anywhere; a file that fails is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import shutil
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from caml_core import store
from caml_core.errors import CamlError

BLOCK = 128  # images decoded, written and checked at a time: 19 MB at 224 pixels
ABANDONED = 3600  # seconds after which a half-written file belongs to nobody: a living writer adds a block every second
# A private mapping of more than the memory of the machine is refused unless nothing is set aside for it.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def packed(files: Sequence[Path], size: int = 224, *, label: str = "images", progress: bool = True) -> Tensor:
    """The images of `files`, resized and cropped, in that order: uint8 (N, 3, size, size).

    The tensor is a private memory map: rows come from the disk when they are read, a batch takes the memory of the
    batch, and what is written to it stays in this process.

    Args:
        size: side in pixels, at least 8.
        label: what the progress bar and the warnings call them.

    Raises:
        CamlError: an image that is missing or corrupt, a size out of range, a disk that is full.
    """
    if size < 8 or not files:
        raise CamlError(
            what=f"{len(files)} images at {size} pixels",
            expected="at least one image, of at least 8 pixels",
            remedy="choose for example size=224",
        )
    digests = _in_threads(_digest, files)
    meta = {
        "images": hashlib.sha256(b"".join(digests)).hexdigest(),
        "shape": [len(files), 3, size, size],
        "before_crop": round(size * 256 / 224),
        "pillow": PIL.__version__,  # another decoder may give other pixels
    }
    name = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    path = store.cache_dir() / "packed" / f"{name[:32]}.safetensors"
    if path.exists():
        try:
            _check(path, meta)
            return _map(path, meta)
        except CamlError as error:
            warnings.warn(f"packing {label} again: {error.what}", stacklevel=2)
    _pack(path, meta, files, digests, label, progress)
    return _map(path, meta)


def _pack(
    path: Path, meta: dict[str, Any], files: Sequence[Path], digests: Sequence[bytes], label: str, progress: bool
) -> None:
    """Decode and write block by block; a kill leaves nothing under the final name, and the next run starts afresh."""
    from tqdm.auto import tqdm

    n, _, size, _ = meta["shape"]
    buffer = np.empty((min(BLOCK, n), 3, size, size), np.uint8)
    sums = []
    with store.atomic(path) as temporary:
        for left_over in path.parent.glob(".*.part"):
            if time.time() - left_over.stat().st_mtime > ABANDONED:
                left_over.unlink(missing_ok=True)
        head = _header(meta)
        needed, free = len(head) + 4 * _n_blocks(n) + n * buffer[0].nbytes, shutil.disk_usage(path.parent).free
        if free < needed:
            raise CamlError(
                what=f"{label}: {n:,} images at {size} pixels take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
                expected=f"a cache folder with that much space (now {path.parent})",
                remedy="set CAML_CACHE to a folder on another disk, or choose a smaller size",
            )
        bar = tqdm(total=n, desc=f"packing {label}", unit="image", leave=False, disable=not progress)
        with open(temporary, "wb") as stream, bar:
            stream.write(head + bytes(4 * _n_blocks(n)))  # the sums come last
            for start in range(0, n, BLOCK):
                block = buffer[: min(BLOCK, n - start)]
                rows = range(start, start + len(block))
                _in_threads(
                    _decode, [files[i] for i in rows], [digests[i] for i in rows], block, edge=meta["before_crop"]
                )
                stream.write(block.data)
                sums.append(zlib.crc32(block.data))
                bar.update(len(block))
            stream.seek(len(head))
            stream.write(struct.pack(f"<{len(sums)}I", *sums))


def _header(meta: dict[str, Any]) -> bytes:
    """Length and JSON of a safetensors file that holds the sums, then x (written by hand: x never fits in memory)."""
    sums, pixels = 4 * _n_blocks(meta["shape"][0]), math.prod(meta["shape"])
    header = {
        "__metadata__": {"meta": json.dumps(meta)},
        "crc32": {"dtype": "U8", "shape": [sums], "data_offsets": [0, sums]},
        "x": {"dtype": "U8", "shape": meta["shape"], "data_offsets": [sums, sums + pixels]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _check(path: Path, meta: dict[str, Any]) -> None:
    """Compare header, length and the sum of every block, reading the file once.

    Raises:
        CamlError: any of them differs.
    """
    head = _header(meta)
    n, image = meta["shape"][0], math.prod(meta["shape"][1:])
    try:
        if path.stat().st_size != len(head) + 4 * _n_blocks(n) + n * image:
            raise ValueError("wrong length")
        with open(path, "rb") as stream:
            if stream.read(len(head)) != head:
                raise ValueError("wrong header")
            sums = struct.unpack(f"<{_n_blocks(n)}I", stream.read(4 * _n_blocks(n)))
            for k, expected in enumerate(sums):
                if zlib.crc32(stream.read(min(BLOCK, n - k * BLOCK) * image)) != expected:
                    raise ValueError(f"wrong checksum of block {k}")
    except (OSError, ValueError) as error:
        raise CamlError(
            what=f"packed images {path} are broken ({error})",
            expected="a whole file written by this package",
            remedy="delete the file; it is made again",
        ) from error


def _map(path: Path, meta: dict[str, Any]) -> Tensor:
    with open(path, "rb") as stream:
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | NO_RESERVE
        mapped = mmap.mmap(stream.fileno(), 0, flags=flags, prot=protection)
    start = len(mapped) - math.prod(meta["shape"])
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=start).view(meta["shape"])


def _n_blocks(n: int) -> int:
    return -(-n // BLOCK)


def _in_threads(function: Callable[..., Any], *columns: Iterable[Any], **options: Any) -> list[Any]:
    """`function` of each row, on all cores; Pillow and hashlib let other threads run while they work."""
    from joblib import cpu_count

    rows = list(zip(*columns, strict=True))
    with ThreadPoolExecutor(cpu_count()) as pool:
        parts = [rows[start : start + 1024] for start in range(0, len(rows), 1024)]  # a waiting task takes memory, too
        return [result for part in parts for result in pool.map(lambda row: function(*row, **options), part)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CamlError(
            what=f"cannot read the image {file}: {error.strerror}",
            expected="every image that the dataset lists",
            remedy="check the folder of images; extract or fetch the dataset again",
        ) from error


def _digest(file: Path) -> bytes:
    return hashlib.sha256(_read(file)).digest()


def _decode(file: Path, digest: bytes, out: np.ndarray, edge: int) -> None:
    """Decode one image into `out`, uint8 (3, size, size): the middle of what would be `edge` pixels high and wide."""
    data = _read(file)
    if hashlib.sha256(data).digest() != digest:
        raise CamlError(
            what=f"the image {file} changed while it was read",
            expected="a folder that nobody writes to",
            remedy="wait until it is extracted, then load again",
        )
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb, size = image.convert("RGB"), out.shape[1]
            first = round((edge - size) / 2)
            box = [at * side / edge for at in (first, first + size) for side in rgb.size]
            small = rgb.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box))
            out[:] = np.asarray(small).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise CamlError(
            what=f"the image {file} is corrupt: {error}",
            expected="a whole JPEG, PNG or other file that Pillow reads",
            remedy="extract or fetch it again",
        ) from error
