"""In the spirit of Dual-Stream Calibration (Zhao et al., arXiv 2604.06262): a network learns from the case at hand.

Only the abstract was at hand; network, adapter and form of the losses are ours. Built in chapter 23.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, layer_norm

from caml_core.device import seeded
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset

Phi: TypeAlias = dict[str, Tensor]  # B (R, r) of every matrix W (R, C) of the network, which becomes W + B A
NOBODY = torch.tensor(False)


class Cases(NamedTuple):
    x: Tensor  # float32 (N, K, D): the context; the last finding is the ward, -1 or 1
    y: Tensor  # int64 (N, K): its diagnoses, 0 or 1
    query: Tensor  # float32 (N, M, D): patients to judge
    truth: Tensor  # int64 (N, M)


def draw_cases(n: int, seed: int, agree: float | np.ndarray, new: float | np.ndarray, queries: int = 1) -> Cases:
    """Clinics: three of eight findings tell, which and how differs. Shares of wards that agree: numbers or (n, 1)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=(n, 8 + queries))
    ward = np.where(rng.random(y.shape) < np.where(np.arange(8 + queries) < 8, agree, new), 2 * y - 1, 1 - 2 * y)
    rule = rng.choice([-1, 1], (n, 1, 8)) * (rng.random((n, 1, 8)).argsort(axis=2) < 3)
    x = np.dstack([0.8 * (2 * y - 1)[..., None] * rule + rng.normal(size=(*y.shape, 8)), ward])
    made, label = torch.from_numpy(x).float(), torch.from_numpy(y)
    return Cases(made[:, :8], label[:, :8], made[:, 8:], label[:, 8:])


def patients(cases: Cases) -> GroupDataset:
    """The queries of all cases, flat, with the ward as attribute; it agrees where it is the diagnosis."""
    x, names = cases.query.flatten(0, 1), (("well", "ill"), ("ward A", "ward B"))
    y, a = cases.truth.flatten(), (x[:, -1] > 0).long()
    return GroupDataset(x, y, a, class_names=names[0], attribute_names=names[1])


