"""How one birdscape is drawn. Readers of the method can skip this file; `draw` is all that is used of it."""

from __future__ import annotations  # noqa: I001  a list of names in three lines

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from caml_core.data.backgrounds import (
    BARKS, BLACK, CIRCLE, CREAM, LEAVES, STONES, WHITE, Array, Canvas, Rng, curve, draw_blades, draw_land, draw_water,
    ellipse, mix, pick, tube, turn, xy,
)  # fmt: skip
from caml_core.errors import CamlError

SPLITS = ("train", "val", "test")
COLOURS = {
    "white": (240, 238, 230), "black": (36, 34, 40), "grey": (136, 138, 146), "red": (200, 40, 38),
    "orange": (236, 122, 30), "yellow": (244, 208, 48), "pink": (240, 146, 180), "purple": (126, 58, 158),
}  # fmt: skip
Point = tuple[float, float]
BILLS: Array = np.array([(240, 166, 40), (62, 56, 54), (220, 112, 48)], dtype=float)


class Attributes(NamedTuple):
    """What a scene shows, as numbers: indices into the tuples above (and into the keys of `COLOURS`)."""

    bird: int  # 0 landbird, 1 waterbird
    background: int  # 0 land, 1 water
    colour: int  # 0..7
    facing: int  # 0 left, 1 right
    size: int  # 0 small, 1 big


class Part(NamedTuple):  # one filled outline of a bird, which faces right; origin in the middle of the body
    outline: Array  # (m, 2)
    colour: Array  # (3,)
    rim: bool = True  # belongs to the silhouette, which gets a contrasting rim


class Plumage(NamedTuple):  # the colours (3,) of one bird
    body: Array
    dark: Array
    light: Array
    rim: Array
    wing: Array
    bill: Array
    eye: Array


def plumage(rng: Rng, colour: tuple[int, int, int]) -> Plumage:
    """Shades around a named colour; a dark bird gets a light rim, eye and wing, a light bird dark ones."""
    body = np.array(colour, float) * rng.normal(1, 0.03, 3) + rng.normal(0, 2, 3)
    if body.mean() < 70:
        light, rim, wing = (mix(body, WHITE, share) for share in (0.25, 0.65, 0.28))
        bill, eye = pick(rng, BILLS[::2]), CREAM
    else:
        light, rim, wing = mix(body, WHITE, 0.4), mix(body, BLACK, 0.62), mix(body, BLACK, 0.28)
        bill, eye = pick(rng, BILLS), np.array([20.0, 18.0, 22.0])
    return Plumage(body, mix(body, BLACK, 0.3), light, rim, wing, bill, eye)


def leg(hip: float, x: float, y: float, colour: Array) -> Part:
    """A thin leg from below the body to a foot (x, y) with a toe."""
    outline = [(hip - 0.04, 0.1), (hip + 0.05, 0.1), (x + 0.04, y - 0.05), (x + 0.15, y), (x - 0.06, y)]
    return Part(np.array(outline), mix(colour, BLACK, 0.25), rim=False)


def markings(
    rng: Rng, ink: Plumage, belly: Point, radius: float, shoulder: Point, lift: float, eye: Array
) -> list[Part]:
    """Pale belly of a radius, wing and eye: alike in all birds, so that only the shape tells the kind."""
    feather = np.array([(0.16, 0.02), (0.0, -0.15), (-0.4, -0.11), (-0.76, 0.06), (-0.34, 0.16), (0.0, 0.17)])
    pale = Part(ellipse(belly, (1.1 * radius, 0.9 * radius), -0.5), ink.light, rim=False)
    return [
        *([pale] if rng.random() < 0.6 else []),
        Part(shoulder + turn(feather, lift), ink.wing, rim=False),
        Part(ellipse(eye, (0.1, 0.1)), ink.light, rim=False),
        Part(ellipse(eye, (0.058, 0.058)), ink.eye, rim=False),
    ]


def landbird(rng: Rng, ink: Plumage) -> list[Part]:
    """A songbird: round body, big head, short cone of a bill, short legs, long tail."""
    girth, cock, length, legs = rng.uniform((0.45, -0.45, 0.9, 0.7), (0.57, 0.2, 1.3, 0.85))
    head = np.array([rng.uniform(0.32, 0.48), rng.uniform(-0.62, -0.48)])
    tail = np.array([(-0.2, -0.2), (-length, cock - 0.12), (-length + 0.04, cock + 0.13), (-0.2, 0.28)])
    gape = 0.1 if rng.random() < 0.25 else 0.0  # a singing bird opens its bill
    bill = np.array([(0.2, -0.12), (0.62, -gape), (0.34, 0.02), (0.6, 0.05 + gape), (0.2, 0.13)])
    crest = np.array([(0.1, -0.26), (-0.22, -0.6), (-0.26, -0.1)])
    lift = 0.9 if rng.random() < 0.15 else rng.uniform(-0.15, 0.25) - 0.4 * cock
    return [
        *(leg(x, x + 0.02, legs, ink.bill) for x in (-0.08, 0.13)),
        Part(tail, ink.dark),
        *([Part(head + crest, ink.dark)] if rng.random() < 0.25 else []),
        Part(head + turn(bill, -gape), ink.bill),
        Part(ellipse((0, 0), (girth + 0.08, girth - 0.06), -0.4), ink.body),
        Part(ellipse(head, (0.3, 0.28)), ink.body),
        Part(ellipse((0, 0), (girth + 0.06, girth - 0.08), -0.4), ink.body, rim=False),
        *markings(rng, ink, (0.2, 0.13), 0.28, (0.12, -0.12), lift, np.add(head, (0.12, -0.05))),
    ]


