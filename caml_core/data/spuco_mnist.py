"""SpuCoMNIST: five classes of digit pairs on five background colours; also ten digits on ten colours.

Joshi et al., "Towards Mitigating Spurious Correlations in the Wild: a Benchmark and a more Realistic Dataset",
arXiv 2306.11957. y is the pair {0,1}, {2,3}, {4,5}, {6,7} or {8,9}; a is the colour of the background, evenly spaced
on the HSV circle. Validation and test sets carry no correlation.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from caml_core.data import drawn_digits
from caml_core.data.sources import Where, images
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, Splits, assign_attributes, check_rho

PAIRS = ("0 or 1", "2 or 3", "4 or 5", "6 or 7", "8 or 9")
COLOURS = ("red", "orange", "yellow", "lime", "green", "cyan", "azure", "blue", "purple", "magenta")  # 36 degrees apart


def load(
    *, classes: int = 5, digits: str = "mnist", magnitude: float = 1.0, rho: float = 0.95, n_train: int = 10000,
    n_val: int = 2000, n_test: int = 2000, seed: int = 0, data_dir: Where = None,
) -> Splits:  # fmt: skip
    """Build SpuCoMNIST: x uint8 (N, 3, 28, 28), y digit pair, a background colour.

    Args:
        classes: 5 for SpuCoMNIST's pairs, 10 for single digits.
        digits: "mnist", or "drawn" by the program (`caml_core.data.drawn_digits`), which needs no data.
        magnitude: share of background pixels that carry the colour, in (0, 1]; the less, the harder the shortcut.
        rho: share of majority examples in training, the same for each class, in [0.5, 1].
        n_train, n_val, n_test: sizes (rounded down to a multiple of the classes); each digit image is used once.
        seed: fixes every draw.

    Raises:
        CamlError: an option out of range, too many images asked for, or MNIST not to be had.
    """
    check_rho(rho)
    if classes not in (5, 10) or digits not in ("mnist", "drawn") or not 0 < magnitude <= 1:
        what = f"classes = {classes}, digits = {digits!r}, magnitude = {magnitude}"
        expected = "classes 5 (pairs) or 10 (single digits); digits 'mnist' or 'drawn'; magnitude in (0, 1]"
        raise CamlError(what, expected, "correct the option")
    in_one_class = 10 // classes
    palette = np.array([colorsys.hsv_to_rgb(k / classes, 1.0, 1.0) for k in range(classes)], np.float32)
    rng = np.random.default_rng([seed, 0x5C0])
    pools, sources = {}, {}
    for split in ("train", "test"):
        drawn = digits == "drawn"
        sources[split] = source = drawn_digits.images(split) if drawn else images("mnist", split, data_dir)
        pools[split] = [rng.permutation(np.flatnonzero(source.labels // in_one_class == y)) for y in range(classes)]
    splits = []
    for split, size, share in (("train", n_train, rho), ("train", n_val, 1 / classes), ("test", n_test, 1 / classes)):
        count = size // classes
        if any(len(pool) < count for pool in pools[split]):
            what = f"MNIST ({split}) has too few digits left for {count} of each class"
            expected = "n_train + n_val of at most 54,000 and n_test of at most 8,900 (drawn: 20,000 and 10,000)"
            raise CamlError(what, expected, "ask for fewer with n_train, n_val or n_test")
        rows = np.concatenate([pool[:count] for pool in pools[split]])
        pools[split] = [pool[count:] for pool in pools[split]]  # no digit in two splits
        y = np.repeat(np.arange(classes), count)
        a = assign_attributes(y, classes, share, rng)
        order = rng.permutation(len(y))
        ink = sources[split].pixels[rows[order]].astype(np.float32)[:, None] / 255  # (N, 1, 28, 28)
        ground = palette[a[order]][:, :, None, None]  # white digit on its colour
        if magnitude < 1:
            ground = ground * (rng.random(ink.shape, dtype=np.float32) < magnitude)
        x = ((ink + (1 - ink) * ground) * 255).round().astype(np.uint8)
        names: dict[str, Any] = {"class_names": PAIRS if classes == 5 else "0123456789"}
        names |= {"attribute_names": COLOURS[::in_one_class], "source": f"{digits} digits from {sources[split].origin}"}
        splits.append(GroupDataset(x, y[order], a[order], **names))
    return splits[0], splits[1], splits[2]
