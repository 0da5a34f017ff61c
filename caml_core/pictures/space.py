"""Coordinates for CLIP embeddings in which HSFM can edit them, and how far an edit goes along a text.

Image embeddings have length 1 and fill only part of the sphere: for the tiny CLIP, nine or ten of 64 directions carry
nearly all variance. Adam moves every coordinate by the same amount, however little its gradient, so in raw coordinates
an edit would leave for directions that no image has. In `ClipSpace` the coordinates are the principal directions of
real embeddings, and `project` brings a point back to the sphere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.data.scenery import Attributes
from caml_core.errors import CamlError
from caml_core.pictures.clip import Clip, zero_shot


class ClipSpace(NamedTuple):
    """u = V' (e - mean): a rotation of the directions that real embeddings fill, which keeps lengths and angles."""

    mean: Tensor  # float32 (width,), of the embeddings
    directions: Tensor  # V, float32 (width, k), orthonormal

    @classmethod
    def fit(cls, embeddings: Tensor, keep: float = 0.999) -> ClipSpace:
        """From unit embeddings (N, width): the fewest principal directions with a share `keep` of the variance."""
        off = float((embeddings.norm(dim=1) - 1).abs().max())
        if not off < 1e-3:  # nor is NaN
            raise CamlError(f"embeddings whose length is off by {off:.3g}", "length 1", "divide each by its length")
        mean = embeddings.mean(dim=0)
        _, s, vh = torch.linalg.svd(embeddings - mean, full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        k = int((share < keep).sum()) + 1
        return cls(mean, vh[:k].T.contiguous())

    def to(self, embeddings: Tensor) -> Tensor:
        """Coordinates u of embeddings: (..., width) to (..., k)."""
        return (embeddings - self.mean) @ self.directions

    def back(self, coordinates: Tensor) -> Tensor:
        """The unit embedding at or nearest below u: (..., k) to (..., width)."""
        return F.normalize(self.mean + coordinates @ self.directions.T, dim=-1)

    def project(self, coordinates: Tensor) -> Tensor:
        """u moved to the sphere, what `caml_core.hsfm.hsfm` takes as `project`: (..., k) to (..., k)."""
        return self.to(self.back(coordinates))


def along(moves: Tensor, direction: Tensor) -> Tensor:
    """Cosines of moves (..., width) with one direction (width,): (...). A move of length 0 counts as 0."""
    return F.normalize(moves, dim=-1) @ F.normalize(direction, dim=0)


def turn(start: Tensor, towards: Tensor, angle: Tensor) -> Tensor:
    """Points (..., width) on the great circle from unit embeddings towards others of any length, by an angle (...)."""
    tangent = F.normalize(towards - (towards * start).sum(-1, keepdim=True) * start, dim=-1)
    return angle[..., None].cos() * start + angle[..., None].sin() * tangent


def random_moves(space: ClipSpace, before: Tensor, lengths: Tensor, seed: int) -> Tensor:
    """A control for edits: as far from unit embeddings (..., width), |after - before| = lengths (...), anywhere."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(*before.shape[:-1], space.directions.shape[1], generator=generator)
    angle = 2 * torch.asin((lengths / 2).clamp(max=1))
    return turn(before, draws @ space.directions.T, angle)


def flips(clip: Clip, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """For each attribute of birdscapes: whether the reading of unit embeddings (N, width) changed, bool (N,)."""
    both = torch.cat([before, after])
    readings = {name: zero_shot(clip, both, name).chunk(2) for name in Attributes._fields}
    return {name: then != now for name, (then, now) in readings.items()}
