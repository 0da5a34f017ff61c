"""The tiny CLIP and unCLIP: what is shipped works, bad files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from caml_core.data import birdscapes
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.pictures import clip as tiny_clip
from caml_core.pictures import tiny_unclip
from caml_core.pictures.clip import CONTEXT, VOCABULARY, WIDTH, build_clip, load_clip, preprocess, prompts, tokenize
from caml_core.store import hash_state, save_checkpoint
from results.studies.train_tiny import normaliser_of, zero_shot_accuracy


@pytest.fixture(scope="module")
def scenes() -> GroupDataset:
    """200 scenes that no training has seen."""
    return birdscapes.load(rho=0.5, n_train=4, n_val=4, n_test=200, seed=77, progress=False)[2]


@pytest.fixture(scope="module")
def clip() -> tiny_clip.Clip:
    return load_clip()


# ---- CLIP --------------------------------------------------------------------------------------------------


def test_the_shipped_clip_reads_scenes_that_it_never_saw(clip: tiny_clip.Clip, scenes: GroupDataset) -> None:
    accuracy = zero_shot_accuracy(clip, scenes)
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
    for text in ("a red penguin", "a bird on water " * 2 + "a small bird"):
        with pytest.raises(CamlError, match="cannot read"):
            tokenize([text])


def test_prompts_differ_in_what_they_ask_for_only() -> None:
    texts, names = prompts("background")
    assert names == ("land", "water")
    assert len(texts[0]) == len(texts[1]) == 16  # two kinds of bird, eight colours
    assert [t.replace("land", "").replace("water", "") for t in texts[0]] == [
        t.replace("land", "").replace("water", "") for t in texts[1]
    ]
    assert "a small white landbird on water" not in texts[0] + texts[1]
    assert len(prompts("colour")[0]) == 8


def test_broken_and_foreign_clip_weights_are_refused(tmp_path: Path) -> None:
    whole = tiny_clip.WEIGHTS.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("cut", "missing"):
        with pytest.raises(CamlError, match="missing or broken"):
            load_clip(weights=tmp_path / f"{name}.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, {})
    with pytest.raises(RuntimeError, match="Missing key"):
        load_clip(weights=tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match="ViT-Z"):
        load_clip("ViT-Z", "openai")
    with pytest.raises(RuntimeError, match="RN50"):
        load_clip("RN50", None)  # would be random


def test_a_model_of_open_clip_comes_with_the_same_four_things(
    scenes: GroupDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = open_clip.create_model_and_transforms("RN50")[::2]  # nothing is fetched
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", lambda *name, **how: fresh)
    real = load_clip("RN50", "openai")
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
    z = normaliser_of(e, shrink=1e-9)(e)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(WIDTH), atol=1e-2, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    assert float(normaliser_of(e)(e).std(0).max()) < 1


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
    (picture,) = pipeline(e[:1], num_inference_steps=1, output_type="pil").images
    assert picture.size == (48, 48)


def test_broken_and_foreign_decoder_weights_are_refused(tmp_path: Path) -> None:
    whole = tiny_unclip.WEIGHTS.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CamlError, match="missing or broken"):
        tiny_unclip.load_tiny_unclip(weights=tmp_path / "cut.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        tiny_unclip.load_tiny_unclip(weights=tiny_clip.WEIGHTS)


def test_both_models_are_small() -> None:
    assert tiny_clip.WEIGHTS.stat().st_size + tiny_unclip.WEIGHTS.stat().st_size <= 12e6


def test_fresh_clip_weights_depend_on_the_seed_only() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(hash_state(build_clip().state_dict()))
    assert states[0] == states[1] != states[2]
