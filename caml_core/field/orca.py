"""ORCA (Zhou et al., arXiv 2604.01170): a probe that adapts while it reads says when to stop; a test checks it.

A *path* is a problem with T steps; each step shows a vector x_t, and `done` says whether stopping there would be right.
The probe scores a step and then takes a gradient step towards "not done yet", so that only news keeps its score high;
chapter 18 builds it, results/field_orca.json has the stored runs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from torch import Tensor, nn

from caml_core.device import seeded
from caml_core.errors import CamlError

GRID = np.linspace(1, 0, 2001)  # thresholds in the order in which they are tested: the safest first
EPSILON = 0.05  # chance that a certificate is wrong


class Paths(NamedTuple):
    x: Tensor  # float32 (N, T, D)
    done: Tensor  # bool (N, T); once true, it stays true
    group: Tensor  # int64 (N,)


def draw_paths(
    n: int, seed: int, climb: float = 0.0, rho: float = 0.5, unsolved: float = 0.0, steps: int = 80, width: int = 32
) -> Paths:
    """Paths made by the program: noise, and from a step on a jump along one direction, the evidence.

    Some paths climb along the evidence from 0 to `climb`, solved or not: early problems (jump in the first half) with
    probability `rho`, late ones with 1 - rho. A share `unsolved` never jumps. The group is 2 * late + climbs.
    """
    rng = np.random.default_rng(seed)
    late = rng.random(n) < 0.5
    climbs = (rng.random(n) < rho) ^ late
    start = rng.uniform(0.1, 0.5, n) + 0.4 * late
    start[rng.random(n) < unsolved] = 1
    done = np.arange(steps) >= start[:, None] * steps
    x = 0.5 * rng.normal(size=(n, steps, width)) + 0.2 * rng.normal(size=(n, 1, width))
    x[..., 0] += climb * climbs[:, None] * np.linspace(0, 1, steps) + 1.5 * done
    return Paths(torch.from_numpy(x).float(), torch.from_numpy(done), torch.from_numpy(2 * late + climbs).long())


class Probe(nn.Module):
    """Logistic probe whose weights start anew on every path and move after every step.

    `eta`: step size to begin with; 0 makes a probe that never moves. `hidden`: size of two affine views of a step (keys
    move the weights, queries are scored); 0 takes the step itself.
    """

    def __init__(self, width: int, eta: float = 0.01, hidden: int = 0, learn_eta: bool = True) -> None:
        super().__init__()
        self.key, self.query = (nn.Linear(width, hidden) if hidden else nn.Identity() for _ in range(2))
        self.weight = nn.Parameter(0.02 * torch.randn(hidden or width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_eta = nn.Parameter(torch.tensor(float(eta)).log(), requires_grad=learn_eta and eta > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, T) of x (N, T, D), each from the weights before its own step."""
        w, b = self.weight.expand(len(x), -1), self.bias.expand(len(x))
        eta, scores = self.log_eta.exp(), []
        for key, query in zip(self.key(x).unbind(dim=1), self.query(x).unbind(dim=1)):
            scores.append(torch.sigmoid((w * query).sum(dim=1) + b))
            s = torch.sigmoid((w * key).sum(dim=1) + b)
            g = eta * 2 * s * s * (1 - s)  # the derivative of s^2: the target is 0, "not done"
            w, b = w - g[:, None] * key, b - g
        return torch.stack(scores, dim=1)


def fit_probe(paths: Paths, seed: int = 0, *, epochs: int = 20, lr: float = 0.03, **probe: float) -> Probe:
    """Learn start and step size: Adam on the Brier score of all steps, through all updates; `probe`: as for `Probe`."""
    with seeded(seed):
        made = Probe(paths.x.shape[2], **probe)  # type: ignore[arg-type]
        opt = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(paths.x)).split(16):
                opt.zero_grad()
                (made(paths.x[rows]) - paths.done[rows].float()).square().mean().backward()
                nn.utils.clip_grad_norm_(made.parameters(), 1.0)
                opt.step()
    return made


