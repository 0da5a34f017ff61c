"""SetONet's algebra against definitions and maintained libraries, its world, and its bad inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_continuous_are
from sklearn.linear_model import Ridge
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.setonet import Plain, SetONet, act, adapt, clone, meta_train, refit_b, refit_head
from caml_core.field.vehicles import Data, batches, draw_tasks, judge, observe


@pytest.fixture
def operator() -> SetONet:
    torch.manual_seed(0)
    return SetONet(width=8, p=3).double()


def seen(n: int = 6, m: int = 7, k: int = 5, seed: int = 0) -> Data:
    tasks, *rest = observe(draw_tasks(n, seed), m, k, seed + 1)
    return Data(tasks, *(value.double() for value in rest))


def test_the_expert_solves_the_riccati_equation() -> None:
    tasks, y = draw_tasks(20, 0), torch.randn(20, 3, 4)
    for n, force in enumerate(tasks.force(y)):
        mass, drag = tasks.mass[n].item(), tasks.drag[n].item()
        a, b, eye = np.zeros((4, 4)), np.zeros((4, 2)), np.eye(2)
        a[:2, 2:], a[2:, 2:], b[2:] = eye, -drag / mass * eye, eye / mass
        riccati = solve_continuous_are(a, b, np.diag([*tasks.q[n].tolist(), 0.1, 0.1]), eye)
        np.testing.assert_allclose(force, -y[n].numpy() @ (b.T @ riccati).T, rtol=2e-4, atol=2e-4)


def test_observations_obey_the_law_of_motion_and_show_the_paint() -> None:
    tasks = draw_tasks(8, 1, rho=0.75)
    sets = observe(tasks, 40_000, 1, 2).sets
    gains = torch.linalg.lstsq(sets[..., 2:6], sets[..., 6:8]).solution  # of velocity and force
    for n, (mass, drag) in enumerate(zip(tasks.mass, tasks.drag)):
        torch.testing.assert_close(gains[n, 2:], torch.eye(2) / mass, atol=0.02, rtol=0)
        torch.testing.assert_close(gains[n, :2], -drag * torch.eye(2) / mass, atol=0.02, rtol=0)
    torch.testing.assert_close(5 * sets[..., 8], tasks.cost(sets[..., :4], sets[..., 4:6]))
    assert ((sets[:, 0, 9] > 0) == (tasks.group % 2 == 1)).all()
    assert torch.bincount(draw_tasks(600, 0, rho=0.99).group).tolist() == [297, 3, 3, 297]
    assert torch.equal(draw_tasks(600, 0, rho=0.99).mass, draw_tasks(600, 0).mass)  # repainted


def test_a_policy_is_a_sum_over_the_basis_and_the_order_of_a_set_changes_nothing(operator: SetONet) -> None:
    data, order = seen(), torch.randperm(7)
    b, t = operator.coefficients(data.sets), operator.basis(data.y)
    by_hand = sum(t[..., j] * b[:, None, :, j] for j in range(3)) + operator.bias
    torch.testing.assert_close(operator(data.sets, data.y), by_hand)
    torch.testing.assert_close(operator(data.sets[:, order], data.y), operator(data.sets, data.y), rtol=1e-12, atol=0)
    twice = torch.cat([data.sets, data.sets], dim=1)
    torch.testing.assert_close(operator(twice, data.y), operator(data.sets, data.y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prefix", ["rho", ""])
def test_adaptation_is_gradient_descent_on_each_task(operator: SetONet, prefix: str) -> None:
    data = seen(n=3)
    own = adapt(operator, prefix, data, 0.1, steps=2)
    for n in range(3):
        model, (sets, y, u) = copy.deepcopy(operator), (part[n : n + 1] for part in data[1:])
        opt = torch.optim.SGD([w for name, w in model.named_parameters() if name.startswith(prefix)], 0.1)
        for _ in range(2):
            opt.zero_grad()
            torch.nn.functional.mse_loss(model(sets, y), u).backward()
            opt.step()
        torch.testing.assert_close(act(operator, own, data.sets, data.y)[n], model(sets, y)[0])


def test_the_gradient_goes_through_the_inner_steps(operator: SetONet) -> None:
    data = seen(n=2)

    def outer(bias: Tensor) -> Tensor:
        model = copy.deepcopy(operator)
        del model.rho_last.bias
        model.rho_last.register_parameter("bias", None)
        model.rho_last.forward = lambda h: h @ model.rho_last.weight.T + bias  # type: ignore[method-assign, assignment]
        return (act(model, adapt(model, "rho", data, 0.1), data.sets, data.y) - data.u).square().mean()

    assert torch.autograd.gradcheck(outer, operator.rho_last.bias.detach().clone().requires_grad_())


def test_b_is_refitted_by_ridge_regression_on_what_the_branch_missed(operator: SetONet) -> None:
    data = seen()
    found = refit_b(operator, data, 0.5)
    with torch.no_grad():
        miss, t, b = data.u - operator(data.sets, data.y), operator.basis(data.y), operator.coefficients(data.sets)
    for n in range(6):
        for d in range(2):
            ridge = Ridge(alpha=0.5, fit_intercept=False).fit(t[n, :, d], miss[n, :, d])
            np.testing.assert_allclose(found[n, d], b[n, d] + ridge.coef_, rtol=1e-6, atol=1e-9)


def test_the_head_is_refitted_by_ridge_regression_on_products(operator: SetONet) -> None:
    data, new = seen(), seen(seed=5)
    made = refit_head(operator, data, 0.5)

    def products(data: Data, d: int) -> np.ndarray:
        code = torch.cat([operator.code(data.sets), torch.ones(6, 1)], dim=1)
        x = [torch.outer(t[d], c).flatten() for c, ts in zip(code, operator.basis(data.y)) for t in ts]
        return torch.stack(x).detach().numpy()

    with torch.no_grad():
        move, miss = made(new.sets, new.y) - operator(new.sets, new.y), data.u - operator(data.sets, data.y)
    for d in range(2):
        ridge = Ridge(alpha=0.5, fit_intercept=False).fit(products(data, d), miss[..., d].flatten())
        np.testing.assert_allclose(move[..., d].flatten(), ridge.predict(products(new, d)), rtol=1e-6, atol=1e-9)
    same = refit_head(operator, data, 1e12)
    torch.testing.assert_close(same(new.sets, new.y), operator(new.sets, new.y))


def test_the_expert_is_best_and_costs_nothing_extra() -> None:
    data = observe(draw_tasks(12, 0), 1, 9, 1)
    found = judge(data, data.tasks.force, 2)
    assert found["error"].abs().max() == found["extra"].abs().max() == 0
    for factor in (0.7, 1.4):
        found = judge(data, lambda y, factor=factor: factor * data.tasks.force(y), 2)  # type: ignore[misc]
        torch.testing.assert_close(found["error"], torch.full((12,), 100 * abs(factor - 1)), rtol=1e-4, atol=0)
        assert found["extra"].min() > 0
    assert judge(data, lambda y: 1e20 * y[..., :2], 2)["extra"].tolist() == [900] * 12


def test_what_only_paint_tells_is_driven_by_paint_and_a_meta_trained_start_adapts_better() -> None:
    torch.manual_seed(0)
    train, data = draw_tasks(200, 0, rho=1.0), observe(draw_tasks(40, 1), 20, 40, 2)
    operator = clone(SetONet(), batches(train, 0, 32, [(20, 32)]), 250, 3e-3)
    with torch.no_grad():
        miss = (operator(data.sets, data.y) - data.u).square().mean(dim=(1, 2))
    usual = (data.tasks.group == 0) | (data.tasks.group == 3)
    assert miss[~usual].mean() > 2 * miss[usual].mean()
    known, new = data._replace(y=data.y[:, :10], u=data.u[:, :10]), data._replace(y=data.y[:, 10:], u=data.u[:, 10:])
    made, step = meta_train(operator, "rho", train, 0, 0.02, 60, 2e-3)
    losses = []
    for model in (operator, made):
        forces = act(model, adapt(model, "rho", known, step), new.sets, new.y)
        losses.append((forces - new.u).square().mean().item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("make", [SetONet, lambda: Plain(True)])
@pytest.mark.parametrize("shape", [(4, 0, 10), (4, 10), (4, 5, 9)])
def test_an_empty_set_or_one_of_another_form_is_one_message(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(CamlError, match=r"^a set of shape .*\n.*\(N, m, 10\), m of 1 or more"):
        make()(torch.zeros(shape), torch.zeros(4, 2, 4))


def test_without_demonstrations_nothing_is_adapted(operator: SetONet) -> None:
    data = seen(k=0)
    for fit in (partial(adapt, prefix="rho", step=0.1), partial(refit_b, ridge=1.0), partial(refit_head, ridge=1.0)):
        with pytest.raises(CamlError, match=r"shape \(6, 0, 4\)"):
            fit(operator, data=data)
    assert operator(data.sets, data.y).shape == (6, 0, 2)  # a set is enough to drive
