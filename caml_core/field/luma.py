"""LUMA, small: a prior over tasks in closed form, and what it is compared with. Chapter 19 builds it.

After Park et al. (arXiv 2210.01881) and the public code of its first version. A task is a function of one number: x is
(T, K, 1) and y (T, K) for T tasks with K labels each, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caml_core.errors import CamlError

WIDTH, NOISE, SPAN = 40, 0.05, 5.0  # of both hidden layers; standard deviation of a label; x is within (-SPAN, SPAN)
SHAPES = [(WIDTH, 1), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,)]  # P weights, flat in one vector theta
SIZES = [math.prod(shape) for shape in SHAPES]
Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor, Tensor]]
Labels = tuple[Tensor, Tensor]  # mean (C, T, N) and covariance (C, T, N, N) of labels under C components


def uniform(low: float, high: float, *shape: int, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)


def tasks(kinds: dict[str, float]) -> Draw:
    """A function (tasks, points, generator) -> x, y and the kind of each task (T,); kinds: the share of each."""

    def draw(n: int, points: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x = uniform(-SPAN, SPAN, n, points, g=g)
        found = {
            "sine": uniform(0.1, 5, n, 1, g=g) * torch.sin(x + uniform(0, math.pi, n, 1, g=g)) + 1,
            "line": uniform(-1, 1, n, 1, g=g) * x,
            "quadratic": uniform(-0.2, 0.2, n, 1, g=g) * (x - uniform(-2, 2, n, 1, g=g)) ** 2 + 0.5,
        }
        share = torch.tensor(list(kinds.values()), dtype=torch.float64)
        kind = torch.multinomial(share, n, True, generator=g)
        y = torch.stack([found[name] for name in kinds])[kind, torch.arange(n)]
        return x[..., None], y + NOISE * torch.randn(y.shape, generator=g, dtype=torch.float64), kind

    return draw


def forward(theta: Tensor, x: Tensor) -> Tensor:
    """The network with weights of its own for each task: theta (T, P), x (T, K, 1); output (T, K)."""
    a, b, c, d, e, f = (t.view(-1, *shape) for t, shape in zip(theta.split(SIZES, 1), SHAPES))
    hidden = (x @ a.mT + b[:, None]).relu()
    return ((hidden @ c.mT + d[:, None]).relu() @ e.mT + f[:, None])[..., 0]


def jacobian(theta: Tensor, x: Tensor) -> Tensor:
    """Derivative of the network's output by its weights: theta (P,), x (T, K, 1); (T, K, P)."""
    a, b, c, d, e, _ = (t.view(shape) for t, shape in zip(theta.split(SIZES), SHAPES))
    one = (x @ a.T + b).relu()
    two = (one @ c.T + d).relu()
    to_two = e[0] * (two > 0)
    to_one = (to_two @ c) * (one > 0)
    by_a, by_c = ((to[..., None] * h[..., None, :]).flatten(-2) for to, h in ((to_one, x), (to_two, one)))
    return torch.cat([by_a, to_one, by_c, to_two, two, torch.ones_like(x)], -1)


@dataclass
class Prior:
    """C Gaussians over the weights of the net linearised at theta: N(mu, basis' diag(scale)^2 basis), or N(mu, I)."""

    theta: Tensor  # (P,)
    mu: Tensor  # (C, P)
    scale: Tensor  # (C, s)
    basis: Tensor | None = None  # (s, P)

    def __call__(self, x: Tensor) -> Labels:
        J = jacobian(self.theta, x)
        Z = J[None] if self.basis is None else J @ self.basis.T * self.scale[:, None, None]
        return (J @ self.mu.T).movedim(-1, 0), Z @ Z.mT + NOISE**2 * torch.eye(x.shape[1], dtype=x.dtype)


def start(seed: int) -> Prior:
    """Weights drawn as PyTorch draws them; mean 0, covariance I."""
    g, fan = torch.Generator().manual_seed(seed), (1, 1, WIDTH, WIDTH, WIDTH, WIDTH)
    theta = torch.cat([uniform(-1, 1, n, g=g) / math.sqrt(inputs) for n, inputs in zip(SIZES, fan)])
    return Prior(theta, torch.zeros_like(theta)[None], torch.ones_like(theta)[None])


