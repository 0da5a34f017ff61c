"""Backbones, training, features: bit-identical, resumable after a kill, refusing what does not match."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import toy_split
from torch import nn

from caml_core import backbones, device, loader, store
from caml_core.backbones import backbone
from caml_core.data.dataset import GroupDataset
from caml_core.erm import train_erm
from caml_core.errors import CamlError
from caml_core.features import extract_features, predict, standardise
from caml_core.fit import Run
from caml_core.metrics import group_metrics

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(64, 32), (48, 48), (28, 28)])
def test_small_resnet_shapes(size: tuple[int, int]) -> None:
    network = backbone("small_resnet", 3)
    x = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert network(x).shape == (2, 3)
    assert network.features(x).shape == (2, network.width)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_torchvision_resnets_from_scratch(name: str, width: int) -> None:
    network = backbone(name, 2, pretrained=False)
    assert network.features(torch.zeros(1, 3, 64, 32, dtype=torch.uint8)).shape == (1, width)


def test_backbone_is_fixed_by_its_seed() -> None:
    states = [store.hash_state(backbone("small_resnet", 2, seed=seed).state_dict()) for seed in (1, 1, 2)]
    assert states[0] == states[1] != states[2]


def test_lite0_knows_imagenet() -> None:
    """The packaged weights are really there: features of different things differ, and fresh weights give others."""
    network = backbone("efficientnet_lite0", 2).eval()
    fresh = backbone("efficientnet_lite0", 2, pretrained=False).eval()
    x = torch.zeros(2, 3, 64, 32, dtype=torch.uint8)
    x[1, :, 20:44, 8:24] = 255
    with torch.no_grad():
        z, z_fresh = network.features(x), fresh.features(x)
    assert z.shape == (2, 1280)
    assert (z[0] - z[1]).norm() > 1
    assert not torch.allclose(z, z_fresh)


def test_backbone_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CamlError, match="unknown backbone"):
        backbone("resnet19", 2)
    with pytest.raises(CamlError, match="no pretrained weights"):
        backbone("small_resnet", 2, pretrained=True)
    monkeypatch.setattr(backbones, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(backbones, "_in_hub_cache", lambda _: False)
    with pytest.raises(CamlError, match="no network"):
        backbone("resnet18", 2)
    monkeypatch.setattr(backbones, "LITE0_SHA256", "0" * 64)
    with pytest.raises(CamlError, match="wrong checksum"):
        backbone("efficientnet_lite0", 2)


def test_device_errors() -> None:
    with pytest.raises(CamlError, match="cannot be used"):
        device.pick_device("cuda:99")
    with pytest.raises(CamlError, match="cannot be used"):
        device.pick_device("gpu")


def test_seeded_gives_the_random_state_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with device.seeded(1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with device.seeded(1, 2):
        assert torch.equal(torch.rand(3), inside)
    assert len({device.stream_seed(s, e) for s in range(50) for e in range(50)}) == 2500


def test_batches_cover_balance_and_augment() -> None:
    split = toy_split(50)
    g = torch.Generator().manual_seed(0)
    seen = torch.cat([b.index for b in loader.batches(split, 16, device=CPU, generator=g)])
    assert sorted(seen.tolist()) == list(range(50))
    assert seen.tolist() != list(range(50))
    lopsided = split.subset(torch.cat([torch.where(split.y == 0)[0], torch.where(split.y == 1)[0][:3]]))
    order = torch.cat([loader.sample_order(lopsided, g, "class") for _ in range(40)])
    assert 0.45 < float(lopsided.y[order].double().mean()) < 0.55
    groups = torch.bincount(split.group[torch.cat([loader.sample_order(split, g, "group") for _ in range(40)])])
    assert groups.min() > 0.8 * groups.max()
    with pytest.raises(CamlError, match="no example of class bright"):
        loader.sample_order(split.subset(torch.where(split.y == 0)[0]), g, "class")


def test_chosen_rows_are_scored_as_a_subset_would_be() -> None:
    split, rows = toy_split(40), torch.tensor([7, 3, 30])
    network = tiny()
    expected = predict(network, split.subset(rows), CPU)
    assert torch.equal(predict(network, split, CPU, rows=rows), expected)
    seen = [batch.index.tolist() for batch in loader.batches(split, 2, device=CPU, rows=rows)]
    assert seen == [[7, 3], [30]]


def test_augmentations_move_whole_images() -> None:
    x = toy_split(12).x
    g = torch.Generator().manual_seed(0)
    flipped = loader.random_flip(x, g)
    for before, after in zip(x, flipped):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
    shifted = loader.random_shift(x, g, 2)
    assert shifted.shape == x.shape
    inner = slice(4, 12)
    for before, after in zip(x, shifted):
        moves = [before.roll((dy, dx), (1, 2)) for dy in range(-2, 3) for dx in range(-2, 3)]
        assert any(torch.equal(m[:, inner, inner], after[:, inner, inner]) for m in moves)


def tiny() -> nn.Module:
    """A small ResNet of a few thousand weights, with dropout so that random streams matter too."""
    with device.seeded(0):
        body = nn.Sequential(backbones.small_resnet_body((8, 8)), nn.Dropout(0.2))
        return backbones.Backbone(body, 8, 2).to(memory_format=torch.channels_last)


def fit(epochs: int = 4, seed: int = 0, checkpoint: Path | None = None, **kwargs) -> tuple[nn.Module, Run]:  # type: ignore[no-untyped-def]
    network = tiny()
    options = {"batch_size": 16, "lr": 3e-3, "augment": loader.random_shift, "progress": False, **kwargs}
    run = train_erm(
        network, toy_split(96), toy_split(64, 1), epochs=epochs, seed=seed, checkpoint=checkpoint, **options
    )
    return network, run


def test_training_learns_and_repeats_bit_for_bit() -> None:
    (network, run), (again, rerun), (other, _) = fit(6), fit(6), fit(6, seed=1)
    assert run.history[-1]["loss"] < 0.6 * run.history[0]["loss"]
    assert run.history[run.best_epoch - 1]["val"]["average"]["value"] > 85
    assert store.hash_state(network.state_dict()) == store.hash_state(again.state_dict())
    assert run.history == rerun.history
    assert store.hash_state(network.state_dict()) != store.hash_state(other.state_dict())


def test_the_chosen_epoch_is_what_is_kept() -> None:
    states: list[str] = []
    network, run = fit(5, on_epoch=lambda _, n: states.append(store.hash_state(n.state_dict())))
    assert store.hash_state(network.state_dict()) == states[run.best_epoch - 1]
    val = toy_split(64, 1)
    assert (
        group_metrics(predict(network, val, CPU), val)["average"] == run.history[run.best_epoch - 1]["val"]["average"]
    )


@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.SGD, lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k)]
)
def test_resume_is_bit_identical(tmp_path: Path, optimizer) -> None:  # type: ignore[no-untyped-def]
    whole, run = fit(4, optimizer=optimizer)
    for stop in (1, 2, 3):
        file = tmp_path / f"{stop}.safetensors"

        def kill(epoch: int, _: nn.Module, stop: int = stop) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(4, checkpoint=file, optimizer=optimizer, on_epoch=kill)
        resumed, rerun = fit(4, checkpoint=file, optimizer=optimizer)
        assert rerun.history == run.history
        assert rerun.best_epoch == run.best_epoch
        assert store.hash_state(resumed.state_dict()) == store.hash_state(whole.state_dict())


CHILD = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_training import fit
from caml_core import store
import torch; torch.set_num_threads(1)
network, run = fit(8, checkpoint=Path(sys.argv[1]))
print(store.hash_state(network.state_dict()), flush=True)
"""


