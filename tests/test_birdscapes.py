"""Birdscapes: scenes depend on their number alone, counts are exact and the cache is never trusted."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caml_core.data import birdscapes, scenery
from caml_core.data.birdscapes import Attributes, caption, captions, draw, group_counts, load
from caml_core.errors import CamlError

TINY: dict[str, Any] = {"n_train": 40, "n_val": 8, "n_test": 8, "size": 32, "progress": False}
FULL = Attributes(bird=1, background=1, colour=list(birdscapes.COLOURS).index("red"), facing=0, size=0)

DIGEST = """
import hashlib, sys
from caml_core.data.birdscapes import draw
assert "torch" not in sys.modules
digest = hashlib.sha256()
for bird in (0, 1):
    for background in (0, 1):
        for k in range(6):
            digest.update(draw(bird, background, k, seed=3)[0].tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("CAML_CACHE", str(tmp_path))
    return tmp_path


def image_hashes(x: torch.Tensor) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in x]


def test_two_processes_draw_the_same_bytes() -> None:
    digest = hashlib.sha256()
    for bird in (0, 1):
        for background in (0, 1):
            for k in range(6):
                digest.update(draw(bird, background, k, seed=3)[0].tobytes())
    environment = os.environ | {"PYTHONPATH": str(Path(birdscapes.__file__).parents[2])}
    other = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("size", [16, 32, 48, 96, 224])
