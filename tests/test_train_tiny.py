"""The recipe of the two small models: it runs to its end, a run that was stopped ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caml_core.data import birdscapes
from caml_core.errors import CamlError
from caml_core.store import hash_state, load_checkpoint
from results.studies import train_tiny


@pytest.mark.parametrize("model", ["clip", "unclip"])
def test_the_recipe_runs_and_goes_on_to_the_same_bits(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 64 scenes, six steps, a checkpoint every two; the second run is stopped in its fourth step."""
    splits = birdscapes.load(rho=0.5, n_train=64, n_val=40, n_test=40, seed=78, progress=False)
    monkeypatch.setattr(birdscapes, "load", lambda **how: splits)
    for name, value in {"STEPS": {model: 6}, "BATCH": {model: 4}, "EVERY": 2}.items():
        monkeypatch.setattr(train_tiny, name, value)
    monkeypatch.setattr(train_tiny, "judge_decoder", lambda *_: ({}, splits[0].x[0].permute(1, 2, 0).numpy()))
    monkeypatch.setattr(train_tiny, "pick_device", lambda: torch.device("cpu"))
    train_tiny.main(model, str(tmp_path / "whole"))

    stepped, step_size = [], train_tiny.step_size

    def stopped(step: int, steps: int) -> float:
        stepped.append(step)
        if stepped == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return step_size(step, steps)

    monkeypatch.setattr(train_tiny, "step_size", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_tiny.main(model, str(tmp_path / "parts"))
    assert not (tmp_path / "parts" / f"tiny_{model}.json").exists()
    train_tiny.main(model, str(tmp_path / "parts"))
    assert stepped[4:] == [2, 3, 4, 5]
    states = [load_checkpoint(tmp_path / folder / f"tiny_{model}.safetensors")[0] for folder in ("whole", "parts")]
    assert hash_state(states[0]) == hash_state(states[1])
    card = json.loads((tmp_path / "parts" / f"tiny_{model}.json").read_text())
    assert card["config"]["steps"] == 6
    assert card["provenance"]["command"] == f"python results/studies/train_tiny.py {model}"


def line(folder: Path, steps: int = 4, target: float = 1.0) -> dict[str, Tensor]:
    """A line fitted to one point; its averaged weights."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def loss(step: int) -> Tensor:
        value: Tensor = (network(torch.ones(1, 2)) - target).square().mean()
        return value

    opt = torch.optim.SGD(network.parameters(), lr=0.1)
    return train_tiny.train(network, loss, opt, folder / "checkpoint", {"steps": steps})[0] | {
        "last": network.weight.detach()
    }


def test_the_average_follows_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny, "step_size", lambda step, steps: 1.0)
    at = [line(tmp_path / str(steps), steps) for steps in (1, 2)]
    torch.testing.assert_close(at[0]["weight"], at[0]["last"])
    keep = (1 + 1) / (10 + 1)
    torch.testing.assert_close(at[1]["weight"], keep * at[0]["last"] + (1 - keep) * at[1]["last"])


def test_what_cannot_go_on_stops(tmp_path: Path) -> None:
    with pytest.raises(CamlError, match="nan at step 1"):
        line(tmp_path / "nan", target=float("nan"))
    line(tmp_path)
    with pytest.raises(CamlError, match="belongs to another run"):
        line(tmp_path, steps=5)


def test_the_step_size_rises_stays_and_falls() -> None:
    sizes = [train_tiny.step_size(step, 1000) for step in range(1000)]
    assert sizes[0] == 0.01
    assert sizes[99:751] == [1.0] * 652
    assert sizes[999] == pytest.approx(1 / 250)


def test_mmd_is_near_0_for_one_distribution_and_large_for_two() -> None:
    torch.manual_seed(0)
    x, same, other = torch.randn(300, 5), torch.randn(300, 5), torch.randn(300, 5) + 1
    assert abs(train_tiny.mmd2(x, same)) < 5
    assert train_tiny.mmd2(x, other) > 100
    # by the definition, pair by pair
    a, b = x[:4].double(), other[:5].double()
    width = torch.cdist(b, b).median()
    k = lambda p, q: torch.exp(-(p - q).square().sum() / (2 * width**2))  # noqa: E731
    aa = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    bb = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    ab = sum(k(p, q) for p in a for q in b) / 20
    assert train_tiny.mmd2(a, b) == pytest.approx(1000 * float(aa + bb - 2 * ab))
