"""What every dataset of the book returns: examples with a label y, a spurious attribute a and a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from caml_core.errors import CamlError
from caml_core.store import hash_tensors

Column = Tensor | np.ndarray | Sequence[int]


class Example(NamedTuple):
    """One example, or a batch of them with a leading dimension B."""

    x: Tensor  # uint8 (3, H, W) image in 0..255, or float32 (D,) features
    y: Tensor  # int64 () label
    a: Tensor  # int64 () spurious attribute
    index: Tensor  # type: ignore[assignment]  # int64 () row in the split, stable under `subset`


class GroupDataset(Dataset[Example]):
    """A split held in memory, with its labels, spurious attributes and groups as plain tensors.

    The group is `g = y * n_attributes + a`. `dataset[i]` gives one `Example`; `dataset[[i, j, ...]]` gives a batch
    by one slice, which is what `caml_core.loader.batches` uses. Columns may be given as lists or arrays.

    Attributes:
        x: uint8 (N, 3, H, W) images, or float (N, D) features.
        y, a, group, index: int64 (N,).
        class_names, attribute_names: names of the values of y and a.
        majority: for each label y, the attributes that go with it: bool (n_classes, n_attributes).
        extra: further int64 (N,) columns.
        source: one line saying where the data came from.

    Raises:
        CamlError: a column that does not fit x, the names or whole numbers; a table of another shape.
    """

    def __init__(
        self,
        x: Tensor | np.ndarray,
        y: Column,
        a: Column,
        *,
        class_names: Sequence[str],
        attribute_names: Sequence[str],
        index: Column | None = None,
        majority: Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
        extra: Mapping[str, Tensor] | None = None,
        source: str = "",
    ) -> None:
        self.x = torch.as_tensor(x)
        self.class_names, self.attribute_names, self.source = tuple(class_names), tuple(attribute_names), source
        n, shape = len(self.x), (len(self.class_names), len(self.attribute_names))
        self.y, self.a = _column("y", y, n, shape[0]), _column("a", a, n, shape[1])
        self.index = torch.arange(n) if index is None else _column("index", index, n)
        self.extra = {name: _column(name, values, n) for name, values in (extra or {}).items()}
        table = torch.eye(*shape) if majority is None else torch.as_tensor(majority)
        self.majority = table.bool()
        if table.shape != shape or (table != self.majority).any():
            what = f"majority of shape {tuple(table.shape)} with values {table.unique().tolist()}"
            expected = f"shape {shape}, a row for each label, of 0 and 1 without fractions"
            raise CamlError(what, expected, "say for each label and attribute whether they go together")

    @property
    def group(self) -> Tensor:
        """Group of each example, `y * n_attributes + a`: int64 (N,)."""
        return self.y * len(self.attribute_names) + self.a

    @property
    def n_groups(self) -> int:
        return len(self.class_names) * len(self.attribute_names)

    @property
    def group_names(self) -> tuple[str, ...]:
        """`"label, attribute"` for each group, in group order."""
        return tuple(f"{y}, {a}" for y in self.class_names for a in self.attribute_names)

    @property
    def group_counts(self) -> Tensor:
        """Examples in each group: int64 (n_groups,). Empty groups count 0."""
        return torch.bincount(self.group, minlength=self.n_groups)

    @property
    def is_minority(self) -> Tensor:
        """True where the attribute is not one that goes with the label in training: bool (N,)."""
        return ~self.majority[self.y, self.a]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int | Sequence[int] | Tensor) -> Example:  # type: ignore[override]
        # Ten times faster than indexing for a batch of images.
        x = self.x.index_select(0, i) if isinstance(i, Tensor) and i.shape and i.dtype == torch.long else self.x[i]
        return Example(x, self.y[i], self.a[i], self.index[i])

    def with_x(self, x: Tensor) -> GroupDataset:
        """The same examples seen differently: images replaced by, say, their features."""
        return self._copy(x, slice(None))

    def subset(self, rows: Column) -> GroupDataset:
        """The chosen rows, in that order (or where a mask is true); `index` keeps pointing at this split's rows."""
        rows = torch.as_tensor(rows)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else _column("rows", rows, len(rows))
        return self._copy(self.x.index_select(0, rows), rows)

    def _copy(self, x: Tensor, rows: Tensor | slice) -> GroupDataset:
        return GroupDataset(
            x, self.y[rows], self.a[rows], class_names=self.class_names, attribute_names=self.attribute_names,
            index=self.index[rows], majority=self.majority, source=self.source,
            extra={name: column[rows] for name, column in self.extra.items()},
        )  # fmt: skip

    def content_hash(self) -> str:
        """SHA-256 over x, y and a: two datasets share it only if they hold the same examples in the same order."""
        return hash_tensors(("", column) for column in (self.x, self.y, self.a))


