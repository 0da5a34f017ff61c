"""Audit: what does a model lean on? Groups where the attribute is known, slices always, as a page and a record."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset, Splits
from caml_core.last_layer import Head, erm_head
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.own.slices import ALARM, Slice, find_slices
from caml_core.runs.records import Record, provenance
from caml_core.runs.run import head_of

FEWEST = 40  # pictures to look for slices in


class Audited(NamedTuple):
    """What an audit looked at and found; features are standardised on the training split, and so is the head."""

    pictures: Splits
    features: tuple[GroupDataset, GroupDataset]  # training, validation
    network: Backbone | None  # None: the data were features
    head: Head
    logits: Tensor  # float (N, C), of the validation split
    slices: list[Slice]
    raw: Tensor  # float (N, D), training features as the network makes them
    seed: int

    @property
    def alarms(self) -> list[Slice]:
        return [one for one in self.slices if one.alarm]

    @property
    def knows_groups(self) -> bool:
        return len(self.pictures[1].attribute_names) > 1


def audit(splits: Splits, network: Backbone | None = None, *, own_head: bool = True, seed: int = 0) -> Audited:
    """Look for parts of the validation split on which a model fails.

    Args:
        splits: training, validation, test; pictures, or features. The attribute is not looked at.
        network: the model; None: a new head on an EfficientNet-Lite0 that has seen ImageNet only, or on the features.
        own_head: judge the network's own head; else a new one on its features.

    Raises:
        CamlError: a head of other classes, too few pictures, and what `find_slices` refuses.
    """
    train, val, _ = splits
    if len(val) < FEWEST:
        what = f"{len(val)} validation pictures"
        raise CamlError(
            what, f"{FEWEST} or more, to learn from one half and to judge on the other", "give more pictures"
        )
    if network is None and val.x.ndim == 4:
        network, own_head = backbone("efficientnet_lite0", len(val.class_names), seed=seed), False
    if network is not None:
        if network.head.out_features != len(val.class_names):
            what = f"a model of {network.head.out_features} classes for {', '.join(val.class_names)}"
            raise CamlError(what, f"{len(val.class_names)} outputs, in this order", "check the model, or the labels")
        train, val = (_features(network, split) for split in (train, val))
    raw = train.x
    train, val = standardise(train, val)
    if network is not None and own_head:
        head = head_of(network, raw, standardised=True)
    else:
        head = erm_head(train, val, seed=seed)
    logits = head.logits(val.x)
    slices = find_slices(val.x, val.y, logits, seed=seed)
    return Audited(splits, (train, val), network, head, logits, slices, raw, seed)


def _features(network: Backbone, split: GroupDataset) -> GroupDataset:
    """By ONNX Runtime where it knows the layers, three times as fast; else by PyTorch."""
    try:
        return extract_features(network, split, torch.device("cpu"), engine="onnx")
    except CamlError:
        return extract_features(network, split, torch.device("cpu"))


def verdict(found: Audited) -> str:
    """The result in one sentence."""
    names = found.pictures[1].class_names
    if found.alarms:
        one = found.alarms[0]
        said = f"{one.error:.0f}% errors there, {one.rest:.0f}% in the rest of the class"
        sure = f"{one.low:.0f} to {one.high:.0f} points, {len(found.slices)} parts were judged"
        return f"Part of {names[one.label]} fails: {said} (difference {sure})."
    if not found.slices:
        return "Too few mistakes to learn from: no shortcut was found in what you gave, and none could have been."
    return f"No shortcut found in what you gave: no part of a class is worse than announced by {ALARM:.0f} points."


def record_of(found: Audited, command: str, seconds: float) -> Record:
    """What was found, as JSON with its provenance."""
    val = found.pictures[1]
    metrics: dict[str, Any] = group_metrics(found.logits, val, found.pictures[0].group_counts)
    slices = [
        {"way": one.way, "class": val.class_names[one.label], "n": one.n, "error": one.error, "rest": one.rest,
         "low": one.low, "high": one.high, "announced": one.announced, "alarm": one.alarm, "rows": one.rows.tolist()}
        for one in found.slices
    ]  # fmt: skip
    return {
        "method": "audit",
        "dataset": val.source or "features",
        "seed": found.seed,
        "metrics": metrics if found.knows_groups else {"average": metrics["average"]},
        "slices": slices,
        "verdict": verdict(found),
        "config": {"classes": list(val.class_names), "counts": [len(split) for split in found.pictures]},
        "provenance": provenance(torch.device("cpu"), seconds, command),
    }


@torch.no_grad()
def occlusion(network: Backbone, x: Tensor, label: int, cells: int = 7) -> Tensor:
    """How much the logit margin of `label` falls when a cell of the picture is grey: float (cells, cells).

    Args:
        x: uint8 (3, H, W).
    """
    size = [-(-side // cells) for side in x.shape[1:]]
    covered = x.repeat(cells * cells + 1, 1, 1, 1)
    for k in range(cells * cells):
        top, left = k // cells * size[0], k % cells * size[1]
        covered[k, :, top : top + size[0], left : left + size[1]] = 128
    logits = network.eval()(covered)
    others = logits.masked_fill(F.one_hot(torch.tensor(label), logits.shape[1]).bool(), -torch.inf)
    margin = logits[:, label] - others.amax(dim=1)
    return (margin[-1] - margin[:-1]).view(cells, cells)


def neighbours(split: GroupDataset, z: Tensor, n: int = 4) -> Tensor:
    """Rows of a split of features that lie nearest to z (D,), by cosine: int64 (n,)."""
    return F.cosine_similarity(split.x, z[None]).topk(n).indices
