"""DDB: paint the other class into majority images with a diffusion model, keep what helps, retrain the last layer.

Diffusion Driven Balancing, Yazdan Parast, Azam, Akhtar, ICCV 2025, arXiv 2503.17226.

**Not run**: nobody has run this path with real weights for this book yet, and no table has a number from it. It is
tested from end to end on tiny random models. With a GPU and the weights of `SEGMENTER` and `INPAINTER` (3 GB):

1. A word for each class. Textual inversion (Gal et al., arXiv 2208.01618) learns an embedding of a new word from images
   of one class: run `examples/textual_inversion/textual_inversion.py` of the diffusers repository on some of them, and
   give its `learned_embeds.safetensors` to `load_painter`. A class that has a name can go without.
2. `segment` finds the part that makes the label, by a word for what all classes have in common ("bird").
3. `paint` replaces this part by the other class, in the training images of lowest loss. These are majority images, so
   the new ones are minority: the new bird, the old background.
4. `ddb` keeps a new image if the ERM model is *less* sure of the new class than it usually is of that class (so the old
   background is still there), and if the integrated gradients of that class's logit, from the old image to the new one,
   add up to more than a threshold within the painted part (so the new class is there, too).
5. The last layer is retrained on the originals + gamma x the new images, gamma chosen on the validation split. (The
   paper goes on with the whole network, at a small step size.)

The weights of Stable Diffusion 2 come under the CreativeML Open RAIL++-M licence and draw without a safety checker:
look at the pictures before you show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.dac import BATCH, put_head, retrain
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset
from caml_core.last_layer import Head, best_of, erm_head, noted
from caml_core.networks import Backbone

SEGMENTER = "CIDAS/clipseg-rd64-refined"
INPAINTER = "sd2-community/stable-diffusion-2-inpainting"  # a copy; Stability AI took its own off the Hub


class Painter(NamedTuple):
    """Models that find a part of an image by a word, and paint another over it."""

    processor: Any  # CLIPSegProcessor
    segmenter: Any  # CLIPSegForImageSegmentation
    pipeline: Any  # StableDiffusionInpaintPipeline


def load_painter(
    segmenter: str | Path = SEGMENTER,
    inpainter: str | Path = INPAINTER,
    *,
    words: Sequence[Path] = (),
    device: torch.device | None = None,
) -> Painter:
    """Load CLIPSeg (Lueddecke and Ecker, arXiv 2112.10003) and an inpainting pipeline of Stable Diffusion.

    Args:
        segmenter, inpainter: names on the Hub, or folders.
        words: files of learned words, safetensors that map a word such as `<landbird>` to its embedding (D,).

    Raises:
        CamlError: weights that are missing, broken or pickles.
    """
    from diffusers import StableDiffusionInpaintPipeline
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    device = device or torch.device("cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        processor = CLIPSegProcessor.from_pretrained(segmenter)
        model: Any = CLIPSegForImageSegmentation.from_pretrained(segmenter)
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(
            inpainter, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        ).to(device, dtype)
        for file in words:
            pipeline.load_textual_inversion(load_file(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise CamlError(
            what=f"cannot load {segmenter}, {inpainter} or a learned word: {str(error).splitlines()[0]}",
            expected="CLIPSeg, an inpainting pipeline and words in safetensors, in folders or on the Hub",
            remedy="check names and network; the first call downloads about 3 GB",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return Painter(processor, model.to(device).eval(), pipeline)


@torch.no_grad()
def segment(painter: Painter, x: Tensor, what: str) -> Tensor:
    """Where an image shows what the word says (probability above one half): uint8 (B, 3, H, W) to bool (B, H, W)."""
    images = list(x.permute(0, 2, 3, 1).numpy())
    inputs = painter.processor(text=[what] * len(x), images=images, padding=True, return_tensors="pt")
    logits = painter.segmenter(**inputs.to(painter.segmenter.device)).logits.float().cpu()
    logits = logits.view(len(x), 1, *logits.shape[-2:])
    return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)[:, 0] > 0


@torch.no_grad()
def paint(
    painter: Painter, x: Tensor, mask: Tensor, prompts: Sequence[str], seeds: Sequence[int], steps: int = 50
) -> Tensor:
    """Replace the masked part of each image by what its prompt says; the rest stays as it is, pixel by pixel.

    Args:
        x: uint8 (B, 3, H, W).
        mask: bool (B, H, W).
        seeds: one for each image, the source of all of its noise.
        steps: of the diffusion.
    """
    pipeline = painter.pipeline
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    drawn = pipeline(
        prompt=list(prompts),
        image=F.interpolate(x.float() / 255, (side, side), mode="bilinear", align_corners=False),
        mask_image=F.interpolate(mask[:, None].float(), (side, side)),
        height=side,
        width=side,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    drawn = F.interpolate(drawn.float().cpu(), x.shape[2:], mode="bilinear", align_corners=False, antialias=True)
    return torch.where(mask[:, None], (255 * drawn).round().clamp(0, 255).to(torch.uint8), x)


def evidence(network: Backbone, new: Tensor, old: Tensor, y: Tensor, mask: Tensor, device: torch.device) -> Tensor:
    """What the masked part adds to the logit of class y on the way from the old image to the new: float (B,).

    Integrated gradients (Sundararajan et al., arXiv 1703.01365) with the old image as the baseline. Over the whole
    image they add up to the difference of the two logits.
    """
    from captum.attr import IntegratedGradients

    a, b = (x.to(device).float() / 255 for x in (new, old))
    share = IntegratedGradients(network).attribute(a, b, target=y.to(device), internal_batch_size=BATCH).cpu()
    return (share * mask[:, None]).sum(dim=(1, 2, 3)).float()


def ddb(
    network: Backbone,
    images: GroupDataset,
    train: GroupDataset,
    val: GroupDataset,
    painter: Painter,
    *,
    part: str,
    words: Sequence[str],
    seed: int = 0,
    device: torch.device | None = None,
    pictures: int = 200,
    threshold: float = 0.3,
    gammas: Sequence[float] = (1.0, 3.0, 10.0),
    steps: int = 50,
    epochs: int = 50,
    select: Any = "worst_group",
) -> tuple[Head, GroupDataset]:
    """Retrain the last layer on original and painted training images. Uses no training group label.

    Args:
        network: its body makes the features; its head becomes the ERM head, in place.
        images: the training split, x uint8 (N, 3, H, W).
        train, val: features of the training and of the validation split, float32 (N, D), not standardised.
        part: word for what is to be replaced, such as "bird".
        words: one for each class, to paint: a name, or a learned word.
        pictures: images of lowest loss of each class, to paint over.
        threshold: of the evidence (a logit); the paper's code has 0.3.
        gammas: weights of the new images against the originals, to choose from.

    Returns:
        The head, for features standardised on `train`; and the new images that were kept, with their new labels.

    Raises:
        CamlError: no images, a setting out of range, no new image survives.
    """
    device = device or torch.device("cpu")
    n_classes = len(images.class_names)
    if images.x.ndim != 4 or len(words) != n_classes or pictures < 1 or steps < 1:
        raise CamlError(
            what=f"x {tuple(images.x.shape)}, {len(words)} words for {n_classes} classes, pictures={pictures}, "
            f"steps={steps}",
            expected="images (N, 3, H, W), one word for each class, at least one picture and one step",
            remedy="correct the setting",
        )
    scaled, scaled_val = standardise(train, val)
    erm = erm_head(scaled, scaled_val, seed=seed, device=device)
    put_head(erm, network, train.x)
    network.to(device).eval()

    p = erm.logits(scaled.x).softmax(dim=1).gather(1, train.y[:, None])[:, 0]
    usual = torch.stack([p[train.y == c].mean() for c in range(n_classes)])
    rows = torch.cat(
        [(p * (train.y == c)).topk(min(pictures, int((train.y == c).sum()))).indices for c in range(n_classes)]
    )
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    y = (images.y[rows] + torch.randint(1, n_classes, rows.shape, generator=generator)) % n_classes
    new, kept = images.x[rows], torch.zeros(len(rows), dtype=torch.bool)
    for at in torch.arange(len(rows)).split(BATCH):
        old, label = images.x[rows[at]], y[at]
        mask = segment(painter, old, part)
        prompts = [f"a photo of a {words[c]}" for c in label.tolist()]
        new[at] = paint(painter, old, mask, prompts, [stream_seed(seed, 1 + int(row)) for row in rows[at]], steps)
        with torch.no_grad():
            sure = network(new[at].to(device)).softmax(dim=1).cpu().gather(1, label[:, None])[:, 0]
        shown = evidence(network, new[at], old, label, mask, device) > threshold
        kept[at] = (sure < usual[label]) & shown
    if not kept.any():
        raise CamlError(
            what=f"none of {len(rows)} painted images was kept",
            expected="images of the new class that the network is unsure of",
            remedy=f"look at them; try another word for the part than {part!r}, or a lower threshold",
        )
    painted = GroupDataset(
        new[kept], y[kept], images.a[rows[kept]], class_names=images.class_names, attribute_names=images.attribute_names
    )
    z = standardise(train, extract_features(network, painted, device, batch_size=BATCH, cache=False))[1]
    heads = [
        noted(retrain(scaled, scaled_val, [z], gamma, epochs=epochs, select=select, device=device), gamma=gamma)
        for gamma in gammas
    ]
    return noted(best_of(heads, scaled_val, select), painted=len(rows), kept=len(painted)), painted
