"""One run: load the data, train by a method, score on the test split, and say in a record how that came about."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from caml_core.active import run_active
from caml_core.comparators import ON_FEATURES
from caml_core.dac import dac
from caml_core.environments import regrouped
from caml_core.errors import CamlError
from caml_core.features import extract_features, predict, standardise
from caml_core.groups import GroupDataset
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED, Settings, scaled
from caml_core.last_layer import Head, erm_head
from caml_core.loader import random_shift
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.runs.identity import REVISION, content_hash
from caml_core.runs.records import Record, provenance
from caml_core.runs.settings import Data, ErmRun, Frozen, Hsfm, Method, Rounds, config, of_record, words
from caml_core.store import cache_dir, hash_state
from caml_core.training import Erm, train_erm

Splits = tuple[GroupDataset, GroupDataset, GroupDataset]
CURVES = ("average", "worst_group", "minority", "majority")


def run(
    method: Method,
    data: Data,
    seed: int,
    *,
    device: torch.device | None = None,
    data_dir: Path | None = None,
    work: Path | None = None,
    seller: Record | None = None,
    place: Sequence[str] = (),
) -> Record:
    """Make one run.

    Args:
        data_dir: folder of datasets, in place of `CAML_DATA`.
        work: folder for checkpoints, from which the same call goes on.
        seller: record of a run in rounds on the same pool: its labels are bought again, and trained on are the last
            round's only.
        place: words that end the command in the record: where it ran, what it bought.

    Returns:
        Its record: metrics on the test split, the chosen epoch, `rounds` or `history`, settings, data, provenance.

    Raises:
        CamlError: data that cannot be loaded, a seller with another pool, whatever the method refuses.
    """
    device, start = device or torch.device("cpu"), time.perf_counter()
    splits = data.load(seed, data_dir)
    content = content_hash(splits)
    augment = random_shift if getattr(method, "augment", "") == "shift" and splits[0].x.ndim == 4 else None

    def network() -> Backbone:
        width = splits[0].x.shape[1] if splits[0].x.ndim == 2 else None
        pretrained, n_classes = False if method.from_scratch else None, len(splits[0].class_names)
        return backbone(method.backbone, n_classes, pretrained=pretrained, n_inputs=width, seed=seed)

    if isinstance(method, Rounds):
        queries = None if seller is None else bought(seller, method, data, content)
        first = 0 if queries is None else len(queries)
        how: dict[str, Any] = {"seed": seed, "device": device, "augment": augment, "work": work}
        results = _summed_up(run_active(network, *splits, method, queries=queries, first_round=first, **how))
    elif isinstance(method, ErmRun):
        checkpoint = work / "erm.safetensors" if work else None
        results = _erm(method, splits, network(), seed=seed, device=device, augment=augment, checkpoint=checkpoint)
    elif isinstance(method, Frozen):
        results = _head(method, splits, network(), seed, device)
    counts = dict(zip(splits[0].group_names, splits[0].group_counts.tolist()))
    command = shlex.join(["python", "-m", "caml_core", *words(method, data), "--seed", str(seed), *place])
    return {
        "revision": REVISION[method.method],
        "method": method.method,
        "dataset": data.dataset,
        "seed": seed,
        **results,
        "config": json.loads(json.dumps(config(method, data), default=str)),
        "data": {"source": splits[0].source, "train_groups": counts, "content": content},
        "provenance": provenance(device, time.perf_counter() - start, command),
    }


def pool(method: Method, data: Data) -> dict[str, Any]:
    """What decides which labels there are to buy, and how many: only where it is equal can runs buy the same."""
    plan = {key: getattr(method, key, None) for key in ("start", "query", "rounds")}
    return json.loads(json.dumps({**dataclasses.asdict(data), **plan}, default=str))


def bought(seller: Record, method: Method, data: Data, content: str) -> list[list[int]]:
    """The rows that another run chose by itself, round by round.

    Raises:
        CamlError: it chose from another pool, or bought them itself.
    """
    mine, other = pool(method, data), pool(*of_record(seller))
    differ = [key for key in mine if mine[key] != other[key]]
    differ += [] if seller.get("data", {}).get("content", content) == content else ["content"]
    if differ or len(seller["rounds"]) < 2:
        raise CamlError(
            what=f"labels of {seller['method']} (seed {seller['seed']}) are not from the same pool: other "
            + ", ".join(differ or ["rounds"]),
            expected="rounds that chose by themselves, with the same dataset, rho, options, start, query and rounds",
            remedy="run the acquisition first, for example: run append --dataset ... --out FILE.json",
        )
    return [step["queried"] for step in seller["rounds"][1:]]


def _summed_up(rounds: list[Record]) -> Record:
    """A record's part on the rounds: groups of the last one only."""
    metrics = rounds[-1]["metrics"]
    for step in rounds:
        step["metrics"] = {key: value for key, value in step["metrics"].items() if key != "groups"}
    seconds = round(sum(step["seconds"] for step in rounds), 2)
    return {"metrics": metrics, "selection": rounds[-1]["selection"], "rounds": rounds, "train_seconds": seconds}


