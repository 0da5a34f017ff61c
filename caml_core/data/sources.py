"""Where real images come from: MNIST, Fashion-MNIST and CIFAR-10 as the Hugging Face Hub keeps them.

`images(name, split)` looks, in this order, in the folder `$CAML_DATA` (laid out `<repository>/<file>`), in the Hub's
cache on this machine and on the Hub itself. Decoded pixels are kept once, named by the checksum of their file.

Rows are sorted by class and then by the SHA-256 of their pixels, so a seeded split does not depend on the order of
rows in the file. It does depend on the pixels: a JPEG re-encoding of CIFAR-10 gives other splits than the original.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

SHARD = re.compile(r"(train|val|test)[a-z]*-\d+-of-\d+\.parquet")
ENTRIES = tomllib.loads(resources.files("caml_core.data").joinpath("catalogue.toml").read_text(encoding="utf-8"))
Where = str | Path | None  # a data folder in place of $CAML_DATA


class Source(NamedTuple):
    repository: str  # dataset repository on the Hub
    folder: str  # folder of the parquet files in it
    column: str  # name of the image column
    shape: tuple[int, ...]  # of one decoded image
    classes: tuple[str, ...]


SOURCES = {name: Source(**entry) for name, entry in ENTRIES["images"].items()}


class Images(NamedTuple):
    pixels: np.ndarray  # uint8 (N, H, W) or (N, H, W, 3)
    labels: np.ndarray  # int64 (N,)
    origin: str  # one line: where they were found


def images(name: str, split: str, data_dir: Where = None) -> Images:
    """All images of one source and split ("train" or "test"), sorted by class and content.

    Args:
        data_dir: folder to use in place of `$CAML_DATA`.

    Raises:
        CamlError: not found anywhere, or a file that is corrupt or fails its checksum.
    """
    file, origin = _find(name, split, data_dir)
    digest = store.sha256(file)
    cached = store.cache_dir() / "decoded" / f"{name}-{split}-{digest[:16]}.npz"
    meta = {"source": name, "split": split, "sha256": [digest]}
    if cached.exists():
        try:
            return Images(**store.load_npz(cached, meta), origin=origin)
        except CamlError as error:
            warnings.warn(f"decoding {name} again: {error.what}", stacklevel=2)
    pixels, labels = _decode(file, SOURCES[name])
    keys = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    order = sorted(range(len(labels)), key=lambda i: (labels[i], keys[i]))
    arrays = {"pixels": pixels[order], "labels": labels[order]}
    store.save_npz(cached, arrays, meta)
    return Images(**arrays, origin=origin)


def available(name: str, data_dir: Where = None) -> bool:
    """Whether both splits of a source can be had here and now (this may download them)."""
    data_root(data_dir)  # an error, where a folder is named that is none: a slip rather than an answer
    try:
        return all(_find(name, split, data_dir) for split in ("train", "test"))
    except CamlError:
        return False


def data_root(data_dir: Where = None) -> Path | None:
    """The reader's own data folder, where one is named: `data_dir`, else `$CAML_DATA`.

    Raises:
        CamlError: it is not a readable folder.
    """
    named = data_dir or os.environ.get("CAML_DATA")
    root = Path(os.path.abspath(os.path.expanduser(named))) if named else None
    if root and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        expected, remedy = "a folder of datasets", "correct CAML_DATA (or --data), or unset it to download instead"
        raise CamlError(f"the data folder {root} ({str(named)!r}) is not a readable folder", expected, remedy)
    return root


def _find(name: str, split: str, data_dir: Where) -> tuple[Path, str]:
    """The file of a source, and where it was found; the error names every place tried."""
    repository, filename = SOURCES[name].repository, f"{SOURCES[name].folder}/{split}-00000-of-00001.parquet"
    if (root := data_root(data_dir)) and (file := root / repository / filename).exists():
        check_sums(data_dir, file)
        return file, f"CAML_DATA/{repository}"
    try:
        return from_hub(repository, filename)[0], f"Hugging Face Hub, {repository}"
    except CamlError as error:
        place = f"{root / repository / filename} (no such file)" if root else "CAML_DATA (not set)"
        what = f"{name} ({split}) was not found; tried: {place}; {error.what}"
        remedy = "set CAML_DATA to a folder that has it, or connect to the network once; birdscapes needs neither"
        raise CamlError(what, f"the file {repository}/{filename}", remedy) from error


def from_hub(repository: str, pattern: str) -> list[Path]:
    """A dataset's files like `pattern` from the Hub's cache, or else from the Hub, checked."""
    from huggingface_hub import snapshot_download

    why = "not in its cache, and no network"
    for cached in (True, False) if store.hub_is_reachable() else (True,):
        try:
            top = snapshot_download(repository, repo_type="dataset", allow_patterns=pattern, local_files_only=cached)
            files = sorted(Path(top).rglob(pattern))
            for blob in [file.resolve() for file in files]:
                if len(blob.name) == 64 and store.sha256(blob) != blob.name:  # a large file is named by its SHA-256
                    blob.unlink()
                    raise ValueError("wrong checksum: what came was damaged or cut short")
            if files:
                return files
        except Exception as error:  # the library's own errors change with the HTTP client below it
            why = why if cached else f"{type(error).__name__}: {error}".splitlines()[0]
    what, remedy = f"Hugging Face Hub, {repository} ({why})", "connect to the network and repeat"
    raise CamlError(what, pattern, remedy)


def by_split(files: Iterable[Path]) -> dict[Path, str]:
    """The split of each parquet file of a dataset; none where a split is missing."""
    found = {file: match[1] for file in sorted(files) if (match := SHARD.fullmatch(file.name))}
    return found if {*found.values()} == {"train", "val", "test"} else {}


def unpack(shards: Mapping[Path, str], folder: Path, columns: Mapping[str, str], progress: bool = True) -> None:
    """Write the images of parquet files, as they are, to `SPLIT/NUMBER.jpg`, and their labels to `metadata.csv`.

    Args:
        shards: see `by_split`.
        columns: names those of `y` and `a` beside `image`, and the `folder` that the images go to.
    """
    if not shards:
        raise CamlError("a split has no parquet files", "train, val and test", "see whether the dataset has changed")
    rows, count, wanted = ["img_filename,y,split,place"], Counter[str](), ["image", columns["y"], columns["a"]]
    for shard, split in tqdm(shards.items(), f"unpacking {folder.parent.name}", leave=False, disable=not progress):
        top = folder / columns["folder"]
        (top / split).mkdir(parents=True, exist_ok=True)
        try:
            for batch in parquet.ParquetFile(shard).iter_batches(64, columns=wanted):
                for image, y, a in zip(*(batch.column(name).to_pylist() for name in wanted)):
                    suffix = "png" if image["bytes"][:4] == b"\x89PNG" else "jpg"
                    file = f"{split}/{count[split]:06d}.{suffix}"
                    (top / file).write_bytes(image["bytes"])
                    rows.append(f"{file},{int(y)},{split},{int(a)}")
                    count[split] += 1
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
            what, expected = f"{shard.name} cannot be unpacked: {str(error)[:200]}", f"columns {', '.join(wanted)}"
            raise CamlError(what, expected, "fetch it again, or see whether the dataset has changed") from error
    store.write_text(folder / "metadata.csv", "\n".join(rows) + "\n")


def check_sums(data_dir: Where, file: Path) -> None:
    """Compare a file with the SHA256SUMS of the reader's folder, where there is one."""
    root = data_root(data_dir)
    if root and (expected := store.read_sums(root / "SHA256SUMS").get(file.relative_to(root).as_posix())):
        store.check_sha256(file, expected, "fetch the file again; what is there was damaged or cut short")


def _decode(file: Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = parquet.read_table(file, columns=[source.column, "label"])
        encoded = table.column(source.column).combine_chunks().field("bytes").to_pylist()
        labels = np.asarray(table.column("label").to_numpy(), dtype=np.int64)
        pixels = np.empty((len(labels), *source.shape), np.uint8)
        for i, blob in enumerate(tqdm(encoded, desc=f"decoding {source.repository}", leave=False, unit=" images")):
            pixels[i] = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB" if len(source.shape) == 3 else "L"))
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError, OSError) as error:  # Pillow's are OSErrors
        what = f"{file} is not a readable parquet file of images: {str(error)[:200]}"
        expected = f"columns {source.column} (struct with bytes) and label; images of shape {source.shape}"
        raise CamlError(what, expected, "fetch the file again") from error
    return pixels, labels