def heron(rng: Rng, ink: Plumage) -> list[Part]:
    """Long legs, long neck (stretched or bent), dagger bill."""
    reach, bend, legs, stride = rng.uniform((0.75, 0.0, 0.8, 0.0), (1.05, 0.12, 1.05, 0.25))
    head = np.array([0.62 + rng.normal(0, 0.06), -reach])
    neck = curve((0.3, -0.08), (0.6, -0.35 * reach), (0.5 - bend, -0.7 * reach), head)
    bill = np.array([(0.08, -0.1), (0.66, 0.03), (0.08, 0.1)])
    plume = np.array([(0.0, -0.1), (-0.5, 0.02), (-0.02, 0.06)])
    return [
        leg(-0.1, -0.1 - stride, legs, ink.bill),
        leg(0.1, 0.06 + stride, legs, ink.bill),
        *([Part(head + plume, ink.dark)] if rng.random() < 0.25 else []),
        Part(np.array([(-0.3, -0.16), (-0.95, 0.0), (-0.9, 0.14), (-0.3, 0.2)]), ink.dark),
        Part(head + turn(bill, rng.uniform(-0.15, 0.35)), ink.bill),
        Part(ellipse((0, 0), (0.54, 0.34), -0.25), ink.body),
        Part(ellipse(head, (0.21, 0.18)), ink.body),
        Part(tube(neck, 0.16, 0.11), ink.body),
        Part(ellipse((0, 0), (0.52, 0.32), -0.25), ink.body, rim=False),
        *markings(rng, ink, (0.26, 0.06), 0.17, (0.16, -0.06), -0.1, np.add(head, (0.05, -0.02))),
    ]


def duck(rng: Rng, ink: Plumage) -> list[Part]:
    """A boat of a body with its tail up, a curved neck, a round head and a flat bill."""
    reach = rng.uniform(0.45, 0.85)
    head = np.array([0.66 + rng.normal(0, 0.04), -reach])
    neck = curve((0.45, 0.0), (0.64, -0.3 * reach), (0.54, -0.65 * reach), head)
    bill = np.array([(0.1, -0.08), (0.28, -0.02), (0.56, 0.03), (0.55, 0.13), (0.1, 0.13)])
    hull = ellipse((0, 0), (0.74, 0.38))
    hull[:, 1] = np.minimum(hull[:, 1], 0.28)  # flat below, where it floats
    return [
        Part(np.array([(-0.4, -0.22), (-1.02, -0.38), (-1.0, -0.24), (-0.5, 0.2)]), ink.dark),
        Part(head + bill, ink.bill),
        Part(hull, ink.body),
        Part(ellipse(head, (0.25, 0.22)), ink.body),
        Part(tube(neck, 0.24, 0.16), ink.body),
        Part(hull * 0.96, ink.body, rim=False),
        *markings(rng, ink, (0.42, 0.06), 0.2, (0.16, -0.06), 0.1, np.add(head, (0.08, -0.04))),
    ]


def waterbird(rng: Rng, ink: Plumage) -> list[Part]:
    """A wader on long legs with a dagger of a bill, or a duck that sits low with a flat one."""
    return (heron if rng.random() < 0.5 else duck)(rng, ink)


def grow(outline: Array, width: float) -> Array:
    """The outline (m, 2) moved outwards by `width` on all sides, with blunted spikes."""
    edge = np.roll(outline, -1, axis=0) - outline
    area = np.sum(outline[:, 0] * edge[:, 1] - outline[:, 1] * edge[:, 0])
    normal = xy(edge[:, 1], -edge[:, 0]) / np.maximum(np.linalg.norm(edge, axis=1, keepdims=True), 1e-9)
    before = np.roll(normal, 1, axis=0)
    spread = 1 + np.sum(normal * before, axis=1, keepdims=True)
    grown: Array = outline + np.sign(area) * width * (normal + before) / np.maximum(spread, 0.4)
    return grown


