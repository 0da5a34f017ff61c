"""Pictures from image embeddings: one `embed` and one `decode` for the tiny unCLIP and for Stable Diffusion's.

unCLIP (Ramesh et al., arXiv 2204.06125) is a diffusion model that draws an image from the CLIP embedding of one. A
pipeline here is a diffusers `DiffusionPipeline` with

- a `unet` whose `config.projection_class_embeddings_input_dim` is 2 D: the embedding beside a code of its noise level;
- a call `pipeline(image_embeds=, num_inference_steps=, guidance_scale=, noise_level=, generator=, output_type="pt")`
  with `.images` in [0, 1], where `generator` is a list: one for each row, the source of all of that row's noise;
- an `image_encoder` and a `feature_extractor` as in `StableUnCLIPImg2ImgPipeline`; without them, it decodes the
  embeddings of the tiny CLIP.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from caml_core.data.sources import hub_is_reachable
from caml_core.device import pick_device, stream_seed
from caml_core.errors import CamlError

UnCLIP = Any  # a pipeline as above: its parts are attributes set at run time, which a type checker cannot see

MODELS = {  # name: repository on the Hub
    "sd-unclip": "stabilityai/stable-diffusion-2-1-unclip",  # embeddings of OpenCLIP's ViT-H/14: D = 1,024
    "sd-unclip-small": "stabilityai/stable-diffusion-2-1-unclip-small",  # of OpenAI's ViT-L/14: D = 768
}
OFFLOAD_BELOW, REFUSE_BELOW = 12, 4  # GiB of free GPU memory, see `load_unclip`
MAX_STEPS = 1000  # noise levels that unCLIP is trained with, of pictures and of embeddings alike


def load_unclip(name: str = "tiny", device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> UnCLIP:
    """An unCLIP pipeline by name, ready for `embed` and `decode`.

    Memory on a GPU: with 12 GiB free or more, everything stays there. Between 4 and 12 GiB the parts wait in main
    memory and visit the GPU one after the other ("model offload": slower, same pictures; needs the package accelerate).
    With less it is refused. Attention is not sliced: PyTorch's fused kernels never hold a whole attention map.

    Licence and safety: the weights of Stable Diffusion come under the CreativeML Open RAIL++-M licence. It allows
    research and commercial use, forbids a list of harmful uses, and asks that the list travel with the weights and with
    what is built from them. The pipeline has **no safety checker**: nothing looks at what it draws, so somebody must
    before pictures are shown. It carries the biases of its training images, and a face drawn from the
    embedding of a photograph is made up; it is not evidence about a person.

    Args:
        name: `"tiny"`, which ships with this package (birdscapes, 48 x 48); `"sd-unclip"` or `"sd-unclip-small"`
            (768 x 768, 4 to 6 GB to download once); a folder in the layout of diffusers; or `"owner/name"` of
            another repository on the Hub. Stability AI took its Stable Diffusion 2 repositories off the Hub in November
            2025; the account sd2-community, not theirs, keeps copies under the same names. A copy that you downloaded
            earlier works from the Hub's cache.
        device: see `pick_device`.
        dtype: of the Stable Diffusion models; default float16 on a GPU and float32 on a CPU.

    Raises:
        CamlError: unknown name, no network, weights that are missing, damaged, incomplete or pickles (only safetensors
            are read), widths of image encoder and decoder that do not fit, float16 on a CPU, too little GPU memory.
    """
    device = pick_device(str(device))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    _check_precision(device, dtype)
    if name == "tiny":
        from caml_core.tiny_unclip import load_tiny_unclip

        return load_tiny_unclip(device=device)
    free = torch.cuda.mem_get_info(device)[0] / 2**30 if device.type == "cuda" else math.inf
    if free < REFUSE_BELOW:
        raise CamlError(
            what=f"{free:.1f} GiB of GPU memory are free",
            expected=f"{REFUSE_BELOW} GiB for Stable Diffusion, one part at a time",
            remedy='end other programs on the GPU, or use load_unclip("tiny")',
        )
    folder = _folder(name)
    pipeline = _read(folder, dtype)
    _check_parts(pipeline, folder)
    pipeline.vae.enable_slicing()  # one picture at a time where the layers are widest
    if free >= OFFLOAD_BELOW:
        with _gpu_memory():
            return pipeline.to(device)
    try:
        pipeline.enable_model_cpu_offload(device=device)
    except ImportError as error:
        raise CamlError(
            what=f"{free:.1f} GiB of GPU memory are free, and offloading needs the package accelerate",
            expected=f"accelerate, or {OFFLOAD_BELOW} GiB",
            remedy="pip install accelerate, or end other programs on the GPU",
        ) from error
    return pipeline


@torch.no_grad()
def embed(pipeline: UnCLIP, images: Tensor, batch_size: int = 32) -> Tensor:
    """Image embeddings as the pipeline's decoder wants them, not rescaled: float32 (N, D) on the CPU.

    Args:
        images: uint8 (N, 3, H, W).

    Raises:
        CamlError: other images, or a GPU that runs out of memory.
    """
    good = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
    found = f"of type {images.dtype} and shape {tuple(images.shape)}"
    _check("images", found, good, "uint8 (N, 3, H, W)", "give rows of a dataset's x, such as train.x[:16]")
    _check("batch_size =", batch_size, batch_size >= 1, "1 or more")
    device, dtype = _place(pipeline)
    with _gpu_memory():
        if not hasattr(pipeline, "image_encoder"):
            from caml_core.tiny_clip import embed_images, load_clip

            return embed_images(load_clip(device=device), images, batch_size)
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
    """Draw one picture for each embedding: uint8 (N, 3, H, W) on the CPU.

    The noise of row i depends on `seed` (and on i, unless `same_noise`), never on the other rows, so two calls with one
    seed, before and after an edit, start from the same noise and differ by the edit alone. A call repeats bit for bit;
    other rows or another batch size can change how a pixel is rounded.

    Args:
        embeds: (N, D), rows like those of `embed`, edited or not.
        steps: of the sampler.
        guidance: scale w of classifier-free guidance, prediction = v0 + w (v - v0), where v0 is made without the
            embedding; 1 is no guidance. Default: the pipeline's own.
        noise_level: of unCLIP's noise augmentation, 0 to 999: noise that is added to the embedding first. The more, the
            further the picture may stray from it.
        same_noise: all rows share one noise.
        norm: length, or lengths (N,), to which rows are scaled first, for edits made on the unit sphere: decoders know
            only lengths that their encoder gives, `embed(pipeline, images).norm(dim=1)`.

    Raises:
        CamlError: embeddings of another width, or not finite; a setting out of range; float16 on a CPU; a GPU that runs
            out of memory; pictures that are not finite (half precision overflowed).
    """
    width = pipeline.unet.config.projection_class_embeddings_input_dim // 2
    good = embeds.ndim == 2 and embeds.shape[1] == width and len(embeds) > 0
    remedy = "make them with embed and this pipeline: every decoder has an image encoder of its own"
    _check("embeddings", f"of shape {tuple(embeds.shape)}", good, f"(N, {width})", remedy)
    bad = int((~embeds.isfinite()).any(dim=1).sum())
    remedy = "look at the step that made them: did an edit diverge?"
    _check("embeddings", f"with NaN or infinity, {bad} of {len(embeds)}", not bad, "finite numbers", remedy)
    _check("steps =", steps, isinstance(steps, int) and 1 <= steps <= MAX_STEPS, f"a whole number, 1 to {MAX_STEPS}")
    _check("guidance =", guidance, guidance is None or 1 <= guidance < math.inf, "a number from 1 (no guidance)")
    good = isinstance(noise_level, int) and 0 <= noise_level < MAX_STEPS
    _check("noise_level =", noise_level, good, f"a whole number, 0 to {MAX_STEPS - 1}")
    _check("batch_size =", batch_size, batch_size >= 1, "1 or more")
    device, dtype = _place(pipeline)
    embeds = embeds.float().cpu()
    if norm is not None:
        lengths = torch.as_tensor(norm, dtype=torch.float32).cpu().reshape(-1, 1)
        good = len(lengths) in (1, len(embeds)) and bool(((lengths > 0) & lengths.isfinite()).all())
        good = good and bool(embeds.any(dim=1).all())
        _check("norm =", norm, good, "one positive length, or one for each embedding; no embedding all zeros")
        embeds = F.normalize(embeds, dim=1) * lengths

    settings: dict[str, Any] = {"num_inference_steps": steps, "noise_level": noise_level, "output_type": "pt"}
    if guidance is not None:
        settings["guidance_scale"] = guidance
    pictures = []
    with _gpu_memory():
        # Stable Diffusion wants words too. It gets none: the empty prompt, encoded once, with and without guidance.
        words = pipeline.encode_prompt("", device, 1, False)[0] if hasattr(pipeline, "encode_prompt") else None
        for rows in torch.arange(len(embeds)).split(batch_size):
            if words is not None:
                settings["prompt_embeds"] = settings["negative_prompt_embeds"] = words.expand(len(rows), -1, -1)
            streams = [0 if same_noise else row for row in rows.tolist()]
            generator = [torch.Generator().manual_seed(stream_seed(seed, stream)) for stream in streams]
            batch = pipeline(image_embeds=embeds[rows].to(device, dtype), generator=generator, **settings).images
            pictures.append(batch.float().cpu())
    x = torch.cat(pictures)
    if not x.isfinite().all():
        raise CamlError(
            what="the decoder drew pictures that are not finite",
            expected="pixels in [0, 1]",
            remedy="half precision can overflow: load_unclip(name, dtype=torch.float32)",
        )
    return (255 * x).round().to(torch.uint8)


def _folder(name: str) -> Path:
    """Where the files of a model lie; downloaded if need be, in half precision where the repository has that."""
    if Path(name).is_dir():
        return Path(name)
    repository = MODELS.get(name, name)
    if repository.count("/") != 1:
        raise CamlError(
            what=f"unknown unCLIP model {name!r}",
            expected="tiny, " + ", ".join(MODELS) + ", a folder, or owner/name of a repository on the Hub",
            remedy="check the spelling, or the path of the folder",
        )
    from diffusers import DiffusionPipeline

    online = hub_is_reachable()
    try:
        return Path(
            DiffusionPipeline.download(repository, use_safetensors=True, variant="fp16", local_files_only=not online)
        )
    except Exception as error:  # of the Hub, the network or the disk: dozens of classes
        copy = f"sd2-community/{repository.split('/')[1]}"
        raise CamlError(
            what=f"cannot get {repository}: "
            + (_first_line(error.__cause__ or error) if online else "not in the Hub's cache, and there is no network"),
            expected="a repository on the Hub with all weights in safetensors, or a folder",
            remedy=f"Stability AI took its own off the Hub in 2025; load_unclip({copy!r}) may be a copy, and a folder "
            'will do. load_unclip("tiny") needs no download',
        ) from error


def _read(folder: Path, dtype: torch.dtype) -> UnCLIP:
    from diffusers import StableUnCLIPImg2ImgPipeline

    variant = "fp16" if any(folder.glob("*/*.fp16.safetensors")) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype is an old name; older diffusers know no other
            return StableUnCLIPImg2ImgPipeline.from_pretrained(
                folder, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # OSError, ValueError, SafetensorError, KeyError: whichever part notices first
        raise CamlError(
            what=f"cannot load a Stable unCLIP pipeline from {folder}: {_first_line(error)}",
            expected="a StableUnCLIPImg2ImgPipeline as diffusers saves it, whole, its weights in safetensors",
            remedy="delete the folder and download it again; pickles (.bin, .ckpt) are refused, as they can run code",
        ) from error


def _check_parts(pipeline: UnCLIP, folder: Path) -> None:
    """The parts fit each other, and each is whole: a tensor that its file lacks would be random, with but a warning."""
    width = pipeline.image_encoder.config.projection_dim
    norms, wanted = pipeline.image_normalizer.mean.shape[-1], pipeline.unet.config.projection_class_embeddings_input_dim
    if norms != width or wanted != 2 * width:
        raise CamlError(
            what=f"the image encoder gives {width} numbers, the normaliser takes {norms} and the decoder {wanted}",
            expected=f"{width}, {width} and {2 * width} (the embedding and a code of its noise level)",
            remedy="use the image encoder that the decoder was trained with (ViT-H/14: 1,024; ViT-L/14: 768)",
        )
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            files = [*(folder / name).glob("*.fp16*.safetensors")] or [*(folder / name).glob("*.safetensors")]
            held = 0
            for path in files:
                with safe_open(path, "pt") as file:
                    held += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
            if held < (needed := sum(tensor.numel() for tensor in part.parameters())):
                raise CamlError(
                    what=f"{folder / name} holds {held:,} weights",
                    expected=f"the {needed:,} of a {type(part).__name__} with this config.json",
                    remedy="delete the folder and download it again",
                )


def _check(what: str, found: object, good: bool, expected: str, remedy: str = "leave it at its default") -> None:
    if not good:
        raise CamlError(what=f"{what} {found}", expected=expected, remedy=remedy)


def _place(pipeline: UnCLIP) -> tuple[torch.device, torch.dtype]:
    """Where the pipeline computes, which is not where its offloaded parts lie, and in what precision."""
    device = getattr(pipeline, "_execution_device", None) or pipeline.unet.device
    _check_precision(device, pipeline.unet.dtype)
    return device, pipeline.unet.dtype


def _check_precision(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cpu" and dtype == torch.float16:
        raise CamlError(
            what="float16 on a CPU",
            expected="float32 there; half precision is for GPUs",
            remedy="load_unclip without dtype, or on a machine with a GPU",
        )


@contextlib.contextmanager
def _gpu_memory() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise CamlError(
            what=f"the GPU ran out of memory: {_first_line(error)}",
            expected="room for the model and one batch",
            remedy="a smaller batch_size; or end other programs on the GPU and load the model again",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
