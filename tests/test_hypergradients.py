"""Hypergradients in float64: against finite differences, autograd, dense algebra and their own special cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caml_core import hypergradients
from caml_core.hsfm_settings import HYPERGRADIENTS
from caml_core.hypergradients import (
    Answer,
    Problem,
    adjoint,
    adjoint_in_weights,
    first_order,
    unrolled,
)
from caml_core.implicit import hypergradient, implicit, solve_head

STEPS = 4


def make(b: int = 2, c: int = 3, s: int = 6, d: int = 4, k: int = 7, *, shared=True, weighted=False, seed=0) -> Problem:  # type: ignore[no-untyped-def]
    """B random problems: features of size 1, heads that are not at any minimum."""
    g = torch.Generator().manual_seed(seed)
    hard = (k,) if shared else (b, k)
    share = torch.rand(b, k, generator=g, dtype=torch.float64) + 0.1
    return Problem(
        torch.randn(b, s, d, generator=g, dtype=torch.float64),
        torch.randint(0, c, (b, s), generator=g),
        torch.randn(*hard, d, generator=g, dtype=torch.float64),
        torch.randint(0, c, hard, generator=g),
        torch.randn(b, c, d, generator=g, dtype=torch.float64),
        torch.randn(b, c, generator=g, dtype=torch.float64),
        share / share.sum(dim=1, keepdim=True) if weighted else None,
    )


def one(problem: Problem, i: int) -> Problem:
    """Problem i without the dimension B."""
    hard, hard_y = problem.hard, problem.hard_y
    return Problem(
        problem.support[i],
        problem.support_y[i],
        hard if hard.ndim == 2 else hard[i],
        hard_y if hard_y.ndim == 1 else hard_y[i],
        problem.weight[i],
        problem.bias[i],
        None if problem.hard_weight is None else problem.hard_weight[i],
    )


def outer(problem: Problem, weight: Tensor, bias: Tensor) -> Tensor:
    """Hard-set loss of a single problem, written out."""
    losses = F.cross_entropy(problem.hard @ weight.T + bias, problem.hard_y, reduction="none")
    return losses.mean() if problem.hard_weight is None else losses @ problem.hard_weight


def descended(problem: Problem, h: Tensor, alpha: float, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """The head of a single problem after plain gradient descent."""
    head = [problem.weight.clone().requires_grad_(), problem.bias.clone().requires_grad_()]
    for _ in range(steps):
        loss = F.cross_entropy(h @ head[0].T + head[1], problem.support_y)
        gradients = torch.autograd.grad(loss, head)
        head = [(p - alpha * g).detach().requires_grad_() for p, g in zip(head, gradients)]
    return head[0].detach(), head[1].detach()


def differences(problem: Problem, losses_of, h: float = 1e-5) -> Tensor:  # type: ignore[no-untyped-def]
    """Central differences in every coordinate of a single problem; `losses_of` maps supports (N, S, D) to (N,)."""
    n = problem.support.numel()
    steps = h * torch.eye(n, dtype=torch.float64).view(n, *problem.support.shape)
    return ((losses_of(problem.support + steps) - losses_of(problem.support - steps)) / (2 * h)).view_as(
        problem.support
    )


def error(found: Tensor, truth: Tensor) -> float:
    """Largest relative distance over the batch."""
    return float(((found - truth).flatten(-2).norm(dim=-1) / truth.flatten(-2).norm(dim=-1)).max())


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.flatten(-2), other.flatten(-2), dim=-1)


def same_head(one: Answer, other: Answer) -> bool:
    pairs = ((one.loss, other.loss), (one.weight, other.weight), (one.bias, other.bias))
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in pairs)


FORMS = [(c, shared, weighted) for c in (2, 3, 5) for shared in (True, False) for weighted in (True, False)]


# --- through the steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "shared", "weighted"), FORMS)
def test_adjoint_is_the_derivative_of_the_loss_after_training(c: int, shared: bool, weighted: bool) -> None:
    """Central differences of plain training, a size of step for each problem."""
    problem, alpha = make(c=c, shared=shared, weighted=weighted), torch.tensor([0.2, 0.9], dtype=torch.float64)
    answer = adjoint(problem, alpha=alpha, steps=STEPS)
    for i, a in enumerate(alpha.tolist()):
        single = one(problem, i)
        weight, bias = descended(single, single.support, a)
        assert torch.allclose(answer.weight[i], weight, rtol=1e-12, atol=1e-13)
        assert torch.allclose(answer.bias[i], bias, rtol=1e-12, atol=1e-13)
        assert float(answer.loss[i]) == pytest.approx(float(outer(single, weight, bias)), rel=1e-12)
        moved = lambda hs: torch.stack([outer(single, *descended(single, h, a)) for h in hs])  # noqa: B023, E731
        truth = differences(single, moved)
        assert error(answer.gradient[i], truth) < 1e-6


@given(
    b=st.integers(1, 3), c=st.integers(2, 4), s=st.integers(1, 8), d=st.integers(1, 6), k=st.integers(1, 9),
    steps=st.integers(1, 8), alpha=st.floats(1e-3, 1.0), shared=st.booleans(), weighted=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_adjoint_is_unrolled(b, c, s, d, k, steps, alpha, shared, weighted, seed) -> None:  # type: ignore[no-untyped-def]
    problem = make(b, c, s, d, k, shared=shared, weighted=weighted, seed=seed)
    rate = alpha * torch.linspace(0.5, 1, b, dtype=torch.float64)
    truth = unrolled(problem, alpha=rate, steps=steps)
    for how in (adjoint, adjoint_in_weights):
        found = how(problem, alpha=rate, steps=steps)
        assert error(found.gradient, truth.gradient) < 1e-10
        assert same_head(found, truth)
    assert same_head(first_order(problem, alpha=rate, steps=steps), truth)


def test_a_large_support_set_gets_the_sweep_in_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypergradients, "adjoint_in_weights", lambda problem, **how: "in weights")
    small, large = (make(1, s=hypergradients.GRAM_UP_TO + more) for more in (0, 1))
    assert isinstance(adjoint(small, alpha=0.1, steps=2), Answer)
    assert adjoint(large, alpha=0.1, steps=2) == "in weights"
    assert isinstance(adjoint(large, alpha=0.1, steps=2, last=1), Answer)


@pytest.mark.parametrize("last", range(1, STEPS + 3))
@pytest.mark.parametrize("shared", [True, False])
def test_truncated_is_unrolled_from_a_later_start(last: int, shared: bool) -> None:
    """Differentiating the last k steps is differentiating k steps from the head that T - k steps have left."""
    problem, alpha = make(shared=shared), 0.5
    found = adjoint(problem, alpha=alpha, steps=STEPS, last=last)
    before = STEPS - last
    if before > 0:
        head = unrolled(problem, alpha=alpha, steps=before)
        late = problem._replace(weight=head.weight, bias=head.bias)
        truth = unrolled(late, alpha=alpha, steps=last)
    else:
        truth = unrolled(problem, alpha=alpha, steps=STEPS)
    assert error(found.gradient, truth.gradient) < 1e-10
    assert same_head(found, truth)  # all T steps are taken, whatever is differentiated
    exact = adjoint(problem, alpha=alpha, steps=STEPS)
    assert torch.equal(found.gradient, exact.gradient) if before <= 0 else error(found.gradient, exact.gradient) > 1e-3


def test_first_order_forgets_how_steps_feed_later_steps() -> None:
    problem, alpha = make(), 0.5
    found, exact = (how(problem, alpha=alpha, steps=1) for how in (first_order, adjoint))
    assert error(found.gradient, exact.gradient) < 1e-12
    found, exact = (how(problem, alpha=alpha, steps=STEPS) for how in (first_order, adjoint))
    assert error(found.gradient, exact.gradient) > 1e-2
    # Its definition by autograd: the heads W_t stand still, the outer gradient M is that of the trained head.
    h = problem.support.clone().requires_grad_()
    weight, bias = (p.clone().requires_grad_() for p in (found.weight, found.bias))
    loss = sum(outer(one(problem, i), weight[i], bias[i]) for i in range(2))
    m = torch.autograd.grad(loss, (weight, bias))  # type: ignore[arg-type]
    moved = torch.zeros((), dtype=torch.float64)
    for t in range(STEPS):
        at = unrolled(problem, alpha=alpha, steps=t) if t else Answer(found.loss, h, problem.weight, problem.bias)
        head = [at.weight.requires_grad_(), at.bias.requires_grad_()]
        losses = [F.cross_entropy(h[i] @ head[0][i].T + head[1][i], problem.support_y[i]) for i in range(2)]
        steps = torch.autograd.grad(sum(losses), head, create_graph=True)  # type: ignore[arg-type]
        moved = moved - alpha * sum((x * y).sum() for x, y in zip(m, steps))
    assert error(found.gradient, torch.autograd.grad(moved, h)[0]) < 1e-10


def test_small_steps_make_all_agree() -> None:
    """With alpha T times the curvature far below 1, a step hardly changes the next: five names for one vector."""
    problem = make()
    exact = hypergradient(problem, "unrolled", alpha=1e-4, steps=STEPS).gradient
    for how in HYPERGRADIENTS:
        assert error(hypergradient(problem, how, alpha=1e-4, steps=STEPS).gradient, exact) < 2e-3, how
    half = adjoint(problem, alpha=1e-4, steps=STEPS, last=STEPS // 2).gradient
    assert error(2 * half, exact) < 2e-3  # truncation has the direction, and half the length


# --- the implicit function theorem ------------------------------------------------------------------------------------


def inner(single: Problem, h: Tensor, head: Tensor, strength: float) -> Tensor:
    """The regularised inner problem; head and bias as one (C, D + 1)."""
    start = torch.cat([single.weight, single.bias[:, None]], dim=1)
    loss = F.cross_entropy(h @ head[:, :-1].T + head[:, -1], single.support_y)
    return loss + strength / 2 * ((head - start) ** 2).sum()


def dense(single: Problem, head: Tensor, strength: float) -> Tensor:
    """The implicit hypergradient with the Hessian written out and a linear solver, by autograd."""
    h, head = single.support.clone().requires_grad_(), head.clone().requires_grad_()
    hessian = torch.autograd.functional.hessian(lambda w: inner(single, single.support, w, strength), head)
    (m,) = torch.autograd.grad(outer(single, head[:, :-1], head[:, -1]), head)
    x = torch.linalg.solve(hessian.reshape(m.numel(), -1), m.flatten()).view_as(m)
    (gradient,) = torch.autograd.grad(inner(single, h, head, strength), head, create_graph=True)
    return -torch.autograd.grad((gradient * x).sum(), h)[0]


@pytest.mark.parametrize(("c", "shared", "weighted"), FORMS)
def test_conjugate_gradients_are_a_dense_solve_and_the_derivative_of_the_minimum(
    c: int, shared: bool, weighted: bool
) -> None:
    problem, strength = make(c=c, shared=shared, weighted=weighted), torch.tensor([0.3, 2.0], dtype=torch.float64)
    found = implicit(problem, strength=strength)
    for i, mu in enumerate(strength.tolist()):
        single = one(problem, i)
        head = torch.cat([found.weight[i], found.bias[i][:, None]], dim=1).requires_grad_()
        (left,) = torch.autograd.grad(inner(single, single.support, head, mu), head)
        assert left.abs().max() < 1e-10  # a minimum: the problem is convex
        assert float(found.loss[i]) == pytest.approx(float(outer(single, found.weight[i], found.bias[i])), rel=1e-12)
        assert error(found.gradient[i], dense(single, head, mu)) < 1e-8

        def at_minimum(hs: Tensor) -> Tensor:
            n = len(hs)
            many = Problem(hs, *(None if v is None else v.expand(n, *v.shape) for v in single[1:]))  # type: ignore[arg-type]  # noqa: B023
            weight, bias, _ = solve_head(many, mu)  # noqa: B023
            return torch.stack([outer(single, w, b) for w, b in zip(weight, bias)])  # noqa: B023

        assert error(found.gradient[i], differences(single, at_minimum)) < 1e-6


@pytest.mark.parametrize("strength", [0.02, 0.3, 5.0])
def test_a_long_power_series_is_the_inverse(strength: float) -> None:
    problem = make()
    cg = implicit(problem, strength=strength)
    errors = [
        error(implicit(problem, strength=strength, solver="neumann", iterations=n).gradient, cg.gradient)
        for n in (1, 10, 100, 3000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


def mirrored() -> Problem:
    """Pairs (h, 0) and (-h, 1) with a head through the origin: p and 1 - p, whose p (1 - p) is the same."""
    h = torch.tensor([[1.0, 0.5, -0.3]], dtype=torch.float64)
    problem = make(b=1, c=2, s=2, d=3)
    y = torch.tensor([[0, 1]])
    zero = torch.zeros_like(problem.bias)
    return problem._replace(support=torch.stack([h, -h], dim=1), support_y=y, bias=zero)


def repeated() -> Problem:
    """One point several times, with different labels."""
    problem = make()
    return problem._replace(support=problem.support[:, :1].expand_as(problem.support).clone())


@pytest.mark.parametrize("problem", [make(s=1), repeated(), mirrored()], ids=["one", "repeated", "mirrored"])
def test_kfac_is_exact_when_all_support_points_are_equally_sure(problem: Problem) -> None:
    """The mean of h h' (x) (diag(p) - p p') is the product of the means where the second factor is the same."""
    for strength in (0.1, 1.0):
        cg, kfac = (implicit(problem, strength=strength, solver=solver) for solver in ("cg", "kfac"))  # type: ignore[arg-type]
        assert error(kfac.gradient, cg.gradient) < 1e-8


@pytest.mark.parametrize("seed", range(4))
def test_kfac_is_otherwise_close_in_direction(seed: int) -> None:
    problem = make(b=4, s=12, seed=seed)
    cg, kfac = (implicit(problem, strength=0.1, solver=solver) for solver in ("cg", "kfac"))  # type: ignore[arg-type]
    assert error(kfac.gradient, cg.gradient) > 1e-3
    assert (cosine(kfac.gradient, cg.gradient) > 0.5).all()
    assert same_head(kfac, cg)


def test_a_weak_pull_still_finds_the_minimum() -> None:
    """Large features and a strength near 0: Newton's steps have to be halved on the way."""
    problem = make(s=4, d=30, k=5)
    problem = problem._replace(support=10 * problem.support)
    weight, bias, p = solve_head(problem, 1e-4)
    y = F.one_hot(problem.support_y, 3).double()
    a = (p - y) / (4 * 1e-4)
    assert torch.allclose(weight, problem.weight - a.mT @ problem.support, atol=1e-8)
    assert torch.allclose(bias, problem.bias - a.sum(dim=1), atol=1e-8)


# --- the common front -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("how", HYPERGRADIENTS)
def test_problems_side_by_side_are_problems_one_by_one(how, shared: bool, weighted: bool) -> None:  # type: ignore[no-untyped-def]
    problem, alpha = make(b=3, shared=shared, weighted=weighted), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    before = [None if v is None else v.clone() for v in problem]
    together = hypergradient(problem, how, alpha=alpha, steps=STEPS)
    for i in range(3):
        alone = hypergradient(one(problem, i), how, alpha=float(alpha[i]), steps=STEPS)
        assert alone.gradient.shape == problem.support[i].shape
        assert alone.loss.shape == ()
        assert not any(part.requires_grad for part in (*together, *alone))
        assert error(together.gradient[i], alone.gradient) < 1e-9
        assert same_head(Answer(*(part[i] for part in together)), alone)
    assert all(a is b if b is None else torch.equal(a, b) for a, b in zip(problem, before))  # type: ignore[arg-type]
