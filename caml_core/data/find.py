"""What each dataset of the book is, where it comes from, under which licence (`catalogue.toml`), and its folder.

`locate(name)` looks in `data_dir` or `$CAML_DATA`, then in the cache, and at last fetches. Where nobody published a
checksum, that of the first fetch is kept in `datasets/first_fetch.sha256`, and a later fetch must give the same file.
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
    what, expected = what + " (CAML_DATA is not set)" * (root is None), _asked(dataset)
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
        return any(not column or column in _head(file) for file in folder.glob(pattern))

    for folder in (top, *(top / name for name in dataset.folders)):
        if any(all(has(folder, mark) for mark in layout) for layout in dataset.layouts):
            return folder
    return None


def fetch(name: str, data_dir: Where = None, *, progress: bool = True) -> Path:
    """Download, check and unpack a dataset into the cache; one process does it while others wait.

    Parquet from the Hub comes first (a copy in `data_dir` or `$CAML_DATA` is taken as it is), then the authors' files.

    Raises:
        CamlError: no source, a fault of the source or the disk, or other files than at the first fetch. What is
            whole of the downloads stays in `datasets/NAME.download` for the next attempt; the folder is not made.
    """
    dataset, base = CATALOGUE[name], store.cache_dir() / "datasets"
    folder, work = base / name, base / f"{name}.download"
    with store.writing(folder), FileLock(base / f".{name}.lock"):
        if not folder.exists():
            for fill in (_from_hub, _from_authors):
                shutil.rmtree(stage := work / "stage", ignore_errors=True)
                stage.mkdir(parents=True)
                if fill(name, stage, data_dir, progress):
                    break
            stage.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    if found := recognise(dataset, folder):
        return found
    raise CamlError(f"{folder} is not {name}", _asked(dataset), f"delete {folder} and fetch again")


def _from_hub(name: str, stage: Path, data_dir: Where, progress: bool) -> bool:
    """Fill a folder from the Hub's parquet files; False, with a line on why, where that cannot be."""
    dataset, root = CATALOGUE[name], sources.data_root(data_dir)
    if not dataset.parquet:
        return False
    for file in (files := sources.shards(root / dataset.hub) if root else []):
        sources.check_sums(root, file)
    try:
        sources.unpack(files or sources.parquet(dataset.hub), stage, dataset.parquet, progress)
    except CamlError as error:
        print(f"{name}: not from the Hub ({error.what}); trying the authors' files")
        return False
    return True


def _from_authors(name: str, stage: Path, _: Where, progress: bool) -> bool:
    """Fill a folder from the authors' files."""
    dataset, work = CATALOGUE[name], stage.parent
    known = store.read_sums(sums := work.with_name("first_fetch.sha256"))
    for file in dataset.files:
        path = download(file._replace(sha256=file.sha256 or known.get(f"{name}/{file.name}")), work, progress)
        if path.name.endswith((".zip", ".tar.gz")):
            extract(path, stage)
        else:
            shutil.copyfile(path, stage / file.name)
    if not recognise(dataset, stage):
        what = f"what was fetched is not {name}: " + ", ".join(sorted(p.name for p in stage.iterdir())[:5])
        shutil.rmtree(work)  # the next attempt asks the source again
        raise CamlError(what, _asked(dataset), dataset.by_hand)
    known |= {f"{name}/{file.name}": store.sha256(work / file.name) for file in dataset.files}
    store.write_text(sums, "".join(f"{digest}  {path}\n" for path, digest in known.items()))
    return True


def go_data(action: str, name: str | None, data: Where) -> None:
    """The command `data`: list, with what is here and under which licence, or fetch."""
    if action == "list":
        for each, dataset in CATALOGUE.items():
            print(f"{each:<14} {_size(dataset):>17}  {_where(each, data)}; {dataset.licence}; {dataset.page}")
        for each, how in MADE.items():
            print(f"{each:<14} {'no download':>17}  {how}")
    elif name is None:
        raise CamlError("data fetch without a name", "one of " + ", ".join(CATALOGUE), "add the name")
    else:
        print(locate(name, data))


def _size(dataset: Dataset) -> str:
    sizes = [file.size for file in dataset.files]
    total = f"{sum(filter(None, sizes)) / 1e6:,.0f} MB"
    return "by hand" if not sizes else "size unpublished" if None in sizes else total


def _where(name: str, data_dir: Where) -> str:
    try:
        return str(locate(name, data_dir, download=False))
    except CamlError:
        dataset, root = CATALOGUE[name], sources.data_root(data_dir)
        here = root and dataset.parquet and sources.shards(root / dataset.hub)
        return f"{root}/{dataset.hub}, unpacked when it is loaded" if here else "not here"


def _asked(dataset: Dataset) -> str:
    return "a folder with " + " or ".join(", ".join(layout) for layout in dataset.layouts)


def _head(file: Path) -> list[str]:
    if not file.is_file():
        return []
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        return [column.strip('" \n') for column in stream.readline(1 << 16).split(",")]
