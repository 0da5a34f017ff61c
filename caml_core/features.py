"""Forward passes over a whole split: logits to score, features to learn on."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from caml_core import store
from caml_core.device import autocast
from caml_core.engine import onnx_features
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.loader import batches
from caml_core.networks import Backbone

Engine = Literal["torch", "onnx", "auto"]


def batch_size_for(network: nn.Module, split: GroupDataset, device: torch.device) -> int:
    """Examples at a time, a power of two: on a CPU images of about 2^18 pixels, so that the cache holds a layer."""
    if device.type != "cpu" or split.x.ndim < 4:
        return 512
    pixels = split.x.shape[-2:].numel() * getattr(network, "upscale", 1) ** 2
    return 2 ** min(9, max(4, round(math.log2(2**18 / pixels))))


@torch.no_grad()
def predict(network: nn.Module, split: GroupDataset, device: torch.device, rows: Tensor | None = None) -> Tensor:
    """Logits of every example, or of these rows, in evaluation mode: float32 (N, C) on the CPU."""
    network.eval()
    n = batch_size_for(network, split, device)
    with autocast(device):
        return torch.cat([network(batch.x).float() for batch in batches(split, n, device=device, rows=rows)]).cpu()


@torch.no_grad()
def predict_with_features(
    network: Backbone, split: GroupDataset, device: torch.device, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits float32 (N, C) and the features they are made from, float32 (N, D), of every example or of these rows, in
    evaluation mode, on the CPU."""
    network.eval()
    logits, features = [], []
    with autocast(device):
        for batch in batches(split, batch_size_for(network, split, device), device=device, rows=rows):
            z = network.features(batch.x)
            features.append(z.float())
            logits.append(network.head(z).float())
    return torch.cat(logits).cpu(), torch.cat(features).cpu()


@torch.no_grad()
def extract_features(
    network: Backbone,
    split: GroupDataset,
    device: torch.device,
    *,
    batch_size: int | None = None,
    cache: bool = True,
    engine: Engine = "torch",
) -> GroupDataset:
    """The same split with features in place of images: x float32 (N, D).

    Features are kept in the user's cache under a hash of the weights and of the data; a file that is broken or that
    belongs to other weights or other data is refused, with a warning, and made again.

    Args:
        batch_size: default: what is fast (`batch_size_for`).
        engine: "torch"; "onnx" (`caml_core.engine`, images on a CPU); "auto": that one where it can be had. They agree
            to 1e-4, and the cache keeps them apart.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "cache": cache}
    if engine == "auto" and device.type == "cpu" and split.x.ndim == 4 and find_spec("onnxruntime"):
        try:
            return extract_features(network, split, device, **how, engine="onnx")
        except CamlError as error:
            warnings.warn(f"{error.what}; PyTorch does it, more slowly", stacklevel=2)
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.")}
    meta: dict[str, Any] = {
        "weights": store.hash_state(weights),
        "data": split.content_hash(),
        "upscale": network.upscale,
        "body": type(network.body).__name__,
        "device": device.type,
    }
    meta |= {"engine": "onnx"} if engine == "onnx" else {}
    name = "-".join([meta["weights"][:16], meta["data"][:16], meta.get("engine", device.type)])
    path = store.cache_dir() / "features" / f"{name}.npz"
    if cache and path.exists():
        try:
            return split.with_x(torch.from_numpy(store.load_npz(path, meta)["z"]))
        except CamlError as error:
            warnings.warn(f"extracting features again: {error.what}", stacklevel=2)
    network.to(device).eval()
    features = onnx_features(network, split.x[:2]) if engine == "onnx" else network.features
    n = batch_size or batch_size_for(network, split, device)
    with autocast(device):
        z = torch.cat([features(batch.x).float() for batch in batches(split, n, device=device)]).cpu()
    if cache:
        store.save_npz(path, {"z": z.numpy()}, meta)
    return split.with_x(z)


def standardise(train: GroupDataset, *others: GroupDataset) -> tuple[GroupDataset, ...]:
    """Scale features to mean 0 and standard deviation 1 on `train`, all splits alike. Constant columns become 0."""
    std, mean = torch.std_mean(train.x, dim=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    return tuple(split.with_x((split.x - mean) * scale) for split in (train, *others))
