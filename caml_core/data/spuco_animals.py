"""SpuCoAnimals: landbirds and waterbirds on land and water, small and big dogs indoors and outdoors, from ImageNet.

Joshi et al., "Towards Mitigating Spurious Correlations in the Wild", arXiv 2306.11957. Folders `spuco_birds` and
`spuco_dogs`, each `{train,val,test}/label/background`. Two protocols are kept by name:

- `"official"`: the splits as they are; the validation split is as biased as training, the test split is balanced;
- `"caml"`: as for active learning, where rho can be set and validation is balanced too: 45% of each majority group and
  as many minority images as rho asks for; a quarter of the official test split for validation and a half for test
  (4,500 of each majority group, 1,000 and 2,000 images).
"""

from __future__ import annotations

import itertools

import numpy as np

from caml_core.data.find import locate
from caml_core.data.folder import SPLITS, Table, compare_counts, splits_of, table_of
from caml_core.data.sources import Where
from caml_core.errors import CamlError
from caml_core.groups import Splits, check_rho

CLASSES = ("landbird", "waterbird", "small dog", "big dog")
ATTRIBUTES = ("land", "water", "indoor", "outdoor")
PARTS = (("spuco_birds", ("landbirds", "waterbirds"), ("land", "water")),
         ("spuco_dogs", ("small_dogs", "big_dogs"), ("indoor", "outdoor")))  # fmt: skip


def groups(majority: int, minority: int) -> tuple[int, ...]:
    """Counts of the 16 groups, of which the eight of a bird indoors or a dog on water are empty."""
    m, n = majority, minority
    return (m, n, 0, 0, n, m, 0, 0, 0, 0, m, n, 0, 0, n, m)


PUBLISHED = {"train": groups(10000, 500), "val": groups(500, 25), "test": groups(500, 500)}
CAML_TRAIN, CAML_VAL, CAML_TEST = 0.45, 0.25, 0.5  # of a majority group; of the official test split


def load(
    *, data_dir: Where = None, protocol: str = "official", rho: float = 0.95, seed: int = 0, size: int = 224,
    check_counts: bool = True, progress: bool = True,
) -> Splits:  # fmt: skip
    """Birds and dogs: x uint8 (N, 3, size, size), y animal, a background.

    Args:
        data_dir: see `caml_core.data.find.locate`.
        protocol: "official" or "caml".
        rho: share of majority examples in training, in [0.5, 1]; of "caml" only.
        seed: draws the images of "caml"; changes nothing in "official".
        check_counts: compare the group counts of the folder with the published ones; False for a part of it.

    Raises:
        CamlError: not found, other counts than published, an unknown protocol, a folder that is missing or empty, an
            image that cannot be read.
    """
    check_rho(rho)
    if protocol not in ("official", "caml"):
        raise CamlError(f"unknown SpuCoAnimals protocol {protocol!r}", "official or caml", "check the spelling")
    folder = locate("spuco_animals", data_dir)
    table = table_of(
        (folder / name / split / label / background, 2 * part + y, 2 * part + a, k)
        for k, split in enumerate(SPLITS)
        for part, (name, labels, backgrounds) in enumerate(PARTS)
        for (y, label), (a, background) in itertools.product(enumerate(labels), enumerate(backgrounds))
    )
    if check_counts:
        compare_counts(table, "SpuCoAnimals", PUBLISHED, CLASSES, ATTRIBUTES)
    if protocol == "caml":
        table = draw(table, rho, np.random.default_rng([seed, 0x59C0]))
    majority = np.eye(4, dtype=int).tolist()
    return splits_of(table, "SpuCoAnimals", CLASSES, ATTRIBUTES, majority, size=size, progress=progress)


def draw(table: Table, rho: float, rng: np.random.Generator) -> Table:
    """The rows of protocol "caml"."""
    train = []
    for y in range(len(CLASSES)):
        groups = [np.flatnonzero((table.split == 0) & (table.y == y) & (table.a == a)) for a in (y, y ^ 1)]
        n = round(CAML_TRAIN * len(groups[0]))
        counts = (n, int(n * (1 - rho) / rho + 1e-9))  # a whole number, but for rounding errors
        if counts[1] > len(groups[1]):
            what = f"rho = {rho} takes {counts[1]} minority images of {CLASSES[y]}; there are {len(groups[1])}"
            raise CamlError(what, "rho of at least 0.9", "choose a larger rho")
        train += [rng.permutation(rows)[:count] for rows, count in zip(groups, counts)]
    held_out = rng.permutation(np.flatnonzero(table.split == 2))
    n_val, n_test = (round(share * len(held_out)) for share in (CAML_VAL, CAML_TEST))
    parts = [np.concatenate(train), held_out[:n_val], held_out[n_val : n_val + n_test]]
    rows = np.concatenate(parts)
    split = np.repeat([0, 1, 2], [len(part) for part in parts])
    return Table([table.files[i] for i in rows], table.y[rows], table.a[rows], split)
