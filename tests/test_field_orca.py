"""ORCA's algebra against definitions and maintained libraries, and its bad inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from caml_core.errors import CamlError
from caml_core.field.orca import GRID, Paths, Probe, certify, draw_paths, fit_probe, judge, news, risk_p, smooth, stops


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_step_of_the_probe_is_the_gradient_of_its_squared_score(hidden: int) -> None:
    torch.manual_seed(0)
    probe, x = Probe(4, eta=0.3, hidden=hidden).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    scores = probe(x)
    for path, found in zip(x, scores):
        w, b = (p.detach().clone().requires_grad_() for p in (probe.weight, probe.bias))
        for u, score in zip(path, found):
            torch.testing.assert_close(torch.sigmoid(w @ probe.query(u) + b), score)
            inner = torch.sigmoid(w @ probe.key(u).detach() + b) ** 2  # the target is 0
            by_w, by_b = torch.autograd.grad(inner, (w, b))
            w, b = ((p - 0.3 * g).detach().requires_grad_() for p, g in ((w, by_w), (b, by_b)))


def test_the_gradient_goes_through_all_updates() -> None:
    torch.manual_seed(0)
    probe, x = Probe(3, eta=0.5).double(), torch.randn(2, 6, 3, dtype=torch.float64)

    def loss(weight: torch.Tensor, bias: torch.Tensor, log_eta: torch.Tensor) -> torch.Tensor:
        values = {"weight": weight, "bias": bias, "log_eta": log_eta}
        return torch.func.functional_call(probe, values, (x,)).square().mean()  # type: ignore[no-any-return]

    start = tuple(p.detach().clone().requires_grad_() for p in (probe.weight, probe.bias, probe.log_eta))
    assert torch.autograd.gradcheck(loss, start)


def test_a_probe_without_step_size_never_moves_and_learns_none() -> None:
    paths = draw_paths(8, 0, steps=12, width=3)
    probe = fit_probe(paths, eta=0.0, epochs=1)
    with torch.no_grad():
        torch.testing.assert_close(probe(paths.x), torch.sigmoid(paths.x @ probe.weight + probe.bias))
    assert probe.log_eta == -math.inf


def test_rolling_mean_and_first_crossing() -> None:
    scores = torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    smoothed = smooth(scores)
    for n, row in enumerate(scores.double()):
        for t in range(30):
            assert smoothed[n, t].item() == pytest.approx(row[max(0, t - 9) : t + 1].sum().item() / 10)
    thresholds = np.array([0.9, 0.5, 0.45])
    for row, found in zip(smoothed, stops(smoothed, thresholds)):
        for threshold, at in zip(thresholds, found):
            reached = np.flatnonzero(row.numpy() >= threshold)
            assert at == (reached[0] if len(reached) else 29)


def test_risk_is_the_binomial_test_and_with_groups_that_of_the_worst() -> None:
    losses = np.random.default_rng(0).random((60, 5)) < 0.1
    group = np.arange(60) % 2
    for column, p, worst in zip(losses.T, risk_p(losses, 0.2), risk_p(losses, 0.2, group)):
        assert p == pytest.approx(binomtest(int(column.sum()), 60, 0.2, "less").pvalue)
        sides = [binomtest(int(column[group == g].sum()), 30, 0.2, "less").pvalue for g in (0, 1)]
        assert worst == pytest.approx(max(sides))


def random_paths(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that know a little, and when stopping is right."""
    generator = torch.Generator().manual_seed(seed)
    done = torch.arange(20) >= torch.randint(2, 18, (n, 1), generator=generator)
    return smooth(0.5 * torch.rand(n, 20, generator=generator) + 0.4 * done, 3), done


def test_the_last_threshold_that_passes_is_returned() -> None:
    scores, done = random_paths(80, 0)
    threshold = certify(scores, done, 0.2)

    def p(threshold: float) -> float:
        wrong = 0
        for row, right in zip(scores.tolist(), done.tolist()):
            at = next((t for t, s in enumerate(row) if s >= threshold), len(row) - 1)
            wrong += not right[at]
        return float(binomtest(wrong, 80, 0.2, "less").pvalue)

    k = int(np.flatnonzero(threshold == GRID)[0])
    assert 0 < k < len(GRID) - 1
    assert p(GRID[k]) <= 0.05 < p(GRID[k + 1])
    assert all(p(GRID[i]) <= 0.05 for i in range(0, k, 100))


