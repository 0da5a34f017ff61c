"""The mixture of rules against definitions and scikit-learn, what it is for, and its bad inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.households import FLAGS, NAMES, Term, columns, draw, plain_terms, size, typed_terms
from caml_core.field.pasm import Mixture, adapt, fit, fit_mixture, regress, search

ORDER, PETS, MOBILE = map(NAMES.index, ("order", "pets", "mobile"))
RISK, STORMS, NOTICE = map(NAMES.index, ("risk", "storms", "notice"))
THREE = ((Term(ORDER), Term(PETS)), (Term(RISK), Term(NOTICE, c=0.4)), (Term(MOBILE), Term(STORMS, c=0.5)))


def true_mixture(mix: tuple[float, float, float]) -> Mixture:
    """The law of `draw`, but for the false answers."""
    weights = ([5, -2.5, -1.5], [10, 4, -7], [4, -5, 0])
    router = torch.zeros(3, len(NAMES) + 1, dtype=torch.float64)
    for k, name in enumerate(("trust", "income", "tenure")):
        router[k, NAMES.index(name)], router[k, -1] = 8, math.log(mix[k])
    return Mixture(THREE, tuple(torch.tensor(w, dtype=torch.float64) for w in weights), router)


def test_answers_follow_the_law_that_is_told() -> None:
    mix = (0.1, 0.3, 0.6)
    state = draw(20000, 0, mix, shift=0.6)
    torch.testing.assert_close(0.05 + 0.9 * true_mixture(mix).predict(state.x), state.p)
    for rows in state.p.argsort().split(2500):  # answers are as frequent as the law says
        assert state.y[rows].mean().item() == pytest.approx(state.p[rows].mean().item(), abs=0.035)
    assert state.kind.bincount().argmax() == 2
    same = draw(50, 0, mix, law="one rule")
    torch.testing.assert_close(same.p, draw(50, 0, (0.8, 0.1, 0.1), law="one rule").p)  # nobody's kind matters


def test_likelihood_and_its_parts_by_hand() -> None:
    m, state = true_mixture((0.2, 0.3, 0.5)), draw(5, 1, (0.2, 0.3, 0.5))
    for x, y, found in zip(state.x.tolist(), state.y.tolist(), m.log_joint(state.x, state.y)):
        lean = [float(row[-1]) + sum(a * b for a, b in zip(row.tolist(), x)) for row in m.router]
        logits = [5 * x[ORDER] - 2.5 * x[PETS] - 1.5, 10 * x[RISK] + 4 * (x[NOTICE] > 0.4) - 7]
        logits.append(4 * x[MOBILE] - 5 * (x[STORMS] > 0.5))
        for k in range(3):
            pi, p = math.exp(lean[k]) / sum(map(math.exp, lean)), 1 / (1 + math.exp(-logits[k]))
            assert found[k].item() == pytest.approx(math.log(pi * (p if y else 1 - p)))
    assert m.loss(state.x, state.y) == pytest.approx(
        -torch.where(state.y > 0, m.predict(state.x), 1 - m.predict(state.x)).log().sum().item()
    )
    assert m.price(state.x, state.y) - m.loss(state.x, state.y) == pytest.approx(math.log(5) / 2 * (9 + 2 + 30))
    assert str(m).splitlines()[1] == "+10.0 risk +4.0 [notice > 0.40] -7.0"


def ridge(a: Tensor, y: Tensor, c: float, r: Tensor | None = None) -> np.ndarray:
    model = LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=10000)
    found: np.ndarray = model.fit(a.numpy(), y.numpy(), sample_weight=None if r is None else r.numpy()).coef_[0]
    return found


def test_regressions_are_those_of_scikit_learn() -> None:
    state, r = draw(400, 2, (0.4, 0.3, 0.3)), torch.rand(400, generator=torch.Generator().manual_seed(0)).double()
    a = torch.stack([columns(rule, state.x) for rule in THREE])
    for table, w, loss in zip(a, *regress(a, state.y, r)):
        np.testing.assert_allclose(w, ridge(table, state.y, 10, r), atol=1e-3)
        p = (table @ w).sigmoid()
        assert loss.item() == pytest.approx(-(r * torch.where(state.y > 0, p, 1 - p).log()).sum().item())
    one = Mixture((plain_terms(),), (torch.zeros(15).double(),), torch.zeros(1, 15).double())
    found = fit(one, state.x, state.y, pull=2.0).weights[0]
    np.testing.assert_allclose(found, ridge(columns(plain_terms(), state.x), state.y, 0.5), atol=1e-2)


def test_the_pull_leads_back_to_the_prior() -> None:
    m, few = true_mixture((0.7, 0.2, 0.1)), draw(60, 3, (0.1, 0.3, 0.6))
    for pull, least, most in ((1e8, 0.0, 1e-3), (0.3, 0.2, math.inf)):
        moved = fit(m, few.x, few.y, pull, m)
        assert least <= (moved.router - m.router).norm().item() <= most
        assert moved.loss(few.x, few.y) <= m.loss(few.x, few.y)


def test_the_grammar_is_typed() -> None:
    terms = typed_terms()
    assert len(set(terms)) == len(terms)
    assert all(t.i >= len(FLAGS) for t in terms if t.c is not None)  # a flag has no threshold
    assert all(t.i < len(FLAGS) for t in terms if t.j is not None)  # and only a flag switches
    x = draw(9, 0, (0.4, 0.3, 0.3)).x
    torch.testing.assert_close(Term(ORDER, RISK)(x), x[:, ORDER] * x[:, RISK])
    assert Term(NOTICE, c=0.4)(x).tolist() == (x[:, NOTICE] > 0.4).double().tolist()
    assert size(THREE[0]) == 3
    assert size(THREE[1]) == 4


def test_search_finds_a_planted_rule_and_next_to_nothing_in_noise() -> None:
    state = draw(1500, 4, (0.4, 0.3, 0.3), law="one rule")
    assert set(search(typed_terms(), state.x, state.y, torch.ones(1500).double())) == set(THREE[0])
    coin = (torch.rand(1500, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    assert len(search(typed_terms(), state.x, coin, torch.ones(1500).double())) <= 1


def test_a_hundred_answers_move_the_router_to_other_households() -> None:
    """The rules are the same, who lives there is not: what adaptation is for. Without a change it gains nothing."""
    m = true_mixture((0.7, 0.2, 0.1))
    gains = {}
    for mix in ((0.7, 0.2, 0.1), (0.05, 0.15, 0.8)):
        few, test = draw(100, 5, mix), draw(4000, 6, mix)
        moved = adapt(m, few.x, few.y)
        assert moved.rules == m.rules
        gains[mix[0]] = (m.loss(test.x, test.y) - moved.loss(test.x, test.y)) / 4000
    assert gains[0.05] > 0.05
    assert gains[0.7] < 0.02


def test_plain_rules_and_one_rule_are_mixtures_too() -> None:
    state = draw(300, 7, (0.4, 0.3, 0.3))
    plain = fit_mixture(2, state.x, state.y, terms=plain_terms(), tries=1)
    assert plain.rules == (plain_terms(),) * 2
    one = fit_mixture(1, state.x, state.y)
    torch.testing.assert_close(one.predict(state.x), (columns(one.rules[0], state.x) @ one.weights[0]).sigmoid())


def test_bad_input_is_one_message() -> None:
    m, few = true_mixture((0.7, 0.2, 0.1)), draw(100, 8, (0.1, 0.3, 0.6))
    with pytest.raises(CamlError, match=r"^100 calibration households that go, 0 that stay") as error:
        adapt(m, few.x, torch.ones(100).double())
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(CamlError, match="at least 5 of each"):
        adapt(m, few.x[:6], few.y[:6])
    with pytest.raises(CamlError, match="unknown"):
        adapt(m, few.x.clone().index_fill_(1, torch.tensor([3]), torch.nan), few.y)
    for bad in ({"law": "none"}, {"mix": (0.5, 0.5)}, {"mix": (0.5, 0.5, 0.0)}, {"shift": -2.0}):
        with pytest.raises(CamlError, match="three shares above 0"):
            draw(**{"n": 5, "seed": 0, "mix": (0.4, 0.3, 0.3), **bad})  # type: ignore[arg-type]
