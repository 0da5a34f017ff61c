"""MetaShift, cats against dogs: in training cats are on sofas and beds, dogs on benches and with bikes.

Liang and Zou, "MetaShift", ICLR 2022, arXiv 2202.06523; the folder `MetaDatasetCatDog` of Wu et al., "Discover and
Cure", arXiv 2305.00650, which DaC and HSFM use: `train/cat/cat(sofa)`, ..., `test/dog/dog(shelf)`. Both test groups
are on shelves, so that worst-group accuracy is the lower of two, and no training example is a minority.

The papers print no count of each group, so that none is checked here.
"""

from __future__ import annotations

import numpy as np

from caml_core.data.find import locate
from caml_core.data.folder import splits_of, table_of
from caml_core.data.sources import Where
from caml_core.groups import Splits

CLASSES = ("cat", "dog")
ATTRIBUTES = ("sofa", "bed", "bench", "bike", "shelf")
FOLDERS = {"train": (("sofa", "bed"), ("bench", "bike")), "test": (("shelf",), ("shelf",))}  # by class
VALIDATION = 0.15  # of the test images


def load(*, data_dir: Where = None, seed: int = 0, size: int = 224, progress: bool = True) -> Splits:
    """Cats and dogs: x uint8 (N, 3, size, size), y animal, a what it is on or with.

    Args:
        data_dir: see `caml_core.data.find.locate`.
        seed: draws the validation images, 15% of the test images of each class; the rest is the test split. (DaC and
            HSFM draw 15% of both classes together, from files in the order in which the disk lists them.)

    Raises:
        CamlError: not found, a folder that is missing or empty, an image that cannot be read.
    """
    folder = locate("metashift", data_dir)
    table = table_of(
        (folder / split / animal / f"{animal}({context})", y, ATTRIBUTES.index(context), 2 * (split == "test"))
        for split, contexts in FOLDERS.items()
        for y, animal in enumerate(CLASSES)
        for context in contexts[y]
    )
    rng = np.random.default_rng([seed, 0x3E7A])
    for y in range(2):
        rows = rng.permutation(np.flatnonzero((table.split == 2) & (table.y == y)))
        table.split[rows[: max(1, round(VALIDATION * len(rows)))]] = 1
    majority = ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0))
    title = "MetaShift, cats and dogs"
    return splits_of(table, title, CLASSES, ATTRIBUTES, majority, size=size, progress=progress)
