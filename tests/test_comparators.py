"""Comparators on features in which their idea can be seen, and validation groups that nobody labelled."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_heads import accuracy, features

from caml_core.comparators import COMPARATORS, crt, evals, leia, neurontune, reweight, self_head
from caml_core.device import stream_seed
from caml_core.environments import environments, regrouped
from caml_core.errors import CamlError
from caml_core.features import standardise
from caml_core.groups import GroupDataset
from caml_core.heads import balanced_head
from caml_core.last_layer import Head, descend, erm_head, halves, l1_logistic
from caml_core.metrics import group_metrics
from caml_core.runs.settings import KINDS, Frozen

Splits = tuple[GroupDataset, ...]
SHORT: dict[str, dict[str, Any]] = {
    "leia": {"ranks": (1, 16), "gammas": (5,), "steps": (200,)},
    "self": {"early": (1,), "sizes": (40, 100)},
    "evals": {"sizes": (12, 50), "c_grid": (0.1,)},
    "neurontune": {"thresholds": (0.5,)},
}
ATTRIBUTE = [2, 3]  # columns of the toy that show the attribute; 0 and 1 show the label


@pytest.fixture(scope="module")
def splits() -> Splits:
    return standardise(features(4000, 0.95, 0), features(400, 0.5, 1), features(2000, 0.5, 2))


@pytest.fixture(scope="module")
def erm(splits: Splits) -> Head:
    return erm_head(*splits[:2])


@pytest.fixture(scope="module")
def trained(splits: Splits) -> dict[str, Head]:
    return {name: short(name, *splits[:2]) for name in COMPARATORS}


def short(name: str, train: GroupDataset, val: GroupDataset, **more: Any) -> Head:
    return COMPARATORS[name](train, val, **SHORT.get(name, {}), **more)


def with_attributes(split: GroupDataset, a: Any) -> GroupDataset:
    names: dict[str, Any] = {"class_names": split.class_names, "attribute_names": split.attribute_names}
    return GroupDataset(split.x, split.y, a, **names)


def biased(n: int, seed: int) -> GroupDataset:
    """A validation split as biased as a training split, on the scale of the toy's."""
    return standardise(features(4000, 0.95, 0), features(n, 0.9, seed))[1]


def test_errors_stand_in_for_groups(splits: Splits, trained: dict[str, Head], erm: Head) -> None:
    *_, test = splits
    base = accuracy(erm, test)
    assert base < 45, "the toy's shortcut works on ERM"
    for name in ("leia", "self", "evals", "neurontune"):
        assert accuracy(trained[name], test) > base + 20, name
    even = descend(splits[0], splits[1], torch.full((4000,), 1 / 4000).to)
    for name, same in (("crt", erm), ("reweight", even)):  # the classes are balanced already
        assert accuracy(trained[name], test) == pytest.approx(accuracy(same, test), abs=5), name
        assert accuracy(short(name, *splits[:2], by="group"), test) > accuracy(same, test) + 25, name


@pytest.mark.parametrize("name", COMPARATORS)
def test_the_same_seed_gives_the_same_bits(name: str, splits: Splits, trained: dict[str, Head]) -> None:
    torch.rand(7)  # the caller's random state has no say
    again = short(name, *splits[:2])
    assert torch.equal(again.weight, trained[name].weight)
    assert torch.equal(again.bias, trained[name].bias)
    assert again.chosen == trained[name].chosen
    if "seed" in inspect.signature(COMPARATORS[name]).parameters and name != "neurontune":  # the same features again
        assert not torch.equal(short(name, *splits[:2], seed=1).weight, again.weight)


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("how", ["inferred", "classes"])
def test_without_group_labels_none_is_read(name: str, how: Any, splits: Splits, erm: Head) -> None:
    """Scrambled attributes of both splits change nothing."""
    train, val, _ = splits
    scrambled = [with_attributes(s, torch.randperm(len(s)) % 2) for s in (train, val)]
    heads = [short(name, t, regrouped(v, erm, how)) for t, v in ((train, val), scrambled)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].chosen == heads[1].chosen


