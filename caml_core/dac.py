"""DaC: cut pictures in two where the network looks, compose new ones that break the shortcut, retrain the last layer.

Decompose-and-Compose, Hosseini Noohdani et al., CVPR 2024, arXiv 2402.18919. With the ERM model:

    heat map:  XGradCAM of the label's logit, enlarged to the size of the image
    mask m:    the pixels above a quantile of the heat map; of the quantiles .3 ... .8 each image takes the elbow of
               its masked loss: keep cutting as long as it costs little
    masked:    m x + (1 - m) c, with c the mean colour of these images
    combined:  m_i x_i + (1 - m_i) [(1 - m_j) x_j + m_j c], the rest of j around the part of i, labelled y_i
    last layer: mean CE(originals) + alpha [mean CE(masked) + mean CE(combined)]

Only images of low loss are cut, nearly all majority, so that two of different classes combine to a minority image.
Whether the network looks at what makes the label (a bird) or at the shortcut (an easy digit) depends on the data; in
the second case m and 1 - m change places. All is chosen on the validation split; no training group label is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset
from caml_core.last_layer import Head, best_of, descend, erm_head, noted
from caml_core.metrics import Rule
from caml_core.networks import Backbone

CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # quantiles of the heat map below which an image may be masked
BATCH = 32  # images of a forward pass: on a CPU small batches are faster, since they stay in its cache


def dac(
    network: Backbone,
    images: GroupDataset,
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    quantiles: Sequence[float] = (0.6, 0.8),
    alphas: Sequence[float] = (1.0, 3.0, 10.0, 30.0, 100.0),
    pictures: int = 2000,
    epochs: int = 50,
    select: Rule = "worst_group",
) -> Head:
    """Retrain the last layer on original, masked and combined training images.

    Args:
        network: its body makes the features; its head becomes the ERM head, in place.
        images: the training split, x uint8 (N, 3, H, W).
        train, val: features of the training and of the validation split, float32 (N, D), not standardised.
        quantiles, alphas: to choose from: of the training loss, images below are cut; weights of the new images.
        pictures: how many of these images are cut, drawn at random. (The paper cuts all; each costs nine passes.)

    Returns:
        The head, for features standardised on `train`.
    """
    device = device or torch.device("cpu")
    if images.x.ndim != 4 or len(images) != len(train):
        what = f"x of shape {tuple(images.x.shape)} beside {len(train)} rows of features"
        raise CamlError(what, "images (N, 3, H, W), a row each", "DaC changes pixels: pass images and their features")
    scaled, scaled_val = standardise(train, val)
    erm = erm_head(scaled, scaled_val, seed=seed, device=device)
    put_head(erm, network, train.x)
    network.to(device).eval()

    losses = F.cross_entropy(erm.logits(scaled.x), train.y, reduction="none")
    limits = losses.quantile(torch.tensor(sorted(quantiles)))
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    rows, partner = pairs(losses, train.y, limits, pictures, generator)
    low = images.subset(rows)
    colour = low.x.float().mean(dim=(0, 2, 3)).round().to(torch.uint8)[:, None, None]
    mask, heads = masks(network, low, colour, device), []
    for inverted in (False, True):
        m = ~mask if inverted else mask
        new = (masked(low.x, m, colour), combined(low.x, m, low.x[partner], m[partner], colour))
        z = [extract_features(network, low.with_x(x), device, batch_size=BATCH, cache=False) for x in new]
        parts = standardise(train, *z)[1:]
        for quantile, limit in zip(sorted(quantiles), limits):
            kept = torch.where(losses[rows] <= limit)[0]
            below = [part.subset(kept) for part in parts]
            for alpha in alphas:
                head = retrain(scaled, scaled_val, below, alpha, epochs=epochs, select=select, device=device)
                heads.append(noted(head, quantile=quantile, alpha=alpha, inverted=inverted, cut=len(kept)))
    return best_of(heads, scaled_val, select)


def retrain(train: GroupDataset, val: GroupDataset, parts: Sequence[GroupDataset], weight: float, **how: Any) -> Head:
    """The head (`caml_core.last_layer.descend`) that minimises mean CE(train) + weight * (mean CE of each part)."""
    x, y, a = (torch.cat([getattr(split, name) for split in (train, *parts)]) for name in ("x", "y", "a"))
    both = GroupDataset(x, y, a, class_names=train.class_names, attribute_names=train.attribute_names)
    weights = [torch.full((len(train),), 1 / len(train))]
    weights += [torch.full((len(part),), weight / len(part)) for part in parts]
    return descend(both, val, (torch.cat(weights) / (1 + weight * len(parts))).to, **how)


def pairs(losses: Tensor, y: Tensor, limits: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to n random rows of low loss, int64 (n,), and for each a random one of another class, its position in them.

    A partner lies below every limit (they rise) that its row is below, so one set of pairs serves all limits.
    """
    order = torch.randperm(len(y), generator=generator)
    rows = order[losses[order] <= limits[-1]][:n]
    band = torch.bucketize(losses[rows], limits)  # number of limits below the loss
    partner = torch.full_like(rows, -1)
    for b, label in itertools.product(range(len(limits)), y.unique().tolist()):
        mine = torch.where((band == b) & (y[rows] == label))[0]
        others = torch.where((band <= b) & (y[rows] != label))[0]
        if len(mine) and not len(others):
            what, remedy = f"all images of low loss belong to class {label}", "raise the loss quantile, or cut more"
            raise CamlError(what, "images of two classes, to combine them", remedy)
        if len(mine):
            partner[mine] = others[torch.randint(len(others), mine.shape, generator=generator)]
    return rows, partner


