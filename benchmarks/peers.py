"""Our functions beside what one would pick instead: maintained packages, authors' loops, plain scripts.

Every line first shows that both do the same, then times them in turn (a round of each, so that a busy moment hits all),
and prints medians in Markdown; a peer that is ahead by more than 5% is marked. Peers that are not installed are named.

    pip install -e ".[peers]"
    python benchmarks/peers.py                                  # all lines
    python benchmarks/peers.py acquisition hsfm --repeats 5 --out results/peers.json
    python benchmarks/peers.py --small                          # a minute: does everything run and agree?

A new line is a function under `@line` that returns `Line`s; a peer's import stands inside its own function.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.acquisition import Pool, acquire
from caml_core.groups import GroupDataset
from caml_core.heads import C_GRID, dfr
from caml_core.hsfm import draw_support, hsfm
from caml_core.hsfm_settings import PUBLISHED, Settings, scaled
from caml_core.metrics import group_metrics

VERSIONS = ("torch", "numpy", "scikit-learn", "scikit-activeml", "torchopt", "higher")


class Line(NamedTuple):
    """One row of the table."""

    work: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    agree: Callable[
        [Any, dict[str, Any]], str
    ]  # (our result, theirs by name): how they agree; raises where they do not


LINES: dict[str, Callable[[bool], list[Line]]] = {}


def line(make: Callable[[bool], list[Line]]) -> Callable[[bool], list[Line]]:
    """Register a function that makes lines; it is told whether they should be small."""
    LINES[make.__name__] = make
    return make


def same(ours: Any, theirs: dict[str, Any]) -> str:
    """The same rows, in any order."""
    for name, rows in theirs.items():
        assert set(ours) == set(rows), f"{name} takes {len(set(ours) - set(rows))} other rows"
    return "same rows"


# --- acquisition ------------------------------------------------------------------------------------------------------


@line
def acquisition(small: bool) -> list[Line]:
    n, d, classes, labelled, k = (2_000, 32, 4, 50, 20) if small else (50_000, 512, 10, 1_000, 100)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(60, d, generator=g)
    z, known = (
        (centres[torch.randint(60, (m,), generator=g)] + torch.randn(m, d, generator=g)).relu() for m in (n, labelled)
    )
    head = nn.utils.skip_init(nn.Linear, d, classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, d, generator=g) / d**0.5)
        head.bias.zero_()
        pool = Pool(head(z), z, known, head)
    both, y = np.concatenate([z.numpy(), known.numpy()]), np.r_[np.full(n, np.nan), np.zeros(labelled)]

    def ours(name: str) -> Callable[[], list[int]]:
        return lambda: acquire(name, pool, k, torch.Generator().manual_seed(5)).tolist()

    def uncertainty(method: str) -> Callable[[], list[int]]:
        def run() -> list[int]:
            from skactiveml.pool import uncertainty_scores

            return (
                (-uncertainty_scores(pool.logits.softmax(1).numpy(), method=method)).argsort(kind="stable")[:k].tolist()
            )

        return run

    def k_greedy() -> list[int]:
        from skactiveml.pool import k_greedy_center

        return k_greedy_center(both, y, batch_size=k, random_state=0)[0].tolist()

    def mutual_information() -> list[int]:
        from skactiveml.pool import batch_bald

        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            masks = (torch.rand(z.shape, generator=g) >= 0.5 for _ in range(20))
            probabilities = torch.stack([head(z * mask / 0.5).softmax(1) for mask in masks]).numpy()
        return (-batch_bald(probabilities, 1)[0]).argsort(kind="stable")[:k].tolist()

    def seeding() -> list[int]:
        """BADGE as its authors' code does it: distances from the two factors of a gradient, all float64 on NumPy."""
        p = pool.logits.softmax(1).double().numpy()
        a, x = p - np.eye(classes)[p.argmax(1)], z.double().numpy()
        length, generator = (a * a).sum(1) * (x * x).sum(1), torch.Generator().manual_seed(5)
        rows, nearest = [int(length.argmax())], np.full(n, np.inf)
        while len(rows) < k:
            row = rows[-1]
            nearest = np.minimum(nearest, np.maximum(length + length[row] - 2 * (a @ a[row]) * (x @ x[row]), 0))
            nearest[rows] = 0
            weight = nearest.cumsum()
            at = float(torch.rand((), generator=generator, dtype=torch.float64)) * weight[-1]
            rows.append(int(np.searchsorted(weight, at, side="right")))
        return rows

    def typical() -> list[int]:
        from skactiveml.pool import TypiClust
        from sklearn.cluster import MiniBatchKMeans

        how = {"n_init": 1, "random_state": 0}
        query = TypiClust(cluster_algo=MiniBatchKMeans, cluster_algo_dict=how, n_cluster_param_name="n_clusters", k=20)
        unit = both / np.linalg.norm(both, axis=1, keepdims=True)
        return query.query(unit, y, candidates=np.arange(n), batch_size=k).tolist()

    def differ(ours: Any, theirs: dict[str, Any]) -> str:
        assert all(len(set(rows)) == k for rows in (ours, *theirs.values()))
        return "other clusters, so other rows"

    at = f"{k} of {n:,} x {d}"
    lines = [
        Line(f"{name.replace('_', ' ')}, {at}", ours(name), {"scikit-activeml": uncertainty(method)}, same)
        for name, method in (
            ("least_confidence", "least_confident"),
            ("margin", "margin_sampling"),
            ("entropy", "entropy"),
        )
    ]
    return [
        *lines,
        Line(f"core-set, {at}", ours("core_set"), {"scikit-activeml": k_greedy}, same),
        Line(f"BALD, 20 draws, {at}", ours("bald"), {"scikit-activeml": mutual_information}, same),
        Line(f"BADGE, {at}", ours("badge"), {"authors' way in NumPy": seeding}, same),
        Line(f"TypiClust, {at}", ours("typiclust"), {"scikit-activeml, mini-batches": typical}, differ),
    ]


