"""Coordinates for CLIP embeddings: a rotation, a projection to the sphere, and controls for edits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED
from caml_core.pictures.space import ClipSpace, along, random_moves, turn


def embeddings(n: int = 400, width: int = 12, k: int = 4, seed: int = 0) -> torch.Tensor:
    """Unit vectors that fill k directions and a little of the rest."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, k, generator=g)).Q
    x = torch.randn(n, k, generator=g) @ basis.T + 1e-4 * torch.randn(n, width, generator=g)
    return F.normalize(x, dim=1)


def test_coordinates_keep_lengths_and_angles_and_come_back() -> None:
    e = embeddings()
    space = ClipSpace.fit(e)
    assert space.directions.shape == (12, 4)
    torch.testing.assert_close(space.directions.T @ space.directions, torch.eye(4), atol=1e-5, rtol=0)
    u = space.to(e)
    torch.testing.assert_close(torch.cdist(u, u), torch.cdist(e, e), atol=2e-3, rtol=0)
    torch.testing.assert_close(space.back(u), e, atol=1e-3, rtol=0)


def test_projection_lands_on_the_sphere_and_stays_there() -> None:
    space = ClipSpace.fit(embeddings())
    far = 3 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    once = space.project(far)
    lengths = (space.mean + once @ space.directions.T).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2, 5), atol=1e-3, rtol=0)
    torch.testing.assert_close(space.project(once), once, atol=1e-3, rtol=0)


def test_embeddings_of_other_lengths_and_nan_are_refused() -> None:
    e = embeddings()
    for wrong in (2 * e, torch.where(e > 0.5, torch.nan, e)):
        with pytest.raises(CamlError, match="length 1"):
            ClipSpace.fit(wrong)


def test_a_turn_follows_the_great_circle_all_the_way() -> None:
    e = embeddings(40)
    start, end = e[:20], e[20:]
    whole = torch.acos((start * end).sum(1))
    torch.testing.assert_close(turn(start, end, whole), end, atol=1e-4, rtol=0)
    torch.testing.assert_close(turn(start, end, 0 * whole), start)
    half = turn(start, end, whole / 2)
    torch.testing.assert_close(half, F.normalize(start + end, dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(turn(start, start, torch.zeros(20)), start)
    path = turn(start[0], end[0], torch.linspace(0, 3, 7))
    torch.testing.assert_close(path.norm(dim=1), torch.ones(7), atol=1e-5, rtol=0)
    torch.testing.assert_close((path[1:] * path[:-1]).sum(1), torch.tensor(0.5).cos().expand(6), atol=1e-4, rtol=0)


def test_random_moves_go_as_far_as_they_are_told_and_nowhere_in_particular() -> None:
    e = embeddings(2000)
    space = ClipSpace.fit(e)
    lengths = torch.linspace(0, 1.5, len(e))
    moved = random_moves(space, e, lengths, seed=3)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(len(e)), atol=1e-5, rtol=0)
    torch.testing.assert_close((moved - e).norm(dim=1), lengths, atol=1e-3, rtol=0)
    cosines = along(moved - e, space.directions[:, 0])
    assert cosines.abs().mean() > 0.1
    assert abs(float(cosines.mean())) < 0.05 + abs(float(along(-e, space.directions[:, 0]).mean()))
    assert torch.equal(moved, random_moves(space, e, lengths, seed=3))


def test_along_counts_no_move_as_0() -> None:
    moves = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-2.0, 2.0]])
    torch.testing.assert_close(along(moves, torch.tensor([5.0, 0.0])), torch.tensor([0.0, 1.0, -(2**-0.5)]))


def test_hsfm_with_a_projection_keeps_its_support_on_the_sphere() -> None:
    e = embeddings(600)
    space = ClipSpace.fit(e)
    y = (e @ space.directions[:, 1] > 0).long()
    a = (e @ space.directions[:, 0] > 0).long()
    data = GroupDataset(space.to(e), y, a, class_names=("no", "yes"), attribute_names=("low", "high"))
    settings = dataclasses.replace(PUBLISHED["waterbirds"], support=8, hard=20, epochs=3, alpha=0.5, eta=0.05)
    head = torch.zeros(2, 4), torch.zeros(2)
    free = hsfm(data, data, *head, settings, seeds=(0, 1))
    kept = hsfm(data, data, *head, settings, seeds=(0, 1), project=space.project)
    assert not torch.equal(kept.before, kept.after)
    torch.testing.assert_close(
        (space.mean + kept.after @ space.directions.T).norm(dim=-1), torch.ones(2, 16), atol=1e-3, rtol=0
    )
    assert ((space.mean + free.after @ space.directions.T).norm(dim=-1) - 1).abs().max() > 0.05
