"""The canvas of a birdscape and what lies behind the bird: skies, water, meadows, woods.

Everything is in unit coordinates (x to the right, y down, the image is the unit square), on a canvas a few times larger
than asked for, which is then averaged down.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.float64]  # points (..., 2) in unit coordinates, or colours (..., 3) in 0..255
Rng = np.random.Generator

# fmt: off
# Palettes; a pair is the upper and the lower colour of a vertical gradient.
BLACK, WHITE, CREAM, STRAW = np.array([(0,) * 3, (255,) * 3, (250, 244, 224), (190, 176, 90)], dtype=float)
SKIES: Array = np.array([  # clear, haze; overcast, sunset; dusk, dawn
    [(112, 176, 232), (214, 234, 246)], [(150, 190, 226), (236, 240, 238)],
    [(128, 138, 156), (198, 204, 210)], [(232, 132, 104), (252, 222, 150)],
    [(118, 96, 156), (244, 180, 160)], [(190, 176, 216), (250, 226, 214)],
], dtype=float)
WATERS: Array = np.array([  # sea, lagoon; grey lake, deep lake
    [(104, 172, 208), (22, 82, 146)], [(120, 186, 186), (24, 100, 122)],
    [(120, 140, 162), (52, 72, 102)], [(70, 140, 160), (14, 66, 92)],
], dtype=float)
WOODS: Array = np.array([  # the light between the trees; the last one is autumn
    [(84, 124, 78), (62, 100, 58)], [(168, 190, 134), (112, 146, 88)],
    [(52, 78, 60), (36, 60, 44)], [(214, 186, 120), (166, 132, 72)],
], dtype=float)
GROUNDS: Array = np.array([  # meadow, earth; dry grass, shade
    [(122, 168, 76), (62, 108, 42)], [(146, 118, 80), (96, 72, 48)],
    [(178, 172, 100), (122, 116, 58)], [(100, 140, 70), (52, 84, 40)],
], dtype=float)
HAZY_HILLS: Array = np.array([(98, 124, 138), (104, 128, 100), (132, 128, 156), (84, 108, 116)], dtype=float)
LEAVES: Array = np.array([(72, 116, 56), (96, 140, 64), (44, 84, 48), (206, 124, 44)], dtype=float)
BARKS: Array = np.array([(92, 66, 44), (70, 54, 44), (126, 100, 74), (204, 198, 184)], dtype=float)
STONES: Array = np.array([(112, 112, 116), (146, 142, 134), (164, 166, 170)], dtype=float)
PETALS: Array = np.array([(250, 244, 236), (246, 214, 84), (226, 112, 140), (150, 120, 214)], dtype=float)
# fmt: on


def mix(first: Array, second: Array, share: float | Array) -> Array:
    """`first` where `share` is 0, `second` where it is 1."""
    return first + (second - first) * share


def turn(points: Array, angle: float) -> Array:
    """Rotate (..., 2) points about the origin; positive angles turn x towards y (clockwise on the image)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])  # type: ignore[no-any-return]


def xy(x: Array, y: Array) -> Array:
    """Points (..., 2) from their coordinates (...)."""
    return np.stack([x, y], axis=-1)


_ARC = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE: Array = xy(np.cos(_ARC), np.sin(_ARC))


def ellipse(centre: npt.ArrayLike, radii: npt.ArrayLike, angle: float = 0.0) -> Array:
    """Outlines (..., 24, 2) of ellipses with centres (..., 2) and radii (..., 2)."""
    centre, radii = np.asarray(centre, float)[..., None, :], np.asarray(radii, float)[..., None, :]
    return centre + turn(CIRCLE * radii, angle)


_T = np.linspace(0, 1, 6, endpoint=False)
_CATMULL_ROM: Array = 0.5 * np.stack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2], axis=-1
)


def curve(*control: npt.ArrayLike) -> Array:
    """A smooth path (6(n - 1) + 1, 2) through n points (2,)."""
    points = np.array(control, float)
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    windows = np.stack([padded[i : i + 4] for i in range(len(points) - 1)])
    return np.concatenate([(_CATMULL_ROM @ windows).reshape(-1, 2), points[-1:]])


