"""What the pages' own networks are made of: ``python book/engines.py`` writes them from the weights of the package.

The page "See the edit" runs the tiny CLIP and the tiny unCLIP in the reader's browser. Their three graphs become ONNX
with weights of 8 bits (one scale for each output), and lie in one file of safetensors, which JavaScript reads in a few
lines, beside what else the page needs: scenes of chapter 15 with their embeddings, its coordinates and its head. The
file is committed, so that an installed package has it; `tests/test_engines.py` compares it with PyTorch.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.numpy import save
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, Python looks only beside this file
    sys.path.insert(0, str(ROOT))

from caml_core.data import load  # noqa: E402
from caml_core.data.scenery import Attributes  # noqa: E402
from caml_core.hsfm import draw_support  # noqa: E402
from caml_core.last_layer import erm_head  # noqa: E402
from caml_core.pictures.clip import VOCABULARY, embed_images, load_clip, tokenize  # noqa: E402
from caml_core.pictures.space import ClipSpace  # noqa: E402
from caml_core.pictures.tiny_unclip import LATENT, WIDTH, condition, load_tiny_unclip  # noqa: E402
from caml_core.store import atomic  # noqa: E402

FILE = ROOT / "caml_core" / "weights" / "see_the_edit.page.safetensors"
OPSET = 18
SMALL = 16_000  # matrices below stay exact: the first and last layers are, and hold nearly all of the loss
SHELF = 12  # scenes of each class to choose a support set from; the last two of them are of the minority
GALLERY = 480  # training scenes in all: among them is the nearest real one looked for
SIDE = 24  # scenes in a row of their common picture


class Pictures(nn.Module):
    """Pictures float (N, 3, 48, 48) of 0 to 255 to unit embeddings (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = load_clip().model

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x / 127.5 - 1, size=(64, 64), mode="bilinear", align_corners=False)
        return self.clip.encode_image(x, normalize=True)


