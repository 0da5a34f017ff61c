"""HSFM on drawn features with a dominant shortcut: what it raises, what it repeats, what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core import hsfm as module
from caml_core.errors import CamlError
from caml_core.features import standardise
from caml_core.groups import GroupDataset
from caml_core.hsfm import Edits, draw_support, hard_rows, hsfm
from caml_core.hsfm_settings import HYPERGRADIENTS, PUBLISHED, HardSet, Select, Settings, scaled
from caml_core.linear import Adam

D = 128
FAST = Settings(support=16, steps=10, alpha=1.6e-3, eta=0.3, edits=5, hard=32, epochs=10)
SHORT = dataclasses.replace(FAST, edits=2, epochs=3)


def drawn(n: int, seed: int, rho: float, dtype: torch.dtype = torch.float32) -> GroupDataset:
    """Sixteen features say a, loudly; sixteen say y, more softly; the rest is noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randn(n, D, generator=g)
    x[:, :16] += 0.8 * (2 * a - 1)[:, None]
    x[:, 16:32] += 0.35 * (2 * y - 1)[:, None]
    return GroupDataset(x.to(dtype), y, a, class_names=("cat", "dog"), attribute_names=("sofa", "bed"))


@functools.cache
def splits(dtype: torch.dtype = torch.float32) -> tuple[GroupDataset, ...]:
    return standardise(drawn(800, 0, 0.95, dtype), drawn(400, 1, 0.5, dtype), drawn(1000, 2, 0.5, dtype))


