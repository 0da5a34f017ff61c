"""HSFM: edit the features of a small support set until the linear head trained on them does well on hard examples.

Yazdan Parast et al., arXiv 2603.29313. The backbone is frozen; its ERM head is theta_0 = (W, b). One epoch:

    hard set:  for each class the K validation examples with the highest loss under theta_0 (labels, no groups)
    K_H times: train the head from theta_0 for T steps on the support set H; score it on the hard set;
               move H along the hypergradient (`caml_core.hypergradients`), clipped to norm 10, by Adam(eta)
    head:      T Adam(alpha) steps of theta_0 on the edited H

and the epoch with the best validation worst-group accuracy is kept. The hard set holds what the shortcut gets wrong, so
the support set, drawn from the biased training set, turns into one that a fair head can be trained on.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.hsfm_settings import PUBLISHED, Settings
from caml_core.hypergradients import Answer, Problem
from caml_core.implicit import hypergradient
from caml_core.linear import Adam, all_finite, check_features, cross_entropies, head_gradient, head_logits


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


@torch.no_grad()
def hsfm(
    train: GroupDataset,
    val: GroupDataset,
    weight: Tensor,
    bias: Tensor,
    settings: Settings = PUBLISHED["dominoes"],
    *,
    seeds: Sequence[int] = (0,),
    alpha: Tensor | Sequence[float] | None = None,
    eta: Tensor | Sequence[float] | None = None,
    device: torch.device | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    on_epoch: Callable[[int, Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> Edits:
    """Solve B problems at once: one for each seed, which draws the support set (and a random hard set).

    Args:
        train, val: features, scaled alike: x float32 or float64 (N, D), in which everything is computed.
        weight, bias: the ERM head, float (C, D) and (C,), or one for each problem, (B, C, D) and (B, C).
        alpha, eta: (B,), where the problems differ in them; default: those of `settings`.
        project: applied to the support features (B, S, D) after every edit, such as back to the sphere of CLIP.
        on_epoch: called with (epoch, support (B, S, D), weight, bias, hard rows (B, K C)) after each epoch, and with
            epoch 0 before the first; tensors must not be changed.

    Raises:
        CamlError: NaN in features or head, too few of a class, a head that does not fit, an inner loop that diverges.
    """
    check_features(train, val)
    _enough(val, settings.hard, "hard", val.is_minority if settings.hard_set == "minority" else slice(None))
    device, b, c, d, n = device or torch.device("cpu"), len(seeds), len(train.class_names), train.x.shape[1], len(val)
    weight, bias, alpha, eta = (
        torch.as_tensor(value, dtype=train.x.dtype, device=device)
        for value in (weight, bias, settings.alpha if alpha is None else alpha, settings.eta if eta is None else eta)
    )
    if (weight.shape[-2:], bias.shape[-1:]) != ((c, d), (c,)) or not (all_finite(weight) and all_finite(bias)):
        what = f"a head {tuple(weight.shape)} and {tuple(bias.shape)} for {d} features and {c} classes"
        raise CamlError(what, f"finite, ({c}, {d}) and ({c},)", "pass the head that was trained on these features")
    weight, bias, alpha, eta = weight.expand(b, c, d).clone(), bias.expand(b, c).clone(), alpha.expand(b), eta.expand(b)
    rows = draw_support(train, settings.support, seeds)
    before, y, val_x, val_y = train.x[rows].to(device), train.y[rows].to(device), val.x.to(device), val.y.to(device)
    h, target = before.clone(), F.one_hot(y, c).to(before)
    edit_state, head_states = Adam(h, eta), (Adam(weight, alpha), Adam(bias, alpha))
    classes, groups = (F.one_hot(of, m).to(h) for of, m in ((val_y, c), (val.group.to(device), val.n_groups)))
    chance = int(classes.sum(dim=0).max())
    clearly = chance + 1.959964 * math.sqrt(chance * (n - chance) / n)  # above: chance lies below Wilson's interval
    accuracies, averages, losses = [], [], []
    best, diverged = torch.zeros(b, dtype=torch.long, device=device), torch.zeros(b, dtype=torch.bool, device=device)
    best_score, kept = torch.full_like(alpha, -math.inf), [part.clone() for part in (weight, bias, h)]
    logits = head_logits(val_x, weight, bias)
    for epoch in range(settings.epochs + 1):
        hard = hard_rows(logits, val, settings, seeds, epoch)
        if epoch == 0:
            first_hard = hard
        else:
            union, inverse = hard.unique(return_inverse=True)  # all problems read the same rows of the validation set
            share = h.new_zeros(b, len(union)).scatter_(1, inverse, 1 / hard.shape[1])
            problem = Problem(h, y, val_x.index_select(0, union), val_y[union], weight, bias, share)
            for edit in range(settings.edits):
                answer = hypergradient(problem, settings.hypergradient, alpha=alpha, steps=settings.steps)
                if edit == 0:
                    losses.append(answer.loss)
                    diverged |= _climbs(problem, answer, alpha, settings.steps if epoch == 1 else 0)
                clip(answer.gradient, settings.clip)
                if settings.edit_optimizer == "adam":
                    edit_state.step(h, answer.gradient)
                else:
                    h.sub_(eta[:, None, None] * answer.gradient)
                if project is not None:
                    h.copy_(project(h))
            train_head(h, target, weight, bias, head_states, settings.steps)
            logits = head_logits(val_x, weight, bias)
        right = (logits.argmax(dim=-1) == val_y).to(h)  # (B, N)
        by_group, by_class = (100 * (right @ each) / each.sum(dim=0) for each in (groups, classes))
        accuracies.append(by_group)
        averages.append(100 * right.mean(dim=1))
        if settings.select == "hard_loss":
            score = -cross_entropies(logits, val_y).gather(1, first_hard).mean(dim=1)
        else:
            score = (by_group.nan_to_num(nan=101.0) if settings.select == "worst_group" else by_class).amin(dim=1)
        able = ~diverged & (settings.any_epoch | (right.sum(dim=1) > clearly)) | (epoch == 0)
        better = able & ((score > best_score) | settings.late & (score == best_score))
        best_score, best = torch.where(better, score, best_score), torch.where(better, epoch, best)
        for old, new in zip(kept, (weight, bias, h)):
            old[better] = new[better]
        if on_epoch is not None:
            on_epoch(epoch, h, weight, bias, hard)
    if diverged.any():
        what = f"{int(diverged.sum())} of {b} problems met inner loops that diverge; no epoch after that was chosen"
        warnings.warn(f"{what}: lower alpha or eta, or take more support", stacklevel=2)
    accuracy, average, loss = (torch.stack(part) for part in (accuracies, averages, losses))
    return Edits(kept[0], kept[1], best, before, kept[2], y, rows, accuracy, average, loss)


def draw_support(train: GroupDataset, n: int, seeds: Sequence[int]) -> Tensor:
    """n training rows of each class for each seed, without replacement: int64 (B, n * C), class by class."""
    _enough(train, n, "support")
    orders = [torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    classes = range(len(train.class_names))
    return torch.stack([torch.cat([order[train.y[order] == c][:n] for c in classes]) for order in orders])


def _enough(split: GroupDataset, n: int, kind: str, rows: Tensor | slice = slice(None)) -> None:
    for name, count in zip(split.class_names, torch.bincount(split.y[rows], minlength=len(split.class_names))):
        if count < n:
            what = f"class {name} has {count} examples for {n} of the {kind} set"
            raise CamlError(what, "as many of each class", f"lower the setting `{kind}`, or give more data")


def hard_rows(logits: Tensor, val: GroupDataset, settings: Settings, seeds: Sequence[int], epoch: int) -> Tensor:
    """Rows of the hard set, K of each class: int64 (B, K C), from the validation set's `logits` (B, N, C)."""
    y = val.y.to(logits.device)
    if settings.hard_set == "random":
        generators = [torch.Generator().manual_seed(stream_seed(seed, epoch)) for seed in seeds]
        score = torch.stack([torch.rand(len(val), generator=g) for g in generators]).to(logits.device)
    else:
        score = cross_entropies(logits, y)
    if settings.hard_set == "minority":
        score = score.masked_fill(~val.is_minority.to(logits.device), -1.0)  # a loss is never below 0
    of_class = [torch.where(y == c)[0] for c in range(len(val.class_names))]
    return torch.cat([rows[score[:, rows].topk(settings.hard, dim=1).indices] for rows in of_class], dim=1)


