"""Where real images come from: MNIST, Fashion-MNIST and CIFAR-10 in the layout of the Hugging Face Hub.

`images(name, split)` looks, in this order, in the folder `$CAML_DATA` (laid out `<repository>/<file>`), in the Hub's
cache on this machine, on the Hub itself, and, for Fashion-MNIST, where Debian's package puts it. Decoded pixels are
kept once in the user's cache, keyed by the checksum of the file they came from.

Rows are sorted by class and then by the SHA-256 of their pixels, so a seeded split does not depend on the order of
rows in the file. It does depend on the pixels: a JPEG re-encoding of CIFAR-10 gives other splits than the original.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Source(NamedTuple):
    repository: str  # dataset repository on the Hub
    folder: str  # folder of the parquet files in it
    column: str  # name of the image column
    shape: tuple[int, ...]  # of one decoded image
    classes: tuple[str, ...]


SOURCES = {
    "mnist": Source("ylecun/mnist", "mnist", "image", (28, 28), tuple("0123456789")),
    "fashion_mnist": Source(
        "zalando-datasets/fashion_mnist",
        "fashion_mnist",
        "image",
        (28, 28),
        (
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
    "cifar10": Source(
        "uoft-cs/cifar10",
        "plain_text",
        "img",
        (32, 32, 3),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
}


class Images(NamedTuple):
    pixels: np.ndarray  # uint8 (N, H, W) or (N, H, W, 3)
    labels: np.ndarray  # int64 (N,)
    origin: str  # one line: where they were found


def images(name: str, split: str, data_dir: str | Path | None = None) -> Images:
    """All images of one source and split ("train" or "test"), sorted by class and content.

    Args:
        data_dir: folder to use in place of `$CAML_DATA`.

    Raises:
        CamlError: unknown source, not found anywhere, or a file that is corrupt or fails its checksum.
    """
    if name not in SOURCES:
        raise CamlError(
            what=f"unknown image source {name!r}",
            expected="one of " + ", ".join(SOURCES),
            remedy="check the spelling",
        )
    source = SOURCES[name]
    files, origin = _find(name, split, data_dir)
    digests = [store.sha256(file) for file in files]
    cached = store.cache_dir() / "decoded" / f"{name}-{split}-{digests[0][:16]}.npz"
    meta = {"source": name, "split": split, "sha256": digests}
    if cached.exists():
        try:
            arrays = store.load_npz(cached, meta)
            return Images(arrays["pixels"], arrays["labels"], origin)
        except CamlError as error:
            warnings.warn(f"decoding {name} again: {error.what}", stacklevel=2)
    pixels, labels = _read_idx(files) if files[0].suffix == ".gz" else _read_parquet(files[0], source)
    keys = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    order = sorted(range(len(labels)), key=lambda i: (labels[i], keys[i]))
    pixels, labels = pixels[order], labels[order]
    store.save_npz(cached, {"pixels": pixels, "labels": labels}, meta)
    return Images(pixels, labels, origin)


def available(name: str, data_dir: str | Path | None = None) -> bool:
    """Whether both splits of a source can be had here and now (this may download them)."""
    try:
        for split in ("train", "test"):
            _find(name, split, data_dir)
    except CamlError:
        return False
    return True


def hub_is_reachable() -> bool:
    """Whether the Hub's host name resolves (or a proxy is set), asked before a download that would retry for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _find(name: str, split: str, data_dir: str | Path | None) -> tuple[list[Path], str]:
    """Files of a source, and where they were found; the error names every place tried."""
    source = SOURCES[name]
    filename = f"{source.folder}/{split}-00000-of-00001.parquet"
    tried = []

    folder = data_dir or os.environ.get("CAML_DATA")
    if folder:
        root = Path(folder).expanduser()
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            raise CamlError(
                what=f"the data folder {root} is not a readable folder",
                expected="a folder laid out as <repository>/<file>, as on the Hugging Face Hub",
                remedy="correct CAML_DATA (or --data), or unset it to download instead",
            )
        file = root / source.repository / filename
        if file.exists():
            check_sums(root, file)
            return [file], f"CAML_DATA/{source.repository}"
        tried.append(f"{file} (no such file)")
    else:
        tried.append("CAML_DATA (not set)")

    file_or_reason = _from_hub(source.repository, filename)
    if isinstance(file_or_reason, Path):
        return [file_or_reason], f"Hugging Face Hub, {source.repository}"
    tried.append(file_or_reason)

    if name == "fashion_mnist":
        prefix = {"train": "train", "test": "t10k"}[split]
        pair = [DEBIAN_FASHION_MNIST / f"{prefix}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
        if all(file.exists() for file in pair):
            return pair, "Debian's package dataset-fashion-mnist"
        tried.append(f"{DEBIAN_FASHION_MNIST} (not installed)")

    raise CamlError(
        what=f"{name} ({split}) was not found; tried: " + "; ".join(tried),
        expected=f"the file {source.repository}/{filename}",
        remedy="set CAML_DATA to a folder that has it, or connect to the network once; "
        "birdscapes needs neither: load('birdscapes')",
    )


def _from_hub(repository: str, filename: str) -> Path | str:
    """Path of a file in the Hub's cache, downloaded if need be and checked; or the reason why not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if not hub_is_reachable():
        return f"Hugging Face Hub, {repository} (not in its cache, and no network)"
    try:
        file = Path(hf_hub_download(repository, filename, repo_type="dataset"))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        return f"Hugging Face Hub, {repository} ({type(error).__name__})"
    blob = file.resolve()  # the Hub's cache names a large file's blob by its SHA-256
    if len(blob.name) == 64 and store.sha256(blob) != blob.name:
        blob.unlink()
        raise _wrong_checksum(file, blob.name)
    return file


def check_sums(root: Path, file: Path) -> None:
    """Compare a file with the folder's SHA256SUMS, where there is one."""
    expected = store.read_sums(root / "SHA256SUMS").get(file.relative_to(root).as_posix())
    if expected and store.sha256(file) != expected:
        raise _wrong_checksum(file, expected)


def _wrong_checksum(file: Path, expected: str) -> CamlError:
    return CamlError(
        what=f"wrong checksum: {file}",
        expected=f"SHA-256 {expected}",
        remedy="fetch the file again; what is there was damaged or cut short",
    )


def _read_parquet(file: Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file, columns=[source.column, "label"])
        encoded = table.column(source.column).combine_chunks().field("bytes").to_pylist()
        labels = np.asarray(table.column("label").to_numpy(), dtype=np.int64)
        pixels = np.empty((len(labels), *source.shape), np.uint8)
        for i, blob in enumerate(tqdm(encoded, desc=f"decoding {source.repository}", leave=False, unit=" images")):
            image = Image.open(io.BytesIO(blob)).convert("RGB" if len(source.shape) == 3 else "L")
            pixels[i] = np.asarray(image)
    except (
        pyarrow.ArrowException,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        UnidentifiedImageError,
    ) as error:
        raise CamlError(
            what=f"{file} is not a readable parquet file of images: {str(error)[:200]}",
            expected=f"columns {source.column} (struct with bytes) and label; images of shape {source.shape}",
            remedy="fetch the file again",
        ) from error
    return pixels, labels


def _read_idx(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read an (images, labels) pair of gzipped IDX files, the format of the original MNIST."""
    arrays = []
    for file in files:
        try:
            with gzip.open(file) as stream:
                data = stream.read()
            rank = data[3]
            shape = np.frombuffer(data, ">i4", count=rank, offset=4)
            arrays.append(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape))
        except (OSError, EOFError, IndexError, ValueError) as error:
            raise CamlError(
                what=f"{file} is not a readable IDX file: {error}",
                expected="a whole gzipped IDX file",
                remedy="install the package dataset-fashion-mnist again",
            ) from error
    return arrays[0], arrays[1].astype(np.int64)