@functools.cache
def erm_head(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight and bias of ridge logistic regression on the biased training set."""
    train = splits(dtype)[0]
    head = [torch.zeros(2, D, dtype=dtype).requires_grad_(), torch.zeros(2, dtype=dtype).requires_grad_()]
    optimizer = torch.optim.LBFGS(head, max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train.x @ head[0].T + head[1], train.y) + 1e-3 * head[0].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return head[0].detach(), head[1].detach()


def run(settings: Settings = SHORT, dtype: torch.dtype = torch.float32, /, **options: Any) -> Edits:
    train, val, _ = splits(dtype)
    weight, bias = erm_head(dtype)
    return hsfm(settings=settings, **{"train": train, "val": val, "weight": weight, "bias": bias, **options})


def by_group(split: GroupDataset, weight: Tensor, bias: Tensor) -> Tensor:
    """Accuracy of each group, percent: (4,)."""
    right = (split.x @ weight.T + bias).argmax(dim=1) == split.y
    return 100 * torch.stack([right[split.group == g].double().mean() for g in range(4)])


def tensors(edits: Edits) -> dict[str, Tensor]:
    return {field.name: getattr(edits, field.name) for field in dataclasses.fields(edits)}


# --- what it does -----------------------------------------------------------------------------------------------------


def test_worst_group_accuracy_rises_and_the_edits_do_it() -> None:
    _, val, test = splits()
    weight, bias = erm_head()
    before = by_group(test, weight, bias)
    assert before.min() < 65  # the head leans on the shortcut
    assert before[[0, 3]].min() > 90
    edits = run(FAST, seeds=(0, 1, 2))
    still = run(dataclasses.replace(FAST, eta=1e-7), seeds=(0, 1, 2))
    for i in range(3):
        after = by_group(test, edits.weight[i], edits.bias[i])
        assert after.min() > before.min() + 15
        assert after.min() > by_group(test, still.weight[i], still.bias[i]).min() + 10
        chosen = edits.accuracy[edits.epoch[i], i]
        assert torch.allclose(by_group(val, edits.weight[i], edits.bias[i]), chosen.double(), atol=1e-3)
        assert float(chosen.min()) == float(edits.accuracy[:, i].min(dim=1).values.max())
    assert torch.allclose(still.after, still.before, atol=1e-4)
    assert edits.loss[-1].mean() < edits.loss[0].mean()


def test_what_it_returns() -> None:
    train, val, _ = splits()
    weight, bias = erm_head()
    edits = run(seeds=(3, 4))
    shapes = {
        "weight": (2, 2, D), "bias": (2, 2), "epoch": (2,), "before": (2, 32, D), "after": (2, 32, D), "rows": (2, 32),
        "support_y": (2, 32), "accuracy": (4, 2, 4), "average": (4, 2), "loss": (3, 2),
    }  # fmt: skip
    assert {name: tuple(tensor.shape) for name, tensor in tensors(edits).items()} == shapes
    assert torch.equal(edits.before, train.x[edits.rows])
    assert torch.equal(edits.support_y, train.y[edits.rows])
    assert not any(tensor.requires_grad for tensor in tensors(edits).values())
    right = (val.x @ weight.T + bias).argmax(dim=1) == val.y
    for i in range(2):  # epoch 0 is the ERM head
        assert torch.allclose(edits.accuracy[0, i].double(), by_group(val, weight, bias), atol=1e-3)
        assert float(edits.average[0, i]) == pytest.approx(100 * float(right.double().mean()), abs=1e-3)


def test_where_no_epoch_is_better_the_erm_head_stays() -> None:
    """Validation data on which the ERM head is right everywhere: nothing beats epoch 0."""
    train, val, _ = splits()
    weight, bias = erm_head()
    right = torch.where((val.x @ weight.T + bias).argmax(dim=1) == val.y)[0]
    edits = run(val=val.subset(right), seeds=(0, 1))
    assert edits.epoch.tolist() == [0, 0]
    assert torch.equal(edits.weight, weight.expand(2, -1, -1))
    assert torch.equal(edits.bias, bias.expand(2, -1))
    assert torch.equal(edits.after, edits.before)


def test_a_head_that_is_still_being_learned_is_left_alone() -> None:
    """A parameter as the head, with gradients switched on around it: no graph is kept, and it does not change."""
    weight, bias = (torch.nn.Parameter(part.clone()) for part in erm_head())
    edits = run(weight=weight, bias=bias)
    assert not edits.weight.requires_grad
    assert torch.equal(weight, erm_head()[0])
    assert torch.equal(edits.weight, run().weight)


def plain(
    settings: Settings, seed: int, train: GroupDataset, val: GroupDataset, head: Sequence[Tensor]
) -> tuple[list[list[Tensor]], int]:
    """HSFM from its description: unrolled autograd, torch's Adam, no batch. Support and head after every epoch."""
    rows = draw_support(train, settings.support, [seed])[0]
    h, y = train.x[rows].clone().requires_grad_(), train.y[rows]
    theta = [part.clone().requires_grad_() for part in head]
    edit, last, clipped = torch.optim.Adam([h], lr=settings.eta), torch.optim.Adam(theta, lr=settings.alpha), 0
    film = [[part.detach().clone() for part in (h, *theta)]]
    for _ in range(settings.epochs):
        losses = F.cross_entropy(val.x @ theta[0].T + theta[1], val.y, reduction="none")
        hard = torch.cat([torch.where(val.y == c)[0][losses[val.y == c].argsort(descending=True)[:32]] for c in (0, 1)])
        for _ in range(settings.edits):
            w, b = (part.detach().requires_grad_() for part in theta)
            for _ in range(settings.steps):
                g = torch.autograd.grad(F.cross_entropy(h @ w.T + b, y), (w, b), create_graph=True)
                w, b = w - settings.alpha * g[0], b - settings.alpha * g[1]
            edit.zero_grad()
            F.cross_entropy(val.x[hard] @ w.T + b, val.y[hard]).backward()
            assert h.grad is not None
            longer = max(1.0, float(h.grad.norm()) / settings.clip)
            h.grad, clipped = h.grad / longer, clipped + (longer > 1)
            edit.step()
        for _ in range(settings.steps):
            last.zero_grad()
            F.cross_entropy(h.detach() @ theta[0].T + theta[1], y).backward()
            last.step()
        film.append([part.detach().clone() for part in (h, *theta)])
    return film, clipped


@pytest.mark.parametrize("own_sizes", [False, True])
def test_float64_is_a_plain_double_backward_script_in_float64(own_sizes: bool) -> None:
    """Over several epochs, and to the last digits: no number on the way is a float32, step sizes included."""
    settings = dataclasses.replace(SHORT, edits=3, epochs=4, clip=0.001)
    sizes = {"alpha": [settings.alpha] * 2, "eta": [settings.eta] * 2} if own_sizes else {}
    films: list[list[Tensor]] = []
    seen = lambda _, *state: films.append([part.clone() for part in state[:3]])  # noqa: E731
    run(settings, torch.float64, seeds=(5, 6), on_epoch=seen, **sizes)
    for i, seed in enumerate((5, 6)):
        train, val, _ = splits(torch.float64)
        truth, clipped = plain(settings, seed, train, val, erm_head(torch.float64))
        assert clipped
        for found, expected in zip(films[-1], truth[-1]):
            assert found.dtype == torch.float64
            assert float((found[i] - expected).abs().max()) < 1e-10


def test_the_authors_protocol_is_their_script() -> None:
    """Raw features with a mean and a scale of their own, eight seeds, all epochs; the last of the best is kept."""
    train, val = (s.with_x((0.4 + 0.45 * s.x).relu()) for s in splits(torch.float64)[:2])
    settings = dataclasses.replace(FAST, alpha=0.02, late=True, any_epoch=True)
    head = (0.2 * erm_head(torch.float64)[0], erm_head(torch.float64)[1])
    edits = hsfm(train, val, *head, settings, seeds=range(8))
    ties = 0
    for seed in range(8):
        film, _ = plain(settings, seed, train, val, head)
        worst = [float(by_group(val, w, b).min()) for _, w, b in film]
        best = max(epoch for epoch, value in enumerate(worst) if value == max(worst))
        ties += worst.count(max(worst)) > 1
        assert int(edits.epoch[seed]) == best
        for found, expected in zip((edits.after, edits.weight, edits.bias), film[best]):
            assert float((found[seed] - expected).abs().max()) < 1e-9
    assert ties
    first = hsfm(train, val, *head, dataclasses.replace(settings, late=False), seeds=range(8))
    assert (first.epoch <= edits.epoch).all()
    assert (first.epoch < edits.epoch).any()


def test_an_epoch_that_may_be_chance_can_be_chosen_by_those_who_want_it() -> None:
    """A head that always says one class: 50% in its worst class come from guessing."""
    train, val, _ = splits()
    weight, bias = torch.zeros(2, D), torch.tensor([9.0, 0.0])
    settings = dataclasses.replace(SHORT, alpha=1e-9, epochs=2)
    assert int(run(settings, weight=weight, bias=bias).epoch[0]) == 0
    assert int(run(dataclasses.replace(settings, any_epoch=True, late=True), weight=weight, bias=bias).epoch[0]) == 2


def test_on_epoch_sees_every_epoch() -> None:
    train, val, _ = splits()
    calls: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
    edits = run(seeds=(0, 1), on_epoch=lambda e, *state: calls.append((e, *(s.clone() for s in state))))  # type: ignore[arg-type]
    assert [call[0] for call in calls] == [0, 1, 2, 3]
    assert torch.equal(calls[0][1], edits.before)
    for epoch, support, weight, bias, rows in calls:
        assert support.shape == edits.before.shape
        assert rows.shape == (2, 64)
        assert (torch.bincount(val.y[rows[0]]) == 32).all()
        for i in range(2):
            assert torch.allclose(by_group(val, weight[i], bias[i]), edits.accuracy[epoch, i].double(), atol=1e-3)
    for i, best in enumerate(edits.epoch.tolist()):
        assert torch.equal(calls[best][1][i], edits.after[i])
        assert torch.equal(calls[best][2][i], edits.weight[i])
    assert torch.equal(calls[0][4], calls[1][4])  # the first hard set is the ERM head's


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard_set", get_args(HardSet))
def test_a_run_repeats_itself_bit_for_bit(hard_set: HardSet) -> None:
    settings = dataclasses.replace(SHORT, hard_set=hard_set)
    one, other = (tensors(run(settings, seeds=(0, 1))) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("hard_set", get_args(HardSet))
def test_seeds_side_by_side_are_seeds_one_by_one(hard_set: HardSet) -> None:
    settings = dataclasses.replace(SHORT, hard_set=hard_set)
    together = tensors(run(settings, torch.float64, seeds=(0, 1, 2)))
    for i, seed in enumerate((0, 1, 2)):
        alone = tensors(run(settings, torch.float64, seeds=(seed,)))
        for name, tensor in together.items():
            part = tensor[:, i] if name in ("accuracy", "average", "loss") else tensor[i]
            single = alone[name][:, 0] if name in ("accuracy", "average", "loss") else alone[name][0]
            assert torch.allclose(part.double(), single.double(), rtol=1e-9, atol=1e-10), name
    assert not torch.equal(together["rows"][0], together["rows"][1])


def test_settings_side_by_side_are_settings_one_by_one() -> None:
    """Step sizes and heads of their own for each problem."""
    alphas, etas = torch.tensor([[5e-4, 2e-3, 2e-3], [0.3, 0.3, 0.01]], dtype=torch.float64)
    weight, bias = erm_head(torch.float64)
    heads = torch.stack([weight, weight, 0.5 * weight])
    options: dict[str, Any] = {"weight": heads, "bias": bias.expand(3, 2), "alpha": alphas, "eta": etas}
    together = run(SHORT, torch.float64, seeds=(0, 0, 0), **options)
    for i in range(3):
        settings = dataclasses.replace(SHORT, alpha=float(alphas[i]), eta=float(etas[i]))
        alone = run(settings, torch.float64, weight=heads[i])
        assert torch.allclose(together.weight[i], alone.weight[0], rtol=1e-9, atol=1e-11)
        assert torch.allclose(together.after[i], alone.after[0], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(together.after[1], together.after[2])


def test_adam_is_torch_adam() -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, 4, generator=g)
    sizes = torch.tensor([1e-3, 0.1, 1.0])
    ours, state = start.clone(), Adam(start, sizes)
    theirs = [part.clone().requires_grad_() for part in start]
    adams = [torch.optim.Adam([part], lr=float(size)) for part, size in zip(theirs, sizes)]
    for step in range(20):
        gradient = torch.randn(start.shape, generator=g) * 10.0 ** (step % 5 - 3)
        state.step(ours, gradient)
        for part, adam, of_part in zip(theirs, adams, gradient):
            part.grad = of_part.clone()
            adam.step()
    assert torch.allclose(ours, torch.stack(theirs).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", HYPERGRADIENTS)
def test_every_hypergradient_runs(how) -> None:  # type: ignore[no-untyped-def]
    edits = run(dataclasses.replace(SHORT, hypergradient=how))
    assert all(torch.isfinite(tensor).all() for tensor in tensors(edits).values())
    if how == "unrolled":
        assert torch.allclose(edits.weight, run().weight, rtol=1e-3, atol=1e-4)


# --- its parts --------------------------------------------------------------------------------------------------------


def test_hard_rows() -> None:
    _, val, _ = splits()
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(val), 2, generator=g)
    losses = torch.stack([F.cross_entropy(part, val.y, reduction="none") for part in logits])
    rows = hard_rows(logits, val, SHORT, (0, 1), 1)
    assert rows.shape == (2, 64)
    for i in range(2):
        for c, of_class in enumerate(rows[i].split(32)):
            assert (val.y[of_class] == c).all()
            assert len(of_class.unique()) == 32
            others = (val.y == c).index_fill(0, of_class, False)
            assert losses[i][of_class].min() >= losses[i][others].max()
    minority = hard_rows(logits, val, dataclasses.replace(SHORT, hard_set="minority"), (0, 1), 1)
    for i in range(2):
        for c, of_class in enumerate(minority[i].split(32)):
            assert (val.y[of_class] == c).all()
            assert val.is_minority[of_class].all()
            others = ((val.y == c) & val.is_minority).index_fill(0, of_class, False)
            assert losses[i][of_class].min() >= losses[i][others].max()


def test_random_hard_rows_depend_on_seed_and_epoch_alone() -> None:
    _, val, _ = splits()
    settings = dataclasses.replace(SHORT, hard_set="random")
    logits = torch.zeros(3, len(val), 2)
    rows = hard_rows(logits, val, settings, (0, 1, 0), 1)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(hard_rows(logits[:1] + 7, val, settings, (1,), 1)[0], rows[1])
    assert not torch.equal(hard_rows(logits, val, settings, (0, 1, 0), 2), rows)
    assert (val.y[rows[0]] == torch.tensor([0, 1]).repeat_interleave(32)).all()
    assert 0.2 < val.is_minority[rows[0]].double().mean() < 0.8
    seen: list[Tensor] = []
    run(settings, on_epoch=lambda *state: seen.append(state[-1].clone()))
    assert len({tuple(rows[0].tolist()) for rows in seen}) == 4  # a new draw in every epoch


@pytest.mark.parametrize("select", get_args(Select))
def test_the_rule_chooses_the_epoch(select: Select) -> None:
    """The chosen epoch has the best score; the label-free rules do not look at groups at all."""
    _, val, _ = splits()
    scores: list[Tensor] = []
    first: list[Tensor] = []

    def score(epoch: int, support: Tensor, weight: Tensor, bias: Tensor, rows: Tensor) -> None:
        logits = val.x @ weight[0].T + bias[0]
        right = (logits.argmax(dim=1) == val.y).double()
        if epoch == 0:
            first.append(rows[0].clone())
        if select == "worst_group":
            scores.append(by_group(val, weight[0], bias[0]).min())
        elif select == "worst_class":
            scores.append(torch.stack([right[val.y == c].mean() for c in range(2)]).min())
        else:
            scores.append(-F.cross_entropy(logits[first[0]], val.y[first[0]]))

    settings = dataclasses.replace(FAST, select=select)
    edits = run(settings, on_epoch=score)
    assert scores[int(edits.epoch[0])] >= max(scores) - 1e-6
    if select != "worst_group":
        shuffled = GroupDataset(
            val.x, val.y, val.a.flip(0), class_names=val.class_names, attribute_names=val.attribute_names
        )
        assert torch.equal(run(settings, val=shuffled).weight, edits.weight)


def test_draw_support() -> None:
    train, _, _ = splits()
    rows = draw_support(train, 16, (0, 1, 0))
    assert rows.shape == (3, 32)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert (train.y[rows] == torch.tensor([0, 1]).repeat_interleave(16)).all()
    assert all(len(row.unique()) == 32 for row in rows)


def test_scaled_keeps_the_effect_of_a_step() -> None:
    """Standardised features: alpha with 1 / width, eta as it is; another size: eta with it."""
    features = torch.randn(500, 512, generator=torch.Generator().manual_seed(0))
    features /= features.square().mean().sqrt()
    published = PUBLISHED["dominoes"]
    found = scaled(published, features)
    assert found.alpha == pytest.approx(4 * published.alpha)
    assert found.eta == pytest.approx(published.eta)
    small = scaled(published, 0.1 * features)
    assert small.eta == pytest.approx(0.1 * published.eta)
    assert small.alpha == pytest.approx(10 * found.alpha)
    rest = {f.name for f in dataclasses.fields(Settings)} - {"alpha", "eta"}
    assert all(getattr(found, name) == getattr(published, name) for name in rest)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["train", "val", "weight", "bias"])
def test_what_is_no_number(where: str, value: float) -> None:
    weight, bias = erm_head()
    parts = {"train": splits()[0].x, "val": splits()[1].x, "weight": weight, "bias": bias}
    part = parts[where].clone()
    part.view(-1)[1] = value
    split = {"train": splits()[0], "val": splits()[1]}.get(where)
    with pytest.raises(CamlError, match="finite"):
        run(SHORT, torch.float32, **{where: split.with_x(part) if split else part})


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_columns_are_harmless(value: float) -> None:
    parts = [split.with_x(split.x.index_fill(1, torch.arange(40, 60), value)) for split in splits()[:2]]
    edits = run(train=parts[0], val=parts[1])
    assert all(torch.isfinite(tensor).all() for tensor in tensors(edits).values())


def test_too_few_of_a_class() -> None:
    train, val, _ = splits()
    few = torch.cat([torch.where(train.y == 0)[0], torch.where(train.y == 1)[0][:9]])
    with pytest.raises(CamlError, match="dog has 9 examples for 16 of the support set"):
        run(train=train.subset(few))
    few = torch.cat([torch.where(val.y == 0)[0][:5], torch.where(val.y == 1)[0]])
    with pytest.raises(CamlError, match="cat has 5 examples for 32 of the hard set"):
        run(val=val.subset(few))
    with pytest.raises(CamlError, match="dog has 0 examples"):
        run(val=val.subset(torch.where(val.y == 0)[0]))
    few = torch.cat([torch.where(~val.is_minority)[0], torch.where(val.is_minority)[0][:20]])
    run(val=val.subset(few))
    with pytest.raises(CamlError, match="of the hard set"):  # the oracle may not fill up with the majority
        run(dataclasses.replace(SHORT, hard_set="minority"), val=val.subset(few))


def test_splits_and_heads_that_do_not_fit() -> None:
    train, val, _ = splits()
    weight, bias = erm_head()
    named = GroupDataset(val.x, val.y, val.a, class_names=("dog", "cat"), attribute_names=val.attribute_names)
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [  # PyTorch's own errors; ours where numbers would come out
        (RuntimeError, {"val": val.with_x(val.x[:, :50])}),
        (RuntimeError, {"val": val.with_x(val.x.double())}),
        (CamlError, {"train": train.with_x(train.x.view(-1, 2, 8, 8))}),
        (CamlError, {"val": named}),
        *((CamlError, {"weight": part}) for part in (weight[:, :50], weight[:1])),
        *((CamlError, {"bias": part}) for part in (bias[:1], bias[None][:, :1])),
        (RuntimeError, {"weight": weight.expand(3, 2, D)}),
        (RuntimeError, {"seeds": (0, 1), "bias": bias.expand(3, 2)}),
        (RuntimeError, {"seeds": (0, 1, 2), "alpha": torch.tensor([1e-3, 1e-3])}),
    ]
    for kind, change in wrong:
        with pytest.raises(kind):
            run(**change)


def test_features_as_numpy_makes_them() -> None:
    """float64 arrays, labels as arrays, and a head of float32: the same as tensors of float64."""
    train, val, _ = splits(torch.float64)
    names: dict[str, Any] = {"class_names": train.class_names, "attribute_names": train.attribute_names}
    arrays = [GroupDataset(s.x.numpy(), s.y.numpy(), s.a.numpy(), **names) for s in (train, val)]
    weight, bias = erm_head()
    found = run(train=arrays[0], val=arrays[1], weight=weight.numpy(), bias=bias.tolist(), eta=[0.3])
    expected = run(SHORT, torch.float64, weight=weight.double(), bias=bias.double())
    assert found.weight.dtype == found.after.dtype == torch.float64
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors(found).values(), tensors(expected).values())
    )


