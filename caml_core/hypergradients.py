"""How the features of a support set should move so that the linear head trained on them does well on hard examples.

HSFM (arXiv 2603.29313) edits support features H. Training the softmax head (W, b) on them for T steps of size alpha
from (W_0, b_0) and scoring it on a hard set V gives an outer loss F(H); this file computes dF/dH in five ways:

| function | derivative of | cost beyond two passes over V |
|:--|:--|:--|
| `unrolled` | the T steps, by autograd: the reference | T small graphs, twice |
| `adjoint` | the same, by hand, in Gram space: exact | one S x S matrix, T products S x S x C |
| `adjoint(last=k)`, `first_order` | the last k steps; no step feeding into a later one | the same or less |
| `implicit` | the minimum of a regularised inner problem, by conjugate gradients | a Newton solve, 50 products |
| `neumann`, `kfac` | the same with other inverses: a power series, a Kronecker product | 50 products, 2 eigenproblems |

**The adjoint.** Write h~ = (h, 1) for a feature vector with its bias, P_t = softmax(Z_t) and R_t = P_t - Y for the
probabilities and residuals of the support set at step t, G = H H' + 1 for its Gram matrix. Then the whole of training
happens in S x C numbers,

    Z_{t+1} = Z_t - (alpha/S) G R_t,        W_T = W_0 - (alpha/S) (R_0 + ... + R_{T-1})' H~,

and W_T appears once, in the hard set's loss. With the outer gradient M = dF/dW_T, one reverse sweep

    Q = -(alpha/S) H~ M'                                    what each R_t is worth, if it touched nothing later
    B_t = J_t (Q - (alpha/S) G (B_{t+1} + ... + B_{T-1}))   through the softmax, J_t b = P_t * (b - <P_t, b>)
    K = sum_t B_t (R_0 + ... + R_{t-1})'
    dF/dH = (sum_t B_t) W_0 - (alpha/S) [ (K + K') H + (sum_t R_t) M ]

gives the derivative through every step, with nothing D wide kept per step.

The functions take a leading dimension B (many seeds, many settings) and loop only over the T steps. The code keeps
logits, P_t, R_t and B_t transposed, class by class (B, C, S): over so few classes, softmax along the last dimension is
ten times slower. `hypergradient` calls one by name and also takes a single problem without B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.errors import CamlError

How = Literal["adjoint", "unrolled", "first_order", "implicit", "neumann", "kfac"]
GRAM_UP_TO = 96  # support examples for which the Gram matrix pays (measured between 64 and 128, D = 2,048)
HYPERGRADIENTS: tuple[How, ...] = ("adjoint", "unrolled", "first_order", "implicit", "neumann", "kfac")


class Problem(NamedTuple):
    """Support set, hard set and the head that training starts from, for B problems.

    The hard set may be one for all (K, D), which is much cheaper than B copies; `hard_weight` then says what each
    problem makes of its rows.
    """

    support: Tensor  # float (B, S, D), the features H to be edited
    support_y: Tensor  # int64 (B, S)
    hard: Tensor  # float (B, K, D), or (K, D) for all problems
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


@torch.no_grad()
def hypergradient(problem: Problem, how: How = "adjoint", *, alpha: float | Tensor, steps: int) -> Answer:
    """One of the functions below by its name; `implicit`, `neumann` and `kfac` take 1/(alpha T) for their regulariser.

    Args:
        problem: with or without the dimension B.
        alpha: size of an inner step; (B,) for one each.
        steps: T.

    Raises:
        CamlError: unknown name, no step.
    """
    if how not in HYPERGRADIENTS or steps < 1:
        raise CamlError(
            what=f"hypergradient {how!r}, {steps} inner steps",
            expected="one of " + ", ".join(HYPERGRADIENTS) + "; at least 1 step",
            remedy="correct the setting",
        )
    if single := problem.support.ndim == 2:
        shared = {"hard", "hard_y"}
        problem = Problem(**{k: v if v is None or k in shared else v[None] for k, v in problem._asdict().items()})
    if how in ("unrolled", "adjoint", "first_order"):
        sweep = adjoint if problem.support.shape[1] <= GRAM_UP_TO else adjoint_in_weights
        unroll = {"unrolled": unrolled, "adjoint": sweep, "first_order": first_order}[how]
        answer = unroll(problem, alpha=alpha, steps=steps)
    else:
        solver: Solver = "cg" if how == "implicit" else how  # type: ignore[assignment]
        strength = 1 / (steps * torch.as_tensor(alpha, dtype=problem.support.dtype, device=problem.support.device))
        answer = implicit(problem, strength=strength, solver=solver)
    return Answer(*(part[0] for part in answer)) if single else answer


def one_hot(y: Tensor, n_classes: int, like: Tensor) -> Tensor:
    """(..., N) labels to (..., N, C) of zeros and ones."""
    return torch.zeros(*y.shape, n_classes, dtype=like.dtype, device=like.device).scatter_(-1, y[..., None], 1)


def _per_problem(value: float | Tensor, like: Tensor) -> Tensor:
    """A setting, one number or (B,), shaped to multiply (B, ., .)."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def head_logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits of B heads, (B, N, C), on features (B, N, D) of their own or (N, D) for all."""
    if x.ndim == 3:
        return x @ weight.mT + bias[:, None]
    b, c, d = weight.shape  # one matrix product for all heads, which reads the features once
    return (x @ weight.reshape(b * c, d).T).view(-1, b, c).transpose(0, 1) + bias[:, None]


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Of every example: (B, N, C) with labels (B, N), or (N,) for all, to (B, N)."""
    return -logits.log_softmax(dim=-1).gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]


def hard_loss(problem: Problem, logits: Tensor) -> Tensor:
    """Cross-entropy of the hard set, (B, K, C) to (B,)."""
    losses = cross_entropies(logits, problem.hard_y)
    return losses.mean(dim=-1) if problem.hard_weight is None else (losses * problem.hard_weight).sum(dim=-1)


def _outer(problem: Problem, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hard-set loss (B,) and its gradient in weight, M (B, C, D), and in bias (B, C): one pass over V each way.

    One class is free. Softmax sees only differences of logits, so those to the last class are enough; and residuals sum
    to zero over the classes, so the last row of M is minus the sum of the others. Two classes: half the work.
    """
    x, (b, c, d) = problem.hard, weight.shape
    w = weight[:, :-1] - weight[:, -1:]
    z = w @ x.mT if x.ndim == 3 else (w.view(-1, d) @ x.T).view(b, c - 1, -1)
    z = F.pad(z + (bias[:, :-1] - bias[:, -1:])[..., None], (0, 0, 0, 1))  # (B, C, K), the last class at 0
    labels = problem.hard_y.expand(b, z.shape[-1])[:, None]
    share = z.new_full((1, 1), 1 / z.shape[-1]) if problem.hard_weight is None else problem.hard_weight
    log_p = z.log_softmax(dim=1)
    loss = -(share * log_p.gather(1, labels)[:, 0]).sum(dim=-1)
    residual = log_p.exp_().scatter_add_(1, labels, z.new_full((1, 1, 1), -1).expand_as(labels)) * share[:, None]
    r = residual[:, :-1]
    m = r @ x if x.ndim == 3 else (r.reshape(-1, x.shape[0]) @ x).view(b, c - 1, d)
    return loss, torch.cat([m, -m.sum(dim=1, keepdim=True)], dim=1), residual.sum(dim=-1)


