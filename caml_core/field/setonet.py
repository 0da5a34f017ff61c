"""SetONet control: a vehicle is known from a set of observations, and a head turns the set into a policy.

Architecture: after the public code of SetONet (Tretiakov et al., arXiv 2505.04738). Control and meta-learning: in the
spirit of Sewell et al. (arXiv 2604.03449), from the abstract; vehicles and paint are ours. Chapter 22 builds it,
results/field_setonet.json has the stored runs. The policy pi(y) = sum_j b_j(set) t_j(y) + bias is linear in b.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from caml_core.field.vehicles import COLUMNS, Drives, Tasks, batches, some


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with a ReLU after each, except for the last."""
    pairs = [part for k, n in enumerate(sizes[1:]) for part in (nn.Linear(sizes[k], n), nn.ReLU())]
    return nn.Sequential(*pairs[:-1])


class SetONet(nn.Module):
    """Branch (phi, attention with one learned query, rho) and trunk; sets (N, m, COLUMNS) of any size m from 1."""

    def __init__(self, width: int = 64, p: int = 32) -> None:
        super().__init__()
        self.phi, self.rho, self.rho_last = mlp(COLUMNS, width, width, 32), mlp(32, width), nn.Linear(width, 2 * p)
        self.query, self.pool = nn.Parameter(torch.randn(1, 1, 32)), nn.MultiheadAttention(32, 4, batch_first=True)
        self.trunk, self.bias = mlp(4, width, width, width, 2 * p), nn.Parameter(torch.zeros(2))

    def code(self, sets: Tensor) -> Tensor:
        """What the last layer of rho reads: (N, width)."""
        h = self.phi(some(sets, COLUMNS))
        return F.relu(self.rho(self.pool(self.query.expand(len(h), -1, -1), h, h)[0][:, 0]))

    def coefficients(self, sets: Tensor) -> Tensor:
        """b (N, 2, p)."""
        return self.rho_last(self.code(sets)).unflatten(-1, (2, -1))  # type: ignore[no-any-return]

    def basis(self, y: Tensor) -> Tensor:
        """t (N, n, 2, p) in states y (N, n, 4)."""
        return self.trunk(y).unflatten(-1, (2, -1))  # type: ignore[no-any-return]

    def forward(self, sets: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("Nndp,Ndp->Nnd", self.basis(y), self.coefficients(sets)) + self.bias


class Plain(nn.Module):
    """No branch, no trunk: an MLP of the state (MAML's policy) and, if it reads, of the mean of phi over the set."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        width = 84 if reads else 120  # about as many weights as a SetONet
        self.phi, self.net = (
            mlp(COLUMNS, width, width, 32) if reads else None,
            mlp(4 + 32 * reads, width, width, width, 2),
        )

    def forward(self, sets: Tensor, y: Tensor) -> Tensor:
        if self.phi is not None:
            mean = self.phi(some(sets, COLUMNS)).mean(dim=1, keepdim=True)
            y = torch.cat([y, mean.expand(-1, y.shape[1], -1)], dim=-1)
        return self.net(y)  # type: ignore[no-any-return]


def descend(weights: Iterable[Tensor], losses: Iterator[Tensor], steps: int, lr: float) -> None:
    """Adam on losses that are computed when their turn comes: gradients clipped to 1, a rate that falls to 0."""
    weights = list(weights)
    opt = torch.optim.Adam(weights, lr)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for loss in islice(losses, steps):
        opt.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        opt.step()
        plan.step()


def clone(model: Any, stream: Iterable[Drives], steps: int, lr: float) -> Any:
    """Behavioural cloning of the expert: a copy of the model, all of whose weights were trained."""
    model = copy.deepcopy(model)
    losses = ((model(data.sets, data.y) - data.u).square().mean() for data in stream)
    descend(model.parameters(), losses, steps, lr)
    return model


def act(model: nn.Module, own: dict[str, Tensor], sets: Tensor, y: Tensor) -> Tensor:
    """Forces (N, n, 2) of tasks that have weights `own` (N, ...) of their own."""
    return vmap(lambda w, s, y: functional_call(model, w, (s[None], y[None]))[0])(own, sets, y)  # type: ignore[no-any-return]


def adapt(model: nn.Module, prefix: str, data: Drives, step: float | Tensor, steps: int = 3) -> dict[str, Tensor]:
    """Gradient steps on each task's demonstrations, of the weights whose names begin with `prefix`: (N, ...) each."""
    n = len(some(data.y, 4))
    own = {name: w.expand(n, *w.shape) for name, w in model.named_parameters() if name.startswith(prefix)}
    for _ in range(steps):
        loss = (act(model, own, data.sets, data.y) - data.u).square().mean(dim=(1, 2)).sum()
        slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        own = {name: w - step * slope for (name, w), slope in zip(own.items(), slopes)}
    return own


def meta_train(
    model: Any, prefix: str, tasks: Tasks, seed: int, step: float, steps: int, lr: float
) -> tuple[Any, Tensor]:
    """MAML: a copy from which `adapt` on 5 or 20 demonstrations leads to a small loss on 16 others of the task.

    Also returned: the size of the inner step, learned like the weights; `step` is its first value.
    """
    model, log_step = copy.deepcopy(model), torch.tensor(step).log().requires_grad_()

    def loss(data: Drives) -> Tensor:
        known = data._replace(y=data.y[:, 16:], u=data.u[:, 16:])
        own = adapt(model, prefix, known, log_step.exp())
        return (act(model, own, data.sets, data.y[:, :16]) - data.u[:, :16]).square().mean()

    descend([*model.parameters(), log_step], map(loss, batches(tasks, seed, 8, [(20, 21), (20, 36)])), steps, lr)
    return model, log_step.exp().detach()


@torch.no_grad()
def refit_b(model: SetONet, data: Drives, ridge: float) -> Tensor:
    """b (N, 2, p) of each task: ridge regression on its demonstrations, pulled to what the branch says."""
    t = model.basis(some(data.y, 4)).transpose(1, 2)
    miss = (data.u - model(data.sets, data.y)).mT[..., None]
    move = t.mT @ torch.linalg.solve(t @ t.mT + ridge * torch.eye(t.shape[2]), miss)
    return model.coefficients(data.sets) + move[..., 0]


@torch.no_grad()
def refit_head(model: SetONet, data: Drives, ridge: float) -> SetONet:
    """DFR for an operator: a copy whose last layer of rho is new, one for all tasks; ridge, pulled to the old layer."""
    made, code, t = copy.deepcopy(model), F.pad(model.code(data.sets), (0, 1), value=1.0), model.basis(some(data.y, 4))
    moves = []
    for d in range(2):
        x = torch.einsum("Nnp,Nh->Nnph", t[:, :, d], code).flatten(0, 1).flatten(1)
        miss = (data.u - model(data.sets, data.y))[..., d].flatten()
        moves.append((x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x)), miss)).view(-1, code.shape[1]))
    made.rho_last.weight.add_(torch.cat(moves)[:, :-1])
    made.rho_last.bias.add_(torch.cat(moves)[:, -1])
    return made
