"""The hypergradient at the minimum of a regularised inner problem, by the implicit function theorem.

In place of T steps from W_0 the head is taken where mean CE(H; W) + strength/2 ||W - W_0||^2 is least, which T gradient
steps of size alpha resemble with strength = 1/(alpha T). Nothing is unrolled; a linear system in the Hessian is solved
instead. Letters as in `caml_core.hypergradients`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.hsfm_settings import How
from caml_core.hypergradients import Answer, Problem, adjoint, first_order, outer, per_problem, unrolled
from caml_core.linear import through_softmax

Solver = Literal["cg", "neumann", "kfac"]


@torch.no_grad()
def hypergradient(problem: Problem, how: How = "adjoint", *, alpha: float | Tensor, steps: int) -> Answer:
    """How the hard set's loss after training changes with the support features; with or without the dimension B.

    Args:
        how: one of three ways through the T `steps` of size `alpha` (a number or (B,)), or of three at the minimum.
    """
    if problem.support.ndim == 2:
        shared = ("hard", "hard_y")
        one = Problem(**{k: v if v is None or k in shared else v[None] for k, v in problem._asdict().items()})
        return Answer(*(part[0] for part in hypergradient(one, how, alpha=alpha, steps=steps)))
    through = {"adjoint": adjoint, "unrolled": unrolled, "first_order": first_order}
    if how in through:
        return through[how](problem, alpha=alpha, steps=steps)
    strength = 1 / (steps * per_problem(alpha, problem.support))
    return implicit(problem, strength=strength, solver="cg" if how == "implicit" else how)  # type: ignore[arg-type]


def implicit(problem: Problem, *, strength: float | Tensor, solver: Solver = "cg", iterations: int = 50) -> Answer:
    """With N the Hessian in W at the minimum and N X = M: dF/dH = -(1/S) [ R X + J(H~ X') W ].

    `strength` is a number or (B,). N X = M is solved by `iterations` of conjugate gradients or of a power series
    ("neumann"), or with a Kronecker product in place of N, which is inverted exactly ("kfac").
    """
    h, mu = problem.support, per_problem(strength, problem.support)
    n = h.shape[1]
    weight, bias, p = solve_head(problem, strength)
    loss, m, m_bias = outer(problem, weight, bias)
    h1 = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)  # H~
    m1 = torch.cat([m, m_bias[..., None]], dim=-1)  # (B, C, D + 1)

    def hessian(x: Tensor) -> Tensor:
        """N X, (B, C, D + 1) to the same."""
        return through_softmax(h1 @ x.mT, p, classes=2).mT @ h1 / n + mu * x

    if solver == "cg":
        x = _conjugate_gradients(hessian, m1, iterations)
    elif solver == "neumann":  # N^-1 = 1/s sum_k (I - N/s)^k with s above the largest eigenvalue of N
        top = 0.5 * torch.linalg.eigvalsh(h1 @ h1.mT / n)[:, -1:, None] + mu  # the softmax's Jacobian is at most 1/2
        term = x = m1 / top
        for _ in range(iterations):
            term = term - hessian(term) / top
            x = x + term
    else:
        x = _kfac_inverse(h1, p, m1, mu)
    residual = p - F.one_hot(problem.support_y, p.shape[-1])
    gradient = -(residual @ x[..., :-1] + through_softmax(h1 @ x.mT, p, classes=2) @ weight) / n
    return Answer(loss, gradient, weight, bias)


def solve_head(problem: Problem, strength: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The minimum over the head, bias included: weight (B, C, D), bias (B, C), support probabilities (B, S, C).

    There W = W_0 - A' H~ with A = R(W) / (S strength), so the search is for the S x C matrix A, by Newton's method with
    each step halved until the loss falls: exact to rounding in a few iterations.
    """
    h, mu, c = problem.support, per_problem(strength, problem.support), problem.bias.shape[-1]
    n, eps = h.shape[1], torch.finfo(h.dtype).eps
    gram, y = h @ h.mT + 1, F.one_hot(problem.support_y, c).to(h)
    z0 = h @ problem.weight.mT + problem.bias[:, None]
    eye = torch.eye(n * c, dtype=h.dtype, device=h.device)

    def objective(a: Tensor) -> Tensor:
        """(B, S, C) to (B,): mean cross-entropy plus the pull to W_0, whose square is <A, G A>."""
        log_p = (z0 - gram @ a).log_softmax(dim=-1)
        return -(log_p * y).sum(dim=(1, 2)) / n + 0.5 * mu[:, 0, 0] * (a * (gram @ a)).sum(dim=(1, 2))

    a = torch.zeros_like(z0)
    for _ in range(30):
        p = (z0 - gram @ a).softmax(dim=-1)
        wrong = a - (p - y) / (n * mu)  # 0 at the minimum
        system = torch.einsum("bicd,bij->bicjd", _jacobian(p), gram).reshape(-1, n * c, n * c) / (n * mu)
        step = torch.linalg.solve(eye + system, wrong.flatten(1)).view_as(a)
        now, length = objective(a), torch.ones_like(mu)
        for _ in range(20):
            worse = objective(a - length * step) > now * (1 + 16 * eps)  # by more than rounding
            length = torch.where(worse[:, None, None], length / 2, length)
            if not worse.any():
                break
        a = a - length * step
        if (step.flatten(1).norm(dim=1) <= eps**0.75 * a.flatten(1).norm(dim=1)).all():
            break
    return problem.weight - a.mT @ h, problem.bias - a.sum(dim=1), (z0 - gram @ a).softmax(dim=-1)


def _jacobian(p: Tensor) -> Tensor:
    """diag(p) - p p' of every example: (B, S, C) to (B, S, C, C)."""
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def _conjugate_gradients(hessian: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Solve N X = right for a positive definite N, every problem of the batch with its own step sizes."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2), keepdim=True)

    tiny = torch.finfo(right.dtype).tiny
    x, residual, direction, square = torch.zeros_like(right), right, right, dot(right, right)
    for _ in range(iterations):
        image = hessian(direction)
        length = square / dot(direction, image).clamp_min(tiny)
        x = x + length * direction
        residual = residual - length * image
        square, old = dot(residual, residual), square
        direction = residual + (square / old.clamp_min(tiny)) * direction
    return x


def _kfac_inverse(h1: Tensor, p: Tensor, right: Tensor, mu: Tensor) -> Tensor:
    """(A (x) E + mu)^-1 applied to `right`: A = mean of h~ h~', E = mean of diag(p) - p p' (Martens and Grosse, 2015).

    A is D + 1 wide but has rank S at most: its eigenvectors are H~' U / sqrt(S lambda) with U those of the Gram matrix,
    and on everything orthogonal to them the inverse is 1 / mu.
    """
    n = h1.shape[1]
    small, v = torch.linalg.eigh(_jacobian(p).mean(dim=1))  # (B, C), (B, C, C)
    large, u = torch.linalg.eigh(h1 @ h1.mT / n)  # (B, S), (B, S, S)
    floor = large[:, -1:] * n * torch.finfo(h1.dtype).eps
    scale = torch.where(large > floor, (n * large.clamp_min(floor)).rsqrt(), 0.0)
    basis = (h1.mT @ u) * scale[:, None]  # (B, D + 1, S), orthonormal columns (or zero)
    rotated = v.mT @ right  # (B, C, D + 1)
    weight = 1 / (small[:, :, None] * large.clamp_min(0)[:, None] + mu) - 1 / mu
    return v @ (rotated / mu + (rotated @ basis * weight) @ basis.mT)
