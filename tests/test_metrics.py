"""Metrics against hand counts and independent formulas; the rule that chooses an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import toy_split

from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.metrics import Rule, check_selection, group_metrics, select_epoch, wilson


def split_of(y: list[int], a: list[int]) -> GroupDataset:
    return GroupDataset(
        torch.zeros(len(y), 1), torch.tensor(y), torch.tensor(a), class_names="pq", attribute_names="uv"
    )


def logits_of(answers: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), 2).float()


def test_hand_count() -> None:
    split = split_of([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1, 1, 1, 1])
    answers = [0, 0, 1, 1, 1, 0, 1, 1, 1, 1]  # right: 2/3, 0/1, 1/2, 4/4
    train_counts = torch.tensor([90, 10, 10, 90])
    m = group_metrics(logits_of(answers), split, train_counts)
    assert [g["correct"] for g in m["groups"]] == [2, 0, 1, 4]
    assert m["average"]["value"] == pytest.approx(70)
    assert m["worst_group"]["value"] == 0
    assert m["worst_group"]["name"] == "p, v"
    assert m["minority"]["value"] == pytest.approx(100 / 3)
    assert m["majority"]["value"] == pytest.approx(600 / 7)
    assert m["adjusted"]["value"] == pytest.approx(0.45 * 200 / 3 + 0.05 * 0 + 0.05 * 50 + 0.45 * 100)
    assert m["empty_groups"] == []


def test_empty_groups_are_named_not_averaged_away() -> None:
    split = split_of([0, 0, 1], [0, 0, 1])
    m = group_metrics(logits_of([0, 1, 1]), split, torch.tensor([1, 1, 1, 1]))
    assert m["empty_groups"] == ["p, v", "q, u"]
    assert m["groups"][1] == {"name": "p, v", "value": None, "low": None, "high": None, "n": 0, "correct": 0}
    assert m["worst_group"]["value"] == 50
    assert m["minority"]["value"] is None
    assert m["adjusted"]["value"] == pytest.approx(75)
    assert "adjusted" not in group_metrics(logits_of([0, 1, 1]), split, torch.tensor([0, 1, 1, 0]))


def test_wilson_covers() -> None:
    """The interval holds the true share about 95 times in 100, also where the textbook one fails (p near 1)."""
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.98):
        draws = rng.binomial(60, p, 2000)
        inside = [low <= 100 * p <= high for low, high in (wilson(int(k), 60) for k in draws)]
        assert 0.92 < np.mean(inside) < 0.99
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)
    assert wilson(10, 10)[1] == pytest.approx(100)
    assert np.isnan(wilson(0, 0)).all()


def test_intervals_hold_the_value_and_shrink() -> None:
    widths = []
    for n in (100, 1600):
        split = toy_split(n)
        logits = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) + 1.5 * logits_of(split.y.tolist())
        m = group_metrics(logits, split, split.group_counts)
        for name in ("average", "adjusted", "worst_group", "minority"):
            assert m[name]["low"] <= m[name]["value"] <= m[name]["high"]
        widths.append(m["adjusted"]["high"] - m["adjusted"]["low"])
    assert widths[1] < widths[0] / 2.5  # 16 times the data: a quarter of the width


def test_groups_at_0_and_100_percent_have_intervals_too() -> None:
    """Resampled, two right answers of two are always two of two: the bootstrap alone would call that certain."""
    y, a = [0] * 10 + [1] * 10, ([0] * 8 + [1] * 2) * 2
    split = split_of(y, a)
    wrong = [abs(label - attribute) for label, attribute in zip(y, a)]  # where a = 1
    for answers, expected in ((y, wilson(2, 2)), (wrong, wilson(0, 2))):
        m = group_metrics(logits_of(answers), split, split.group_counts)
        assert (m["worst_group"]["low"], m["worst_group"]["high"]) == pytest.approx(expected)
        assert m["adjusted"]["low"] <= m["adjusted"]["value"] <= m["adjusted"]["high"]
        assert 20 < m["adjusted"]["high"] - m["adjusted"]["low"] < 60


def test_bad_logits() -> None:
    split = toy_split(8)
    with pytest.raises(CamlError, match="shape"):
        group_metrics(torch.zeros(8, 3), split)
    with pytest.raises(CamlError, match="NaN"):
        group_metrics(torch.full((8, 2), torch.nan), split)


def _epoch(average: float, worst: float, minority: float | None) -> dict:
    return {
        "val": {
            "average": {"value": average, "low": average - 4},
            "worst_group": {"value": worst},
            "minority": {"value": minority},
        }
    }


def test_a_coin_is_not_chosen() -> None:
    """By worst group alone the near-chance first epoch would win; it does not clearly beat chance, so it may not."""
    history = [_epoch(53, 45, 48), _epoch(61, 20, 23), _epoch(60, 22, 25)]
    assert select_epoch(history, "worst_group", 50)[0] == 2
    assert select_epoch(history, "minority", 50)[0] == 2
    assert select_epoch(history, "average", 50)[0] == 1
    assert select_epoch(history, "last", 50)[0] == 2
    best, words = select_epoch(history[:1], "worst_group", 50)
    assert best == 0
    assert "no epoch clearly beats chance" in words
    assert select_epoch([_epoch(80, 30, 30), _epoch(80, 30, 30)], "worst_group", 50)[0] == 0  # ties: the earlier
    with pytest.raises(CamlError, match="select='test'"):
        select_epoch(history, "test", 50)  # type: ignore[arg-type]


def test_a_missing_accuracy_is_no_number() -> None:
    """Without a minority its accuracy is None, and no epoch is best by it."""
    history = [_epoch(80, 60, None), _epoch(90, 70, None)]
    with pytest.raises(CamlError, match="select='minority'"):
        select_epoch(history, "minority", 50)
    assert select_epoch(history, "worst_group", 50)[0] == select_epoch(history, "average", 50)[0] == 1
    even = toy_split(8)
    even.majority = torch.ones_like(even.majority)
    with pytest.raises(CamlError, match="select='minority' with 8 validation examples, 0 of a minority"):
        check_selection(even, "minority")
    rules: tuple[Rule, ...] = ("average", "worst_group", "last")
    for rule in rules:
        check_selection(even, rule)
        with pytest.raises(CamlError, match="0 validation examples"):
            check_selection(even.subset([]), rule)
