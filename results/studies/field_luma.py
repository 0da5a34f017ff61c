"""LUMA's priors over tasks beside MAML and other Gaussian processes, results/field_luma.json.

python results/studies/field_luma.py

Sines; half sines, half lines; nine sines to a line; and the control, rough functions, which have nothing in common.
Every seed has its own first weights, training tasks and 300 test tasks with 50 query points; all methods see as many
training tasks, MAML twice as many labels. MAML's inner steps are 0.001 (the public code), 0.01 and 0.03.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from caml_core.field.luma import (
    NOISE,
    Draw,
    Labels,
    Prior,
    adapt,
    condition,
    evidence,
    fit,
    forward,
    maml,
    project,
    start,
    tasks,
)
from caml_core.runs.records import provenance, write_records

SEEDS, STEPS, KS = (0, 1, 2, 3), 700, range(1, 11)
AT = 3  # labels at which a metric has its one value
Found = tuple[Tensor, Tensor, Tensor]  # squared errors, negative log densities, caught by the 90% interval: (T, M)


def rbf(x: Tensor, amplitude: Any = 1.5, length: Any = 1.0, level: Any = 0.0) -> Labels:
    """Labels under a Gaussian process with a squared exponential kernel; its defaults draw the rough functions."""
    cov = amplitude**2 * torch.exp(-((x - x.mT) ** 2) / (2 * length**2))
    return (level + 0 * x[None, ..., 0]), (cov + NOISE**2 * torch.eye(x.shape[1], dtype=x.dtype))[None]


def rough(n: int, points: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, _, kind = tasks({"line": 1})(n, points, g)
    normal = torch.randn(n, points, 1, generator=g, dtype=torch.float64)
    return x, (torch.linalg.cholesky(rbf(x)[1][0]) @ normal)[..., 0], kind


def sine_moments(x: Tensor) -> Labels:
    """The mean and covariance that labels of sine tasks have: of all Gaussian priors the best."""
    first, second = 2.55, (5**3 - 0.1**3) / (3 * 4.9)  # moments of the amplitude
    middle = first * 2 / math.pi * x.cos()
    cov = second / 2 * torch.cos(x - x.mT) - middle @ middle.mT + NOISE**2 * torch.eye(x.shape[1], dtype=x.dtype)
    return 1 + middle[None, ..., 0], cov[None]


def fitted_rbf(draw: Draw, seed: int) -> Callable[[Tensor], Labels]:
    """Amplitude, length and level by the evidence of 24 times 100 tasks."""
    g, free = torch.Generator().manual_seed(seed), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam([free], 0.05)
    for _ in range(100):
        x, y, _ = draw(24, 10, g)
        adam.zero_grad()
        (-evidence(rbf(x, *free), y)[0].mean()).backward()
        adam.step()
    return lambda x: rbf(x, *free.detach())


def gaussian(labels: Labels, y: Tensor, K: int, soft: bool) -> tuple[Found, Tensor]:
    """What K labels a task teach about the points from the eleventh on; the surprise of each context, (T,)."""
    keep = [*range(K), *range(10, y.shape[1])]
    mean, variance, found = condition((labels[0][..., keep], labels[1][..., keep, :][..., keep]), y[:, :K])
    weight = (found.softmax(0) if soft else (found == found.amax(0)).double())[..., None]
    normal, query = torch.distributions.Normal(mean, variance.sqrt()), y[:, 10:]
    level = (weight * normal.cdf(query)).sum(0)
    density = (weight.log() + normal.log_prob(query)).logsumexp(0)
    surprise = math.log(len(found)) - found.logsumexp(0)
    return (((weight * mean).sum(0) - query) ** 2, -density, (level - 0.5).abs() < 0.45), surprise


def in_parts(labels: Callable[[Tensor], Labels], x: Tensor) -> Labels:
    """The labels of fifty tasks at a time: a Jacobian of all would take much memory."""
    means, covs = zip(*(labels(some) for some in x.split(50)))
    return torch.cat(means, 1), torch.cat(covs, 1)


def by_maml(theta: Tensor, inner: float, x: Tensor, y: Tensor, K: int, sigma: float) -> tuple[Found, Tensor, Tensor]:
    """Ten inner steps, as in the public code; sigma: of an error, from validation tasks."""
    context = x[:, :K], y[:, :K]
    adapted = adapt(theta, *context, inner, 10).detach()
    error, normal = forward(adapted, x[:, 10:]) - y[:, 10:], torch.distributions.Normal(0.0, sigma)
    surprise = [((forward(t, context[0]) - context[1]) ** 2).mean(1).detach() for t in (theta[None], adapted)]
    return (error**2, -normal.log_prob(error), error.abs() < 1.645 * sigma), surprise[0], surprise[1]


def summary(found: list[Found], kind: Tensor, names: list[str]) -> dict[str, list[float]]:
    """Means by K, of all tasks and, where there are several, of each kind."""
    result = {}
    for i, metric in enumerate(("mse", "nll", "coverage")):
        result[metric] = [f[i].double().mean().item() for f in found]
        for k, name in enumerate(names if len(names) > 1 else []):
            result[f"{metric} {name}"] = [f[i][kind == k].double().mean().item() for f in found]
    if len(names) > 1:
        result["worst mse"] = [max(both) for both in zip(*(result[f"mse {name}"] for name in names))]
    return result


def areas(inside: list[Tensor], outside: list[Tensor]) -> list[float]:
    """By K, how well the surprise of a context tells tasks of another family: area under the curve."""
    y = [0] * len(inside[0]) + [1] * len(outside[0])
    return [float(roc_auc_score(y, torch.cat(pair).nan_to_num(1e9))) for pair in zip(inside, outside)]


FAMILIES: dict[str, tuple[Draw, list[str], Draw]] = {
    "sines": (tasks({"sine": 1}), ["sine"], tasks({"line": 1, "quadratic": 1})),
    "sines and lines": (tasks({"sine": 1, "line": 1}), ["sine", "line"], tasks({"quadratic": 1})),
    "nine sines to a line": (tasks({"sine": 9, "line": 1}), ["sine", "line"], tasks({"quadratic": 1})),
    "rough": (rough, ["rough"], tasks({"line": 1, "quadratic": 1})),
}


def run(seed: int, name: str, steps: int = STEPS) -> list[dict[str, Any]]:
    """Every method on one family of tasks with one seed."""
    draw, kinds, other = FAMILIES[name]
    x, y, kind = draw(300, 60, torch.Generator().manual_seed(1000 + seed))
    ox, oy, _ = other(300, 60, torch.Generator().manual_seed(2000 + seed))
    vx, vy, _ = draw(300, 60, torch.Generator().manual_seed(3000 + seed))
    records: list[dict[str, Any]] = []
    clock = [time.perf_counter()]

    def keep(method: str, used: int, metrics: dict[str, list[float]], **config: Any) -> None:
        seconds = time.perf_counter() - clock[0]
        clock[0] += seconds
        rounded = {k: [float(f"{one:.4g}") for one in v] for k, v in metrics.items()}
        records.append({
            "method": method, "run": method, "dataset": name, "seed": seed, "config": {"steps": used, **config},
            "metrics": {k: {"value": v[AT - 1], "by_k": v} for k, v in rounded.items()},
            "provenance": provenance(torch.device("cpu"), seconds, "python results/studies/field_luma.py"),
        })  # fmt: skip
        print(seed, name, method, rounded["mse"], round(seconds), file=sys.stderr)

    def keep_prior(method: str, labels: Callable[[Tensor], Labels], used: int = 0, soft: bool = False) -> None:
        ours, others = (
            tuple(torch.cat(part, 1) for part in zip(*(labels(some) for some in points.split(50))))
            for points in (x, ox)
        )
        found = [gaussian(ours, y, K, soft) for K in KS]  # type: ignore[arg-type]
        strange = [gaussian(others, oy, K, soft) for K in KS]  # type: ignore[arg-type]
        metrics = summary([f for f, _ in found], kind, kinds)
        metrics["auc"] = areas([s for _, s in found], [s for _, s in strange])
        metrics["coverage elsewhere"] = [f[2].double().mean().item() for f, _ in strange]
        keep(method, used, metrics)

    def keep_maml(inner: float, times: int) -> None:
        theta = maml(start(seed).theta, draw, 2 * steps * times, seed, inner)
        val = [by_maml(theta, inner, vx, vy, K, 1.0)[0][0].mean().sqrt().item() for K in KS]
        found = [by_maml(theta, inner, x, y, K, sigma) for K, sigma in zip(KS, val)]
        strange = [by_maml(theta, inner, ox, oy, K, sigma) for K, sigma in zip(KS, val)]
        metrics = summary([f[0] for f in found], kind, kinds)
        metrics["auc"] = areas([f[1] for f in found], [s[1] for s in strange])
        metrics["auc after adapting"] = areas([f[2] for f in found], [s[2] for s in strange])
        metrics["coverage elsewhere"] = [f[0][2].double().mean().item() for f in strange]
        metrics["validation mse"] = [sigma**2 for sigma in val]
        more = f", {times} times the steps" if times > 1 else ""
        keep(f"maml {inner}{more}", 2 * steps * times, metrics, inner=inner)

    first = fit(start(seed), draw, steps, seed)

    def second(prior: Prior) -> Prior:
        return fit(prior, draw, steps, 100 + seed)

    keep_prior("fisher", second(project(first, "fisher", seed)), 2 * steps)
    if name in ("sines", "rough"):
        keep_prior("identity", second(first), 2 * steps)
    if name == "rough":
        keep_prior("true RBF", rbf)
        return records
    two = second(project(first, "fisher", seed, components=2))
    keep_prior("mixture", two, 2 * steps)
    keep_prior("mixture, soft", two, 2 * steps, soft=True)
    if name == "sines and lines":
        keep_maml(0.01, 1)
    if name == "sines":
        keep_prior("random", second(project(first, "random", seed)), 2 * steps)
        keep_prior("best Gaussian", sine_moments)
        keep_prior("fitted RBF", fitted_rbf(draw, seed))
        for inner, times in [(0.001, 1), (0.01, 1), (0.03, 1)] + [(0.01, 5)] * (seed == 0):
            keep_maml(inner, times)
    return records


def main() -> None:
    records = [record for seed in SEEDS for name in FAMILIES for record in run(seed, name)]
    write_records(Path(__file__).parent.parent / "field_luma.json", records)


if __name__ == "__main__":
    main()