class Reader(nn.Module):
    """A classifier that reads a context: queries attend to the labelled patients, who do not see one another."""

    def __init__(self, findings: int = 9, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.known = nn.Sequential(nn.Linear(2 * findings + 2, width), nn.ReLU(), nn.Linear(width, width))
        self.asked, self.answer = nn.Linear(findings, width), nn.Linear(width, 2)
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        think = (nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(layers))
        self.think = nn.ModuleList(think)

    def forward(self, x: Tensor, y: Tensor, query: Tensor, hidden: Tensor = NOBODY) -> Tensor:
        """Logits (..., M, 2) of queries (..., M, D) from x (..., K, D), y (..., K); hidden: bool (M, K)."""
        if not y.shape[-1]:
            raise CamlError("an empty context", "at least one labelled patient", "label a patient of this clinic")
        by_class = torch.eye(2)[y]
        known = self.known(torch.cat([by_class, (by_class[..., None] * x[..., None, :]).flatten(-2)], dim=-1))
        state = self.asked(query)
        for attend, think in zip(self.attend, self.think):
            read, key, value = attend.weight.chunk(3)  # type: ignore[operator, union-attr]
            match = (state @ read.T) @ (known @ key.T).transpose(-2, -1) / len(read) ** 0.5
            state = state + match.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ (known @ value.T)
            state = state + think(layer_norm(state, state.shape[-1:]))
        return self.answer(state)  # type: ignore[no-any-return]


def meta_train(cases: Cases, seed: int = 0, steps: int = 1500, lr: float = 3e-3) -> Reader:
    """Cross-entropy of the queries; 64 cases a step, AdamW, one cycle of the learning rate. Returns it frozen."""
    with seeded(seed):
        model = Reader(cases.x.shape[2])
        opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
        cycle = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
        for rows in torch.randint(len(cases.x), (steps, 64)):
            x, y, query, truth = (part[rows] for part in cases)
            opt.zero_grad()
            cross_entropy(model(x, y, query).flatten(0, 1), truth.flatten()).backward()
            opt.step()
            cycle.step()
    return model.requires_grad_(False)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats (...) of logits (..., C)."""
    return -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)


class Streams:
    """A frozen network, an adapter phi for each case, and losses of one case: x (K, D), y (K,), query (M, D)."""

    def __init__(self, model: Reader, rank: int = 4) -> None:
        self.model, self.frozen = model, dict(model.named_parameters())
        with seeded(0):
            self.A = {
                n: torch.randn(rank, p.shape[1]) / p.shape[1] ** 0.5 for n, p in self.frozen.items() if p.ndim == 2
            }
        self.start: Phi = {name: torch.zeros(len(self.frozen[name]), rank) for name in self.A}

    def logits(self, phi: Phi, x: Tensor, y: Tensor, query: Tensor, hidden: Tensor = NOBODY) -> Tensor:
        moved = {name: self.frozen[name] + B @ self.A[name] for name, B in phi.items()}
        return functional_call(self.model, self.frozen | moved, (x, y, query, hidden))  # type: ignore[no-any-return]

    def left_out(self, phi: Phi, x: Tensor, y: Tensor, out: Tensor | bool = False) -> Tensor:
        """Losses (K,): every patient of the context judged from the others; nobody sees those in `out`, bool (K,)."""
        return cross_entropy(self.logits(phi, x, y, x, torch.eye(len(x), dtype=torch.bool) | out), y, reduction="none")

    def semantic(self, phi: Phi, case: Cases) -> Tensor:
        """Entropy at the first query, plus its mean at the anchors, the half that surprises the frozen network more."""
        core = self.left_out(self.start, case.x, case.y).topk(len(case.x) // 2).indices
        at_core = self.logits(phi, case.x, case.y, case.x[core], torch.eye(len(case.x), dtype=torch.bool)[core])
        return entropy(self.logits(phi, case.x, case.y, case.query[:1])).sum() + entropy(at_core).mean()

    def structural(self, phi: Phi, case: Cases, alpha: float = 0.0) -> Tensor:
        """Leave one out; with alpha, the one is judged after a step on the others' own leave-one-out loss (MAML)."""
        x, y = case.x, case.y
        if not alpha:
            return self.left_out(phi, x, y).mean()

        def one(out: Tensor, its_x: Tensor, its_y: Tensor) -> Tensor:
            slope = grad(lambda phi: (self.left_out(phi, x, y, out) * ~out).sum() / (len(x) - 1))(phi)
            moved = {name: B - alpha * slope[name] for name, B in phi.items()}
            return cross_entropy(self.logits(moved, x, y, its_x[None], out[None]), its_y[None])

        return vmap(one)(torch.eye(len(x), dtype=torch.bool), x, y).mean()

    def adapt(self, cases: Cases, loss: Callable[[Phi, Cases], Tensor], eta: float, steps: int = 5) -> list[Tensor]:
        """Logits (N, M, 2) before the first step and after each, every case on its own; slopes over 1 are cut to 1."""
        if cases.x.shape[1] < 3:
            what, remedy = f"a context of {len(cases.x[0])} patients", "label more of this clinic"
            raise CamlError(what, "at least 3: one is left out, others judge it and one another", remedy)

        def step(phi: Phi, case: Cases) -> Phi:
            slope = grad(loss)(phi, case)
            size = torch.stack([part.square().sum() for part in slope.values()]).sum().sqrt().clamp(min=1)
            return {name: B - eta * slope[name] / size for name, B in phi.items()}

        phi = {name: B.expand(len(cases.x), *B.shape) for name, B in self.start.items()}
        found = []
        for t in range(steps + 1):
            phi = vmap(step)(phi, cases) if t else phi
            found.append(vmap(self.logits)(phi, cases.x, cases.y, cases.query))
        return found
