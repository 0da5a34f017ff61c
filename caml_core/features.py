"""Forward passes over a whole split: logits to score, features to learn on."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from caml_core import store
from caml_core.backbones import Backbone
from caml_core.data.dataset import GroupDataset
from caml_core.device import autocast
from caml_core.errors import CamlError
from caml_core.loader import batches


@torch.no_grad()
def predict(
    network: nn.Module,
    split: GroupDataset,
    device: torch.device,
    batch_size: int = 512,
    rows: Tensor | None = None,
) -> Tensor:
    """Logits of every example, or of these rows, in evaluation mode: float32 (N, C) on the CPU."""
    network.eval()
    with autocast(device):
        outputs = [network(batch.x).float().cpu() for batch in batches(split, batch_size, device=device, rows=rows)]
    return torch.cat(outputs)


@torch.no_grad()
def predict_with_features(
    network: Backbone, split: GroupDataset, device: torch.device, batch_size: int = 512, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits float32 (N, C) and the features they are made from, float32 (N, D), of every example or of these rows, in
    evaluation mode, on the CPU."""
    network.eval()
    logits, features = [], []
    with autocast(device):
        for batch in batches(split, batch_size, device=device, rows=rows):
            z = network.features(batch.x)
            features.append(z.float().cpu())
            logits.append(network.head(z).float().cpu())
    return torch.cat(logits), torch.cat(features)


@torch.no_grad()
def extract_features(
    network: Backbone, split: GroupDataset, device: torch.device, *, batch_size: int = 256, cache: bool = True
) -> GroupDataset:
    """The same split with features in place of images: x float32 (N, D).

    Features are kept in the user's cache under a hash of the weights and of the data; a file that is broken or that
    belongs to other weights or other data is refused, with a warning, and made again.
    """
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.")}
    meta: dict[str, Any] = {
        "weights": store.hash_state(weights),
        "data": split.content_hash(),
        "upscale": network.upscale,
        "body": type(network.body).__name__,
        "device": device.type,
    }
    path = store.cache_dir() / "features" / f"{meta['weights'][:16]}-{meta['data'][:16]}-{device.type}.npz"
    if cache and path.exists():
        try:
            return split.with_x(torch.from_numpy(store.load_npz(path, meta)["z"]))
        except CamlError as error:
            warnings.warn(f"extracting features again: {error.what}", stacklevel=2)
    network.to(device).eval()
    outputs = []
    with autocast(device):
        for batch in batches(split, batch_size, device=device):
            outputs.append(network.features(batch.x).float().cpu())
    z = torch.cat(outputs)
    if cache:
        store.save_npz(path, {"z": z.numpy()}, meta)
    return split.with_x(z)


def standardise(train: GroupDataset, *others: GroupDataset) -> tuple[GroupDataset, ...]:
    """Scale features to mean 0 and standard deviation 1 on `train`, all splits alike. Constant columns become 0."""
    std, mean = torch.std_mean(train.x, dim=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    return tuple(split.with_x((split.x - mean) * scale) for split in (train, *others))