Splits = tuple[GroupDataset, GroupDataset, GroupDataset]  # training, validation, test


def _column(name: str, values: Any, n: int, count: int | None = None) -> Tensor:
    """`values` as int64 (n,), refused unless they are whole numbers, n of them, below `count`."""
    given = torch.as_tensor(values)
    column = given.long()
    low, high = (int(column.min()), int(column.max())) if column.numel() else (0, 0)
    if column.shape != (n,) or (given != column).any() or (count is not None and not 0 <= low <= high < count):
        what = f"column {name!r} has shape {tuple(given.shape)} and values {low}..{high} beside {n} examples"
        expected = f"{n} whole numbers without fractions" + (f" in 0..{count - 1}, one for each name" if count else "")
        raise CamlError(what, expected, "give one value for each example, numbered from 0, and a name to each value")
    return column


def check_classes(split: GroupDataset, y: Tensor, remedy: str) -> None:
    """Refuse labels y of examples of `split` among which a class is missing: no class balance can draw it."""
    if missing := sorted(set(range(len(split.class_names))) - set(y.tolist())):
        what = f"no example of class {', '.join(split.class_names[k] for k in missing)} among {len(y)} labels"
        raise CamlError(what, "at least one of each class", remedy)


def same_names(first: GroupDataset, *others: GroupDataset) -> None:
    """Refuse splits whose labels or attributes are numbered otherwise: scores of one on another would be wrong.

    Attributes may be others altogether, as inferred environments are.

    Raises:
        CamlError: names that differ, or stand in another order.
    """
    for other in others:
        classes, attributes = (first.class_names, other.class_names), (first.attribute_names, other.attribute_names)
        for kind, (own, theirs) in {"classes": classes, "attributes": attributes}.items():
            if own != theirs and (kind == "classes" or {*own} & {*theirs}):
                what = f"splits with the {kind} {', '.join(own)} and {', '.join(theirs)}"
                raise CamlError(what, "the same names in the same order in every split", "number them alike")


def group_table(**splits: GroupDataset) -> str:
    """Markdown table of group counts and shares, one column a split; minority groups are marked.

    >>> print(group_table(train=train, test=test))  # doctest: +SKIP
    """
    first = next(iter(splits.values()))
    same_names(*splits.values())
    lines = ["| group | " + " | ".join(splits) + " |", "|:--|" + "--:|" * len(splits)]
    for g, name in enumerate(first.group_names):
        mark = "" if first.majority.flatten()[g] else " (minority)"
        counts = [(int(split.group_counts[g]), max(len(split), 1)) for split in splits.values()]
        lines.append(f"| {name}{mark} | " + " | ".join(f"{k:,} ({100 * k / n:.1f}%)" for k, n in counts) + " |")
    return "\n".join(lines)


def check_rho(rho: float) -> float:
    """Return `rho` if it is a spurious strength, a share of majority examples in [0.5, 1]."""
    if not 0.5 <= rho <= 1.0:
        expected = "a share of majority examples between 0.5 (no correlation) and 1.0 (no minority at all)"
        raise CamlError(f"rho = {rho}", expected, "choose for example rho=0.95")
    return float(rho)


def assign_attributes(
    y: np.ndarray, n_attributes: int, share: float, rng: np.random.Generator, how: str = "exact"
) -> np.ndarray:
    """Draw a spurious attribute for each label: int64 (N,). Label k goes with attribute k, for a share of examples.

    `how="exact"` gives every label exactly that share and spreads the rest evenly over the other attributes;
    `"shuffle"` permutes the attributes of a share `1 - share` of all examples, so that some meet their own label again
    (the ten-class Dominoes of the CAML paper).
    """
    a = y.copy()
    if how == "shuffle":
        moved = rng.permutation(len(y))[: round((1 - share) * len(y))]
        a[moved] = rng.permutation(a[moved])
        return a
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        moved = rows[: round((1 - share) * len(rows))]
        a[moved] = np.resize(np.delete(np.arange(n_attributes), label), len(moved))
    return a
