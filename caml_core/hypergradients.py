"""How the features of a support set should move so that the linear head trained on them does well on hard examples.

HSFM (arXiv 2603.29313) edits support features H. The softmax head (W, b) is trained on them for T steps of size alpha
from (W_0, b_0); its loss on a hard set V is F(H). Here is dF/dH through the T steps: by autograd (`unrolled`, the
reference), by hand exactly (`adjoint`), and in part (`first_order`). `caml_core.implicit` calls any way by its name.

**The adjoint.** Write h~ = (h, 1), and for the support set at step t P_t = softmax(Z_t), R_t = P_t - Y. With its Gram
matrix G = H H' + 1 all of training happens in S x C numbers; W_T appears once, in the hard set's loss, as M = dF/dW_T:

    Z_{t+1} = Z_t - (alpha/S) G R_t,        W_T = W_0 - (alpha/S) (R_0 + ... + R_{T-1})' H~

One reverse sweep gives the derivative through every step, and nothing D wide is kept per step:

    Q = -(alpha/S) H~ M'                                    what each R_t is worth, if it touched nothing later
    B_t = J_t (Q - (alpha/S) G (B_{t+1} + ... + B_{T-1}))   through the softmax, J_t b = P_t * (b - <P_t, b>)
    K = sum_t B_t (R_0 + ... + R_{t-1})'
    dF/dH = (sum_t B_t) W_0 - (alpha/S) [ (K + K') H + (sum_t R_t) M ]

All take a leading dimension B (seeds, settings). Logits, P_t, R_t and B_t are kept class by class, (B, C, S): softmax
along so short a last dimension is ten times slower.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.linear import cross_entropies, head_logits, through_softmax

GRAM_UP_TO = 96  # support examples for which the Gram matrix pays (measured between 64 and 128, D = 2,048)


class Problem(NamedTuple):
    """Support set, hard set and the head that training starts from, for B problems."""

    support: Tensor  # float (B, S, D), the features H to be edited
    support_y: Tensor  # int64 (B, S)
    hard: Tensor  # float (B, K, D), or (K, D) for all problems, which is much cheaper
    hard_y: Tensor  # int64 (B, K), or (K,)
    weight: Tensor  # float (B, C, D)
    bias: Tensor  # float (B, C)
    hard_weight: Tensor | None = None  # float (B, K), summing to 1 over K; None: 1/K each


class Answer(NamedTuple):
    """What a hypergradient function returns."""

    loss: Tensor  # float (B,), cross-entropy of the hard set under the trained head
    gradient: Tensor  # float (B, S, D), of that loss in the support features
    weight: Tensor  # float (B, C, D), the trained head
    bias: Tensor  # float (B, C)


def per_problem(value: float | Tensor, like: Tensor) -> Tensor:
    """A setting, one number or (B,), shaped to multiply (B, ., .)."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def outer(problem: Problem, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hard-set loss (B,) and its gradient in weight, M (B, C, D), and in bias (B, C): one pass over V each way.

    One class is free: softmax sees only differences of logits, here to the last class, and residuals sum to zero over
    the classes, so the last row of M is minus the sum of the others.
    """
    z = (weight[:, :-1] - weight[:, -1:]) @ problem.hard.mT + (bias[:, :-1] - bias[:, -1:])[..., None]
    z = F.pad(z, (0, 0, 0, 1))  # (B, C, K), the last class at 0
    labels = problem.hard_y.expand(len(z), z.shape[-1])[:, None]
    share = z.new_full((1, 1), 1 / z.shape[-1]) if problem.hard_weight is None else problem.hard_weight
    log_p = z.log_softmax(dim=1)
    loss = -(share * log_p.gather(1, labels)[:, 0]).sum(dim=-1)
    residual = log_p.exp_().scatter_add_(1, labels, z.new_full((1, 1, 1), -1).expand_as(labels)) * share[:, None]
    m = residual[:, :-1].contiguous() @ problem.hard  # contiguous: one matrix product where all share the hard set
    return loss, torch.cat([m, -m.sum(dim=1, keepdim=True)], dim=1), residual.sum(dim=-1)


def adjoint(
    problem: Problem, *, alpha: float | Tensor, steps: int, last: int | None = None, feedback: bool = True
) -> Answer:
    """Loss and exact hypergradient by the sweep at the top of this file, for T `steps` of size `alpha`, one or (B,).

    Args:
        last: differentiate only through the last so many steps (a truncated sweep); None: through all.
        feedback: False for `first_order`.
    """
    h = problem.support
    if last is None and feedback and h.shape[1] > GRAM_UP_TO:
        return adjoint_in_weights(problem, alpha=alpha, steps=steps)
    rate, y = per_problem(alpha, h) / h.shape[1], torch.eye(problem.bias.shape[-1]).to(h)[problem.support_y].mT
    gram, z = rate * (h @ h.mT + 1), problem.weight @ h.mT + problem.bias[..., None]
    p, r = z.new_empty(2, steps, *z.shape)  # P_t and R_t
    for p_t, r_t in zip(p, r):
        torch.softmax(z, dim=1, out=p_t)
        torch.sub(p_t, y, out=r_t)
        z.baddbmm_(r_t, gram, alpha=-1)
    summed = rate * r.sum(dim=0)
    weight, bias = problem.weight - summed @ h, problem.bias - summed.sum(dim=-1)
    loss, m, m_bias = outer(problem, weight, bias)

    q, first = -rate * (m @ h.mT + m_bias[..., None]), 0 if last is None else max(0, steps - last)
    before = (r.cumsum(dim=0) - r)[first:]  # R_0 + ... + R_{t-1}
    if feedback:
        parts, total = [], torch.zeros_like(q)  # B_t; B_{t+1} + ... + B_{T-1}
        for p_t in reversed(p[first:].unbind()):
            parts.append(through_softmax(torch.baddbmm(q, total, gram, alpha=-1), p_t))
            total = total + parts[-1]
        b = torch.stack(parts[::-1])
        k = _pair(b, before)
        k = k + (k.mT if first == 0 else _pair(before - before[0], b))
    else:
        b = through_softmax(q.expand_as(p), p, classes=2)
        k, total = _pair(b, before), b.sum(dim=0)
    gradient = (-rate * k) @ h  # the only large tensor that is made here, so the rest is added in place
    left, right = torch.cat([total, -rate * r[first:].sum(dim=0)], dim=1), torch.cat([problem.weight, m], dim=1)
    return Answer(loss, gradient.baddbmm_(left.mT, right), weight, bias)


def first_order(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The T steps as if none changed what a later one does, d W_{t+1} / d W_t taken as the identity: B_t = J_t Q."""
    return adjoint(problem, alpha=alpha, steps=steps, feedback=False)


