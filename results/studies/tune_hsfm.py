"""Settings of HSFM for a new dataset, without its test split: other draws of birdscapes, results/tune_hsfm.json.

python results/studies/tune_hsfm.py

The published settings of HSFM belong to a ResNet-50 and to four datasets. For another one they are chosen as DFR
chooses its penalty: the validation split is cut in two halves with equal groups, HSFM takes its hard set and its epoch
from one half, and the other half judges. All step sizes of a row are solved side by side. The draws (seeds 10 to 12)
are used nowhere else; no test split is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch

from caml_core.data import load
from caml_core.device import pick_device
from caml_core.features import extract_features, standardise
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED, scaled
from caml_core.last_layer import erm_head, halves
from caml_core.metrics import group_metrics
from caml_core.networks import backbone
from caml_core.runs.records import provenance, write_records

DATA = {
    "size": 64,
    "n_train": 1600,
    "n_val": 800,
    "n_test": 1000,
    "rho": 0.95,
}  # as results/tables/heads_birdscapes.toml
SEEDS = (10, 11, 12)
SUPPORT, HARD = (16, 64), (32, 64)  # of each class; the hard set of half a validation split
ALPHA, ETA = (0.3, 1.0, 3.0), (0.01, 0.03, 0.1, 0.3, 1.0)  # in units of those published for Waterbirds, scaled


def main() -> None:
    device, records = pick_device(), []
    network = backbone("efficientnet_lite0", 2)
    for seed in SEEDS:
        splits = load("birdscapes", seed=seed, **DATA)[:2]  # type: ignore[arg-type]
        start = time.perf_counter()
        train, val = standardise(*(extract_features(network, split, device) for split in splits))
        asked, judge = (val.subset(rows) for rows in halves(val.group, torch.Generator().manual_seed(seed)))
        erm = erm_head(train, val, seed=seed, device=device)
        base = scaled(PUBLISHED["waterbirds"], train.x)
        pairs = list(itertools.product(ALPHA, ETA))
        for support, hard in itertools.product(SUPPORT, HARD):
            found = hsfm(
                train,
                asked,
                erm.weight,
                erm.bias,
                dataclasses.replace(base, support=support, hard=hard),
                seeds=[seed] * len(pairs),
                alpha=torch.tensor([base.alpha * alpha for alpha, _ in pairs]),
                eta=torch.tensor([base.eta * eta for _, eta in pairs]),
                device=device,
            )
            wall = (time.perf_counter() - start) / len(pairs)
            for i, (alpha, eta) in enumerate(pairs):
                config = {"support": support, "hard": hard, "alpha": alpha, "eta": eta}
                metrics = group_metrics(judge.x @ found.weight[i].cpu().T + found.bias[i].cpu(), judge)
                records.append(
                    record(seed, config, metrics, provenance(device, wall, "python results/studies/tune_hsfm.py"))
                )
            start = time.perf_counter()
            print(f"seed {seed}, support {support}, hard {hard}: done", file=sys.stderr)
    write_records(Path(__file__).parent.parent / "tune_hsfm.json", records)
    by_config: dict[str, list[float]] = {}
    for one in records:
        by_config.setdefault(one["run"], []).append(one["metrics"]["worst_group"]["value"])
    for name, values in sorted(by_config.items(), key=lambda item: -sum(item[1]))[:8]:
        print(f"{sum(values) / len(values):5.1f}  {name}")


def record(seed: int, config: dict[str, Any], metrics: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "hsfm",
        "run": ", ".join(f"{key} {value}" for key, value in config.items()),
        "dataset": "birdscapes",
        "seed": seed,
        "config": config | DATA,
        "metrics": {name: {"value": metrics[name]["value"]} for name in ("worst_group", "average", "minority")},
        "selection": {"split": "the other half of validation", "rule": "not selected: every setting is kept"},
        "provenance": where,
    }


if __name__ == "__main__":
    main()
