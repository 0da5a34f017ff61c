"""Your own model, scored: the attribute is hidden, and then looked at. results/own_search.json

python results/studies/own_search.py birdscapes madlibs

Features of a frozen network (an EfficientNet-Lite0 that has seen ImageNet; a sentence encoder) and a new head, trained
by ERM on a training split with a shortcut. The search (`caml_core.own.slices`) looks at labels and features of the
validation split, never at the attribute; how many of the worst slice are minority is counted afterwards, also for
k-means on the features. Then a hundred attributes are asked for, and the head is repaired with them
(`caml_core.own.repair`); beside it stands DFR with every group of the validation split known. With `rho` 0.5 there is
no shortcut to find. With "like training" the validation split has the shortcut, too, in the same share. Settings of the
search were chosen on seeds from 100 on. Finished records stay; the command goes on where it was stopped. With
`--search` the searches of finished records are made again, and say so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from caml_core.data import load
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset
from caml_core.heads import dfr
from caml_core.last_layer import Head, erm_head
from caml_core.metrics import group_metrics
from caml_core.networks import backbone
from caml_core.own.ask import queue
from caml_core.own.repair import repair
from caml_core.own.slices import Slice, find_slices
from caml_core.runs.records import provenance, read_records, write_records

FILE = Path(__file__).parent.parent / "own_search.json"
SIZES: dict[str, dict[str, Any]] = {
    "birdscapes": {"size": 64, "n_train": 1600, "n_val": 800, "n_test": 1000},
    "dominoes": {"n_train": 4000},
    "madlibs": {},
}
RHO = {"birdscapes": (0.95, 0.5), "dominoes": (0.9, 0.5), "madlibs": (0.95, 0.5)}
SEEDS = {True: range(5), False: range(20)}  # with a shortcut, without
ASKED = 100
WAYS = ("leave alone", "dfr", "dfr, groups guessed", "continue, balanced", "hsfm", "evals, no answers")
FAIR, BIASED = "fair", "like training"


def like(val: GroupDataset, rho: float) -> GroupDataset:
    """Of its minority only as many as go with its majority at a share of rho."""
    kept = ~val.is_minority
    for g in val.group[val.is_minority].unique():
        rows = (val.group == g).nonzero().flatten()
        kept[rows[: round(len(rows) * (1 - rho) / rho)]] = True
    return val.subset(kept)


def features(name: str, rho: float, seed: int, validation: str) -> tuple[GroupDataset, ...]:
    train, val, test = load(name, rho=rho, seed=seed, **SIZES[name])
    splits = [train, like(val, rho) if validation == BIASED else val, test]
    if splits[0].x.ndim == 4:
        network = backbone("efficientnet_lite0", 2)
        raw = [extract_features(network, split, torch.device("cpu"), engine="onnx") for split in splits]
        return standardise(*raw)
    return standardise(*splits)


def by_k_means(val: GroupDataset, wrong: Tensor, seed: int) -> Tensor:
    """Rows of the cluster (four in each class) with the most mistakes."""
    worst, found = -1.0, torch.arange(0)
    for label in range(2):
        rows = (val.y == label).nonzero().flatten()
        cluster = KMeans(4, n_init=3, random_state=seed).fit_predict(val.x[rows].numpy())
        for k in np.unique(cluster):
            inside = rows[torch.from_numpy(cluster == k)]
            if len(inside) >= 20 and float(wrong[inside].double().mean()) > worst:
                worst, found = float(wrong[inside].double().mean()), inside
    return found


def scores(head: Head, split: GroupDataset) -> dict[str, float]:
    found = group_metrics(head.logits(split.x), split)
    return {name: found[name]["value"] for name in ("worst_group", "average")}


def purity(val: GroupDataset, rows: Tensor) -> float:
    """How many of these rows are minority, percent."""
    return 100 * float(val.is_minority[rows].double().mean())


def searched_by(slices: list[Slice], val: GroupDataset) -> dict[str, float]:
    found: dict[str, float] = {"alarm": 100.0 * any(one.alarm for one in slices)}
    if slices:
        worst = slices[0]
        found |= {"purity": purity(val, worst.rows), "gap": worst.gap, "low": worst.low, "announced": worst.announced}
    return found


def again(record: dict[str, Any]) -> dict[str, Any]:
    """The search of a finished record once more, under another rule for the alarm; the repair stays as it was."""
    start, config = time.perf_counter(), record["config"]
    train, val, _ = features(record["dataset"], config["rho"], record["seed"], config["validation"])
    logits = erm_head(train, val, seed=record["seed"]).logits(val.x)
    found = searched_by(find_slices(val.x, val.y, logits, seed=record["seed"]), val)
    metrics = record["metrics"] | {key: {"value": round(value, 2)} for key, value in found.items()}
    command = "python results/studies/own_search.py --search"
    return record | {
        "metrics": metrics,
        "searched": provenance(torch.device("cpu"), time.perf_counter() - start, command),
    }


def one(name: str, rho: float, seed: int, validation: str) -> dict[str, Any]:
    start = time.perf_counter()
    train, val, test = features(name, rho, seed, validation)
    head = erm_head(train, val, seed=seed)
    logits = head.logits(val.x)
    searched = time.perf_counter()
    slices = find_slices(val.x, val.y, logits, seed=seed)
    seconds = time.perf_counter() - searched
    searched = time.perf_counter()
    cluster = by_k_means(val, logits.argmax(dim=1) != val.y, seed)
    more: dict[str, Any] = {"seconds": {"slices": seconds, "k-means": time.perf_counter() - searched}}
    metrics = {f"erm, {key}": value for key, value in scores(head, test).items()}
    metrics |= searched_by(slices, val) | {"k-means, purity": purity(val, cluster)}
    if rho > 0.5:
        known = val.subset(queue(val.y, logits, slices, ASKED, seed=seed))
        more["asked"] = dict(zip(known.group_names, known.group_counts.tolist()))
        names: dict[str, Any] = {"class_names": train.class_names, "attribute_names": ["unknown"]}
        blind = GroupDataset(train.x, train.y, torch.zeros_like(train.y), **names)
        done = repair(blind, known, head, val, seed=seed, ways=WAYS)
        more["chosen"] = done.way
        metrics |= {f"repaired, {key}": value for key, value in scores(done.head, test).items()}
        every = dfr(train, val, seed=seed)
        metrics |= {f"dfr, all groups, {key}": value for key, value in scores(every, test).items()}
    where = provenance(torch.device("cpu"), time.perf_counter() - start, f"python results/studies/own_search.py {name}")
    return {
        "method": "search",
        "dataset": name,
        "seed": seed,
        "config": {"rho": rho, "asked": ASKED, "validation": validation, "n_labelled": len(val), **SIZES[name]},
        "metrics": {key: {"value": round(value, 2)} for key, value in metrics.items()},
        **more,
        "provenance": where,
    }


def main(names: list[str]) -> None:
    records = read_records(FILE) if FILE.exists() else []
    done = {(r["dataset"], r["config"]["rho"], r["config"]["validation"], r["seed"]) for r in records}
    todo = [
        (name, RHO[name][0 if shortcut else 1], validation, seed)
        for shortcut in (True, False)
        for name in names
        for validation in ((FAIR, BIASED) if shortcut else (FAIR,))
        for seed in SEEDS[shortcut]
    ]
    for name, rho, validation, seed in todo:
        if (name, rho, validation, seed) not in done:
            records.append(one(name, rho, seed, validation))
            write_records(FILE, records)
            shown = {key: value["value"] for key, value in records[-1]["metrics"].items()}
            print(name, rho, validation, seed, records[-1].get("chosen", ""), shown, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--search"]:
        write_records(FILE, [again(record) for record in read_records(FILE)])
    else:
        main(sys.argv[1:] or list(SIZES))
