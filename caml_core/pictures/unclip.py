"""Pictures from image embeddings: one `embed` and one `decode` for the tiny unCLIP and for Stable Diffusion's.

unCLIP (Ramesh et al., arXiv 2204.06125) is a diffusion model that draws an image from the CLIP embedding of one. A
pipeline here is diffusers' `StableUnCLIPImg2ImgPipeline`, or takes the same call: the tiny one has no image encoder and
decodes the embeddings of the tiny CLIP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.device import pick_device, stream_seed
from caml_core.errors import CamlError

UnCLIP = Any  # a pipeline as above: its parts are attributes set at run time, which a type checker cannot see

MODELS = {  # name: repository on the Hub
    "sd-unclip": "stabilityai/stable-diffusion-2-1-unclip",  # embeddings of OpenCLIP's ViT-H/14: D = 1,024
    "sd-unclip-small": "stabilityai/stable-diffusion-2-1-unclip-small",  # of OpenAI's ViT-L/14: D = 768
}
ROOM = 12  # GiB of free GPU memory in which all parts fit together; with less they visit it one after the other


def load_unclip(name: str = "tiny", device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> UnCLIP:
    """An unCLIP pipeline, ready for `embed` and `decode`. There is **no safety checker**: look at what it draws.

    Args:
        name: `"tiny"`, which ships with this package (birdscapes, 48 x 48); one of `MODELS` (768 x 768, 4 to 6 GB,
            under CreativeML Open RAIL++-M; chapter 15 says where they are now), `"owner/name"` of another repository on
            the Hub, or a folder in the layout of diffusers. What is damaged, or a pickle, is diffusers' OSError.
        dtype: of the Stable Diffusion models; default float16 on a GPU and float32 on a CPU.
    """
    device = pick_device(str(device))
    if name == "tiny":
        from caml_core.pictures.tiny_unclip import load_tiny_unclip

        return load_tiny_unclip(device=device)
    from diffusers import StableUnCLIPImg2ImgPipeline

    safe: dict[str, Any] = {"use_safetensors": True}
    folder = Path(name)
    if not folder.is_dir():  # from the Hub, in half precision where it has that
        folder = Path(StableUnCLIPImg2ImgPipeline.download(MODELS.get(name, name), variant="fp16", **safe))
    variant = "fp16" if any(folder.glob("*/*.fp16.safetensors")) else None
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    pipeline: UnCLIP = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=dtype, variant=variant, **safe)
    pipeline.vae.enable_slicing()  # one picture at a time where the layers are widest
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < ROOM * 2**30:
        pipeline.enable_model_cpu_offload(device=device)  # slower, same pictures; needs the package accelerate
        return pipeline
    return pipeline.to(device)


@torch.no_grad()
def embed(pipeline: UnCLIP, images: Tensor, batch_size: int = 32) -> Tensor:
    """Embeddings of uint8 images (N, 3, H, W) as the pipeline's decoder wants them, not rescaled: float32 (N, D)."""
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    if not hasattr(pipeline, "image_encoder"):
        from caml_core.pictures.clip import embed_images, load_clip

        return embed_images(load_clip(device=device), images, batch_size)
    if images.dtype != torch.uint8:  # would be taken for 0 to 255
        raise CamlError(f"images of type {images.dtype}", "uint8", "give rows of a dataset's x, such as train.x[:16]")
    embeds = []
    for batch in images.split(batch_size):
        pixels = pipeline.feature_extractor(images=batch, return_tensors="pt").pixel_values
        embeds.append(pipeline.image_encoder(pixels.to(device, dtype)).image_embeds.float().cpu())
    pipeline.maybe_free_model_hooks()  # an encoder that only visits the GPU leaves it again
    return torch.cat(embeds)


@torch.no_grad()
def decode(
    pipeline: UnCLIP,
    embeds: Tensor,
    *,
    steps: int = 20,
    guidance: float | None = None,
    noise_level: int = 0,
    seed: int = 0,
    same_noise: bool = True,
    norm: float | Tensor | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Draw one picture for each embedding (N, D): uint8 (N, 3, H, W) on the CPU.

    The noise of row i depends on `seed` (and on i, unless `same_noise`), never on the other rows, so two calls with one
    seed, before and after an edit, differ by the edit alone. Another batch size can change how a pixel is rounded.

    Args:
        guidance: scale w of v0 + w (v - v0), v0 predicted without the embedding; default: the pipeline's own.
        noise_level: of unCLIP's noise augmentation, 0 to 999: noise that is added to the embedding first.
        norm: length, or lengths (N,), to which rows are scaled first, for edits made on the unit sphere: decoders know
            only lengths that their encoder gives, `embed(pipeline, images).norm(dim=1)`.
    """
    if noise_level < 0:  # the library would count it from the far end
        raise CamlError(f"noise_level={noise_level}", "0 to 999", "correct the setting")
    embeds = embeds.float().cpu()
    if norm is not None:
        embeds = F.normalize(embeds, dim=1) * torch.as_tensor(norm, dtype=torch.float32).cpu().reshape(-1, 1)
    how: dict[str, Any] = {"num_inference_steps": steps, "noise_level": noise_level, "output_type": "pt"}
    how |= {} if guidance is None else {"guidance_scale": guidance}
    pictures = []
    for rows in torch.arange(len(embeds)).split(batch_size):
        if hasattr(pipeline, "tokenizer"):  # Stable Diffusion wants words too; it gets none
            how["prompt"] = [""] * len(rows)
        streams = [stream_seed(seed, 0 if same_noise else row) for row in rows.tolist()]
        generator = [torch.Generator().manual_seed(stream) for stream in streams]
        batch = embeds[rows].to(pipeline._execution_device, pipeline.unet.dtype)
        pictures.append(pipeline(image_embeds=batch, generator=generator, **how).images.float().cpu())
    x = torch.cat(pictures)
    if not x.isfinite().all():
        what = f"the decoder drew pictures that are not finite; embeddings reach {float(embeds.abs().max()):.3g}"
        raise CamlError(what, "pixels in [0, 1]", "half precision can overflow: load_unclip(name, dtype=torch.float32)")
    return (255 * x).round().to(torch.uint8)
