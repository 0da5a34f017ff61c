"""Images decoded once: one npy file of uint8 pixels at the training size, memory-mapped ever after.

The pixels are those of the Waterbirds, CelebA and MetaShift protocols: both sides to 256 pixels, whatever the shape of
the image, then the middle 224 x 224 (another size keeps the ratio). What will be cropped is not computed at all.

The file is named by the content of the images, not by their names or times: archives give a changed image its old
time back, and a copied folder gives an unchanged one a new time. So a changed image is never served stale, and a
folder may move. To know that, the encoded images are read, which costs little beside decoding them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from joblib import Parallel, delayed
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.io import decode_image
from torchvision.transforms.v2.functional import center_crop, resize
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

FAULTS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)


def packed(
    files: Sequence[Path], size: int = 224, *, upright: bool = False, label: str = "images", progress: bool = True
) -> Tensor:
    """The images of `files`, resized and cropped, in that order: uint8 (N, 3, size, size).

    The tensor is a private memory map: rows come from the disk when they are read, a batch takes the memory of the
    batch, and what is written to it stays in this process.

    Args:
        size: side in pixels.
        upright: turn images as their cameras say (EXIF); the published protocols do not.
        label: what the progress bar and the warnings call them.

    Raises:
        CamlError: an image that is missing or cannot be used, or a disk that is full.
    """
    content = hashlib.sha256(b"".join(digests_of(files))).hexdigest()
    edge, shape = round(size * 256 / 224), (len(files), 3, size, size)
    meta = json.dumps([content, shape, edge, upright, PIL.__version__, torchvision.__version__])
    path = store.cache_dir() / "packed" / f"{hashlib.sha256(meta.encode()).hexdigest()[:32]}.npy"
    if path.exists():
        try:
            return _map(path, shape)
        except (ValueError, EOFError, OSError) as error:
            warnings.warn(f"packing {label} again: {path} is broken ({error})", stacklevel=2)
    with store.atomic(path) as temporary, open(temporary, "wb") as stream:
        # A stream, as a full disk below a memory map kills the process.
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        rows = in_threads(lambda file: _decode(file, size, edge, upright), files)
        for image in tqdm(rows, f"packing {label}", len(files), unit="image", leave=False, disable=not progress):
            stream.write(image.data)
    return _map(path, shape)


def digests_of(files: Sequence[Path]) -> list[bytes]:
    """SHA-256 of the content of each file."""

    def digest(file: Path) -> bytes:
        try:
            return hashlib.sha256(file.read_bytes()).digest()
        except OSError as error:
            what = f"cannot read the image {file}: {error.strerror}"
            remedy = "check the folder; extract or fetch it again"
            raise CamlError(what, "every image that the dataset lists", remedy) from error

    return list(in_threads(digest, files))


def in_threads(function: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """`function` of each file, on all cores; Pillow and hashlib let other threads run while they work."""
    pool = Parallel(n_jobs=-1, backend="threading", batch_size=16, return_as="generator")
    return pool(delayed(function)(file) for file in files)


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A private map of a packed file; a read-only one where the system refuses more than its memory."""
    try:
        pixels = np.load(path, mmap_mode="c")
    except OSError:
        pixels = np.load(path, mmap_mode="r")
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} {pixels.shape}, not uint8 {shape}")
    with warnings.catch_warnings(action="ignore"):  # torch's, of a read-only map
        return torch.from_numpy(pixels)


def _decode(file: Path, size: int, edge: int, upright: bool) -> np.ndarray:
    """One image, uint8 (3, size, size): the middle of what would be `edge` pixels high and wide."""
    try:
        with Image.open(file) as image:
            if image.format == "JPEG" and image.mode == "RGB" and not upright:
                # In less than half of Pillow's time; of a thousand pixels some two are a grey level apart.
                pixels = resize(decode_image(str(file), "RGB"), [edge, edge])
                return np.ascontiguousarray(center_crop(pixels, [size, size]))
            rgb, first = to_rgb(image, upright), round((edge - size) / 2)
            left, top, right, bottom = (at * side / edge for at in (first, first + size) for side in rgb.size)
            small = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
            return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
    except FAULTS as error:
        what, expected = f"the image {file} cannot be used: {error}", "a whole image that Pillow reads, all bits in use"
        raise CamlError(what, expected, "convert it, or fetch it again") from error


def to_rgb(image: ImageFile.ImageFile, upright: bool) -> Image.Image:
    """Any image that Pillow opens with 8 bits a channel, its whole range of values kept; what is transparent is white.

    Raises:
        ValueError: more bits, and only a part of them used: nobody but the reader knows what black and white are.
    """
    is_deep, turned = ";16" in str(image.tile), ImageOps.exif_transpose(image) if upright else image
    if turned.mode == "F" or turned.mode.startswith("I"):
        most, part = (1, 16) if turned.mode == "F" else (65535, 4)  # cameras and scanners give 10 to 14 bits of 16
        values = np.asarray(turned, dtype=np.float64)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= most or 0 < high <= most / part:
            raise ValueError(f"values {low:g} to {high:g}, not 0 to {most}; scale all images alike to 8 bits")
        return Image.fromarray((values * 255 / most).astype(np.uint8)).convert("RGB")
    rgb = turned.convert("RGB")
    if is_deep and 0 < np.max(rgb.getextrema()) < 64:  # of 16 bits a colour Pillow keeps the upper 8
        raise ValueError("values of a quarter of its 16 bits at most; scale all images alike to 8 bits")
    if turned.has_transparency_data:
        rgba = turned.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return rgb
