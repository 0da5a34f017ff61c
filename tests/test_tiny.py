"""The tiny CLIP and unCLIP: what is shipped works, training resumes to the same bits, bad files are refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core import tiny_clip, tiny_unclip, train_tiny
from caml_core.__main__ import main
from caml_core.data import birdscapes
from caml_core.data.dataset import GroupDataset
from caml_core.errors import CamlError
from caml_core.store import hash_state, load_checkpoint, save_checkpoint
from caml_core.tiny_clip import CONTEXT, VOCABULARY, WIDTH, build_clip, load_clip, preprocess, prompts, tokenize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes() -> GroupDataset:
    """200 scenes that no training has seen."""
    return birdscapes.load(rho=0.5, n_train=4, n_val=4, n_test=200, seed=77, progress=False)[2]


@pytest.fixture(scope="module")
def clip() -> tiny_clip.Clip:
    return load_clip()


# ---- CLIP --------------------------------------------------------------------------------------------------


def test_the_shipped_clip_reads_scenes_that_it_never_saw(clip: tiny_clip.Clip, scenes: GroupDataset) -> None:
    accuracy = tiny_clip.zero_shot_accuracy(clip, scenes)
    assert accuracy["background"] >= 98
    assert accuracy["bird"] >= 96
    assert accuracy["colour"] >= 96
    card = json.loads(tiny_clip.WEIGHTS.with_suffix(".json").read_text())
    assert {"licence", "data", "metrics", "config", "train_seconds", "provenance"} <= card.keys()
    for name, value in card["metrics"]["zero_shot"].items():
        assert abs(accuracy[name] - value) < 4  # 200 scenes against 2,000


def test_a_text_finds_its_scene(clip: tiny_clip.Clip, scenes: GroupDataset) -> None:
    images = tiny_clip.embed_images(clip, scenes.x)
    texts = tiny_clip.embed_texts(clip, birdscapes.captions(scenes))
    assert images.shape == texts.shape == (200, clip.width)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(200))
    matching = (images * texts).sum(1).mean()
    assert matching > (images * texts.roll(1, 0)).sum(1).mean() + 0.2


def test_images_are_preprocessed_alike_as_tensor_and_as_picture(scenes: GroupDataset) -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    batch = preprocess(scenes.x[:2])
    assert batch.shape == (2, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert -1 <= float(batch.min()) <= float(batch.max()) <= 1
    torch.testing.assert_close(preprocess(to_pil_image(scenes.x[1])), batch[1])
    with pytest.raises(CamlError, match="uint8"):
        preprocess(scenes.x[:2].float())


def test_words_become_tokens() -> None:
    tokens = tokenize(["a Red waterbird on water", "a bird"])
    assert tokens.shape == (2, CONTEXT)
    assert [VOCABULARY[i] for i in tokens[1]] == ["<start>", "a", "bird", "<end>"] + [""] * (CONTEXT - 4)
    assert int(tokens.argmax(1)[0]) == 6  # the end has the highest id, which is where open_clip reads
    everything = birdscapes.caption(birdscapes.Attributes(1, 1, 4, 0, 1))
    assert int((tokenize([everything]) > 0).sum()) <= CONTEXT
    with pytest.raises(CamlError, match="does not know penguin"):
        tokenize(["a red penguin"])
    with pytest.raises(CamlError, match="11 words"):
        tokenize(["a bird on water " * 2 + "a small bird"])


def test_prompts_differ_in_what_they_ask_for_only() -> None:
    texts, names = prompts("background")
    assert names == ("land", "water")
    assert len(texts[0]) == len(texts[1]) == 16  # two kinds of bird, eight colours
    assert [t.replace("land", "").replace("water", "") for t in texts[0]] == [
        t.replace("land", "").replace("water", "") for t in texts[1]
    ]
    assert "a small white landbird on water" not in texts[0] + texts[1]
    assert len(prompts("colour")[0]) == 8
    with pytest.raises(CamlError, match="weather"):
        prompts("weather")


def test_broken_and_foreign_clip_weights_are_refused(tmp_path: Path) -> None:
    whole = tiny_clip.WEIGHTS.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("cut", "missing"):
        with pytest.raises(CamlError, match="missing or broken"):
            load_clip(weights=tmp_path / f"{name}.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, {})
    with pytest.raises(CamlError, match="does not hold a tiny CLIP"):
        load_clip(weights=tmp_path / "other.safetensors")
    with pytest.raises(CamlError, match="open_clip cannot load 'ViT-Z'"):
        load_clip("ViT-Z", "openai")


def test_a_model_of_open_clip_comes_with_the_same_four_things(scenes: GroupDataset) -> None:
    real = load_clip("RN50", None)  # fresh weights: nothing is fetched
    assert real.preprocess(scenes.x[:2]).shape == (2, 3, 224, 224)
    images, texts = tiny_clip.embed_images(real, scenes.x[:2]), tiny_clip.embed_texts(real, ["a bird"])
    assert images.shape == (2, real.width)
    assert texts.shape == (1, real.width)


# ---- unCLIP ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> tiny_unclip.TinyUnCLIPPipeline:
    return tiny_unclip.load_tiny_unclip()


def test_the_normaliser_whitens_what_varies() -> None:
    torch.manual_seed(0)
    e = torch.randn(4000, WIDTH) * torch.linspace(0.01, 1, WIDTH) + 3
    z = tiny_unclip.Normaliser().fit(e, shrink=1e-9)(e)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(WIDTH), atol=1e-2, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    assert float(tiny_unclip.Normaliser().fit(e, shrink=1.0)(e).std(0).max()) < 1


def test_condition_says_the_noise_and_adds_it_only_above_level_0() -> None:
    e, noise = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    told = tiny_unclip.condition(e, torch.tensor([0, 1, 999]), noise)
    assert told.shape == (3, 2 * WIDTH)
    assert torch.equal(told[0, :WIDTH], e[0])
    assert 0 < (told[1, :WIDTH] - e[1]).abs().max() < 0.2
    torch.testing.assert_close(told[2, :WIDTH], noise[2], atol=0.1, rtol=0)
    assert not torch.equal(told[1, WIDTH:], told[2, WIDTH:])


def test_one_step_of_the_sampler_is_the_formula() -> None:
    """From pure noise, one DDIM step returns x = sqrt(abar) x_t - sqrt(1 - abar) v, clipped to [-1, 1]."""
    torch.manual_seed(1)
    pipeline = tiny_unclip.build_pipeline(tiny_unclip.build_unet(), tiny_unclip.Normaliser())
    e, x = F.normalize(torch.randn(2, WIDTH), dim=1), torch.randn(2, *tiny_unclip.LATENT)
    out = pipeline(e, num_inference_steps=1, guidance_scale=1, latents=x, output_type="pt").images
    c = tiny_unclip.condition(e, torch.zeros(2, dtype=torch.long), torch.zeros(2, WIDTH))
    with torch.no_grad():
        v = pipeline.unet(x, 999, encoder_hidden_states=torch.zeros(2, 1, 8), class_labels=c).sample
    abar = pipeline.scheduler.alphas_cumprod[999]
    clean = (abar.sqrt() * x - (1 - abar).sqrt() * v).clamp(-1, 1)
    torch.testing.assert_close(out, (F.pixel_shuffle(clean, 3) / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_decoded_backgrounds_agree_with_the_embedding(
    pipeline: tiny_unclip.TinyUnCLIPPipeline, clip: tiny_clip.Clip, scenes: GroupDataset
) -> None:
    e = tiny_clip.embed_images(clip, scenes.x[:16])
    generator = torch.Generator().manual_seed(0)
    pictures = pipeline(e, num_inference_steps=10, generator=generator, output_type="pt").images
    assert pictures.shape == (16, 3, 48, 48)
    again = tiny_clip.embed_images(clip, (255 * pictures).round().byte())
    assert (tiny_clip.zero_shot(clip, again, "background") == scenes.extra["background"][:16]).sum() >= 15
    assert len(pipeline(e[:1], num_inference_steps=1).images) == 1  # as PIL pictures, by default
    with pytest.raises(CamlError, match=r"\(N, 64\)"):
        pipeline(torch.zeros(1, 65))


def test_broken_and_foreign_decoder_weights_are_refused(tmp_path: Path) -> None:
    whole = tiny_unclip.WEIGHTS.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CamlError, match="missing or broken"):
        tiny_unclip.load_tiny_unclip(weights=tmp_path / "cut.safetensors")
    with pytest.raises(CamlError, match="does not hold a tiny unCLIP"):
        tiny_unclip.load_tiny_unclip(weights=tiny_clip.WEIGHTS)


def test_both_models_are_small() -> None:
    assert tiny_clip.WEIGHTS.stat().st_size + tiny_unclip.WEIGHTS.stat().st_size <= 12e6


# ---- training ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on 64 scenes with small batches, a checkpoint every two steps."""
    splits = birdscapes.load(rho=0.5, n_train=64, n_val=40, n_test=40, seed=78, progress=False)
    monkeypatch.setattr(train_tiny, "scenes", lambda progress=True: splits)
    monkeypatch.setattr(train_tiny, "BATCH", {"clip": 8, "unclip": 4})
    monkeypatch.setattr(train_tiny, "EVERY", 2)
    monkeypatch.setattr(train_tiny, "judge_decoder", lambda *_: ({}, splits[0].x[0].permute(1, 2, 0).numpy()))


