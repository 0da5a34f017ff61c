"""Runs of the command line on frozen features: extract them once, then train a head, or run HSFM or DaC."""

from __future__ import annotations

import dataclasses
import inspect
import time
from typing import Any

import torch

from caml_core.backbones import Backbone
from caml_core.dac import dac
from caml_core.data.dataset import GroupDataset
from caml_core.erm import train_erm
from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.heads import HEADS, Head, erm_head
from caml_core.hsfm import PUBLISHED, Settings, hsfm, scaled
from caml_core.loader import random_shift
from caml_core.metrics import group_metrics
from caml_core.store import cache_dir, hash_state

NOT_SETTINGS = ("published", "scaled", "val_labels", "train_backbone")  # options that are no argument of a method


def settings(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the record: what was given on the command line, over the method's defaults.

    Raises:
        CamlError: a setting out of range (HSFM; the other methods look at theirs when they run).
    """
    if method == "hsfm":
        more = {"published": given.get("published", "dominoes"), "scaled": given.get("scaled", False)}
        more |= {name: given[name] for name in ("train_backbone",) if name in given}
        return {**dataclasses.asdict(hsfm_settings(given)), **more, "val_labels": given.get("val_labels")}
    known = inspect.signature({**HEADS, "dac": dac}[method]).parameters.values()
    defaults = {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "device")}
    return {**defaults, "val_labels": None, **given}


def hsfm_settings(given: dict[str, Any], features: torch.Tensor | None = None) -> Settings:
    """Published settings (scaled to `features` where --scaled asks for it), then what was given.

    Raises:
        CamlError: an unknown published name, a setting out of range.
    """
    name = given.get("published", "dominoes")
    if name not in PUBLISHED:
        raise CamlError(
            what=f"--published {name}",
            expected="one of " + ", ".join(PUBLISHED),
            remedy="check the spelling; single settings can be given beside it",
        )
    base = scaled(PUBLISHED[name], features) if given.get("scaled") and features is not None else PUBLISHED[name]
    own = {name: value for name, value in given.items() if name not in (*NOT_SETTINGS, "inner_steps")}
    if "inner_steps" in given:
        own["steps"] = given["inner_steps"]
    return dataclasses.replace(base, **own)


def run_head(
    method: str,
    given: dict[str, Any],
    splits: tuple[GroupDataset, GroupDataset, GroupDataset],
    network: Backbone,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Train one head and score it on the test split.

    Args:
        method: "hsfm", "dac" or a name of `caml_core.heads.HEADS`.
        given: options given on the command line.
        splits: images (or whatever `network` takes).

    Returns:
        `metrics`, `selection`, `train_seconds` (of the method alone: features are in memory, and HSFM has its ERM
        head; DaC trains one and makes features of new images), and for HSFM `settings` as used and `history`.
    """
    if given.get("train_backbone") is not None:
        train_backbone(network, splits[0], splits[1], given["train_backbone"], seed, device)
    raw = [extract_features(network, split, device) for split in splits]
    if given.get("val_labels") is not None:
        raw[1] = keep_labels(raw[1], given["val_labels"], seed)
    train, val, test = standardise(*raw)
    own = {name: value for name, value in given.items() if name not in NOT_SETTINGS}
    if method == "hsfm":
        erm = erm_head(train, val, seed=seed, device=device)
        start = time.perf_counter()
        head, more = _hsfm(train, val, erm, hsfm_settings(given, train.x), seed, device)
    elif method == "dac":
        start = time.perf_counter()
        head, more = dac(network, splits[0], raw[0], raw[1], seed=seed, device=device, **own), {}
    else:
        start = time.perf_counter()
        head, more = HEADS[method](train, val, seed=seed, device=device, **own), {}
    return {
        "metrics": group_metrics(head.logits(test.x), test, train.group_counts),
        "selection": {"split": "validation", **head.chosen},
        "train_seconds": round(time.perf_counter() - start, 2),
        **more,
    }


def train_backbone(
    network: Backbone, train: GroupDataset, val: GroupDataset, epochs: int, seed: int, device: torch.device
) -> None:
    """Train the whole network by ERM, in place. Done once: its checkpoint stays in the user's cache for other methods.

    Raises:
        CamlError: see `caml_core.erm.train_erm`.
    """
    start = hash_state(network.state_dict())[:16]
    name = f"{start}-{train.content_hash()[:16]}-{val.content_hash()[:16]}-{seed}-{epochs}-{device.type}.safetensors"
    train_erm(
        network,
        train,
        val,
        epochs=epochs,
        seed=seed,
        device=device,
        augment=random_shift if train.x.ndim == 4 else None,
        checkpoint=cache_dir() / "erm" / name,
    )


def _hsfm(
    train: GroupDataset, val: GroupDataset, erm: Head, how: Settings, seed: int, device: torch.device
) -> tuple[Head, dict[str, Any]]:
    edits = hsfm(train, val, erm.weight, erm.bias, how, seeds=[seed], device=device)
    rule = f"best validation {how.select} among epochs whose average clearly beats chance"
    history = [
        {
            "epoch": epoch,
            "val_worst_group": float(groups[0][~groups[0].isnan()].min()),
            "val_average": float(average[0]),
            "hard_loss": None if epoch == 0 else float(edits.loss[epoch - 1, 0]),
        }
        for epoch, (groups, average) in enumerate(zip(edits.accuracy, edits.average))
    ]
    chosen = {"rule": rule, "epoch": int(edits.epoch[0])}
    head = Head(edits.weight[0].cpu(), edits.bias[0].cpu(), chosen)
    return head, {"settings": dataclasses.asdict(how), "history": history}


def keep_labels(val: GroupDataset, n: int, seed: int) -> GroupDataset:
    """A random part of the validation split with the classes in their proportions, smaller parts inside larger ones.

    Raises:
        CamlError: n leaves a class without examples, or is more than there are.
    """
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(val), dtype=torch.float64)  # how far down the list of its class an example stands, 0..1
    for label in range(len(val.class_names)):
        rows = order[val.y[order] == label]
        place[rows] = (torch.arange(len(rows)) + 0.5).double() / len(rows)
    part = val.subset(place.argsort(stable=True)[: max(n, 0)].sort().values)
    if n > len(val) or int(torch.bincount(part.y, minlength=len(val.class_names)).min()) == 0:
        raise CamlError(
            what=f"--val-labels {n} of {len(val)} validation examples",
            expected="some of every class, and no more than there are",
            remedy="change --val-labels",
        )
    return part
