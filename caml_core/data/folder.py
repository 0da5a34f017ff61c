"""Bring your own images: a csv with columns path, y, a, or a tree of folders, becomes three splits for every method.

The published image datasets are read into the same `Table`, checked and packed by the same `splits_of`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from caml_core.data.dataset import GroupDataset
from caml_core.data.packed import packed
from caml_core.errors import CamlError

SPLITS = ("train", "val", "test")
SPLIT_CODES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "0": 0, "1": 1, "2": 2}
SHARES = (0.6, 0.2, 0.2)  # of the splits that are drawn, in each group
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

Splits = tuple[GroupDataset, GroupDataset, GroupDataset]
Counts = Mapping[str, Sequence[int]]  # by split, in group order


class Table(NamedTuple):
    """One row for each image of a dataset."""

    files: list[Path]
    y: np.ndarray  # int64 (N,)
    a: np.ndarray  # int64 (N,)
    split: np.ndarray  # int64 (N,): 0 training, 1 validation, 2 test


def load(*, path: str | Path, seed: int = 0, size: int = 224, progress: bool = True) -> Splits:
    """Your own images, from a csv or from a tree of folders.

    A csv has the columns `path` (relative to its folder), `y` and `a`, and if you like `split` (train, val, test, or
    0, 1, 2). A tree is `split/y/a/*.jpg`, or `y/a/*.jpg`. Labels and attributes are words, or numbers from 0. Without
    splits, `seed` draws 60%, 20% and 20% of each group.

    A group is a majority when it has at least half as many training images as the largest group of its label.

    Args:
        path: the csv, or the folder at the top of the tree.
        size: side of the images in pixels, see `caml_core.data.packed`.

    Raises:
        CamlError: a column, value or image that is missing or unknown; labels that are not 0, 1, 2, ...; an empty
            folder; a group too small to split; a label without an image in one of the splits.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        columns, files = _walk(path)
    else:
        columns = read_csv(path, ("path", "y", "a"))
        files = [path.parent / name for name in columns["path"]]
    y, class_names = _named(columns["y"], "y", path)
    a, attribute_names = _named(columns["a"], "a", path)
    if "split" in columns:
        split = split_codes(columns["split"], path)
    else:
        names = [f"{class_names[i]}, {attribute_names[j]}" for i, j in zip(y, a)]
        split = _draw_splits(y * len(attribute_names) + a, names, seed)
    return splits_of(
        Table(files, y, a, split),
        path.stem,
        class_names=class_names,
        attribute_names=attribute_names,
        size=size,
        progress=progress,
    )


def splits_of(
    table: Table,
    title: str,
    *,
    class_names: Sequence[str],
    attribute_names: Sequence[str],
    majority: Sequence[Sequence[int]] | None = None,
    size: int,
    progress: bool,
) -> Splits:
    """Pack the images of a table and make the three splits, rows in the order of the table.

    Args:
        majority: (n_classes, n_attributes) of 0 and 1; default: see `majority_of`.

    Raises:
        CamlError: a label without an image in one of the splits, an image that cannot be read.
    """
    counts = group_counts(table, class_names, attribute_names)
    for name, of_class in zip(SPLITS, counts.sum(axis=2)):
        if missing := [label for label, n in zip(class_names, of_class) if n == 0]:
            raise CamlError(
                what=f"{title}: no {name} image of {', '.join(missing)}",
                expected="every label in every split",
                remedy="add images, leave that label out, or check how they are split",
            )
    pairs = majority_of(counts[0]) if majority is None else torch.tensor(majority, dtype=torch.bool)
    train, val, test = (
        GroupDataset(
            packed([table.files[i] for i in r], size, label=f"{title} ({name})", progress=progress),
            torch.from_numpy(table.y[r]),
            torch.from_numpy(table.a[r]),
            class_names=class_names,
            attribute_names=attribute_names,
            majority=pairs,
            source=title,
        )
        for name, r in ((name, np.flatnonzero(table.split == k)) for k, name in enumerate(SPLITS))
    )
    return train, val, test


def group_counts(table: Table, class_names: Sequence[str], attribute_names: Sequence[str]) -> np.ndarray:
    """Images of each group in each split: int64 (3, n_classes, n_attributes)."""
    counts = np.zeros((3, len(class_names), len(attribute_names)), dtype=np.int64)
    np.add.at(counts, (table.split, table.y, table.a), 1)
    return counts


def compare_counts(
    table: Table, title: str, published: Counts, class_names: Sequence[str], attribute_names: Sequence[str]
) -> None:
    """Hold the groups of a table against those that were published.

    Raises:
        CamlError: they differ; the message shows both, side by side.
    """
    counts = group_counts(table, class_names, attribute_names).reshape(3, -1)
    wanted = np.array([published[split] for split in SPLITS])
    if (counts == wanted).all():
        return
    names = [f"{y}, {a}" for y in class_names for a in attribute_names]
    lines = [
        "| group | " + " | ".join(f"{s}: found | {s}: published" for s in SPLITS) + " |",
        "|:--" + "|--:" * 6 + "|",
    ]
    for name, found, right in zip(names, counts.T.tolist(), wanted.T.tolist()):
        if any(found) or any(right):
            lines.append(f"| {name} | " + " | ".join(f"{f:,} | {r:,}" for f, r in zip(found, right)) + " |")
    raise CamlError(
        what=f"{title} has other group counts than published:\n" + "\n".join(lines),
        expected="the published counts",
        remedy="fetch it again; a part of it loads with check_counts=False",
    )