@pytest.mark.parametrize("how", ["adjoint", "unrolled", "first_order"])
def test_an_inner_loop_that_diverges(how) -> None:  # type: ignore[no-untyped-def]
    """Every example twice, as a cat and as a dog: no head fits both, and too large a step makes the loss explode."""
    train, _, _ = splits()
    twins = train.with_x(train.x[::2].repeat_interleave(2, dim=0))
    settings = dataclasses.replace(SHORT, support=400, edits=1, hypergradient=how)
    for alpha in (1e3, 1e38):
        with pytest.raises(CamlError, match="diverges in epoch 1") as caught:
            run(dataclasses.replace(settings, alpha=alpha), train=twins)
        assert "lower alpha" in caught.value.remedy
    with pytest.raises(CamlError, match="diverges"):  # one bad problem of a batch is enough
        run(settings, train=twins, seeds=(0, 1), alpha=torch.tensor([1e-3, 1e3]))


def test_epochs_after_a_divergence_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    free = run(SHORT, seeds=(0, 1))
    assert min(free.epoch.tolist()) > 1
    real, looks = module._climbs, []

    def second_problem_from_epoch_2(*given: Any) -> Tensor:
        looks.append(given[-1])
        return real(*given) | torch.tensor([False, len(looks) >= 2])

    monkeypatch.setattr(module, "_climbs", second_problem_from_epoch_2)
    with pytest.warns(UserWarning, match="1 of 2 problems met inner loops that diverge"):
        edits = run(SHORT, seeds=(0, 1))
    assert looks == [SHORT.steps, 0, 0]
    assert edits.epoch[0] == free.epoch[0]
    assert edits.epoch[1] <= 1
    assert torch.equal(edits.accuracy, free.accuracy), "the run itself goes on"


