"""What each dataset of the book is, where it comes from, under which licence, and the folder that holds it.

`locate(name)` looks in `data_dir` or `$CAML_DATA`, then in the cache, and at last fetches. Sources, checksums and
sizes are those that were published; None means that nobody did. What a first fetch unpacked is remembered in
`datasets/NAME.sha256` beside the data: a later fetch must give the same files, and `verify` compares them again.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from caml_core import store
from caml_core.data import hub, sources
from caml_core.data.fetch import File, disk_errors, download, extract
from caml_core.errors import CamlError

PACKED = (".zip", ".tar", ".tar.gz", ".tar.xz")
GROWTH = 4  # an archive may unpack to so many times its size (all hold images, which hardly shrink),
MOST_FILES = 500_000  # and to so many files and folders


class Dataset(NamedTuple):
    """One dataset that lives on disk."""

    title: str
    folders: tuple[str, ...]  # names that its folder goes by, below data_dir
    layouts: tuple[tuple[str, ...], ...]  # a folder is this dataset if it has all of one: paths, or CSV#COLUMN
    files: tuple[File, ...]  # from the authors; none where no address serves it to a program. Archives are unpacked
    by_hand: str  # how to get it otherwise
    licence: str
    citation: str
    page: str
    hub: str | None = None  # repository on the Hugging Face Hub with the same examples
    parquet: hub.Columns | None = None  # of its parquet files, which are then preferred to the authors' archive


CELEBA = "https://graal.ift.ulaval.ca/public/celeba/"
CATALOGUE = {
    "waterbirds": Dataset(
        title="Waterbirds: land and water birds (CUB-200-2011) on land and water (Places)",
        folders=(
            "waterbird_complete95_forest2water2",
            "waterbirds_v1.0",
            "waterbirds",
            "waterbirds/waterbird_complete95_forest2water2",
            "cub/data/waterbird_complete95_forest2water2",
        ),
        layouts=(("metadata.csv#place_filename",), ("metadata.csv#place", "train", "val", "test")),
        files=(
            File(
                "waterbird_complete95_forest2water2.tar.gz",
                (
                    "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
                    "https://downloads.cs.stanford.edu/nlp/data/dro/waterbird_complete95_forest2water2.tar.gz",
                ),
            ),
        ),
        by_hand="follow the link in the README of github.com/kohpangwei/group_DRO and unpack the archive",
        licence="non-commercial research and education (WILDS); made from CUB-200-2011 and Places",
        citation="Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020",
        page="https://github.com/kohpangwei/group_DRO",
        hub="grodino/waterbirds",
        parquet=hub.Columns("label", "place"),
    ),
    "celeba": Dataset(
        title="CelebA: 202,599 aligned faces with 40 attributes",
        folders=("celeba", "celebA", "CelebA", "celebA_v1.0", "celebA/data", "celeba/data", "celeba-dataset"),
        layouts=(
            ("list_attr_celeba.*", "img_align_celeba"),
            ("Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"),
            ("celeba_metadata.csv#place", "img_align_celeba"),
            ("metadata.csv#place", "img_align_celeba"),
        ),
        files=(
            File(
                "img_align_celeba.zip",
                (
                    CELEBA + "img_align_celeba.zip",
                    "https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
                ),
                "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
                1_443_490_838,
            ),
            File(
                "list_attr_celeba.txt",
                (CELEBA + "list_attr_celeba.txt",),
                "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0",
                26_721_026,
            ),
            File(
                "list_eval_partition.txt",
                (CELEBA + "list_eval_partition.txt",),
                "fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7",
                2_836_386,
            ),
        ),
        by_hand="from the authors' Google Drive (see the page; its daily quota is often used up) or from "
        "kaggle.com/datasets/jessicali9530/celeba-dataset take img_align_celeba.zip (unpack it), list_attr_celeba "
        "and list_eval_partition (txt or csv)",
        licence="non-commercial research only; the images show people who were not asked",
        citation="Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015",
        page="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        hub="flwrlabs/celeba",
        parquet=hub.Columns("Blond_Hair", "Male", folder="img_align_celeba"),
    ),
    "metashift": Dataset(
        title="MetaShift, cats and dogs: cats on sofas and beds, dogs with benches and bikes; tested on shelves",
        folders=(
            "metashift",
            "MetaShift",
            "MetaDatasetCatDog",
            "metashift/MetaDatasetCatDog",
            "metashifts/MetaDatasetCatDog",
        ),
        layouts=(("train/cat/cat(*", "train/dog/dog(*", "test/cat/cat(*", "test/dog/dog(*"),),
        files=(),
        by_hand="it is on Google Drive, which serves it to a browser only: open "
        "https://drive.google.com/uc?id=1WySOxBRkxAUlSokgZrC-0JaWZwcG5UMT and unpack metashifts.zip",
        licence="CC BY 4.0; the images are those of Visual Genome",
        citation="Liang and Zou, MetaShift, ICLR 2022; these subsets: Wu et al., Discover and Cure, ICML 2023",
        page="https://github.com/Wuyxin/DISC",
    ),
    "spuco_animals": Dataset(
        title="SpuCoAnimals: land and water birds, small and big dogs (ImageNet) before their usual backgrounds",
        folders=("spuco_animals", "SpuCoAnimals", "spuco"),
        layouts=(("spuco_birds/train", "spuco_dogs/train"),),
        files=(
            File("spuco_birds.tar.gz", ("https://ucla.box.com/shared/static/zrsx09ik7lqad1e389w06f1c4nbajo9z",)),
            File("spuco_dogs.tar.gz", ("https://ucla.box.com/shared/static/u3dkllvq7a2py4x443pqul295wwd549e",)),
        ),
        by_hand="open both addresses in a browser (about 3.0 GB and 2.7 GB) and unpack both archives side by side",
        licence="not published; the images are ImageNet's (non-commercial research and education)",
        citation="Joshi et al., Towards Mitigating Spurious Correlations in the Wild, arXiv 2306.11957",
        page="https://github.com/BigML-CS-UCLA/SpuCo",
    ),
    "civilcomments": Dataset(
        title="CivilComments as split by WILDS: 448,000 comments, toxic or not, and the identities they mention",
        folders=(
            "civilcomments_v1.0",
            "civilcomments",
            "CivilComments",
            "jigsaw/data",
            "shlomihod/civil-comments-wilds",
        ),
        layouts=(("all_data_with_identities.csv",),),
        files=(
            File(
                "all_data_with_identities.csv",
                (
                    "https://huggingface.co/datasets/shlomihod/civil-comments-wilds/resolve/"
                    "3fbfeca80bad0f3aec37e72fa07eff222b6e752f/all_data_with_identities.csv",
                ),
                "403e638c83a225d738a937ff98b61fd0631e30f710d57928c7766d413526b77f",
                272_542_670,
            ),
        ),
        by_hand="the WILDS package ships the same file (from CodaLab, which is often out of reach)",
        licence="CC0 1.0; the comments are offensive, and written by people who did not expect to be studied",
        citation="Borkan et al., Nuanced Metrics for Measuring Unintended Bias, WWW 2019; Koh et al., WILDS, ICML 2021",
        page="https://wilds.stanford.edu/datasets/#civilcomments",
        hub="shlomihod/civil-comments-wilds",
    ),
    "madlibs": Dataset(
        title="Bias madlibs: 76,564 sentences from templates that name identities, kind or nasty",
        folders=("conversationai/unintended-ml-bias-analysis", "madlibs"),
        layouts=(("bias_madlibs_77k.csv",),),
        files=(
            File(
                "bias_madlibs_77k.csv",
                (
                    "https://raw.githubusercontent.com/conversationai/unintended-ml-bias-analysis/"
                    "ff0f436f0c3bf336702f80644b935b9bcc296cb4/unintended_ml_bias/eval_datasets/bias_madlibs_77k.csv",
                ),
                "aac542254cf158415ec74623d54fa76176f26a7e7d8ef20788e1748a05ba5b4c",
                3_355_157,
            ),
        ),
        by_hand="download unintended_ml_bias/eval_datasets/bias_madlibs_77k.csv from an early commit of the repository",
        licence="Apache-2.0",
        citation="Dixon et al., Measuring and Mitigating Unintended Bias in Text Classification, AIES 2018",
        page="https://github.com/conversationai/unintended-ml-bias-analysis",
    ),
}
MADE = {  # nothing to fetch here
    "birdscapes": "drawn by the program",
    "dominoes": "made from mnist and cifar10 (caml_core/data/sources.py)",
    "spuco_mnist": "made from mnist (caml_core/data/sources.py), or drawn with digits=drawn",
}


def locate(name: str, data_dir: str | Path | None = None, download: bool = True) -> Path:
    """The folder that holds a dataset in its official layout.

    Looked for in `data_dir` (else `$CAML_DATA`): in the folder itself, then under each name that the dataset goes by;
    then in the cache. Fetched into the cache when it is in neither and `download` is true.

    Raises:
        CamlError: unknown name, or not found and not fetched; it says every place that was tried.
    """
    dataset = _dataset(name)
    tried = list(_places(name, data_dir))
    for folder in tried:
        if recognised(dataset, folder):
            return folder
    missing = f"{name} was not found; tried " + ", ".join(map(str, tried))
    if root := _root(data_dir):
        remedy = f"put it into {root}: {dataset.by_hand}"
    else:
        missing += " (CAML_DATA is not set)"
        remedy = f"set CAML_DATA to a folder and put it there: {dataset.by_hand}"
    if dataset.files:
        remedy = f"python -m caml_core data fetch {name}; or " + remedy
    if download and dataset.files:
        try:
            return fetch(name, data_dir)
        except CamlError as error:
            raise CamlError(f"{missing}; and fetching failed: {error.what}", error.expected, remedy) from error
    raise CamlError(missing, _asked(dataset), remedy)


def recognised(dataset: Dataset, folder: Path) -> bool:
    """Whether a folder has what one of the dataset's layouts asks for."""

    def has(mark: str) -> bool:
        pattern, _, column = mark.partition("#")
        return any(not column or column in _head(file) for file in folder.glob(pattern))

    return folder.is_dir() and any(all(map(has, layout)) for layout in dataset.layouts)


