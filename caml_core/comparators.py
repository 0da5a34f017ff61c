"""Comparators beside DFR and HSFM: six more ways to retrain the linear head of a frozen backbone.

None trains on group labels (but `reweight` and `crt`, with `by="group"`); all choose on the validation split, whose
groups may be inferred (`caml_core.environments`). Each docstring says what could be read and what is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    Read, in abstract and code: that. Ours: the grids, steps of 0.02 (theirs: 1,000 of 0.01).
    """
    erm = erm_head(train, val, seed=seed, device=device)
    x, logits = train.x.double(), erm.logits(train.x).double()
    p, heads = logits.softmax(dim=1).gather(1, train.y[:, None])[:, 0], []
    for gamma in gammas:
        weights = (-gamma * p).softmax(dim=0)
        centred = x - weights @ x
        basis = torch.linalg.eigh((weights[:, None] * centred).T @ centred).eigenvectors.flip(1)  # largest first
        for rank in ranks:
            v = basis[:, :rank]
            z, a = x @ v, torch.zeros(v.shape[1], logits.shape[1], dtype=x.dtype, requires_grad=True)
            opt = torch.optim.Adam([a], lr=0.02)
            for step in range(1, max(steps) + 1):
                opt.zero_grad(set_to_none=True)
                (weights @ F.cross_entropy(logits + z @ a, train.y, reduction="none")).backward()
                opt.step()
                if step in steps:
                    weight = erm.weight + (v @ a.detach()).T.to(erm.weight.dtype)
                    heads.append(_chosen(erm._replace(weight=weight), select, gamma=gamma, rank=rank, steps=step))
    return best_of(heads, val, select)


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
    is trained further, classes weighted alike; the other half chooses. Read, in abstract and code: that and n. Ours:
    what stops early is a head, too, `early` epochs of `descend` from zero; an epoch is chosen, not their step sizes.
    """
    used, held = _halved(train, val, seed)
    erm, heads = erm_head(train, held, seed=seed, device=device), []
    full = erm.logits(used.x).double().log_softmax(dim=1)
    for stop in early:
        stopped = descend(train, held, None, epochs=stop, select="last", device=device)
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

    Of each class in one half of the validation split, the k with the highest and the k with the lowest loss under the
    ERM head get an L1 logistic regression; the other half chooses k and the penalty, in the paper by inferred groups
    (`--val-groups inferred`; by labelled ones this is its EVaLS-GL). Read, in abstract and code: that. Ours: liblinear
    in place of Adam from the ERM head; the grids.
    """
    used, held = _halved(train, val, seed)
    erm, heads = erm_head(train, held, seed=seed, device=device), []
    losses = F.cross_entropy(erm.logits(used.x).double(), used.y, reduction="none")
    order = losses.argsort(stable=True)
    orders = [order[used.y[order] == c] for c in range(len(used.class_names))]
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
    Read, in a summary of the paper: that, and the threshold 0 in every class. Ours, since features with a sign are
    hardly ever high in every class: also in any class, with thresholds in standard deviations; validation chooses.
    """
    erm, scores, heads = erm_head(train, val, seed=seed, device=device), [], []
    right = erm.logits(val.x).argmax(dim=1) == val.y
    for c in range(len(val.class_names)):
        wrong, well = (val.x[(val.y == c) & part].numpy() for part in (~right, right))
        if min(len(wrong), len(well)) == 0:
            what = f"{len(wrong)} wrong and {len(well)} right answers of the ERM head in a class"
            raise CamlError(what, "some of both, to compare", "give more validation examples")
        scores.append(torch.from_numpy(np.median(wrong, axis=0) - np.median(well, axis=0)))
    for mutes, threshold in (("every class", 0.0), *(("any class", t) for t in thresholds)):
        above = torch.stack(scores) > threshold
        muted = above.all(dim=0) if mutes == "every class" else above.any(dim=0)
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


def _halved(train: GroupDataset, val: GroupDataset, seed: int) -> list[GroupDataset]:
    """Two random halves of every class of the validation split, one to train on and one to choose by."""
    check_features(train, val)
    return [val.subset(rows) for rows in halves(val.y, torch.Generator().manual_seed(stream_seed(seed, 0)))]