def test_the_procedure_is_that_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.risk_control.binary_classification", reason="MAPIE is an extra of the tests")
    from mapie.risk_control._base_controller import ltt_procedure

    assert mapie
    scores, done = random_paths(80, 1)
    losses = 1 - np.take_along_axis(done.numpy(), stops(scores, GRID), axis=1)
    assert (np.diff(losses.mean(axis=0)) >= 0).all()  # so that its order is ours
    n, delta = np.full((1, len(GRID)), 80), np.array([[0.2]])
    (valid,), _ = ltt_procedure(losses.mean(axis=0)[None], delta, 0.05, n, binary=True, fwer_method="fixed_sequence")
    assert GRID[max(valid)] == certify(scores, done, 0.2)


@pytest.mark.parametrize("by_group", [False, True])
def test_the_promise_is_kept_as_often_as_promised(by_group: bool) -> None:
    """Of 200 calibration sets, about 5% at most give a threshold whose true risk (in some group) is above delta."""
    scores, done = random_paths(4000, 2)
    group = (torch.arange(4000) % 2 == 0).long()
    scores = torch.where(group[:, None] == 1, smooth(scores, 2), scores)  # one group is another world
    broken = 0
    for seed in range(200):
        rows = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:120]
        level = certify(scores[rows], done[rows], 0.2, group[rows] if by_group else None)
        wrong = ~np.take_along_axis(done.numpy(), stops(scores, np.array([level])), axis=1)[:, 0]
        risks = [wrong[group == g].mean() for g in (0, 1)] if by_group else [wrong.mean()]
        broken += max(risks) > 0.2
    assert broken <= 20  # 10 expected at most; more than 20 has a chance of 0.1%


def test_what_cannot_be_certified_stops_never() -> None:
    scores, done = random_paths(80, 3)
    assert certify(scores, torch.zeros_like(done), 0.2) == math.inf
    paths = Paths(torch.zeros(80, 20, 1), done, torch.arange(80) % 2)
    assert judge(scores, paths, math.inf) == {"saved": 0, "error": 0, "worst_group": 0}


def test_too_few_paths_for_a_level_are_one_message() -> None:
    scores, done = random_paths(28, 4)
    with pytest.raises(CamlError, match=r"^28 calibration examples\n.*at least 29") as error:
        certify(scores, done, 0.1)
    assert len(str(error.value).splitlines()) == 3
    scores, done = random_paths(60, 4)
    group = (torch.arange(60) < 10).long()
    with pytest.raises(CamlError, match=r"10 calibration examples in a group"):
        certify(scores, done, 0.1, group=group)
    assert 0.9**28 > 0.05 >= 0.9**29  # where the 29 comes from


def test_paths_are_what_they_say() -> None:
    paths = draw_paths(4000, 0, climb=2.0, rho=0.9, unsolved=0.1)
    never = ~paths.done.any(dim=1)
    assert never.double().mean().item() == pytest.approx(0.1, abs=0.02)
    late, climbs = paths.group // 2, paths.group % 2
    gain = paths.x[:, -1] - paths.x[:, 0]
    for c, u in ((0, 0), (0, 1), (1, 0), (1, 1)):
        found = gain[(climbs == c) & (never == bool(u))].mean(dim=0)
        torch.testing.assert_close(found[0].item(), 2.0 * c + 1.5 * (1 - u), atol=0.2, rtol=0)
        torch.testing.assert_close(found[1:], torch.zeros(31), atol=0.3, rtol=0)
    assert climbs[late == 0].double().mean().item() == pytest.approx(0.9, abs=0.02)
    assert climbs[late == 1].double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (paths.done[:, 1:] >= paths.done[:, :-1]).all()


def test_news_is_a_step_less_the_steps_before_it() -> None:
    x = torch.randn(2, 50, 3)
    for t in range(50):
        past = x[:, max(0, t - 20) : t].mean(dim=1) if t else x[:, 0]
        torch.testing.assert_close(news(x)[:, t], x[:, t] - past, atol=1e-5, rtol=1e-5)