def fetch(name: str, data_dir: str | Path | None = None, *, backoff: float = 1.0, progress: bool = True) -> Path:
    """Download, check and unpack a dataset into the cache; one process does it while others wait.

    Parquet from the Hub comes first (a copy in `data_dir` or `$CAML_DATA` is taken as it is), then the authors' files.

    Raises:
        CamlError: no source, a fault of the source or the disk, or other files than at the first fetch. What is
            whole of the downloads stays in `datasets/NAME.download` for the next attempt; the folder is not made.
    """
    dataset = _dataset(name)
    if not dataset.files:
        raise CamlError(f"{name} cannot be fetched by a program", "a copy on this machine", dataset.by_hand)
    base = store.cache_dir() / "datasets"
    folder, work = base / name, base / f"{name}.download"
    with disk_errors(folder), _alone(base / f".{name}.lock"):
        if (found := _inside(dataset, folder)) is not None:
            return found
        if folder.exists():
            raise CamlError(f"{folder} is not {name}", "the dataset, or nothing", f"delete {folder} and fetch again")
        work.mkdir(exist_ok=True)
        for left in work.iterdir():  # folders of an earlier run that was killed
            if left.is_dir():
                shutil.rmtree(left)
        stage = work / "stage"
        if _unpack_parquet(name, work, stage, data_dir, backoff, progress):
            (base / f"{name}.sha256").unlink(missing_ok=True)  # nothing is taken on trust: the Hub publishes checksums
        else:
            _unpack_archives(dataset, work, stage, backoff, progress)
            try:
                if _inside(dataset, stage) is None:
                    came = ", ".join(sorted(p.name for p in stage.iterdir())[:5])
                    raise CamlError(f"what was fetched is not {name}: {came}", _asked(dataset), dataset.by_hand)
                _trust_first(base / f"{name}.sha256", stage)
            except CamlError:  # the next attempt asks the source again
                shutil.rmtree(work)
                raise
        stage.rename(folder)
        shutil.rmtree(work)
    return _inside(dataset, folder) or folder


