"""Active HSFM on drawn features: what theory demands of it, what it repeats and refuses; and that its study resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.active_hsfm import Task, active_hsfm, batch, round_tasks
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import Settings
from caml_core.metrics import group_metrics
from results.studies import active_hsfm as study

D = 32
SHORT = Settings(support=4, steps=3, alpha=1e-2, eta=0.1, edits=2, epochs=3)
STILL = dataclasses.replace(SHORT, eta=1e-12)


def drawn(n: int, seed: int, rho: float = 0.9) -> GroupDataset:
    """Eight features say a, loudly; eight say y, more softly; the rest is noise. Labels alternate."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    x[:, :8] += 1.0 * (2 * a - 1)[:, None]
    x[:, 8:16] += 0.5 * (2 * y - 1)[:, None]
    return GroupDataset(x, y, a, class_names=("cat", "dog"), attribute_names=("sofa", "bed"))


POOL = drawn(200, 0)
SETS = [torch.arange(40), torch.arange(40, 50), torch.arange(50, 60), torch.arange(60, 70)]


def head() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(2, D, generator=g, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)


def run(tasks: list[Task], settings: Settings = SHORT, **options: Any) -> Any:
    return active_hsfm(tasks, *head(), settings, **options)


def same(left: Any, right: Any) -> None:
    for a, b in zip((left.weight, left.bias, *left.support), (right.weight, right.bias, *right.support), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# --- what theory demands ----------------------------------------------------------------------------------------------


def test_tasks_pair_a_support_of_what_was_known_with_each_batch() -> None:
    tasks = round_tasks(POOL, SETS, 4, seed=0)
    assert len(tasks) == 3
    for t, task in enumerate(tasks, start=1):
        assert task.support.shape == (1, 8, D)
        assert task.support_y.tolist() == [[0] * 4 + [1] * 4]
        assert torch.equal(task.hard[0], POOL.x[SETS[t]])
        assert torch.equal(task.hard_y[0], POOL.y[SETS[t]])
        known = POOL.x[torch.cat(SETS[:t])]
        assert all(any(torch.equal(row, z) for z in known) for row in task.support[0])
    (alone,) = round_tasks(POOL, SETS, 4, seed=0, one_hard_set=True)
    assert torch.equal(alone.hard[0], POOL.x[40:70])
    assert torch.equal(alone.support, tasks[0].support)


def test_one_hard_set_of_balanced_queries_is_hsfm_with_the_queries_for_a_validation_set() -> None:
    tasks = round_tasks(POOL, SETS, 4, seed=5, one_hard_set=True)
    films: list[tuple[Tensor, ...]] = []
    hsfm(
        POOL.subset(SETS[0]), POOL.subset(torch.cat(SETS[1:])), *head(), dataclasses.replace(SHORT, hard=15),
        seeds=[stream_seed(5, 1)], on_epoch=lambda epoch, *parts: films.append(tuple(p.clone() for p in parts[:3])),
    )  # fmt: skip
    ours, (h, w, b) = run(tasks), films[-1]
    assert len(films) == SHORT.epochs + 1
    torch.testing.assert_close(ours.support[0], h)
    torch.testing.assert_close(ours.weight, w)
    torch.testing.assert_close(ours.bias, b)
    assert not torch.allclose(h, tasks[0].support, atol=1e-2)  # something was edited


def test_one_round_is_one_hard_set_and_knows_no_bias() -> None:
    rounds = run(round_tasks(POOL, SETS[:2], 4, seed=0))
    same(rounds, run(round_tasks(POOL, SETS[:2], 4, seed=0, one_hard_set=True)))
    same(rounds, run(round_tasks(POOL, SETS[:2], 4, seed=0), cumulative=False))


def test_without_edits_the_head_is_trained_on_the_support_as_drawn() -> None:
    tasks = round_tasks(POOL, SETS, 4, seed=0)
    edited = run(tasks, STILL)
    weight, bias = (part.clone().requires_grad_() for part in head())
    step = torch.optim.Adam([weight, bias], lr=STILL.alpha)
    x, y = (torch.cat([task[i][0] for task in tasks]) for i in (0, 1))
    for _ in range(STILL.epochs * STILL.steps):
        step.zero_grad()
        F.cross_entropy(x @ weight.T + bias, y).backward()
        step.step()
    torch.testing.assert_close(edited.weight[0], weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(edited.bias[0], bias.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cumulative", [True, False])
def test_what_earlier_rounds_asked_for_moves_the_start_of_later_ones(cumulative: bool) -> None:
    """The loss of every round in the first epoch, by autograd, from the formulas of the module."""
    tasks = round_tasks(POOL, SETS, 4, seed=0)
    losses = run(tasks, STILL, cumulative=cumulative).loss[0, :, 0]
    c = [torch.zeros(2, D, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    for t, task in enumerate(tasks):
        theta = [p - cumulative * STILL.alpha * STILL.steps * q / max(t, 1) for p, q in zip(head(), c)]
        for _ in range(STILL.steps):
            theta = [p.detach().requires_grad_() for p in theta]
            loss = F.cross_entropy(task.support[0] @ theta[0].T + theta[1], task.support_y[0])
            theta = [p - STILL.alpha * q for p, q in zip(theta, torch.autograd.grad(loss, theta))]
        theta = [p.detach().requires_grad_() for p in theta]
        loss = F.cross_entropy(task.hard[0] @ theta[0].T + theta[1], task.hard_y[0])
        torch.testing.assert_close(losses[t], loss.detach(), rtol=1e-9, atol=0)
        c = [p + q for p, q in zip(c, torch.autograd.grad(loss, theta))]


def test_every_class_of_a_batch_counts_the_same() -> None:
    rows = torch.cat([torch.arange(40, 60, 2), torch.arange(61, 64, 2)])  # ten cats, two dogs
    (task,) = tasks = round_tasks(POOL, [SETS[0], rows], 4, seed=0)
    once = dataclasses.replace(STILL, epochs=1, alpha=1e-12)
    weight, bias = head()
    losses = F.cross_entropy(task.hard[0] @ weight.T + bias, task.hard_y[0], reduction="none")
    by_class = torch.stack([losses[:10].mean(), losses[10:].mean()])
    torch.testing.assert_close(run(tasks, once).loss[0, 0, 0], by_class.mean())
    only = round_tasks(POOL, [SETS[0], rows[:10]], 4, seed=0)  # and an absent class not at all
    torch.testing.assert_close(run(only, once).loss[0, 0, 0], by_class[0])


def test_runs_side_by_side_do_not_touch_each_other() -> None:
    runs = [round_tasks(POOL, SETS, 4, seed=seed) for seed in (0, 1)]
    both = run(batch(runs))
    for i, tasks in enumerate(runs):
        alone = run(tasks)
        torch.testing.assert_close(both.weight[i], alone.weight[0])
        torch.testing.assert_close(both.support[2][i], alone.support[2][0])
    assert both.loss.shape == (SHORT.epochs, 3, 2)


def test_the_same_bits_again_and_inputs_left_alone() -> None:
    tasks = round_tasks(POOL, SETS, 4, seed=0)
    before = [task.support.clone() for task in tasks]
    first, again = run(tasks), run(round_tasks(POOL, SETS, 4, seed=0))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.loss, again.loss)
    assert all(torch.equal(task.support, copy) for task, copy in zip(tasks, before))
    assert not torch.equal(first.support[0], run(round_tasks(POOL, SETS, 4, seed=1)).support[0])


def test_a_fair_batch_repairs_a_head_that_leans_on_the_shortcut() -> None:
    pool, fair, test = drawn(400, 2, 0.95), drawn(100, 3, 0.5), drawn(400, 4, 0.5)
    both = GroupDataset(
        *(torch.cat([getattr(s, k) for s in (pool, fair)]) for k in ("x", "y", "a")),
        class_names=pool.class_names, attribute_names=pool.attribute_names,
    )  # fmt: skip
    weight = torch.zeros(2, D, dtype=torch.float64)
    weight[0, :8], weight[1, :8] = -0.2, 0.2
    tasks = round_tasks(both, [torch.arange(400), torch.arange(400, 500)], 16, seed=0, one_hard_set=True)
    settings = Settings(support=16, steps=10, alpha=5e-3, eta=0.3, edits=5, epochs=10)
    edited = active_hsfm(tasks, weight, torch.zeros(2, dtype=torch.float64), settings)

    def worst(weight: Tensor, bias: Tensor) -> float:
        return group_metrics(test.x @ weight.T + bias, test)["worst_group"]["value"]

    assert worst(edited.weight[0], edited.bias[0]) > worst(weight, torch.zeros(2)) + 30


# --- what it refuses --------------------------------------------------------------------------------------------------


TWICE = [SETS[0], torch.arange(39, 45)]


@pytest.mark.parametrize("sets", [SETS[:1], [], [SETS[0], SETS[1], torch.arange(0)], TWICE])
def test_refuses_rounds_without_queries_and_rows_bought_twice(sets: list[Tensor]) -> None:
    with pytest.raises(CamlError, match="sets of"):
        round_tasks(POOL, sets, 4, seed=0)


def test_refuses_more_support_than_labels() -> None:
    with pytest.raises(CamlError, match="support"):
        round_tasks(POOL, SETS, 21, seed=0)


@pytest.mark.parametrize(
    "parts",
    [
        {"hard": torch.zeros(1, 10, D + 1)},
        {"hard": torch.full((1, 10, D), torch.nan, dtype=torch.float64)},
        {"hard_y": torch.full((1, 10), 2)},
        {"support_y": torch.zeros(1, 7, dtype=torch.long)},
        {"hard": torch.zeros(1, 10, D)},
    ],
)
def test_no_head_comes_out_of_tasks_that_do_not_fit(parts: dict[str, Tensor]) -> None:
    """PyTorch's own errors about shapes, types and labels; ours where numbers would have come out."""
    (task,) = round_tasks(POOL, SETS[:2], 4, seed=0)
    with pytest.raises((CamlError, RuntimeError, IndexError)):
        run([task._replace(**parts)])


def test_no_head_comes_out_of_one_that_does_not_fit() -> None:
    tasks = round_tasks(POOL, SETS, 4, seed=0)
    w, b = head()
    for weight, bias in ((w[:, :-1], b), (w, b[:1]), (w.expand(3, -1, -1), b), (w * torch.nan, b)):
        with pytest.raises((CamlError, RuntimeError)):
            active_hsfm(tasks, weight, bias, SHORT)


def test_refuses_to_return_what_diverged() -> None:
    tasks = round_tasks(POOL.with_x(POOL.x.float()), SETS, 4, seed=0)
    with pytest.raises(CamlError, match="diverged"):
        active_hsfm(tasks, head()[0].float(), head()[1].float(), dataclasses.replace(SHORT, alpha=1e38))


# --- the study --------------------------------------------------------------------------------------------------------


def test_the_study_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def evaluate(*unit: Any) -> dict[str, Any]:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(unit)
        return {"metrics": {}, "config": {}}

    monkeypatch.setattr(study, "FILE", tmp_path / "study.json")
    monkeypatch.setattr(study, "tune", lambda *unit: {"metrics": {}, "config": {"chosen": {}}})
    monkeypatch.setattr(study, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        study.main()
    made.insert(0, ("stopped",))
    assert study.main() == 0
    units = made[1:]
    assert len(units) == len({unit[:3] for unit in units}) == 30
    assert len(study.read_records(study.FILE)) == 36
