"""Slices: parts of a class on which a model fails, found without knowing what its shortcut is.

A slice is a rule on features alone, learned on one half of a split and judged on the other, so that its error there is
an honest number. Two ways to learn the rule, in each class:

- `mistakes`: what the model answers against the label, with two classes its errors (EIIL's environments,
  `caml_core.environments`), is what a logistic regression on the features learns to tell; a slice is where it says so;
- `mixture`: after Domino (Eyuboglu et al., arXiv 2203.14960), a mixture of Gaussians of features and mistakes together,
  which then assigns by the features alone; each part is a slice.

A slice with an error far above that of the rest of its class need not be a shortcut: pictures can be hard, and then the
model is unsure of them. An alarm is given where the gap is above what the model's own confidence announces by `ALARM`
for sure, all slices that were judged taken into account (Bonferroni).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor

from caml_core.device import stream_seed
from caml_core.environments import environments
from caml_core.errors import CamlError
from caml_core.last_layer import halves
from caml_core.metrics import wilson

FEWEST = 10  # mistakes, and right answers, of a class: below, nothing is learned from them
PARTS, DIMENSIONS, MISTAKES = 4, 16, 2.0  # of a mixture: how many; of the features; a mistake's weight beside them
ALARM = 25.0  # points; without a shortcut, on other seeds of the book's data, up to 24


class Slice(NamedTuple):
    """Part of a class, and how it does on the half that it was not learned from. Percent."""

    way: str
    label: int
    rows: Tensor  # int64, all rows in it, those it was learned from included; most typical first
    n: int  # of them judged
    error: float
    rest: float  # error of the rest of the class
    low: float  # 95% interval of error - rest, over all slices judged
    high: float
    announced: float = 0.0  # the gap that the model's confidence (1 - largest probability) would give, of all rows

    @property
    def gap(self) -> float:
        return self.error - self.rest

    @property
    def alarm(self) -> bool:
        return self.low - self.announced >= ALARM


def find_slices(z: Tensor, y: Tensor, logits: Tensor, *, seed: int = 0) -> list[Slice]:
    """Slices of every class, those that fail for sure first.

    Args:
        z: float (N, D), features, scaled alike; y: int64 (N,); logits: float (N, C), the model's answers.
        seed: of the halves and of the mixtures.

    Returns:
        an empty list where the model makes too few mistakes to learn from.

    Raises:
        CamlError: constant features, a single class, logits of another shape.
    """
    classes, alike = y.unique().tolist(), bool((z == z[:1]).all())
    if len(classes) < 2 or logits.shape[:1] != y.shape or alike:
        what = f"{len(y)} labels of {len(classes)} classes, logits {tuple(logits.shape)}, features all alike: {alike}"
        remedy = "check the data and the layer that features are taken from"
        raise CamlError(what, "two classes or more, and features that vary", remedy)
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    learn = torch.zeros(len(y), dtype=torch.bool)
    learn[halves(y, generator)[0]] = True
    wrong, against = logits.argmax(dim=1) != y, environments(logits, y)
    found: list[tuple[str, int, Tensor, Tensor]] = []  # way, label, rows, how typical
    for label in classes:
        rows = (y == label).nonzero().flatten()
        x, half, target = z[rows].double().numpy(), learn[rows].numpy(), against[rows].numpy()
        if min(target[half].sum(), (~target[half]).sum()) < FEWEST:
            continue
        rule = LogisticRegression(C=1e-3, class_weight="balanced", max_iter=500).fit(x[half], target[half])
        found.append(("mistakes", label, rows, torch.from_numpy(rule.decision_function(x))))
        for share in _mixture(x, half, wrong[rows].numpy(), seed).T:
            found.append(("mixture", label, rows, torch.from_numpy(share - 0.5)))
    judged, doubt = [], 100 * (1 - logits.double().softmax(dim=1).amax(dim=1))
    for way, label, rows, score in found:
        inside, held = score > 0, ~learn[rows]
        counts = [(int(wrong[rows][part & held].sum()), int((part & held).sum())) for part in (inside, ~inside)]
        if min(n for _, n in counts) >= FEWEST:
            order = rows[inside][score[inside].argsort(descending=True, stable=True)]
            gap = float(doubt[rows[inside]].mean() - doubt[rows[~inside]].mean())
            judged.append((way, label, order, counts, gap))
    quantile = float(stats.norm.ppf(1 - 0.025 / max(1, len(judged))))
    slices = [Slice(way, label, order, n[0][1], *_gap(n, quantile), gap) for way, label, order, n, gap in judged]
    return sorted(slices, key=lambda one: -one.low)


def _mixture(x: np.ndarray, half: np.ndarray, wrong: np.ndarray, seed: int) -> np.ndarray:
    """Shares of the parts in every example, float (n, PARTS), by features alone."""
    k = min(DIMENSIONS, *x[half].shape)
    reduced = PCA(k, random_state=seed).fit(x[half]).transform(x)
    reduced = reduced / reduced[half].std()
    joint = np.c_[reduced[half], MISTAKES * wrong[half]]
    both = GaussianMixture(PARTS, covariance_type="diag", reg_covar=1e-2, n_init=3, random_state=seed).fit(joint)
    alone = GaussianMixture(PARTS, covariance_type="diag")
    alone.weights_, alone.means_ = both.weights_, both.means_[:, :k]
    alone.covariances_ = both.covariances_[:, :k]
    alone.precisions_cholesky_ = 1 / np.sqrt(alone.covariances_)
    shares: np.ndarray = alone.predict_proba(reduced)
    return shares


def _gap(counts: list[tuple[int, int]], quantile: float) -> tuple[float, float, float, float]:
    """Errors of a slice and of the rest, and the interval of their difference (Newcombe's from Wilson's), percent."""
    (p, p_low, p_high), (q, q_low, q_high) = ((100 * k / n, *wilson(k, n, quantile)) for k, n in counts)
    return p, q, p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)
