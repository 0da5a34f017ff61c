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

Parameters travel as one flat vector, so that the code reads like the formula. A leading dimension (S, P) trains S
seeds side by side: the loss is then the sum over seeds, whose gradient is each seed's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from caml_core.device import autocast
from caml_core.errors import CamlError
from caml_core.memory import in_pieces

Batch = tuple[Tensor, Tensor]  # x (B, ...), y int64 (B,)
Loss = Callable[[Tensor, Batch], Tensor]  # (theta (P,), batch) -> scalar
Order = Literal["first", "exact"]


def meta_gradient(
    loss: Loss,
    theta: Tensor,
    tasks: Sequence[tuple[Batch, Batch]],
    *,
    alpha: float,
    cumulative: bool = True,
    order: Order = "first",
    inner_steps: int = 1,
) -> Tensor:
    """The mean meta-test gradient over the rounds, c / R.

    First order takes d theta' / d theta as the identity: 2R gradients, and memory for theta, theta', c and one
    gradient. It errs by O(alpha), the size of the adaptation's own effect on the gradient (chapter 06). Exact is the
    gradient of

        M(theta) = 1/R sum_t L(theta'_t(theta), Q_t)

    through the whole recursion, the accumulated bias included; it keeps the graphs of all rounds.

    Args:
        loss: mean cross-entropy of a batch at flat parameters.
        theta: float (P,), or (S, P) for S seeds.
        tasks: for each round t = 1..R a batch of D_{t-1} (meta-train) and a batch of Q_t (meta-test).
        alpha: size of the inner step, at least 0; 0 is up-weighting and skips the inner gradients.
        cumulative: False for independent tasks (MLDG).
        order: "first" or "exact".
        inner_steps: inner steps on the same batch, at least 1.

    Returns:
        float, the shape of theta; detached.

    Raises:
        CamlError: no task, alpha < 0 or not a number, inner_steps < 1, unknown order.
    """
    if not tasks or not alpha >= 0 or inner_steps < 1 or order not in ("first", "exact"):
        raise CamlError(
            what=f"{len(tasks)} tasks, alpha={alpha}, inner_steps={inner_steps}, order={order!r}",
            expected="at least one task, alpha of at least 0, one inner step or more, order 'first' or 'exact'",
            remedy="correct the setting (before the first query there is nothing to meta-learn: train plainly)",
        )
    exact = order == "exact" and bool(alpha > 0)
    theta = theta.detach().requires_grad_()
    c = torch.zeros_like(theta)
    objective = torch.zeros((), dtype=theta.dtype, device=theta.device)
    for t, (meta_train, meta_test) in enumerate(tasks):  # t rounds lie behind
        adapted = theta
        for _ in range(inner_steps if alpha > 0 else 0):
            (u,) = torch.autograd.grad(loss(adapted, meta_train), adapted, create_graph=exact)
            if cumulative and t > 0:
                u = u + c / t
            adapted = adapted - alpha * u
            if not exact:
                adapted = adapted.detach().requires_grad_()
        judged = loss(adapted, meta_test)
        (g,) = torch.autograd.grad(judged, adapted, create_graph=exact)
        c = c + g
        if exact:
            objective = objective + judged
    if exact:
        (c,) = torch.autograd.grad(objective, theta)
    return c.detach() / len(tasks)


def flatten(network: nn.Module) -> Tensor:
    """A copy of all parameters as one vector, float (P,), in the order of `network.parameters()`.

    Kernels (C_out, C_in, h, w) lie in it channels last, the layout that convolutions are fast in.
    """
    pieces = [p.detach().permute(0, 2, 3, 1) if p.ndim == 4 else p.detach() for p in network.parameters()]
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _shaped(piece: Tensor, shape: torch.Size) -> Tensor:
    """A stretch of the flat vector as the parameter of this shape; a view."""
    if len(shape) == 4:
        c_out, c_in, h, w = shape
        return piece.view(c_out, h, w, c_in).permute(0, 3, 1, 2)
    return piece.view(shape)


def add_to_gradient(network: nn.Module, vector: Tensor) -> None:
    """Add a flat gradient (P,) to the `.grad` of each parameter."""
    parameters = list(network.parameters())
    for parameter, piece in zip(parameters, vector.split([p.numel() for p in parameters])):
        piece = _shaped(piece, parameter.shape)
        parameter.grad = piece.clone() if parameter.grad is None else parameter.grad.add_(piece)


def loss_at(network: nn.Module, device: torch.device, piece: int = sys.maxsize) -> Loss:
    """Mean cross-entropy of the network as a function of flat parameters; the network itself is left alone.

    BatchNorm works with the statistics of each batch and keeps its running averages in scratch copies, so that
    nothing an adapted copy sees leaks into the network. With parameters (S, P) and batches (S, B, ...) it returns
    the sum of the S losses. A batch larger than `piece` goes through in pieces (`caml_core.memory`).
    """
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    sizes = [p.numel() for p in network.parameters()]
    scratch = {name: value.clone() for name, value in network.named_buffers()}
    stacked: dict[int, dict[str, Tensor]] = {}  # the same, once a seed

    def one(theta: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        weights = {name: _shaped(part, shape) for name, part, shape in zip(names, theta.split(sizes), shapes)}
        with autocast(device):
            logits = in_pieces(network, x, piece, lambda x: functional_call(network, (weights, buffers), (x,)))
            return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, y)

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        if theta.ndim == 1:
            return one(theta, scratch, *batch)
        seeds = len(theta)
        if seeds not in stacked:
            stacked[seeds] = {k: v.expand(seeds, *v.shape).clone() for k, v in scratch.items()}
        return torch.func.vmap(one, randomness="different")(theta, stacked[seeds], *batch).sum()

    return loss
