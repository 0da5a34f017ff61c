"""DaC: heat maps against XGradCAM written out, masks and pairs by hand, heads repaired with either kind of shortcut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from caml_core.__main__ import main
from caml_core.dac import combined, dac, elbow, heat_maps, last_maps, masked, masks, pairs
from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset
from caml_core.last_layer import erm_head
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.runs.records import read_records
from tests.conftest import toy_split

CPU = torch.device("cpu")
GREY = torch.tensor([128, 128, 128], dtype=torch.uint8)[:, None, None]


class Shades(nn.Module):
    """Maps of more and of less than grey, in red and in green, 16 of each: (B, 3, H, W) to (B, 64, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        red_green = x[:, :2]
        return torch.cat([red_green.relu(), (-red_green).relu()], dim=1).repeat(1, 16, 1, 1)


def shades(seed: int = 0) -> Backbone:
    body = nn.Sequential(Shades(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Backbone(body, 64, 2)
    with torch.no_grad():  # class 1: more red, more green
        network.head.weight.copy_(torch.tensor([[-1.0, -1, 1, 1], [1, 1, -1, -1]]).repeat(1, 16))
        network.head.bias.zero_()
    return network.eval()


def scenes(n: int, rho: float, seed: int, top: float, bottom: float) -> GroupDataset:
    """Grey images 8 x 8: the red of the upper half says a, the green of the lower half says y, with noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = 128 + 10 * torch.randn(n, 3, 8, 8, generator=g)
    for channel, half, label, size in ((0, slice(0, 4), a, top), (1, slice(4, 8), y, bottom)):
        signal = size * (2 * label - 1) + 25 * torch.randn(n, generator=g)
        x[:, channel, half] += signal[:, None, None]
    x = x.clamp(0, 255).to(torch.uint8)
    return GroupDataset(x, y, a, class_names=("dark", "bright"), attribute_names=("low", "high"))


@pytest.mark.parametrize("name", ["small_resnet", "small_cnn", "efficientnet_lite0"])
def test_heat_maps_are_xgradcam(name: str) -> None:
    network = backbone(name, 2, pretrained=False).eval()
    split = toy_split(4, size=64)
    kept: list[Tensor] = []
    layer = last_maps(network, split.x[:1])
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = network(split.x)
    hook.remove()
    maps = kept[-1]
    torch.testing.assert_close(maps.mean(dim=(2, 3)), network.features(split.x), msg="the maps that become features")
    score = logits.gather(1, split.y[:, None]).sum()
    (slope,) = torch.autograd.grad(score, maps)
    weights = (slope * maps).sum(dim=(2, 3)) / maps.sum(dim=(2, 3)).clamp_min(1e-12)
    expected = (weights[:, :, None, None] * maps).sum(dim=1, keepdim=True)
    expected = nn.functional.interpolate(expected, (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat_maps(network, split, CPU), expected.detach(), rtol=1e-3, atol=1e-6)


def test_masks_lie_on_what_the_network_uses() -> None:
    network = shades()
    x = GREY.expand(8, 3, 8, 8).clone()
    y = torch.arange(8) % 2
    x[:, 1, 4:] = torch.where(y == 1, 228, 28).to(torch.uint8)[:, None, None]
    split = GroupDataset(x, y, y, class_names=("dark", "bright"), attribute_names=("low", "high"))
    mask = masks(network, split, GREY, CPU)
    assert mask.shape == (8, 8, 8)
    assert mask[:, 4:].all(), "no cut into the half that the label needs"
    assert not mask[:, :4].any()
    assert torch.equal(masked(x, mask, GREY), x), "the rest was grey before"


def test_elbow_by_hand() -> None:
    losses = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.1, 1.0, 2.0],  # free until the fourth
            [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],  # a straight line
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [2.0, 1.0, 0.5, 0.4, 0.3, 0.2],  # masking helps
            [0.0, 1.0, 1.5, 1.7, 1.8, 1.9],  # it costs at once
        ]
    )
    assert elbow(losses).tolist() == [3, 5, 5, 2, 5]


def test_combined_by_hand() -> None:
    x, other = (torch.full((1, 3, 1, 4), value, dtype=torch.uint8) for value in (10, 20))
    mask = torch.tensor([[[True, True, False, False]]])
    other_mask = torch.tensor([[[False, True, True, False]]])
    found = combined(x, mask, other, other_mask, GREY)
    assert found[0, 0, 0].tolist() == [10, 10, 128, 20], "own part; what the other leaves out; its rest"
    assert found.dtype == torch.uint8


def test_pairs_serve_all_limits() -> None:
    g = torch.Generator().manual_seed(0)
    losses, y = torch.rand(300, generator=g), torch.randint(0, 3, (300,), generator=g)
    limits = losses.quantile(torch.tensor([0.3, 0.6, 0.9]))
    rows, partner = pairs(losses, y, limits, 100, torch.Generator().manual_seed(1))
    again = pairs(losses, y, limits, 100, torch.Generator().manual_seed(1))
    assert torch.equal(rows, again[0])
    assert torch.equal(partner, again[1])
    assert len(rows) == len(rows.unique()) == 100
    assert (y[rows] != y[rows[partner]]).all()
    assert losses[rows].max() <= limits[-1]
    for limit in limits:
        low = losses[rows] <= limit
        assert low.any()
        assert (losses[rows[partner[low]]] <= limit).all()
    with pytest.raises(CamlError, match="belong to class 1"):
        pairs(losses, torch.ones_like(y), limits, 100, g)


def test_dac_repairs_the_head(cache: Path) -> None:
    """The shortcut is loud, so the network looks at the wrong half, and the masks have to be inverted."""
    splits = [scenes(n, rho, seed, 70, 35) for n, rho, seed in ((800, 0.95, 0), (300, 0.5, 1), (1000, 0.5, 2))]
    network = shades()
    raw = [extract_features(network, split, CPU) for split in splits]
    train, val, test = standardise(*raw)
    erm = erm_head(train, val, seed=0)
    head, again = (dac(network, splits[0], raw[0], raw[1], seed=0, pictures=300, epochs=5) for _ in range(2))
    assert torch.equal(head.weight, again.weight), "the same seed, the same head"
    assert head.chosen == again.chosen
    assert head.chosen["inverted"]
    assert 0 < head.chosen["cut"] <= 300
    torch.testing.assert_close(network(splits[0].x[:9]), erm.logits(train.x[:9]), rtol=1e-4, atol=1e-4)
    before, after = (group_metrics(h.logits(test.x), test)["worst_group"]["value"] for h in (erm, head))
    assert before < 30
    assert after > 70
    json.dumps(head.chosen)


def test_dac_errors(cache: Path) -> None:
    split = scenes(60, 0.9, 0, 50, 50)
    network = shades()
    z = extract_features(network, split, CPU)
    with pytest.raises(CamlError, match="DaC changes pixels"):
        dac(network, z, z, z)
    with pytest.raises(CamlError, match="without feature maps"):
        last_maps(backbone("mlp", 2, n_inputs=4).eval(), torch.zeros(1, 4))


def test_dac_on_the_command_line(tmp_path: Path, small_sources: Path) -> None:
    out = tmp_path / "r.json"
    data = ["--option", "n_train=80", "--option", "n_val=40", "--option", "n_test=40", "--device", "cpu"]
    command = ["run", "dac", "--dataset", "dominoes", *data, "--backbone", "small_resnet", "--out", str(out)]
    assert main([*command, "--train-backbone", "1", "--val-labels", "32", "--epochs", "5"]) == 0
    (record,) = read_records(out)
    assert record["config"]["quantiles"] == [0.6, 0.8]
    assert record["config"]["val_labels"] == 32
    assert {"quantile", "alpha", "inverted", "cut", "epoch", "rule"} <= set(record["selection"])
    assert [group["n"] for group in record["metrics"]["groups"]] == [10] * 4
    assert main([*command, "--lr", "0.1"]) == 2