def test_killed_at_random_points_it_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, anywhere in an epoch or in the middle of writing the checkpoint."""
    here = str(Path(__file__).parent)
    start = [sys.executable, "-c", CHILD]
    expected = subprocess.run(
        [*start, str(tmp_path / "whole"), here], capture_output=True, text=True, check=True
    ).stdout
    file, rng, kills = tmp_path / "killed", random.Random(0), 0
    child = subprocess.Popen([*start, str(file), here], stdout=subprocess.PIPE, text=True)
    while kills < 6:
        written = file.stat().st_mtime_ns if file.exists() else 0
        while child.poll() is None and (file.stat().st_mtime_ns if file.exists() else 0) == written:
            time.sleep(0.005)  # wait for progress, so that the test ends however slow the machine is
        time.sleep(rng.random() * 0.1)
        if child.poll() is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kills += 1
        child = subprocess.Popen([*start, str(file), here], stdout=subprocess.PIPE, text=True)
    output, _ = child.communicate()
    assert kills >= 2
    assert output == expected


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    fit(2, checkpoint=file)
    with pytest.raises(CamlError, match="another run: epochs, seed differ"):
        fit(3, seed=1, checkpoint=file)
    with pytest.raises(CamlError, match="another network"):
        train_erm(
            backbone("small_resnet", 2), toy_split(96), toy_split(64, 1), epochs=2, checkpoint=file,
            batch_size=16, lr=3e-3, augment=loader.random_shift, progress=False,
        )  # fmt: skip


def test_training_refuses_bad_settings_and_divergence() -> None:
    with pytest.raises(CamlError, match="epochs=0"):
        fit(0)
    with pytest.raises(CamlError, match="select='test'"):
        fit(1, select="test")
    with pytest.raises(CamlError, match=r"(NaN or infinity|loss became)"):
        fit(3, lr=1e30, optimizer=torch.optim.SGD)


def test_feature_cache_refuses_what_does_not_match(cache: Path) -> None:
    network, split = tiny(), toy_split(20)
    assert isinstance(network, backbones.Backbone)
    direct = extract_features(network, split, CPU, cache=False)
    first = extract_features(network, split, CPU)
    (file,) = (cache / "features").iterdir()
    second = extract_features(network, split, CPU)
    assert torch.equal(first.x, direct.x)
    assert torch.equal(second.x, direct.x)
    # Another split's features under this one's name, as after a mix-up of files:
    other = extract_features(network, toy_split(20, 3), CPU)
    theirs = next(f for f in (cache / "features").iterdir() if f != file)
    file.write_bytes(theirs.read_bytes())
    with pytest.warns(UserWarning, match="made for something else"):
        third = extract_features(network, split, CPU)
    assert torch.equal(third.x, direct.x)
    assert not torch.equal(third.x, other.x)
    with torch.no_grad():
        next(network.body.parameters()).add_(0.1)
    assert not torch.equal(extract_features(network, split, CPU).x, direct.x)


def test_standardise_uses_the_training_split() -> None:
    g = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {"class_names": "ab", "attribute_names": "cd"}
    x = torch.randn(50, 3, generator=g) * torch.tensor([2.0, 5.0, 0.0]) + 7
    y = torch.arange(50) % 2
    train, same = standardise(GroupDataset(x, y, y, **names), GroupDataset(x, y, y, **names))
    assert torch.allclose(train.x[:, :2].mean(dim=0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(train.x[:, :2].std(dim=0), torch.ones(2), atol=1e-5)
    assert (train.x[:, 2] == 0).all()
    assert torch.equal(train.x, same.x)
