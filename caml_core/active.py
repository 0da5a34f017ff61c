"""Active learning in rounds: query, label, retrain from the initial weights, and what the training makes of the rounds.

Every method sees the same labels in the same loop and differs in one thing, the gradient of a training step:

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
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.acquisition import ACQUISITIONS, Pool, acquire
from caml_core.backbones import Backbone
from caml_core.data.dataset import GroupDataset
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict, predict_with_features
from caml_core.fit import Run, fit
from caml_core.loader import Augment
from caml_core.memory import in_pieces, on_device, piece_that_fits
from caml_core.meta import Batch, add_to_gradient, flatten, loss_at, meta_gradient
from caml_core.metrics import SELECTION_RULES, group_metrics

METHODS = ("append", "upweight", "mldg", "caml", "balanced", "jtt", "groupdro", "erm_all")
META = ("upweight", "mldg", "caml")
ORDERS = ("first", "exact")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
JTT_UPWEIGHT, JTT_SHARE = 10.0, 0.25  # errors are drawn so many times as often; first training: this share of epochs
DRO_STEP = 0.01  # of the group weights' multiplicative update


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of one run; the defaults are the published ones of CAML on images.

    Args:
        start, query, rounds: labels drawn at random first, labels of a round, number of rounds.
        epochs, batch_size, lr, weight_decay, clip: of each training (gradient norm clipped).
        optimizer: "adam", whose weight decay is part of the gradient, or "adamw" (the published choice for text).
        alpha, order, inner_steps: of the meta-gradient, see `caml_core.meta.meta_gradient`.
        select: rule for the epoch, on the validation split (`caml_core.metrics.select_epoch`).

    Raises:
        CamlError: a setting out of range.
    """

    method: str = "caml"
    acquisition: str = "least_confidence"
    start: int = 4500
    query: int = 100
    rounds: int = 5
    epochs: int = 100
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 1e-2
    optimizer: str = "adam"
    clip: float = 1.0
    alpha: float = 1e-4
    order: str = "first"
    inner_steps: int = 1
    select: str = "minority"

    def __post_init__(self) -> None:
        whole = {k: getattr(self, k) for k in ("start", "query", "epochs", "batch_size", "inner_steps")}
        wrong = [f"{key}={value}" for key, value in whole.items() if value < 1]
        wrong += [f"{k}={getattr(self, k)}" for k in ("lr", "clip") if not 0 < getattr(self, k) < math.inf]
        wrong += [f"{k}={getattr(self, k)}" for k in ("alpha", "weight_decay") if not 0 <= getattr(self, k) < math.inf]
        wrong += [f"rounds={self.rounds}"] if self.rounds < 0 else []
        choices = {
            "method": METHODS,
            "acquisition": ACQUISITIONS,
            "order": ORDERS,
            "optimizer": tuple(OPTIMIZERS),
            "select": SELECTION_RULES,
        }
        wrong += [f"{k}={getattr(self, k)!r}" for k, known in choices.items() if getattr(self, k) not in known]
        if wrong:
            raise CamlError(
                what=", ".join(wrong),
                expected="counts of at least 1 (rounds: 0), finite lr and clip above 0, alpha and weight_decay of at "
                f"least 0, and known names: {', '.join(METHODS)}; {', '.join(ACQUISITIONS)}; first, exact; adam, adamw",
                remedy="correct the setting",
            )


