"""CelebA: is the hair blond (y), and is the person labelled male (a)?

Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015; the task and its groups are those of Sagawa et al.,
arXiv 1911.08731. In training a seventh of the people is blond, and of these one in seventeen is male: blond men are
the one minority. Women and men who are not blond are both frequent, so both count as majority.
"""

from __future__ import annotations

from pathlib import Path

from caml_core.data.find import locate
from caml_core.data.folder import Table, compare_counts, splits_of
from caml_core.data.listing import LINE, Columns, codes, read_csv, split_codes
from caml_core.data.sources import Where
from caml_core.errors import CamlError
from caml_core.groups import Splits

CLASSES, ATTRIBUTES = ("not blond", "blond"), ("female", "male")
PUBLISHED = {"train": (71629, 66874, 22880, 1387), "val": (8535, 8276, 2874, 182), "test": (9767, 7535, 2480, 180)}
BINARY = {"-1": 0, "0": 0, "1": 1}
AUTHORS = (("Anno", "list_attr_celeba.txt"), ("Eval", "list_eval_partition.txt"))
DFR = {"image_id": "img_filename", "Blond_Hair": "y", "Male": "place"}
IMAGE_FOLDERS = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba")


def load(
    *, data_dir: Where = None, seed: int = 0, size: int = 224, check_counts: bool = True, progress: bool = True
) -> Splits:
    """The official splits: x uint8 (N, 3, size, size), y blond hair, a male.

    Four layouts of the labels are read: the authors' `list_attr_celeba.txt` and `list_eval_partition.txt` (also in
    their folders `Anno` and `Eval`), the same two as csv (Kaggle, WILDS), a `list_attr_celeba.csv` with a column
    `partition`, and DFR's `celeba_metadata.csv` (or `metadata.csv`) with `img_filename, y, split, place`, which
    `caml_core.data.sources` writes, too. Images lie in `img_align_celeba`, which Kaggle nests once more.

    Args:
        data_dir: see `caml_core.data.find.locate`.
        seed: changes nothing; the splits are given.
        size: at 224 pixels the packed images take 30 GB.
        check_counts: compare the group counts with the published ones; False for a part of the dataset.

    Raises:
        CamlError: not found, other counts than published, labels or an image that cannot be used.
    """
    folder = locate("celeba", data_dir)
    columns, file = _labels(folder)
    names = columns["image_id"]
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name / names[0]).is_file()]
    if not images:
        expected = "the images in " + " or ".join(IMAGE_FOLDERS)
        raise CamlError(f"no image {names[0]} in {folder}", expected, "extract img_align_celeba.zip there")
    y, a = (codes(columns, name, BINARY, file) for name in ("Blond_Hair", "Male"))
    table = Table([images[0] / name for name in names], y, a, split_codes(columns, file))
    if check_counts:
        compare_counts(table, "CelebA", PUBLISHED, CLASSES, ATTRIBUTES)
    return splits_of(table, "CelebA", CLASSES, ATTRIBUTES, ((1, 1), (1, 0)), size=size, progress=progress)


def _labels(folder: Path) -> tuple[Columns, Path]:
    """Columns image_id, Blond_Hair, Male and split, and the file they are from."""
    for name in ("celeba_metadata.csv", "metadata.csv"):
        if (file := folder / name).exists():
            columns = read_csv(file, ("img_filename", "y", "split", "place"))
            return columns | {new: columns[old] for new, old in DFR.items()}, file
    if (file := folder / "list_attr_celeba.csv").exists():
        columns = listed = read_csv(file, ("image_id", "Blond_Hair", "Male"))
        if "partition" not in columns:
            listed = read_csv(folder / "list_eval_partition.csv", ("image_id", "partition"))
        partition = dict(zip(listed["image_id"], listed["partition"]))
    else:
        (file, rows), (_, splits) = (_words(folder, *name) for name in AUTHORS)
        (count, *_), header, *rows = rows
        if count != str(len(rows)):
            raise CamlError(f"{file} has {len(rows)} rows", f"{count}, as its first line says", "fetch it again")
        columns = dict(zip(("image_id", *header), map(list, zip(*rows))))
        columns[LINE] = [str(i) for i in range(3, len(rows) + 3)]
        partition = {row[0]: row[1] for row in splits}
    return columns | {"split": [partition.get(name, "missing") for name in columns["image_id"]]}, file


def _words(folder: Path, part: str, name: str) -> tuple[Path, list[list[str]]]:
    """One of the authors' text files, in the folder or its part, and the words of each line."""
    file = folder / part / name if (folder / part / name).exists() else folder / name
    try:
        return file, [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        expected = "list_attr_celeba and list_eval_partition, both as .txt or both as .csv"
        raise CamlError(f"cannot read {file}: {error}", expected, "put the missing one beside the other") from error
