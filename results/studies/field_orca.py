"""ORCA beside probes that stay as they are, and five rules for when to stop buying labels: results/field_orca.json.

python results/studies/field_orca.py

Made paths: each probe is trained on 300 paths of a law; twenty times a threshold is certified on fresh ones, and judged
on 1,000 of the same law and of laws that calibration did not see. Then the test of risk stops chapter 04's loop, on
frozen features of birdscapes: after each round of queries, is the worst group's risk certified?
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from caml_core.active import run_active
from caml_core.data import load
from caml_core.features import extract_features, predict, standardise
from caml_core.field.orca import (
    EPSILON,
    Paths,
    Probe,
    certify,
    draw_paths,
    fit_probe,
    fit_static,
    judge,
    news,
    risk_p,
    smooth,
)
from caml_core.networks import Backbone, backbone
from caml_core.round import Plan
from caml_core.runs.records import provenance, write_records

SEEDS, DRAWS, CALIBRATION = range(5), 20, (200, 1000)  # paths for one threshold: of all, by group
CERTIFICATES = {"no nuisance": [(0.1, False)], "climbing": [(0.1, False), (0.2, False), (0.1, True)]}
CLIMB: dict[str, Any] = {"climb": 2.0, "rho": 0.9}
LAWS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "no nuisance": ({}, {"nothing climbs": {}}),
    "climbing": (
        CLIMB,
        {
            "same law": CLIMB,
            "late problems climb": CLIMB | {"rho": 0.1},
            "unsolved kept": CLIMB | {"unsolved": 0.05},
        },
    ),
}
DATA = {"size": 64, "n_train": 1600, "n_val": 800, "n_test": 1000, "rho": 0.7}
PLAN = Plan(method="append", start=200, query=100, rounds=12, epochs=10, lr=1e-3, select="last")
RUNS, RISK = range(12), 0.4  # of the worst group
ASIDE, REDRAWN = 40, 500  # pictures of each group kept aside, drawn from all; how often
Scorer = Callable[[Tensor], Tensor]


def static_scorer(model: LogisticRegression, view: Scorer = lambda x: x, window: int = 10) -> Scorer:
    def scores(x: Tensor) -> Tensor:
        found = model.predict_proba(view(x).flatten(0, 1).numpy())[:, 1]
        return smooth(torch.from_numpy(found).view(x.shape[:2]), window)

    return scores


def moving_scorer(probe: Probe, window: int = 10) -> Scorer:
    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            return smooth(probe(x), window)

    return scores


def scorers(train: Paths, seed: int) -> dict[str, Scorer]:
    """Every probe of the table, learned from the same paths."""
    plain = fit_static(train)
    unlearned = Probe(train.x.shape[2])  # ORCA's step on the static probe's weights
    with torch.no_grad():
        unlearned.weight.copy_(torch.from_numpy(plain.coef_[0]))
        unlearned.bias.fill_(float(plain.intercept_[0]))
    return {
        "static": static_scorer(plain),
        "static on news": static_scorer(fit_static(train._replace(x=news(train.x))), news),
        "orca": moving_scorer(fit_probe(train, seed, eta=1.0)),
        "orca, two views": moving_scorer(fit_probe(train, seed, eta=1.0, hidden=16, lr=0.01)),
        "orca, no steps": moving_scorer(fit_probe(train, seed, eta=0.0)),
        "orca, not learned": moving_scorer(unlearned),
        "orca, step 0.2": moving_scorer(fit_probe(train, seed, eta=0.2, learn_eta=False)),
        "orca, step 0.8": moving_scorer(fit_probe(train, seed, eta=0.8, learn_eta=False)),
    }


def made_paths(seed: int) -> list[dict[str, Any]]:
    records = []
    for law, (options, tests) in LAWS.items():
        pool = draw_paths(2000, 10 * seed + 1, **options)
        rng = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(2000, generator=rng) for _ in range(DRAWS)]
        for name, scores in scorers(draw_paths(300, 10 * seed, **options), seed).items():
            start, known = time.perf_counter(), scores(pool.x)
            for delta, by_group in CERTIFICATES[law]:
                rows = [order[: CALIBRATION[by_group]] for order in orders]
                levels = [certify(known[r], pool.done[r], delta, pool.group[r] if by_group else None) for r in rows]
                for test, other in tests.items():
                    paths = draw_paths(1000, 10 * seed + 2, **other)
                    seen = scores(paths.x)
                    found = [judge(seen, paths, level) for level in levels]
                    metrics = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
                    metrics["broken"] = 100 * float(np.mean([one["error"] > 100 * delta for one in found]))
                    metrics["broken_group"] = 100 * float(np.mean([one["worst_group"] > 100 * delta for one in found]))
                    config = {"law": law, "test": test, "delta": delta, "by_group": by_group, "draws": DRAWS}
                    config["calibration"] = CALIBRATION[by_group]
                    records.append(record(name, "made paths", seed, config, metrics, start))
    return records


def record(
    method: str, dataset: str, seed: int, config: dict[str, Any], metrics: dict[str, float], start: float
) -> dict[str, Any]:
    where = provenance(torch.device("cpu"), time.perf_counter() - start, "python results/studies/field_orca.py")
    return {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "config": config,
        "metrics": {name: {"value": round(float(value), 2)} for name, value in metrics.items()},
        "provenance": where,
    }


def label_runs() -> list[dict[str, Any]]:
    """Three rules for when to stop buying labels, on the same runs; the truth: the risk on all pictures kept aside."""
    network, device = backbone("efficientnet_lite0", 2), torch.device("cpu")
    pictures = load("birdscapes", seed=0, **DATA)  # type: ignore[arg-type]
    pool, val, test = standardise(*(extract_features(network, split, device, batch_size=16) for split in pictures))
    records = []
    for seed in RUNS:
        start = time.perf_counter()
        wrong: list[Tensor] = []

        def look(t: int, network: Backbone, record: dict[str, Any], wrong: list[Tensor] = wrong) -> None:
            wrong.append(predict(network, val, device).argmax(dim=1) != val.y)

        rounds = run_active(
            lambda seed=seed: backbone("mlp", 2, n_inputs=pool.x.shape[1], seed=seed),  # type: ignore[misc]
            pool, val, test, PLAN, seed=seed, device=device, progress=False, on_round=look,
        )  # fmt: skip
        losses, group = torch.stack(wrong, dim=1).numpy(), val.group.numpy()
        labels = np.array([one["labels"] for one in rounds])
        rng = np.random.default_rng(seed)
        truth = np.max([losses[group == g].mean(axis=0) for g in range(4)], axis=0)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(REDRAWN):
            rows = np.concatenate([rng.choice(np.flatnonzero(group == g), ASIDE) for g in range(4)])
            p = risk_p(losses[rows], RISK, group[rows])
            seen = np.max([losses[rows][group[rows] == g].mean(axis=0) for g in range(4)], axis=0)
            rules = {"certified": p <= EPSILON / len(rounds), "not corrected": p <= EPSILON, "estimate": seen <= RISK}
            for name, holds in rules.items():
                at = int(holds.argmax()) if holds.any() else len(rounds) - 1
                broken = holds.any() and truth[at] > RISK
                found.setdefault(name, []).append((1 - labels[at] / labels[-1], holds.any(), broken))
        for name, values in found.items():
            metrics = dict(zip(("saved", "stopped", "broken"), 100 * np.mean(values, axis=0)))
            config = {"risk": RISK, "aside": ASIDE, "redrawn": REDRAWN, **DATA, **dataclasses.asdict(PLAN)}
            records.append(record(name, "birdscapes", seed, config, metrics, start))
    return records


if __name__ == "__main__":
    found: list[dict[str, Any]] = label_runs()
    for seed in SEEDS:
        found += made_paths(seed)
        print(f"seed {seed}: done", file=sys.stderr)
    write_records(Path(__file__).parent.parent / "field_orca.json", found)