def run_active(
    make_network: Callable[[], Backbone],
    pool: GroupDataset,
    val: GroupDataset,
    test: GroupDataset,
    plan: Plan,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    augment: Augment | None = None,
    work: Path | None = None,
    queries: Sequence[Sequence[int]] | None = None,
    first_round: int = 0,
    progress: bool = True,
    on_round: Callable[[int, Backbone, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Draw `plan.start` labels at random, then query, label and retrain for `plan.rounds` rounds.

    Args:
        make_network: gives the network with its initial weights, the same at every call.
        pool: the training split; labels of rows that were not drawn are never looked at.
        work: folder for checkpoints; the same call goes on from there, to a bit-identical end.
        queries: rows of the pool bought in rounds 1..R by another run, bought again in place of the acquisition, so
            that methods can be compared on the same labels.
        first_round: earlier rounds are not trained; needs `queries` for them.
        on_round: called with (round, network, record) after each trained round.

    Returns:
        One record a trained round t = 0..R: `round`, `labels` (bought so far), `queried` (rows of the pool, empty
        for t = 0), `batch_minority` (minority share of `queried`, percent), `fit_queried` and `fit_start` (training
        accuracy on all queries and on the first labels, percent), `metrics` (test split), `selection` (the
        epoch, the rule that chose it, validation average and minority accuracy), `seconds`.

    Raises:
        CamlError: more labels than the pool has, a class missing from the first labels, `queries` that do not fit,
            a checkpoint of another run.
    """
    device = device or torch.device("cpu")
    trainings = trainings_of(
        make_network, pool, val, test, plan, seed=seed, device=device, augment=augment, work=work, queries=queries,
        first_round=first_round, on_round=on_round,
    )  # fmt: skip
    try:
        todo = next(trainings)
        while True:
            todo = trainings.send(
                train_round(
                    todo.network, todo.x, pool, todo.sets, val, plan, todo.seed, device, augment, todo.checkpoint,
                    todo.config, progress,
                )
            )  # fmt: skip
    except StopIteration as done:
        return done.value


class Training(NamedTuple):
    """One training that a round asks for, see `train_round`."""

    network: Backbone
    x: Tensor
    pool: GroupDataset
    sets: Sequence[Tensor]
    val: GroupDataset
    seed: int
    checkpoint: Path | None
    config: dict[str, Any]


def trainings_of(
    make_network: Callable[[], Backbone],
    pool: GroupDataset,
    val: GroupDataset,
    test: GroupDataset,
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    augment: Augment | None = None,
    work: Path | None = None,
    queries: Sequence[Sequence[int]] | None = None,
    first_round: int = 0,
    on_round: Callable[[int, Backbone, dict[str, Any]], None] | None = None,
) -> Generator[Training, Run, list[dict[str, Any]]]:
    """The rounds of `run_active` without their trainings: yields each, is sent what came of it, returns the records.

    So one run can train by itself, and many can train side by side (`caml_core.stacked`).
    """
    rounds = 0 if plan.method == "erm_all" else plan.rounds
    n_start = len(pool) if plan.method == "erm_all" else plan.start
    _check(pool, plan, rounds, n_start, queries, first_round)
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    sets = [torch.randperm(len(pool), generator=generator)[:n_start].sort().values]
    missing = set(range(len(pool.class_names))) - set(pool.y[sets[0]].tolist())
    if missing:
        raise CamlError(
            what="no first label of class " + ", ".join(pool.class_names[k] for k in sorted(missing)),
            expected=f"every class among the first {n_start} labels",
            remedy="draw more labels at the start (--start)",
        )
    config = {"plan": dataclasses.asdict(plan), "seed": seed, "pool": pool.content_hash(), "val": val.content_hash()}
    config |= {"augment": getattr(augment, "__name__", str(augment))}
    x = on_device(pool.x, device)
    records: list[dict[str, Any]] = []
    network = make_network()
    for t in range(rounds + 1):
        queried: list[int] = []
        if t > 0:
            if queries is not None:
                queried = [int(row) for row in queries[t - 1]]
            else:
                queried = _query(network, pool, torch.cat(sets), plan, device, stream_seed(seed, t))
            sets.append(torch.tensor(queried))
        if t < first_round:
            continue
        network = make_network().to(device)
        file = work / f"round-{t}.safetensors" if work else None  # finished rounds are replayed from here at once
        run = yield Training(network, x, pool, list(sets), val, stream_seed(seed, 1000 + t), file, config)
        record = {
            "round": t,
            "labels": sum(map(len, sets)),
            "queried": queried,
            "batch_minority": _share(pool.is_minority[sets[t]]) if t else None,
            "fit_start": _fitted(network, pool, sets[0], device),
            "fit_queried": _fitted(network, pool, torch.cat(sets[1:]), device) if t else None,
            "metrics": group_metrics(predict(network, test, device), test, pool.group_counts),
            "selection": {
                "split": "validation",
                "rule": run.rule,
                "epoch": run.best_epoch,
                **{k: run.history[run.best_epoch - 1]["val"][k]["value"] for k in ("average", "minority")},
            },
            "seconds": round(run.seconds, 2),
        }
        records.append(record)
        if on_round is not None:
            on_round(t, network, record)
    return records


def train_round(
    network: Backbone,
    x: Tensor,
    pool: GroupDataset,
    sets: Sequence[Tensor],
    val: GroupDataset,
    plan: Plan,
    seed: int,
    device: torch.device,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    config: dict[str, Any] | None = None,
    progress: bool = False,
    on_epoch: Callable[[int, Any], None] | None = None,
) -> Run:
    """Train on the first labels and the queries so far, in place, and keep the best validation epoch.

    Args:
        network: on `device`, with its initial weights.
        x: the pool's inputs, on `device`, or on the CPU where they do not fit there.
        sets: rows of the pool, int64: the first labels D_0, then the batches Q_1..Q_t.
        seed: of this round.
    """
    if any(len(rows) == 0 for rows in sets):
        raise CamlError(
            what=f"an empty set of labels in round {[len(rows) for rows in sets].index(0)}",
            expected="at least one label in each round",
            remedy="leave out the rounds that bought nothing",
        )
    labelled = torch.cat(list(sets))
    odds = odds_of_labelled(pool, labelled, plan)
    if plan.method == "jtt":
        odds = odds * _errors(network, x, pool, sets, val, plan, seed, device, augment, checkpoint, config)
    dro = torch.full((pool.n_groups,), 1 / pool.n_groups, device=device)
    opt = OPTIMIZERS[plan.optimizer](network.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    piece = _piece(network, x, pool.y, labelled, len(sets) - 1, plan, device)
    loss = loss_at(network, device, piece)

    def run_epoch(epoch: int) -> dict[str, Any]:
        summed, steps = torch.zeros((), dtype=torch.float64, device=device), 0
        with seeded(seed, epoch):
            for step in draws(x, pool, sets, odds, plan, stream_seed(seed, epoch), device, augment):
                (images, labels), tasks = step.final, step.tasks
                with autocast(device):
                    losses = F.cross_entropy(in_pieces(network, images, piece).float(), labels, reduction="none")
                value = losses.mean()
                if plan.method == "groupdro":
                    value = _dro(losses, pool.group[step.rows].to(device), dro)
                opt.zero_grad(set_to_none=True)
                value.backward()
                if tasks:
                    add_to_gradient(network, meta_gradient(loss, flatten(network), tasks, **meta_settings(plan)))
                torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
                opt.step()
                summed, steps = summed + losses.detach().mean(), steps + 1
        return {"loss": float(summed) / steps}

    return fit(
        network,
        opt,
        run_epoch,
        val,
        epochs=plan.epochs,
        config={
            **(config or {}),
            "sets": [rows.tolist() for rows in sets],
            "round_seed": seed,
            "epochs": plan.epochs,
            **({"piece": piece} if piece < plan.batch_size else {}),  # BatchNorm sees the pieces
        },
        select=plan.select,
        device=device,
        train_counts=pool.group_counts,
        extra={"dro": dro},
        checkpoint=checkpoint,
        progress=progress,
        on_epoch=on_epoch,
    )


class Step(NamedTuple):
    """What one training step sees."""

    rows: Tensor  # int64 (batch,), of the pool
    final: Batch  # from D_R
    tasks: list[tuple[Batch, Batch]]  # for each round a batch of D_{t-1} and one of Q_t; none for plain methods


def draws(
    x: Tensor,
    pool: GroupDataset,
    sets: Sequence[Tensor],
    odds: Tensor,
    plan: Plan,
    seed: int,
    device: torch.device,
    augment: Augment | None,
) -> Iterator[Step]:
    """The steps of an epoch: as many batches as the labels make, drawn with these odds; a task's are class-balanced."""
    generator = torch.Generator().manual_seed(seed)
    labelled = torch.cat(list(sets))
    steps = math.ceil(len(labelled) / plan.batch_size)

    def draw(rows: Tensor, odds: Tensor) -> Tensor:
        n = steps * plan.batch_size
        return rows[torch.multinomial(odds, n, True, generator=generator)].view(steps, plan.batch_size)

    def batch(rows: Tensor) -> Batch:
        images = x[rows.to(x.device)]
        return (images if augment is None else augment(images, generator)).to(device), pool.y[rows].to(device)

    final = draw(labelled, odds)
    use = range(1, len(sets)) if plan.method in META else ()
    tasks = [(torch.cat(list(sets[:t])), sets[t]) for t in use]  # (D_{t-1}, Q_t)
    drawn = [tuple(draw(rows, odds_of(pool.y[rows])) for rows in task) for task in tasks]
    for step in range(steps):
        first = batch(final[step])
        yield Step(final[step], first, [(batch(before[step]), batch(asked[step])) for before, asked in drawn])


def meta_settings(plan: Plan) -> dict[str, Any]:
    """How the method calls `caml_core.meta.meta_gradient`."""
    return {
        "alpha": 0.0 if plan.method == "upweight" else plan.alpha,
        "cumulative": plan.method == "caml",
        "order": plan.order,
        "inner_steps": plan.inner_steps,
    }


def _piece(
    network: Backbone, x: Tensor, y: Tensor, labelled: Tensor, n_tasks: int, plan: Plan, device: torch.device
) -> int:
    """How many examples of a batch the device takes at once (`caml_core.memory`)."""
    rows = labelled[torch.arange(4) % len(labelled)]
    few, labels = x[rows.to(x.device)].to(device), y[rows].to(device)
    loss, theta = loss_at(network.train(), device), flatten(network).requires_grad_()
    exact = plan.method in ("mldg", "caml") and plan.order == "exact" and plan.alpha * n_tasks > 0  # keeps all graphs

    def forward(n: int) -> Tensor:
        batch = few[:n], labels[:n]
        if not exact:
            return loss(theta, batch)
        return meta_gradient(
            loss, theta, [(batch, batch)] * n_tasks, alpha=plan.alpha, order="exact", inner_steps=plan.inner_steps
        )

    # Gradient, two moments of Adam and the best weights; the meta-gradient's theta, theta', c, u and g.
    state = (9 if plan.method in META else 4) * theta.nbytes
    return piece_that_fits(forward, plan.batch_size, device, state, smallest=plan.batch_size if exact else 2)


def odds_of(label: Tensor) -> Tensor:
    """Chance of each row so that the labels present are equally likely: float64 (N,)."""
    return 1 / torch.bincount(label)[label].double()


def odds_of_labelled(pool: GroupDataset, labelled: Tensor, plan: Plan) -> Tensor:
    """Chance of each labelled row in the final batches: balanced over classes, or for the oracle over groups."""
    return odds_of(pool.group[labelled] if plan.method == "balanced" else pool.y[labelled])


def _dro(losses: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """GroupDRO: sum_g q_g L_g over the groups of the batch, after q_g <- q_g exp(step L_g), normalised; q in place."""
    present, inverse = group.unique(return_inverse=True)
    zeros = torch.zeros(len(present), device=losses.device)
    mean = zeros.index_add(0, inverse, losses) / zeros.index_add(0, inverse, torch.ones_like(losses))
    weights[present] *= (DRO_STEP * mean.detach()).exp()
    weights /= weights.sum()
    return (weights[present] * mean).sum()


def _errors(network: Backbone, x: Tensor, pool: GroupDataset, sets: Sequence[Tensor], val: GroupDataset, plan: Plan,
            seed: int, device: torch.device, augment: Augment | None, checkpoint: Path | None,
            config: dict[str, Any] | None) -> Tensor:  # fmt: skip
    """JTT's first training, on a copy of the network: odds of each label, higher where it errs: float64 (N,)."""
    first = copy.deepcopy(network)
    short = dataclasses.replace(plan, method="append", epochs=max(1, round(JTT_SHARE * plan.epochs)), select="last")
    file = checkpoint.with_suffix(".first.safetensors") if checkpoint else None
    train_round(first, x, pool, sets, val, short, stream_seed(seed, 1 << 20), device, augment, file, config)
    labelled = torch.cat(list(sets))
    wrong = predict(first, pool, device, rows=labelled).argmax(1) != pool.y[labelled]
    return 1 + (JTT_UPWEIGHT - 1) * wrong.double()


def _query(
    network: Backbone, pool: GroupDataset, labelled: Tensor, plan: Plan, device: torch.device, seed: int
) -> list[int]:
    """Rows of the pool to label next."""
    free = torch.ones(len(pool), dtype=torch.bool)
    free[labelled] = False
    rows = free.nonzero().flatten()
    logits, z = predict_with_features(network, pool, device, rows=rows)
    _, z_labelled = predict_with_features(network, pool, device, rows=labelled)
    scores = Pool(logits, z, z_labelled, copy.deepcopy(network.head).cpu().float())
    chosen = acquire(plan.acquisition, scores, plan.query, torch.Generator().manual_seed(seed))
    return rows[chosen].tolist()


def _check(
    pool: GroupDataset, plan: Plan, rounds: int, n_start: int, queries: Sequence[Sequence[int]] | None, first_round: int
) -> None:
    if n_start + rounds * plan.query > len(pool):
        raise CamlError(
            what=f"{n_start} + {rounds} x {plan.query} labels from a pool of {len(pool)}",
            expected="no more labels than the pool has",
            remedy="lower --start, --query or --rounds, or load a larger pool",
        )
    if queries is None:
        wrong = f"first_round={first_round} without queries" if first_round else ""
    else:
        flat = [int(row) for batch in queries for row in batch]
        wrong = f"{len(queries)} batches for {rounds} rounds" if len(queries) < rounds else ""
        wrong = "an empty round" if not all(len(batch) for batch in queries) else wrong
        if len(set(flat)) < len(flat) or any(not 0 <= row < len(pool) for row in flat):
            wrong = "rows that repeat or lie outside the pool"
    if wrong:
        raise CamlError(
            what=f"queries that cannot be repeated: {wrong}",
            expected="for each round a list of rows of the pool, none twice",
            remedy="take them from the records of a run with the same dataset, seed and number of rounds",
        )


def _fitted(network: Backbone, pool: GroupDataset, rows: Tensor, device: torch.device) -> float:
    """Training accuracy on these rows, percent."""
    return _share(predict(network, pool, device, rows=rows).argmax(1) == pool.y[rows])


def _share(flags: Tensor) -> float:
    return 100 * float(flags.double().mean())
