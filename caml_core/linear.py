"""The softmax head on frozen features, B problems side by side: its logits, its loss, the gradient, and Adam.

B problems (seeds, settings), N examples, D features, C classes; a head is a weight (B, C, D) and a bias (B, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, same_names


def head_logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits of B heads, (B, N, C), on features (B, N, D) of their own or (N, D) for all."""
    if x.ndim == 3:
        return x @ weight.mT + bias[:, None]
    b, c, d = weight.shape  # one matrix product for all heads, which reads the features once
    return (x @ weight.reshape(b * c, d).T).view(-1, b, c).transpose(0, 1) + bias[:, None]


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Of every example: (B, N, C) with labels (B, N), or (N,) for all, to (B, N)."""
    return -logits.log_softmax(dim=-1).gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]


def through_softmax(b: Tensor, p: Tensor, classes: int = 1) -> Tensor:
    """J b = p * (b - <p, b>) over the dimension `classes`. J is symmetric, so this serves both directions."""
    return torch._softmax_backward_data(b, p, classes, p.dtype)


def head_gradient(x: Tensor, y: Tensor, share: Tensor | float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of sum_i share_i CE_i in the head, for x (B, N, D), one-hot y (B, N, C), share (B, N, 1) or a number."""
    residual = (head_logits(x, weight, bias).softmax(dim=-1) - y) * share
    return residual.mT @ x, residual.sum(dim=1)


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980) with a step size for each problem, (B,), in place.

    On a CPU as many problems at a time as stay in its cache: ten passes over memory cost more than the arithmetic.
    """

    def __init__(self, like: Tensor, step: Tensor) -> None:
        self.mean, self.square, self.t = torch.zeros_like(like), torch.zeros_like(like), 0
        self.size = step.view(-1, *[1] * (like.ndim - 1))
        self.blocks = max(1, like.numel() // 2**15) if like.device.type == "cpu" else 1

    def step(self, parameter: Tensor, gradient: Tensor) -> None:
        self.t += 1
        whole = (self.size / (1 - 0.9**self.t), self.mean, self.square, parameter, gradient)
        for size, m, s, p, g in zip(*(part.chunk(self.blocks) for part in whole)):
            m.lerp_(g, 0.1)
            s.mul_(0.999).addcmul_(g, g, value=0.001)
            scale = s.div(1 - 0.999**self.t).sqrt_().add_(1e-8)
            p.sub_(torch.div(m, scale, out=scale).mul_(size))


def all_finite(x: Tensor) -> bool:
    """Whether there is no NaN and no infinity: their sum says so at once, and only an overflow needs a second look."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def check_features(train: GroupDataset, val: GroupDataset) -> None:
    """Refuse features from which a head would be wrong without a word."""
    for name, x in (("training", train.x), ("validation", val.x)):
        if len(x) == 0 or x.dtype not in (torch.float32, torch.float64) or not all_finite(x):
            what = f"{len(x)} {name} features of {x.dtype}, finite: {all_finite(x)}"
            raise CamlError(what, "some, all finite", "extract and standardise them again (caml_core.features)")
    same_names(train, val)
