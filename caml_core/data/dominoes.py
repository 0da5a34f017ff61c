"""Dominoes: one image over another. The bottom half is the label y, the top half the spurious attribute a.

Shah et al., "The Pitfalls of Simplicity Bias in Neural Networks", arXiv 2006.07710. Two protocols are kept by name:

- `"hsfm"`: two classes, MNIST 0/1 over CIFAR-10 automobile/truck, rho 0.9, exact group counts;
- `"caml"`: ten classes, digit k over CIFAR class k, 4,400 training and 100 validation images a class, a test set of
  2,000 drawn from 800 a class, rho set by shuffling the halves of a share 1 - rho of the training pairs.

Validation and test sets carry no correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caml_core.data.sources import SOURCES, Images, Where, images
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, Splits, assign_attributes, check_rho

PROTOCOLS: dict[str, dict[str, Any]] = {
    "hsfm": {"classes": (1, 9), "rho": 0.9, "sizes": (8000, 2000, 2000), "pairing": "exact"},
    "caml": {"classes": range(10), "rho": 0.95, "sizes": (44000, 1000, 2000), "pairing": "shuffle"},
}
TEST_POOL_PER_CLASS = 800  # the "caml" protocol draws its test set from so many images of each class


def load(
    *, protocol: str = "hsfm", top: str = "mnist", bottom: str = "cifar10", classes: Sequence[int] | None = None,
    top_classes: Sequence[int] | None = None, rho: float | None = None, n_train: int | None = None,
    n_val: int | None = None, n_test: int | None = None, seed: int = 0, data_dir: Where = None,
) -> Splits:  # fmt: skip
    """Build Dominoes: x uint8 (N, 3, 64, 32), y from the bottom, a from the top.

    Args:
        protocol: "hsfm" or "caml"; every other argument left out takes its value from there.
        top, bottom: names in `caml_core.data.sources.SOURCES`.
        classes: classes of the bottom source that become labels 0, 1, ...
        top_classes: the top source's classes that go with them (default 0, 1, ...).
        rho: share of majority examples in training, in [0.5, 1].
        n_train, n_val, n_test: sizes of the splits (rounded down to a multiple of the number of classes).
        seed: fixes every draw. Bottom images are used once; top images are used again when a class runs out.

    Raises:
        CamlError: see `caml_core.data.sources.images`; class lists that do not fit; too few images.
    """
    if protocol not in PROTOCOLS:
        raise CamlError(f"unknown protocol {protocol!r}", "one of " + ", ".join(PROTOCOLS), "check the spelling")
    chosen = PROTOCOLS[protocol]
    classes = tuple(chosen["classes"] if classes is None else classes)
    top_classes = tuple(range(len(classes)) if top_classes is None else top_classes)
    rho = check_rho(chosen["rho"] if rho is None else rho)
    sizes = [size if n is None else n for size, n in zip(chosen["sizes"], (n_train, n_val, n_test))]
    pairs = ((bottom, classes), (top, top_classes))
    known = all(name in SOURCES and set(c) <= set(range(10)) and len(set(c)) == len(c) for name, c in pairs)
    if not known or not len(classes) == len(top_classes) >= 2:
        expected = f"two or more different classes in 0..9 of each, as many, from {', '.join(SOURCES)}"
        raise CamlError(f"classes {pairs}", expected, "choose for example classes=(1, 9), top_classes=(0, 1)")

    rng = np.random.default_rng([seed, 0x0D0])
    counts = [size // len(classes) for size in sizes]  # of a class
    bottoms, tops = ({s: images(name, s, data_dir) for s in ("train", "test")} for name in (bottom, top))
    # Rows of each class, shuffled once; training and validation share no image, top or bottom.
    bottom_train, bottom_test = (_pools(bottoms[split], classes, rng) for split in ("train", "test"))
    if protocol == "caml":
        bottom_test = [pool[:TEST_POOL_PER_CLASS] for pool in bottom_test]
    top_train, top_test = (_pools(tops[split], top_classes, rng) for split in ("train", "test"))
    cuts = [round(len(pool) * counts[1] / max(1, sum(counts[:2]))) for pool in top_train]
    for_train = [pool[counts[1] :] for pool in bottom_train], [pool[cut:] for pool, cut in zip(top_train, cuts)]
    for_val = bottom_train, [pool[:cut] for pool, cut in zip(top_train, cuts)]
    plan = (
        ("train", rho, chosen["pairing"], *for_train),
        ("train", 1 / len(classes), "exact", *for_val),
        ("test", 1 / len(classes), "exact", bottom_test, top_test),
    )
    labels, attributes = ([SOURCES[name].classes[c] for c in chosen] for name, chosen in pairs)
    splits = []
    for count, (split, share, pairing, bottom_pools, top_pools) in zip(counts, plan):
        if short := [name for name, pool in zip(labels, bottom_pools) if len(pool) < count]:
            what = f"{bottom} has too few images of {', '.join(short)} for {count} in one split"
            raise CamlError(what, f"at least {count} left of each class", "ask for fewer with n_train, n_val or n_test")
        y = np.repeat(np.arange(len(classes)), count)
        a = assign_attributes(y, len(classes), share, rng, pairing)
        rows_bottom = np.concatenate([pool[:count] for pool in bottom_pools])
        rows_top = np.empty_like(rows_bottom)
        for k, pool in enumerate(top_pools):
            rows_top[a == k] = np.resize(pool, int((a == k).sum()))
        order = rng.permutation(len(y))
        halves = _square(tops[split].pixels[rows_top[order]]), _square(bottoms[split].pixels[rows_bottom[order]])
        source = f"{bottom} from {bottoms[split].origin}; {top} from {tops[split].origin}"
        names: dict[str, Any] = {"class_names": labels, "attribute_names": attributes, "source": source}
        splits.append(GroupDataset(np.concatenate(halves, axis=2), y[order], a[order], **names))
    return splits[0], splits[1], splits[2]


def _pools(source: Images, classes: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each class in a random order."""
    return [rng.permutation(np.flatnonzero(source.labels == c)) for c in classes]


def _square(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3) to (N, 3, 32, 32): pad 28 to 32, repeat gray to RGB."""
    if pixels.ndim == 3:
        pad = (32 - pixels.shape[1]) // 2
        pixels = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad)))[..., None].repeat(3, axis=-1)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