def _train(problem: Problem, rate: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """T inner steps in Gram space.

    Returns:
        rate * G (B, S, S); probabilities and residuals of every step (T, B, C, S); the trained weight and bias.
    """
    h = problem.support
    gram = rate * (h @ h.mT + 1)
    y = one_hot(problem.support_y, problem.bias.shape[-1], h).mT.contiguous()
    z = problem.weight @ h.mT + problem.bias[..., None]
    probabilities, residuals = [], []
    for _ in range(steps):
        probabilities.append(z.softmax(dim=1))
        residuals.append(probabilities[-1] - y)
        z = torch.baddbmm(z, residuals[-1], gram, alpha=-1)
    p, r = torch.stack(probabilities), torch.stack(residuals)
    summed = rate * r.sum(dim=0)
    return gram, p, r, problem.weight - summed @ h, problem.bias - summed.sum(dim=-1)


def _through_softmax(b: Tensor, p: Tensor, classes: int = 1) -> Tensor:
    """J b = p * (b - <p, b>) over the dimension `classes`. J is symmetric, so this serves both directions."""
    return torch._softmax_backward_data(b, p, classes, p.dtype)


def adjoint(problem: Problem, *, alpha: float | Tensor, steps: int, last: int | None = None) -> Answer:
    """Loss and exact hypergradient by the reverse sweep that the top of this file derives.

    Args:
        alpha: size of an inner step, one number or (B,).
        steps: T.
        last: differentiate only through the last so many steps (a truncated sweep); None: through all.

    Raises:
        CamlError: `last` below 1.
    """
    if last is not None and last < 1:
        raise CamlError(what=f"last={last}", expected="at least 1 step, or None", remedy="correct the setting")
    h = problem.support
    rate = _per_problem(alpha, h) / h.shape[1]
    gram, p, r, weight, bias = _train(problem, rate, steps)
    loss, m, m_bias = _outer(problem, weight, bias)
    first = 0 if last is None else max(0, steps - last)
    q = -rate * (m @ h.mT + m_bias[..., None])
    parts = []
    total = torch.zeros_like(q)  # B_{t+1} + ... + B_{T-1}
    for probabilities in reversed(p[first:].unbind()):
        parts.append(_through_softmax(torch.baddbmm(q, total, gram, alpha=-1), probabilities))
        total = total + parts[-1]
    b = torch.stack(parts[::-1])
    before = (r.cumsum(dim=0) - r)[first:]  # R_0 + ... + R_{t-1}
    k = _pair(b, before)
    feedback = k.mT if first == 0 else _pair(before - before[0], b)
    return Answer(loss, _assemble(problem, rate, k + feedback, total, r[first:].sum(dim=0), m), weight, bias)


def _assemble(problem: Problem, rate: Tensor, k: Tensor, b: Tensor, r: Tensor, m: Tensor) -> Tensor:
    """b W_0 - (alpha/S) (k H + r M): float (B, S, D), summed in place, since it is the only large tensor made here."""
    gradient = (-rate * k) @ problem.support
    return gradient.baddbmm_(torch.cat([b, -rate * r], dim=1).mT, torch.cat([problem.weight, m], dim=1))


def _pair(left: Tensor, right: Tensor) -> Tensor:
    """sum_t left_t right_t', (T, B, C, S) twice to (B, S, S), as one matrix product."""
    return left.permute(1, 3, 0, 2).flatten(2) @ right.transpose(0, 1).flatten(1, 2)


def adjoint_in_weights(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The same reverse sweep with W_t itself in place of the Gram matrix: better for support sets above `GRAM_UP_TO`.

    With X_T = M and X_t = X_{t+1} + B_t' H~ the adjoint of W_t, a step adds B_t W_t - (alpha/S) R_t X_{t+1} to dF/dH.
    It costs T products S x D x C each way, where the Gram matrix costs one S x S x D and T of S x S x C.
    """
    h = problem.support
    rate = _per_problem(alpha, h) / h.shape[1]
    h1 = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)  # H~
    y = one_hot(problem.support_y, problem.bias.shape[-1], h).mT.contiguous()
    w = torch.cat([problem.weight, problem.bias[..., None]], dim=-1)
    path = []
    for _ in range(steps):
        p = (w @ h1.mT).softmax(dim=1)
        path.append((w, p, rate * (p - y)))
        w = w - path[-1][2] @ h1
    weight, bias = w[..., :-1], w[..., -1]
    loss, m, m_bias = _outer(problem, weight, bias)
    x = torch.cat([m, m_bias[..., None]], dim=-1)
    left, right = [], []
    for w, p, r in reversed(path):
        b = _through_softmax(-rate * (x @ h1.mT), p)
        left += [b, -r]
        right += [w[..., :-1], x[..., :-1]]
        x = x + b @ h1
    return Answer(loss, torch.cat(left, dim=1).mT @ torch.cat(right, dim=1), weight, bias)


def first_order(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The T steps as if none changed what a later one does: d W_{t+1} / d W_t taken as the identity.

    dF/dH ~ sum_t [ J_t Q W_t - (alpha/S) R_t M ], the adjoint without its feedback.
    """
    h = problem.support
    rate = _per_problem(alpha, h) / h.shape[1]
    _, p, r, weight, bias = _train(problem, rate, steps)
    loss, m, m_bias = _outer(problem, weight, bias)
    b = _through_softmax((-rate * (m @ h.mT + m_bias[..., None])).expand_as(p), p, classes=2)
    before = r.cumsum(dim=0) - r
    return Answer(loss, _assemble(problem, rate, _pair(b, before), b.sum(dim=0), r.sum(dim=0), m), weight, bias)


@torch.enable_grad()
def unrolled(problem: Problem, *, alpha: float | Tensor, steps: int) -> Answer:
    """The reference: the T steps written as one would, differentiated by autograd."""
    h = problem.support.detach().requires_grad_()
    rate = _per_problem(alpha, h)
    weight, bias = (head.detach().requires_grad_() for head in (problem.weight, problem.bias))
    for _ in range(steps):
        log_p = (h @ weight.mT + bias[:, None]).log_softmax(dim=-1)
        losses = -log_p.gather(-1, problem.support_y[..., None]).mean(dim=(1, 2))
        # The sum over the batch: each problem gets its own gradient.
        g_weight, g_bias = torch.autograd.grad(losses.sum(), (weight, bias), create_graph=True)
        weight, bias = weight - rate * g_weight, bias - rate[..., 0] * g_bias
    loss = hard_loss(problem, head_logits(problem.hard, weight, bias))
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    return Answer(loss.detach(), gradient, weight.detach(), bias.detach())


# --- the implicit function theorem: the head as the minimum of a regularised problem ---------------------------------

Solver = Literal["cg", "neumann", "kfac"]


def solve_head(problem: Problem, strength: float | Tensor, *, iterations: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise mean CE(H; W) + strength/2 ||W - W_0||^2 over the head, bias included.

    At the minimum W = W_0 - A' H~ with A = R(W) / (S strength), so the search is for the S x C matrix A. Newton's
    method, each step halved until the loss falls: exact to rounding in a few iterations.

    Returns:
        weight (B, C, D), bias (B, C), probabilities on the support set (B, S, C).
    """
    h = problem.support
    n, c = h.shape[1], problem.bias.shape[-1]
    mu = _per_problem(strength, h)
    gram = h @ h.mT + 1
    y = one_hot(problem.support_y, c, h)
    z0 = h @ problem.weight.mT + problem.bias[:, None]
    eye = torch.eye(n * c, dtype=h.dtype, device=h.device)

    def objective(a: Tensor) -> Tensor:
        """(B, S, C) to (B,): mean cross-entropy plus the pull to W_0, whose square is <A, G A>."""
        log_p = (z0 - gram @ a).log_softmax(dim=-1)
        return -(log_p * y).sum(dim=(1, 2)) / n + 0.5 * mu[:, 0, 0] * (a * (gram @ a)).sum(dim=(1, 2))

    a = torch.zeros_like(z0)
    eps = torch.finfo(h.dtype).eps
    for _ in range(iterations):
        p = (z0 - gram @ a).softmax(dim=-1)
        wrong = a - (p - y) / (n * mu)  # 0 at the minimum
        j = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]  # (B, S, C, C)
        system = torch.einsum("bicd,bij->bicjd", j, gram).reshape(-1, n * c, n * c) / (n * mu)
        step = torch.linalg.solve(eye + system, wrong.flatten(1)).view_as(a)
        now, length = objective(a), torch.ones_like(mu)
        for _ in range(20):
            worse = objective(a - length * step) > now * (1 + 16 * eps)  # by more than rounding
            if not worse.any():
                break
            length = torch.where(worse[:, None, None], length / 2, length)
        a = a - length * step
        if (step.flatten(1).norm(dim=1) <= eps**0.75 * a.flatten(1).norm(dim=1)).all():
            break
    p = (z0 - gram @ a).softmax(dim=-1)
    return problem.weight - a.mT @ h, problem.bias - a.sum(dim=1), p


def implicit(problem: Problem, *, strength: float | Tensor, solver: Solver = "cg", iterations: int = 50) -> Answer:
    """Hypergradient at the minimum of mean CE(H; W) + strength/2 ||W - W_0||^2, by the implicit function theorem.

    With N the Hessian in W there and N X = M, one more derivative of the inner gradient gives
    dF/dH = -(1/S) [ R X + J(H~ X') W ].

    Args:
        strength: of the pull to W_0, one number or (B,). T gradient steps of size alpha behave like 1/(alpha T).
        solver: "cg" (conjugate gradients), "neumann" (a truncated power series of the inverse, scaled by a bound on the
            largest eigenvalue), "kfac" (the Hessian replaced by a Kronecker product, inverted exactly).
        iterations: of cg or neumann.

    Raises:
        CamlError: unknown solver.
    """
    h = problem.support
    n = h.shape[1]
    mu = _per_problem(strength, h)
    weight, bias, p = solve_head(problem, strength)
    loss, m, m_bias = _outer(problem, weight, bias)
    h1 = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)  # H~
    m1 = torch.cat([m, m_bias[..., None]], dim=-1)  # (B, C, D + 1)

    def hessian(x: Tensor) -> Tensor:
        """N X, (B, C, D + 1) to the same."""
        return _through_softmax(h1 @ x.mT, p, classes=2).mT @ h1 / n + mu * x

    if solver == "cg":
        x = _conjugate_gradients(hessian, m1, iterations)
    elif solver == "neumann":  # N^-1 = 1/s sum_k (I - N/s)^k with s above the largest eigenvalue of N
        top = 0.5 * torch.linalg.eigvalsh(h1 @ h1.mT / n)[:, -1:, None] + mu  # the softmax's Jacobian is at most 1/2
        term = x = m1 / top
        for _ in range(iterations):
            term = term - hessian(term) / top
            x = x + term
    elif solver == "kfac":
        x = _kfac_inverse(h1, p, m1, mu)
    else:
        raise CamlError(what=f"unknown solver {solver!r}", expected="cg, neumann or kfac", remedy="check the spelling")
    residual = p - one_hot(problem.support_y, p.shape[-1], h)
    gradient = -(residual @ x[..., :-1] + _through_softmax(h1 @ x.mT, p, classes=2) @ weight) / n
    return Answer(loss, gradient, weight, bias)


def _conjugate_gradients(hessian: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Solve N X = right for a positive definite N, every problem of the batch with its own step sizes."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2), keepdim=True)

    tiny = torch.finfo(right.dtype).tiny
    x, residual, direction = torch.zeros_like(right), right, right
    square = dot(residual, residual)
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
    e = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]).mean(dim=1)
    small, v = torch.linalg.eigh(e)  # (B, C), (B, C, C)
    large, u = torch.linalg.eigh(h1 @ h1.mT / n)  # (B, S), (B, S, S)
    floor = large[:, -1:] * n * torch.finfo(h1.dtype).eps
    scale = torch.where(large > floor, (n * large.clamp_min(floor)).rsqrt(), 0.0)
    basis = (h1.mT @ u) * scale[:, None]  # (B, D + 1, S), orthonormal columns (or zero)
    rotated = v.mT @ right  # (B, C, D + 1)
    weight = 1 / (small[:, :, None] * large.clamp_min(0)[:, None] + mu) - 1 / mu
    return v @ (rotated / mu + (rotated @ basis * weight) @ basis.mT)
