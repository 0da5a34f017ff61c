"""SpuCoMNIST: five classes of digit pairs on five background colours.

Joshi et al., "Towards Mitigating Spurious Correlations in the Wild: a Benchmark and a more Realistic Dataset",
arXiv 2306.11957. y is the pair {0,1}, {2,3}, {4,5}, {6,7} or {8,9}; a is the colour of the background, evenly spaced
on the HSV circle. Validation and test sets carry no correlation.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch

from caml_core.data.dataset import GroupDataset, assign_attributes, check_rho
from caml_core.data.sources import images
from caml_core.errors import CamlError

PAIRS = ("0 or 1", "2 or 3", "4 or 5", "6 or 7", "8 or 9")
COLOURS = ("red", "yellow", "green", "blue", "magenta")
PALETTE = np.array([colorsys.hsv_to_rgb(k / len(COLOURS), 1.0, 1.0) for k in range(len(COLOURS))], np.float32)


def load(
    *,
    rho: float = 0.95,
    n_train: int = 10000,
    n_val: int = 2000,
    n_test: int = 2000,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """Build SpuCoMNIST: x uint8 (N, 3, 28, 28), y digit pair, a background colour.

    Args:
        rho: share of majority examples in training, the same for each class, in [0.5, 1].
        n_train, n_val, n_test: sizes (rounded down to a multiple of five); each digit image is used once.
        seed: fixes every draw.

    Raises:
        CamlError: rho out of range, too many images asked for, or MNIST not to be had.
    """
    check_rho(rho)
    rng = np.random.default_rng([seed, 0x5C0])
    sources = {split: images("mnist", split, data_dir) for split in ("train", "test")}
    pools = {
        split: [rng.permutation(np.flatnonzero(source.labels // 2 == y)) for y in range(len(PAIRS))]
        for split, source in sources.items()
    }
    splits = []
    for split, size, share in (("train", n_train, rho), ("train", n_val, 0.2), ("test", n_test, 0.2)):
        count = size // len(PAIRS)
        if any(len(pool) < count for pool in pools[split]):
            raise CamlError(
                what=f"MNIST ({split}) has too few digits left for {count} of each pair",
                expected="n_train + n_val of at most 56,000, n_test of at most 9,300",
                remedy="ask for fewer with n_train, n_val or n_test",
            )
        rows = np.concatenate([pool[:count] for pool in pools[split]])
        pools[split] = [pool[count:] for pool in pools[split]]  # no digit in two splits
        y = np.repeat(np.arange(len(PAIRS)), count)
        a = assign_attributes(y, len(COLOURS), share, rng)
        order = rng.permutation(len(y))
        ink = sources[split].pixels[rows[order]].astype(np.float32)[:, None] / 255  # (N, 1, 28, 28)
        x = ink + (1 - ink) * PALETTE[a[order]][:, :, None, None]  # white digit on its colour
        splits.append(
            GroupDataset(
                torch.from_numpy((x * 255).round().astype(np.uint8)),
                torch.from_numpy(y[order]),
                torch.from_numpy(a[order]),
                class_names=PAIRS,
                attribute_names=COLOURS,
                source=f"mnist from {sources[split].origin}",
            )
        )
    train, val, test = splits
    return train, val, test