@pytest.mark.parametrize("name", COMPARATORS)
def test_features_that_cannot_be_used(name: str, splits: Splits) -> None:
    train, val, _ = splits
    broken = val.x.clone()
    broken[5, 3] = float("nan")
    with pytest.raises(CamlError, match=r"features .*finite: False"):
        COMPARATORS[name](train, val.with_x(broken))
    with pytest.raises(CamlError, match="select"):
        COMPARATORS[name](train, val, select="test")


def test_the_command_line_knows_them() -> None:
    assert all(issubclass(KINDS[name], Frozen) for name in COMPARATORS)


# --- environments ----------------------------------------------------------------------------------------------------


def test_environments_are_the_maximum_of_eiil() -> None:
    """No way to part the examples in two breaks the invariance of the reference more; all of them are tried."""
    g = torch.Generator().manual_seed(0)
    logits, y = 2 * torch.randn(9, 3, generator=g), torch.arange(9) % 3
    scale = torch.ones(9, requires_grad=True)
    slopes = torch.autograd.grad(F.cross_entropy(logits * scale[:, None], y, reduction="sum"), scale)[0].double()

    def broken(q: torch.Tensor) -> float:
        return float((q * slopes).sum() ** 2 + ((1 - q) * slopes).sum() ** 2)

    found = environments(logits, y)
    assert 0 < found.sum() < 9
    every = (torch.tensor(q, dtype=torch.float64) for q in itertools.product((0, 1), repeat=9))
    assert broken(found.double()) == pytest.approx(max(map(broken, every)))
    two = torch.randn(50, 2, generator=g)
    assert torch.equal(environments(two, y[:1].expand(50)), two.argmax(dim=1) != 0), "the errors of two classes"


def test_other_groups_of_a_validation_split(splits: Splits, erm: Head) -> None:
    _, val, _ = splits
    right = erm.logits(val.x).argmax(dim=1) == val.y
    other = descend(val, val, torch.full((len(val),), 1 / len(val)).to, epochs=3)
    answers = other.logits(val.x).argmax(dim=1) == val.y
    parts = {"classes": [val.y == c for c in (0, 1)]}
    parts["inferred"] = [(val.y == c) & (right == r) for c in (0, 1) for r in (True, False)]
    for how, rows in parts.items():
        worst = min(100 * float(answers[r].double().mean()) for r in rows)
        seen = group_metrics(other.logits(val.x), regrouped(val, erm, how))  # type: ignore[arg-type]
        assert seen["worst_group"]["value"] == pytest.approx(worst)
        assert seen["minority"]["value"] is None, "nobody said which is the minority"


# --- one by one ------------------------------------------------------------------------------------------------------


def test_reweight_lifts_a_rare_class(splits: Splits) -> None:
    train, val, test = splits
    assert torch.equal(reweight(train, val, by="group").weight, balanced_head(train, val).weight)
    rare = train.subset(torch.cat([torch.where(train.y == 0)[0], torch.where(train.y == 1)[0][::20]]))
    even = descend(rare, val, torch.full((len(rare),), 1 / len(rare)).to, select="last")
    of_classes = regrouped(test, even, "classes")
    for method, plain in ((reweight, even), (crt, erm_head(rare, val, select="last"))):
        assert accuracy(method(rare, val, select="last"), of_classes) > accuracy(plain, of_classes) + 15, method


