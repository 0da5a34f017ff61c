"""Heads on frozen features: what each does about a shortcut, DFR against scikit-learn, errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from caml_core.comparators import ON_FEATURES
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.features import standardise
from caml_core.groups import GroupDataset, assign_attributes
from caml_core.heads import HEADS, afr, balanced_head, dfr, groupdro_head, jtt_head
from caml_core.last_layer import STEPS, Head, balanced_rows, descend, erm_head, l1_logistic
from caml_core.metrics import group_metrics
from caml_core.runs.identity import METHODS
from caml_core.runs.run import keep_labels
from caml_core.runs.settings import KINDS, Frozen


def features(n: int, rho: float, seed: int, n_classes: int = 2, width: int = 12) -> GroupDataset:
    """Features in which the label is visible but noisy, the attribute clear, and the rest noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    a = assign_attributes(y, n_classes, rho, rng)
    x = rng.normal(size=(n, width + 2 * n_classes)).astype(np.float32)
    x[:, :n_classes] += 2 * np.eye(n_classes)[y]
    x[:, n_classes : 2 * n_classes] += 2.5 * np.eye(n_classes)[a]
    names = [f"{i}" for i in range(n_classes)]
    return GroupDataset(
        torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(a), class_names=names, attribute_names=names
    )


@pytest.fixture(scope="module")
def splits() -> tuple[GroupDataset, ...]:
    return standardise(features(4000, 0.95, 0), features(400, 0.5, 1), features(2000, 0.5, 2))


@pytest.fixture(scope="module")
def trained(splits: tuple[GroupDataset, ...]) -> dict[str, Head]:
    return {name: method(splits[0], splits[1]) for name, method in HEADS.items()}


def accuracy(head: Head, split: GroupDataset, kind: str = "worst_group") -> float:
    return group_metrics(head.logits(split.x), split)[kind]["value"]


def test_every_method_helps_the_worst_group(splits: tuple[GroupDataset, ...], trained: dict[str, Head]) -> None:
    _, _, test = splits
    erm = accuracy(trained["erm-head"], test)
    assert erm < 45, "the toy's shortcut works on ERM"
    for name, head in trained.items():
        assert head.weight.shape == (2, 16)
        assert head.bias.shape == (2,)
        assert head.weight.dtype == head.bias.dtype == torch.float32
        assert head.chosen["rule"]
        if name != "erm-head":
            assert accuracy(head, test) > erm + 30, name
    # Those who know the groups do at least about as well as those who guess them.
    for knows in ("dfr", "balanced-head", "gdro-head"):
        for guesses in ("jtt-head", "afr"):
            assert accuracy(trained[knows], test) > accuracy(trained[guesses], test) - 3


@pytest.mark.parametrize("name", HEADS)
def test_repeats_bit_for_bit(name: str, splits: tuple[GroupDataset, ...], trained: dict[str, Head]) -> None:
    torch.rand(7)  # the caller's random state has no say
    again = HEADS[name](splits[0], splits[1])
    assert torch.equal(again.weight, trained[name].weight)
    assert torch.equal(again.bias, trained[name].bias)
    assert again.chosen == trained[name].chosen


def test_the_command_line_knows_every_head() -> None:
    assert {name for name, kind in KINDS.items() if issubclass(kind, Frozen)} == {*ON_FEATURES, "hsfm", "dac"}
    assert KINDS.keys() == set(METHODS)


# --- DFR -------------------------------------------------------------------------------------------------------------


def direct(x: Tensor, y: Tensor, c: float) -> tuple[np.ndarray, np.ndarray]:
    """L1 logistic regression by another of scikit-learn's solvers; the bias is the weight of a column of ones."""
    ones = torch.cat([x.double(), torch.ones(len(x), 1)], dim=1).numpy()
    model = LogisticRegression(solver="saga", l1_ratio=1.0, C=c, tol=1e-6, max_iter=5000, fit_intercept=False)
    model.fit(ones, y.numpy())
    return model.decision_function(ones), model.coef_[0, :-1]


