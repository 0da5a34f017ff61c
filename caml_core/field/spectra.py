"""Few-shot target detection in spectra: a frozen body, and an adapter that scans frequencies.

In the spirit of SpecMamba (Gong et al., arXiv 2604.05562), from the abstract; the finer points are a design of ours.
Chapter 24 builds it, results/field_spectra.json has the runs. Learning and closed-form rivals: `field.detectors`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.errors import CamlError
from caml_core.field.scenes import BANDS, Scene

PATCH, WIDTH, STATE = 8, 32, 8


def read(scene: Scene, library: Tensor, *, white: bool = True) -> Scene:
    """The scene with logarithms in the place of x and lab, less their means: light and air are sums there.

    Bands lose the scene's mean (the laboratory spectrum: that of a library), pixels their own. `white`: pixels are
    also whitened by the covariance of the scene, and the laboratory spectrum with them, at the pixels' mean length.
    """
    x, lab = scene.x.clamp(min=0.02).log(), scene.lab.log() - library.log().mean(dim=0)
    x = x - x.mean(dim=0)
    x, lab = 3 * (x - x.mean(dim=1, keepdim=True)), 3 * (lab - lab.mean())
    if white:
        z = x - x.mean(dim=0)
        cov = z.T @ z / len(z)
        values, basis = torch.linalg.eigh((cov + 0.03 * cov.diagonal().mean() * torch.eye(BANDS)).double())
        root = (basis * values**-0.5 @ basis.T).float()
        x, lab = z @ root, lab @ root
        lab = F.normalize(lab, dim=0) * BANDS**0.5
    return scene._replace(x=x, lab=lab)


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float32 (n, n): row k has the k-th frequency; its transpose goes back."""
    k = torch.arange(n, dtype=torch.float64)
    rows = (2 / n) ** 0.5 * torch.cos(torch.pi * k[:, None] * (k + 0.5) / n)
    rows[0] /= 2**0.5
    return rows.float()


class Body(nn.Module):
    """A small transformer along the spectrum: pixels (P, BANDS) to tokens (P, BANDS / 8, 32); frozen after training."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(PATCH, WIDTH), nn.Parameter(0.02 * torch.randn(BANDS // PATCH, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(
            block, layers, nn.LayerNorm(WIDTH, elementwise_affine=False), enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != BANDS:
            what = f"spectra of shape {tuple(x.shape)}"
            raise CamlError(what, f"(pixels, {BANDS})", "resample to the bands of the source scenes")
        return self.blocks(self.patch(x.unflatten(1, (-1, PATCH))) + self.place)  # type: ignore[no-any-return]


class Scan(nn.Module):
    """A selective scan (Mamba's recursion) along (P, L, 32): its step and both gates read the input."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.gates = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * STATE, bias=False)
        self.rate = nn.Parameter(torch.arange(1.0, STATE + 1).log().expand(WIDTH, -1).clone())
        self.skip, self.out = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.step.bias, -2.0)  # steps of about 0.1 at first: a memory of about ten tokens

    def forward(self, u: Tensor) -> Tensor:
        step, (write, read) = F.softplus(self.step(u))[..., None], self.gates(u)[..., None, :].chunk(2, dim=-1)
        keep, add = torch.exp(-step * self.rate.exp()), step * write * u[..., None]  # (P, L, 32, STATE)
        h, out = torch.zeros_like(add[:, 0]), []
        for n in range(u.shape[1]):
            h = keep[:, n] * h + add[:, n]
            out.append((h * read[:, n]).sum(dim=-1))
        return self.out(torch.stack(out, dim=1) + self.skip * u)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """H + g iDCT(f(DCT(H))), then the mean over tokens: (P, L, 32) to (P, 32). The gate g starts at 0.

    `kind`: `dct scan`; `scan`, without the DCT; `mlp`, of about as many weights, token by token.
    """

    dct: Tensor

    def __init__(self, kind: str = "dct scan") -> None:
        super().__init__()
        n = BANDS // PATCH
        mlp = nn.Sequential(nn.Linear(WIDTH, 44), nn.GELU(), nn.Linear(44, WIDTH))
        self.f, self.gate = mlp if kind == "mlp" else Scan(), nn.Parameter(torch.zeros(()))
        self.register_buffer("dct", dct_matrix(n) if kind == "dct scan" else torch.eye(n))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens + self.gate * (self.dct.T @ self.f(self.dct @ tokens)), [WIDTH]).mean(dim=1)


class Whole(Body):
    """The body and the mean over its tokens, for full fine-tuning."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=1)


class View(NamedTuple):
    """A scene as a network reads it."""

    inputs: Tensor  # (P, ...): tokens of the frozen body, or pixels
    lab: Tensor  # (1, ...): the laboratory spectrum, likewise
    frozen: Tensor  # (P, 32): what the frozen body says
    scene: Scene


@torch.no_grad()
def view(body: Body, scene: Scene, *, tokens: bool = True) -> View:
    """For an `Adapter`, or (`tokens=False`) for a `Whole`."""
    both = torch.cat([scene.x, scene.lab[None]])
    h = body(both)
    inputs = h if tokens else both
    return View(inputs[:-1], inputs[-1:], h[:-1].mean(dim=1), scene)
