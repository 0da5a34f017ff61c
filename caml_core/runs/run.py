"""One run: load the data, train by a method, score on the test split, and say in a record how that came about."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import time
from pathlib import Path
from typing import Any

import torch

from caml_core.active import run_active
from caml_core.comparators import ON_FEATURES
from caml_core.dac import dac
from caml_core.environments import regrouped
from caml_core.errors import CamlError
from caml_core.features import extract_features, predict, standardise
from caml_core.groups import GroupDataset, Splits
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED, scaled
from caml_core.last_layer import Head, erm_head
from caml_core.loader import AUGMENTS, random_shift
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.runs.identity import REVISION, content_hash
from caml_core.runs.records import Record, provenance
from caml_core.runs.settings import Data, ErmRun, Hsfm, Method, Rounds, config, words
from caml_core.store import cache_dir, hash_state
from caml_core.training import Erm, train_erm

POOL = "dataset, rho, option, start, query, rounds"  # what decides which labels there are to buy, and how many


def run(
    method: Method,
    data: Data,
    seed: int,
    *,
    device: torch.device | None = None,
    work: Path | None = None,
    seller: Record | None = None,
) -> Record:
    """Make one run: its record, with metrics on the test split, the chosen epoch, settings, data and provenance.

    Args:
        work: folder for checkpoints, from which the same call goes on.
        seller: record of a run in rounds on the same pool: its labels are bought again, and trained on are the last
            round's only.

    Raises:
        CamlError: data that cannot be loaded, a seller with another pool, whatever the method refuses.
    """
    device, start = device or torch.device("cpu"), time.perf_counter()
    splits = data.load(seed)
    content, x = content_hash(splits), splits[0].x
    how: dict[str, Any] = {"seed": seed, "device": device}
    if x.ndim == 4:
        how["augment"] = AUGMENTS[getattr(method, "augment", "none")]

    def network() -> Backbone:
        pretrained, n_classes = False if method.from_scratch else None, len(splits[0].class_names)
        sizes: dict[str, Any] = {"n_inputs": x.shape[1] if x.ndim == 2 else None, "upscale": method.upscale}
        made = backbone(method.backbone, n_classes, pretrained=pretrained, seed=seed, **sizes)
        if momentum := getattr(method, "norm_momentum", None):
            for layer in made.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.momentum = momentum
        return made

    if isinstance(method, Rounds):
        queries = bought(seller, pool(method, data) | {"content": content}) if seller else None
        steps = run_active(network, *splits, method, queries=queries, first_round=len(queries or ()), work=work, **how)
        results = _rounds(steps)
    elif isinstance(method, ErmRun):
        results = _erm(method, splits, network(), checkpoint=work / "erm.safetensors" if work else None, **how)
    else:
        results = _head(method, splits, network(), seed, device)
    command = shlex.join(["python", "-m", "caml_core", *words(method, data), "--seed", str(seed), "--out", "FILE.json"])
    groups = dict(zip(splits[0].group_names, splits[0].group_counts.tolist()))
    return {
        "revision": REVISION[method.method],
        "method": method.method,
        "dataset": data.dataset,
        "seed": seed,
        **results,
        "config": config(method, data),
        "data": {"source": splits[0].source, "train_groups": groups, "content": content},
        "provenance": provenance(device, time.perf_counter() - start, command),
    }


def pool(method: Method, data: Data) -> dict[str, Any]:
    """Settings by the names of `POOL`: only where they are equal can two runs buy the same labels."""
    return {name: config(method, data).get(name) for name in POOL.split(", ")}


def bought(seller: Record, mine: dict[str, Any]) -> list[list[int]]:
    """The rows that another run chose, round by round; `CamlError` where its pool or their content is another."""
    said = {"content": mine["content"], **seller["config"], **seller.get("data", {}), "dataset": seller["dataset"]}
    if differ := [name for name, value in mine.items() if said.get(name) != value]:
        what = f"labels of {seller['method']}, seed {seller['seed']}, are not from the same pool: other "
        raise CamlError(what + ", ".join(differ), f"the same {POOL}", "run the acquisition first, with these settings")
    return [step["queried"] for step in seller["rounds"][1:]]


def _rounds(rounds: list[Record]) -> Record:
    """A record's part on the rounds: all metrics of the last one, two of the others."""
    last, short = rounds[-1], ("round", "labels", "batch_minority", "fit_start", "fit_queried", "queried")
    steps = [
        {name: step[name] for name in short} | {k: step["metrics"][k]["value"] for k in ("minority", "average")}
        for step in rounds
    ]
    seconds = round(sum(step["seconds"] for step in rounds), 2)
    return {"metrics": last["metrics"], "selection": last["selection"], "rounds": steps, "train_seconds": seconds}


def _erm(method: ErmRun, splits: Splits, network: Any, device: torch.device, **how: Any) -> Record:
    """ERM of the whole network, or of its head."""
    (train, val, test), part = splits, network
    if method.head_only:
        train, val, test = standardise(*(extract_features(network, split, device) for split in splits))
        part, how["augment"] = network.head, None
    done = train_erm(part, train, val, method, device=device, **how)
    return {
        "metrics": group_metrics(predict(part, test, device), test, train.group_counts),
        "selection": {"split": "validation", "rule": done.rule, "epoch": done.best_epoch},
        "train_seconds": round(done.seconds, 2),
    }


