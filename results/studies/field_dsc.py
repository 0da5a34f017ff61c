"""Two losses of the case at hand beside labels, bought one by one: results/field_dsc.json.

python results/studies/field_dsc.py tune     (every arm has the same networks and cases to be tuned on; seeds from 100)
python results/studies/field_dsc.py          (five seeds: made clinics, one label bought, the breast cancer data)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from caml_core.field.dsc import Cases, Phi, Streams, draw_cases, entropy, meta_train, patients
from caml_core.metrics import group_metrics
from caml_core.runs.records import provenance, read_records, write_records

FILE = Path(__file__).parent.parent / "field_dsc.json"
SEEDS, TUNING, TRAIN, N = range(5), 100, 20_000, 240
LAWS = (0.9, 0.5, 0.1)  # share of wards that agree, in the context and in the clinic
POOLS = ((0.9, 0.9), (0.9, 0.1), (0.1, 0.1))  # in the context; among new patients
ETAS = (0.1, 0.3, 1.0, 3.0)
GRID: dict[str, list[dict[str, float]]] = {
    "entropy only": [{"eta": eta} for eta in (0.03, *ETAS)],
    "not left out": [{"eta": eta} for eta in ETAS],
    "leave one out": [{"eta": eta} for eta in ETAS],
    "leave one out, MAML": [{"eta": eta, "alpha": alpha} for eta in ETAS for alpha in (0.03, 0.1)],
    "both": [{"eta": eta, "alpha": 0.03, "lam": lam} for eta in ETAS for lam in (1.0, 10.0)],
    "context alone": [{"C": C} for C in (0.1, 0.3, 1.0, 3.0, 10.0)],
    "asked, learned": [{"eta": eta} for eta in ETAS],
}
Setting = dict[str, float]


def loss_of(arm: str, streams: Streams, alpha: float = 0.0, lam: float = 0.0) -> Callable[[Phi, Cases], Tensor]:
    """What a case's adapter descends."""

    def seen(phi: Phi, case: Cases) -> Tensor:
        return cross_entropy(streams.logits(phi, case.x, case.y, case.x), case.y)

    def both(phi: Phi, case: Cases) -> Tensor:
        return streams.semantic(phi, case) / lam + streams.structural(phi, case, alpha)

    def asked(phi: Phi, case: Cases) -> Tensor:  # the label bought, last of the context, is held out
        return cross_entropy(streams.logits(phi, case.x[:-1], case.y[:-1], case.x[-1:]), case.y[-1:])

    losses = {"entropy only": streams.semantic, "not left out": seen, "both": both, "asked, learned": asked}
    return losses.get(arm, partial(streams.structural, alpha=alpha))


def answers(arm: str, streams: Streams, cases: Cases, setting: Setting) -> Tensor:
    """Logits (N, M, 2)."""
    if arm in ("frozen", "varied wards"):
        return streams.model(cases.x, cases.y, cases.query)  # type: ignore[no-any-return]
    if arm == "context alone":
        return torch.stack([regression(*case, setting["C"]) for case in zip(*cases[:3])])
    options = {key: value for key, value in setting.items() if key != "eta"}
    return streams.adapt(cases, loss_of(arm, streams, **options), setting["eta"])[-1]


def regression(x: Tensor, y: Tensor, query: Tensor, C: float) -> Tensor:
    """Logits (M, 2) of a logistic regression on one context."""
    if len(y.unique()) < 2:  # says nothing else
        return torch.eye(2)[y[:1]].clamp(1 / 9, 8 / 9).log().expand(len(query), -1)
    fitted = LogisticRegression(C=C, max_iter=1000).fit(x.numpy(), y.numpy())
    odds = torch.from_numpy(fitted.decision_function(query.numpy())).float()
    return torch.stack([torch.zeros_like(odds), odds], dim=1)


