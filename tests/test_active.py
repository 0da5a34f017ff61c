"""The active-learning loop: what a round does, what methods share, that a killed run ends the same."""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import REAL_DATA, killed_at_random, require, toy_split

from caml_core import round as one_round
from caml_core.acquisition import ACQUISITIONS, BY_TRAINING
from caml_core.active import run_active
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict
from caml_core.groups import GroupDataset
from caml_core.loader import odds_of
from caml_core.networks import Backbone, backbone
from caml_core.round import METHODS, Acquisition, Method, Plan, draws, train_round
from caml_core.store import hash_state

CPU = torch.device("cpu")
SMALL = Plan(start=24, query=6, rounds=2, epochs=2, batch_size=8, lr=3e-3, weight_decay=0.0, alpha=0.1)


def network() -> Backbone:
    return backbone("small_cnn", 2)


def run(plan: Plan = SMALL, pool: GroupDataset | None = None, **options: Any) -> list[dict[str, Any]]:
    pool = toy_split(96) if pool is None else pool
    return run_active(network, pool, toy_split(40, 1), toy_split(40, 2), plan, progress=False, **options)


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_its_rounds(method: Method) -> None:
    records = run(dataclasses.replace(SMALL, method=method))
    if method == "erm_all":
        assert [r["labels"] for r in records] == [96]
        return
    assert [r["labels"] for r in records] == [24, 30, 36]
    asked = [row for r in records for row in r["queried"]]
    assert len(set(asked)) == len(asked) == 12
    pool = toy_split(96)
    for r in records[1:]:
        share = 100 * float(pool.is_minority[r["queried"]].double().mean())
        assert r["batch_minority"] == pytest.approx(share)
        assert 0 <= r["fit_queried"] <= 100
        assert r["metrics"]["average"]["n"] == 40
    assert untimed(records) == untimed(run(dataclasses.replace(SMALL, method=method)))


def test_methods_differ_only_in_the_gradient() -> None:
    """On the same labels: alpha 0 makes CAML up-weighting, one round makes it MLDG, and otherwise all differ."""
    queries = [r["queried"] for r in run(dataclasses.replace(SMALL, method="append"))[1:]]
    found: dict[str, str] = {}

    def weights(name: str, **change: Any) -> str:
        states: list[str] = []
        rounds = change.get("rounds", 2)
        run(
            dataclasses.replace(SMALL, **change),
            queries=queries[:rounds],
            first_round=rounds,
            on_round=lambda _, net, __: states.append(hash_state(net.state_dict())),
        )
        found[name] = states[0]
        return states[0]

    assert weights("append", method="append") != weights("upweight", method="upweight")
    assert weights("caml alpha 0", method="caml", alpha=0.0) == found["upweight"]
    assert weights("caml one round", method="caml", rounds=1) == weights("mldg one round", method="mldg", rounds=1)
    names: dict[str, dict[str, Any]] = {
        "caml": {},
        "mldg": {"method": "mldg"},
        "exact": {"order": "exact"},
        "two": {"inner_steps": 2},
    }
    for name, change in names.items():
        weights(name, **{"method": "caml", **change})
    assert len({found[name] for name in ("append", "upweight", "caml", "mldg", "exact", "two")}) == 6


