"""Hyperspectral scenes with known physics, the world of chapter 24 (`field.spectra`); all of it is ours.

A pixel is light times reflectance, seen through air. Materials differ by absorption lines (core); sun, shade and air
bend and scale every spectrum (spurious). The laboratory sees the reflectance alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.device import seeded
from caml_core.errors import CamlError

BANDS, MIXED = 64, 5  # spectral bands; materials of the background of a scene
WAVE = torch.linspace(0, 1, BANDS)  # from short to long waves


class Scene(NamedTuple):
    """P pixels in rows of a square; float32 unless said."""

    x: Tensor  # (P, BANDS) what the sensor sees, of mean 1
    y: Tensor  # int64 (P,): 1 where there is some target
    shade: Tensor  # bool (P,)
    main: Tensor  # int64 (P,): row of the library that has the largest share of the background
    lab: Tensor  # (BANDS,) the target's reflectance in the laboratory, of mean 1
    air: Tensor  # (BANDS,) share of the light that passes


def bumps(centre: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Sums of Gaussian lines (N, BANDS); centre, width and height are (N, lines)."""
    return (height[..., None] * torch.exp(-0.5 * ((WAVE - centre[..., None]) / width[..., None]) ** 2)).sum(dim=1)


def draw_materials(n: int, seed: int) -> Tensor:
    """Reflectances (n, BANDS): a smooth hill or two, times five lines, some of no depth."""
    with seeded(seed):
        u = torch.rand(6, n, 5)
    smooth = 0.25 + 0.3 * u[0, :, :1] + bumps(u[1, :, :2], 0.25 + 0.2 * u[2, :, :2], 0.3 * u[3, :, :2])
    depth = (0.5 * u[4] - 0.1).clamp(min=0)
    return smooth * torch.exp(-bumps(u[5], 0.012 + 0.02 * u[2], depth))


def draw_scene(library: Tensor, seed: int, *, side: int = 24, targets: int = 40, clean: bool = False) -> Scene:
    """One scene with a target of its own; half its target pixels are lit, half in the shade.

    Args:
        library: (materials, BANDS) reflectances for the background, from `draw_materials`.
        targets: pixels in which the target fills a share of 0.1 to 0.6.
        clean: the same scene in laboratory light: no air, no shade, no haze; the noise stays.
    """
    pixels = side * side
    with seeded(seed):
        fields = F.interpolate(torch.randn(1, MIXED + 1, 5, 5), side, mode="bicubic")[0].flatten(1)
        rows, order, share = torch.randperm(len(library))[:MIXED], torch.randperm(pixels), torch.rand(pixels)
        u, gain, hiss = torch.rand(12), torch.randn(pixels, 1), torch.randn(pixels, BANDS)
    mix = (3 * fields[:MIXED]).softmax(dim=0)
    shade = fields[MIXED] > fields[MIXED].quantile(0.6)
    y = torch.zeros(pixels, dtype=torch.int64)
    for group in (shade, ~shade):
        y[order[group[order]][: targets // 2]] = 1
    target = draw_materials(1, 1_000_000 + seed)[0]
    fill = ((0.1 + 0.5 * share) * y)[:, None]
    x = fill * target + (1 - fill) * (mix.T @ library[rows])
    air = torch.ones(BANDS)
    if not clean:
        # Two smooth bends of the sun's light, and three lines of the air, always at the same bands, of any depth.
        bend = 1.6 * (u[0] - 0.5) * (WAVE - 0.5) + 3 * (u[1] - 0.5) * (WAVE - 0.5) ** 2
        lines = bumps(torch.tensor([[0.22, 0.5, 0.78]]), torch.full((1, 3), 0.035), 1.2 * u[None, 2:5])[0]
        air = torch.exp(bend - lines)
        sky = (0.25 + 0.2 * u[5]) * torch.exp(-(0.5 + u[6]) * (WAVE - 0.5))  # shade is lit by the sky: weak and blue
        x = x * torch.where(shade[:, None], sky, torch.ones(BANDS)) * torch.exp(0.1 * gain) * air
        x = x + (0.02 + 0.06 * u[7]) * torch.exp(-2 * WAVE)  # haze
    for band in range(1, BANDS):  # noise of neighbouring bands goes together
        hiss[:, band] = 0.5 * hiss[:, band - 1] + 0.75**0.5 * hiss[:, band]
    x = x + 0.01 * hiss
    return Scene(x / x.mean(), y, shade, rows[mix.argmax(dim=0)], target / target.mean(), air)


def given(scene: Scene, k: int) -> Tensor:
    """Indices (k,) of the target pixels that are known beforehand: the first k lit ones."""
    lit = ((scene.y == 1) & ~scene.shade).nonzero()[:, 0]
    if not 1 <= k <= len(lit):
        what = f"{k} known pixels of {len(lit)} lit target pixels"
        expected = "at least one target pixel, and no more than the scene has"
        raise CamlError(what, expected, "draw a scene with more `targets`, or give 1 pixel or more")
    return lit[:k]


def shots(scene: Scene, k: int, seed: int, background: int = 64) -> tuple[Tensor, Tensor]:
    """Indices and labels: k known target pixels, and others as they come, which are called background."""
    known = given(scene, k)
    with seeded(seed):
        order = torch.randperm(len(scene.y))
    back = order[~torch.isin(order, known)][:background]
    return torch.cat([known, back]), (torch.arange(k + len(back)) < k).long()
