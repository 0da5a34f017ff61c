"""CAML's meta-gradient: every round of active learning is a task, under an inductive bias that accumulates.

Chew and Wang, arXiv 2605.20771. Round t gives the task (D_{t-1}, Q_t): adapt on what was labelled before the round, be
judged on what the round queried. With g(theta, B) the gradient of the mean cross-entropy of a batch:

    c <- 0
    for t = 1..R:
        u      <- g(theta, D_{t-1}) + c / (t-1)      # the bias met so far (nothing when t = 1)
        theta' <- theta - alpha u                    # adapt
        c      <- c + g(theta', Q_t)                 # be judged
    meta-gradient = c / R                            # added to g(theta, D_R) by the caller

Without the term c / (t-1) the tasks are independent (MLDG; Li et al., arXiv 1710.03463). With alpha = 0 nothing is
adapted and what is left is up-weighting of the queries. Chapter 07 builds this function line by line.
theta, u and c are lists with one tensor a parameter, and `torch._foreach_*` does to each what the formula says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from caml_core.device import autocast
from caml_core.errors import CamlError

Batch = tuple[Tensor, Tensor]  # x (B, ...), y int64 (B,)
Theta = list[Tensor] | tuple[Tensor, ...]  # one tensor a parameter
Loss = Callable[[Theta, Batch], Tensor]  # mean cross-entropy of a batch at parameters theta, a scalar
Order = Literal["first", "exact"]


def meta_gradient(
    loss: Loss,
    theta: Theta,
    tasks: Sequence[tuple[Batch, Batch]],
    *,
    alpha: float,
    cumulative: bool = True,
    order: Order = "first",
    inner_steps: int = 1,
) -> list[Tensor]:
    """The mean meta-test gradient over the rounds, c / R: one tensor a parameter, detached.

    First order takes d theta' / d theta as the identity: 2R gradients, and an error of O(alpha) (chapter 06). Exact is
    the gradient of M(theta) = 1/R sum_t L(theta'_t(theta), Q_t) through the whole recursion, and keeps all graphs.

    Args:
        theta: the parameters, such as `trainable(network)`; left alone.
        tasks: for each round t = 1..R a batch of D_{t-1} (meta-train) and a batch of Q_t (meta-test).
        alpha: size of the inner step, at least 0; 0 is up-weighting and skips the inner gradients.
        cumulative: False for independent tasks (MLDG).
        inner_steps: on the same batch, at least 1. A setting out of its range is a `CamlError`.
    """
    if not (tasks and alpha >= 0 and inner_steps >= 1 and order in ("first", "exact")):
        what = f"{len(tasks)} tasks, alpha={alpha}, inner_steps={inner_steps}, order={order!r}"
        expected = "at least one task, alpha of at least 0, one inner step or more, order 'first' or 'exact'"
        raise CamlError(what, expected, "correct the setting (before the first query there is nothing to meta-learn)")
    exact = order == "exact" and alpha > 0
    theta = [p.detach().requires_grad_() for p in theta]
    c: Theta = [torch.zeros_like(p) for p in theta]
    losses: list[Tensor] = []
    for t, (meta_train, meta_test) in enumerate(tasks):  # t rounds lie behind
        adapted: Theta = theta
        for _ in range(inner_steps if alpha > 0 else 0):
            u = torch.autograd.grad(loss(adapted, meta_train), adapted, create_graph=exact, materialize_grads=True)
            if cumulative and t > 0:
                u = torch._foreach_add(u, torch._foreach_div(c, t))
            adapted = torch._foreach_sub(adapted, torch._foreach_mul(u, alpha))
            if not exact:
                adapted = [p.detach().requires_grad_() for p in adapted]
        losses.append(loss(adapted, meta_test))
        g = torch.autograd.grad(losses[-1], adapted, create_graph=exact, materialize_grads=True)
        c = torch._foreach_add(c, g)
    if exact:
        c = torch.autograd.grad(torch.stack(losses).sum(), theta, materialize_grads=True)
    return [part.detach().div_(len(tasks)) for part in c]


def trainable(network: nn.Module) -> list[Tensor]:
    """The parameters that training may move, tied ones once, in the order of `network.parameters()`."""
    return [p for p in network.parameters() if p.requires_grad]


def add_to_gradient(theta: Theta, c: Theta) -> None:
    """Add c to the `.grad` of each parameter; one that the plain loss does not reach keeps none."""
    reached = [(p.grad, part) for p, part in zip(theta, c) if p.grad is not None]
    torch._foreach_add_([grad for grad, _ in reached], [part for _, part in reached])


def loss_at(network: nn.Module, device: torch.device) -> Loss:
    """Mean cross-entropy of the network as a function of its `trainable` parameters.

    The network is left alone: BatchNorm keeps its running averages in scratch copies.
    """
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    scratch = {name: value.clone() for name, value in network.named_buffers()}

    def loss(theta: Theta, batch: Batch) -> Tensor:
        x, y = batch
        with autocast(device):
            logits = functional_call(network, (dict(zip(names, theta)), scratch), (x,))
            return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, y)

    return loss
