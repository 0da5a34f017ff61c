"""Memory: the estimate against what autograd keeps, decisions for made-up devices, pieces that change nothing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import pytest
import torch
from conftest import toy_split
from torch import Tensor, nn

from caml_core import active, erm, memory
from caml_core.active import Plan, run_active
from caml_core.backbones import backbone
from caml_core.device import autocast
from caml_core.erm import train_erm
from caml_core.errors import CamlError
from caml_core.meta import flatten, loss_at, meta_gradient

CPU = torch.device("cpu")
PLAN = Plan(start=24, query=8, rounds=1, epochs=1, batch_size=8, alpha=0.1, select="last")


def images(n: int, size: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g), torch.arange(n) % 2


def keeps(network: nn.Module, n: int, order: str | None = None) -> Tensor:
    """What a step with n examples computes: a loss, or the meta-gradient of two rounds."""
    loss, theta = loss_at(network, CPU), flatten(network).requires_grad_()
    if order is None:
        return loss(theta, images(n))
    return meta_gradient(loss, theta, [(images(n), images(n))] * 2, alpha=0.1, order=order)  # type: ignore[arg-type]


def test_what_autograd_keeps_is_counted_once() -> None:
    w, x = torch.ones(50, requires_grad=True), torch.ones(100)
    assert memory.kept_bytes(lambda: w * x[:50]) == 4 * 100, "the storage behind the view stays"
    assert memory.kept_bytes(lambda: w * x[:50] + w * x[50:]) == 4 * 100
    assert memory.kept_bytes(lambda: w * w * x[50:]) == 4 * (50 + 100)
    assert memory.kept_bytes(lambda: w + 1) == 0
    with torch.no_grad():
        assert memory.kept_bytes(lambda: w * x[:50]) == 0


@pytest.mark.parametrize(("name", "size"), [("small_resnet", 32), ("efficientnet_lite0", 16)])
def test_estimate_against_measurement(name: str, size: int) -> None:
    network = backbone(name, 2, pretrained=False)
    loss, theta = loss_at(network.train(), CPU), flatten(network).requires_grad_()
    forward = lambda n: loss(theta, images(n, size))  # noqa: E731
    fixed, each = memory.step_bytes(forward)
    assert fixed + 12 * each == pytest.approx(memory.kept_bytes(functools.partial(forward, 12)), rel=0.02)


def test_estimate_of_the_exact_meta_gradient() -> None:
    network = backbone("small_cnn", 2)
    fixed, each = memory.step_bytes(lambda n: keeps(network, n, "exact"))
    assert fixed + 12 * each == pytest.approx(memory.kept_bytes(lambda: keeps(network, 12, "exact")), rel=0.02)
    assert each > 4 * memory.step_bytes(lambda n: keeps(network, n))[1], "it holds the graphs of all four batches"


def test_a_trial_leaves_no_trace() -> None:
    network = backbone("small_resnet", 2)
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    erm._piece(network, toy_split(8), 4, CPU)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def forward_of(fixed: int, each: int):  # type: ignore[no-untyped-def]
    """A step that keeps so many bytes whatever the batch, and for each example."""
    w = torch.ones(1, requires_grad=True)
    return lambda n: [w * torch.zeros(fixed // 4), w * torch.zeros(n * each // 4)]


@pytest.mark.parametrize(
    ("free", "state", "expected"),
    [(1e6, 0, 64), (41_000, 0, 64), (40_000, 0, 32), (41_000, 10_000, 32), (16_000, 0, 16), (4_000, 0, 2)],
)
def test_the_decision(monkeypatch: pytest.MonkeyPatch, free: float, state: int, expected: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free / memory.SHARE)
    decide = functools.partial(memory.piece_that_fits, forward_of(2000, 600), 64, CPU, state)
    if expected == 64:
        assert decide() == 64
    else:
        with pytest.warns(UserWarning, match=f"a batch of 64 does not fit .* in pieces of {expected} "):
            assert decide() == expected


@pytest.mark.parametrize(("free", "smallest"), [(2_000, 2), (40_000, 64)])
def test_too_little_even_for_the_smallest_piece(monkeypatch: pytest.MonkeyPatch, free: float, smallest: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    with pytest.raises(CamlError, match=f"a training step of {smallest} examples needs"):
        memory.piece_that_fits(forward_of(2000, 600), 64, CPU, smallest=smallest)


def test_free_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e6 < memory.free_bytes(CPU) <= math.inf
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 900)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    assert memory.free_bytes(torch.device("cuda")) == 3_500


@pytest.mark.parametrize("native", [True, False])
def test_mixed_precision_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Asked without more words, torch counts a T4, which imitates bfloat16 slowly, as able."""
    able = lambda including_emulation=True: including_emulation or native  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", able)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: dtype)
    assert (autocast(torch.device("cuda")) is torch.bfloat16) == native  # type: ignore[comparison-overlap]