def _erm(method: ErmRun, splits: Splits, network: Backbone, device: torch.device, **how: Any) -> Record:
    """ERM of the whole network, or of its head."""
    train, val, test = splits
    part: torch.nn.Module = network
    if method.head_only:
        train, val, test = standardise(*(extract_features(network, split, device) for split in splits))
        part, how["augment"] = network.head, None
    done = train_erm(part, train, val, method, device=device, **how)
    history = [
        {**{k: v for k, v in epoch.items() if k != "val"}, **{f"val_{k}": epoch["val"][k]["value"] for k in CURVES}}
        for epoch in done.history
    ]
    return {
        "metrics": group_metrics(predict(part, test, device), test, train.group_counts),
        "selection": {"split": "validation", "rule": done.rule, "epoch": done.best_epoch},
        "history": history,
        "train_seconds": round(done.seconds, 2),
    }


def _head(method: Frozen, splits: Splits, network: Backbone, seed: int, device: torch.device) -> Record:
    """A linear head on frozen features; seconds are those of the method alone, with features in memory."""
    if method.train_backbone is not None:
        train_backbone(network, splits[0], splits[1], method.train_backbone, seed, device)
    raw = [extract_features(network, split, device) for split in splits]
    if method.val_labels is not None:
        raw[1] = keep_labels(raw[1], method.val_labels, seed)
    train, val, test = standardise(*raw)
    if method.val_groups is not None:
        val = regrouped(val, erm_head(train, val, seed=seed, device=device), method.val_groups)
        raw[1] = val.with_x(raw[1].x)
    shared = {field.name for field in dataclasses.fields(Frozen)}
    own = {key: value for key, value in dataclasses.asdict(method).items() if key not in shared}
    more: Record = {}
    start = time.perf_counter()
    if isinstance(method, Hsfm):
        erm = erm_head(train, val, seed=seed, device=device)
        start = time.perf_counter()
        head, more = _hsfm(train, val, erm, _settings(method, train.x), seed, device)
    elif method.method == "dac":
        head = dac(network, splits[0], raw[0], raw[1], seed=seed, device=device, **own)
    else:
        train_head = ON_FEATURES[method.method]
        takes = inspect.signature(train_head).parameters
        own |= {key: value for key, value in {"seed": seed, "device": device}.items() if key in takes}
        head = train_head(train, val, **own)
    return {
        "metrics": group_metrics(head.logits(test.x), test, train.group_counts),
        "selection": {"split": "validation", **head.chosen},
        "train_seconds": round(time.perf_counter() - start, 2),
        **more,
    }


def _settings(method: Hsfm, features: torch.Tensor) -> Settings:
    """Those of HSFM as used: published ones are scaled where that is asked for, others are taken as they are."""
    base = PUBLISHED[method.published]
    fit = scaled(base, features) if method.scaled else base
    given = {field.name: getattr(method, field.name) for field in dataclasses.fields(base)}
    changed = {name: value for name, value in given.items() if value != getattr(base, name)}
    return dataclasses.replace(fit, **changed)


def _hsfm(
    train: GroupDataset, val: GroupDataset, erm: Head, how: Settings, seed: int, device: torch.device
) -> tuple[Head, Record]:
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
    head = Head(edits.weight[0].cpu(), edits.bias[0].cpu(), {"rule": rule, "epoch": int(edits.epoch[0])})
    return head, {"settings": dataclasses.asdict(how), "history": history}


def train_backbone(
    network: Backbone, train: GroupDataset, val: GroupDataset, epochs: int, seed: int, device: torch.device
) -> None:
    """Train the network by ERM, in place. Done once: its checkpoint stays in the user's cache for other methods."""
    start = hash_state(network.state_dict())[:16]
    name = f"{start}-{train.content_hash()[:16]}-{val.content_hash()[:16]}-{seed}-{epochs}-{device.type}.safetensors"
    augment = random_shift if train.x.ndim == 4 else None
    checkpoint = cache_dir() / "erm" / name
    train_erm(network, train, val, Erm(epochs=epochs), seed=seed, device=device, augment=augment, checkpoint=checkpoint)


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