@torch.no_grad()
def masks(network: Backbone, split: GroupDataset, colour: Tensor, device: torch.device) -> Tensor:
    """For each image the part that the network looks at, cut at its own elbow: bool (N, H, W)."""
    heat = heat_maps(network, split, device)
    flat = heat.flatten(1)
    tried = [heat > flat.kthvalue(round(q * flat.shape[1]), dim=1).values[:, None, None] for q in CUTS]
    losses = []
    for mask in tried:
        cut = split.with_x(masked(split.x, mask, colour))
        z = extract_features(network, cut, device, batch_size=BATCH, cache=False)
        losses.append(F.cross_entropy(network.head(z.x.to(device)).cpu(), split.y, reduction="none"))
    return torch.stack(tried, dim=1)[torch.arange(len(split)), elbow(torch.stack(losses, dim=1))]


def heat_maps(network: Backbone, split: GroupDataset, device: torch.device) -> Tensor:
    """XGradCAM of the label's logit: float32 (N, H, W), on the CPU.

    It is sum_k w_k A_k, w_k the mean over positions of d logit / d A_k, each weighted by the feature map A_k. Where the
    linear head sees only the mean of A_k, the derivative is the same everywhere, and captum's Grad-CAM *is* XGradCAM.
    """
    from captum.attr import LayerGradCam

    cam = LayerGradCam(network, last_maps(network, split.x[:1].to(device)))
    heat = []
    for x, y in zip(split.x.split(BATCH), split.y.split(BATCH)):
        small = cam.attribute(x.to(device).float() / 255, target=y.to(device)).detach()
        heat.append(F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)[:, 0].cpu())
    return torch.cat(heat)


@torch.no_grad()
def last_maps(network: Backbone, x: Tensor) -> nn.Module:
    """The module of the body that makes the last feature maps, (B, C, h, w), those that are averaged to features."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        if output.ndim == 4 and output[0, 0].numel() > 1:
            seen.append(module)

    with register_module_forward_hook(note):
        network.features(x)
    if not seen:
        remedy = "use --backbone small_resnet or efficientnet_lite0"
        raise CamlError(
            "a network without feature maps, or small images", "maps of several positions, averaged", remedy
        )
    return seen[-1]


def elbow(losses: Tensor) -> Tensor:
    """The last cut before the loss takes off: int64 (N,), a column of `losses` (N, len(CUTS)); else the last.

    As Kneedle (Satopaa et al., 2011) finds it: the point furthest below the line from the first loss to the last.
    """
    below = losses[:, :1].lerp(losses[:, -1:], torch.linspace(0, 1, losses.shape[1])) - losses
    return torch.where(below.amax(dim=1) > 1e-6, below.argmax(dim=1), losses.shape[1] - 1)


def masked(x: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Images (N, 3, H, W) where mask (N, H, W) is true, elsewhere the colour (3, 1, 1)."""
    return torch.where(mask[:, None], x, colour)


def combined(x: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor, colour: Tensor) -> Tensor:
    """The part of x in its mask, before what another image holds outside its own: uint8 (N, 3, H, W)."""
    return torch.where(mask[:, None], x, masked(other, ~other_mask, colour))


@torch.no_grad()
def put_head(head: Head, network: Backbone, x: Tensor) -> None:
    """Give the network a head for standardised features as one for features x as they come."""
    std, mean = torch.std_mean(x, dim=0)
    weight = head.weight * torch.where(std > 0, 1 / std, 0.0)
    network.head.weight.copy_(weight)
    network.head.bias.copy_(head.bias - weight @ mean)