def test_every_size_shows_the_same_scene(size: int) -> None:
    image, attributes = draw(1, 0, 5, size=size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    reference, expected = draw(1, 0, 5, size=48)
    assert attributes == expected
    quarters = [a.reshape(4, len(a) // 4, 4, len(a) // 4, 3).mean((1, 3)) for a in (image, reference)]
    assert np.abs(quarters[0] - quarters[1]).mean() < 6


def test_scenes_differ_between_numbers_seeds_splits_and_groups() -> None:
    scenes = [
        draw(0, 0, 0)[0],
        draw(0, 0, 1)[0],
        draw(0, 0, 0, seed=1)[0],
        draw(0, 0, 0, split="val")[0],
        draw(0, 0, 0, split="test")[0],
        draw(1, 0, 0)[0],
        draw(0, 1, 0)[0],
    ]
    assert len({scene.tobytes() for scene in scenes}) == len(scenes)


def test_every_attribute_value_occurs_in_every_group() -> None:
    for bird in (0, 1):
        for background in (0, 1):
            seen = [draw(bird, background, k, size=16)[1] for k in range(100)]
            assert {(s.bird, s.background) for s in seen} == {(bird, background)}
            assert {s.colour for s in seen} == set(range(8))
            assert {s.facing for s in seen} == {s.size for s in seen} == {0, 1}


def test_colour_and_background_are_what_the_picture_shows() -> None:
    """Averages over many scenes: red birds are the reddest, water is bluer than land."""
    warmth: dict[int, list[float]] = {colour: [] for colour in range(8)}
    blueness: dict[int, list[float]] = {0: [], 1: []}
    for k in range(60):
        for background in (0, 1):
            image, attributes = draw(0, background, k)
            pixels = image.astype(float)
            warmth[attributes.colour].append((pixels[..., 0] - pixels[..., 1:].max(axis=-1)).max())
            blueness[background].append((pixels[40:, :, 2] - pixels[40:, :, 1]).mean())
    assert max(warmth, key=lambda colour: float(np.mean(warmth[colour]))) == FULL.colour
    assert np.mean(blueness[1]) > np.mean(blueness[0]) + 30


def test_the_same_bird_on_another_background() -> None:
    """The counterfactual keeps the bird: unlike another scene's, its pixels where the bird is hardly change."""
    changes, bird_changes = [], []
    for k in range(30):
        (image, before), (swapped, after) = draw(1, 1, k), draw(1, 1, k, onto=0)
        assert after == before._replace(background=0)
        assert (draw(1, 1, k, onto=1)[0] == image).all()
        difference = np.abs(image.astype(int) - swapped).mean(axis=2)
        changes.append(np.median(difference))
        bird_changes.append(np.mean(difference < 12))  # a share of the pixels is the bird's
    assert np.median(changes) > 40
    assert np.median(bird_changes) > 0.04


@pytest.mark.parametrize("bird", [0, 1])
def test_birds_stay_inside_the_frame(bird: int) -> None:
    for k in range(200):
        rng = np.random.default_rng(k)
        ink = scenery.plumage(rng, (200, 40, 38))
        shapes = (scenery.landbird, scenery.waterbird)[bird](rng, ink)
        parts, foot, _ = scenery.pose(rng, shapes, k % 2, k // 2 % 2)
        points = np.concatenate([part.outline for part in parts])
        assert points.min() > 0.04
        assert points.max() < 0.96
        assert foot[1] > 0.65  # below every horizon, so that nothing stands on the sky
        eye = parts[-1].outline[:, 0].mean()
        assert (eye > foot[0]) == bool(k // 2 % 2)  # the head is on the side the bird faces


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("n", [4, 7, 600, 3001])
def test_group_counts_are_exact(n: int, rho: float) -> None:
    counts = group_counts(n, rho)
    assert sum(counts.values()) == n
    assert min(counts.values()) >= 0
    assert counts[0, 1] + counts[1, 0] == round((1 - rho) * n)
    assert abs(counts[0, 1] - counts[1, 0]) <= 1
    assert abs(counts[0, 0] + counts[0, 1] - counts[1, 0] - counts[1, 1]) <= 1


def test_load_counts_columns_and_captions() -> None:
    train, val, test = load(rho=0.9, **TINY)
    assert train.group_counts.tolist() == [18, 2, 2, 18]
    assert val.group_counts.tolist() == test.group_counts.tolist() == [2, 2, 2, 2]
    assert train.x.shape == (40, 3, 32, 32)
    assert train.x.dtype == torch.uint8
    assert torch.equal(train.extra["bird"], train.y)
    assert torch.equal(train.extra["background"], train.a)
    assert int(train.is_minority.sum()) == 4
    assert train.y.tolist() != sorted(train.y.tolist())
    for row, text in enumerate(captions(train)):
        words = text.split()
        assert train.class_names[train.y[row]] in words
        assert words[-1] == train.attribute_names[train.a[row]]
        assert words[1] == ("small", "big")[train.extra["size"][row]]
        assert words[2] == list(birdscapes.COLOURS)[train.extra["colour"][row]]
        assert words[words.index("facing") + 1] == ("left", "right")[train.extra["facing"][row]]
    assert load(rho=0.9, **TINY)[0].content_hash() == train.content_hash()


def test_rows_are_the_scenes_that_draw_makes() -> None:
    train, _, _ = load(rho=0.75, seed=2, **TINY)
    expected = set()
    for (bird, background), count in group_counts(40, 0.75).items():
        for k in range(count):
            image = draw(bird, background, k, seed=2, size=32)[0]
            expected.add(hashlib.sha256(image.transpose(2, 0, 1).tobytes()).hexdigest())
    assert set(image_hashes(train.x)) == expected


def test_another_rho_shares_its_images() -> None:
    weak, strong = load(rho=0.6, **TINY), load(rho=0.9, **TINY)
    for a, b in zip(weak[1:], strong[1:], strict=True):
        assert a.content_hash() == b.content_hash()
    for g in range(4):
        few, many = sorted((image_hashes(s[0].x[s[0].group == g]) for s in (weak, strong)), key=len)
        assert set(few) < set(many)
    assert load(rho=0.9, seed=1, **TINY)[1].content_hash() != strong[1].content_hash()


def test_no_minority_at_rho_one() -> None:
    assert load(rho=1.0, **TINY)[0].group_counts.tolist() == [20, 0, 0, 20]


def test_worker_processes_draw_the_same(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    here = load(**TINY)[0].content_hash()
    monkeypatch.setenv("CAML_CACHE", str(cache / "elsewhere"))
    monkeypatch.setattr(birdscapes, "CHUNK", 4)
    assert load(**TINY)[0].content_hash() == here


def test_more_scenes_are_added_to_those_that_are_there(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    at_once = load(**TINY)[0].content_hash()
    monkeypatch.setenv("CAML_CACHE", str(cache / "elsewhere"))
    few = load(**{**TINY, "n_train": 8})[0]
    assert load(**TINY)[0].content_hash() == at_once
    monkeypatch.setattr(birdscapes, "draw", None)
    assert load(**{**TINY, "n_train": 8})[0].content_hash() == few.content_hash()


def test_broken_and_foreign_files_are_drawn_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = load(**TINY)[0].content_hash()
        assert load(**TINY)[0].content_hash() == fresh
    files = sorted(cache.rglob("*.npz"))
    whole = files[0].read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content in (whole[:100], bytes(changed), b"", files[-1].read_bytes()):
        files[0].write_bytes(content)
        with pytest.warns(UserWarning, match="drawing birds again"):
            assert load(**TINY)[0].content_hash() == fresh
    monkeypatch.setattr(birdscapes, "SOURCE", "another program")
    with pytest.warns(UserWarning, match="drawing birds again"):
        load(**TINY)


def test_captions_name_what_is_asked_for() -> None:
    orange = FULL._replace(colour=list(birdscapes.COLOURS).index("orange"), bird=0, background=0, size=1, facing=1)
    assert caption(FULL) == "a small red waterbird facing left on water"
    assert caption(FULL, include=("colour", "bird", "background")) == "a red waterbird on water"
    assert caption(FULL, include=("colour", "background")) == "a red bird on water"
    assert caption(FULL, include=()) == "a bird"
    assert caption(orange, include=("colour", "bird", "facing")) == "an orange landbird facing right"
    assert caption(orange) == "a big orange landbird facing right on land"
    with pytest.raises(CamlError, match="weather"):
        caption(FULL, include=("weather",))


@pytest.mark.parametrize(
    "options", [{"rho": 0.4}, {"rho": 1.01}, {"rho": float("nan")}, {"n_val": 3}, {"size": 15}, {"seed": -1}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CamlError):
        load(**{**TINY, **options})


@pytest.mark.parametrize("options", [{"bird": 2}, {"background": -1}, {"k": -1}, {"split": "dev"}, {"size": 8}])
def test_bad_scenes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CamlError):
        draw(**{"bird": 0, "background": 0, "k": 0, **options})