def _unpack_parquet(
    name: str, work: Path, stage: Path, data_dir: str | Path | None, backoff: float, progress: bool
) -> bool:
    """Fill `stage` from the Hub's parquet files; False, with a line on why, where that cannot be."""
    dataset = CATALOGUE[name]
    if dataset.parquet is None or dataset.hub is None:
        return False
    files: list[Path] = []
    if root := _root(data_dir):
        files = hub.on_disk(root / dataset.hub)
        for file in files:
            sources.check_sums(root, file)
    try:
        if not files:
            shards = hub.listed(dataset.hub)
            size = sum(shard.size or 0 for shard in shards)
            print(f"{name}: {len(shards)} parquet files, {size / 1e6:,.0f} MB, from {dataset.hub} on the Hub")
            files = [_download(shard, work, backoff, progress) for shard in shards]
        stage.mkdir()
        hub.unpack(files, stage, dataset.parquet, progress=progress)
    except CamlError as error:
        print(f"{name}: not from the Hub ({error.what}); trying the authors' files")
        shutil.rmtree(stage, ignore_errors=True)
        return False
    _write_sums(stage / "SHA256SUMS", _sums(stage))
    return True


def _unpack_archives(dataset: Dataset, work: Path, stage: Path, backoff: float, progress: bool) -> None:
    """Fill `stage` from the authors' files."""
    whole = [_download(file, work, backoff, progress) for file in dataset.files]
    stage.mkdir()
    for file, path in zip(dataset.files, whole):
        if file.name.endswith(PACKED):
            unpacked = _unpack(path, work / "unpacked")
            for child in unpacked.iterdir():
                child.rename(_free(stage / child.name))
            unpacked.rmdir()
        else:
            shutil.copyfile(path, _free(stage / file.name))