def ask(streams: Streams, cases: Cases, pool: Cases, rule: str) -> Cases:
    """One patient of the pool, the least certain or the first, joins the context with its label."""
    unsure = entropy(streams.model(pool.x, pool.y, pool.query))
    chosen = unsure.argmax(dim=1) if rule == "asked" else torch.zeros(len(unsure), dtype=torch.long)
    rows = torch.arange(len(chosen))
    x, y = torch.cat([cases.x, pool.query[rows, chosen][:, None]], 1), pool.truth[rows, chosen][:, None]
    return cases._replace(x=x, y=torch.cat([cases.y, y], 1))


def with_pool(seed: int, agree: float, agree_query: float, n: int) -> tuple[Cases, Cases]:
    """Sixteen new patients to judge, and sixteen others to ask about."""
    both = draw_cases(n, seed, agree, agree_query, queries=32)
    return tuple(both._replace(query=both.query[:, k], truth=both.truth[:, k]) for k in (slice(16), slice(16, 32)))  # type: ignore[return-value]


def judge(logits: Tensor, cases: Cases, share: float) -> dict[str, float]:
    """Accuracy, worst group and calibration error (10 bins) in percent, entropy in nats, of logits (N, M, 2).

    But for the worst group, queries count as if a `share` had a ward that agrees.
    """
    split, logits = patients(cases), logits.flatten(0, 1)
    mix = torch.tensor([share, 1 - share, 1 - share, share])
    found = group_metrics(logits, split, mix)
    weight = (mix / mix.sum() / split.group_counts)[split.group].double()
    sure, said = logits.softmax(dim=-1).max(dim=-1)
    gaps = torch.zeros(11).double().index_add(0, (10 * sure).long(), weight * ((said == split.y).double() - sure))
    means = {"accuracy": found["adjusted"]["value"], "worst_group": found["worst_group"]["value"]}
    return means | {"ece": 100 * gaps.abs().sum().item(), "entropy": (weight * entropy(logits)).sum().item()}


def record(
    method: str, dataset: str, seed: int, config: dict[str, Any], found: Setting, start: float
) -> dict[str, Any]:
    return {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "config": config,
        "metrics": {name: {"value": round(float(value), 3)} for name, value in found.items()},
        "provenance": provenance(
            torch.device("cpu"), time.perf_counter() - start, "python results/studies/field_dsc.py"
        ),
    }


def tune() -> list[dict[str, Any]]:
    """Every setting of the grid on the same cases."""
    streams = Streams(meta_train(draw_cases(TRAIN, TUNING, 0.9, 0.9, queries=8), TUNING))
    records = []
    for law in LAWS:
        cases = draw_cases(120, TUNING + 1, law, 0.5)
        for arm, grid in GRID.items():
            for setting in grid if arm != "asked, learned" else []:
                start = time.perf_counter()
                found = judge(answers(arm, streams, cases, setting), cases, law)
                records.append(record(arm, "tuning", TUNING, {"context": law, **setting}, found, start))
    for agree, agree_query in POOLS:
        cases, pool = with_pool(TUNING + 1, agree, agree_query, 120)
        for setting in GRID["asked, learned"]:
            start, arm = time.perf_counter(), "asked, learned"
            found = judge(answers(arm, streams, ask(streams, cases, pool, "asked"), setting), cases, agree_query)
            config = {"context": agree, "new": agree_query, **setting}
            records.append(record(arm, "tuning", TUNING, config, found, start))
    return records


def chosen(records: list[dict[str, Any]], arm: str) -> Setting:
    """The setting with the best accuracy, the mean over three laws; of equals the first."""
    score = [
        sum(
            r["metrics"]["accuracy"]["value"]
            for r in records
            if r["method"] == arm and s.items() <= r["config"].items()
        )
        for s in GRID[arm]
    ]
    return GRID[arm][int(np.argmax(score))]


