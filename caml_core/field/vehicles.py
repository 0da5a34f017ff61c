"""Vehicles of unknown mass, the world of chapter 22 (`field.setonet`): an expert, observations and a drive.

All of it is ours: a family of linear-quadratic problems, and a paint that is a shortcut to the mass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caml_core.device import seeded
from caml_core.errors import CamlError

COLUMNS = 10  # of an observation: state (position 2, velocity 2), force 2, acceleration 2, cost, paint
Policy = Callable[[Tensor], Tensor]  # states (N, n, 4) -> forces (N, n, 2)


class Tasks(NamedTuple):
    """Vehicles in the plane, mass v' = u - drag v, with the cost q . p^2 + |v|^2 / 10 + |u|^2; float32."""

    mass: Tensor  # (N,)
    drag: Tensor  # (N,)
    q: Tensor  # (N, 2)
    group: Tensor  # int64 (N,): 2 * heavy + painted

    def force(self, y: Tensor) -> Tensor:
        """The expert's forces (N, n, 2) in states y (N, n, 4): LQR, its Riccati equation solved by hand."""
        mass, drag, kp = self.mass[:, None], self.drag[:, None], self.q.sqrt()
        kv = -drag + (drag**2 + 2 * mass * kp + 0.1).sqrt()
        return -kp[:, None] * y[..., :2] - kv[:, None] * y[..., 2:]

    def cost(self, y: Tensor, u: Tensor) -> Tensor:
        return (self.q[:, None] * y[..., :2] ** 2 + 0.1 * y[..., 2:] ** 2 + u**2).sum(dim=-1)


class Drives(NamedTuple):
    tasks: Tasks
    sets: Tensor  # (N, m, COLUMNS) observations; no expert needed
    y: Tensor  # (N, k, 4) demonstrations: states,
    u: Tensor  # (N, k, 2) and the expert's forces


def draw_tasks(n: int, seed: int, rho: float = 0.5, scale: float = 1.0) -> Tasks:
    """Half light (0.4 to 0.8), half heavy (5 to 10), times `scale`; of each, a share rho has the usual paint."""
    with seeded(seed):
        heavy, usual, u = torch.arange(n) % 2, torch.arange(n) // 2 < round(rho * n / 2), torch.rand(4, n)
    mass = scale * torch.where(heavy == 1, 5.0, 0.4) * 2 ** u[0]
    return Tasks(mass, 0.5 * u[1], 0.3 * 10 ** u[2:].T, 2 * heavy + torch.where(usual, heavy, 1 - heavy))


def observe(tasks: Tasks, m: int, k: int, seed: int) -> Drives:
    """m observations of each vehicle (random states and forces, accelerations with noise) and k demonstrations."""
    n, (mass, drag) = len(tasks.mass), (value[:, None, None] for value in tasks[:2])
    with seeded(seed):
        asked, y, u, noise = (torch.randn(n, *size) for size in ((k, 4), (m, 4), (m, 2), (m, 2)))
    paint = (2.0 * (tasks.group % 2) - 1)[:, None, None].expand(n, m, 1)
    pull, cost = (1.5 * u - drag * y[..., 2:]) / mass + noise, tasks.cost(y, 1.5 * u)[..., None] / 5
    return Drives(tasks, torch.cat([y, 1.5 * u, pull, cost, paint], dim=-1), asked, tasks.force(asked))


def batches(tasks: Tasks, seed: int, size: int, plan: Sequence[tuple[int, int]]) -> Iterator[Drives]:
    """For ever: random tasks, observed anew; `plan`: pairs (m, k), in turn."""
    rows, step = torch.Generator().manual_seed(seed), 0
    while True:
        drawn = torch.randint(len(tasks.mass), (size,), generator=rows)
        yield observe(Tasks(*(v[drawn] for v in tasks)), *plan[step % len(plan)], 100_000 * (seed + 1) + step)
        step += 1


def some(rows: Tensor, columns: int) -> Tensor:
    """The observations or demonstrations, if there are any."""
    if rows.ndim != 3 or rows.shape[1] == 0 or rows.shape[2] != columns:
        what, expected = f"a set of shape {tuple(rows.shape)}", f"(N, m, {columns}), m of 1 or more for each of N tasks"
        raise CamlError(what, expected, "a task is what was seen of it: `observe` every vehicle first")
    return rows


@torch.no_grad()
def drive(tasks: Tasks, policy: Policy, seed: int, dt: float = 0.15) -> tuple[Tensor, Tensor]:
    """80 steps from four places of rest: cost (N,) and places (80, N, 4, 2)."""
    with seeded(seed):
        p = torch.randn(len(tasks.mass), 4, 2)
    v, cost, places = 0 * p, torch.zeros(len(p)), []
    for _ in range(80):
        u = policy(y := torch.cat([p, v], dim=-1))
        cost = cost + dt * tasks.cost(y, u).sum(dim=1)
        v = v + dt * (u - tasks.drag[:, None, None] * v) / tasks.mass[:, None, None]
        p = p + dt * v
        places.append(p)
    return cost, torch.stack(places)


@torch.no_grad()
def judge(data: Drives, policy: Policy, seed: int) -> dict[str, Tensor]:
    """By task (N,), in percent, at most 900: `error`, relative L2 of the forces, and `extra` cost over the expert's."""
    error = (policy(data.y) - data.u).norm(dim=(1, 2)) / data.u.norm(dim=(1, 2))
    extra = drive(data.tasks, policy, seed)[0] / drive(data.tasks, data.tasks.force, seed)[0] - 1
    return {name: 100 * v.nan_to_num(9).clamp(max=9) for name, v in (("error", error), ("extra", extra))}
