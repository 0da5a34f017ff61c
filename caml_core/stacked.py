"""Many seeds side by side: the networks of S runs as one, for GPUs that a small network leaves idle.

A small network on a large GPU spends its time waiting: every layer is a kernel that ends before the next one arrives.
With the weights of S seeds in one set of tensors (S, ...), a layer of all of them is still one kernel. The runs
themselves stay apart: each has its own data, draws, gradient norm, best epoch and queries, so that a seed finds what it
finds alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from caml_core.active import OPTIMIZERS, Plan, Step, Training, draws, meta_settings, odds_of_labelled, trainings_of
from caml_core.backbones import Backbone
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.fit import Run, fit_all
from caml_core.loader import Augment
from caml_core.memory import piece_that_fits
from caml_core.meta import Batch, add_to_gradient, flatten, loss_at, meta_gradient

STACKABLE = ("append", "upweight", "mldg", "caml", "balanced", "erm_all")  # the others keep state beside the weights


def stackable(method: str) -> None:
    """Refuse a method that keeps a state of its own beside the weights.

    Raises:
        CamlError: it does, or it does not train in rounds at all.
    """
    if method not in STACKABLE:
        raise CamlError(
            what=f"{method} with many seeds side by side",
            expected="one of " + ", ".join(STACKABLE),
            remedy="make its runs one by one, without --stack",
        )


def run_stacked(runs: Sequence[dict[str, Any]], plan: Plan, progress: bool = True) -> list[list[dict[str, Any]]]:
    """`caml_core.active.run_active` for S runs in step with each other.

    Args:
        runs: arguments of `run_active` for each (make_network, pool, val, test, seed, ...), on one device.

    Returns:
        For each run what `run_active` returns; `seconds` are shared out.

    Raises:
        CamlError: a method that cannot be stacked; runs with more labels than others; and whatever `run_active` raises.
    """
    stackable(plan.method)
    device, augment = runs[0]["device"], runs[0].get("augment")
    active = [trainings_of(plan=plan, **run) for run in runs]
    todo = [next(one) for one in active]
    while True:
        done, records = train_stacked(todo, plan, device, augment, progress), []
        todo = []
        for one, run in zip(active, done):
            try:
                todo.append(one.send(run))
            except StopIteration as end:
                records.append(end.value)
        if records:
            return records


def train_stacked(
    trainings: Sequence[Training], plan: Plan, device: torch.device, augment: Augment | None, progress: bool = False
) -> list[Run]:
    """`caml_core.active.train_round` for S trainings at once: networks trained in place, each at its best epoch."""
    labels = sorted({sum(map(len, training.sets)) for training in trainings})
    if len(labels) > 1:
        raise CamlError(
            what=f"runs with {labels} labels side by side",
            expected="as many labels in each, so that their epochs have as many steps",
            remedy="make these runs one by one, without --stack",
        )
    networks = [training.network for training in trainings]
    odds = [odds_of_labelled(training.pool, torch.cat(list(training.sets)), plan) for training in trainings]
    stack = Stack(networks)
    _check_memory(stack, trainings[0], plan, device)
    opt = OPTIMIZERS[plan.optimizer](stack.weights.values(), lr=plan.lr, weight_decay=plan.weight_decay)
    loss = loss_at(networks[0], device)

    def run_epoch(epoch: int) -> list[dict[str, Any]]:
        summed, steps = torch.zeros(len(networks), dtype=torch.float64, device=device), 0
        streams = [
            draws(t.x, t.pool, t.sets, own, plan, stream_seed(t.seed, epoch), device, augment)
            for t, own in zip(trainings, odds)
        ]
        with seeded(trainings[0].seed, epoch):
            for together in zip(*streams):
                losses = stack.losses(_beside([step.final for step in together]), device)
                opt.zero_grad(set_to_none=True)
                losses.sum().backward()  # the gradient of a sum is each seed's own
                if together[0].tasks:
                    theta = torch.stack([flatten(network) for network in networks])
                    stack.add_to_gradient(meta_gradient(loss, theta, _tasks(together), **meta_settings(plan)))
                stack.clip(plan.clip)
                opt.step()
                summed, steps = summed + losses.detach(), steps + 1
        return [{"loss": value / steps} for value in summed.tolist()]

    return fit_all(
        networks,
        opt,
        run_epoch,
        [training.val for training in trainings],
        epochs=plan.epochs,
        config={
            "runs": [{**t.config, "sets": [rows.tolist() for rows in t.sets], "round_seed": t.seed} for t in trainings],
            "epochs": plan.epochs,
        },
        select=plan.select,
        device=device,
        train_counts=[training.pool.group_counts for training in trainings],
        checkpoint=trainings[0].checkpoint,
        progress=progress,
    )


class Stack:
    """S networks of one shape whose parameters and buffers lie in tensors (S, ...); each network keeps its slices.

    A step of an optimiser on `weights` moves all networks, and what is loaded into a network moves its slice.
    """

    def __init__(self, networks: Sequence[Backbone]) -> None:
        self.networks = networks
        self.weights: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for kind, found in (("named_parameters", self.weights), ("named_buffers", self.buffers)):
            each = [dict(getattr(network, kind)()) for network in networks]
            for name in each[0]:
                found[name] = torch.stack([own[name].detach() for own in each])
                for s, own in enumerate(each):
                    own[name].data = found[name][s]
        for weight in self.weights.values():
            weight.requires_grad_()

    def losses(self, batch: Batch, device: torch.device) -> Tensor:
        """Mean cross-entropy of each network, float (S,), on its part of a batch (S, B, ...)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            with autocast(device):
                return F.cross_entropy(functional_call(self.networks[0], (weights, buffers), (x,)).float(), y)

        return vmap(one, randomness="different")(self.weights, self.buffers, *batch)

    def add_to_gradient(self, vectors: Tensor) -> None:
        """Add flat gradients (S, P), one a network."""
        for s, (network, vector) in enumerate(zip(self.networks, vectors)):
            for name, parameter in network.named_parameters():
                parameter.grad = self.weights[name].grad[s]  # type: ignore[index]
            add_to_gradient(network, vector)

    def clip(self, largest: float) -> None:
        """Bound the norm of each network's gradient, as `torch.nn.utils.clip_grad_norm_` does for one."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale = (largest / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _beside(batches: Sequence[Batch]) -> Batch:
    """S batches as one with a leading dimension."""
    return torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])


def _tasks(steps: Sequence[Step]) -> list[tuple[Batch, Batch]]:
    """The rounds' tasks of S steps, each part side by side."""
    rounds = zip(*(step.tasks for step in steps))
    return [(_beside([a for a, _ in each]), _beside([b for _, b in each])) for each in rounds]


def _check_memory(stack: Stack, first: Training, plan: Plan, device: torch.device) -> None:
    """Refuse now what would run out of memory later: S batches, weights and optimisers at once."""
    s, rows = len(stack.networks), first.sets[0][torch.arange(4) % len(first.sets[0])]
    x, y = first.x[rows.to(first.x.device)].to(device), first.pool.y[rows].to(device)
    theta, loss = flatten(stack.networks[0]).requires_grad_(), loss_at(stack.networks[0].train(), device)
    rounds = len(first.sets) - 1 if plan.order == "exact" and plan.method in ("mldg", "caml") else 0
    each = s * plan.batch_size * (1 + 2 * rounds)  # exact keeps the graphs of all rounds
    piece_that_fits(lambda n: loss(theta, (x[:n], y[:n])), each, device, 9 * s * theta.nbytes, smallest=each)
