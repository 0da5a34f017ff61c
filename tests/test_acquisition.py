"""Acquisition functions against their definitions, written out naively."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from caml_core.acquisition import ACQUISITIONS, Pool, acquire
from caml_core.errors import CamlError


def make_pool(n: int = 40, m: int = 6, d: int = 5, c: int = 3, seed: int = 0) -> Pool:
    g = torch.Generator().manual_seed(seed)
    head = nn.Linear(d, c)
    with torch.no_grad():
        head.weight.copy_(torch.randn(c, d, generator=g))
        head.bias.zero_()
        z = torch.randn(n, d, generator=g)
        return Pool(head(z), z, torch.randn(m, d, generator=g), head)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax(row: Tensor) -> list[float]:
    e = [math.exp(float(v)) for v in row]
    return [v / sum(e) for v in e]


def naive_score(name: str, p: list[float]) -> float:
    if name == "least_confidence":
        return 1 - max(p)
    if name == "margin":
        return -(sorted(p)[-1] - sorted(p)[-2])
    return -sum(v * math.log(v) for v in p)


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
def test_uncertainty_is_its_formula(name: str) -> None:
    pool = make_pool()
    scores = [naive_score(name, softmax(row)) for row in pool.logits]
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:7]
    assert acquire(name, pool, 7, seeded()).tolist() == expected


def test_core_set_is_greedy_k_centre() -> None:
    pool = make_pool()
    centres, expected = list(pool.labelled), []
    for _ in range(8):
        gap = [min(float((z - c).norm()) for c in centres) for z in pool.features]
        expected.append(max(range(len(gap)), key=lambda i: gap[i]))
        centres.append(pool.features[expected[-1]])
    assert acquire("core_set", pool, 8, seeded()).tolist() == expected


def test_badge_is_kmeans_plus_plus_on_whole_gradients() -> None:
    pool = make_pool()
    p = pool.logits.softmax(1)
    rows = []
    for i in range(len(p)):  # the gradient of -log p[guess] in the weights of the last layer, by autograd
        w = pool.head.weight.detach().clone().requires_grad_()  # type: ignore[operator, union-attr]
        logits = pool.features[i] @ w.T
        (grad,) = torch.autograd.grad(-logits.log_softmax(0)[int(p[i].argmax())], w)
        rows.append(grad.flatten())
    g = torch.stack(rows).double()
    chosen = [int(g.norm(dim=1).argmax())]
    generator = seeded(3)
    while len(chosen) < 10:
        nearest = torch.stack([((g - g[j]) ** 2).sum(1) for j in chosen]).amin(0)
        nearest[chosen] = 0
        at = float(torch.rand((), generator=generator, dtype=torch.float64)) * float(nearest.sum())
        total = 0.0
        for i, value in enumerate(nearest.tolist()):
            total += value
            if total > at:
                chosen.append(i)
                break
    assert acquire("badge", pool, 10, seeded(3)).tolist() == chosen


def test_bald_is_mutual_information() -> None:
    pool = make_pool()
    generator, draws = seeded(1), []
    for _ in range(20):
        keep = torch.rand(pool.features.shape, generator=generator) >= 0.5
        with torch.no_grad():
            draws.append(pool.head(pool.features * keep * 2).softmax(1))
    stack = torch.stack(draws).double()
    mean = stack.mean(0)
    information = -(mean * mean.log()).sum(1) + (stack * stack.log()).sum(2).mean(0)
    assert (information > -1e-9).all()
    expected = information.argsort(descending=True)[:5].tolist()
    assert acquire("bald", pool, 5, seeded(1)).tolist() == expected
    certain = Pool(pool.logits, torch.zeros_like(pool.features), pool.labelled, pool.head)
    assert acquire("bald", certain, 3, seeded()).tolist() == [0, 1, 2]  # dropout changes nothing: all tied


def test_typiclust_asks_for_the_middle_of_clusters_without_labels() -> None:
    centres = torch.eye(5)[:3] * 10
    g = seeded()
    noise = [0.1 * torch.randn(n, 5, generator=g) for n in (30, 20, 10)]
    z = torch.cat([c + e for c, e in zip(centres, noise)])
    pool = Pool(torch.zeros(60, 2), z, centres[:1].clone(), nn.Linear(5, 2))
    rows = acquire("typiclust", pool, 2, seeded()).tolist()
    assert 30 <= rows[0] < 50 <= rows[1] < 60  # the labelled cluster is left out, the larger of the others first
    middle = torch.nn.functional.normalize(z[30:50], dim=1)
    spread = torch.cdist(middle, middle).topk(20, largest=False).values.mean(1)
    assert rows[0] - 30 == int(spread.argmin())


def test_dial_asks_for_what_is_learned_late() -> None:
    pool = make_pool()
    n = len(pool.logits)
    trail = torch.randn(4, n, pool.logits.shape[1], generator=seeded())
    p = trail.softmax(2).double().numpy()
    pairs = [np.abs(p[i] - p[j]).sum(axis=1) / 2 for i in range(4) for j in range(i)]
    expected = np.argsort(-np.mean(pairs, axis=0), kind="stable")[:5].tolist()
    assert acquire("dial", dataclasses.replace(pool, trail=trail), 5, seeded()).tolist() == expected
    # Sure at once, unsure all the time, or sure of another answer only at the end: the last is asked for.
    ways = {"early": (4.0, 4.0, 4.0), "never": (0.1, 0.0, 0.1), "late": (4.0, 4.0, -4.0)}
    odds = torch.tensor(list(ways.values())).T
    three = Pool(torch.zeros(3, 2), torch.zeros(3, 5), torch.zeros(0, 5), pool.head, torch.stack([odds, -odds], dim=2))
    assert acquire("dial", three, 1, seeded()).tolist() == [2]
    with pytest.raises(CamlError, match="dial"):
        acquire("dial", pool, 1, seeded())


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_before_anything_is_labelled(name: str) -> None:
    pool = make_pool(m=0)
    assert pool.labelled.shape == (0, 5)
    rows = acquire(name, pool, 4, seeded()).tolist()
    assert len(set(rows)) == 4
    if name == "core_set":
        assert rows[0] == 0
        assert rows[1] == int((pool.features - pool.features[0]).norm(dim=1).argmax())


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_arrays_of_another_float_are_as_good(name: str) -> None:
    pool = make_pool()
    arrays: list[Any] = [getattr(pool, part).double().numpy() for part in ("logits", "features", "labelled")]
    expected = acquire(name, pool, 9, seeded(2)).tolist()
    assert acquire(name, Pool(arrays[0], arrays[1], arrays[2], pool.head), 9, seeded(2)).tolist() == expected


def test_core_set_far_from_the_origin() -> None:
    """Where squared norms are a million times the squared distances, the same rows are the farthest."""
    pool = make_pool(n=200)
    away = Pool(pool.logits, pool.features + 1000, pool.labelled + 1000, pool.head)
    exact = Pool(pool.logits, away.features - 1000, away.labelled - 1000, pool.head)  # as rounded by the move
    assert acquire("core_set", away, 30, seeded()).tolist() == acquire("core_set", exact, 30, seeded()).tolist()


def test_badge_draws_no_row_twice_at_the_end_of_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest number that can be drawn lands on the last row with any weight, not on one that was chosen."""
    pool = make_pool()
    last = Pool(pool.logits, pool.features.clone(), pool.labelled, pool.head)
    last.features[-1] *= 100  # the longest gradient, so the first choice
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.ones((), dtype=torch.float64))
    rows = acquire("badge", last, 6, seeded()).tolist()
    assert rows[0] == 39
    assert len(set(rows)) == 6


