"""CAML's meta-gradient in float64 against finite differences, naive recursions and its own special cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from caml_core.errors import CamlError
from caml_core.meta import Batch, Theta, add_to_gradient, loss_at, meta_gradient, trainable
from caml_core.networks import backbone

CPU = torch.device("cpu")
Tasks = list[tuple[Batch, Batch]]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def tasks(rounds: int, seed: int = 0) -> Tasks:
    g = torch.Generator().manual_seed(seed)

    def batch() -> Batch:
        x = torch.randn(6, 3, generator=g, dtype=torch.float64)
        return x, torch.randint(0, 3, (6,), generator=g)

    return [(batch(), batch()) for _ in range(rounds)]


def flat(parts: Theta) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


def ours(net: nn.Module, rounds: Tasks, **how) -> Tensor:  # type: ignore[no-untyped-def]
    return flat(meta_gradient(loss_at(net, CPU), trainable(net), rounds, **how))


def gradient(net: nn.Module, theta: Tensor, batch: Batch) -> Tensor:
    """g(theta, B) on a copy of the network, by backward()."""
    net = copy.deepcopy(net)
    vector_to_parameters(theta.clone(), net.parameters())
    net.zero_grad()
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    return flat([p.grad for p in net.parameters()])  # type: ignore[misc]


def recursion(net: nn.Module, theta: Tensor, rounds: Tasks, alpha: float, cumulative: bool, steps: int):  # type: ignore[no-untyped-def]
    """The specification, written out: meta-test gradients and losses of all rounds."""
    gradients: list[Tensor] = []
    losses = []
    for meta_train, meta_test in rounds:
        adapted = theta.clone()
        for _ in range(steps):
            u = gradient(net, adapted, meta_train)
            if cumulative and gradients:
                u = u + sum(gradients) / len(gradients)
            adapted = adapted - alpha * u
        gradients.append(gradient(net, adapted, meta_test))
        moved = copy.deepcopy(net)
        vector_to_parameters(adapted, moved.parameters())
        losses.append(float(F.cross_entropy(moved(meta_test[0]), meta_test[1]).detach()))
    return gradients, losses


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_first_order_is_the_recursion(rounds: int, steps: int, cumulative: bool) -> None:
    net, batches = network(), tasks(rounds)
    found = ours(net, batches, alpha=0.3, cumulative=cumulative, inner_steps=steps)
    gradients, _ = recursion(net, flat(trainable(net)), batches, 0.3, cumulative, steps)
    assert torch.allclose(found, sum(gradients) / rounds, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_exact_is_the_derivative_of_the_meta_loss(steps: int, cumulative: bool) -> None:
    """Central differences of M(theta), computed by the naive recursion, in every coordinate."""
    net, batches, alpha, h = network(), tasks(3), 0.3, 1e-5
    theta = flat(trainable(net))
    found = ours(net, batches, alpha=alpha, cumulative=cumulative, order="exact", inner_steps=steps)
    differences = torch.empty_like(theta)
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = h
        up, down = (recursion(net, theta + s * step, batches, alpha, cumulative, steps)[1] for s in (1, -1))
        differences[i] = (sum(up) - sum(down)) / (2 * h * len(batches))
    assert torch.allclose(found, differences, rtol=1e-6, atol=1e-8)
    first = ours(net, batches, alpha=alpha, cumulative=cumulative, inner_steps=steps)
    assert (found - first).norm() > 1e-3 * found.norm()  # the two are really different here


@pytest.mark.parametrize("order", ["first", "exact"])
def test_special_cases(order: str) -> None:
    net, one, many = network(), tasks(1), tasks(4)
    caml, mldg = (ours(net, one, alpha=0.3, cumulative=c, order=order) for c in (True, False))
    assert torch.equal(caml, mldg)  # one round: nothing has accumulated
    caml, mldg = (ours(net, many, alpha=0.3, cumulative=c, order=order) for c in (True, False))
    assert (caml - mldg).norm() > 1e-3 * caml.norm()
    theta = flat(trainable(net))
    upweight = sum(gradient(net, theta, asked) for _, asked in many) / 4
    assert torch.allclose(ours(net, many, alpha=0.0, order=order), upweight, rtol=1e-12)  # type: ignore[arg-type]


def test_without_adaptation_the_inner_gradients_are_not_computed() -> None:
    calls: list[int] = []

    def loss(theta: Theta, batch: int) -> Tensor:
        calls.append(batch)
        return theta[0].square().sum()

    meta_gradient(loss, [torch.ones(2)], [(0, 1), (0, 2)], alpha=0.0)  # type: ignore[arg-type, list-item]
    assert calls == [1, 2]


def test_the_network_does_not_notice() -> None:
    """Weights, gradients and BatchNorm statistics of the network stay; only `add_to_gradient` changes the gradient."""
    net = backbone("small_cnn", 3).train()
    before = copy.deepcopy(net.state_dict())
    x = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8)
    y = torch.randint(0, 3, (8,))
    for order in ("first", "exact"):
        ours(net, [((x, y), (x, y))] * 2, alpha=0.1, order=order)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    theta = trainable(net)
    assert all(p.grad is None for p in theta)
    net(x).sum().backward()
    once = [p.grad.clone() for p in theta]  # type: ignore[union-attr]
    add_to_gradient(theta, [torch.ones_like(p) for p in theta])
    assert all(torch.equal(p.grad, g + 1) for p, g in zip(theta, once))  # type: ignore[arg-type]
    other = backbone("small_cnn", 3, seed=1).train()
    with torch.no_grad():
        found, expected = loss_at(net, CPU)(trainable(other), (x, y)), F.cross_entropy(other(x), y)
    assert torch.allclose(found, expected, rtol=1e-4)


class Tied(nn.Module):
    """A matrix used twice, a frozen layer, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.frozen, self.two, self.idle = (nn.Linear(3, 3) for _ in range(4))
        self.two.weight = self.one.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.frozen(self.one(x)).tanh())


@pytest.mark.parametrize("order", ["first", "exact"])
def test_frozen_tied_and_idle_parameters(order: str) -> None:
    net, batches = Tied().double(), tasks(2)
    theta = trainable(net)
    assert [tuple(p.shape) for p in theta] == [(3, 3), (3,), (3,), (3, 3), (3,)]  # one.weight once; idle's at the end
    found = meta_gradient(loss_at(net, CPU), theta, batches, alpha=0.0, order=order)  # type: ignore[arg-type]
    for _, (x, y) in batches:
        (F.cross_entropy(net(x), y) / 2).backward()
    for p, part in zip(theta[:3], found):
        assert torch.allclose(part, p.grad)  # type: ignore[arg-type]
    adapted = meta_gradient(loss_at(net, CPU), theta, batches, alpha=0.3, order=order)  # type: ignore[arg-type]
    assert (adapted[0] - found[0]).norm() > 1e-3
    assert not any(part.any() for part in adapted[3:])
    add_to_gradient(theta, adapted)
    assert net.frozen.weight.grad is None
    assert net.idle.weight.grad is None, "weight decay must not reach what plain training leaves alone"


@pytest.mark.parametrize(
    "change", [{"alpha": -0.1}, {"alpha": math.nan}, {"inner_steps": 0}, {"order": "second"}, {"tasks": []}]
)
def test_bad_input(change: dict) -> None:  # type: ignore[type-arg]
    options = {"alpha": 0.1, "tasks": tasks(1), **change}
    with pytest.raises(CamlError, match="correct the setting"):
        ours(network(), options.pop("tasks"), **options)
