"""In the spirit of PASM (Qian and Dong, arXiv 2604.00074): a mixture of rules that one can read, adapted by few labels.

Only the abstract could be read. Grammar, search, router and adaptation are ours; a typed beam search stands in for the
language model that proposes rules. For x, y and the grammar see `caml_core.field.households`. Chapter 25 builds it,
results/field_pasm.json has the stored runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.households import Rule, columns, plain_terms, size, typed_terms

PULLS, FOLDS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), 5  # strengths of the prior, and the folds that choose one


class Mixture(NamedTuple):
    """K rules with a weight for each term (the last: a constant), and a router that is linear in the features."""

    rules: tuple[Rule, ...]
    weights: tuple[Tensor, ...]  # (T_k + 1,) each
    router: Tensor  # (K, D + 1)

    def log_joint(self, x: Tensor, y: Tensor, tables: Sequence[Tensor] = ()) -> Tensor:
        """log of pi_k(x) p(y | x, rule k): (N, K). `tables`: columns of x for rules and router, if they are at hand."""
        *parts, routed = tables or [columns(rule, x) for rule in (*self.rules, plain_terms())]
        logits = torch.stack([a @ w for a, w in zip(parts, self.weights)], dim=1)
        return (routed @ self.router.T).log_softmax(dim=1) + F.logsigmoid((2 * y[:, None] - 1) * logits)

    def predict(self, x: Tensor) -> Tensor:
        """P(goes): (N,)."""
        return self.log_joint(x, torch.ones_like(x[:, 0])).logsumexp(dim=1).exp()

    def loss(self, x: Tensor, y: Tensor) -> float:
        return -float(self.log_joint(x, y).logsumexp(dim=1).sum())

    def price(self, x: Tensor, y: Tensor) -> float:
        """The loss, and log N / 2 for each constant: half of what is called BIC."""
        return self.loss(x, y) + math.log(len(x)) / 2 * (sum(map(size, self.rules)) + self.router[1:].numel())

    def __str__(self) -> str:
        rows = zip(self.rules, self.weights)
        return "\n".join(" ".join(f"{v:+.1f} {t}" for t, v in zip((*r, ""), w.tolist())).strip() for r, w in rows)


def fit(m: Mixture, x: Tensor, y: Tensor, pull: float = 0.1, towards: Mixture | None = None) -> Mixture:
    """All constants by L-BFGS from where they are: the loss + pull / 2 * sum of (constant - its prior mean)^2."""
    tables, sizes = [columns(rule, x) for rule in (*m.rules, plain_terms())], [*map(len, m.weights), m.router.numel()]
    prior: Tensor | float = torch.cat([*towards.weights, towards.router.flatten()]) if towards else 0.0

    def at(v: Tensor) -> Mixture:
        *weights, router = v.split(sizes)
        return m._replace(weights=tuple(weights), router=router.view_as(m.router))

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        t = torch.from_numpy(v).requires_grad_()
        value = pull / 2 * (t - prior).square().sum() - at(t).log_joint(x, y, tables).logsumexp(dim=1).sum()
        return value.item(), torch.autograd.grad(value, t)[0].numpy()

    start = torch.cat([*m.weights, m.router.flatten()]).numpy()
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return at(torch.from_numpy(found.x))


def regress(a: Tensor, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regressions by Newton, B at once, example n counting r_n: a (B, N, T) to weights (B, T), losses (B,)."""
    w, ridge = torch.zeros(len(a), a.shape[2], 1).to(a), 0.1 * torch.eye(a.shape[2]).to(a)
    for _ in range(8):
        p = (a @ w).sigmoid()
        slope = a.mT @ (r[:, None] * (p - y[:, None])) + ridge @ w
        w = w - torch.linalg.solve((a * (r[:, None] * p * (1 - p))).mT @ a + ridge, slope).clamp(-4, 4)
    return w[..., 0], -(r * F.logsigmoid((2 * y - 1) * (a @ w)[..., 0])).sum(dim=1)


def search(terms: Rule, x: Tensor, y: Tensor, r: Tensor, width: int = 3, most: int = 4) -> Rule:
    """Beam search for one rule: a term at a time, those of the best score tests; of all seen the lowest price."""
    a, seen = columns(terms, x), dict[tuple[int, ...], float]()
    beam: list[tuple[int, ...]] = [()]
    for _ in range(most + 1):
        tried = torch.stack([a[:, [*rule, -1]] for rule in beam])
        w, losses = regress(tried, y, r)
        new = set()
        for b in losses.argsort()[:width].tolist():
            seen[beam[b]] = float(losses[b]) + math.log(len(x)) / 2 * size(tuple(terms[i] for i in beam[b]))
            p = (tried[b] @ w[b]).sigmoid()
            v, step = r * p * (1 - p), r * (y - p)
            spread = v @ a.square() - (v @ a).square() / v.sum()
            gain = ((step @ a).square() / spread.clamp_min(1e-3 * v.sum()))[:-1]
            gain[list(beam[b])] = -1
            new |= {tuple(sorted((*beam[b], i))) for i in gain.topk(2 * width).indices.tolist()}
        beam = sorted(new)
    return tuple(terms[i] for i in min(seen, key=lambda rule: seen[rule]))


def fit_mixture(k: int, x: Tensor, y: Tensor, seed: int = 0, terms: Rule | None = None, tries: int = 5) -> Mixture:
    """From the best of some random starts: share households out, search a rule for each share, fit all."""
    rng, plain, found = torch.Generator().manual_seed(seed), plain_terms(), []
    for _ in range(tries if k > 1 else 1):
        w, router = torch.randn(2, k, len(plain) + 1, generator=rng).to(x)
        router[:, :-1] *= 4
        router[:, -1] = -router[:, :-1] @ x.mean(dim=0)
        found.append(fit(Mixture((plain,) * k, tuple(0.1 * w), router), x, y))
    best = m = min(found, key=lambda m: m.loss(x, y))
    for n in range(0 if terms == plain else 5):
        shares = m.log_joint(x, y).softmax(dim=1).T
        rules = tuple(search(terms or typed_terms(), x, y, r) for r in shares)
        weights = tuple(regress(columns(rule, x)[None], y, r)[0][0] for rule, r in zip(rules, shares))
        m = fit(Mixture(rules, weights, m.router), x, y)
        if n and m.price(x, y) > best.price(x, y) - 1e-3:
            break
        best = m
    return best


def adapt(m: Mixture, x: Tensor, y: Tensor) -> Mixture:
    """All constants anew from a few answers of another state, pulled to where they were; terms and thresholds stay.

    The strength of the pull is chosen by five-fold cross-validation. Too few answers of a kind raise `CamlError`.
    """
    stay, goes = torch.bincount(y.long(), minlength=2).tolist()
    if min(stay, goes) < FOLDS or not x.isfinite().all():
        what = f"{goes} calibration households that go, {stay} that stay, or features unknown"
        remedy = "survey more of them, or use the rules as they are"
        raise CamlError(what, f"at least {FOLDS} of each, one for each fold; all features known", remedy)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y))
    scores = [sum(fit(m, x[i], y[i], pull, m).loss(x[j], y[j]) for i, j in folds) for pull in PULLS]
    return fit(m, x, y, PULLS[int(np.argmin(scores))], m)
