"""MetaShift, cats against dogs: in training cats are on sofas and beds, dogs on benches and with bikes.

Liang and Zou, "MetaShift", ICLR 2022, arXiv 2202.06523; the folder `MetaDatasetCatDog` of Wu et al., "Discover and
Cure", arXiv 2305.00650, which DaC and HSFM use: `train/cat/cat(sofa)`, ..., `test/dog/dog(shelf)`. Both test groups
are on shelves, so that worst-group accuracy is the lower of two, and no training example is a minority.

The papers print no count of each group, so that none is checked here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caml_core.data.find import locate
from caml_core.data.folder import Splits, Table, splits_of
from caml_core.data.listing import image_files
from caml_core.data.sources import Where

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
    rng = np.random.default_rng([seed, 0x3E7A])
    files: list[Path] = []
    columns: list[tuple[int, int, int]] = []  # y, a, split
    for split, contexts in FOLDERS.items():
        for y, animal in enumerate(CLASSES):
            for context in contexts[y]:
                found = image_files(folder / split / animal / f"{animal}({context})")
                codes = np.zeros(len(found), np.int64)
                if split == "test":
                    codes += 2
                    codes[rng.permutation(len(found))[: max(1, round(VALIDATION * len(found)))]] = 1
                files += found
                columns += [(y, ATTRIBUTES.index(context), int(code)) for code in codes]
    table, majority = Table(files, *np.array(columns, dtype=np.int64).T), ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0))
    title = "MetaShift, cats and dogs"
    return splits_of(table, title, CLASSES, ATTRIBUTES, majority, size=size, progress=progress)