def verify(name: str, data_dir: str | Path | None = None) -> str:
    """Compare a dataset on disk with all checksums that are known of it; one line on what was compared.

    Raises:
        CamlError: not here, or a file differs or is missing.
    """
    folder = locate(name, data_dir, download=False)
    cached = store.cache_dir() / "datasets" / name
    sums = [(folder, folder / "SHA256SUMS"), (cached, cached.with_name(f"{name}.sha256"))]
    if root := _root(data_dir):
        sums.append((root, root / "SHA256SUMS"))
    known = {above / path: digest for above, file in sums for path, digest in store.read_sums(file).items()}
    published = [(folder / file.name, file.sha256) for file in _dataset(name).files if not file.name.endswith(PACKED)]
    known |= {path: digest for path, digest in published if digest and path.exists()}
    known = {path: digest for path, digest in known.items() if path.is_relative_to(folder)}
    wrong = [path for path, digest in known.items() if not path.is_file() or store.sha256(path) != digest]
    if wrong:
        raise CamlError(
            what=f"{len(wrong)} of {len(known)} files of {name} differ or are missing, such as {wrong[0]}",
            expected="the checksums that were published or seen at the first fetch",
            remedy=f"delete {folder} and fetch it again",
        )
    return f"{name} in {folder}: " + (
        f"all {len(known)} known checksums are right" if known else "no checksum is known"
    )


def go_data(arguments: argparse.Namespace) -> None:
    """Print what was asked for."""
    name, root = arguments.name, arguments.data
    if arguments.action == "list":
        for each, dataset in CATALOGUE.items():
            print(f"{each:<14} {_size(dataset):>17}  {_where(each, root)}")
        for each, how in MADE.items():
            print(f"{each:<14} {'no download':>17}  {how}")
    elif name is None:
        raise CamlError(f"data {arguments.action} without a name", "one of " + ", ".join(CATALOGUE), "add the name")
    elif arguments.action == "info":
        print(describe(name, root))
    elif arguments.action == "fetch":
        print(locate(name, root))
    else:
        print(verify(name, root))


def describe(name: str, data_dir: str | Path | None = None) -> str:
    """Everything that the catalogue and this machine know of a dataset, a line each."""
    if name in MADE:
        return f"{name}: {MADE[name]}"
    dataset = _dataset(name)
    lines = {"title": dataset.title, "here": _where(name, data_dir), "licence": dataset.licence}
    lines |= {
        "citation": dataset.citation,
        "page": dataset.page,
        "hub": dataset.hub or "none",
        "download": _size(dataset),
    }
    for file in dataset.files:
        lines[f"  {file.name}"] = " or ".join(file.urls)
        lines[f"  {file.name}, SHA-256"] = file.sha256 or "not published; that of the first fetch is kept"
    lines["by hand"] = dataset.by_hand
    return "\n".join(f"{key}: {value}" for key, value in lines.items())


