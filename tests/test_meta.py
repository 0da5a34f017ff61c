"""CAML's meta-gradient in float64 against finite differences, naive recursions and its own special cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.backbones import backbone
from caml_core.errors import CamlError
from caml_core.meta import Batch, add_to_gradient, flatten, loss_at, meta_gradient

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


def gradient(net: nn.Module, theta: Tensor, batch: Batch) -> Tensor:
    """g(theta, B) on a copy of the network, by backward()."""
    net = copy.deepcopy(net)
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    net.zero_grad()
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])  # type: ignore[union-attr]


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
        nn.utils.vector_to_parameters(adapted, moved.parameters())
        losses.append(float(F.cross_entropy(moved(meta_test[0]), meta_test[1]).detach()))
    return gradients, losses


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_first_order_is_the_recursion(rounds: int, steps: int, cumulative: bool) -> None:
    net, batches = network(), tasks(rounds)
    theta = flatten(net)
    found = meta_gradient(
        loss_at(net, CPU), theta, batches, alpha=0.3, cumulative=cumulative, order="first", inner_steps=steps
    )
    gradients, _ = recursion(net, theta, batches, 0.3, cumulative, steps)
    assert torch.allclose(found, sum(gradients) / rounds, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_exact_is_the_derivative_of_the_meta_loss(steps: int, cumulative: bool) -> None:
    """Central differences of M(theta), computed by the naive recursion, in every coordinate."""
    net, batches, alpha, h = network(), tasks(3), 0.3, 1e-5
    theta = flatten(net)
    found = meta_gradient(
        loss_at(net, CPU), theta, batches, alpha=alpha, cumulative=cumulative, order="exact", inner_steps=steps
    )
    differences = torch.empty_like(theta)
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = h
        up, down = (recursion(net, theta + s * step, batches, alpha, cumulative, steps)[1] for s in (1, -1))
        differences[i] = (sum(up) - sum(down)) / (2 * h * len(batches))
    assert torch.allclose(found, differences, rtol=1e-6, atol=1e-8)
    first = meta_gradient(loss_at(net, CPU), theta, batches, alpha=alpha, cumulative=cumulative, inner_steps=steps)
    assert (found - first).norm() > 1e-3 * found.norm()  # the two are really different here


@pytest.mark.parametrize("order", ["first", "exact"])
def test_special_cases(order) -> None:  # type: ignore[no-untyped-def]
    net = network()
    theta, loss = flatten(net), loss_at(net, CPU)
    one, many = tasks(1), tasks(4)
    caml, mldg = (meta_gradient(loss, theta, one, alpha=0.3, cumulative=c, order=order) for c in (True, False))
    assert torch.equal(caml, mldg)  # one round: nothing has accumulated
    caml, mldg = (meta_gradient(loss, theta, many, alpha=0.3, cumulative=c, order=order) for c in (True, False))
    assert (caml - mldg).norm() > 1e-3 * caml.norm()
    plain = meta_gradient(loss, theta, many, alpha=0.0, order=order)
    upweight = sum(gradient(net, theta, asked) for _, asked in many) / 4
    assert torch.allclose(plain, upweight, rtol=1e-12)  # type: ignore[arg-type]


def test_the_network_does_not_notice() -> None:
    """Weights, gradients and BatchNorm statistics of the network stay; only `add_to_gradient` changes the gradient."""
    net = backbone("small_cnn", 3).train()
    before = copy.deepcopy(net.state_dict())
    x = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8)
    y = torch.randint(0, 3, (8,))
    for order in ("first", "exact"):
        meta_gradient(loss_at(net, CPU), flatten(net), [((x, y), (x, y))] * 2, alpha=0.1, order=order)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    vector = flatten(net)
    for times in (1, 2):
        add_to_gradient(net, vector)
        assert all(torch.equal(p.grad, times * p.detach()) for p in net.parameters())  # type: ignore[arg-type]
    other = backbone("small_cnn", 3, seed=1).train()
    assert loss_at(net, CPU)(flatten(other), (x, y)) == pytest.approx(float(F.cross_entropy(other(x), y)), rel=1e-4)


def test_seeds_side_by_side_are_seeds_one_by_one() -> None:
    nets = [backbone("small_cnn", 3, seed=s).train() for s in range(3)]
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 4, 8, 3, 12, 12, generator=g)  # (seeds, batches, B, ...)
    y = torch.randint(0, 3, (3, 4, 8), generator=g)

    def pairs(seed: int | slice) -> Tasks:
        batches = [(x[seed].select(-5, j), y[seed].select(-2, j)) for j in range(4)]
        return [(batches[0], batches[1]), (batches[2], batches[3])]

    together = meta_gradient(
        loss_at(nets[0], CPU), torch.stack([flatten(n) for n in nets]), pairs(slice(None)), alpha=0.1
    )
    for seed, net in enumerate(nets):
        alone = meta_gradient(loss_at(net, CPU), flatten(net), pairs(seed), alpha=0.1)
        assert torch.allclose(together[seed], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"alpha": -0.1}, {"alpha": math.nan}, {"inner_steps": 0}, {"order": "second"}, {"tasks": []}]
)
def test_bad_input(change: dict) -> None:  # type: ignore[type-arg]
    net = network()
    options = {"alpha": 0.1, "tasks": tasks(1), **change}
    with pytest.raises(CamlError, match="correct the setting"):
        meta_gradient(loss_at(net, CPU), flatten(net), options.pop("tasks"), **options)
