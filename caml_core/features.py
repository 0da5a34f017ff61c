"""Forward passes over a whole split: logits to score, features to learn on."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from caml_core import store
from caml_core.device import autocast
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, same_names
from caml_core.loader import batches
from caml_core.networks import Backbone


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
    """As `predict`, with the features that the logits are made from: float32 (N, C) and (N, D)."""
    network.eval()
    n = batch_size_for(network, split, device)
    with autocast(device):
        z = [network.features(batch.x) for batch in batches(split, n, device=device, rows=rows)]
        logits = torch.cat([network.head(part).float() for part in z])
    return logits.cpu(), torch.cat([part.float() for part in z]).cpu()


@torch.no_grad()
def extract_features(
    network: Backbone,
    split: GroupDataset,
    device: torch.device,
    *,
    batch_size: int | None = None,
    cache: bool = True,
    engine: Literal["torch", "onnx"] = "torch",
) -> GroupDataset:
    """The same split with features in place of images: x float32 (N, D).

    Features are kept in the user's cache under a hash of the weights and of the data; a file that is broken or that
    belongs to other weights or other data is refused, with a warning, and made again.

    Args:
        batch_size: default: what is fast (`batch_size_for`).
        engine: "onnx" for `onnx_features` (images on a CPU). They agree to 1e-4, and the cache keeps them apart.
    """
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


def onnx_features(network: Backbone, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`network.features` by ONNX Runtime for batches of images like x (B, 3, H, W), some three times as fast on a CPU.

    In evaluation mode, with the weights of now. `CamlError` where a package is missing or does not know a layer.
    """
    body: Any = copy.deepcopy(network).eval()
    body.head = nn.Identity()
    file, how = io.BytesIO(), {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    try:
        import onnxruntime

        with warnings.catch_warnings(action="ignore"):
            export: Any = torch.onnx.export
            export(body, (x,), file, dynamo=False, **how)  # its successor takes twenty times as long
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait let others work
        session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each kind of layer has its own
        what = f"ONNX Runtime cannot compute these features: {str(error).splitlines()[0]}"
        remedy = "pip install onnx onnxruntime, or use engine='torch'"
        raise CamlError(what, "the packages onnx and onnxruntime, and layers that they know", remedy) from error
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def standardise(train: GroupDataset, *others: GroupDataset) -> tuple[GroupDataset, ...]:
    """Scale features to mean 0 and standard deviation 1 on `train`, all splits alike. Constant columns become 0."""
    same_names(train, *others)
    std, mean = torch.std_mean(train.x, dim=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    return tuple(split.with_x((split.x - mean) * scale) for split in (train, *others))