def theirs(net: torch.nn.Module, pool: GroupDataset, sets: list[torch.Tensor], plan: Plan, seed: int) -> list[Any]:
    """CAML as a script: a deep copy for every gradient, whose BatchNorm is thrown away. Weights after each epoch."""
    opt = torch.optim.Adam(net.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    odds, film = odds_of(pool.y[torch.cat(sets)]), []

    def gradient(at: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        copied = copy.deepcopy(net)
        with torch.no_grad():
            for parameter, value in zip(copied.parameters(), at):
                parameter.copy_(value)
        loss = torch.nn.functional.cross_entropy(copied(x), y)
        return list(torch.autograd.grad(loss, list(copied.parameters())))

    for epoch in range(plan.epochs):
        net.train()
        generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
        for _, x, y, tasks in draws(pool, sets, odds, plan, generator, CPU, None):
            theta = [parameter.detach().clone() for parameter in net.parameters()]
            bias = [torch.zeros_like(part) for part in theta]
            for t, (known, asked) in enumerate(tasks):
                u = [g + c / max(t, 1) for g, c in zip(gradient(theta, *known), bias)]
                moved = [part - plan.alpha * step for part, step in zip(theta, u)]
                bias = [c + g for c, g in zip(bias, gradient(moved, *asked))]
            opt.zero_grad()
            torch.nn.functional.cross_entropy(net(x).float(), y).backward()  # in float32 in ours, too
            for parameter, c in zip(net.parameters(), bias):
                assert parameter.grad is not None
                parameter.grad += c / len(tasks)
            torch.nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
            opt.step()
        film.append(copy.deepcopy(net.state_dict()))
    return film


def test_caml_is_its_authors_loop() -> None:
    """Several epochs in float64, with batches as their loaders serve them, and the first of the best epochs kept."""
    pool, val = (s.with_x(s.x.double() / 255) for s in (toy_split(96), toy_split(40, 1)))
    sets = [torch.arange(20), torch.arange(20, 30), torch.arange(30, 41)]
    changed: dict[str, Any] = {"epochs": 4, "weight_decay": 1e-2, "any_epoch": True, "short_batches": True}
    plan = dataclasses.replace(SMALL, method="caml", **changed)
    ours, scripted = (network().double() for _ in range(2))
    done = train_round(ours, pool, sets, val, plan, seed=5)
    film = theirs(scripted, pool, sets, plan, 5)
    scores = [epoch["val"]["minority"]["value"] for epoch in done.history]
    assert done.best_epoch == 1 + scores.index(max(scores))
    for name, value in ours.state_dict().items():
        assert float((value - film[done.best_epoch - 1][name]).abs().max()) < 1e-9, name


def test_batches_are_as_short_as_their_loaders_make_them() -> None:
    pool, sets = toy_split(200), [torch.arange(70), torch.arange(70, 90)]
    plan = dataclasses.replace(SMALL, method="caml", batch_size=16)
    short = [(16, 16, 16), (16, 16, 4), (16, 16, 16), (16, 16, 4), (16, 6, 16), (10, 16, 4)]
    for short_batches, expected in ((True, short), (False, [(16, 16, 16)] * 6)):
        plan = dataclasses.replace(plan, short_batches=short_batches)
        steps = draws(pool, sets, odds_of(pool.y[:90]), plan, torch.Generator().manual_seed(0), CPU, None)
        assert [(len(y), len(known[1]), len(asked[1])) for _, _, y, [(known, asked)] in steps] == expected


def test_rare_labels_are_as_likely_as_common_ones() -> None:
    pool = toy_split(96)
    few = torch.cat([torch.where(pool.y == 0)[0], torch.where(pool.y == 1)[0][:4]])
    odds = odds_of(pool.y[few])
    assert float(odds[pool.y[few] == 0].sum()) == pytest.approx(float(odds[pool.y[few] == 1].sum()))


def test_group_dro_moves_weight_to_the_worst_group() -> None:
    weights = torch.full((4,), 0.25)
    losses, group = torch.tensor([0.1, 0.1, 5.0, 1.0]), torch.tensor([0, 0, 2, 3])
    value = one_round._dro(losses, group, weights)
    raw = torch.tensor([1.0, 1.0, 1.0, 1.0]) * torch.exp(one_round.DRO_STEP * torch.tensor([0.1, 0.0, 5.0, 1.0]))
    assert torch.allclose(weights, raw / raw.sum())
    assert float(value) == pytest.approx(float(weights[0] * 0.1 + weights[2] * 5 + weights[3]))


def test_jtt_draws_errors_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, rows = toy_split(96), torch.arange(40)
    seen: list[torch.Tensor] = []

    def watched(pool: GroupDataset, sets: Sequence[torch.Tensor], odds: torch.Tensor, *how: Any) -> Any:
        seen.append(odds)
        return draws(pool, sets, odds, *how)

    monkeypatch.setattr(one_round, "draws", watched)
    plan = dataclasses.replace(SMALL, method="jtt", epochs=4)
    train_round(network(), pool, [rows], toy_split(40, 1), plan)
    assert len(seen) == 1 + 4, "a first training of one epoch"
    times = seen[-1] / odds_of(pool.y[rows])
    assert set(times.tolist()) == {1.0, one_round.JTT_UPWEIGHT}


def test_the_same_labels_can_be_bought_again() -> None:
    bought = run(dataclasses.replace(SMALL, method="append"))
    queries = [r["queried"] for r in bought[1:]]
    again = run(dataclasses.replace(SMALL, method="append"), queries=queries)
    assert untimed(again) == untimed(bought)
    (last,) = run(dataclasses.replace(SMALL, method="append"), queries=queries, first_round=2)
    assert untimed([last]) == untimed(bought[2:])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"alpha": -1.0}, {}, "alpha=-1.0"),
        ({"alpha": float("nan")}, {}, "alpha=nan"),
        ({"lr": 0.0}, {}, "lr=0.0"),
        ({"method": "magic"}, {}, "method='magic'"),
        ({"acquisition": "magic"}, {}, "acquisition='magic'"),
        ({"order": "second"}, {}, "order='second'"),
        ({"query": 0}, {}, "query=0"),
        ({"query": 0, "lr": -1.0}, {}, "query=0, lr=-1.0"),
        ({"epochs": 2.5}, {}, "epochs=2.5"),
        ({"rounds": -1}, {}, "rounds=-1"),
        ({"query": 60}, {}, r"24 \+ 2 x 60 labels from a pool of 96"),
        ({"start": 1}, {}, "no example of class"),
        ({}, {"first_round": 1}, "cannot be bought again"),
        ({}, {"queries": [[1]]}, "cannot be bought again in 2 rounds"),
        ({}, {"queries": [[1], []]}, "cannot be bought again"),
        ({}, {"queries": [[1], [1]]}, "cannot be bought again"),
        ({}, {"queries": [[1], [96]]}, "cannot be bought again"),
    ],
)
def test_bad_input(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(CamlError, match=message):
        run(dataclasses.replace(SMALL, **change), **options)


def test_scoring_copies_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of photographs may be larger than the memory that is left beside it."""
    pool = toy_split(96)
    before = untimed(run(dataclasses.replace(SMALL, method="jtt"), pool=pool))
    monkeypatch.setattr(GroupDataset, "subset", lambda self, rows: pytest.fail("a copy of the images"))
    assert untimed(run(dataclasses.replace(SMALL, method="jtt"), pool=pool)) == before


def test_an_empty_set_and_a_diverging_run_are_errors() -> None:
    pool = toy_split(96)
    with pytest.raises(CamlError, match="an empty set of labels"):
        train_round(network(), pool, [torch.arange(30), torch.arange(0)], toy_split(40, 1), SMALL)
    broken = pool.with_x(pool.x.float() * float("nan"))
    with pytest.raises(CamlError, match="finite"):
        run(pool=broken)


def test_resume_refuses_another_configuration(tmp_path: Path) -> None:
    run(work=tmp_path)
    for change in ({"alpha": 0.2}, {"method": "append"}, {"epochs": 3}):
        with pytest.raises(CamlError, match="belongs to another run"):
            run(dataclasses.replace(SMALL, **change), work=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CamlError, match="belongs to another run"):
        run(work=tmp_path, seed=1)


def whole_run(method: Method, work: Path, out: Path) -> None:
    torch.set_num_threads(1)
    plan = dataclasses.replace(SMALL, method=method, epochs=4, acquisition="badge")
    out.write_text(json.dumps(untimed(run(plan, work=work))), "utf-8")


@pytest.mark.parametrize("method", ["caml", "jtt"])
def test_killed_at_random_points_it_ends_the_same(tmp_path: Path, method: Method) -> None:
    job = functools.partial(whole_run, method)
    assert killed_at_random(job, tmp_path / "whole", tmp_path / "a.json", kills=0) == 0
    assert killed_at_random(job, tmp_path / "killed", tmp_path / "b.json", kills=8) >= 4
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "efficientnet_lite0"])
def test_other_networks_run_the_loop(name: str) -> None:
    """From scratch, and pretrained weights that are retrained from the same start in every round."""
    records = run_active(
        lambda: backbone(name, 2, pretrained=name == "efficientnet_lite0"),
        toy_split(48),
        toy_split(16, 1),
        toy_split(16, 2),
        dataclasses.replace(SMALL, start=16, rounds=1, epochs=1, acquisition="core_set"),
        progress=False,
    )
    assert [r["labels"] for r in records] == [16, 22]


def test_text_features_run_the_loop() -> None:
    """Real sentences (`bias_madlibs_77k.csv`), hashed words as features: CAML learns from them."""
    require(REAL_DATA, "the sentences of CAML_DATA are needed")
    file = Path(REAL_DATA or "") / "conversationai/unintended-ml-bias-analysis/bias_madlibs_77k.csv"
    with open(file, encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))[::40]
    x = torch.zeros(len(rows), 256)
    for i, row in enumerate(rows):
        for word in row["Text"].lower().split():
            x[i, int(hashlib.md5(word.strip(".,!").encode()).hexdigest(), 16) % 256] = 1
    y = torch.tensor([row["Label"] == "BAD" for row in rows]).long()
    a = torch.tensor(["gay" in row["Text"].lower() for row in rows]).long()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    whole = GroupDataset(x, y, a, class_names=("fine", "bad"), attribute_names=("other", "gay"))
    pool, val, test = (whole.subset(part) for part in order.tensor_split((1200, 1500)))
    plan = Plan(start=200, query=50, rounds=2, epochs=8, lr=1e-3, weight_decay=0.0, alpha=0.1, select="average")
    records = run_active(lambda: backbone("mlp", 2, n_inputs=256), pool, val, test, plan, progress=False)
    assert records[-1]["metrics"]["average"]["value"] > 75


def test_acquisitions_of_a_plan_are_those_there_are() -> None:
    assert get_args(Acquisition) == (*ACQUISITIONS, *BY_TRAINING)


def test_dial_asks_by_the_training_and_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    plan = dataclasses.replace(SMALL, acquisition="dial", epochs=7)
    splits = toy_split(96), toy_split(40, 1), toy_split(40, 2)
    trails = []

    def queried(work: Path | None) -> list[list[int]]:
        return [r["queried"] for r in run_active(network, *splits, plan, work=work, progress=False)]

    rows = queried(None)
    assert queried(tmp_path) == rows
    assert queried(tmp_path) == rows, "every round is read from its checkpoint, predictions on the way too"
    sets = [torch.arange(40)]
    for _ in range(2):
        trails.append(torch.zeros(3, 96, 2))
        run = train_round(network(), splits[0], sets, splits[1], dataclasses.replace(plan, epochs=7), trail=trails[-1])
    assert len(run.history) == 7
    assert torch.equal(*trails)
    assert len({tuple(part.flatten().tolist()) for part in trails[0]}) == 3, "three different moments"
    last = network()
    train_round(last, splits[0], sets, splits[1], dataclasses.replace(plan, select="last"))
    assert torch.equal(trails[0][2], predict(last, splits[0], CPU)), "the last is the end"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stays(method: Method) -> None:
    def frozen() -> Backbone:
        made = network()
        made.body.requires_grad_(False)
        return made

    after: dict[str, torch.Tensor] = {}
    plan = dataclasses.replace(SMALL, method=method, rounds=1, weight_decay=0.1, select="last")
    run_active(
        frozen, toy_split(96), toy_split(40, 1), toy_split(40, 2), plan, progress=False,
        on_round=lambda t, net, record: after.update(net.state_dict()),
    )  # fmt: skip
    moved = {name for name, p in frozen().named_parameters() if not torch.equal(p, after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_splits_that_choose_nothing_are_refused_before_training() -> None:
    even = toy_split(40, 1)
    even.majority = torch.ones_like(even.majority)
    splits = {"minority": (even, even), "0 validation": (even.subset([]), even), "0 test": (even, even.subset([]))}
    for message, (val, test) in splits.items():
        plan = dataclasses.replace(SMALL, select="minority" if message == "minority" else "average")
        with pytest.raises(CamlError, match=message):
            run_active(lambda: pytest.fail("a network was made"), toy_split(96), val, test, plan)
