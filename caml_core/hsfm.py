"""HSFM: edit the features of a small support set until the linear head trained on them does well on hard examples.

Yazdan Parast et al., arXiv 2603.29313. The backbone is frozen; its ERM head is theta_0 = (W, b). One epoch:

    hard set:  for each class the K validation examples with the highest loss under theta_0 (labels, no groups)
    K_H times: train the head from theta_0 for T steps on the support set H; score it on the hard set;
               move H along the hypergradient (`caml_core.hypergradients`), clipped to norm 10, by Adam(eta)
    head:      T Adam(alpha) steps of theta_0 on the edited H

and the epoch with the best validation worst-group accuracy is kept. The hard set holds what the shortcut gets wrong, so
the support set, drawn from the biased training set, turns into one that a fair head can be trained on.

Everything carries a leading dimension B of problems (seeds, settings), solved side by side.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from caml_core.data.dataset import GroupDataset
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.hypergradients import (
    HYPERGRADIENTS,
    How,
    Problem,
    cross_entropies,
    head_logits,
    hypergradient,
    one_hot,
)
from caml_core.metrics import wilson

HardSet = Literal["loss", "random", "minority"]
HARD_SETS: tuple[HardSet, ...] = ("loss", "random", "minority")
SELECT = ("worst_group", "worst_class", "hard_loss")
EDIT_OPTIMIZERS = ("adam", "sgd")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of HSFM; the defaults are those published for Dominoes.

    Args:
        support: n, support examples of each class.
        steps: T, of the inner loop and of the head.
        alpha: size of an inner step, and Adam's step of the head.
        eta: Adam's step of the edits, in units of a feature.
        edits: K_H, edits of an epoch on one hard set.
        hard: K, hard examples of each class.
        epochs: at most so many.
        clip: largest norm of a hypergradient.
        hypergradient: a name of `caml_core.hypergradients.HYPERGRADIENTS`.
        hard_set: "loss" (highest loss), or for comparison "random" examples, or the hardest "minority" examples (an
            oracle that knows the groups).
        select: validation rule for the epoch: "worst_group" accuracy (as published), or without any group label
            "worst_class" accuracy or "hard_loss" (lowest mean loss of the hard set that the ERM head had).
        edit_optimizer: "adam" (as published), or for comparison "sgd": eta times the clipped hypergradient.

    Raises:
        CamlError: a setting out of range.
    """

    support: int = 16
    steps: int = 10
    alpha: float = 1e-4
    eta: float = 1.0
    edits: int = 15
    hard: int = 256
    epochs: int = 40
    clip: float = 10.0
    hypergradient: How = "adjoint"
    hard_set: HardSet = "loss"
    select: str = "worst_group"
    edit_optimizer: str = "adam"

    def __post_init__(self) -> None:
        names = ("support", "steps", "edits", "hard", "epochs")
        wrong = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) < 1]
        sizes = ("alpha", "eta", "clip")
        wrong += [f"{name}={getattr(self, name)}" for name in sizes if not 0 < getattr(self, name) < math.inf]
        choices: dict[str, tuple[str, ...]] = {
            "hypergradient": HYPERGRADIENTS, "hard_set": HARD_SETS, "select": SELECT, "edit_optimizer": EDIT_OPTIMIZERS,
        }  # fmt: skip
        unknown = {name: known for name, known in choices.items() if getattr(self, name) not in known}
        wrong += [f"{name}={getattr(self, name)!r}" for name in unknown]
        if wrong:
            raise CamlError(
                what=", ".join(wrong),
                expected="; ".join(
                    ["counts of at least 1, sizes above 0"]
                    + [f"{name} among {', '.join(known)}" for name, known in unknown.items()]
                ),
                remedy="correct the setting",
            )