def gradients(network: nn.Module, x: Tensor, piece: int) -> list[Tensor]:
    network.zero_grad()
    memory.in_pieces(network, x, piece)[:, 0].square().mean().backward()
    return [p.grad.clone() for p in network.parameters()]  # type: ignore[union-attr]


def test_pieces_give_the_gradient_of_the_whole() -> None:
    network = backbone("mlp", 2, n_inputs=20)
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    whole = gradients(network, x, 10)
    for piece in (3, 5):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, gradients(network, x, piece)))
    kept = [memory.kept_bytes(lambda piece=piece: memory.in_pieces(network, x, piece)) for piece in (10, 2)]  # type: ignore[misc]
    assert kept[1] < kept[0] / 5


def test_running_averages_take_in_each_piece_once() -> None:
    network, (x, _) = backbone("small_cnn", 2).train(), images(8)
    plain = copy.deepcopy(network)
    for part in x.split(4):
        plain(part)
    gradients(network, x, 4)
    for (name, value), other in zip(network.named_buffers(), plain.buffers()):
        assert "num_batches" in name or torch.allclose(value, other), name
    assert network.body[1].momentum == 0.1  # type: ignore[index]


def test_the_first_order_meta_gradient_goes_through_in_pieces() -> None:
    network = backbone("mlp", 2, n_inputs=20)
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    tasks = [((x, torch.arange(8) % 2), (x.flip(0), torch.arange(8) // 4))] * 2
    whole, pieces = (
        meta_gradient(loss_at(network, CPU, piece), flatten(network), tasks, alpha=0.1) for piece in (8, 3)
    )
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_training_goes_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with room for half a batch: a message, and nearly the same losses (here without BatchNorm)."""
    split = toy_split(16)
    split = split.with_x(split.x.float().flatten(1)[:, ::16] / 255)
    losses = []
    for piece in (8, 4):
        monkeypatch.setattr(erm, "piece_that_fits", lambda forward, batch_size, device, state, piece=piece: piece)
        network = backbone("mlp", 2, n_inputs=split.x.shape[1])
        losses += [train_erm(network, split, split, epochs=2, batch_size=8, progress=False).history[-1]["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("method", ["append", "caml", "groupdro"])
def test_active_learning_goes_on_in_pieces(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    pool = toy_split(64)
    plan = dataclasses.replace(PLAN, method=method)
    decided: list[int] = []

    def half(forward, batch_size, device, state, smallest):  # type: ignore[no-untyped-def]
        decided.append(batch_size // 2)
        assert memory.step_bytes(forward)[1] > 0
        return decided[-1]

    monkeypatch.setattr(active, "piece_that_fits", half)
    records = run_active(lambda: backbone("small_cnn", 2), pool, pool, pool, plan, progress=False)
    assert decided == [4, 4]
    assert len(records) == 2


@pytest.mark.filterwarnings("error")
def test_exact_order_is_refused_where_first_order_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = toy_split(64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4.5e6 / memory.SHARE)
    train = functools.partial(active._piece, backbone("small_cnn", 2), pool.x, pool.y, torch.arange(24), 2)
    assert train(PLAN, CPU) == PLAN.batch_size
    with pytest.raises(CamlError, match="--order first"):
        train(dataclasses.replace(PLAN, order="exact"), CPU)


def test_a_pool_that_is_too_large_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x, device = torch.zeros(1000, dtype=torch.uint8), torch.device("meta")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2000)
    assert memory.on_device(x, device).device == device
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1999)
    assert memory.on_device(x, CPU) is x
    with pytest.warns(UserWarning, match="stay in main memory"):
        assert memory.on_device(x, device) is x
