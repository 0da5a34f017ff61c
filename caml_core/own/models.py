"""Bring a model: whatever ends in a linear layer becomes a `Backbone`, its features and its head apart.

| what you give | how it is read |
|:--|:--|
| `timm:NAME`, `torchvision:NAME`, with weights | the library's network; weights from a safetensors file |
| `open_clip:NAME`, with weights | the vision tower of a CLIP, without a head of its own: a new one is trained |
| a `.onnx` file | ONNX Runtime; features are what its last Gemm or MatMul reads |
| a `.pt2` file (`torch.export.save`) | PyTorch; features are what its last linear layer reads |
| `package.module:function` | the `nn.Module` that the function returns |

Nothing is downloaded, and no pickle is read.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caml_core.errors import CamlError
from caml_core.networks import Backbone

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AS_IT_IS = ((0.0,) * 3, (1.0,) * 3)
KINDS = "timm:NAME, torchvision:NAME, open_clip:NAME, FILE.onnx, FILE.pt2, or package.module:function"


def load_model(
    spec: str, n_classes: int, example: Tensor, *, weights: Path | None = None, scale: Any = None
) -> Backbone:
    """A model by name or file, see the table above.

    Args:
        example: uint8 (B, 3, H, W), a few of your pictures; with them features and head are held to the model itself.
        weights: safetensors file of a named network.
        scale: mean and standard deviation of the channels of pictures in [0, 1], ((3), (3)); default: ImageNet's for
            named networks, and pictures as they are for the others.

    Raises:
        CamlError: an unknown name, weights that do not fit, other classes, no linear layer at the end.
    """
    start, _, name = spec.partition(":")
    named = start in ("timm", "torchvision", "open_clip")
    if Path(spec).suffix == ".onnx":
        return _held(*_from_onnx(Path(spec), n_classes), example, scale or AS_IT_IS)
    if Path(spec).suffix == ".pt2":
        return _held(*_from_export(Path(spec)), example, scale or AS_IT_IS)
    try:
        if start == "timm":
            import timm

            module: Any = timm.create_model(name, pretrained=False, num_classes=n_classes)
        elif start == "torchvision":
            import torchvision

            module = torchvision.models.get_model(name, weights=None, num_classes=n_classes)
        elif start == "open_clip":
            import open_clip

            module = open_clip.create_model(name)
        else:
            module = pkgutil.resolve_name(spec)()
    except Exception as error:  # each library has its own
        raise CamlError(f"no model {spec!r}: {error}", KINDS, "check the spelling") from error
    if named:
        if weights is None:
            raise CamlError(
                f"{spec} without weights", "--weights FILE.safetensors", "save_file(model.state_dict(), FILE)"
            )
        from safetensors.torch import load_file

        try:
            module.load_state_dict(load_file(weights))
        except Exception as error:
            what = f"{weights} does not fit {spec} with {n_classes} classes: {str(error).splitlines()[0]}"
            raise CamlError(what, "the weights of this network, for the classes of your data", "check both") from error
    if start == "open_clip":
        tower, (mean, std) = module.visual, scale or (module.visual.image_mean, module.visual.image_std)
        return Backbone(tower, tower.output_dim, n_classes, mean=mean, std=std).eval()
    return split_model(module, example, scale=scale or (IMAGENET if named else AS_IT_IS))


def split_model(module: nn.Module, example: Tensor, *, name: str | None = None, scale: Any = AS_IT_IS) -> Backbone:
    """A module as body and head; its last linear layer is the last one that it calls, or the one named."""
    module = copy.deepcopy(module).eval()
    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    called: list[str] = []
    hooks = [part.register_forward_hook(lambda *_, name=name: called.append(name)) for name, part in linear.items()]
    with torch.no_grad():
        output = module(_scaled(example[:2], scale))
    for hook in hooks:
        hook.remove()
    last = name or (called[-1] if called else "")
    if last not in linear or not isinstance(output, Tensor):
        what = f"{type(module).__name__} calls {len(called)} linear layers and returns {type(output).__name__}"
        raise CamlError(what, "logits from a linear layer", f"name it, one of: {', '.join(linear) or 'none'}")
    head = linear[last]
    body = nn.Identity() if module is head else copy.deepcopy(module)
    if module is not head:
        body.set_submodule(last, nn.Identity())
    return _held(module, body, head, example, scale)


def _scaled(x: Tensor, scale: Any) -> Tensor:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in scale)
    return (x.float() / 255 - mean) / std


@torch.no_grad()
def _held(module: nn.Module, body: nn.Module, head: nn.Linear, example: Tensor, scale: Any) -> Backbone:
    """Body and head as a `Backbone` that answers as the model does."""
    network = Backbone(body, head.in_features, head.out_features, mean=scale[0], std=scale[1]).eval()
    network.head = head
    x = _scaled(example[:4], scale)
    theirs, z = module(x), body(x)
    if z.ndim != 2 or not torch.allclose(head(z), theirs, atol=1e-3, rtol=1e-3):
        what = f"features {tuple(z.shape)} and the last linear layer do not give the model's own answers"
        raise CamlError(what, "logits that are linear in the features", "name the layer that makes them")
    return network


class _Session(nn.Module):
    """An output of an ONNX file; what stands in it decides what features are cached under."""

    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        import onnxruntime

        data = model.SerializeToString()
        self.register_buffer("content", torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.output, self.input = output, self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run([self.output], {self.input: x.cpu().numpy()})[0])


def last_gemm(model: Any) -> tuple[str, str, str | None, bool]:
    """Of an ONNX model's last Gemm or MatMul: the names of what it reads, of its weight and of its bias, and whether
    the weight is kept as (D, C)."""
    known = {tensor.name for tensor in model.graph.initializer}
    for node in reversed(model.graph.node):
        if node.op_type in ("Gemm", "MatMul") and node.input[1] in known:
            turned = node.op_type == "MatMul" or not {one.name: one.i for one in node.attribute}.get("transB", 0)
            adds = [one for one in model.graph.node if one.op_type == "Add" and node.output[0] in one.input]
            added = [*node.input[2:3], *(name for one in adds for name in one.input)]
            return node.input[0], node.input[1], next((name for name in added if name in known), None), turned
    what = "the file has no Gemm or MatMul with weights of its own"
    raise CamlError(what, "a linear layer at the end", "export the network with its last layer (torch.onnx.export)")


def _from_onnx(file: Path, n_classes: int) -> tuple[nn.Module, nn.Module, nn.Linear]:
    try:
        import onnx

        model = onnx.load(file)
    except Exception as error:
        raise CamlError(f"cannot read {file}: {error}", "an ONNX file", "pip install onnx onnxruntime") from error
    features, weight_name, bias_name, turned = last_gemm(model)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weight = kept[weight_name].T if turned else kept[weight_name]
    if len(weight) != n_classes:
        what = f"the last linear layer of {file} has {len(weight)} outputs for {n_classes} classes"
        raise CamlError(what, "one output a class", "give the file with the classifier of these classes")
    logits = model.graph.output[0].name
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(features))
    return _Session(model, logits), _Session(model, features), _linear(weight, kept.get(bias_name))


def _linear(weight: Any, bias: Any) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias).flatten())
    return head


def _from_export(file: Path) -> tuple[nn.Module, nn.Module, nn.Linear]:
    try:
        whole, body = (torch.export.load(file).module() for _ in range(2))
    except Exception as error:
        raise CamlError(f"cannot read {file}: {error}", "a file of torch.export.save", "export it again") from error
    graph: Any = body.graph  # type: ignore[union-attr]
    found = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
    if not found:
        raise CamlError(f"{file} has no linear layer", "one at the end", "export the network with its last layer")
    named: Sequence[Any] = [part.target for part in found[-1].args[1:]]
    weight, bias = ([whole.get_parameter(name) for name in named] + [None])[:2]
    head = _linear(weight.detach(), None if bias is None else bias.detach())  # type: ignore[union-attr]
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((found[-1].args[0],),)
    graph.eliminate_dead_code()
    body.recompile()  # type: ignore[operator]
    return _First(whole), _First(body), head


class _First(nn.Module):
    """The first output of an exported module, whether or not it comes in a tuple; its mode is part of the export."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> _First:
        return self

    def forward(self, x: Tensor) -> Tensor:
        found = self.module(x)
        return found[0] if isinstance(found, tuple | list) else found
