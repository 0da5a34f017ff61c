"""Comparators beside DFR and HSFM: six more ways to retrain the linear head of a frozen backbone.

| method | what the head is trained on | group labels to train | to choose |
|:--|:--|:--|:--|
| `reweight`, `crt` | training, classes (or groups) weighted alike, or drawn alike | none (training) | validation |
| `leia` | training, errors weighted up, moving a few directions of the ERM head only | none | validation |
| `self_head` | validation examples on which the ERM head and an early one differ | none | validation |
| `evals` | as many validation examples of high loss as of low loss | none | validation |
| `neurontune` | training, without the features that are off where the ERM head errs | none | validation |

To choose by, the groups may be inferred (`caml_core.environments`). Inputs and errors are those of `caml_core.heads`.
Each docstring says what could be read and what is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import MinLen
from pydantic import PositiveInt
from torch import Tensor

from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.heads import HEADS, shares
from caml_core.last_layer import Device, Head, best_of, descend, erm_head, halves, l1_logistic, noted
from caml_core.linear import check_features
from caml_core.loader import odds_of
from caml_core.metrics import Rule

By = Literal["class", "group"]
Counts = Annotated[Sequence[PositiveInt], MinLen(1)]


def reweight(
    train: GroupDataset, val: GroupDataset, *, device: Device = None, by: By = "class", select: Rule = "worst_group"
) -> Head:
    """ReWeight of SubpopBench (Yang et al., arXiv 2302.12254): weights go with one over the size of a class or group.

    Read: the weights, in its code, where all of a network is trained. On a frozen one `by="group"` is `balanced_head`.
    """
    return descend(train, val, _inverse(train, by).to, select=select, device=device)


def crt(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    by: By = "class",
    select: Rule = "worst_group",
) -> Head:
    """Classifier retraining (Kang et al., arXiv 1910.09217; CRT of SubpopBench): a new last layer on balanced samples.
    Read: frozen features, balanced sampling. Ours: one draw of the size of the split, and the steps of `erm_head`.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    rows = torch.multinomial(_inverse(train, by), len(train), replacement=True, generator=generator)
    return erm_head(train.subset(rows), val, seed=seed, device=device, select=select)


def leia(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    ranks: Counts = (1, 4, 16, 64),
    gammas: Sequence[float] = (1, 2, 5, 10),
    steps: Counts = (20, 200),
    select: Rule = "worst_group",
) -> Head:
    """LEIA (Gourabathina et al., arXiv 2602.06924): correct the ERM head's logits where its errors spread.

    With w_i ~ exp(gamma (1 - p_i)), p_i the probability of the right label, V holds the first eigenvectors of the
    covariance weighted by w. The logits become W z + b + A' V' z; only A is trained, on the loss weighted by w.

    Read: that, in the abstract and the authors' code. Ours: the grids, steps of 0.02 (theirs: 1,000 of 0.01).
    """
    erm = erm_head(train, val, seed=seed, device=device)
    x, logits = train.x.double(), erm.logits(train.x).double()
    p = logits.softmax(dim=1).gather(1, train.y[:, None])[:, 0]
    heads = []
    for gamma in gammas:
        weights = (-gamma * p).softmax(dim=0)
        centred = x - weights @ x
        basis = torch.linalg.eigh((weights[:, None] * centred).T @ centred).eigenvectors.flip(1)  # largest first
        for rank in ranks:
            for n, a in _adjustments(logits, x @ basis[:, :rank], train.y, weights, steps):
                weight = erm.weight + (basis[:, :rank] @ a).T.to(erm.weight.dtype)
                heads.append(_chosen(erm._replace(weight=weight), select, gamma=gamma, rank=rank, steps=n))
    return best_of(heads, val, select)


def _adjustments(
    logits: Tensor, z: Tensor, y: Tensor, weights: Tensor, steps: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """A after so many steps, float64 (k, C): added to the logits (N, C) as z A, it lowers their weighted loss."""
    a = torch.zeros(z.shape[1], logits.shape[1], dtype=z.dtype, requires_grad=True)
    opt = torch.optim.Adam([a], lr=0.02)
    for step in range(1, max(steps) + 1):
        loss = weights @ F.cross_entropy(logits + z @ a, y, reduction="none")
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step in steps:
            yield step, a.detach().clone()


def self_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    early: Counts = (1, 2, 5),
    sizes: Counts = (20, 100, 500),
    select: Rule = "worst_group",
) -> Head:
    """SELF (LaBonte et al., arXiv 2309.08534): finetune the head where it differs from an early-stopped one.

    On the n examples of one half of the validation split where the two are furthest apart, KL(ERM, early), the ERM head
    is trained further, classes weighted alike; the other half chooses.

    Read: that and n, in the abstract and the authors' code. Ours: what stops early is a head, too, `early` epochs of
    `descend` from zero; an epoch is chosen in place of their step sizes.
    """
    used, held = _halved(train, val, seed)
    erm = erm_head(train, held, seed=seed, device=device)
    even = torch.full((len(train),), 1 / len(train), dtype=train.x.dtype)
    full = erm.logits(used.x).double().log_softmax(dim=1)
    heads = []
    for stop in early:
        stopped = descend(train, held, even.to, epochs=stop, select="last", device=device)
        apart = (full.exp() * (full - stopped.logits(used.x).double().log_softmax(dim=1))).sum(dim=1)
        order = apart.argsort(descending=True, stable=True)
        for size in sizes:
            part = used.subset(order[:size].sort().values)
            head = descend(part, held, _inverse(part).to, start=erm, select=select, device=device)
            heads.append(noted(head, early=stop, size=len(part)))
    return best_of(heads, held, select)