# --- heads on features ------------------------------------------------------------------------------------------------


def features(n: int, rho: float, d: int, seed: int, dtype: torch.dtype = torch.float32) -> GroupDataset:
    """Features of two classes with a loud shortcut: 60 say a, 60 say y more softly."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randn(n, d, generator=g)
    x[:, :60] += 0.35 * (2 * a - 1)[:, None]
    x[:, 60:120] += 0.18 * (2 * y - 1)[:, None]
    return GroupDataset(x.to(dtype), y, a, class_names=("0", "1"), attribute_names=("0", "1"))


def double_backward(
    train: GroupDataset, val: GroupDataset, start: tuple[Tensor, Tensor], settings: Settings, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """HSFM as a script: autograd through the inner steps, torch's Adam; the edited support and the best head."""
    rows = draw_support(train, settings.support, [seed])[0]
    h, y = train.x[rows].clone().requires_grad_(), train.y[rows]
    head = [part.clone().requires_grad_() for part in start]
    edit = torch.optim.Adam([h], lr=settings.eta)
    last = torch.optim.Adam(head, lr=settings.alpha)
    best, kept = -1.0, [part.detach().clone() for part in head]
    for epoch in range(settings.epochs + 1):
        with torch.no_grad():
            logits = val.x @ head[0].T + head[1]
            worst = group_metrics(logits, val)["worst_group"]["value"]
            losses = F.cross_entropy(logits, val.y, reduction="none")
            of_class = [torch.where(val.y == c)[0] for c in range(len(val.class_names))]
            hard = torch.cat([r[losses[r].topk(settings.hard).indices] for r in of_class])
        if worst > best:
            best, kept = worst, [part.detach().clone() for part in head]
        if epoch == settings.epochs:
            break
        for _ in range(settings.edits):
            w, b = (part.detach().requires_grad_() for part in head)
            for _ in range(settings.steps):
                g = torch.autograd.grad(F.cross_entropy(h @ w.T + b, y), (w, b), create_graph=True)
                w, b = w - settings.alpha * g[0], b - settings.alpha * g[1]
            edit.zero_grad()
            F.cross_entropy(val.x[hard] @ w.T + b, val.y[hard]).backward()
            torch.nn.utils.clip_grad_norm_([h], settings.clip)
            edit.step()
        for _ in range(settings.steps):
            last.zero_grad()
            F.cross_entropy(h.detach() @ head[0].T + head[1], y).backward()
            last.step()
    return h.detach(), kept


@line
def hypergradients(small: bool) -> list[Line]:
    """HSFM, one fit and sixteen, at both widths of the book's backbones."""
    widths, few = ((128,), 2) if small else ((1_280, 2_048), 16)
    return [_hsfm(small, d, tuple(range(n))) for d in widths for n in (1, few)]


def _hsfm(small: bool, d: int, seeds: tuple[int, ...]) -> Line:
    n_train, n_val = (400, 400) if small else (8_000, 2_000)
    train, val = features(n_train, 0.9, d, 0), features(n_val, 0.5, d, 1)
    how = scaled(PUBLISHED["dominoes"], train.x)
    if small:
        how = dataclasses.replace(how, hard=32, epochs=2)
    weight, bias = torch.zeros(2, d), torch.zeros(2)
    weight[1, :120], weight[0, :120] = 0.02, -0.02

    def agree(ours: Any, theirs: dict[str, Any]) -> str:
        """One epoch in float64: rounding in float32 moves single seeds by a point or two of accuracy."""
        precise = [split.with_x(split.x.double()) for split in (train, val)]
        head, once = (weight.double(), bias.double()), dataclasses.replace(how, epochs=1)
        seen: list[Tensor] = []
        hsfm(precise[0], precise[1], *head, once, on_epoch=lambda _, h, *rest: seen.append(h[0].clone()))
        edited, _ = double_backward(precise[0], precise[1], head, once, 0)
        apart = float((seen[-1] - edited).abs().max() / edited.abs().max())
        assert apart < 1e-9, f"edited features are {apart:.1e} apart"
        return f"edited features {apart:.0e} apart after an epoch in float64"

    return Line(
        f"HSFM, {len(seeds)} seeds, {how.epochs} epochs, {n_train:,} x {d:,}",
        lambda: hsfm(train, val, weight, bias, how, seeds=seeds),
        {"a script of double backward": lambda: [double_backward(train, val, (weight, bias), how, s) for s in seeds]},
        agree,
    )


