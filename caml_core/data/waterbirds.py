"""Waterbirds: birds of CUB-200-2011 pasted on backgrounds of Places. Is it a waterbird (y), and is it on water (a)?

Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731. The folder
`waterbird_complete95_forest2water2`, or WILDS' `waterbirds_v1.0`, which holds the same files, or the same images from
the Hub. 95% of the training birds are where they belong; in validation and test, half of each kind are. Landbirds are
in the majority everywhere.
"""

from __future__ import annotations

from caml_core.data.find import locate
from caml_core.data.folder import Table, compare_counts, splits_of
from caml_core.data.listing import codes, read_csv, split_codes
from caml_core.data.sources import Where
from caml_core.groups import Splits

CLASSES, ATTRIBUTES = ("landbird", "waterbird"), ("land", "water")
PUBLISHED = {"train": (3498, 184, 56, 1057), "val": (467, 466, 133, 133), "test": (2255, 2255, 642, 642)}


def load(
    *, data_dir: Where = None, seed: int = 0, size: int = 224, check_counts: bool = True, progress: bool = True
) -> Splits:
    """The authors' splits: x uint8 (N, 3, size, size), y bird, a background; landbird on land comes first.

    Args:
        data_dir: see `caml_core.data.find.locate`.
        seed: changes nothing; the splits are given.
        check_counts: compare the group counts with the published ones; False for a part of the dataset.

    Raises:
        CamlError: not found, other counts than published, a metadata.csv or an image that cannot be used.
    """
    folder = locate("waterbirds", data_dir)
    file, binary = folder / "metadata.csv", {"0": 0, "1": 1}
    columns = read_csv(file, ("img_filename", "y", "split", "place"))
    y, a = (codes(columns, name, binary, file) for name in ("y", "place"))
    table = Table([folder / name for name in columns["img_filename"]], y, a, split_codes(columns, file))
    if check_counts:
        compare_counts(table, "Waterbirds", PUBLISHED, CLASSES, ATTRIBUTES)
    return splits_of(table, "Waterbirds", CLASSES, ATTRIBUTES, ((1, 0), (0, 1)), size=size, progress=progress)