def _head(method: Any, splits: Splits, network: Backbone, seed: int, device: torch.device) -> Record:
    """A linear head on frozen features; seconds are those of the method alone, with features in memory."""
    how: dict[str, Any] = {"seed": seed, "device": device}
    if method.train_backbone is not None:
        train_backbone(network, splits[0], splits[1], method.train_backbone, **how)
    raw = [extract_features(network, split, device) for split in splits]
    if method.val_labels is not None:
        raw[1] = keep_labels(raw[1], method.val_labels, seed)
    train, val, test = standardise(*raw)
    if method.val_groups is not None:
        val = regrouped(val, erm_head(train, val, **how), method.val_groups)
        raw[1] = val.with_x(raw[1].x)
    if isinstance(method, Hsfm):
        train, val, test = raw if method.raw else (train, val, test)
        if method.double:
            train, val, test = (split.with_x(split.x.double()) for split in (train, val, test))
        own = head_of(network, raw[0].x.to(train.x), standardised=not method.raw) if method.own_head else None
        erm = own or erm_head(train, val, **how)
        first = group_metrics(erm.logits(test.x), test)
    start, more = time.perf_counter(), {}
    if isinstance(method, Hsfm):
        head, used = edited(method, train, val, erm, **how)
        more = {"settings": used, "start": {name: first[name]["value"] for name in ("worst_group", "average")}}
    elif method.method == "dac":
        head = dac(network, splits[0], raw[0], raw[1], **_taken(method, dac, how))
    else:
        head = ON_FEATURES[method.method](train, val, **_taken(method, ON_FEATURES[method.method], how))
    return {
        "metrics": group_metrics(head.logits(test.x), test, train.group_counts),
        "selection": {"split": "validation", **head.chosen},
        "train_seconds": round(time.perf_counter() - start, 2),
        **more,
    }


def _taken(method: Method, function: Any, how: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a function among settings, seed and device."""
    given = dataclasses.asdict(method) | how
    return {name: given[name] for name in inspect.signature(function).parameters if name in given}


def head_of(network: Backbone, x: torch.Tensor, *, standardised: bool) -> Head:
    """A network's last layer, on its features x (N, D) as they come or as they are once standardised."""
    weight, bias = network.head.weight.detach().to(x), network.head.bias.detach().to(x)
    std, mean = torch.std_mean(x, dim=0)
    return Head(weight * std, bias + weight @ mean, {}) if standardised else Head(weight, bias, {})


def edited(
    method: Hsfm, train: GroupDataset, val: GroupDataset, erm: Head, *, seed: int, device: torch.device
) -> tuple[Head, Record]:
    """HSFM from a head, and the step sizes: those published are scaled where that is asked for, given ones stay."""
    base = PUBLISHED[method.published]
    fit = scaled(base, train.x) if method.scaled else base
    steps = {name: getattr(fit, name) for name in ("alpha", "eta") if getattr(method, name) == getattr(base, name)}
    how = dataclasses.replace(method, **steps)
    edits = hsfm(train, val, erm.weight, erm.bias, how, seeds=[seed], device=device)
    rule = f"{'last ' if how.late else ''}best validation {how.select}"
    rule += "" if how.any_epoch else " among epochs whose average clearly beats chance"
    head = Head(edits.weight[0].cpu(), edits.bias[0].cpu(), {"rule": rule, "epoch": int(edits.epoch[0])})
    return head, {"alpha": how.alpha, "eta": how.eta}


def train_backbone(
    network: Backbone, train: GroupDataset, val: GroupDataset, epochs: int, *, seed: int, device: torch.device
) -> None:
    """Train the network by ERM, in place. Done once: its checkpoint stays in the user's cache for other methods."""
    made_of = (hash_state(network.state_dict()), train.content_hash(), val.content_hash())
    file = cache_dir() / "erm" / f"{'-'.join(h[:16] for h in made_of)}-{seed}-{epochs}-{device.type}.safetensors"
    augment = random_shift if train.x.ndim == 4 else None
    train_erm(network, train, val, Erm(epochs=epochs), seed=seed, device=device, augment=augment, checkpoint=file)


def keep_labels(val: GroupDataset, n: int, seed: int) -> GroupDataset:
    """A random part of the validation split with the classes in their proportions, smaller parts inside larger ones.

    `CamlError` where n leaves a class without examples, or is more than there are.
    """
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(val), dtype=torch.float64)  # how far down the list of its class an example stands, 0..1
    for label in range(len(val.class_names)):
        rows = order[val.y[order] == label]
        place[rows] = (torch.arange(len(rows)) + 0.5).double() / len(rows)
    part = val.subset(place.argsort(stable=True)[: max(n, 0)].sort().values)
    if n > len(val) or int(torch.bincount(part.y, minlength=len(val.class_names)).min()) == 0:
        what = f"--val-labels {n} of {len(val)} validation examples"
        raise CamlError(what, "some of every class, and no more than there are", "change --val-labels")
    return part