def _asked(dataset: Dataset) -> str:
    return "a folder with " + " or ".join(", ".join(layout) for layout in dataset.layouts)


def _dataset(name: str) -> Dataset:
    if name in MADE:
        raise CamlError(f"{name} is in no folder: it is {MADE[name]}", "one of " + ", ".join(CATALOGUE), "load it")
    if name not in CATALOGUE:
        raise CamlError(f"unknown dataset {name!r}", "one of " + ", ".join(CATALOGUE), "check the spelling")
    return CATALOGUE[name]


def _root(data_dir: str | Path | None) -> Path | None:
    """The reader's own data folder, where one is named."""
    named = data_dir or os.environ.get("CAML_DATA")
    return Path(named).expanduser() if named else None


def _places(name: str, data_dir: str | Path | None) -> Iterator[Path]:
    roots = [store.cache_dir() / "datasets" / name]
    if root := _root(data_dir):
        roots.insert(0, root)
    for place in roots:
        yield place
        yield from (place / folder for folder in CATALOGUE[name].folders)


def _inside(dataset: Dataset, root: Path) -> Path | None:
    candidates = (root, *(root / folder for folder in dataset.folders))
    return next((folder for folder in candidates if recognised(dataset, folder)), None)


def _head(file: Path) -> list[str]:
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", errors="replace") as stream:
        return [column.strip('" \n') for column in stream.readline(1 << 16).split(",")]


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the lock on a file; a kill lets it go."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(file: File, folder: Path, backoff: float, progress: bool) -> Path:
    """The file from the first of its addresses that serves it."""
    faults = []
    for url in file.urls:
        try:
            return download(
                url, folder / file.name, sha256=file.sha256, size=file.size, backoff=backoff, progress=progress
            )
        except CamlError as error:
            faults.append(error)
    raise CamlError("; ".join(fault.what for fault in faults), faults[-1].expected, faults[-1].remedy)


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive; one that turns out to be damaged is deleted, so that the next attempt fetches it anew."""
    most = GROWTH * archive.stat().st_size + 2**20
    try:
        return extract(archive, folder, max_bytes=most, max_files=MOST_FILES)
    except CamlError as error:
        if error.__cause__ is not None and getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            archive.unlink()
        raise


def _free(path: Path) -> Path:
    if path.exists():
        raise CamlError(f"two sources hold {path.name}", "different files", "do not trust these sources")
    return path


def _trust_first(sums: Path, folder: Path) -> None:
    """Write the checksums of all files at the first fetch; compare them at a later one."""
    found = _sums(folder)
    if not sums.exists():
        _write_sums(sums, found)
        return
    first = store.read_sums(sums)
    if first != found:
        other = sorted(path for path in {*first, *found} if first.get(path) != found.get(path))
        raise CamlError(
            what=f"{len(other)} files are not those of the first fetch, such as {other[0]}",
            expected=f"the checksums in {sums}",
            remedy=f"fetch again later; if you know why the source has changed, delete {sums} to trust it as it is now",
        )


def _sums(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): store.sha256(path) for path in paths}


def _write_sums(file: Path, sums: dict[str, str]) -> None:
    store.write_text(file, "".join(f"{digest}  {path}\n" for path, digest in sums.items()))


def _size(dataset: Dataset) -> str:
    sizes = [file.size for file in dataset.files]
    if not sizes:
        return "by hand"
    return "size unpublished" if None in sizes else f"{sum(filter(None, sizes)) / 1e6:,.0f} MB"


def _where(name: str, data_dir: str | Path | None) -> str:
    try:
        return str(locate(name, data_dir, download=False))
    except CamlError:
        root, dataset = _root(data_dir), CATALOGUE[name]
        if root and dataset.hub and dataset.parquet and hub.on_disk(root / dataset.hub):
            return f"{root / dataset.hub}, unpacked when it is loaded"
        return "not here"
