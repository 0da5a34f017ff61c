"""DDB from end to end on tiny random models, written to disk and loaded by the function that loads the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from caml_core.errors import CamlError
from caml_core.features import extract_features
from caml_core.networks import backbone
from results.studies.ddb import Painter, ddb, evidence, load_painter, paint, segment
from tests.conftest import toy_split

CPU = torch.device("cpu")
WIDTH = 32  # of the text encoder


def write_models(folder: Path) -> None:
    """CLIPSeg and an inpainting pipeline with random weights, in the layout that from_pretrained reads."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        ViTImageProcessor,
    )

    torch.manual_seed(0)
    words = [*(chr(c) for c in range(97, 123)), *(f"{chr(c)}</w>" for c in range(97, 123))]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    text: dict[str, Any] = {**shape, "vocab_size": len(vocab), "max_position_embeddings": 16}
    ends: dict[str, Any] = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"]}
    seer = CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config={**text, **ends},
            vision_config={**shape, "image_size": 32, "patch_size": 8},
            projection_dim=16,
            extract_layers=[0, 1],
            reduce_dim=8,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
    )
    seer.save_pretrained(folder / "segmenter")
    CLIPSegProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        folder / "segmenter"
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,  # noisy latents, the mask, the masked image
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, **ends)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "inpainter")
    save_file({"<bright>": torch.arange(WIDTH).float()}, folder / "bright.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def painter(folder: Path) -> Painter:
    return load_painter(folder / "segmenter", folder / "inpainter", words=[folder / "bright.safetensors"])


def test_a_learned_word_joins_the_vocabulary(painter: Painter) -> None:
    number = painter.pipeline.tokenizer.convert_tokens_to_ids("<bright>")
    embedding = painter.pipeline.text_encoder.get_input_embeddings().weight[number]
    assert torch.equal(embedding, torch.arange(WIDTH).float())


def test_segment_and_paint(painter: Painter) -> None:
    x = toy_split(3, size=24).x
    for part in (x, x[:1]):
        found = segment(painter, part, "thing")
        assert found.shape == (len(part), 24, 24)
        assert found.dtype == torch.bool
    mask = torch.zeros(3, 24, 24, dtype=torch.bool)
    mask[:, 12:] = True
    prompts = ["a photo of a <bright>"] * 3
    drawn = paint(painter, x, mask, prompts, [1, 2, 3], steps=2)
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, :, :12], x[:, :, :12]), "what is not masked stays"
    assert not torch.equal(drawn[:, :, 12:], x[:, :, 12:])
    alone = paint(painter, x[1:2], mask[1:2], prompts[:1], [2], steps=2)
    assert (alone.int() - drawn[1:2].int()).abs().max() <= 1, "the noise belongs to the image, not to the batch"
    other = paint(painter, x, mask, ["a photo of a dark"] * 3, [1, 2, 3], steps=2)
    assert not torch.equal(other, drawn), "the word matters"


def test_evidence_adds_up_to_the_logit() -> None:
    network = backbone("small_cnn", 2).eval()
    old, new = toy_split(4, seed=1).x, toy_split(4, seed=2).x
    y = torch.tensor([0, 1, 1, 0])
    mask = torch.ones(4, 16, 16, dtype=torch.bool)
    with torch.no_grad():
        rise = (network(new) - network(old)).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(evidence(network, new, old, y, mask, CPU), rise, rtol=0.05, atol=1e-3)
    mask[:, 8:] = False
    upper = evidence(network, new, old, y, mask, CPU)
    torch.testing.assert_close(upper + evidence(network, new, old, y, ~mask, CPU), rise, rtol=0.05, atol=1e-3)


def test_ddb_from_end_to_end(painter: Painter, cache: Path) -> None:
    train, val = toy_split(80, rho=0.9), toy_split(40, seed=1, rho=0.5)
    found = []
    for _ in range(2):
        network = backbone("small_cnn", 2)
        z, z_val = (extract_features(network, split, CPU) for split in (train, val))
        how: dict[str, Any] = {"part": "thing", "words": ("dark", "<bright>"), "pictures": 6, "steps": 2, "epochs": 5}
        found.append(ddb(network, train, z, z_val, painter, threshold=-1e9, **how))
    (head, new), (again, _) = found
    assert torch.equal(head.weight, again.weight), "the same seed, the same head"
    assert head.chosen["painted"] == 12
    assert 0 < head.chosen["kept"] == len(new) <= 12
    assert head.chosen["gamma"] in (1.0, 3.0, 10.0)
    assert new.x.dtype == torch.uint8
    json.dumps(head.chosen)
    with pytest.raises(CamlError, match="none of 12 painted images was kept"):
        ddb(network, train, z, z_val, painter, threshold=1e9, **how)
    with pytest.raises(CamlError, match="1 words for 2 classes"):
        ddb(network, train, z, z_val, painter, **{**how, "words": ("dark",)})
    with pytest.raises(CamlError, match=r"x \(80, 128\)"):
        ddb(network, z, z, z_val, painter, **how)


def test_missing_and_broken_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CamlError, match="cannot load"):
        load_painter(tmp_path, folder / "inpainter")
    broken = tmp_path / "word.safetensors"
    broken.write_bytes(b"not a word")
    with pytest.raises(CamlError, match="cannot load"):
        load_painter(folder / "segmenter", folder / "inpainter", words=[broken])
