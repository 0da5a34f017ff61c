"""Bring your own images: a csv with columns path, y, a, or a tree of folders, becomes three splits for every method.

The published image datasets are read into the same `Table`, checked and packed by the same `splits_of`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from caml_core.data.images import digests_of, packed
from caml_core.data.listing import Columns, find_files, image_files, read_csv, same, split_codes, walk
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, Splits

SPLITS = ("train", "val", "test")
BLANK = dict.fromkeys(map(ord, " _-\t\u00a0\u200b"))  # removed before two names are compared
SHARES = (0.6, 0.2, 0.2)  # of the splits that are drawn, in each group


class Table(NamedTuple):
    """One row for each image of a dataset."""

    files: list[Path]
    y: np.ndarray  # int64 (N,)
    a: np.ndarray  # int64 (N,)
    split: np.ndarray  # int64 (N,): 0 training, 1 validation, 2 test


def table_of(folders: Iterable[tuple[Path, int, int, int]]) -> Table:
    """The images of folders, each with its y, a and split."""
    files: list[Path] = []
    rows: list[tuple[int, ...]] = []
    for folder, *codes in folders:
        files += (found := image_files(folder))
        rows += [tuple(codes)] * len(found)
    return Table(files, *np.array(rows).T)


def load(*, path: str | Path, seed: int = 0, size: int = 224, progress: bool = True, known: bool = True) -> Splits:
    """Your own images, from a csv or from a tree of folders.

    A csv has the columns `path` (relative to its folder), `y` and `a`, and if you like `split` (train, val, test, or
    0, 1, 2). A tree is `split/y/a/*.jpg`, or `y/a/*.jpg` (see `caml_core.data.listing`). Labels and attributes are
    words, or numbers from 0. Without splits, `seed` draws 60%, 20% and 20% of each group.

    A group is a majority when it has at least half as many training images as the largest group of its label.

    Args:
        path: the csv, or the folder at the top of the tree.
        size: side of the images in pixels, see `caml_core.data.images`.
        known: False where the attribute may be missing (no column `a`, a tree `y/*.jpg`): then all have "unknown".

    Raises:
        CamlError: a column, value or image that is missing or unknown; numbers that are not 0, 1, 2, ...; a group too
            small to split; a label without an image in one of the splits.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        columns, files = walk(path, known)
    else:
        columns = read_csv(path, ("path", "y", "a") if known else ("path", "y"))
        files = find_files(columns, path)
    y, class_names = _named(columns, "y", path)
    if "a" in columns:
        a, attribute_names = _named(columns, "a", path)
    else:
        a, attribute_names = np.zeros_like(y), ["unknown"]
    if "split" in columns:
        split = split_codes(columns, path)
    else:
        names = [f"{class_names[i]}, {attribute_names[j]}" for i, j in zip(y, a)]
        split = _draw_splits(y * len(attribute_names) + a, names, seed)
    table = Table(files, y, a, split)
    _warn_of_twins(table, path.stem)
    return splits_of(table, path.stem, class_names, attribute_names, size=size, progress=progress, upright=True)


def splits_of(
    table: Table,
    title: str,
    class_names: Sequence[str],
    attribute_names: Sequence[str],
    majority: Sequence[Sequence[int]] | None = None,
    *,
    size: int,
    progress: bool,
    upright: bool = False,
) -> Splits:
    """Pack the images of a table and make the three splits, rows in the order of the table.

    Args:
        majority: (n_classes, n_attributes) of 0 and 1; default: see `majority_of`.
        upright: see `caml_core.data.images.packed`.

    Raises:
        CamlError: a label without an image in one of the splits, an image that cannot be read.
    """
    counts = group_counts(table, class_names, attribute_names)
    for name, of_class in zip(SPLITS, counts.sum(axis=2)):
        if missing := [label for label, n in zip(class_names, of_class) if n == 0]:
            what = f"{title}: no {name} image of {', '.join(missing)}"
            remedy = "add images, leave that label out, or check how they are split"
            raise CamlError(what, "every label in every split", remedy)
    pairs = majority_of(counts[0]) if majority is None else majority
    names: dict[str, Any] = {"class_names": class_names, "attribute_names": attribute_names, "majority": pairs}
    splits = []
    for k, name in enumerate(SPLITS):
        r = np.flatnonzero(table.split == k)
        files = [table.files[i] for i in r]
        x = packed(files, size, upright=upright, label=f"{title} ({name})", progress=progress)
        splits.append(GroupDataset(x, table.y[r], table.a[r], source=title, **names))
    return splits[0], splits[1], splits[2]