def majority_of(counts: np.ndarray) -> torch.Tensor:
    """The groups that are no minority: bool (n_classes, n_attributes).

    Those with at least half as many training images, int (n_classes, n_attributes), as the largest group of the label.
    """
    return torch.from_numpy((2 * counts >= counts.max(axis=1, keepdims=True)) & (counts > 0))


# ---- reading -----------------------------------------------------------------------------------------------


def read_csv(file: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a csv with a header, as text.

    Raises:
        CamlError: no such file, no rows, a row of another length than the header, one of `needed` missing.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            header, *rows = [row for row in csv.reader(stream) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CamlError(
            what=f"cannot read {file}: {error}",
            expected=f"a csv with columns {', '.join(needed)}",
            remedy="check the path",
        ) from error
    missing = [name for name in needed if name not in header]
    ragged = [i for i, row in enumerate(rows, 2) if len(row) != len(header)]
    if missing or ragged or not rows:
        found = f"has no column {', '.join(missing)}" if missing else "has no rows"
        raise CamlError(
            what=f"{file} {found}" if missing or not ragged else f"{file}: row {ragged[0]} does not fit the header",
            expected=f"columns {', '.join(needed)} (found {', '.join(header) or 'nothing'}) and a value in each",
            remedy="correct the file, or fetch it again",
        )
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def codes(column: Sequence[str], known: Mapping[str, int], name: str, file: Path) -> np.ndarray:
    """Numbers that stand for the values of a column: int64 (N,).

    Raises:
        CamlError: a value that is not known, with its row.
    """
    for i, value in enumerate(column, 2):
        if value not in known:
            raise CamlError(
                what=f"{file}, row {i}: {name} is {value!r}",
                expected="one of " + ", ".join(known),
                remedy="correct the file, or fetch it again",
            )
    return np.array([known[value] for value in column], dtype=np.int64)


def split_codes(column: Sequence[str], file: Path) -> np.ndarray:
    """Splits given as words or as 0, 1, 2: int64 (N,)."""
    return codes([value.lower() for value in column], SPLIT_CODES, "split", file)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name.

    Raises:
        CamlError: there is no such folder, or no image in it.
    """
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGES)
    if not found:
        raise CamlError(
            what=f"no images in {folder}" if folder.is_dir() else f"no folder {folder}",
            expected=f"a folder of {', '.join(IMAGES)} files",
            remedy="check that everything was extracted, or remove the empty folder",
        )
    return found


def _walk(top: Path) -> tuple[dict[str, list[str]], list[Path]]:
    """Columns y, a (and split) of a tree of folders, and its images."""
    names = ("split", "y", "a") if (top / "train").is_dir() else ("y", "a")
    columns: dict[str, list[str]] = {name: [] for name in names}
    files: list[Path] = []
    for folder in sorted(top.glob("/".join("*" for _ in names))):
        if folder.is_dir():
            found = image_files(folder)
            files += found
            for name, value in zip(names, folder.relative_to(top).parts):
                columns[name] += [value] * len(found)
    if not files:
        raise CamlError(
            what=f"no images in {top}",
            expected="folders split/y/a or y/a with images in them",
            remedy="arrange the images, or write a csv with columns path, y, a",
        )
    return columns, files


def _named(column: Sequence[str], name: str, file: Path) -> tuple[np.ndarray, list[str]]:
    """Values numbered from 0, and their names: numbers as they are, words in alphabetical order."""
    values = set(column)
    numbers = sorted(values, key=lambda v: int(v) if v.lstrip("-").isdecimal() else 0)
    if all(v.lstrip("-").isdecimal() for v in values):
        if numbers != [str(k) for k in range(len(values))]:
            raise CamlError(
                what=f"{file}: {name} takes the values {', '.join(numbers)}",
                expected="0, 1, 2, ... without a gap, or words",
                remedy=f"number the values of {name} from 0",
            )
        names = numbers
    else:
        names = sorted(values)
    if len(names) < 2 or "" in values:
        raise CamlError(
            what=f"{file}: {name} " + ("is empty in some rows" if "" in values else f"is always {names[0]}"),
            expected="two values or more, one in each row",
            remedy=f"give each image its {name}",
        )
    return codes(column, {v: k for k, v in enumerate(names)}, name, file), names


def _draw_splits(group: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """Splits drawn within each group, at least one image in each: int64 (N,)."""
    rng = np.random.default_rng([seed, 0xF01D])
    split = np.zeros(len(group), dtype=np.int64)
    for g in np.unique(group):
        rows = rng.permutation(np.flatnonzero(group == g))
        if len(rows) < 3:
            raise CamlError(
                what=f"group {names[rows[0]]!r} has {len(rows)} images to share among three splits",
                expected="at least 3 images in each group",
                remedy="add images, or give the splits yourself in a column `split`",
            )
        n_val, n_test = (max(1, round(share * len(rows))) for share in SHARES[1:])
        split[rows[:n_val]], split[rows[n_val : n_val + n_test]] = 1, 2
    return split