def fit_static(paths: Paths) -> LogisticRegression:
    """The probe that stays as it is: logistic regression on single steps, its penalty chosen by the Brier score."""
    x, y = paths.x.flatten(0, 1).numpy(), paths.done.flatten().numpy()
    how = {"groups": np.repeat(np.arange(len(paths.x)), paths.x.shape[1]), "cv": GroupKFold(4)}
    models = [LogisticRegression(C=c, max_iter=5000) for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    found = [cross_val_score(model, x, y, scoring="neg_brier_score", **how).mean() for model in models]
    return models[int(np.argmax(found))].fit(x, y)


def news(x: Tensor, window: int = 20) -> Tensor:
    """Steps less the mean of the `window` steps before them (of fewer at the beginning; 0 at the first): (N, T, D)."""
    total = nn.functional.pad(x.cumsum(dim=1), (0, 0, window + 1, 0))
    past = (total[:, window:-1] - total[:, : -window - 1]) / torch.arange(x.shape[1]).clamp(1, window)[:, None]
    return torch.cat([torch.zeros_like(x[:, :1]), (x - past)[:, 1:]], dim=1)


def smooth(scores: Tensor, window: int = 10) -> Tensor:
    """Mean of the last `window` scores, those before the first step counted as 0: (N, T)."""
    total = nn.functional.pad(scores.double().cumsum(dim=1), (window, 0))
    return (total[:, window:] - total[:, :-window]) / window


def stops(scores: Tensor, thresholds: np.ndarray) -> np.ndarray:
    """First step whose score reaches each threshold, the last step where none does: int (N, L) of scores (N, T)."""
    peak = scores.cummax(dim=1).values.numpy()
    return np.minimum([np.searchsorted(row, thresholds) for row in peak], scores.shape[1] - 1)


def risk_p(losses: np.ndarray, delta: float, group: np.ndarray | None = None) -> np.ndarray:
    """p-values (L,) of "the risk is above delta" for losses 0 or 1 (N, L); with groups, of "some group's risk is"."""
    parts = [losses] if group is None else [losses[group == g] for g in np.unique(group)]
    if min(map(len, parts)) < (need := math.ceil(math.log(EPSILON) / math.log1p(-delta))):
        raise CamlError(
            what=f"{min(map(len, parts))} calibration examples" + " in a group" * (group is not None),
            expected=f"at least {need}: without a single error, fewer do not prove a risk of {delta} at {EPSILON}",
            remedy="take more of them, or a larger delta",
        )
    return np.max([binom.cdf(part.sum(axis=0), len(part), delta) for part in parts], axis=0)


def certify(scores: Tensor, done: Tensor, delta: float, group: Tensor | None = None) -> float:
    """Learn then test: the lowest threshold that passes, with all above it; inf (never stop early) where none does.

    With probability 1 - EPSILON over exchangeable calibration paths, at most a share delta of new paths is stopped
    wrongly; with groups, of every group. Too few paths for that raise `CamlError`.
    """
    losses = 1 - np.take_along_axis(done.numpy(), stops(scores, GRID), axis=1)
    passed = risk_p(losses, delta, None if group is None else group.numpy()) <= EPSILON
    n = len(GRID) if passed.all() else int(passed.argmin())
    return float(GRID[n - 1]) if n else math.inf


def judge(scores: Tensor, paths: Paths, threshold: float) -> dict[str, float]:
    """Share of steps saved, share of wrong stops, and that of the worst group, in percent."""
    at = stops(scores, np.array([threshold]))
    wrong = ~np.take_along_axis(paths.done.numpy(), at, axis=1)[:, 0]
    worst = max(wrong[paths.group.numpy() == g].mean() for g in paths.group.unique().tolist())
    saved = 1 - (at.mean() + 1) / scores.shape[1]
    return {"saved": 100 * saved, "error": 100 * wrong.mean(), "worst_group": 100 * worst}