PUBLISHED = {  # for 2,048 features of a ResNet-50
    "celeba": Settings(support=1024, steps=10, alpha=5e-5, eta=1.0, edits=5, hard=256, epochs=20),
    "waterbirds": Settings(support=16, steps=15, alpha=5e-5, eta=1.0, edits=15, hard=64, epochs=40),
    "metashift": Settings(support=32, steps=15, alpha=5e-5, eta=1e-2, edits=10, hard=64, epochs=10),
    "dominoes": Settings(support=16, steps=10, alpha=1e-4, eta=1.0, edits=15, hard=256, epochs=40),
}


@dataclasses.dataclass
class Edits:
    """What HSFM leaves for B problems. Epoch 0 is the ERM head with nothing edited."""

    weight: Tensor  # float (B, C, D), the head of the chosen epoch
    bias: Tensor  # float (B, C)
    epoch: Tensor  # int64 (B,), the chosen epoch
    before: Tensor  # float (B, S, D), support features as drawn
    after: Tensor  # float (B, S, D), as edited by the chosen epoch
    support_y: Tensor  # int64 (B, S)
    rows: Tensor  # int64 (B, S), where in the training split they come from
    accuracy: Tensor  # float (epochs + 1, B, n_groups), validation accuracy by group, percent; nan for empty groups
    average: Tensor  # float (epochs + 1, B), percent
    loss: Tensor  # float (epochs, B), of the hard set under the trained head, before the epoch's first edit


def draw_support(train: GroupDataset, n: int, seeds: Sequence[int]) -> Tensor:
    """n training rows of each class for each seed, without replacement: int64 (B, n * C), class by class.

    Raises:
        CamlError: a class has fewer than n examples.
    """
    _enough(train, n, "support")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(train), generator=generator)
        rows.append(torch.cat([order[train.y[order] == c][:n] for c in range(len(train.class_names))]))
    return torch.stack(rows)