@pytest.mark.parametrize("model", ["clip", "unclip"])
@pytest.mark.usefixtures("small")
def test_training_in_stretches_ends_with_the_same_bits(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["train-tiny", model, "--steps", "6", "--device", "cpu", "--folder"]
    assert main([*command, str(whole)]) == 0
    for _ in range(2):  # a stretch of no minutes ends at the first checkpoint
        assert main([*command, str(parts), "--minutes", "0"]) == 0
        assert "goes on" in capsys.readouterr().out
        assert not (parts / f"tiny_{model}.json").exists()
    assert main([*command, str(parts)]) == 0
    states = [load_checkpoint(folder / f"tiny_{model}.safetensors")[0] for folder in (whole, parts)]
    assert hash_state(states[0]) == hash_state(states[1])
    card = json.loads((parts / f"tiny_{model}.json").read_text())
    assert card["config"]["steps"] == 6
    assert card["provenance"]["command"].startswith("python -m caml_core")


def tiny_run(checkpoint: Path, steps: int, minutes: float = math.inf, target: float = 1.0) -> object:
    """A line fitted to one point."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def loss(step: int) -> Tensor:
        value: Tensor = (network(torch.ones(1, 2)) - target).square().mean()
        return value

    opt = torch.optim.SGD(network.parameters(), lr=0.1)
    options: dict[str, Any] = {"config": {}, "checkpoint": checkpoint, "minutes": minutes, "progress": False}
    return train_tiny.train(network, loss, opt, steps=steps, **options)


def test_the_step_size_rises_stays_and_falls() -> None:
    sizes = [train_tiny.step_size(step, 1000) for step in range(1000)]
    assert sizes[0] == 0.01
    assert sizes[99:751] == [1.0] * 652
    assert sizes[999] == pytest.approx(1 / 250)


def test_more_steps_may_be_asked_for_until_the_step_size_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny, "EVERY", 2)
    assert tiny_run(tmp_path / "done", 10) is not None
    with pytest.raises(CamlError, match="step 10 of 10, and 20 were asked for"):
        tiny_run(tmp_path / "done", 20)
    assert tiny_run(tmp_path / "a", 20, minutes=0) is None
    assert tiny_run(tmp_path / "b", 40, minutes=0) is None
    assert hash_state(load_checkpoint(tmp_path / "a")[0]) == hash_state(load_checkpoint(tmp_path / "b")[0])
    assert tiny_run(tmp_path / "a", 40) is not None
    assert tiny_run(tmp_path / "b", 40) is not None
    assert hash_state(load_checkpoint(tmp_path / "a")[0]) == hash_state(load_checkpoint(tmp_path / "b")[0])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(CamlError, match="nan at step 1"):
        tiny_run(tmp_path / "c", 4, target=float("nan"))


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed by the system in the middle of a step, twice."""
    program = """
import os, signal, sys, torch
from pathlib import Path
from caml_core import train_tiny
train_tiny.EVERY = 2
folder, die_at = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
network = torch.nn.Linear(4, 4)
opt = torch.optim.AdamW(network.parameters(), lr=0.1)
def loss(step):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    g = torch.Generator().manual_seed(step)
    return network(torch.randn(8, 4, generator=g)).square().mean()
done = train_tiny.train(network, loss, opt, steps=12, config={}, checkpoint=folder / "c", progress=False)
"""
    for folder, kills in (("once", [-1]), ("killed", [3, 11, -1])):
        (tmp_path / folder).mkdir()
        for die_at in kills:
            ended = subprocess.run(
                [sys.executable, "-c", program, str(tmp_path / folder), str(die_at)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert ended.returncode == (0 if die_at < 0 else -9)
    one, other = (load_checkpoint(tmp_path / folder / "c")[0] for folder in ("once", "killed"))
    assert hash_state(one) == hash_state(other)


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


def test_fresh_clip_weights_depend_on_the_seed_only() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(hash_state(build_clip().state_dict()))
    assert states[0] == states[1] != states[2]
