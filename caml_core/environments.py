"""A validation split whose groups nobody labelled: what rules that look at the worst group then look at."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from caml_core.groups import GroupDataset
from caml_core.last_layer import Head

ValGroups = Literal["inferred", "classes"]


def environments(logits: Tensor, y: Tensor) -> Tensor:
    """Which of two environments an example is in, by EIIL (Creager et al., arXiv 2010.07249): bool (N,).

    EIIL gives example i the shares q_i and 1 - q_i such that a reference, with its logits (N, C), breaks invariance
    most: it maximises (sum q d)^2 + (sum (1 - q) d)^2, with d_i the derivative of its cross-entropy by a scale of all
    logits, at 1. This is convex in sum q d, so the maximum is at an end: positive d here, negative there. With two
    classes that parts the reference's errors from the rest. (Ours: the maximum; the authors climb from random q.)
    """
    logits = logits.double()
    return (logits.softmax(dim=1) * logits).sum(dim=1) > logits.gather(1, y[:, None])[:, 0]


def regrouped(val: GroupDataset, reference: Head, how: ValGroups) -> GroupDataset:
    """The split with other attributes: `inferred` environments, as EVaLS has them, or a single one: the `classes`."""
    names, a = ["any"], torch.zeros_like(val.y)
    if how == "inferred":
        names, a = ["as expected", "against it"], environments(reference.logits(val.x), val.y)
    rare = torch.ones(len(val.class_names), len(names))  # which of them are a minority, nobody said
    return GroupDataset(
        val.x, val.y, a, class_names=val.class_names, attribute_names=names, majority=rare, index=val.index
    )
