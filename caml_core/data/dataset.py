"""What every dataset of the book returns: examples with a label y, a spurious attribute a and a group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from caml_core.errors import CamlError


class Example(NamedTuple):
    """One example, or a batch of them with a leading dimension B."""

    x: Tensor  # uint8 (3, H, W) image in 0..255, or float32 (D,) features
    y: Tensor  # int64 () label
    a: Tensor  # int64 () spurious attribute
    index: Tensor  # type: ignore[assignment]  # int64 () row in the split, stable under `subset`


class GroupDataset(Dataset[Example]):
    """A split held in memory, with its labels, spurious attributes and groups as plain tensors.

    The group is `g = y * n_attributes + a`. `dataset[i]` gives one `Example`; `dataset[[i, j, ...]]` gives a batch
    by one slice, which is what `caml_core.loader.batches` uses.

    Attributes:
        x: uint8 (N, 3, H, W) images, or float32 (N, D) features.
        y, a, group, index: int64 (N,).
        class_names, attribute_names: names of the values of y and a.
        majority: for each label y, the attributes that go with it: bool (n_classes, n_attributes).
        extra: further int64 (N,) columns.
        source: one line saying where the data came from.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        *,
        class_names: Sequence[str],
        attribute_names: Sequence[str],
        index: Tensor | None = None,
        majority: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
        source: str = "",
    ) -> None:
        self.x, self.y, self.a = x, y.long(), a.long()
        self.index = torch.arange(len(y)) if index is None else index.long()
        self.class_names, self.attribute_names = tuple(class_names), tuple(attribute_names)
        n_classes, n_attributes = len(self.class_names), len(self.attribute_names)
        self.majority = torch.eye(n_classes, n_attributes, dtype=torch.bool) if majority is None else majority
        self.extra = dict(extra or {})
        self.source = source
        columns = {"y": self.y, "a": self.a, "index": self.index, **self.extra}
        for name, column in columns.items():
            if column.shape != (len(x),):
                raise CamlError(
                    what=f"column {name!r} has shape {tuple(column.shape)} beside {len(x)} examples",
                    expected=f"shape ({len(x)},)",
                    remedy="give one value for each example",
                )
        for name, column, count in (("y", self.y, n_classes), ("a", self.a, n_attributes)):
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < count:
                raise CamlError(
                    what=f"{name} takes values {int(column.min())}..{int(column.max())}",
                    expected=f"0..{count - 1}, one for each of {count} names",
                    remedy="number the values from 0 and name each of them",
                )

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

    def subset(self, rows: Tensor | Sequence[int]) -> GroupDataset:
        """The chosen rows, in that order; `index` keeps pointing at this split's rows.

        Raises:
            CamlError: a mask of True and False in place of row numbers.
        """
        rows = torch.as_tensor(rows)
        if rows.dtype == torch.bool:
            raise CamlError(
                what=f"a mask of {len(rows)} True and False",
                expected="numbers of rows",
                remedy="pass mask.nonzero().flatten()",
            )
        rows = rows.long()
        return self._copy(self.x.index_select(0, rows), rows)

    def _copy(self, x: Tensor, rows: Tensor | slice) -> GroupDataset:
        return GroupDataset(
            x,
            self.y[rows],
            self.a[rows],
            class_names=self.class_names,
            attribute_names=self.attribute_names,
            index=self.index[rows],
            majority=self.majority,
            extra={name: column[rows] for name, column in self.extra.items()},
            source=self.source,
        )

    def content_hash(self) -> str:
        """SHA-256 over x, y and a: two datasets share it only if they hold the same examples in the same order."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.y, self.a):
            array = np.ascontiguousarray(tensor.numpy())
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()


def group_table(**splits: GroupDataset) -> str:
    """Markdown table of group counts and shares, one column a split; minority groups are marked.

    >>> print(group_table(train=train, test=test))  # doctest: +SKIP
    """
    first = next(iter(splits.values()))
    lines = ["| group | " + " | ".join(splits) + " |", "|:--|" + "--:|" * len(splits)]
    for g, name in enumerate(first.group_names):
        y, a = divmod(g, len(first.attribute_names))
        mark = "" if first.majority[y, a] else " (minority)"
        cells = []
        for split in splits.values():
            count = int(split.group_counts[g])
            cells.append(f"{count:,} ({100 * count / max(len(split), 1):.1f}%)")
        lines.append(f"| {name}{mark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check_rho(rho: float) -> float:
    """Return `rho` if it is a spurious strength, a share of majority examples in [0.5, 1]."""
    if not 0.5 <= rho <= 1.0:
        raise CamlError(
            what=f"rho = {rho}",
            expected="a share of majority examples between 0.5 (no correlation) and 1.0 (no minority at all)",
            remedy="choose for example rho=0.95",
        )
    return float(rho)


def assign_attributes(
    y: np.ndarray, n_attributes: int, share: float, rng: np.random.Generator, how: str = "exact"
) -> np.ndarray:
    """Draw a spurious attribute for each label: int64 (N,).

    Args:
        y: int64 (N,) labels; label k goes with attribute k.
        n_attributes: attributes to choose from.
        share: share of examples whose attribute goes with the label.
        rng: source of randomness.
        how: `"exact"` gives every label exactly that share and spreads the rest evenly over the other attributes;
            `"shuffle"` permutes the attributes of a share `1 - share` of all examples, so that some meet their own
            label again (the ten-class Dominoes of the CAML paper).
    """
    a = y.copy()
    if how == "shuffle":
        moved = rng.permutation(len(y))[: round((1 - share) * len(y))]
        a[moved] = rng.permutation(a[moved])
        return a
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        moved = rows[: round((1 - share) * len(rows))]
        others = np.delete(np.arange(n_attributes), label)
        a[moved] = np.resize(others, len(moved))
    return a
