"""Digits drawn by the program: Pillow's own typeface under random rotation, shear, size, place and pen.

They stand in for MNIST where there is neither a data folder nor a network. They are easier than handwriting; results
on them are never mixed with MNIST's.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caml_core.data.sources import Images

SIZES = {"train": 20000, "test": 10000}
CANVAS = 56  # drawn at twice the size, then shrunk


def images(split: str) -> Images:
    """Digits of one split ("train" or "test"), each class in turn: pixels uint8 (N, 28, 28), labels int64 (N,)."""
    rng = np.random.default_rng([0xD161, *split.encode()])
    fonts = [ImageFont.load_default(size) for size in range(30, 46)]
    labels = np.arange(SIZES[split]) % 10
    pixels = np.stack([_draw(str(label), fonts, rng) for label in labels])
    return Images(pixels, labels.astype(np.int64), "the program's own drawing")


def _draw(text: str, fonts: list, rng: np.random.Generator) -> np.ndarray:  # type: ignore[type-arg]
    image = Image.new("L", (CANVAS, CANVAS))
    font = fonts[int(rng.integers(len(fonts)))]
    pen = int(rng.integers(0, 3))
    ImageDraw.Draw(image).text((CANVAS / 2, CANVAS / 2), text, 255, font, "mm", stroke_width=pen)
    angle, shear, stretch = rng.uniform(-0.45, 0.45), rng.uniform(-0.35, 0.35), rng.uniform(0.75, 1.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[stretch, shear], [0.0, 1 / stretch]])
    centre = np.full(2, CANVAS / 2)
    offset = centre + rng.uniform(-6, 6, 2) - matrix @ centre
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = image.transform((CANVAS, CANVAS), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(2))