def authors_dfr(val: GroupDataset, seed: int, subsets: int = 10) -> tuple[np.ndarray, float]:
    """DFR as its authors' script does it: choose C on a random half by worst group, then average balanced refits."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    x, y, group = val.x.numpy(), val.y.numpy(), val.group.numpy()

    def balanced(rows: np.ndarray) -> np.ndarray:
        by_group = [rng.permutation(rows[group[rows] == g]) for g in range(val.n_groups)]
        return np.concatenate([r[: min(map(len, by_group))] for r in by_group])

    def fit(rows: np.ndarray, c: float) -> Any:
        return LogisticRegression(solver="liblinear", l1_ratio=1.0, C=c).fit(x[rows], y[rows])

    order = rng.permutation(len(y))
    held, half = np.split(order, 2)
    half, worst = balanced(half), []
    for c in C_GRID:
        right = fit(half, c).predict(x[held]) == y[held]
        worst.append(min(right[group[held] == g].mean() for g in range(val.n_groups)))
    best = C_GRID[int(np.argmax(worst))]
    fits = [fit(balanced(order), best) for _ in range(subsets)]
    return np.mean([np.append(f.coef_[0], f.intercept_[0]) for f in fits], axis=0), best


@line
def reweighting(small: bool) -> list[Line]:
    """DFR on a biased and on a balanced validation split."""
    sizes = ((600, 0.8), (400, 0.5)) if small else ((8_000, 0.9), (2_000, 0.5))
    return [_dfr(n, rho, 130 if small else 1_280) for n, rho in sizes]


def _dfr(n: int, rho: float, d: int) -> Line:
    val, test = features(n, rho, d, 1), features(4_000, 0.5, d, 2)
    if rho == 0.5:  # exactly as many of each group
        val = val.subset(torch.cat([torch.where(val.group == g)[0][: int(val.group_counts.min())] for g in range(4)]))

    def agree(ours: Any, theirs: dict[str, Any]) -> str:
        ((coefficients, _),) = theirs.values()
        right = (test.x.numpy() @ coefficients[:-1] + coefficients[-1] > 0) == test.y.numpy()
        other = 100 * min(right[(test.group == g).numpy()].mean() for g in range(4))
        own = group_metrics(ours.logits(test.x), test)["worst_group"]["value"]
        assert abs(own - other) < 4, f"worst group {own:.1f} and {other:.1f}"
        return f"worst group {own:.1f} and {other:.1f}"

    work = f"DFR, {len(val):,} x {d:,}, {'biased' if rho > 0.5 else 'balanced'}"
    return Line(work, lambda: dfr(val, val), {"authors' way": lambda: authors_dfr(val, 0)}, agree)


# --- the table --------------------------------------------------------------------------------------------------------


def measure(row: Line, repeats: int) -> dict[str, Any]:
    """Medians of seconds, in turn, after a first run of each that is compared and not counted."""
    runs, missing = {"ours": row.ours, **row.peers}, []
    first = {}
    for name, run in list(runs.items()):
        try:
            first[name] = run()
        except ModuleNotFoundError as error:
            missing.append(f"{name} (no {error.name})")
            del runs[name]
    theirs = {name: result for name, result in first.items() if name != "ours"}
    agree = row.agree(first["ours"], theirs) if theirs else "nobody to compare with"
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"work": row.work, "seconds": medians, "agree": agree, "missing": missing, "repeats": repeats}


def in_markdown(row: dict[str, Any]) -> str:
    """Seconds and how many times ours each peer takes."""
    own = row["seconds"]["ours"]
    cells = [
        f"{name} {value:.3g} s ({value / own:.2g}x{', ahead' if value < own / 1.05 else ''})"
        for name, value in row["seconds"].items()
        if name != "ours"
    ]
    return f"| {row['work']} | {own:.3g} s | {'; '.join(cells + row['missing'])} | {row['agree']} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="NAME", help=f"of {', '.join(LINES)}; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything agrees")
    parser.add_argument("--out", type=Path, help="JSON file for the record: machine, versions, medians")
    given = parser.parse_args(arguments)
    if unknown := set(given.lines) - set(LINES):
        parser.error(f"no line {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    torch.set_flush_denormal(True)
    print("| work | ours | others | agreement |\n|:--|--:|:--|:--|")
    rows = []
    for name in given.lines or LINES:
        for row in LINES[name](given.small):
            rows.append(measure(row, given.repeats))
            print(in_markdown(rows[-1]), flush=True)
    if given.out:
        installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        versions = {name: installed[name] for name in VERSIONS if name in installed}
        record = {"machine": machine, "python": platform.python_version(), "versions": versions, "lines": rows}
        given.out.write_text(json.dumps({**record, "date": time.strftime("%Y-%m-%d")}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