def test_leia_moves_the_directions_in_which_errors_spread(splits: Splits, erm: Head) -> None:
    train, val, test = splits
    head = leia(train, val, ranks=(3,), gammas=(5,), steps=(200,), select="last")
    p = erm.logits(train.x).double().softmax(dim=1).gather(1, train.y[:, None])[:, 0]
    covariance = np.cov(train.x.double().numpy().T, aweights=np.exp(5 * (1 - p.numpy())), ddof=0)
    top = np.linalg.eigh(covariance).eigenvectors[:, -3:]
    moved = (head.weight - erm.weight).double().numpy()
    np.testing.assert_allclose(moved @ top @ top.T, moved, atol=1e-5)
    assert np.linalg.matrix_rank(moved, tol=1e-4) == 1, "of two classes only the difference matters"
    assert torch.equal(head.bias, erm.bias)
    # Errors weighted up are what helps: with even weights it carries on the training of the ERM head.
    flat = leia(train, val, ranks=(16,), gammas=(0.0,), steps=(200,), select="last")
    full = leia(train, val, ranks=(16,), gammas=(5,), steps=(200,), select="last")
    assert accuracy(full, test) > accuracy(flat, test) + 15
    assert leia(train, val, ranks=(1, 16), gammas=(0.0, 5)).chosen["gamma"] == 5, "chosen on the validation split"


def test_self_trains_where_an_early_head_differs(splits: Splits) -> None:
    """On a biased split the two differ on twice the share of the minority, five epochs on."""
    train, val = splits[0], biased(1000, 5)
    used, held = (val.subset(rows) for rows in halves(val.y, _generator()))
    erm = erm_head(train, held)
    early = descend(train, held, torch.full((len(train),), 1 / len(train)).to, epochs=5, select="last")
    p, q = (head.logits(used.x).double().softmax(dim=1).numpy() for head in (erm, early))
    apart = (p * np.log(p / q)).sum(axis=1)
    part = used.subset(np.sort(np.argsort(-apart, kind="stable")[:40]))
    assert part.is_minority.double().mean() > 2 * used.is_minority.double().mean()
    weights = 1 / torch.bincount(part.y)[part.y].double()
    expected = descend(part, held, (weights / weights.sum()).to, start=erm)
    head = self_head(train, val, early=(5,), sizes=(40,))
    torch.testing.assert_close(head.weight, expected.weight)
    assert (head.chosen["early"], head.chosen["size"]) == (5, 40)
    assert self_head(train, val, early=(5,), sizes=(10_000,)).chosen["size"] == len(used), "no more than there are"


def test_evals_balances_groups_by_the_loss(splits: Splits) -> None:
    train, _, test = splits
    val = biased(600, 6)
    used, held = (val.subset(rows) for rows in halves(val.y, _generator()))
    erm = erm_head(train, held)
    losses = F.cross_entropy(erm.logits(used.x).double(), used.y, reduction="none").numpy()
    rows: list[int] = []
    for c in (0, 1):
        order = sorted((i for i in range(len(used)) if used.y[i] == c), key=lambda i: losses[i])
        rows += [*order[:12], *order[-12:]]
    part = used.subset(sorted(rows))
    assert used.is_minority.double().mean() < 0.15 < 0.3 < part.is_minority.double().mean()
    head = evals(train, val, sizes=(12,), c_grid=(0.3,))
    assert torch.equal(head.weight, l1_logistic(part, 0.3).weight)
    assert accuracy(head, test) > accuracy(erm, test) + 10
    assert accuracy(head, test) > accuracy(l1_logistic(used, 0.3), test) + 10, "all of the biased split does less"
    assert evals(train, val, sizes=(5, 10_000)).chosen["size"] in (5, 150), "no more than half a class"


def test_neurontune_mutes_the_attribute(splits: Splits, erm: Head) -> None:
    train, val, test = splits
    head = neurontune(train, val, thresholds=(0.5,))
    assert torch.where((head.weight == 0).all(dim=0))[0].tolist() == ATTRIBUTE
    assert (head.chosen["above"], head.chosen["muted"]) == ("0.5 in any class", 2)
    without = neurontune(train, val, thresholds=(100.0,))
    assert (without.weight != 0).all(dim=0)[ATTRIBUTE].all(), "features of noise alone are high in every class"
    assert accuracy(head, test) > accuracy(without, test) + 20
    well = erm.logits(val.x).argmax(dim=1) == val.y
    with pytest.raises(CamlError, match="0 wrong"):
        neurontune(train, val.subset(well | (val.y == 0)))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(0, 0))