def test_typiclust_takes_a_large_cluster_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    g = seeded()
    pool = Pool(
        torch.zeros(9000, 2),
        torch.ones(9000, 4) + 0.1 * torch.randn(9000, 4, generator=g),
        torch.zeros(0, 4),
        nn.Linear(4, 2),
    )
    seen, real = [], torch.cdist

    def cdist(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a) * len(b))
        return real(a, b)

    monkeypatch.setattr(torch, "cdist", cdist)
    (row,) = acquire("typiclust", pool, 1, seeded()).tolist()
    assert len(seen) > 4
    assert max(seen) <= 2**24
    z = torch.nn.functional.normalize(pool.features, dim=1)
    mean = torch.cat([real(part, z).topk(21, largest=False).values.mean(1) for part in z.split(1000)])
    assert float(mean[row]) == pytest.approx(float(mean.min()), rel=1e-3)


@pytest.mark.parametrize("name", ACQUISITIONS)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 40), copies=st.booleans(), seed=st.integers(0, 99))
def test_any_pool_gives_k_different_rows_twice_the_same(name: str, n: int, k: int, copies: bool, seed: int) -> None:
    pool = make_pool(n, seed=seed)
    if copies:  # every row the same: all scores tied
        same = {"logits": pool.logits[:1].expand(n, -1), "features": pool.features[:1].expand(n, -1)}
        pool = Pool(**same, labelled=pool.labelled, head=pool.head)
    k = min(k, n)
    rows, again = (acquire(name, pool, k, seeded(seed)).tolist() for _ in range(2))
    assert rows == again
    assert len(set(rows)) == k
    assert 0 <= min(rows) <= max(rows) < n
    if copies and name in ("least_confidence", "margin", "entropy"):
        assert rows == list(range(k))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "guess"}, "acquisition 'guess'"),
        ({"k": 41}, "a batch of 41 from a pool of 40"),
        ({"k": 0}, "a batch of 0 from a pool of 40"),
        ({"bad": "logits"}, "NaN or infinity"),
        ({"bad": "features", "name": "badge"}, "NaN or infinity"),
        ({"bad": "labelled", "name": "core_set"}, "NaN or infinity"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    pool = make_pool()
    if "bad" in change:
        getattr(pool, change["bad"])[3, 0] = math.nan
    with pytest.raises(CamlError, match=message):
        acquire(change.get("name", "margin"), pool, change.get("k", 3), seeded())
