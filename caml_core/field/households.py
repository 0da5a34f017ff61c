"""Households that a storm threatens, made by the program, and a grammar for rules about them (chapter 25).

x is float64 (N, 14), a column for each of `NAMES`, all in 0..1; y is float64 (N,), 1 where a household goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caml_core.errors import CamlError

FLAGS = ("order", "pets", "children", "mobile")  # 0 or 1; "mobile": lives in a mobile home
NAMES = (*FLAGS, "risk", "trust", "income", "age", "notice", "storms", "tenure", "vehicles", "elevation", "distance")
KINDS = ("order-followers", "cost-benefit", "inertia")
LAWS = ("rules", "one rule", "outside")


class Survey(NamedTuple):
    x: Tensor
    y: Tensor
    kind: Tensor  # int64 (N,): the archetype, which nobody observes
    p: Tensor  # float64 (N,): the true P(goes | x) of this state


def draw(n: int, seed: int, mix: Sequence[float], shift: float = 0.0, law: str = "rules") -> Survey:
    """A state: `mix` of archetypes at average trust, income and tenure; features moved by `shift`; 5% false answers.

    Law: three "rules"; "one rule" for all, that of order-followers; or three "outside" of the chapter's grammar.
    """
    if law not in LAWS or len(mix) != 3 or min(mix) <= 0 or shift <= -2:
        what = f"law {law!r}, mix {tuple(mix)}, shift {shift}"
        raise CamlError(what, f"a law of {', '.join(LAWS)}; three shares above 0; a shift above -2", "correct it")
    rng = np.random.default_rng(seed)
    x = rng.beta(2 + shift, 2, (n, len(NAMES)))
    x[:, :4] = x[:, :4] > 0.5
    order, pets, children, mobile, risk, trust, income, age, notice, storms, tenure = x.T[:11]
    obey, weigh = 5 * order - 2.5 * pets - 1.5, 10 * risk - 4 * (notice < 0.4) - 3
    stay = 4 * mobile - 5 * (storms > 0.5)
    ring = 80 * ((risk - 0.5) ** 2 + (age - 0.5) ** 2) - 6
    odd = 5 * ((order + pets + children) % 2) - 2.5
    rules = {"rules": (obey, weigh, stay), "one rule": (obey,) * 3, "outside": (ring, odd, 4 * np.cos(20 * notice))}
    goes = 0.05 + 0.9 / (1 + np.exp(-np.stack(rules[law])))
    lean = 8 * np.stack([trust, income, tenure]) + np.log(mix)[:, None]
    kind = (lean + rng.gumbel(size=lean.shape)).argmax(axis=0)
    p = (np.exp(lean) * goes).sum(axis=0) / np.exp(lean).sum(axis=0)
    return Survey(*map(torch.from_numpy, (x, 1.0 * (rng.random(n) < goes[kind, np.arange(n)]), kind, p)))


class Term(NamedTuple):
    """A piece that one can read: x_i, [x_i > c] or x_i * x_j."""

    i: int
    j: int | None = None
    c: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.c is not None:
            return (x[:, self.i] > self.c).to(x)
        return x[:, self.i] if self.j is None else x[:, self.i] * x[:, self.j]

    def __str__(self) -> str:
        a = NAMES[self.i] + ("" if self.j is None else f"*{NAMES[self.j]}")
        return a if self.c is None else f"[{a} > {self.c:.2f}]"


Rule = tuple[Term, ...]


def plain_terms() -> Rule:
    """Every feature as it is."""
    return tuple(map(Term, range(len(NAMES))))


def typed_terms() -> Rule:
    """Stand-in for the language model: all pieces that make sense: shares have thresholds, a flag switches anything."""
    cuts = [Term(i, c=c / 20) for i in range(len(FLAGS), len(NAMES)) for c in range(3, 18)]
    pairs = [Term(i, j) for i, j in combinations(range(len(NAMES)), 2) if i < len(FLAGS)]
    return (*plain_terms(), *cuts, *pairs)


def columns(rule: Rule, x: Tensor) -> Tensor:
    """Values of the terms, then ones: (N, T + 1)."""
    return torch.stack([*(term(x) for term in rule), torch.ones_like(x[:, 0])], dim=1)


def size(rule: Rule) -> int:
    """Constants of a rule, thresholds included."""
    return 1 + len(rule) + sum(term.c is not None for term in rule)