def at_hospitals(cases: Cases, x: np.ndarray, ill: np.ndarray, seed: int) -> Cases:
    """The same diagnoses and wards, of patients x (P, 30): each hospital measures eight findings, some sign turned.

    Nobody is twice in a case.
    """
    rng, n, K = np.random.default_rng(seed), len(cases.x), cases.x.shape[1]
    which, sign = rng.random((n, 30)).argsort(axis=1)[:, None, :8], rng.choice([-1, 1], (n, 1, 8))
    y = torch.cat([cases.y, cases.truth], dim=1).numpy()
    who = np.zeros_like(y)
    for diagnosis in (0, 1):
        these = np.flatnonzero(ill == diagnosis)
        order, turn = rng.random((n, len(these))).argsort(axis=1), (y == diagnosis).cumsum(axis=1) - 1
        who = np.where(y == diagnosis, these[np.take_along_axis(order, turn.clip(min=0), axis=1)], who)
    real = torch.from_numpy(x[who[..., None], which] * sign).float()
    context, query = (torch.cat([r, c[..., -1:]], -1) for r, c in zip((real[:, :K], real[:, K:]), cases[::2]))
    return Cases(context, cases.y, query, cases.truth)


def breast(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Half of the patients to learn from, half to be judged by: findings, and who is ill."""
    data = load_breast_cancer()
    order, ill = np.random.default_rng(seed).permutation(len(data.target)), 1 - data.target
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    x = (data.data - data.data[first].mean(axis=0)) / data.data[first].std(axis=0)
    return (x[first], ill[first]), (x[second], ill[second])


def run(seed: int, best: dict[str, Setting]) -> list[dict[str, Any]]:
    records = []
    plain = Streams(meta_train(draw_cases(TRAIN, 10 * seed, 0.9, 0.9, queries=8), seed))
    shares = np.random.default_rng(seed).random((TRAIN, 1))
    varied = Streams(meta_train(draw_cases(TRAIN, 10 * seed, shares, shares, queries=8), seed))
    for law in LAWS:
        cases = draw_cases(N, 10 * seed + 1, law, 0.5)
        for arm in ("frozen", *(name for name in GRID if name != "asked, learned"), "varied wards"):
            start, setting = time.perf_counter(), best.get(arm, {})
            found = judge(answers(arm, varied if arm == "varied wards" else plain, cases, setting), cases, law)
            records.append(record(arm, "made clinics", seed, {"context": law, **setting}, found, start))
    for agree, agree_query in POOLS:
        cases, pool = with_pool(10 * seed + 2, agree, agree_query, N)
        for rule in ("none", "asked", "random"):
            more = cases if rule == "none" else ask(plain, cases, pool, rule)
            for arm in ("frozen", "leave one out", *["asked, learned"] * (rule != "none")):
                start, setting = time.perf_counter(), best.get(arm, {})
                found = judge(answers(arm, plain, more, setting), cases, agree_query)
                config = {"context": agree, "new": agree_query, "label": rule, **setting}
                records.append(record(arm, "one label", seed, config, found, start))
    learn, test = breast(seed)
    cases = at_hospitals(draw_cases(TRAIN, 10 * seed, 0.9, 0.9, queries=8), *learn, seed)
    real = Streams(meta_train(cases, seed))
    for law in LAWS:
        cases = at_hospitals(draw_cases(2 * N, 10 * seed + 1, law, 0.5), *test, seed + 1)
        for arm in ("frozen", "entropy only", "leave one out", "context alone"):
            start, setting = time.perf_counter(), best.get(arm, {})
            found = judge(answers(arm, real, cases, setting), cases, law)
            records.append(record(arm, "breast cancer", seed, {"context": law, **setting}, found, start))
    return records


if __name__ == "__main__":
    if sys.argv[1:] == ["tune"]:
        write_records(FILE, tune())
    else:
        found = [r for r in read_records(FILE) if r["dataset"] == "tuning"]
        best = {arm: chosen(found, arm) for arm in GRID}
        for seed in SEEDS:
            found += run(seed, best)
            print(f"seed {seed}: done", file=sys.stderr)
        write_records(FILE, found)