def evidence(labels: Labels, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(y) of each component and task (C, T), the Cholesky factor and the residual whitened by it."""
    if y.shape[-1] == 0:
        raise CamlError("an empty context", "at least one label a task", "draw K >= 1 points before conditioning")
    L, failed = torch.linalg.cholesky_ex(labels[1])
    if failed.any():
        raise CamlError("a singular covariance", "a positive definite one", "add the labels' variance")
    white = torch.linalg.solve_triangular(L, (y - labels[0])[..., None], upper=False)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -((white**2).sum((-2, -1)) + log_det + y.shape[-1] * math.log(2 * math.pi)) / 2, L, white


def condition(labels: Labels, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels at K + M points, y (T, K) of the first K: mean and variance (C, T, M) of the rest, log p(y) (C, T)."""
    (mean, cov), K = labels, y.shape[-1]
    found, L, white = evidence((mean[..., :K], cov[..., :K, :K]), y)
    half = torch.linalg.solve_triangular(L, cov[..., :K, K:], upper=False)
    variance = cov.diagonal(dim1=-2, dim2=-1)[..., K:] - (half**2).sum(-2)
    return mean[..., K:] + (half.mT @ white)[..., 0], variance, found


def fit(prior: Prior, draw: Draw, steps: int, seed: int, lr: float = 3e-3) -> Prior:
    """Adam on the evidence of 24 fresh tasks with 10 labels, over theta, mu and scale; components weigh the same."""
    g = torch.Generator().manual_seed(seed)
    theta, mu, scale = (t.clone().requires_grad_() for t in (prior.theta, prior.mu, prior.scale))
    adam = torch.optim.Adam([theta, mu, scale], lr)
    for _ in range(steps):
        x, y, _ = draw(24, 10, g)
        adam.zero_grad()
        (-evidence(Prior(theta, mu, scale, prior.basis)(x), y)[0].logsumexp(0).mean()).backward()
        adam.step()
    return Prior(theta.detach(), mu.detach(), scale.detach(), prior.basis)


def project(prior: Prior, kind: str, seed: int, rank: int = 10, components: int = 1) -> Prior:
    """Keep `rank` directions of weights: the top ones of the Fisher matrix E[J'J] ("fisher") or "random" ones."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(prior.theta), rank, generator=g, dtype=torch.float64))[0].T
    if kind == "fisher":
        J = jacobian(prior.theta, uniform(-SPAN, SPAN, 1000, 1, g=g))
        basis = torch.linalg.svd(J, full_matrices=False)[2][:rank]
    scale = 1 + 0.5 * (components > 1) * torch.randn(components, rank, generator=g, dtype=torch.float64)
    return Prior(prior.theta, prior.mu.expand(components, -1), scale, basis)


def adapt(theta: Tensor, x: Tensor, y: Tensor, inner: float, steps: int) -> Tensor:
    """MAML's inner loop, theta (P,) to (T, P): gradient descent on each task, gradients clipped to length 10."""
    theta = theta.expand(len(x), -1)
    for _ in range(steps):
        (step,) = torch.autograd.grad(((forward(theta, x) - y) ** 2).mean(1).sum(), theta, create_graph=True)
        theta = theta - inner * step / (step.norm(dim=1, keepdim=True) / 10).clamp(min=1)
    return theta


def maml(theta: Tensor, draw: Draw, steps: int, seed: int, inner: float, lr: float = 3e-3) -> Tensor:
    """Model-agnostic meta-learning: 5 inner steps on 1 to 10 labels, judged by 10 more; the weights to start from."""
    g, theta = torch.Generator().manual_seed(seed), theta.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr)
    for step in range(steps):
        (x, y, _), K = draw(24, 20, g), 1 + step % 10
        adam.zero_grad()
        ((forward(adapt(theta, x[:, :K], y[:, :K], inner, 5), x[:, 10:]) - y[:, 10:]) ** 2).mean().backward()
        adam.step()
    return theta