def evals(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    sizes: Counts = (10, 20, 50, 100, 200),
    c_grid: Sequence[float] = (1.0, 0.3, 0.1, 0.03),
    select: Rule = "worst_group",
) -> Head:
    """EVaLS (Ghaznavi et al., arXiv 2410.05345): retrain the head on as many examples of high as of low loss.

    On one half of the validation split, the k examples of each class with the highest and the k with the lowest loss
    under the ERM head get an L1 logistic regression; the other half chooses k and the penalty. The paper chooses by
    environments that EIIL infers (`--val-groups inferred`); with labelled groups this is its EVaLS-GL.

    Read: that, in the abstract and the authors' code. Ours: liblinear in place of Adam from the ERM head; the grids.
    """
    used, held = _halved(train, val, seed)
    erm = erm_head(train, held, seed=seed, device=device)
    losses = F.cross_entropy(erm.logits(used.x).double(), used.y, reduction="none")
    orders = [rows[losses[rows].argsort(stable=True)] for rows in _by_class(used)]
    heads = []
    for size in sorted({min(size, *(len(order) // 2 for order in orders)) for size in sizes}):
        ends = [torch.cat([order[:size], order[len(order) - size :]]) for order in orders]
        part = used.subset(torch.cat(ends).sort().values)
        heads += [_chosen(l1_logistic(part, c, seed), select, size=size, C=c) for c in c_grid]
    return best_of(heads, held, select)


def neurontune(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    thresholds: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
    select: Rule = "worst_group",
) -> Head:
    """NeuronTune (Zheng et al., arXiv 2505.24048): mute the features that are high where the ERM head errs; retrain.

    The score of a feature in a class: its median over the validation examples that the ERM head gets wrong, less that
    over those it gets right. Features whose score is above a threshold are set to 0; classes are weighted alike.

    Read, in a summary of the paper: that, and the threshold 0 in every class. Features with a sign are hardly ever high
    in every class; so any class is offered, too, with thresholds in standard deviations, and validation chooses.
    """
    erm, scores = erm_head(train, val, seed=seed, device=device), []
    right = erm.logits(val.x).argmax(dim=1) == val.y
    for rows in _by_class(val):
        wrong, well = val.x[rows[~right[rows]]].numpy(), val.x[rows[right[rows]]].numpy()
        if min(len(wrong), len(well)) == 0:
            what = f"{len(wrong)} wrong and {len(well)} right answers of the ERM head in a class"
            raise CamlError(what, "some of both, to compare", "give more validation examples")
        scores.append(torch.from_numpy(np.median(wrong, axis=0) - np.median(well, axis=0)))
    score, heads = torch.stack(scores), []
    for mutes, threshold in (("every class", 0.0), *(("any class", t) for t in thresholds)):
        muted = (score > threshold).all(dim=0) if mutes == "every class" else (score > threshold).any(dim=0)
        quiet, quiet_val = (split.with_x(split.x * ~muted) for split in (train, val))
        head = descend(quiet, quiet_val, _inverse(train).to, select=select, device=device)
        heads.append(noted(head, above=f"{threshold} in {mutes}", muted=int(muted.sum())))
    return best_of(heads, val, select)


NAMES = ("reweight", "crt", "leia", "self", "evals", "neurontune")  # on the command line
COMPARATORS: dict[str, Callable[..., Head]] = dict(zip(NAMES, (reweight, crt, leia, self_head, evals, neurontune)))
ON_FEATURES = {**HEADS, **COMPARATORS}


def _inverse(split: GroupDataset, by: By = "class") -> Tensor:
    """One over the size of each example's class or group, float64 (N,), with sum 1."""
    return shares(odds_of(split.y if by == "class" else split.group))


def _chosen(head: Head, select: Rule, **how: float) -> Head:
    return noted(head, rule=f"{' and '.join(how)} with the best validation {select}", **how)


def _by_class(split: GroupDataset) -> list[Tensor]:
    return [(split.y == c).nonzero().flatten() for c in range(len(split.class_names))]


def _halved(train: GroupDataset, val: GroupDataset, seed: int) -> list[GroupDataset]:
    """Two random halves of every class of the validation split, one to train on and one to choose by."""
    check_features(train, val)
    return [val.subset(rows) for rows in halves(val.y, torch.Generator().manual_seed(stream_seed(seed, 0)))]
