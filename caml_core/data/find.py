"""What each dataset of the book is, where it comes from, under which licence (`catalogue.toml`), and its folder.

`locate(name)` looks in `data_dir` or `$CAML_DATA`, then in the cache, and at last fetches.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from caml_core import store
from caml_core.data import sources
from caml_core.data.fetch import File, download, extract
from caml_core.data.sources import Where
from caml_core.errors import CamlError


class Dataset(NamedTuple):
    """One dataset that lives on disk, see the head of `catalogue.toml`."""

    title: str
    folders: Sequence[str]
    layouts: Sequence[Sequence[str]]
    by_hand: str
    licence: str
    citation: str
    page: str
    files: Sequence[File] = ()
    hub: str = ""
    parquet: dict[str, str] | None = None

    @property
    def expected(self) -> str:
        return "a folder with " + " or ".join(", ".join(layout) for layout in self.layouts)


CATALOGUE = {
    name: Dataset(**entry | {"files": [File(**file) for file in entry.get("files", ())]})
    for name, entry in sources.ENTRIES["datasets"].items()
}
MADE: dict[str, str] = sources.ENTRIES["made"]


def locate(name: str, data_dir: Where = None, download: bool = True) -> Path:
    """The folder that holds a dataset in its official layout, fetched into the cache if need be and `download`.

    Raises:
        CamlError: unknown name, or not found and not fetched; it says every place that was tried.
    """
    if name not in CATALOGUE:
        what = f"{name} is in no folder: it is {MADE[name]}" if name in MADE else f"unknown dataset {name!r}"
        raise CamlError(what, "one of " + ", ".join(CATALOGUE), "check the spelling, or load it as it is")
    dataset, root = CATALOGUE[name], sources.data_root(data_dir)
    tops = [top for top in (root, store.cache_dir() / "datasets" / name) if top]
    if found := next(filter(None, (recognise(dataset, top) for top in tops)), None):
        return found
    what = f"{name} was not found; tried {' and '.join(map(str, tops))}, there and in {', '.join(dataset.folders)}"
    what, expected = what + " (CAML_DATA is not set)" * (root is None), dataset.expected
    remedy = f"put it into {root or 'a folder that CAML_DATA names'}: {dataset.by_hand}"
    if dataset.files:
        remedy = f"python -m caml_core data fetch {name}; or {remedy}"
        if download:
            try:
                return fetch(name, data_dir)
            except CamlError as error:
                what, expected = f"{what}; and fetching failed: {error.what}", error.expected
    raise CamlError(what, expected, remedy)


def recognise(dataset: Dataset, top: Path) -> Path | None:
    """The folder, `top` or one that the dataset goes by below it, that has what one of its layouts asks for."""

    def has(folder: Path, mark: str) -> bool:
        pattern, _, column = mark.partition("#")
        return any(not column or column in _header(file) for file in folder.glob(pattern))

    for folder in (top, *(top / name for name in dataset.folders)):
        if any(all(has(folder, mark) for mark in layout) for layout in dataset.layouts):
            return folder
    return None


def _header(file: Path) -> str:
    with open(file, encoding="utf-8", errors="replace") as stream:
        return stream.readline(1 << 16)


def fetch(name: str, data_dir: Where = None, *, progress: bool = True) -> Path:
    """Download, check and unpack a dataset into the cache; one process does it while others wait.

    Parquet from the Hub comes first (a copy in `data_dir` or `$CAML_DATA` is taken as it is), then the authors' files.

    Raises:
        CamlError: no source, or a fault of the source or the disk. What is whole of the downloads stays in
            `datasets/NAME.download` for the next attempt; the folder is not made.
    """
    dataset, base = CATALOGUE[name], store.cache_dir() / "datasets"
    folder, work = base / name, base / f"{name}.download"
    with store.writing(folder), FileLock(base / f".{name}.lock"):
        if not folder.exists():
            shutil.rmtree(stage := work / "stage", ignore_errors=True)
            stage.mkdir(parents=True)
            if not _unpack_parquet(name, stage, data_dir, progress):
                _fetch_files(name, stage, progress)
            stage.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    if found := recognise(dataset, folder):
        return found
    raise CamlError(f"{folder} is not {name}", dataset.expected, f"delete {folder} and fetch again")


def _unpack_parquet(name: str, stage: Path, data_dir: Where, progress: bool) -> bool:
    """Fill a folder from parquet files, the reader's or the Hub's; False, with a line on why, where that cannot be."""
    dataset, shards = CATALOGUE[name], _own_shards(name, data_dir)
    if not dataset.parquet:
        return False
    for file in shards:
        sources.check_sums(data_dir, file)
    try:
        shards = shards or sources.by_split(sources.from_hub(dataset.hub, "*.parquet"))
        sources.unpack(shards, stage, dataset.parquet, progress)
        return True
    except CamlError as error:
        print(f"{name}: not from the Hub ({error.what}); trying the authors' files")
        shutil.rmtree(stage)
        return False


def _own_shards(name: str, data_dir: Where) -> dict[Path, str]:
    """Parquet files in the reader's copy of the repository."""
    dataset, root = CATALOGUE[name], sources.data_root(data_dir)
    return sources.by_split((root / dataset.hub).rglob("*.parquet")) if root and dataset.parquet else {}


def _fetch_files(name: str, stage: Path, progress: bool) -> None:
    """Fill a folder from the authors' files."""
    stage.mkdir(exist_ok=True)
    for file in CATALOGUE[name].files:
        path = download(file, stage.parent, progress)
        if path.name.endswith((".zip", ".tar.gz")):
            extract(path, stage)
        else:
            shutil.copyfile(path, stage / file.name)
    if not recognise(CATALOGUE[name], stage):
        what = f"what was fetched is not {name}: " + ", ".join(sorted(p.name for p in stage.iterdir())[:5])
        shutil.rmtree(stage.parent)  # the next attempt asks the source again
        raise CamlError(what, CATALOGUE[name].expected, CATALOGUE[name].by_hand)


def go_data(action: str, name: str | None, data: Where) -> None:
    """The command `data`: list, with what is here and under which licence, or fetch."""
    if action == "list":
        for each, dataset in CATALOGUE.items():
            size = sum(file.size or 0 for file in dataset.files) / 1e6
            about = f"{size:,.0f} MB" if size else "size unpublished" if dataset.files else "by hand"
            print(f"{each:<14} {about:>17}  {_where(each, data)}; {dataset.licence}; {dataset.page}")
        for each, how in MADE.items():
            print(f"{each:<14} {'no download':>17}  {how}")
    elif name is None:
        raise CamlError("data fetch without a name", "one of " + ", ".join(CATALOGUE), "add the name")
    else:
        print(locate(name, data))


def _where(name: str, data_dir: Where) -> str:
    try:
        return str(locate(name, data_dir, download=False))
    except CamlError:
        here = f"{sources.data_root(data_dir)}/{CATALOGUE[name].hub}, unpacked when it is loaded"
        return here if _own_shards(name, data_dir) else "not here"