@pytest.mark.parametrize("c", [1.0, 0.03])
def test_dfr_is_the_l1_logistic_regression_of_scikit_learn(splits: tuple[GroupDataset, ...], c: float) -> None:
    """On a balanced validation split there is one balanced subset, all of it."""
    _, val, _ = splits
    head = dfr(*splits[:2], c_grid=(c,))
    assert (head.chosen["C"], head.chosen["subsets"]) == (c, 1)
    answers, coefficients = direct(val.x, val.y, c)
    logits = head.logits(val.x)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), answers, atol=0.05)
    np.testing.assert_array_equal((head.weight[1] == 0).numpy(), coefficients == 0)
    if c == 0.03:
        assert (head.weight[1] == 0).sum() > 8, "a strong L1 penalty leaves most features out"


def test_dfr_averages_balanced_subsets(splits: tuple[GroupDataset, ...]) -> None:
    train, val, _ = splits
    few = torch.where(val.is_minority)[0][::4]
    lopsided = val.subset(torch.cat([torch.where(~val.is_minority)[0], few]))
    one, ten = (dfr(train, lopsided, c_grid=(0.1,), subsets=n) for n in (1, 10))
    assert ten.chosen["subsets"] == 10
    assert not torch.equal(one.weight, ten.weight)
    g = torch.Generator().manual_seed(3)
    subsets = [lopsided.subset(balanced_rows(lopsided.group, g)) for _ in range(40)]
    for subset in subsets:
        assert len(set(subset.group_counts.tolist())) == 1
        assert len(set(subset.index.tolist())) == len(subset) == 4 * int(lopsided.group_counts.min())
    assert len(torch.cat([s.index for s in subsets]).unique()) == len(lopsided)
    mean = torch.stack([l1_logistic(s, 0.1).weight for s in subsets]).mean(dim=0)
    assert (ten.weight - mean).norm() < (one.weight - mean).norm(), "nearer to the mean of many subsets"


def test_dfr_chooses_c_on_the_held_out_half(splits: tuple[GroupDataset, ...]) -> None:
    """A penalty that leaves nothing but a constant answer is never chosen, wherever it stands in the list."""
    for grid in ((1e-4, 0.1), (0.1, 1e-4)):
        assert dfr(*splits[:2], c_grid=grid).chosen["C"] == 0.1
    assert dfr(*splits[:2], c_grid=(0.1, 0.1000001)).chosen["C"] == 0.1, "ties go to the earlier"
    # 404 features can explain 300 examples by heart, so that only examples left out tell which penalty is better.
    wide, few = standardise(features(300, 0.95, 6, width=400), features(600, 0.5, 7, width=400))
    assert accuracy(dfr(wide, few, c_grid=(30.0,)), few) == 100 > accuracy(dfr(wide, few, c_grid=(0.1,)), few)
    assert dfr(wide, few, c_grid=(30.0, 0.1)).chosen["C"] == 0.1


def test_dfr_with_three_classes_is_one_against_the_rest() -> None:
    train, val, test = standardise(
        *(features(n, rho, i, 3) for i, (n, rho) in enumerate([(900, 0.9), (900, 1 / 3)] * 2))
    )[:3]
    head = dfr(train, val, c_grid=(0.1,))
    assert head.weight.shape == (3, 18)
    for k in range(3):
        answers, _ = direct(val.x, (val.y == k).long(), 0.1)
        np.testing.assert_allclose(head.logits(val.x)[:, k].numpy(), answers, atol=0.05)
    assert accuracy(head, test) > accuracy(erm_head(train, val), test) + 8


# --- the weighted descents -------------------------------------------------------------------------------------------


def test_descent_reaches_the_minimum_of_the_weighted_loss(splits: tuple[GroupDataset, ...]) -> None:
    """Against scikit-learn with sample weights; the pull to a head of zeros is its L2 penalty."""
    train, val, _ = splits
    weights = 1 / train.group_counts[train.group].double()
    weights /= weights.sum()
    start = Head(torch.zeros(2, 16), torch.zeros(2), {})
    head = descend(train, val, weights.to, start=start, pull=0.05, step=0.3, epochs=200, select="last")
    # pull (|w_0|^2 + |w_1|^2) with w_0 = -w_1 is pull/2 |w|^2, and scikit-learn minimises C sum_i s_i CE_i + |w|^2 / 2
    model = LogisticRegression(C=1 / 0.05, tol=1e-10, max_iter=5000, fit_intercept=False)
    ones = torch.cat([train.x.double(), torch.ones(len(train), 1)], dim=1).numpy()
    model.fit(ones, train.y.numpy(), sample_weight=weights.numpy())
    found = torch.cat([head.weight, head.bias[:, None]], dim=1)
    np.testing.assert_allclose((found[1] - found[0]).numpy(), model.coef_[0], atol=2e-3)
    assert head.chosen["epoch"] == 200