def clip(gradient: Tensor, longest: float) -> None:
    """Shorten gradients (B, S, D) in place to a norm of at most `longest`."""
    gradient.mul_((longest / gradient.flatten(1).norm(dim=1).clamp_min(longest))[:, None, None])


def train_head(h: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, states: Sequence[Adam], steps: int) -> None:
    """Adam on the mean cross-entropy of support features (B, S, D) with one-hot labels; the head changes in place."""
    for _ in range(steps):
        gradients = head_gradient(h, labels, 1 / h.shape[1], weight, bias)
        for state, parameter, gradient in zip(states, (weight, bias), gradients):
            state.step(parameter, gradient)


def _climbs(problem: Problem, answer: Answer, alpha: Tensor, look: int) -> Tensor:
    """Which inner loops raise the support loss that they descend by more than 1, or leave the numbers: bool (B,).

    In the first epoch, when hardly anything is edited, this is an error; there every one of the `look` steps is looked
    at, since an overshoot can end well.
    """
    h, y, heads = problem.support, problem.support_y, [(problem.weight, problem.bias)]
    for _ in range(look):
        g_weight, g_bias = head_gradient(h, F.one_hot(y, answer.bias.shape[1]), 1 / h.shape[1], *heads[-1])
        heads.append((heads[-1][0] - alpha[:, None, None] * g_weight, heads[-1][1] - alpha[:, None] * g_bias))
    path = torch.stack([cross_entropies(head_logits(h, *head), y).mean(dim=1) for head in (*heads, answer[2:])])
    bad = ~(torch.isfinite(path) & (path <= path[0] + 1)).all(dim=0)
    if look and bad.any():
        what = f"the inner loop diverges in epoch 1: support losses {path[:, bad][:, 0].tolist()}"
        remedy = "lower alpha (caml_core.hsfm_settings.scaled knows other widths and norms)"
        raise CamlError(what, "steps that lower the loss they descend", remedy)
    return bad