def pose(rng: Rng, parts: Sequence[Part], size: int, facing: int) -> tuple[list[Part], Array, float]:
    """Tilt, mirror, scale and place a bird inside the frame; returns its parts, foot point (2,) and scale."""
    scale, tilt = rng.uniform(0.22, 0.255) if size else rng.uniform(0.16, 0.185), rng.normal(0, 0.1)
    mirror = np.array([1.0 if facing else -1.0, 1.0])
    parts = [part._replace(outline=turn(part.outline, tilt) * mirror * scale) for part in parts]
    points = np.concatenate([part.outline for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    x = rng.uniform(0.05 - low[0], 0.95 - high[0])
    foot = max(rng.uniform(0.66, 0.92), 0.05 + high[1] - low[1])  # below every horizon, head inside the frame
    shift = np.array([x, foot - high[1]])
    return [part._replace(outline=part.outline + shift) for part in parts], np.array([x, foot]), scale


def draw_perch(canvas: Canvas, rng: Rng, foot: Array, scale: float) -> None:
    """A stone or a log under the bird."""
    if is_log := rng.random() < 0.5:
        colour, shape = pick(rng, BARKS[:3]), tube(np.array([[-1.05, 0.0], [1.05, 0.0]]), 0.17, 0.2)
    else:
        colour, shape = pick(rng, STONES), CIRCLE * [0.95, 0.27] * rng.uniform(0.9, 1.12, (len(CIRCLE), 1))
    middle = np.add(foot, (0, 0.14 * scale))
    for drop, height, shade in ((0.08, 1.05, 0.45), (0.0, 1.0, 0.85), (-0.05, 0.6, 1.1)):  # shadow, side, top
        canvas.fill(middle + scale * (shape * [0.9 + 0.1 * height, height] + (0, drop)), colour * shade)
    if is_log:
        canvas.fill(ellipse(np.add(middle, (1.05 * scale, 0)), (0.09 * scale, 0.2 * scale)), mix(colour, CREAM, 0.5))


def draw_contact(canvas: Canvas, rng: Rng, foot: Array, scale: float, background: int) -> None:
    """What the bird touches: ripples on water, tufts of grass on land."""
    if background == 1:
        along = np.linspace(-1, 1, 9)
        reach, drop = np.array([[0.45], [0.7], [0.95]]), np.array([[-0.04], [0.03], [0.1]])
        arcs = xy(reach * along, drop - 0.06 + 0.22 * reach * np.sqrt(1 - along**2))
        canvas.stroke(foot + scale * arcs, mix(canvas.at(foot), WHITE, 0.55), 0.011)
    else:
        feet = foot + scale * rng.uniform((-0.8, 0.0), (0.8, 0.12), (9, 2))
        colours = mix(canvas.at(foot), pick(rng, LEAVES[:3]), rng.uniform(0.4, 1, (9, 1)))
        growth = xy(rng.normal(0, 0.015, 9), scale * rng.uniform(-0.25, -0.1, 9))
        draw_blades(canvas, feet, feet + growth, colours, 0.008)


def draw(
    bird: int, background: int, k: int, *, seed: int = 0, split: str = "train", size: int = 48, onto: int | None = None
) -> tuple[npt.NDArray[np.uint8], Attributes]:
    """Draw scene number k of a group.

    Args:
        bird, background: 0 landbird or land, 1 waterbird or water.
        k, seed: number of the scene in its group, and of the whole dataset, 0 or more.
        split: "train", "val" or "test".
        size: side of the image in pixels, at least 16.
        onto: put the very same bird on this background instead: a counterfactual picture.

    Returns:
        The image, uint8 (size, size, 3), and what it shows.
    """
    shown = background if onto is None else onto
    if split not in SPLITS or not {bird, background, shown} <= {0, 1} or min(k, seed) < 0 or size < 16:
        what = f"no scene has {bird=}, {background=}, {k=}, {seed=}, {split=}, {size=}, {onto=}"
        expected = f"bird, background and onto 0 or 1, k and seed from 0, {' or '.join(SPLITS)}, 16 pixels or more"
        raise CamlError(what, expected, "correct that argument")
    scene = [seed, SPLITS.index(split), bird, background, k]
    rng, place = (np.random.default_rng([*scene, part]) for part in (0, 1))  # the bird's, the background's
    colour, facing, big = int(rng.integers(len(COLOURS))), int(rng.integers(2)), int(rng.integers(2))
    canvas = Canvas(size)
    (draw_land, draw_water)[shown](canvas, place)
    ink = plumage(rng, list(COLOURS.values())[colour])
    parts, foot, scale = pose(rng, (landbird, waterbird)[bird](rng, ink), big, facing)
    canvas.fill(ellipse(foot, (0.7 * scale, 0.13 * scale)), 0.72 * canvas.at(foot))  # shadow
    perched = place.random() < (0.5 if shown else 0.3)
    if perched:
        draw_perch(canvas, place, foot, scale)
    for part in parts:  # the rim of the whole silhouette first, then the parts on top of it
        if part.rim:
            canvas.fill(grow(part.outline, 0.009), ink.rim)
    for part in parts:
        canvas.fill(part.outline, part.colour)
    if not perched:
        draw_contact(canvas, place, foot, scale, shown)
    light = rng.uniform(0.88, 1.08) * rng.normal(1, 0.015, 3)
    grain = rng.standard_normal((size, size, 3), dtype=np.float32)
    image = np.clip(canvas.finish() * light + 4 * grain, 0, 255).astype(np.uint8)
    return image, Attributes(bird, shown, colour, facing, big)