def tube(path: Array, start: float, end: float) -> Array:
    """Outline (2n, 2) of a path (n, 2) whose half-width goes from `start` to `end`."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    offset = xy(-tangent[:, 1], tangent[:, 0]) * np.linspace(start, end, len(path))[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


class Canvas:
    """A square picture in unit coordinates, drawn enlarged and averaged down at the end."""

    def __init__(self, size: int) -> None:
        self.scale = max(2, min(4, 384 // size))
        self.pixels = size * self.scale
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self.pen = ImageDraw.Draw(self.image)

    def band(self, top: float, bottom: float, colours: Array) -> None:
        """Fill the rows from `top` to `bottom` with a vertical gradient between two `colours` (2, 3)."""
        first, last = round(top * self.pixels), round(bottom * self.pixels)
        column = mix(colours[0], colours[1], np.linspace(0, 1, last - first)[:, None])
        strip = Image.fromarray(np.clip(column, 0, 255).astype(np.uint8)[:, None])
        self.image.paste(strip.resize((self.pixels, last - first), Image.Resampling.NEAREST), (0, first))

    def fill(self, outlines: Array, colours: Array) -> None:
        """Fill one outline (m, 2) or many (n, m, 2) with one colour (3,) or one for each (n, 3)."""
        for points, ink in self._prepare(outlines, colours):
            self.pen.polygon(points, fill=ink)

    def stroke(self, paths: Array, colours: Array, width: float | Array) -> None:
        """Draw one open path (m, 2) or many (n, m, 2), each with its line width (unit coordinates)."""
        prepared = self._prepare(paths, colours)
        widths = np.broadcast_to(np.multiply(width, self.pixels), len(prepared)).tolist()
        for (points, ink), thick in zip(prepared, widths, strict=True):
            self.pen.line(points, fill=ink, width=max(1, round(thick)))

    def _prepare(self, points: Array, colours: Array) -> list[tuple[list[float], tuple[int, ...]]]:
        flat = (points * self.pixels).reshape(-1, 2 * points.shape[-2]).tolist()
        inks = np.broadcast_to(np.clip(colours, 0, 255).astype(int), (len(flat), 3)).tolist()
        return [(path, tuple(ink)) for path, ink in zip(flat, inks, strict=True)]

    def at(self, point: Array) -> Array:
        """The mean colour (3,) of what is drawn so far around a point (2,)."""
        corners = np.clip(np.concatenate([point - 0.06, point + 0.06]), 0, 1) * self.pixels
        left, top, right, bottom = corners.astype(int).tolist()
        patch = self.image.crop((left, top, right, bottom))
        return np.asarray(patch, dtype=float).mean(axis=(0, 1))  # type: ignore[no-any-return]

    def finish(self) -> Array:
        """The picture as float64 (size, size, 3) in 0..255."""
        return np.asarray(self.image.reduce(self.scale), dtype=float)


def pick(rng: Rng, table: Array) -> Array:
    """A row of `table`, each colour in it shifted a little at random."""
    row: Array = table[rng.integers(len(table))]
    return row + rng.normal(0, 9, row.shape)


def scatter(rng: Rng, n: SupportsIndex, x: tuple[float, float], y: tuple[float, float]) -> Array:
    """Random points (n, 2) in a rectangle, the farthest (highest) first."""
    points = rng.uniform((x[0], y[0]), (x[1], y[1]), (n, 2))
    return points[np.argsort(points[:, 1])]


def draw_sky(canvas: Canvas, rng: Rng, horizon: float) -> Array:
    """Sky with perhaps a sun and clouds; returns its two colours (2, 3)."""
    sky = pick(rng, SKIES)
    canvas.band(0, horizon, sky)
    if rng.random() < 0.3:
        sun, radius = (rng.uniform(0.1, 0.9), rng.uniform(0.06, horizon)), rng.uniform(0.04, 0.08)
        rings = np.array([[1.9], [1.4], [1.0]]) * [radius, radius]
        canvas.fill(ellipse(sun, rings), mix(sky[1], CREAM, np.array([[0.25], [0.5], [1.0]])))
    for x, y in scatter(rng, rng.integers(4), (0, 1), (0.03, horizon * 0.75)):
        puffs = rng.normal((x, y), (0.07, 0.01), (5, 2))
        radii = rng.uniform((0.05, 0.018), (0.1, 0.035), (5, 2))
        canvas.fill(ellipse(puffs, radii), mix(sky[1], WHITE, rng.uniform(0.4, 0.8)))
    return sky


def draw_hills(canvas: Canvas, rng: Rng, horizon: float, height: float, colour: Array) -> None:
    """A ridge of rolling hills standing on the horizon."""
    x = np.linspace(0, 1, 33)
    pace, shift, ripple = rng.uniform((3, 0, 0), (9, 7, 7))
    waves = np.sin(pace * x + shift) + 0.5 * np.sin(19 * x + ripple)
    ridge = xy(x, horizon - height * np.clip(0.45 + 0.4 * waves, 0.04, None))
    canvas.fill(np.concatenate([ridge, [[1, horizon + 0.01], [0, horizon + 0.01]]]), colour)


def draw_foliage(canvas: Canvas, centres: Array, radii: Array, colours: Array) -> None:
    """Round bushes or tree crowns (n of them), each lit from above."""
    whole, lit = ellipse(centres, radii), ellipse(centres - radii * [0.15, 0.3], radii * 0.65)
    outlines = np.stack([whole, lit], axis=1).reshape(-1, *whole.shape[-2:])
    canvas.fill(outlines, np.stack([0.9 * colours, 1.1 * colours], axis=1).reshape(-1, 3))


def draw_blades(canvas: Canvas, feet: Array, tips: Array, colours: Array, width: float) -> None:
    """Bent blades of grass or reed (n of them), upright at their `feet` (n, 2), bent at their `tips`."""
    along = np.array([[0.0, 0.0], [0.25, 0.5], [1.0, 1.0]])
    canvas.stroke(feet[:, None] + (tips - feet)[:, None] * along, colours, width)


def draw_water(canvas: Canvas, rng: Rng) -> None:
    """Sea or lake under the sky: hills or a far shore, waves, perhaps lily pads and a stand of reeds."""
    horizon = rng.uniform(0.2, 0.58)
    sky = draw_sky(canvas, rng, horizon)
    for height in np.sort(rng.uniform(0.03, 0.2, rng.integers(3)))[::-1]:
        draw_hills(canvas, rng, horizon, height, mix(pick(rng, HAZY_HILLS), sky[1], 0.1 + 2 * height))
    water = pick(rng, WATERS)
    water[0] = mix(water[0], sky[1], rng.uniform(0, 0.4))
    canvas.band(horizon, 1, water)

    n = int(rng.integers(14, 40))
    starts = scatter(rng, n, (-0.15, 1), (horizon + 0.01, 1.02))
    near = (starts[:, 1:] - horizon) / (1 - horizon)  # 0 at the horizon, 1 at the lower edge
    along = np.linspace(0, 1, 7)
    x = starts[:, :1] + (0.05 + 0.2 * near) * rng.uniform(0.5, 1.2, (n, 1)) * along
    y = starts[:, 1:] + (0.003 + 0.014 * near) * np.sin(2 * np.pi * along + rng.uniform(0, 7, (n, 1)))
    crest = np.where(rng.random((n, 1)) < 0.65, mix(sky[1], WHITE, 0.5), water[1] * 0.7)
    waves = mix(mix(water[0], water[1], near), crest, rng.uniform(0.2, 0.6, (n, 1)))
    canvas.stroke(xy(x, y), waves, 0.004 + 0.012 * near[:, 0])

    if rng.random() < 0.3:
        pads = scatter(rng, rng.integers(3, 9), (0, 1), (horizon + 0.1, 1))
        radii = (0.02 + 0.06 * (pads[:, 1:] - horizon)) * [1.6, 0.6]
        canvas.fill(ellipse(pads, radii), pick(rng, LEAVES[:2]) + rng.normal(0, 10, (len(pads), 1)))
    if rng.random() < 0.45:
        draw_reeds(canvas, rng, rng.uniform(max(horizon + 0.1, 0.55), 1.02))


def draw_reeds(canvas: Canvas, rng: Rng, foot: float) -> None:
    """Reeds with brown heads at the left or right edge."""
    n, side = int(rng.integers(5, 15)), rng.integers(2)
    feet = xy(side + (0.5 - side) * rng.uniform(-0.1, 0.5, n), foot + rng.uniform(-0.03, 0.03, n))
    tips = feet + xy(rng.normal(0, 0.05, n), rng.uniform(-0.42, -0.14, n))
    draw_blades(canvas, feet, tips, mix(LEAVES[rng.integers(3)], STRAW, rng.uniform(0, 0.7, (n, 1))), 0.012)
    canvas.fill(ellipse(tips[: rng.integers(n)], (0.012, 0.035)), BARKS[0])


def draw_land(canvas: Canvas, rng: Rng) -> None:
    """An open meadow under the sky or a wood, with bushes, grass and flowers or fallen leaves."""
    horizon = rng.uniform(0.3, 0.6)
    ground = pick(rng, GROUNDS)
    leaf = pick(rng, LEAVES)
    if rng.random() < 0.45:
        sky = draw_sky(canvas, rng, horizon)
        canvas.band(horizon, 1, ground)
        for height in np.sort(rng.uniform(0.04, 0.22, rng.integers(1, 3)))[::-1]:
            draw_hills(canvas, rng, horizon, height, mix(pick(rng, LEAVES[:3]), sky[1], 2.5 * height))
        draw_trees(canvas, rng, horizon, leaf)
    else:
        canvas.band(0, horizon, pick(rng, WOODS))
        canvas.band(horizon, 1, ground)
        draw_wood(canvas, rng, horizon, leaf)
    bushes = scatter(rng, rng.integers(3, 12), (0, 1), (horizon - 0.02, horizon + 0.01))
    sizes = rng.uniform((0.04, 0.03), (0.13, 0.08), (len(bushes), 2))
    draw_foliage(canvas, bushes, sizes, leaf * rng.uniform(0.7, 1.1, (len(bushes), 1)))

    n = int(rng.integers(16, 50))
    feet = scatter(rng, n, (0, 1), (horizon + 0.04, 1.04))
    near = (feet[:, 1:] - horizon) / (1.04 - horizon)
    tint = np.where(rng.random((n, 1)) < 0.5, ground[1] * 0.6, mix(ground[0], CREAM, 0.4))
    blades = mix(mix(ground[0], ground[1], near), tint, rng.uniform(0.3, 0.8, (n, 1)))
    growth = xy(rng.normal(0, 0.02, n), -(0.02 + 0.06 * near[:, 0]) * rng.uniform(0.6, 1.3, n))
    draw_blades(canvas, feet, feet + growth, blades, 0.008)
    if rng.random() < 0.5:  # flowers, or fallen leaves in the colour of the trees
        spots = scatter(rng, rng.integers(5, 22), (0, 1), (horizon + 0.06, 1))
        sizes = (0.005 + 0.022 * (spots[:, 1:] - horizon)) * rng.uniform(0.8, 1.5, (len(spots), 2))
        colour = pick(rng, PETALS) if rng.random() < 0.6 else mix(leaf, LEAVES[3], 0.6)
        canvas.fill(ellipse(spots, sizes), colour * rng.uniform(0.8, 1.05, (len(spots), 1)))


def draw_trees(canvas: Canvas, rng: Rng, horizon: float, leaf: Array) -> None:
    """A few whole trees standing on the horizon."""
    for x in rng.uniform(0, 1, rng.integers(4)):
        height, bark = rng.uniform(0.12, 0.3), pick(rng, BARKS)
        trunk = np.array([[x, horizon + 0.03], [x, horizon - height]])
        canvas.fill(tube(trunk, 0.022, 0.012), bark)
        crown = rng.normal((x, horizon - height), (0.05, 0.03), (5, 2))
        radii = rng.uniform(0.05, 0.1, (5, 1)) * [1.0, 0.85]
        draw_foliage(canvas, crown, radii, leaf * np.linspace(0.75, 1.1, 5)[:, None])


def draw_wood(canvas: Canvas, rng: Rng, horizon: float, leaf: Array) -> None:
    """Foliage and tree trunks that leave the picture at the top."""
    n = int(rng.integers(8, 26))
    radii = rng.uniform(0.03, 0.12, (n, 1)) * [1.0, 0.75]
    draw_foliage(canvas, scatter(rng, n, (0, 1), (0, horizon)), radii, leaf * rng.uniform(0.6, 1.2, (n, 1)))
    bark = pick(rng, BARKS)
    for x, foot in scatter(rng, rng.integers(2, 7), (0, 1), (horizon, horizon + 0.12)):
        top, half = x + rng.normal(0, 0.04), rng.uniform(0.012, 0.045)
        trunk = np.array([[top - half, 0], [top + half, 0], [x + 1.3 * half, foot], [x - 1.3 * half, foot]])
        shade = trunk.copy()
        shade[[1, 2], 0] -= 1.3 * half
        colour = bark * rng.uniform(0.75, 1.1)
        canvas.fill(np.stack([trunk, shade]), np.stack([colour, 0.7 * colour]))
