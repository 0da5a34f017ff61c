"""From a split to batches on the device, in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from caml_core.errors import CamlError
from caml_core.groups import Example, GroupDataset, check_classes

Balance = Literal["class", "group"] | None
Augment = Callable[[Tensor, torch.Generator], Tensor]  # uint8 (B, 3, H, W) -> the same


def batches(
    dataset: GroupDataset,
    batch_size: int,
    *,
    device: torch.device,
    generator: torch.Generator | None = None,
    balance: Balance = None,
    augment: Augment | None = None,
    rows: Tensor | None = None,
) -> Iterator[Example]:
    """Yield batches `Example(x, y, a, index)` on `device`; one pass over the split.

    Args:
        batch_size: B; the last batch may be smaller, or larger by one: BatchNorm cannot train on a single example.
        generator: shuffles (and augments); without one the order is the split's own.
        balance: draw with replacement so that classes (or groups) are equally likely; needs a generator.
        augment: applied to each batch of images that a generator draws.
        rows: int64, visit these in this order, without a copy of the images that they stand for.

    Raises:
        CamlError: there is nothing to visit, or nothing of a class to balance with.
    """
    order = sample_order(dataset, generator, balance) if rows is None else rows
    if len(order) == 0:
        raise CamlError("no examples", "at least one", "look at the split: is it empty?")
    parts = list(order.split(batch_size))
    if generator is not None and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    # A sampler of index tensors with batch_size=None makes each batch by one slice instead of B small copies.
    loader = DataLoader(dataset, sampler=parts, batch_size=None, pin_memory=device.type == "cuda")  # type: ignore[arg-type]
    for batch in loader:
        if augment is not None and generator is not None:
            batch = batch._replace(x=augment(batch.x, generator))
        yield Example(*(column.to(device, non_blocking=True) for column in batch))


def sample_order(dataset: GroupDataset, generator: torch.Generator | None, balance: Balance = None) -> Tensor:
    """Rows to visit in one epoch, int64 (N,); `CamlError` where a class to balance with is missing."""
    n = len(dataset)
    if generator is None or balance is None:
        return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    if balance == "class":
        check_classes(dataset, dataset.y, "label some of that class first, or use balance=None")
    label = dataset.y if balance == "class" else dataset.group
    return torch.multinomial(odds_of(label), n, replacement=True, generator=generator)


def odds_of(label: Tensor) -> Tensor:
    """Chance of each row so that the labels present are equally likely, to be scaled: float64 (N,)."""
    return 1 / torch.bincount(label)[label].double()


def random_shift(x: Tensor, generator: torch.Generator, pixels: int = 3) -> Tensor:
    """Move each image of a batch (B, 3, H, W) by up to `pixels` either way, repeating the border."""
    b, _, h, w = x.shape
    dy = torch.randint(-pixels, pixels + 1, (b, 1), generator=generator)
    dx = torch.randint(-pixels, pixels + 1, (b, 1), generator=generator)
    rows = (torch.arange(h) + dy).clamp(0, h - 1)  # (B, H)
    cols = (torch.arange(w) + dx).clamp(0, w - 1)  # (B, W)
    batch = torch.arange(b)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """A window of the old size in images (B, 3, H, W) with black around them, every second one mirrored on average.

    As CAML's authors: black is an eighth of the shorter side wide (theirs: 32 pixels, of 256 on Dominoes).
    """
    black = min(x.shape[2:]) // 8
    moved = random_shift(F.pad(x, (black,) * 4), generator, black)[..., black:-black, black:-black]
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


AUGMENTS: dict[str, Augment | None] = {"none": None, "shift": random_shift, "crop": crop_and_flip}
