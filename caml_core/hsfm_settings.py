"""Settings of HSFM, those its paper published, and the same procedure on features of another width."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from caml_core import checked

How = Literal["adjoint", "unrolled", "first_order", "implicit", "neumann", "kfac"]
HardSet = Literal["loss", "random", "minority"]
Select = Literal["worst_group", "worst_class", "hard_loss"]
HYPERGRADIENTS: tuple[How, ...] = get_args(How)


@checked.settings
class Settings:
    """Settings of HSFM; the defaults are those published for Dominoes."""

    support: PositiveInt = 16  # n, support examples of each class
    steps: PositiveInt = 10  # T, of the inner loop and of the head
    alpha: PositiveFloat = 1e-4  # size of an inner step, and Adam's step of the head
    eta: PositiveFloat = 1.0  # Adam's step of the edits, in units of a feature
    edits: PositiveInt = 15  # K_H, edits of an epoch on one hard set
    hard: PositiveInt = 256  # K, hard examples of each class
    epochs: PositiveInt = 40  # at most so many
    clip: PositiveFloat = 10.0  # largest norm of a hypergradient
    hypergradient: How = "adjoint"  # how it is computed (`caml_core.implicit.hypergradient`)
    # Highest loss, or for comparison random examples, or the hardest of the minority (an oracle that knows the groups).
    hard_set: HardSet = "loss"
    # Rule for the epoch: worst-group accuracy (as published), or without any group label worst-class accuracy or the
    # lowest mean loss of the hard set that the ERM head had; all on the validation split.
    select: Select = "worst_group"
    late: bool = False  # of equally good epochs the last, as the authors choose, in place of the first
    any_epoch: bool = False  # also one whose average does not clearly beat chance, as the authors choose
    edit_optimizer: Literal["adam", "sgd"] = "adam"  # as published, or eta times the clipped hypergradient


PUBLISHED = {  # for 2,048 features of a ResNet-50
    "celeba": Settings(support=1024, steps=10, alpha=5e-5, eta=1.0, edits=5, hard=256, epochs=20),
    "waterbirds": Settings(support=16, steps=15, alpha=5e-5, eta=1.0, edits=15, hard=64, epochs=40),
    "metashift": Settings(support=32, steps=15, alpha=5e-5, eta=1e-2, edits=10, hard=64, epochs=10),
    "dominoes": Settings(support=16, steps=10, alpha=1e-4, eta=1.0, edits=15, hard=256, epochs=40),
}


def scaled(settings: Settings, features: Tensor) -> Settings:
    """The same procedure on standardised features (N, D) of another width than the 2,048 of `PUBLISHED`.

    An edit by Adam moves a feature by eta, so eta goes with their root mean square r. An inner step moves a logit by
    alpha <h, h'> ~ alpha D r^2, Adam's step of the head by alpha |h|_1 ~ alpha D r: both keep their effect when alpha
    goes with 1 / D. With r = 1 the two rules for alpha agree, so standardise first.
    """
    r = float(features.double().square().mean().sqrt())
    return dataclasses.replace(settings, alpha=settings.alpha * 2048 / (features.shape[1] * r), eta=settings.eta * r)
