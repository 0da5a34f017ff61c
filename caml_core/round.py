"""One training of a round of active learning: what each method makes of the labels bought so far.

Every method sees the same labels and differs in the gradient of a step, or in how its batches are drawn:

| method | gradient of a step, every batch class-balanced |
|:--|:--|
| append | g(theta, D_R): a query is one more example |
| upweight | g(theta, D_R) + mean over rounds of g(theta, Q_t): the same gradient mass as CAML, no adaptation |
| mldg | g(theta, D_R) + meta-gradient of independent tasks |
| caml | g(theta, D_R) + meta-gradient under the cumulative bias (`caml_core.meta`) |
| balanced | append with group-balanced batches: an oracle that knows the groups |
| jtt | append; errors of a short first training drawn more often (Liu et al., arXiv 2107.09044) |
| groupdro | append with groups weighted by their loss (Sagawa et al., arXiv 1911.08731); knows the groups |
| erm_all | append with the whole pool labelled: what all labels would buy |
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from caml_core.checked import settings
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict
from caml_core.groups import GroupDataset
from caml_core.loader import Augment, odds_of
from caml_core.meta import Batch, Order, add_to_gradient, loss_at, meta_gradient, trainable
from caml_core.metrics import Rule
from caml_core.networks import Backbone
from caml_core.training import Run, fit

Method = Literal["append", "upweight", "mldg", "caml", "balanced", "jtt", "groupdro", "erm_all"]
Acquisition = Literal[
    "random", "least_confidence", "margin", "entropy", "bald", "core_set", "badge", "typiclust", "dial"
]
METHODS: tuple[Method, ...] = get_args(Method)
Tasks = list[tuple[Batch, Batch]]
META = ("upweight", "mldg", "caml")
JTT_UPWEIGHT, JTT_SHARE = 10.0, 0.25  # errors are drawn so many times as often; first training: this share of epochs
DRO_STEP = 0.01  # of the group weights' multiplicative update


@settings
class Plan:
    """Settings of a run in rounds; the defaults are the counts and step sizes of CAML's authors on images.

    Args:
        start, query, rounds: labels drawn at random first, labels of a round, number of rounds.
        epochs, batch_size, lr, weight_decay, clip: of each training (gradient norm clipped).
        optimizer: "adam", whose weight decay is part of the gradient, or "adamw" (the published choice for text).
        alpha, order, inner_steps: of the meta-gradient, see `caml_core.meta.meta_gradient`.
        select: rule for the epoch, on the validation split (`caml_core.metrics.select_epoch`).
        any_epoch: also one that does not clearly beat chance, as the authors choose.
        short_batches: the last batch of a pass over a set is what is left, as the authors' (of 100: 32, 32, 32, 4).
    """

    method: Method = "caml"
    acquisition: Acquisition = "least_confidence"
    start: PositiveInt = 4500
    query: PositiveInt = 100
    rounds: NonNegativeInt = 5
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-2
    optimizer: Literal["adam", "adamw"] = "adam"
    clip: PositiveFloat = 1.0
    alpha: NonNegativeFloat = 1e-4
    order: Order = "first"
    inner_steps: PositiveInt = 1
    select: Rule = "minority"
    any_epoch: bool = False
    short_batches: bool = False


def train_round(
    network: Backbone,
    pool: GroupDataset,
    sets: Sequence[Tensor],
    val: GroupDataset,
    plan: Plan,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    trail: Tensor | None = None,
    progress: bool = False,
    on_epoch: Callable[[int, Any], None] | None = None,
) -> Run:
    """Train on the first labels and the queries so far, in place, and keep the best validation epoch.

    Args:
        network: with its initial weights; parameters without `requires_grad` stay as they are, by every method.
        sets: rows of the pool, int64: the first labels D_0, then the batches Q_1..Q_t, none of them empty.
        seed: of this round.
        trail: float32 (T, len(pool), C), filled with the logits of the pool at T epochs spread over the training.
        checkpoint, progress, on_epoch: see `caml_core.training.fit`.
    """
    if not all(len(rows) for rows in sets):
        what = f"an empty set of labels in one of the rounds: {[len(rows) for rows in sets]}"
        raise CamlError(what, "at least one label in each", "leave out the rounds that bought nothing")
    device = device or torch.device("cpu")
    network.to(device)
    labelled = torch.cat(list(sets))
    odds = odds_of((pool.group if plan.method == "balanced" else pool.y)[labelled])
    if plan.method == "jtt":  # a short first training on a copy: what it gets wrong is drawn more often
        first, epochs = copy.deepcopy(network), max(1, round(JTT_SHARE * plan.epochs))
        short = dataclasses.replace(plan, method="append", epochs=epochs, select="last")
        file = checkpoint and checkpoint.with_suffix(".first.safetensors")
        how: dict[str, Any] = {"device": device, "augment": augment, "checkpoint": file}
        train_round(first, pool, sets, val, short, seed=stream_seed(seed, 1 << 20), **how)
        wrong = predict(first, pool, device, rows=labelled).argmax(1) != pool.y[labelled]
        odds *= 1 + (JTT_UPWEIGHT - 1) * wrong
    dro = torch.full((pool.n_groups,), 1 / pool.n_groups, device=device)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimizer]
    opt = optimizer(network.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    theta, loss = trainable(network), loss_at(network, device)

    def run_epoch(epoch: int) -> dict[str, Any]:
        summed, steps = torch.zeros((), dtype=torch.float64, device=device), 0
        with seeded(seed, epoch):
            generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
            for rows, x, y, tasks in draws(pool, sets, odds, plan, generator, device, augment):
                with autocast(device):
                    losses = F.cross_entropy(network(x).float(), y, reduction="none")
                value = losses.mean()
                if plan.method == "groupdro":
                    value = _dro(losses, pool.group[rows].to(device), dro)
                opt.zero_grad(set_to_none=True)
                value.backward()
                if tasks:
                    c = meta_gradient(
                        loss, theta, tasks, alpha=0.0 if plan.method == "upweight" else plan.alpha,
                        cumulative=plan.method == "caml", order=plan.order, inner_steps=plan.inner_steps,
                    )  # fmt: skip
                    add_to_gradient(theta, c)
                torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
                opt.step()
                summed, steps = summed + losses.detach().mean(), steps + 1
        if trail is not None:
            due = slice(*(len(trail) * done // plan.epochs for done in (epoch, epoch + 1)))
            if due.stop > due.start:
                trail[due] = predict(network, pool, device)
        return {"loss": float(summed) / steps}

    config = {"plan": dataclasses.asdict(plan), "seed": seed, "augment": getattr(augment, "__name__", str(augment))}
    return fit(
        network, opt, run_epoch, val, epochs=plan.epochs, batch_size=plan.batch_size, select=plan.select, device=device,
        any_epoch=plan.any_epoch,
        config=config | {"sets": [rows.tolist() for rows in sets]}, train=pool,
        extra={"dro": dro} if trail is None else {"dro": dro, "trail": trail},
        checkpoint=checkpoint, progress=progress, on_epoch=on_epoch,
    )  # fmt: skip


def draws(
    pool: GroupDataset, sets: Sequence[Tensor], odds: Tensor, plan: Plan, generator: torch.Generator,
    device: torch.device, augment: Augment | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tasks]]:  # fmt: skip
    """The steps of an epoch, as many as the labels make batches: rows of D_R drawn with these odds, their x and y, and
    for CAML and its kin a class-balanced batch of D_{t-1} and one of Q_t for each round (else no tasks).
    """
    labelled = torch.cat(list(sets))
    steps = math.ceil(len(labelled) / plan.batch_size)

    def draw(rows: Tensor, odds: Tensor) -> Tensor:
        n = steps * plan.batch_size
        return rows[torch.multinomial(odds, n, True, generator=generator)].view(steps, plan.batch_size)

    def batch(rows: Tensor) -> Batch:
        x = pool.x[rows].to(device)
        return x if augment is None else augment(x, generator).to(device), pool.y[rows].to(device)

    def part(drawn: Tensor, step: int, rows: Tensor) -> Tensor:
        """What a loader that goes through a set again and again serves in this step."""
        whole, left = divmod(len(rows), plan.batch_size)
        short = plan.short_batches and left and step % (whole + 1) == whole
        return drawn[step][:left] if short else drawn[step]

    final = draw(labelled, odds)
    use = range(1, len(sets)) if plan.method in META else ()
    tasks = [(torch.cat(list(sets[:t])), sets[t]) for t in use]  # (D_{t-1}, Q_t)
    drawn = [tuple(draw(rows, odds_of(pool.y[rows])) for rows in task) for task in tasks]
    for step in range(steps):
        rows = part(final, step, labelled)
        x, y = batch(rows)
        pairs = [tuple(part(d, step, of) for d, of in zip(both, task)) for both, task in zip(drawn, tasks)]
        yield rows, x, y, [(batch(before), batch(asked)) for before, asked in pairs]


def _dro(losses: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """GroupDRO: sum_g q_g L_g over the groups of the batch, after q_g <- q_g exp(step L_g), normalised; q in place."""
    present, inverse = group.unique(return_inverse=True)
    zeros = torch.zeros(len(present), device=losses.device)
    mean = zeros.index_add(0, inverse, losses) / zeros.index_add(0, inverse, torch.ones_like(losses))
    weights[present] *= (DRO_STEP * mean.detach()).exp()
    weights /= weights.sum()
    return (weights[present] * mean).sum()