@pytest.mark.parametrize("alpha", [30.0, 100.0, 1e6])
def test_steps_that_overshoot_on_separable_support(alpha: float) -> None:
    """Such a loop ends in a perfect fit, so that its end alone looks well."""
    with pytest.raises(CamlError, match="diverges in epoch 1"):
        run(dataclasses.replace(SHORT, alpha=alpha))


def test_edits_that_leave_the_numbers() -> None:
    with pytest.warns(UserWarning, match="1 of 1 problems met inner loops that diverge.*lower alpha or eta"):
        edits = run(dataclasses.replace(SHORT, eta=1e30, edits=4))
    assert edits.epoch.tolist() <= [1]
    assert torch.isfinite(edits.weight).all()


def test_edits_by_plain_steps_are_clipped_gradients() -> None:
    """One edit moves the support by eta times the clipped hypergradient, in place of Adam's eta a coordinate."""
    one = dataclasses.replace(SHORT, epochs=1, edits=1, eta=0.5, clip=1e-3, edit_optimizer="sgd")
    seen: list[Tensor] = []
    for settings in (one, dataclasses.replace(one, edit_optimizer="adam")):
        run(settings, on_epoch=lambda _, h, *rest: seen.append(h.clone()))
    plain, adam = seen[1] - seen[0], seen[3] - seen[2]
    assert float(plain.norm()) == pytest.approx(0.5e-3, rel=1e-3)
    assert float(adam.abs().median()) == pytest.approx(0.5, rel=0.2)  # less where a gradient is hardly above epsilon
    assert float((plain * adam).min()) >= 0


@pytest.mark.parametrize(
    "change",
    [{name: 0} for name in ("support", "steps", "edits", "hard", "epochs")]
    + [{name: value} for name in ("alpha", "eta", "clip") for value in (0.0, -1.0, math.nan, math.inf)]
    + [{"hypergradient": "exact"}, {"hard_set": "easy"}, {"select": "test"}, {"support": 2.5}],
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(CamlError, match=name) as caught:
        Settings(**change)
    assert str(value) in str(caught.value)


def test_published_settings() -> None:
    assert set(PUBLISHED) == {"celeba", "waterbirds", "metashift", "dominoes"}
    assert Settings() == PUBLISHED["dominoes"]