def _warn_of_twins(table: Table, title: str) -> None:
    """Warn of images that are in two splits, by their content."""
    first: dict[bytes, int] = {}
    pairs = [(i, first.setdefault(digest, i)) for i, digest in enumerate(digests_of(table.files))]
    if twins := [(table.files[i], table.files[j]) for i, j in pairs if table.split[i] != table.split[j]]:
        what = f"{title}: {len(twins)} images are in two splits, so that the test is too easy"
        warnings.warn(f"{what}, such as {twins[0][0]} and {twins[0][1]}", stacklevel=4)


def group_counts(table: Table, class_names: Sequence[str], attribute_names: Sequence[str]) -> np.ndarray:
    """Images of each group in each split: int64 (3, n_classes, n_attributes)."""
    counts = np.zeros((3, len(class_names), len(attribute_names)), dtype=np.int64)
    np.add.at(counts, (table.split, table.y, table.a), 1)
    return counts


def compare_counts(
    table: Table, title: str, published: Mapping[str, Sequence[int]], classes: Sequence[str], attributes: Sequence[str]
) -> None:
    """Hold the groups of a table against those that were published; a `CamlError` shows both."""
    counts = dict(zip(SPLITS, group_counts(table, classes, attributes).reshape(3, -1).tolist()))
    if any(counts[split] != list(published[split]) for split in SPLITS):
        found = "; ".join(f"{split} {n}, published {list(published[split])}" for split, n in counts.items())
        remedy = "fetch it again; a part of it loads with check_counts=False"
        raise CamlError(f"{title} has other group counts than published: {found}", "the published counts", remedy)


def majority_of(counts: np.ndarray) -> torch.Tensor:
    """The groups that are no minority: bool (n_classes, n_attributes).

    Those with at least half as many training images, int (n_classes, n_attributes), as the largest group of the label.
    """
    return torch.from_numpy((2 * counts >= counts.max(axis=1, keepdims=True)) & (counts > 0))


def _named(columns: Columns, name: str, file: Path) -> tuple[np.ndarray, list[str]]:
    """Values numbered from 0, and their names: numbers as they are, words in alphabetical order."""
    values = [same(value) for value in columns[name]]
    names, odd = sorted(set(values)), ""
    numbers = [value for value in names if re.fullmatch(r"-?\d+", value, re.ASCII)]
    if len(numbers) == len(names):
        names.sort(key=int)
        if names != [str(k) for k in range(len(names))]:
            what = f"{file}: {name} takes the values {', '.join(names)}"
            raise CamlError(what, "0, 1, 2, ... without a gap, or words", f"number the values of {name} from 0")
    elif numbers:
        odd = "are numbers, others not"
    elif len({value.casefold().translate(BLANK) for value in names}) < len(names):
        odd = "differ in capital letters or blanks only"
    if odd:
        warnings.warn(f"{file}: some values of {name} {odd}: {', '.join(names)}", stacklevel=4)
    if len(names) < 2:
        remedy = f"give each image its {name}; folders are y/a, or split/y/a"
        raise CamlError(f"{file}: {name} is always {names[0]}", "two values or more", remedy)
    return np.array([names.index(value) for value in values]), names


def _draw_splits(group: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """Splits drawn within each group, at least one image in each: int64 (N,)."""
    rng = np.random.default_rng([seed, 0xF01D])
    split = np.zeros(len(group), dtype=np.int64)
    for g in np.unique(group):
        rows = rng.permutation(np.flatnonzero(group == g))
        if len(rows) < 3:
            what = f"group {names[rows[0]]!r} has {len(rows)} images to share among three splits"
            raise CamlError(what, "at least 3", "add images, or give the splits yourself in a column `split`")
        n_val, n_test = (max(1, round(share * len(rows))) for share in SHARES[1:])
        split[rows[:n_val]], split[rows[n_val : n_val + n_test]] = 1, 2
    return split
