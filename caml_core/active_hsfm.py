"""Active HSFM: the queried batch takes the place of HSFM's hard set, on frozen features. Our own combination.

The head theta_0 was trained on the first labels D_0; round t = 1..R bought Q_t, and D_t = D_{t-1} + Q_t. A task is a
pair (support rows H_t of D_{t-1}, hard rows Q_t), one a round, or a single one (some of D_0, all the queries). Let
train(theta, H) be the head after T gradient steps of size alpha on the mean cross-entropy of H; L(theta, Q) the mean
over the classes in Q of their mean cross-entropies; g its gradient in theta. One epoch:

    c <- 0
    for t = 1..R:
        start <- theta - alpha T c / (t-1)             # earlier rounds' wishes count as granted (t = 1: theta)
        K_H times:  H_t <- Adam(eta) along the clipped hypergradient of L(train(start, H_t), Q_t)
        c <- c + g(train(start, H_t), Q_t)             # what round t still asks for
    theta <- T Adam(alpha) steps on the mean cross-entropy of H_1 + ... + H_R

CAML (`caml_core.meta`) puts c / (t-1) into each inner step. Here all T of these go before the first one: the same up to
O(alpha^2), and the hypergradient stays exact. No label is put aside to choose an epoch, so the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.hsfm import clip, draw_support, train_head
from caml_core.hsfm_settings import Settings
from caml_core.hypergradients import Problem
from caml_core.implicit import hypergradient
from caml_core.linear import Adam, all_finite, head_gradient


class Task(NamedTuple):
    """Support features to edit and the batch that judges them, for B problems (seeds)."""

    support: Tensor  # float (B, S, D)
    support_y: Tensor  # int64 (B, S)
    hard: Tensor  # float (B, K, D)
    hard_y: Tensor  # int64 (B, K)


class Edited(NamedTuple):
    """What active HSFM leaves for B problems."""

    weight: Tensor  # float (B, C, D), the head after the last epoch
    bias: Tensor  # float (B, C)
    support: list[Tensor]  # float (B, S, D) each, the edited features of every task
    loss: Tensor  # float (epochs, R, B), L(train(start, H_t), Q_t) after the edits of an epoch


def round_tasks(
    pool: GroupDataset, sets: Sequence[Tensor], support: int, *, seed: int, one_hard_set: bool = False
) -> list[Task]:
    """The tasks of one run of active learning (B = 1); `batch` puts several runs side by side.

    Args:
        pool: features, x float (N, D).
        sets: rows of the pool: D_0, then Q_1..Q_R; `CamlError` where one is empty, or a row is in two.
        support: n, support examples of each class, drawn at random; `CamlError` where there are fewer.
        one_hard_set: all queries as one hard set, in place of one a round.
    """
    sets = [torch.as_tensor(rows).long() for rows in sets]
    bought = torch.cat([torch.arange(0), *sets])
    if len(sets) < 2 or not all(map(len, sets)) or len(bought.unique()) < len(bought):
        what = f"sets of {[*map(len, sets)]} labels, {len(bought.unique())} different ones"
        raise CamlError(what, "first labels and rounds, none empty, no label twice", "query first, and each row once")
    rounds, tasks = [sets[0], torch.cat(sets[1:])] if one_hard_set else sets, []
    for t in range(1, len(rounds)):
        known, hard = pool.subset(torch.cat(rounds[:t])), pool.subset(rounds[t])
        rows = draw_support(known, support, [stream_seed(seed, t)])
        tasks.append(Task(known.x[rows], known.y[rows], hard.x[None], hard.y[None]))
    return tasks


def batch(runs: Sequence[Sequence[Task]]) -> list[Task]:
    """Several runs of one shape (rounds, queries, support) as one batch of problems, B in all."""
    return [Task(*(torch.cat(parts) for parts in zip(*tasks))) for tasks in zip(*runs, strict=True)]


@torch.no_grad()
def active_hsfm(
    tasks: Sequence[Task], weight: Tensor, bias: Tensor, settings: Settings, *, cumulative: bool = True
) -> Edited:
    """Edit the support sets of all rounds and train the head on them; the formulas stand at the top of this file.

    Args:
        weight, bias: theta_0, float (B, C, D) and (B, C), or one for all, (C, D) and (C,).
        settings: of HSFM, of which `hard`, `hard_set` and `select` have no say.
        cumulative: False for independent rounds (c = 0).

    Raises:
        CamlError: a loss that is not finite.
    """
    b, (c, d) = len(tasks[0].support), weight.shape[-2:]
    weight, bias = weight.expand(b, c, d).clone(), bias.reshape(-1, c).expand(b, c).clone()
    alpha, eta = (weight.new_full((b,), size) for size in (settings.alpha, settings.eta))
    edited = [task.support.clone() for task in tasks]
    edit_states, head_states = [Adam(h, eta) for h in edited], (Adam(weight, alpha), Adam(bias, alpha))
    wanted = [F.one_hot(task.hard_y, c).to(weight) for task in tasks]
    counts = [labels.sum(dim=1, keepdim=True) for labels in wanted]  # every class that is present counts the same
    shares = [(y / n.clamp_min(1)).sum(dim=-1) / (n > 0).sum(dim=-1) for y, n in zip(wanted, counts)]
    support_y = F.one_hot(torch.cat([task.support_y for task in tasks], dim=1), c).to(weight)
    losses = []
    for _ in range(settings.epochs):
        c_weight, c_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for t, (task, h, state) in enumerate(zip(tasks, edited, edit_states)):  # t rounds lie behind
            granted = settings.alpha * settings.steps / max(t, 1) if cumulative else 0.0
            start = weight - granted * c_weight, bias - granted * c_bias
            problem = Problem(h, task.support_y, task.hard, task.hard_y, *start, shares[t])
            for edit in range(settings.edits + 1):
                answer = hypergradient(problem, settings.hypergradient, alpha=alpha, steps=settings.steps)
                if edit < settings.edits:
                    clip(answer.gradient, settings.clip)
                    state.step(h, answer.gradient)  # in place
            g_weight, g_bias = head_gradient(task.hard, wanted[t], shares[t][..., None], answer.weight, answer.bias)
            c_weight, c_bias = c_weight + g_weight, c_bias + g_bias
            losses.append(answer.loss)
        train_head(torch.cat(edited, dim=1), support_y, weight, bias, head_states, settings.steps)
    loss = torch.stack(losses).view(settings.epochs, len(tasks), b)
    if not (all_finite(loss) and all_finite(weight)):
        what = f"the head diverged: losses of the hard sets from {loss[0].tolist()} to {loss[-1].tolist()}"
        raise CamlError(what, "finite numbers", "lower alpha or eta, and standardise the features")
    return Edited(weight, bias, edited, loss)