def test_groupdro_moves_its_weight_to_the_worst_group(splits: tuple[GroupDataset, ...]) -> None:
    train, val, _ = splits
    still, moved = (groupdro_head(train, val, rate=rate, epochs=30, select="last") for rate in (0.0, 0.1))
    balanced = balanced_head(train, val, epochs=30, select="last")
    torch.testing.assert_close(still.weight, balanced.weight)  # with rate 0 all groups keep their share
    losses = [torch.nn.functional.cross_entropy(h.logits(train.x), train.y, reduction="none") for h in (still, moved)]
    worst = [max(float(loss[train.group == g].mean()) for g in range(4)) for loss in losses]
    assert worst[1] < worst[0]


def test_jtt_counts_the_errors_of_its_first_training(splits: tuple[GroupDataset, ...]) -> None:
    train, val, _ = splits
    even = torch.full((len(train),), 1 / len(train))
    first = descend(train, val, even.to, epochs=10, select="last")
    wrong = first.logits(train.x).argmax(dim=1) != train.y
    assert train.is_minority[wrong].double().mean() > 0.5, "ten times its share: errors stand in for the minority"
    head = jtt_head(train, val, upweights=(7,))
    assert (head.chosen["errors"], head.chosen["upweight"]) == (int(wrong.sum()), 7)
    weights = torch.where(wrong, 7.0, 1.0)
    again = descend(train, val, (weights / weights.sum()).to)
    torch.testing.assert_close(head.weight, again.weight)
    assert torch.equal(jtt_head(train, val, upweights=(1,)).weight, descend(train, val, even.to).weight), (
        "lambda = 1 changes nothing"
    )


def test_afr_pulled_hard_stays_at_its_erm_head(splits: tuple[GroupDataset, ...], trained: dict[str, Head]) -> None:
    train, val, test = splits
    free, held = (afr(train, val, gammas=(8,), pulls=(pull,), select="last") for pull in (0.0, 1e4))
    assert accuracy(free, test) > accuracy(held, test) + 30
    assert accuracy(held, test) < 45


def test_afr_weighs_what_its_erm_head_did_not_see(splits: tuple[GroupDataset, ...]) -> None:
    train, val, _ = splits
    lopsided = train.subset(torch.cat([torch.where(train.y == 0)[0], torch.where(train.y == 1)[0][:500]]))
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(stream_seed(5, 0)))
    rest, seen = (lopsided.subset(rows.sort().values) for rows in (order[:500], order[500:]))
    erm = erm_head(seen, val, seed=5)
    p = torch.softmax(rest.x @ erm.weight.T + erm.bias, dim=1)[torch.arange(500), rest.y]
    weights = torch.exp(-3 * p) / torch.tensor([int((rest.y == k).sum()) for k in (0, 1)])[rest.y]
    expected = descend(rest, val, (weights / weights.sum()).to, start=erm, pull=0.1)
    torch.testing.assert_close(afr(lopsided, val, seed=5, gammas=(3,), pulls=(0.1,)).weight, expected.weight)


def test_an_epoch_is_so_many_steps(splits: tuple[GroupDataset, ...]) -> None:
    calls = []

    def weigh(losses: Tensor) -> Tensor:
        calls.append(float(losses.mean()))
        return torch.full_like(losses, 1 / len(losses))

    descend(splits[0], splits[1], weigh, epochs=3)
    assert len(calls) == 3 * STEPS
    assert calls[0] == pytest.approx(np.log(2))
    assert calls == sorted(calls, reverse=True)


# --- fewer validation labels -----------------------------------------------------------------------------------------


