"""Backbones, training, features: bit-identical, resumable after a kill, refusing what does not match."""

from __future__ import annotations

import platform
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import killed_at_random, toy_split
from torch import nn

from caml_core import device, loader, store
from caml_core import networks as backbones
from caml_core.errors import CamlError
from caml_core.features import extract_features, predict, standardise
from caml_core.groups import GroupDataset
from caml_core.metrics import group_metrics
from caml_core.networks import backbone
from caml_core.training import Erm, Run, train_erm

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
    with pytest.raises(CamlError, match="pretrained=True"):
        backbone("small_resnet", 2, pretrained=True)
    monkeypatch.setattr(backbones, "hub_is_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
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


@pytest.mark.parametrize("n", [1, 8, 9, 16, 17])
def test_a_last_batch_of_one_joins_the_one_before(n: int) -> None:
    split, g = toy_split(n), torch.Generator().manual_seed(0)
    seen = [b.index.tolist() for b in loader.batches(split, 8, device=CPU, generator=g)]
    assert sorted(row for rows in seen for row in rows) == list(range(n))
    assert [len(rows) for rows in seen] == {1: [1], 8: [8], 9: [9], 16: [8, 8], 17: [8, 9]}[n]
    scored = [len(b.y) for b in loader.batches(split, 8, device=CPU)]
    assert scored == {1: [1], 8: [8], 9: [8, 1], 16: [8, 8], 17: [8, 8, 1]}[n]


def test_the_smallest_pictures_train_whatever_the_last_batch() -> None:
    """At 8 pixels BatchNorm sees one value a channel and example."""
    split = toy_split(17)
    split = split.with_x(split.x[..., :8, :8])
    run = train_erm(backbone("small_cnn", 2), split, split, Erm(epochs=1, batch_size=8), progress=False)
    assert len(run.history) == 1
    with pytest.raises(CamlError, match=r"batch of one.*\n.*two or more\n.*larger --batch-size"):
        train_erm(backbone("small_cnn", 2), split, split, Erm(epochs=1, batch_size=1), progress=False)


def test_empty_splits_are_named() -> None:
    split, nothing = toy_split(16), toy_split(16).subset([])
    with pytest.raises(CamlError, match="0 validation examples"):
        train_erm(tiny(), split, nothing, Erm(epochs=1), progress=False)
    with pytest.raises(CamlError, match="no examples"):
        train_erm(tiny(), nothing, split, Erm(epochs=1), progress=False)
    with pytest.raises(CamlError, match="no examples"):
        predict(tiny(), nothing, CPU)


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
    shifted = loader.random_shift(x, g, 2)
    assert shifted.shape == x.shape
    inner = slice(4, 12)
    for before, after in zip(x, shifted):
        moves = [before.roll((dy, dx), (1, 2)) for dy in range(-2, 3) for dx in range(-2, 3)]
        assert any(torch.equal(m[:, inner, inner], after[:, inner, inner]) for m in moves)


def test_crops_are_windows_of_images_with_black_around_them() -> None:
    x = toy_split(24).x
    cropped = loader.crop_and_flip(x, torch.Generator().manual_seed(0))
    assert (cropped.shape, cropped.dtype) == (x.shape, x.dtype)
    wide, side, mirrored = torch.nn.functional.pad(x, (2,) * 4), x.shape[-1], 0
    for image, after in zip(wide, cropped):
        windows = [image[:, dy : dy + side, dx : dx + side] for dy in range(5) for dx in range(5)]
        as_is, flipped = ([torch.equal(w, look) for w in windows] for look in (after, after.flip(2)))
        assert any(as_is + flipped)
        mirrored += any(flipped)
    assert 6 <= mirrored <= 18


def tiny() -> nn.Module:
    """A small ResNet of a few thousand weights, with dropout so that random streams matter too."""
    with device.seeded(0):
        body = nn.Sequential(backbones.small_resnet_body((8, 8)), nn.Dropout(0.2))
        return backbones.Backbone(body, 8, 2).to(memory_format=torch.channels_last)


def fit(epochs: int = 4, seed: int = 0, checkpoint: Path | None = None, **kwargs) -> tuple[nn.Module, Run]:  # type: ignore[no-untyped-def]
    network = tiny()
    own = {k: kwargs.pop(k) for k in ("lr", "select", "batch_size") if k in kwargs}
    erm = Erm(epochs=epochs, **{"batch_size": 16, "lr": 3e-3, **own})
    options = {"augment": loader.random_shift, "progress": False, **kwargs}
    run = train_erm(network, toy_split(96), toy_split(64, 1), erm, seed=seed, checkpoint=checkpoint, **options)
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


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    whole, run = fit(4)
    for stop in (1, 2, 3):
        file = tmp_path / f"{stop}.safetensors"

        def kill(epoch: int, _: nn.Module, stop: int = stop) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(4, checkpoint=file, on_epoch=kill)
        resumed, rerun = fit(4, checkpoint=file)
        assert rerun.history == run.history
        assert rerun.best_epoch == run.best_epoch
        assert store.hash_state(resumed.state_dict()) == store.hash_state(whole.state_dict())


def whole_run(work: Path, out: Path) -> None:
    torch.set_num_threads(1)
    network, _ = fit(8, checkpoint=work / "run.safetensors")
    out.write_text(store.hash_state(network.state_dict()))


def test_killed_at_random_points_it_ends_the_same(tmp_path: Path) -> None:
    assert killed_at_random(whole_run, tmp_path / "whole", tmp_path / "a", kills=0) == 0
    assert killed_at_random(whole_run, tmp_path / "killed", tmp_path / "b", kills=6) >= 2
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    fit(2, checkpoint=file)
    with pytest.raises(CamlError, match="another run: epochs, seed differ"):
        fit(3, seed=1, checkpoint=file)


def test_training_refuses_bad_settings_and_divergence() -> None:
    with pytest.raises(CamlError, match="epochs=0"):
        fit(0)
    with pytest.raises(CamlError, match=r"lr=0.0, select='test'"):
        fit(1, select="test", lr=0.0)
    with pytest.raises(CamlError, match=r"(NaN or infinity|loss became)"):
        fit(3, lr=1e30)


def test_frozen_layers_stay() -> None:
    network = backbone("small_cnn", 2)
    network.body[0].requires_grad_(False)  # type: ignore[index]
    before = {name: p.clone() for name, p in network.named_parameters()}
    train_erm(network, toy_split(32), toy_split(16, 1), Erm(epochs=2, batch_size=8, lr=0.1), progress=False)
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - {"body.0.weight"}


def test_tied_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        with device.seeded(0):
            layers = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2)]
        layers[2].weight = layers[0].weight
        return nn.Sequential(*layers)

    split = toy_split(32)
    split = split.with_x(split.x.float().flatten(1)[:, ::48] / 255)
    assert split.x.shape[1] == 16
    whole, parts = tied(), tied()
    erm = Erm(epochs=2, batch_size=8)
    train_erm(whole, split, split, erm, progress=False)

    def kill(epoch: int, _: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_erm(tied(), split, split, erm, progress=False, checkpoint=tmp_path / "tied", on_epoch=kill)
    train_erm(parts, split, split, erm, progress=False, checkpoint=tmp_path / "tied")
    assert store.hash_state(whole.state_dict()) == store.hash_state(parts.state_dict())
    assert parts[0].weight is parts[2].weight  # type: ignore[index]


@pytest.mark.parametrize("threads", [1, 2])  # with two, the network is tried first
def test_too_little_memory_says_what_to_do(threads: int) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 60)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(CamlError, match=r"does not fit into the memory of cpu.*\n.*\n.*smaller --batch-size"):
            train_erm(Large(), toy_split(8), toy_split(8), Erm(epochs=1), progress=False)
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize("name", ["small_cnn", "small_resnet", "resnet18", "resnet50", "efficientnet_lite0"])
def test_both_engines_give_the_same_features(name: str, cache: Path) -> None:
    network = backbone(name, 2, pretrained=None if name == "efficientnet_lite0" else False)
    split = toy_split(9)
    torch_, onnx = (extract_features(network, split, CPU, batch_size=4, engine=e).x for e in ("torch", "onnx"))
    assert (torch_ - onnx).abs().max() < 1e-4
    assert not torch.equal(torch_[0], torch_[1])
    assert len(list((cache / "features").iterdir())) == 2, "each engine has its own file"
    with torch.no_grad():
        next(network.body.parameters()).mul_(1.5)
    assert not torch.allclose(extract_features(network, split, CPU, engine="onnx").x, onnx, atol=1e-4)


def test_a_layer_that_onnx_does_not_know_is_an_error(cache: Path) -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x[:, 0, :8, :8]).abs()

    with pytest.raises(CamlError, match="ONNX Runtime cannot"):
        extract_features(backbones.Backbone(Unknown(), 8, 2), toy_split(6), CPU, engine="onnx")


@pytest.mark.parametrize("name", ["small_resnet", "efficientnet_lite0"])
def test_the_size_of_a_batch_changes_nothing(name: str) -> None:
    split, network = toy_split(40), backbone(name, 2)
    sizes = [extract_features(network, split, CPU, batch_size=n, cache=False).x for n in (7, 40, None)]
    assert all(torch.allclose(found, sizes[0], atol=1e-5) for found in sizes)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what it tells is glibc")
def test_memory_is_kept_between_layers() -> None:
    """Blocks of 16 MB, made and freed as layers do: without `keep_memory` each costs 4,096 page faults."""
    device.pick_device("cpu")
    torch.ones(4 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2 * 4096
