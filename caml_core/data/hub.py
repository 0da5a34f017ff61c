"""Datasets that the Hugging Face Hub keeps as parquet: listed, then unpacked into images and a metadata.csv.

The Hub tells the size and the SHA-256 of each file, which few authors do, and serves large files reliably. Once they
are unpacked, the loaders find what they know from the authors: a folder of images and a table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from caml_core import store
from caml_core.data import sources
from caml_core.data.fetch import File
from caml_core.data.folder import SPLIT_CODES, SPLITS
from caml_core.errors import CamlError

SHARD = re.compile(r"(?:^|/)(train|val|valid|validation|test)-\d+-of-\d+\.parquet$")
ROWS = 64  # decoded at a time


class Columns(NamedTuple):
    """Columns of the parquet files beside `image`, and where the images go."""

    y: str
    a: str
    folder: str = "."


def listed(repository: str) -> tuple[File, ...]:
    """The parquet files of a dataset's newest version, each with its size and checksum.

    Raises:
        CamlError: the Hub cannot be reached, has no such repository, or lists no parquet file of all three splits.
    """
    from huggingface_hub import HfApi, constants

    expected, remedy = f"the dataset {repository} on the Hugging Face Hub", "check the network and repeat the command"
    if not sources.hub_is_reachable():
        raise CamlError("the Hugging Face Hub is out of reach", expected, remedy)
    try:
        info = HfApi(endpoint=constants.ENDPOINT).dataset_info(repository, files_metadata=True, timeout=30)
        files = []
        for entry in info.siblings or []:
            if SHARD.search(entry.rfilename) and entry.lfs is not None:
                url = f"{constants.ENDPOINT}/datasets/{repository}/resolve/{info.sha}/{quote(entry.rfilename)}"
                files.append(File(Path(entry.rfilename).name, (url,), entry.lfs["sha256"], entry.size))
    except Exception as error:  # the library's own errors change with the HTTP client below it
        raise CamlError(f"the Hub did not list {repository}: {type(error).__name__}", expected, remedy) from error
    if not _all_splits(file.name for file in files):
        raise CamlError(f"{repository} lists {len(files)} parquet files", "files of all three splits", remedy)
    return tuple(sorted(files))


def on_disk(folder: Path) -> list[Path]:
    """Parquet files of all three splits in a reader's copy of a repository; none where a split is missing."""
    found = sorted(file for file in folder.rglob("*.parquet") if SHARD.search(file.name))
    return found if _all_splits(file.name for file in found) else []


def unpack(files: Sequence[Path], folder: Path, columns: Columns, *, progress: bool = True) -> None:
    """Write the images to `folder/columns.folder/SPLIT/NUMBER.jpg`, and `folder/metadata.csv` with their labels.

    The bytes of an image are written as they are. Holds a few rows in memory.

    Raises:
        CamlError: a file that is no whole parquet file, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet
    from tqdm.auto import tqdm

    rows, count = ["img_filename,y,split,place"], Counter[str]()
    bar = tqdm(desc=f"unpacking {folder.parent.name}", unit="image", leave=False, disable=not progress)
    with bar:
        for file in files:
            split = _split(file.name)
            (folder / columns.folder / split).mkdir(parents=True, exist_ok=True)
            try:
                wanted = ["image", columns.y, columns.a]
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS, columns=wanted):
                    images, y, a = (batch.column(name).to_pylist() for name in wanted)
                    for encoded, label, attribute in zip((image["bytes"] for image in images), y, a):
                        name = f"{split}/{count[split]:06d}" + (".png" if encoded[:4] == b"\x89PNG" else ".jpg")
                        (folder / columns.folder / name).write_bytes(encoded)
                        rows.append(f"{name},{int(label)},{split},{int(attribute)}")
                        count[split] += 1
                    bar.update(len(y))
            except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
                raise CamlError(
                    what=f"{file.name} cannot be unpacked: {str(error)[:200]}",
                    expected=f"a parquet file with columns {', '.join(wanted)}",
                    remedy="fetch it again; if that does not help, the dataset on the Hub has changed",
                ) from error
    store.write_text(folder / "metadata.csv", "\n".join(rows) + "\n")


def _split(name: str) -> str:
    found = SHARD.search(name)
    return SPLITS[SPLIT_CODES[found[1]]] if found else ""


def _all_splits(names: Iterable[str]) -> bool:
    return set(map(_split, names)) == set(SPLITS)
