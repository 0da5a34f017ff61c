"""Dual streams: both losses and the steps against loops written out, bad inputs, and a clinic that breaks the habit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from caml_core.errors import CamlError
from caml_core.field.dsc import Cases, Phi, Reader, Streams, draw_cases, meta_train, patients
from caml_core.metrics import group_metrics


@pytest.fixture(scope="module")
def streams() -> Streams:
    """Random weights in float64."""
    torch.manual_seed(0)
    made = Streams(Reader(width=8).double().requires_grad_(False))
    for part in (made.A, made.start):
        part.update({name: values.double() for name, values in part.items()})
    return made


@pytest.fixture(scope="module")
def cases() -> Cases:
    x, y, query, truth = draw_cases(3, 0, 0.5, 0.5, queries=2)
    return Cases(x.double(), y, query.double(), truth)


def one(cases: Cases, n: int) -> Cases:
    return Cases(*(part[n] for part in cases))


def somewhere(streams: Streams) -> Phi:
    return {name: 0.3 * torch.randn_like(B) for name, B in streams.start.items()}


def answer(streams: Streams, phi: Phi, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Logits (2,) of one patient, with the adapter written out."""
    weights = {name: p + phi[name] @ streams.A[name] if name in phi else p for name, p in streams.frozen.items()}
    return functional_call(streams.model, weights, (x, y, query[None]))[0]  # type: ignore[no-any-return]


def deleted(streams: Streams, phi: Phi, x: Tensor, y: Tensor) -> list[Tensor]:
    """Logits of every patient, from a context in which it is not."""
    keep = [[j for j in range(len(x)) if j != i] for i in range(len(x))]
    return [answer(streams, phi, x[rows], y[rows], x[i]) for i, rows in enumerate(keep)]


def test_leaving_out_is_deleting(streams: Streams, cases: Cases) -> None:
    case, phi = one(cases, 0), somewhere(streams)
    losses = cross_entropy(torch.stack(deleted(streams, phi, *case[:2])), case.y, reduction="none")
    torch.testing.assert_close(streams.left_out(phi, case.x, case.y), losses)
    torch.testing.assert_close(streams.structural(phi, case), losses.mean())


def test_the_semantic_loss_is_the_entropy_at_the_query_and_at_who_surprises(streams: Streams, cases: Cases) -> None:
    case, phi = one(cases, 1), somewhere(streams)
    frozen, moved = (deleted(streams, p, *case[:2]) for p in (streams.start, phi))
    surprise = sorted(range(8), key=lambda i: frozen[i].softmax(-1)[case.y[i]].item())
    at_core = torch.stack([Categorical(logits=moved[i]).entropy() for i in surprise[:4]]).mean()
    at_query = Categorical(logits=answer(streams, phi, *case[:2], case.query[0])).entropy()
    torch.testing.assert_close(streams.semantic(phi, case), at_query + at_core)


def test_with_alpha_the_outer_gradient_goes_through_the_inner_step(streams: Streams, cases: Cases) -> None:
    case = one(cases, 2)
    phi = {name: B.requires_grad_() for name, B in somewhere(streams).items()}
    losses = []
    for i in range(8):
        x, y = (torch.cat([part[:i], part[i + 1 :]]) for part in case[:2])
        inner = cross_entropy(torch.stack(deleted(streams, phi, x, y)), y)
        slopes = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
        moved = {name: B - 0.5 * slope for (name, B), slope in zip(phi.items(), slopes)}
        losses.append(cross_entropy(answer(streams, moved, x, y, case.x[i]), case.y[i]))
    by_hand = torch.autograd.grad(torch.stack(losses).mean(), list(phi.values()))
    found = grad(streams.structural)({n: B.detach() for n, B in phi.items()}, case, 0.5)
    for slope, name in zip(by_hand, phi):
        torch.testing.assert_close(found[name], slope)


@pytest.mark.parametrize("times", [0.1, 200])
def test_steps_are_clipped_descent_of_every_case_on_its_own(streams: Streams, cases: Cases, times: float) -> None:
    def loss(phi: Phi, case: Cases) -> Tensor:
        return times * streams.structural(phi, case)

    found = streams.adapt(cases, loss, eta=0.1, steps=2)
    for n in range(3):
        phi, case = streams.start, one(cases, n)
        for t in range(3):
            torch.testing.assert_close(found[t][n], streams.logits(phi, *case[:3]))
            slope = grad(loss)(phi, case)
            length = torch.cat([part.flatten() for part in slope.values()]).norm().item()
            assert t or (length > 1) == (times > 1)
            phi = {name: B - 0.1 * slope[name] / max(1, length) for name, B in phi.items()}


def test_a_context_is_a_set_and_queries_do_not_see_one_another(streams: Streams, cases: Cases) -> None:
    x, y, query, _ = cases
    order = torch.arange(7, -1, -1)
    torch.testing.assert_close(streams.model(x[:, order], y[:, order], query[:, 1:]), streams.model(*cases[:3])[:, 1:])


def test_too_small_a_context_is_one_message(streams: Streams, cases: Cases) -> None:
    with pytest.raises(CamlError, match=r"^an empty context\n") as error:
        streams.model(cases.x[:, :0], cases.y[:, :0], cases.query)
    assert len(str(error.value).splitlines()) == 3
    for k in (0, 2):
        with pytest.raises(CamlError, match=rf"^a context of {k} patients\n.*at least 3"):
            streams.adapt(Cases(cases.x[:, :k], cases.y[:, :k], *cases[2:]), streams.structural, 0.1)


def test_clinics_are_what_they_say() -> None:
    share = np.where(np.arange(3000) % 2, 0.9, 0.2)[:, None]
    cases = draw_cases(3000, 0, share, 0.1, queries=4)
    agrees = (cases.x[..., -1] > 0) == (cases.y == 1)
    for k, expected in ((1, 0.9), (0, 0.2)):
        assert agrees[k::2].double().mean().item() == pytest.approx(expected, abs=0.02)
    assert patients(cases).is_minority.double().mean().item() == pytest.approx(0.9, abs=0.02)  # the ward contradicts
    shown = ((2 * cases.y - 1)[..., None] * cases.x[..., :8]).mean(dim=1)  # of one clinic: 0.8, -0.8 or 0, with noise
    assert shown.square().mean().item() == pytest.approx(3 / 8 * 0.64 + 1 / 8, abs=0.01)


def test_in_a_clinic_that_breaks_the_habit_one_loss_learns_and_the_other_grows_sure() -> None:
    streams = Streams(meta_train(draw_cases(4000, 0, 0.9, 0.9, queries=8), steps=500))
    test = draw_cases(200, 1, 0.1, 0.1)

    left_out, entropy = (streams.adapt(test, loss, 1.0) for loss in (streams.structural, streams.semantic))
    answers = [logits[:, 0] for logits in (entropy[0], left_out[-1], entropy[-1])]
    frozen, learned, hardened = (group_metrics(one, patients(test))["average"]["value"] for one in answers)
    sure, _, surer = (one.softmax(dim=1).max(dim=1).values.mean() for one in answers)
    assert learned > frozen + 8
    assert abs(hardened - frozen) < 6
    assert surer > sure + 0.05