def _pair(left: Tensor, right: Tensor) -> Tensor:
    """sum_t left_t right_t', (T, B, C, S) twice to (B, S, S), as one matrix product."""
    return left.permute(1, 3, 0, 2).flatten(2) @ right.transpose(0, 1).flatten(1, 2)


def adjoint_in_weights(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The same reverse sweep with W_t itself in place of the Gram matrix: faster for large support sets.

    With X_T = M and X_t = X_{t+1} + B_t' H~ the adjoint of W_t, a step adds B_t W_t - (alpha/S) R_t X_{t+1} to dF/dH.
    """
    h = problem.support
    rate, y = per_problem(alpha, h) / h.shape[1], torch.eye(problem.bias.shape[-1]).to(h)[problem.support_y].mT
    h1 = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)  # H~
    w = torch.cat([problem.weight, problem.bias[..., None]], dim=-1)
    path, left, right = [], [], []
    for _ in range(steps):
        p = (w @ h1.mT).softmax(dim=1)
        path.append((w, p, rate * (p - y)))
        w = w - path[-1][2] @ h1
    weight, bias = w[..., :-1], w[..., -1]
    loss, m, m_bias = outer(problem, weight, bias)
    x = torch.cat([m, m_bias[..., None]], dim=-1)
    for w, p, r in reversed(path):
        b = through_softmax(-rate * (x @ h1.mT), p)
        left += [b, -r]
        right += [w[..., :-1], x[..., :-1]]
        x = x + b @ h1
    return Answer(loss, torch.cat(left, dim=1).mT @ torch.cat(right, dim=1), weight, bias)


@torch.enable_grad()
def unrolled(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The reference: the T steps written as one would, differentiated by autograd."""
    h, rate = problem.support.detach().requires_grad_(), per_problem(alpha, problem.support)
    weight, bias = (head.detach().requires_grad_() for head in (problem.weight, problem.bias))
    for _ in range(steps):
        losses = cross_entropies(head_logits(h, weight, bias), problem.support_y).mean(dim=1)
        # The sum over the batch: each problem gets its own gradient.
        g_weight, g_bias = torch.autograd.grad(losses.sum(), (weight, bias), create_graph=True)
        weight, bias = weight - rate * g_weight, bias - rate[..., 0] * g_bias
    losses = cross_entropies(head_logits(problem.hard, weight, bias), problem.hard_y)
    loss = losses.mean(dim=-1) if problem.hard_weight is None else (losses * problem.hard_weight).sum(dim=-1)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    return Answer(loss.detach(), gradient, weight.detach(), bias.detach())
