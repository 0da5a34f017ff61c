"""The whole path from weights on disk to pictures, with a Stable unCLIP of a few thousand weights and with a double."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.pictures import unclip
from caml_core.pictures.unclip import decode, embed, load_unclip

UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"
NORMALISER = "image_normalizer/diffusion_pytorch_model.safetensors"


def stable_unclip(folder: Path, width: int) -> Any:
    """A StableUnCLIPImg2ImgPipeline with fresh weights: 16 x 16 pictures from embeddings of any width."""
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    folder.mkdir()
    words = ["<|startoftext|>", "<|endoftext|>", *"abc", "a</w>", "b</w>", "c</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=width)
    with torch.no_grad():
        normaliser.mean.normal_()
        normaliser.std.fill_(0.5)
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(**small, projection_dim=width, image_size=32, patch_size=16)
        ),
        image_normalizer=normaliser,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, model_max_length=77),
        text_encoder=CLIPTextModel(CLIPTextConfig(**small, **ends, vocab_size=len(words), projection_dim=16)),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=(2, 4),
            cross_attention_dim=16,
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * width,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        ),
    )
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of a saved pipeline, by width; made once each."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(width: int) -> Path:
        path = root / str(width)
        if not path.exists():
            stable_unclip(root / f"vocabulary{width}", width).save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def stable(saved: Callable[[int], Path]) -> Any:
    pipeline = load_unclip(str(saved(32)), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Double:
    """The call of the tiny pipeline: a picture is its noise plus the first three numbers of its embedding."""

    unet = SimpleNamespace(config=SimpleNamespace(projection_class_embeddings_input_dim=64), dtype=torch.float32)
    _execution_device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        image_embeds: Tensor,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        noise_level: int = 0,
        generator: list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> Any:
        assert generator is not None
        assert len(generator) == len(image_embeds)
        assert output_type == "pt"
        self.calls.append({"rows": len(image_embeds), "steps": num_inference_steps, "guidance": guidance_scale})
        noise = torch.stack([torch.rand(3, 4, 4, generator=stream) for stream in generator])
        return SimpleNamespace(images=(noise + 0.05 * image_embeds[:, :3, None, None]).clamp(0, 1))


@pytest.fixture(params=["stable", "double"])
def either(request: pytest.FixtureRequest, stable: Any) -> Any:
    return stable if request.param == "stable" else Double()


def pictures(n: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, 3, 48, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def vectors(n: int = 5, width: int = 32) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(2))


def differ(a: Tensor, b: Tensor) -> int:
    """Largest difference of two pictures, in grey levels."""
    return int((a.int() - b.int()).abs().max())


# ---- the whole path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [32, 768, 1024])
def test_from_weights_on_disk_to_pictures(saved: Callable[[int], Path], width: int) -> None:
    from torchvision.transforms.functional import to_pil_image

    pipeline = load_unclip(str(saved(width)), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    x = pictures()
    embeds = embed(pipeline, x, batch_size=2)
    assert embeds.shape == (5, width)
    assert embeds.dtype == torch.float32
    one_by_one = [pipeline.feature_extractor(images=to_pil_image(image), return_tensors="pt") for image in x]
    with torch.no_grad():
        expected = torch.cat([pipeline.image_encoder(image.pixel_values).image_embeds for image in one_by_one])
    assert torch.allclose(embeds, expected, atol=1e-4)

    y = decode(pipeline, embeds, steps=2)
    assert y.shape == (5, 3, 16, 16)
    assert y.dtype == torch.uint8
    assert y.float().std() > 5


def test_agrees_with_the_pipeline_called_by_hand(stable: Any) -> None:
    embeds = vectors(3)
    for guidance, level in ((4.0, 0), (1.0, 0), (4.0, 300)):
        streams = [torch.Generator().manual_seed(unclip.stream_seed(7, row)) for row in range(3)]
        by_hand = stable(
            prompt=[""] * 3,
            image_embeds=embeds,
            num_inference_steps=3,
            guidance_scale=guidance,
            noise_level=level,
            generator=streams,
            output_type="pt",
        ).images
        y = decode(stable, embeds, steps=3, guidance=guidance, noise_level=level, seed=7, same_noise=False)
        assert differ(y, (255 * by_hand).round().to(torch.uint8)) <= 1


def test_settings_reach_the_sampler(stable: Any) -> None:
    embeds = vectors(2)
    plain = decode(stable, embeds, steps=3)
    assert differ(plain, decode(stable, embeds, steps=3, guidance=10)) == 0  # the pipeline's own default
    others: list[dict[str, Any]] = [{"steps": 4}, {"guidance": 2.0}, {"noise_level": 500}, {"seed": 1}]
    for other in others:
        assert differ(plain, decode(stable, embeds, **{"steps": 3, **other})) > 5
    double = Double()
    decode(double, embeds, steps=9, batch_size=1)
    assert double.calls == [{"rows": 1, "steps": 9, "guidance": 2.0}] * 2


# ---- noise -------------------------------------------------------------------------------------------------


def test_a_negative_noise_level_is_refused(stable: Any) -> None:
    with pytest.raises(CamlError, match="noise_level=-1"):
        decode(stable, torch.ones(1, 8), noise_level=-1)


def test_same_seed_same_bits(either: Any) -> None:
    embeds = vectors()
    first = decode(either, embeds, steps=3)
    torch.randn(3)  # the global stream plays no part
    assert torch.equal(first, decode(either, embeds, steps=3))
    assert differ(first, decode(either, embeds, steps=3, seed=1)) > 5


@pytest.mark.parametrize("same_noise", [True, False])
def test_a_row_does_not_depend_on_its_batch(either: Any, same_noise: bool) -> None:
    embeds = vectors()
    whole = decode(either, embeds, steps=3, same_noise=same_noise)
    assert differ(whole, decode(either, embeds, steps=3, same_noise=same_noise, batch_size=2)) <= 1
    edited = torch.cat([embeds[:2], -embeds[2:]])  # the other rows change, these two do not
    assert differ(whole[:2], decode(either, edited, steps=3, same_noise=same_noise)[:2]) <= 1
    if same_noise:
        assert differ(whole[3:4], decode(either, embeds[3:4], steps=3)) <= 1


def test_rows_share_their_noise_or_not(either: Any) -> None:
    twins = vectors(1).expand(4, -1)
    shared = decode(either, twins, steps=3)
    assert differ(shared, shared[:1].expand_as(shared)) <= 1
    own = decode(either, twins, steps=3, same_noise=False)
    assert all(differ(own[i], own[j]) > 5 for i in range(4) for j in range(i))


def test_rows_on_the_sphere_get_their_lengths_back(either: Any) -> None:
    embeds = 3 * vectors()
    whole = decode(either, embeds, steps=3)
    on_sphere = F.normalize(embeds, dim=1)
    assert differ(whole, decode(either, on_sphere, steps=3, norm=embeds.norm(dim=1))) <= 1
    assert differ(whole, decode(either, on_sphere, steps=3)) > 1
    same = F.normalize(embeds, dim=1) * 2.5
    assert differ(decode(either, same, steps=3), decode(either, embeds, steps=3, norm=2.5)) <= 1


# ---- the tiny model ----------------------------------------------------------------------------------------


def test_the_tiny_pipeline_takes_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from caml_core.pictures import clip as tiny_clip
    from caml_core.pictures import tiny_unclip

    torch.manual_seed(0)
    clip = tiny_clip.Clip(
        tiny_clip.build_clip().eval(), tiny_clip.preprocess, tiny_clip.tokenize, tiny_clip.WIDTH
    )  # fresh weights: here only the wiring counts
    monkeypatch.setattr(tiny_clip, "load_clip", lambda **options: clip)
    fresh = tiny_unclip.build_pipeline(tiny_unclip.build_unet(), tiny_unclip.Normaliser())
    monkeypatch.setattr(tiny_unclip, "load_tiny_unclip", lambda device: fresh)
    pipeline = load_unclip("tiny", "cpu")
    embeds = embed(pipeline, pictures(3))
    assert embeds.shape == (3, tiny_clip.WIDTH)
    assert torch.allclose(embeds.norm(dim=1), torch.ones(3), atol=1e-5)
    y = decode(pipeline, embeds, steps=2, same_noise=False)
    assert y.shape == (3, 3, 48, 48)
    assert torch.equal(y, decode(pipeline, embeds, steps=2, same_noise=False))
    assert differ(y[:2], decode(pipeline, embeds[:2], steps=2, same_noise=False)) <= 1
    with pytest.raises(RuntimeError):
        decode(pipeline, vectors(2, 768))


# ---- inputs that cannot be used ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_give_no_pictures(stable: Any, bad: float) -> None:
    with pytest.raises(CamlError, match=f"not finite; embeddings reach {bad}"):
        decode(stable, vectors(2).index_fill(0, torch.tensor([1]), bad), steps=1)


def test_embed_takes_grey_levels_only(stable: Any) -> None:
    with pytest.raises(CamlError, match="images of type"):
        embed(stable, pictures() / 255)


# ---- weights that cannot be used ---------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_it(path: Path) -> None:
    stem = "pytorch_model" if path.name == "model.safetensors" else path.stem
    torch.save(load_file(path), path.with_name(f"{stem}.bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (UNET, cut, "."),
        (ENCODER, cut, "."),
        (UNET, Path.unlink, "no file named"),
        (ENCODER, Path.unlink, "no file named"),
        (NORMALISER, Path.unlink, "no file named"),
        ("unet/config.json", Path.unlink, "no file named"),
        ("model_index.json", Path.unlink, "no file named"),
        (UNET, pickle_it, "safetensors"),
        (ENCODER, pickle_it, "safetensors"),
    ],
)
def test_damaged_folders_are_refused(
    saved: Callable[[int], Path], tmp_path: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(saved(32), folder)
    damage(folder / file)
    with pytest.raises(Exception, match=message):
        load_unclip(str(folder), "cpu")


def test_half_precision_files_are_preferred(saved: Callable[[int], Path], stable: Any, tmp_path: Path) -> None:
    """As in the official repository: both kinds beside each other, only the small kind downloaded."""
    folder = tmp_path / "fp16"
    stable_unclip(tmp_path / "vocabulary", 32).to(torch.float16).save_pretrained(folder, variant="fp16")
    assert (folder / UNET.replace(".safetensors", ".fp16.safetensors")).exists()
    assert not (folder / UNET).exists()
    pipeline = load_unclip(str(folder), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == torch.float32
    assert torch.allclose(embed(pipeline, pictures(2)), embed(stable, pictures(2)), atol=0.02)


# ---- the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd-unclip-small", "/no/such/folder"])
def test_without_network_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((OSError, ValueError)):
        load_unclip(name, "cpu")


def test_a_copy_on_the_hub_is_used_by_its_name(saved: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    asked = []

    def download(name: str, **options: Any) -> Path:
        assert options == {"use_safetensors": True, "variant": "fp16"}
        asked.append(name)
        return saved(32)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert load_unclip("someone/copy", "cpu").unet.dtype == torch.float32
    assert asked == ["someone/copy"]


# ---- a GPU, played ------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[str]]:
    """A GPU with so many GiB free; the list says where the pipeline went."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    def with_free(gib: float) -> list[str]:
        went: list[str] = []

        def to(self: Any, device: torch.device) -> Any:
            went.append(f"to {device}")
            return self

        def offload(self: Any, device: torch.device) -> None:
            went.append(f"offload {device}")

        monkeypatch.setattr(unclip, "pick_device", lambda name: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), 80 * 2**30))
        monkeypatch.setattr(StableUnCLIPImg2ImgPipeline, "to", to)
        monkeypatch.setattr(StableUnCLIPImg2ImgPipeline, "enable_model_cpu_offload", offload)
        return went

    return with_free


@pytest.mark.parametrize(
    ("gib", "place"), [(40, "to cuda"), (12, "to cuda"), (11.9, "offload cuda"), (3, "offload cuda")]
)
def test_the_rule_of_memory(
    saved: Callable[[int], Path], gpu: Callable[[float], list[str]], gib: float, place: str
) -> None:
    went = gpu(gib)
    pipeline = load_unclip(str(saved(32)), "cuda")
    assert went == [place]
    assert pipeline.vae.use_slicing
    for part in ("unet", "vae", "image_encoder", "text_encoder", "image_normalizer"):
        assert next(getattr(pipeline, part).parameters()).dtype == torch.float16, part
