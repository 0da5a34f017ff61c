"""PTA's gradients against differences, its runs against each other, its teacher and its sensors against definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.pta import Network, Sensors, fit, fuse, purify, sense, shares, weight_gradient
from results.studies.field_pta import KEPT, Diffused, correlation_loss

EQUAL = torch.full((1, 3), 1 / 3)


def features(n: int, seed: int, signal: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Features (2, 3, n, 6), float64, whose sensors say the label more or less loudly, and labels (2, n)."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (2, n), generator=draws)
    z = torch.randn(2, 3, n, 6, generator=draws, dtype=torch.float64)
    z[..., :3] += torch.tensor(signal)[:, None, None] * torch.eye(3)[y][:, None]
    return z, y


def test_both_parts_of_the_gradient_sum_to_central_differences() -> None:
    (z, y), (v, v_y) = features(40, 0, (2.0, 1.0, 0.0)), features(30, 1, (2.0, 1.0, 0.0))
    k = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]], dtype=torch.float64)
    loss, direct, response = weight_gradient(k, z, y, v, v_y, steps=20)
    assert loss.shape == (2,)
    for m in range(3):
        shift = 1e-5 * torch.eye(3, dtype=torch.float64)[m]
        up, down = (weight_gradient(k + s, z, y, v, v_y, steps=20)[0] for s in (shift, -shift))
        torch.testing.assert_close((up - down) / 2e-5, (direct + response)[:, m], rtol=1e-5, atol=1e-8)
    assert response.abs().max() > 1e-3  # what the released code leaves out is there


def test_without_training_there_is_no_response_and_a_fixed_head_is_exact() -> None:
    (z, y), (v, v_y) = features(40, 0, (2.0, 1.0, 0.0)), features(30, 1, (2.0, 1.0, 0.0))
    _, _, response = weight_gradient(torch.zeros(2, 3, dtype=torch.float64), z, y, v, v_y, alpha=0.0)
    assert response.abs().max() == 0


def test_a_sensor_that_says_nothing_is_unplugged_and_equal_ones_stay() -> None:
    parts = (*features(200, 2, (2.0, 2.0, 0.0)), *features(200, 3, (2.0, 2.0, 0.0)))
    path = purify(*parts)
    torch.testing.assert_close(path[0], torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert path[-1][:, 2].max() < 0.1
    same = purify(*features(400, 4, (2.0, 2.0, 2.0)), *features(400, 5, (2.0, 2.0, 2.0)))
    assert (same[-1] - 1 / 3).abs().max() < 0.15


def test_shares_are_those_of_the_present_and_an_empty_set_is_one_message() -> None:
    w = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    found = shares(w, torch.tensor([[True, False, True], [False, True, True]]))
    torch.testing.assert_close(found, torch.tensor([[5 / 7, 0, 2 / 7], [0, 0.5, 0.5]]), atol=1e-5, rtol=0)
    with pytest.raises(CamlError, match=r"^an empty set of sensors in run 1\n") as error:
        shares(w, torch.tensor([[True, False, True], [False, False, False]]))
    assert len(str(error.value).splitlines()) == 3
    network = Network([0, 1], w)
    with pytest.raises(CamlError, match="empty set of sensors in run 0"):
        network.logits(torch.ones(2, 3, 4, 32), torch.zeros(2, 3, dtype=torch.bool))


def test_only_ratios_of_weights_matter() -> None:
    z = torch.randn(1, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(fuse(w, z), fuse(7 * w, z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fuse(w, z).mean(dim=2), torch.zeros(1, 5, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [Network, Diffused])
def test_a_run_is_the_same_alone_and_beside_others(kind: type[Network]) -> None:
    train, held = sense(slice(0, 60), [3, 4], bad=0.5), sense(slice(60, 90), [3, 4], bad=0.5)
    learn, pull = torch.tensor([True, False]), torch.tensor([1.0, 0.1])
    both = kind([3, 4], EQUAL.expand(2, 3))
    path = fit(both, train, held, learn, pull, steps=20)
    for r in range(2):
        only = slice(r, r + 1)
        single = kind([3 + r], EQUAL)
        one, its_held = (Sensors(*(part[only] for part in data)) for data in (train, held))
        alone = fit(single, one, its_held, learn[only], pull[only], steps=20)
        torch.testing.assert_close(alone, path[:, only], atol=1e-3, rtol=0)
        for name, value in single.maps.items():
            torch.testing.assert_close(value, both.maps[name][only], atol=1e-2, rtol=0)
    torch.testing.assert_close(path[-1, 1], EQUAL[0])  # a run that does not learn keeps its weights
    assert (path[-1, 0] - EQUAL[0]).abs().max() > 1e-3


def test_alignment_pulls_towards_the_teacher() -> None:
    train, held = (sense(rows, [0, 0]) for rows in (slice(0, 200), slice(200, 250)))
    network = Network([0, 0], EQUAL.expand(2, 3))
    fit(network, train, held, torch.zeros(2).bool(), torch.tensor([0.0, 10.0]), steps=200)
    apart = network.align(z := network.features(train.x), z.mean(dim=1))[1].mean(dim=1)
    assert apart[1] < 0.5 * apart[0]
    assert network.align(3 * z, z.mean(dim=1))[1].mean(dim=1).allclose(apart, atol=1e-2)  # size is not what counts


def test_sensors_are_what_they_say() -> None:
    data = sense(slice(None), [0, 1], "ABC", bad=0.6)
    assert data.x.shape == (2, 3, 1797, 64)
    share = torch.stack([(data.group == g).double().mean(dim=1) for g in range(3)])
    torch.testing.assert_close(share, torch.tensor([[0.4], [0.3], [0.3]]).double().expand(3, 2), atol=0.04, rtol=0)
    assert (data.x[:, 1, :, 16:] == 0).all()
    a, c = data.x[0, 0], data.x[0, 2]
    fine, noise, other = (data.group[0] == g for g in range(3))
    assert (a - c)[fine].std().item() == pytest.approx(0.42, abs=0.01)
    mean = a[:, :].mean(dim=0)
    assert torch.corrcoef(torch.stack([mean, c[other].mean(dim=0)]))[0, 1] > 0.95  # a picture, if not this one
    assert abs(torch.corrcoef(torch.stack([mean, c[noise].mean(dim=0)]))[0, 1]) < 0.5
    part = sense(slice(10, 20), [1], "ABC", bad=0.6)
    assert torch.equal(part.x[0], data.x[1, :, 10:20])
    assert torch.equal(part.y[0], data.y[1, 10:20])


def test_what_aligns_by_diffusion() -> None:
    student = torch.randn(1, 2, 50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(correlation_loss(student, student), torch.zeros(1, 2), atol=1e-5, rtol=0)
    other = torch.randn(1, 2, 50, 8, generator=torch.Generator().manual_seed(1))
    assert correlation_loss(student, other).min() > 1.5  # unrelated: both correlations are near 0
    assert KEPT[0].item() == pytest.approx(1 - 1e-4)
    assert 0 < KEPT[-1] < 1e-4
