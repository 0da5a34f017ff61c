"""CelebA: is the hair blond (y), and is the person labelled male (a)?

Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015; the task and its groups are those of Sagawa et al.,
arXiv 1911.08731. In training a seventh of the people is blond, and of these one in seventeen is male: blond men are
the one minority. Women and men who are not blond are both frequent, so both count as majority.
"""

from __future__ import annotations

from pathlib import Path

from caml_core.data.catalogue import locate
from caml_core.data.folder import Splits, Table, codes, compare_counts, read_csv, split_codes, splits_of
from caml_core.errors import CamlError

CLASSES, ATTRIBUTES = ("not blond", "blond"), ("female", "male")
PUBLISHED = {
    "train": (71629, 66874, 22880, 1387),
    "val": (8535, 8276, 2874, 182),
    "test": (9767, 7535, 2480, 180),
}
BINARY = {"-1": 0, "0": 0, "1": 1}
IMAGE_FOLDERS = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba")


def load(
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    size: int = 224,
    check_counts: bool = True,
    progress: bool = True,
) -> Splits:
    """The official splits: x uint8 (N, 3, size, size), y blond hair, a male.

    Four layouts of the labels are read: the authors' `list_attr_celeba.txt` and `list_eval_partition.txt` (also in
    their folders `Anno` and `Eval`), the same two as csv (Kaggle, WILDS), a `list_attr_celeba.csv` with a column
    `partition`, and DFR's `celeba_metadata.csv` (or `metadata.csv`) with `img_filename, y, split, place`, which
    `caml_core.data.hub` writes, too. Images lie in `img_align_celeba`, which Kaggle nests once more.

    Args:
        data_dir: see `caml_core.data.catalogue.locate`.
        seed: changes nothing; the splits are given.
        size: at 224 pixels the packed images take 30 GB.
        check_counts: compare the group counts with the published ones; False for a part of the dataset.

    Raises:
        CamlError: not found, other counts than published, labels or an image that cannot be used.
    """
    folder = locate("celeba", data_dir)
    names, y, a, split, file = _labels(folder)
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name / names[0]).is_file()]
    if not images:
        raise CamlError(
            what=f"no image {names[0]} in {folder}",
            expected="the images in " + " or ".join(IMAGE_FOLDERS),
            remedy="extract img_align_celeba.zip there",
        )
    table = Table(
        [images[0] / name for name in names],
        codes(y, BINARY, "Blond_Hair", file),
        codes(a, BINARY, "Male", file),
        split_codes(split, file),
    )
    if check_counts:
        compare_counts(table, "CelebA", PUBLISHED, CLASSES, ATTRIBUTES)
    return splits_of(
        table,
        "CelebA",
        class_names=CLASSES,
        attribute_names=ATTRIBUTES,
        majority=((1, 1), (1, 0)),
        size=size,
        progress=progress,
    )


def _labels(folder: Path) -> tuple[list[str], list[str], list[str], list[str], Path]:
    """Columns image, blond, male and split as text, and the file they are from."""
    for name in ("celeba_metadata.csv", "metadata.csv"):
        if (file := folder / name).exists():
            columns = read_csv(file, ("img_filename", "y", "split", "place"))
            return columns["img_filename"], columns["y"], columns["place"], columns["split"], file
    if (file := folder / "list_attr_celeba.csv").exists():
        columns = read_csv(file, ("image_id", "Blond_Hair", "Male"))
        if "partition" in columns:
            partition = dict(zip(columns["image_id"], columns["partition"]))
        else:
            listed = read_csv(folder / "list_eval_partition.csv", ("image_id", "partition"))
            partition = dict(zip(listed["image_id"], listed["partition"]))
    else:
        file = _find(folder, "list_attr_celeba.txt", "Anno")
        (count, *_), header, *rows = _words(file)
        columns = dict(zip(("image_id", *header), map(list, zip(*rows))))
        if count != str(len(rows)) or not {"Blond_Hair", "Male"} <= columns.keys():
            raise CamlError(
                what=f"{file} has {len(rows)} rows and columns {', '.join(header[:5])}, ...",
                expected=f"{count} rows as its first line says, with columns Blond_Hair and Male",
                remedy="fetch the file again",
            )
        partition = {row[0]: row[1] for row in _words(_find(folder, "list_eval_partition.txt", "Eval"))}
    names = columns["image_id"]
    return names, columns["Blond_Hair"], columns["Male"], [partition.get(name, "missing") for name in names], file


def _find(folder: Path, name: str, part: str) -> Path:
    return next((file for file in (folder / name, folder / part / name) if file.exists()), folder / name)


def _words(file: Path) -> list[list[str]]:
    """Words of each line of one of the authors' text files."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CamlError(
            what=f"cannot read {file}: {error}",
            expected="list_attr_celeba and list_eval_partition, both as .txt or both as .csv",
            remedy="put the missing one beside the other",
        ) from error
    lines = [words for words in lines if words]
    if len(lines) < 3 or len({len(words) for words in lines[2:]}) != 1:
        raise CamlError(
            what=f"{file} has lines of different lengths, or too few",
            expected="the authors' file, one image a line",
            remedy="fetch the file again",
        )
    return lines