def test_kept_labels_are_nested_and_stratified(splits: tuple[GroupDataset, ...]) -> None:
    _, val, _ = splits
    lopsided = val.subset(torch.cat([torch.where(val.y == 0)[0], torch.where(val.y == 1)[0][:100]]))  # 2 : 1
    parts = {n: keep_labels(lopsided, n, 0) for n in (3, 30, 150, 300)}
    for n, part in parts.items():
        assert torch.bincount(part.y).tolist() == [2 * n // 3, n // 3]
    rows = [set(part.index.tolist()) for part in parts.values()]
    assert all(small < large for small, large in itertools.pairwise(rows))
    assert set(keep_labels(lopsided, 30, 1).index.tolist()) != rows[1]
    for n in (301, 1, 0, -3):
        with pytest.raises(CamlError, match="--val-labels"):
            keep_labels(lopsided, n, 0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_features_that_cannot_be_used(name: str, splits: tuple[GroupDataset, ...]) -> None:
    """PyTorch's own errors about shapes and types; ours where numbers would have come out."""
    train, val, _ = splits
    method = HEADS[name]
    broken = val.x.clone()
    broken[5, 3] = float("nan")
    with pytest.raises(CamlError, match=r"features of .* finite: False"):
        method(train, val.with_x(broken))
    with pytest.raises(CamlError, match="select"):
        method(train, val, select="test")
    if name == "dfr":
        return  # it looks at nothing else
    renamed = GroupDataset(val.x, val.y, val.a, class_names=("1", "0"), attribute_names=val.attribute_names)
    half, other = train.with_x(train.x.half()), features(90, 0.5, 0, 3, 10)
    for wrong in ((train, renamed), (half, val), (train, other), (train.subset([]), val)):
        with pytest.raises(CamlError, match=r"features of|class"):
            method(*wrong)
    for wrong in (
        (train, val.with_x(val.x[:, :5])),
        (train, val.with_x(val.x.double())),
        (train.with_x(torch.zeros(len(train), 3, 8, 8)), val),
    ):
        with pytest.raises((CamlError, RuntimeError, ValueError, ZeroDivisionError)):
            method(*wrong)


@pytest.mark.parametrize("name", HEADS)
def test_features_as_numpy_makes_them(name: str, splits: tuple[GroupDataset, ...], trained: dict[str, Head]) -> None:
    """Arrays of float64, labels as arrays: a head of float64 that answers as the one of float32 does."""
    train, val, test = splits
    names: dict[str, Any] = {"class_names": train.class_names, "attribute_names": train.attribute_names}
    arrays = [GroupDataset(s.x.double().numpy(), s.y.numpy(), s.a.numpy(), **names) for s in (train, val)]
    head = HEADS[name](*arrays)
    assert head.weight.dtype == head.bias.dtype == torch.float64
    if name in ("erm-head", "afr"):  # other first weights
        assert accuracy(head, test.with_x(test.x.double())) == pytest.approx(accuracy(trained[name], test), abs=15)
    else:
        torch.testing.assert_close(head.weight.float(), trained[name].weight, rtol=1e-3, atol=1e-4)


def test_dfr_needs_every_group(splits: tuple[GroupDataset, ...]) -> None:
    train, val, _ = splits
    alone = val.subset(torch.cat([torch.where(val.group != 2)[0], torch.where(val.group == 2)[0][:1]]))
    with pytest.raises(CamlError, match="fewer than two validation examples of group 1, 0"):
        dfr(train, alone)


def test_afr_needs_every_class_in_what_it_holds_out(splits: tuple[GroupDataset, ...]) -> None:
    with pytest.raises(CamlError, match="no example of class"):
        afr(*splits[:2], held_out=0.0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (dfr, {"c_grid": ()}),
        (dfr, {"c_grid": (0.1, 0.0)}),
        (jtt_head, {"upweights": ()}),
        (afr, {"pulls": (float("nan"),)}),
        (afr, {"held_out": 1.0}),
        (balanced_head, {"epochs": 0}),
        (groupdro_head, {"rate": float("inf")}),
        (erm_head, {"lr": 0.0}),
    ],
)
def test_no_head_comes_out_of_settings_without_sense(
    method: Any, options: dict[str, Any], splits: tuple[GroupDataset, ...]
) -> None:
    with pytest.raises((CamlError, ValueError, RuntimeError, ZeroDivisionError)):
        method(*splits[:2], **options)