@torch.no_grad()
def hsfm(
    train: GroupDataset,
    val: GroupDataset,
    weight: Tensor,
    bias: Tensor,
    settings: Settings = Settings(),
    *,
    seeds: Sequence[int] = (0,),
    alpha: Tensor | None = None,
    eta: Tensor | None = None,
    device: torch.device | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    on_epoch: Callable[[int, Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> Edits:
    """Solve B problems at once: one for each seed, which draws the support set (and a random hard set).

    Args:
        train, val: features in place of images, x float32 (N, D), scaled alike.
        weight, bias: the ERM head, float (C, D) and (C,), or one for each problem, (B, C, D) and (B, C).
        seeds: B of them; repeat a seed to compare settings on the same support set.
        alpha, eta: (B,), where the problems differ in them; default: those of `settings`.
        project: applied to the support features (B, S, D) after every edit, where features must stay on some set, such
            as the sphere of CLIP (`caml_core.clip_space`).
        on_epoch: called with (epoch, support (B, S, D), weight, bias, hard rows (B, K C)) after each epoch, and with
            epoch 0 before the first; tensors must not be changed.

    Raises:
        CamlError: NaN in features or head, too few examples of a class, widths that do not fit, other than B heads or
            step sizes, an inner loop that diverges at once.
    """
    device = device or torch.device("cpu")
    n_classes, b = len(train.class_names), len(seeds)
    _check(train, val, weight, bias, settings)
    _check_batch(b, weight, bias, alpha, eta)
    rows = draw_support(train, settings.support, seeds)
    before = train.x[rows].to(device)
    y = train.y[rows].to(device)
    val_x, val_y = val.x.to(device), val.y.to(device)
    weight = weight.to(device).expand(b, n_classes, -1).clone()
    bias = bias.to(device).expand(b, n_classes).clone()
    step_head = torch.full((b,), settings.alpha, device=device) if alpha is None else alpha.to(device)
    step_edit = torch.full((b,), settings.eta, device=device) if eta is None else eta.to(device)

    h = before.clone()
    edit_state = Adam(h, step_edit) if settings.edit_optimizer == "adam" else Descent(h, step_edit)
    weight_state, bias_state = Adam(weight, step_head), Adam(bias, step_head)
    target = one_hot(y, n_classes, h)
    groups = one_hot(val.group.to(device), val.n_groups, h)
    logits = head_logits(val_x, weight, bias)
    first_hard: Tensor | None = None
    accuracies, averages, losses, scores = [], [], [], []
    best = torch.zeros(b, dtype=torch.long, device=device)
    chosen = [weight.clone(), bias.clone(), h.clone()]
    saturated = torch.zeros(b, dtype=torch.bool, device=device)
    diverged = torch.zeros_like(saturated)
    for epoch in range(settings.epochs + 1):
        if epoch > 0:
            hard = hard_rows(logits, val, settings, seeds, epoch)
            union, inverse = hard.unique(return_inverse=True)  # all problems read the same rows of the validation set
            share = torch.zeros(b, len(union), device=device).scatter_(1, inverse, 1 / hard.shape[1])
            hard_x, hard_y = val_x[union], val_y[union]
            for edit in range(settings.edits):
                problem = Problem(h, y, hard_x, hard_y, weight, bias, share)
                if epoch == 1 and edit == 0:  # an overshoot can end well, so nothing less than every step is looked at
                    for t in range(1, settings.steps + 1):
                        early = hypergradient(problem, "first_order", alpha=step_head, steps=t)
                        _diverges(h, weight, bias, early.weight, early.bias, y, epoch)
                answer = hypergradient(problem, settings.hypergradient, alpha=step_head, steps=settings.steps)
                if edit == 0:
                    losses.append(answer.loss)
                if edit == settings.edits - 1:
                    diverged |= _diverges(h, weight, bias, answer.weight, answer.bias, y, epoch)
                norm = answer.gradient.flatten(1).norm(dim=1)
                saturated |= norm == 0
                edit_state.step(h, answer.gradient * (settings.clip / norm.clamp_min(settings.clip))[:, None, None])
                if project is not None:
                    h.copy_(project(h))
            for _ in range(settings.steps):
                residual = ((h @ weight.mT + bias[:, None]).softmax(dim=-1) - target) / h.shape[1]
                weight_state.step(weight, residual.mT @ h)
                bias_state.step(bias, residual.sum(dim=1))
            logits = head_logits(val_x, weight, bias)
        right = (logits.argmax(dim=-1) == val_y).to(h.dtype)  # (B, N)
        accuracies.append(100 * (right @ groups) / groups.sum(dim=0))
        averages.append(100 * right.mean(dim=1))
        if first_hard is None:
            first_hard = hard_rows(logits, val, settings, seeds, 0)
        scores.append(_score(settings.select, right, logits, val_y, accuracies[-1], first_hard))
        if epoch == 0:
            best_score = scores[0]
        else:
            able = _beats_chance(averages[-1], val).to(device)
            better = able & ~diverged & (scores[-1] > best_score)
            best_score = torch.where(better, scores[-1], best_score)
            best = torch.where(better, epoch, best)
            for kept, now in zip(chosen, (weight, bias, h)):
                kept[better] = now[better]
        if on_epoch is not None:
            on_epoch(epoch, h, weight, bias, first_hard if epoch == 0 else hard)
    if diverged.any():
        warnings.warn(
            f"the inner loop of {int(diverged.sum())} of {b} problems diverged on edited features; the epoch was "
            "chosen from those before. Lower alpha or eta.",
            stacklevel=2,
        )
    if saturated.any():
        warnings.warn(
            f"{int(saturated.sum())} of {b} problems met a hypergradient of exactly 0: the head fits the support set "
            "so well that it learns nothing from it any more. Lower alpha or eta, or take more support examples.",
            stacklevel=2,
        )
    return Edits(
        chosen[0], chosen[1], best, before, chosen[2], y, rows, torch.stack(accuracies), torch.stack(averages),
        torch.stack(losses),
    )  # fmt: skip


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980) with a step size for each problem of the batch, in place."""

    def __init__(self, like: Tensor, step: Tensor) -> None:
        self.mean, self.square, self.t = torch.zeros_like(like), torch.zeros_like(like), 0
        self.size = step.view(-1, *[1] * (like.ndim - 1))

    def step(self, parameter: Tensor, gradient: Tensor) -> None:
        self.t += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = self.square.div(1 - 0.999**self.t).sqrt_().add_(1e-8)
        parameter.sub_(self.size / (1 - 0.9**self.t) * self.mean.div(scale))


class Descent:
    """Plain steps against the gradient, with a step size for each problem of the batch, in place."""

    def __init__(self, like: Tensor, step: Tensor) -> None:
        self.size = step.view(-1, *[1] * (like.ndim - 1))

    def step(self, parameter: Tensor, gradient: Tensor) -> None:
        parameter.sub_(self.size * gradient)


def hard_rows(logits: Tensor, val: GroupDataset, settings: Settings, seeds: Sequence[int], epoch: int) -> Tensor:
    """Rows of the hard set, K of each class: int64 (B, K C).

    Args:
        logits: (B, N, C), of the validation set under each head.
    """
    y = val.y.to(logits.device)
    if settings.hard_set == "random":
        generators = [torch.Generator().manual_seed(stream_seed(seed, epoch)) for seed in seeds]
        score = torch.stack([torch.rand(len(val), generator=g) for g in generators]).to(logits.device)
    else:
        score = cross_entropies(logits, y)
    if settings.hard_set == "minority":
        score = score.masked_fill(~val.is_minority.to(logits.device), -1.0)  # a loss is never below 0
    rows = []
    for c in range(len(val.class_names)):
        of_class = torch.where(y == c)[0]
        rows.append(of_class[score[:, of_class].topk(settings.hard, dim=1).indices])
    return torch.cat(rows, dim=1)


def scaled(settings: Settings, features: Tensor) -> Settings:
    """The same procedure on features of another width or norm than the 2,048 standardised ones of `PUBLISHED`.

    Let r be the root mean square of a feature and D their number. An edit by Adam moves a feature by eta, so eta goes
    with r. An inner step moves a logit by alpha <h, h'> ~ alpha D r^2 (the Gram matrix), and Adam's step of the head by
    alpha |h|_1 ~ alpha D r; both keep their effect on standardised features when alpha goes with 1 / D. With r = 1 the
    two rules for alpha agree, so standardise first.

    Args:
        features: float (N, D), standardised.
    """
    rms = float(features.double().square().mean().sqrt())
    return dataclasses.replace(
        settings, alpha=settings.alpha * 2048 / (features.shape[1] * rms), eta=settings.eta * rms
    )


def _score(select: str, right: Tensor, logits: Tensor, y: Tensor, by_group: Tensor, hard: Tensor) -> Tensor:
    """What the choice of the epoch maximises, (B,)."""
    if select == "worst_group":
        return by_group.nan_to_num(nan=101.0).amin(dim=1)
    if select == "worst_class":
        classes = one_hot(y, logits.shape[-1], right)
        return ((right @ classes) / classes.sum(dim=0)).amin(dim=1)
    return -cross_entropies(logits, y).gather(1, hard).mean(dim=1)


def _beats_chance(average: Tensor, val: GroupDataset) -> Tensor:
    """Whether an average clearly beats the best constant answer: with two classes a coin has 50% in every group."""
    chance = 100 * float(torch.bincount(val.y).max()) / len(val)
    lows = [wilson(round(float(p) * len(val) / 100), len(val))[0] for p in average]
    return torch.tensor([low > chance for low in lows])


def _diverges(
    h: Tensor, weight: Tensor, bias: Tensor, trained: Tensor, trained_bias: Tensor, y: Tensor, epoch: int
) -> Tensor:
    """Which inner loops raise the loss that they descend, bool (B,).

    Raises:
        CamlError: one does so in the first epoch, when hardly anything is edited: its steps are too large; or the edits
            have left the finite numbers.
    """
    heads = ((weight, bias), (trained, trained_bias))
    start, end = (cross_entropies(head_logits(h, w, b), y).mean(dim=1) for w, b in heads)
    bad = ~torch.isfinite(end) | (end > start + 1)
    if not torch.isfinite(start).all():
        raise CamlError(
            what=f"the edited features of epoch {epoch} are so large that the support loss is {float(start.max())}",
            expected="edits that keep features finite",
            remedy="lower eta",
        )
    if epoch == 1 and bad.any():
        raise CamlError(
            what=f"the inner loop diverges in epoch 1: the support loss went from {float(start[bad][0]):.3g} to "
            f"{float(end[bad][0]):.3g}",
            expected="steps that lower the loss they descend",
            remedy="lower alpha (see caml_core.hsfm.scaled for other widths and norms)",
        )
    return bad


def _enough(split: GroupDataset, n: int, kind: str, rows: Tensor | slice = slice(None)) -> None:
    counts = torch.bincount(split.y[rows], minlength=len(split.class_names))
    if int(counts.min()) < n:
        few = int(counts.argmin())
        raise CamlError(
            what=f"class {split.class_names[few]} has {int(counts[few])} examples for {n} of the {kind} set",
            expected=f"at least {n} of each class",
            remedy=f"lower the setting `{kind}`, or give more data",
        )


def _check(train: GroupDataset, val: GroupDataset, weight: Tensor, bias: Tensor, settings: Settings) -> None:
    d, c = weight.shape[-1], len(train.class_names)
    shapes = {
        "train.x": train.x.shape[1:],
        "val.x": val.x.shape[1:],
        "weight": weight.shape[-2:],
        "bias": bias.shape[-1:],
    }
    fits = {"train.x": (d,), "val.x": (d,), "weight": (c, d), "bias": (c,)}
    wrong = [
        f"{name} (..., {', '.join(map(str, shape))})" for name, shape in shapes.items() if tuple(shape) != fits[name]
    ]
    if wrong or val.class_names != train.class_names:
        raise CamlError(
            what=f"{', '.join(wrong) or 'validation classes'} do not fit a head of {d} features and {c} classes",
            expected="features of one width in both splits, and the head that was trained on them",
            remedy="extract the features of both splits with one backbone",
        )
    for name, tensor in (("train.x", train.x), ("val.x", val.x), ("weight", weight), ("bias", bias)):
        if not bool(torch.isfinite(tensor).all()):
            raise CamlError(
                what=f"{name} contains NaN or infinity",
                expected="finite features and weights",
                remedy="extract the features again and standardise them (constant columns become 0)",
            )
    _enough(train, settings.support, "support")
    _enough(val, settings.hard, "hard", val.is_minority if settings.hard_set == "minority" else slice(None))


def _check_batch(b: int, weight: Tensor, bias: Tensor, alpha: Tensor | None, eta: Tensor | None) -> None:
    heads = {"weight": weight.shape[:-2], "bias": bias.shape[:-1]}
    wrong = [f"{name} for {list(shape)} problems" for name, shape in heads.items() if tuple(shape) not in ((), (b,))]
    for name, sizes in (("alpha", alpha), ("eta", eta)):
        if sizes is not None and (sizes.shape != (b,) or not bool(((sizes > 0) & (sizes < math.inf)).all())):
            wrong.append(f"{name}={sizes.tolist()}")
    if b < 1 or wrong:
        raise CamlError(
            what=f"{b} seeds" + "".join(f", {part}" for part in wrong),
            expected="at least one seed, and one head or one for each seed; steps above 0, one for each seed",
            remedy="repeat a seed for each further setting",
        )
