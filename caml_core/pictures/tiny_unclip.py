"""A diffusion decoder of a few megabytes: from the tiny CLIP's image embedding back to a birdscape.

unCLIP (Ramesh et al., arXiv 2204.06125) trains p(image | CLIP embedding). Ours works on pixels, 48 x 48, folded 3 x 3
into 27 channels of 16 x 16; its U-Net is diffusers' own. As in Stable unCLIP the embedding is normalised, may be noised
(level 0 to 999, told to the network), and enters through the class-embedding projection. The call takes
`image_embeds=` as StableUnCLIPImg2ImgPipeline does, so `caml_core.pictures.unclip.decode` serves both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers import UNet2DConditionModel as UNet
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from caml_core.pictures.clip import WIDTH
from caml_core.store import load_checkpoint

WEIGHTS = Path(__file__).parent.parent / "weights" / "tiny_unclip.safetensors"
FOLD = 3  # pixels of a 3 x 3 block become channels
IMAGE_SIZE = 48
LATENT = (3 * FOLD**2, IMAGE_SIZE // FOLD, IMAGE_SIZE // FOLD)
TIMESTEPS = 1000
COSINE: dict[str, Any] = {"num_train_timesteps": TIMESTEPS, "beta_schedule": "squaredcos_cap_v2"}
NOISER: Any = DDPMScheduler(**COSINE)  # of embeddings
# v = sqrt(abar) noise - sqrt(1 - abar) x is predicted (Salimans and Ho, arXiv 2202.00512).
SCHEDULE = {**COSINE, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


class Normaliser(ModelMixin):  # nn.Module with the `device` and `dtype` that a pipeline asks its parts for
    """Embeddings to coordinates of about unit variance in every direction: (e - mean) (S + shrink)^(-1/2).

    Without it a few directions (background, colour) hold most of the variance and the kind of bird hides in the rest.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, width) to (N, width)."""
        result: Tensor = (embeddings - self.mean) @ self.matrix  # type: ignore[operator]
        return result


def build_unet() -> UNet:
    """The denoiser with fresh weights: three resolutions, one block each, attention on the coarsest."""
    return UNet(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        norm_num_groups=8,
        attention_head_dim=16,
        cross_attention_dim=8,  # never used: the embedding comes as a class
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * WIDTH,
    ).to(memory_format=torch.channels_last)


def condition(normalised: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """What the U-Net is told, float32 (N, 2 width): normalised embeddings (N, width) with standard normal noise, and
    its level int64 (N,), 0 (no noise) to 999."""
    noised = torch.where(level[:, None] > 0, NOISER.add_noise(normalised, noise, level), normalised)
    sinusoid = get_timestep_embedding(level, WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([noised, sinusoid], dim=1)


class TinyUnCLIPPipeline(DiffusionPipeline):
    """Decode image embeddings of the tiny CLIP."""

    def __init__(self, unet: UNet, image_normalizer: Normaliser, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, image_normalizer=image_normalizer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        image_embeds: Tensor,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        noise_level: int = 0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
    ) -> ImagePipelineOutput:
        """Pictures of embeddings (N, width) of unit length: (N, 3, 48, 48) in [0, 1], or "np" or "pil".

        Args:
            guidance_scale: of the prediction v0 + w (v - v0), as validation chose it (see the card); 1 is none.
            noise_level: 0 to 999, noise added to the normalised embedding first.
            generator: of all random numbers; a list gives one to each picture.
            latents: initial noise (N, 27, 16, 16) in place of what `generator` would draw.
        """
        n, device, dtype = len(image_embeds), self.unet.device, self.unet.dtype
        draw: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        level = torch.full((n,), noise_level, device=device)
        noise = randn_tensor((n, WIDTH), **draw)  # drawn at level 0, too: the level must not change the next draw
        c = condition(self.image_normalizer(image_embeds.to(device, dtype)), level, noise).to(dtype)
        x = randn_tensor((n, *LATENT), **draw) if latents is None else latents.to(device, dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        guided = guidance_scale != 1
        c = torch.cat([torch.zeros_like(c), c]) if guided else c
        unused = torch.zeros(len(c), 1, 8, device=device, dtype=dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            v = self.unet(torch.cat([x, x]) if guided else x, t, encoder_hidden_states=unused, class_labels=c).sample
            if guided:
                unconditional, conditional = v.chunk(2)
                v = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(v, t, x).prev_sample
        folded = F.pixel_shuffle(x.float(), FOLD)
        return ImagePipelineOutput(images=VaeImageProcessor().postprocess(folded, output_type=output_type))


def build_pipeline(unet: UNet, normaliser: Normaliser) -> TinyUnCLIPPipeline:
    """The pipeline around a denoiser, with the deterministic DDIM sampler and no progress bar."""
    pipeline = TinyUnCLIPPipeline(unet.eval(), normaliser, DDIMScheduler(**SCHEDULE, clip_sample=True))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_tiny_unclip(device: str | torch.device = "cpu", weights: Path = WEIGHTS) -> TinyUnCLIPPipeline:
    """The decoder that comes with the book, in float32; `CamlError` or RuntimeError on weights of another model."""
    tensors, _ = load_checkpoint(weights)
    unet, normaliser = build_unet(), Normaliser()
    for part, module in (("unet/", unet), ("normaliser/", normaliser)):
        state = {key.removeprefix(part): value.float() for key, value in tensors.items() if key.startswith(part)}
        module.load_state_dict(state)
    return build_pipeline(unet.to(device), normaliser.to(device))
