"""Seeds that train side by side find what they find alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caml_core import fit
from caml_core.__main__ import main
from caml_core.active import Plan, run_active
from caml_core.backbones import backbone
from caml_core.errors import CamlError
from caml_core.loader import random_shift
from caml_core.records import read_records
from caml_core.stacked import STACKABLE, Stack, run_stacked
from tests.test_active import toy_split, untimed

CPU = torch.device("cpu")
SMALL = Plan("caml", start=24, query=8, rounds=2, epochs=3, batch_size=8, lr=1e-3, alpha=0.05, clip=0.5)


def arguments(seed: int, **more: Any) -> dict[str, Any]:
    splits = {
        name: toy_split(n, 10 * seed + i) for i, (name, n) in enumerate((("pool", 96), ("val", 40), ("test", 40)))
    }
    make = lambda: backbone("small_cnn", 2, seed=seed)  # noqa: E731
    return {"make_network": make, **splits, "seed": seed, "device": CPU, "augment": random_shift, **more}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-2, atol=1e-3) for name in a)


@pytest.mark.parametrize("method", STACKABLE)
def test_each_seed_finds_what_it_finds_alone(method: str) -> None:
    plan = dataclasses.replace(SMALL, method=method)
    weights: dict[str, list[dict[str, Tensor]]] = {"alone": [], "stacked": []}

    def keep(kind: str) -> dict[str, Any]:
        note = weights[kind]
        return {"on_round": lambda _, net, __: note.append({k: v.clone() for k, v in net.state_dict().items()})}

    seeds = range(3)
    alone = [run_active(plan=plan, progress=False, **arguments(seed, **keep("alone"))) for seed in seeds]
    stacked = run_stacked([arguments(seed, **keep("stacked")) for seed in seeds], plan, progress=False)
    assert [[r["queried"] for r in records] for records in stacked] == [[r["queried"] for r in one] for one in alone]
    assert [r["selection"]["epoch"] for one in stacked for r in one] == [
        r["selection"]["epoch"] for one in alone for r in one
    ]
    rounds = 1 if method == "erm_all" else 3
    by_seed = [weights["alone"][s * rounds : (s + 1) * rounds] for s in seeds]
    for i, found in enumerate(weights["stacked"]):  # round by round, in each the seeds in their order
        assert close(found, by_seed[i % 3][i // 3])
        assert not close(found, by_seed[(i + 1) % 3][i // 3])


def test_a_norm_is_bounded_for_each_network_alone() -> None:
    networks = [backbone("small_cnn", 2, seed=seed) for seed in range(3)]
    single = [backbone("small_cnn", 2, seed=seed) for seed in range(3)]
    stack, x, y = Stack(networks), torch.rand(3, 8, 3, 16, 16), torch.randint(0, 2, (3, 8))
    stack.losses((x, y), CPU).sum().backward()
    stack.clip(0.2)
    norms = []
    for s, network in enumerate(single):
        torch.nn.functional.cross_entropy(network(x[s]), y[s]).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 0.2)))
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            gradient = stack.weights[name].grad
            assert gradient is not None
            assert torch.allclose(gradient[s], parameter.grad, atol=1e-5), name
    assert max(norms) > 0.2


def test_networks_are_slices_of_the_stack() -> None:
    networks = [backbone("small_cnn", 2, seed=seed) for seed in range(2)]
    stack = Stack(networks)
    with torch.no_grad():
        for weight in stack.weights.values():
            weight[1] += 1
    before = backbone("small_cnn", 2, seed=1).state_dict()
    for name, parameter in networks[1].named_parameters():
        assert torch.equal(parameter, before[name] + 1)
    networks[0].load_state_dict(before)
    assert all(torch.equal(stack.weights[name][0], before[name]) for name in stack.weights)
    stack.losses((torch.rand(2, 8, 3, 16, 16), torch.zeros(2, 8, dtype=torch.long)), CPU)
    counts = [int(v) for k, v in networks[0].state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts
    assert set(counts) == {1}, "the running averages of BatchNorm are the networks' own"


def test_a_killed_stack_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [arguments(seed) for seed in range(2)]
    peace = run_stacked(runs, SMALL, progress=False)
    saved = 0

    def dies(*rest: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 5:  # in the second round
            raise KeyboardInterrupt
        fit_save(*rest)

    fit_save = fit.save_run
    monkeypatch.setattr(fit, "save_run", dies)
    placed = [{**run, "work": tmp_path / str(run["seed"])} for run in runs]
    with pytest.raises(KeyboardInterrupt):
        run_stacked(placed, SMALL, progress=False)
    again = run_stacked(placed, SMALL, progress=False)
    assert [untimed(records) for records in again] == [untimed(records) for records in peace]
    with pytest.raises(CamlError, match="another run"):
        run_stacked(placed[:1], SMALL, progress=False)


def test_what_cannot_be_stacked_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CamlError, match="jtt with many seeds"):
        run_stacked([arguments(0), arguments(1)], dataclasses.replace(SMALL, method="jtt"))
    uneven = [arguments(seed, queries=[list(range(90, 90 + n))], first_round=1) for seed, n in ((0, 3), (1, 4))]
    with pytest.raises(CamlError, match=r"runs with \[27, 28\] labels side by side"):
        run_stacked(uneven, dataclasses.replace(SMALL, rounds=1), progress=False)
    out = tmp_path / "out.json"
    assert main(["run", "erm", "--dataset", "birdscapes", "--stack", "--out", str(out)]) == 2
    assert "erm with many seeds side by side" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_line_stacks_seeds(tmp_path: Path) -> None:
    command = [
        "run",
        "append",
        "--dataset",
        "birdscapes",
        "--seed",
        "0",
        "1",
        "--device",
        "cpu",
        "--backbone",
        "small_cnn",
    ]
    command += [f"--option={o}" for o in ("size=16", "n_train=80", "n_val=32", "n_test=40")]
    command += ["--start", "24", "--query", "8", "--rounds", "1", "--epochs", "2"]
    found = {}
    for name, more in (("alone", []), ("stacked", ["--stack"])):
        assert main([*command, *more, "--out", str(tmp_path / f"{name}.json")]) == 0
        found[name] = read_records(tmp_path / f"{name}.json")
    for alone, stacked in zip(*found.values()):
        assert stacked["seed"] == alone["seed"]
        assert stacked["rounds"][1]["queried"] == alone["rounds"][1]["queried"]
        assert stacked["metrics"]["average"] == alone["metrics"]["average"]
        assert stacked["provenance"]["stacked"] == 2
        assert "stacked" not in alone["provenance"]
    assert not (tmp_path / "stacked.json.work").exists()