class Texts(nn.Module):
    """Words int32 (N, 12), as `caml_core.pictures.clip.tokenize` numbers them, to unit embeddings (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = load_clip().model

    def forward(self, words: Tensor) -> Tensor:
        return self.clip.encode_text(words.long(), normalize=True)


class Velocity(nn.Module):
    """The guided velocity v0 + w (v - v0) at x (N, 27, 16, 16) and time t (1,), for unit embeddings (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        pipeline = load_tiny_unclip()
        self.unet, self.normalise = pipeline.unet, pipeline.image_normalizer
        level = torch.zeros(1, dtype=torch.long)
        self.register_buffer("level", condition(torch.zeros(1, WIDTH), level, torch.zeros(1, WIDTH))[:, WIDTH:])
        self.register_buffer("unused", torch.zeros(1, 1, 8))

    def forward(self, x: Tensor, t: Tensor, e: Tensor, w: Tensor) -> Tensor:
        told = torch.cat([self.normalise(e), self.level.expand(e.shape[0], -1)], dim=1)  # type: ignore[operator]
        both = torch.cat([torch.zeros_like(told), told])
        unused = self.unused.expand(both.shape[0], -1, -1)  # type: ignore[operator]
        v = self.unet(torch.cat([x, x]), t, encoder_hidden_states=unused, class_labels=both).sample
        without, given = v.chunk(2)
        return without + w * (given - without)


def graphs() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """The three networks, each with an example of what it takes; the first axis may be longer, but not that of t, w."""
    x, e = torch.randn(2, *LATENT), F.normalize(torch.randn(2, WIDTH), dim=1)
    return {
        "pictures": (Pictures(), {"x": torch.full((2, 3, 48, 48), 100.0)}),
        "texts": (Texts(), {"words": tokenize(["a red bird on water", "a bird"]).int()}),
        "velocity": (Velocity(), {"x": x, "t": torch.tensor([500.0]), "e": e, "w": torch.tensor([3.0])}),
    }


def to_onnx(network: nn.Module, example: dict[str, Tensor]) -> onnx.ModelProto:
    """A network as an ONNX graph of float32, without notes on where it was made."""
    file = io.BytesIO()
    many = {name: {0: "n"} for name, value in example.items() if len(value) > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), tuple(example.values()), file, dynamo=False, opset_version=OPSET,  # type: ignore[arg-type]
            input_names=list(example), output_names=["out"], dynamic_axes=many | {"out": {0: "n"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, its large matrices and filters as whole numbers of 8 bits times a scale for each output."""
    graph = model.graph
    kept, restored = [], []
    for weight in graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.dtype != np.float32 or value.ndim < 2 or value.size < SMALL:
            kept.append(weight)
            continue
        found = [_rounded(value, axis) for axis in (0, value.ndim - 1)]  # outputs come first, or last in a transpose
        whole, scale, _ = min(found, key=lambda each: each[2])
        name = weight.name
        kept += [numpy_helper.from_array(whole, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
        restored.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=onnx.TensorProto.FLOAT))
        restored.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
    nodes = [*restored, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return model


def _rounded(value: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, float]:
    others = tuple(i for i in range(value.ndim) if i != axis)
    scale = np.maximum(np.abs(value).max(axis=others, keepdims=True) / 127, 1e-12).astype(np.float32)
    whole = np.round(value / scale).astype(np.int8)
    return whole, scale, float(np.square(whole * scale - value).sum())


def scenes() -> dict[str, np.ndarray]:
    """What chapter 15 has at hand when HSFM begins: scenes, their embeddings, coordinates, the head."""
    train, val, _ = load("birdscapes", rho=0.95, seed=0)
    clip = load_clip()
    e_train, e_val = (split.with_x(embed_images(clip, split.x)) for split in (train, val))
    space = ClipSpace.fit(e_train.x)
    u_train, u_val = (split.with_x(space.to(split.x)) for split in (e_train, e_val))
    weight, bias = erm_head(u_train, u_val, seed=0)[:2]
    usual = draw_support(u_train, SHELF - 2, (0,))[0].view(2, -1)
    rare = torch.stack([torch.where(train.is_minority & (train.y == y))[0][:2] for y in (0, 1)])
    shelf = torch.cat([usual, rare], dim=1).flatten().tolist()
    rows = [*shelf, *(row for row in range(len(train)) if row not in shelf)][:GALLERY]
    attributes = torch.stack([train.extra[name][rows] for name in Attributes._fields], dim=1)
    found = {"e": e_train.x[rows], "attributes": attributes.to(torch.uint8), "weight": weight, "bias": bias}
    found |= {"mean": space.mean, "directions": space.directions, "val": u_val.x, "val_y": val.y.to(torch.uint8)}
    found["val_a"] = val.a.to(torch.uint8)
    arrays = {name: value.contiguous().numpy() for name, value in found.items()}
    return arrays | {"scenes": np.frombuffer(sheet(train.x[rows]), np.uint8)}


def sheet(x: Tensor) -> bytes:
    """Pictures uint8 (N, 3, 48, 48) as one, SIDE in a row: a JPEG."""
    n, size = len(x), x.shape[-1]
    tiled = x.view(n // SIDE, SIDE, 3, size, size).permute(0, 3, 1, 4, 2).reshape(n // SIDE * size, SIDE * size, 3)
    file = io.BytesIO()
    Image.fromarray(tiled.numpy()).save(file, "JPEG", quality=82, subsampling=0, optimize=True)
    return file.getvalue()


def main() -> None:
    torch.manual_seed(0)
    arrays: dict[str, Any] = scenes()
    for name, (network, example) in graphs().items():
        arrays[f"{name}.onnx"] = np.frombuffer(to_int8(to_onnx(network, example)).SerializeToString(), np.uint8)
        print(f"{name}: {len(arrays[f'{name}.onnx']) / 1e6:.2f} MB")
    with atomic(FILE) as temporary:
        temporary.write_bytes(save(arrays, {"words": " ".join(VOCABULARY[1:])}))
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
