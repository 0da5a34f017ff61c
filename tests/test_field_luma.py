"""LUMA, small: its algebra against scikit-learn, autograd and sums of one step; what it refuses; that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.luma import NOISE, Prior, adapt, condition, evidence, fit, forward, jacobian, maml, project, start
from caml_core.field.luma import tasks as families
from results.studies import field_luma as study

SINES = families({"sine": 1})


def drawn(n: int = 3, points: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    return SINES(n, points, torch.Generator().manual_seed(seed))[:2]


def made(components: int = 1) -> Prior:
    prior = start(1)
    prior.mu = 0.01 * torch.randn(1, len(prior.theta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return project(prior, "fisher", 0, rank=6, components=components)


# --- right values -----------------------------------------------------------------------------------------------------


def test_the_jacobian_is_what_autograd_finds() -> None:
    theta, (x, _) = start(0).theta, drawn()
    expected = torch.autograd.functional.jacobian(lambda t: forward(t[None], x), theta)
    torch.testing.assert_close(jacobian(theta, x), expected)


@pytest.mark.parametrize("prior", [start(0), made()], ids=["identity", "fisher"])
def test_posterior_and_evidence_are_those_of_scikit_learn(prior: Prior) -> None:
    """With features for a kernel: a Gaussian process whose kernel is their product, after subtracting the mean."""
    x, y = drawn()
    mean, variance, found = condition(prior(x), y[:, :7])
    for t in range(len(x)):
        J = jacobian(prior.theta, x[t : t + 1])[0]
        Z = (J if prior.basis is None else J @ prior.basis.T * prior.scale).numpy()
        level = (J @ prior.mu[0]).numpy()
        gp = GaussianProcessRegressor(DotProduct(0, "fixed"), alpha=NOISE**2, optimizer=None)
        gp.fit(Z[:7], y[t, :7].numpy() - level[:7])
        expected, deviation = gp.predict(Z[7:], return_std=True)
        np.testing.assert_allclose(mean[0, t], level[7:] + expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(variance[0, t], deviation**2 + NOISE**2, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(found[0, t], gp.log_marginal_likelihood_value_, rtol=1e-8)


def test_evidence_is_the_sum_of_one_prediction_after_another() -> None:
    """What an outer loss of "predict each label from those before it" adds up to."""
    (x, y), prior = drawn(points=6), made(components=2)
    mean, cov = prior(x)
    total = torch.distributions.Normal(mean[..., 0], cov[..., 0, 0].sqrt()).log_prob(y[:, 0])
    for k in range(1, 6):
        m, v, _ = condition((mean[..., : k + 1], cov[..., : k + 1, : k + 1]), y[:, :k])
        total = total + torch.distributions.Normal(m[..., 0], v[..., 0].sqrt()).log_prob(y[:, k])
    torch.testing.assert_close(evidence((mean, cov), y)[0], total)


def test_the_fisher_basis_holds_the_top_eigenvectors() -> None:
    theta = start(3).theta
    basis = project(start(3), "fisher", 0, rank=4).basis
    assert basis is not None
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    J = jacobian(theta, 10 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64) - 5)
    kept = (J @ basis.T).square().sum() / J.square().sum()
    best = torch.linalg.svdvals(J)[:4].square().sum() / J.square().sum()
    assert best - 0.01 < kept <= best


def test_the_moments_of_sines_are_those_of_many_sines() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.linspace(-4, 4, 5, dtype=torch.float64)[:, None]
    a, phase = 0.1 + 4.9 * torch.rand(400_000, generator=g), torch.pi * torch.rand(400_000, generator=g)
    y = a * torch.sin(x + phase) + 1
    mean, cov = study.sine_moments(x[None])
    np.testing.assert_allclose(mean[0, 0], y.mean(1), atol=0.02)
    np.testing.assert_allclose(cov[0, 0], torch.cov(y) + NOISE**2 * torch.eye(5), atol=0.05)


def test_an_inner_step_of_maml_is_gradient_descent_on_each_task() -> None:
    (x, y), theta = drawn(), start(0).theta.requires_grad_()
    together = adapt(theta, x, y, 0.01, 2)
    for t in range(len(x)):
        torch.testing.assert_close(together[t], adapt(theta, x[t : t + 1], y[t : t + 1], 0.01, 2)[0])
    loss = ((forward(theta[None], x[:1]) - y[:1]) ** 2).mean()
    (g,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(adapt(theta, x[:1], y[:1], 0.01, 1)[0], theta - 0.01 * g / max(1, g.norm().item() / 10))


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_an_empty_context_is_one_message() -> None:
    x, y = drawn()
    with pytest.raises(CamlError, match=r"(?s)empty context.*at least one label"):
        condition(made()(x), y[:, :0])


def test_a_singular_covariance_is_one_message() -> None:
    x, y = drawn()
    mean, cov = made()(x)
    without_noise = cov - NOISE**2 * torch.eye(12, dtype=torch.float64)
    with pytest.raises(CamlError, match=r"(?s)singular covariance.*positive definite.*variance"):
        condition((mean, without_noise), y[:, :11])  # six directions, eleven labels


# --- that it learns ---------------------------------------------------------------------------------------------------


def test_both_ways_of_learning_help_and_repeat() -> None:
    x, y = drawn(50, 10, seed=5)
    prior = fit(start(0), SINES, 20, seed=0)
    assert torch.equal(prior.theta, fit(start(0), SINES, 20, seed=0).theta)
    assert evidence(prior(x), y)[0].mean() > evidence(start(0)(x), y)[0].mean()
    after = maml(start(0).theta, SINES, 30, seed=0, inner=0.01)
    both = start(0).theta.requires_grad_(), after
    error = [((forward(adapt(theta, x, y, 0.01, 5), x) - y) ** 2).mean() for theta in both]
    assert error[1] < error[0]


def test_the_study_keeps_one_record_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "KS", range(1, 4))
    records = study.run(0, "nine sines to a line", steps=2)
    assert [record["method"] for record in records] == ["fisher", "mixture", "mixture, soft"]
    for record in records:
        found = {name: metric["by_k"] for name, metric in record["metrics"].items()}
        assert found["worst mse"] == [max(pair) for pair in zip(found["mse sine"], found["mse line"])]
        assert all(0 <= area <= 1 for area in found["auc"])
