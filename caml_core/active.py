"""Active learning in rounds: query, label, retrain from the initial weights (`caml_core.round`), and score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caml_core.acquisition import CHECKPOINTS, Pool, acquire
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict, predict_with_features
from caml_core.groups import GroupDataset, check_classes, same_names
from caml_core.loader import Augment
from caml_core.metrics import check_selection, group_metrics
from caml_core.networks import Backbone
from caml_core.round import Plan, train_round


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
        CamlError: more labels than the pool has, a class missing from the first labels, `queries` that do not fit, an
            empty split or one that cannot choose by `plan.select`, a checkpoint of another run.
    """
    device = device or torch.device("cpu")
    rounds, n_start = (0, len(pool)) if plan.method == "erm_all" else (plan.rounds, plan.start)
    if n_start + rounds * plan.query > len(pool):
        what = f"{n_start} + {rounds} x {plan.query} labels from a pool of {len(pool)}"
        remedy = "lower --start, --query or --rounds, or load a larger pool"
        raise CamlError(what, "no more labels than the pool has", remedy)
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    sets = [torch.randperm(len(pool), generator=generator)[:n_start].sort().values]
    bought = [torch.as_tensor(rows).long() for rows in queries or ()]
    if queries is not None or first_round:
        flat = torch.cat([torch.arange(0), *bought]).tolist()
        fits = len(bought) >= rounds and len(set(flat)) == len(flat) and set(flat) <= set(range(len(pool)))
        if not fits or not all(map(len, bought)):
            what = f"{[len(rows) for rows in bought]} queries that cannot be bought again in {rounds} rounds"
            remedy = "take them from the records of a run with the same dataset, seed and number of rounds"
            raise CamlError(what, "for each round a list of rows of the pool, none twice", remedy)
    check_selection(val, plan.select)
    check_selection(test, "average", "test")
    same_names(pool, test)
    check_classes(pool, pool.y[sets[0]], "draw more labels at the start (--start)")
    records: list[dict[str, Any]] = []
    network = make_network()
    trail = torch.zeros(CHECKPOINTS, len(pool), len(pool.class_names)) if plan.acquisition == "dial" else None
    for t in range(rounds + 1):
        if t > 0:
            own = (network, pool, torch.cat(sets), plan, device, stream_seed(seed, t), trail)
            sets.append(bought[t - 1] if bought else _query(*own))
        if t < first_round:
            continue
        network = make_network().to(device)
        run = train_round(
            network, pool, sets, val, plan, seed=stream_seed(seed, 1000 + t), device=device, augment=augment,
            checkpoint=work / f"round-{t}.safetensors" if work else None,  # finished rounds are replayed at once
            trail=trail, progress=progress,
        )  # fmt: skip
        right = predict(network, pool, device, rows=torch.cat(sets)).argmax(1) == pool.y[torch.cat(sets)]
        chosen = run.history[run.best_epoch - 1]["val"]
        selection: dict[str, Any] = {"split": "validation", "rule": run.rule, "epoch": run.best_epoch}
        record = {
            "round": t,
            "labels": len(right),
            "queried": sets[t].tolist() if t else [],
            "batch_minority": _percent(pool.is_minority[sets[t]]) if t else None,
            "fit_start": _percent(right[:n_start]),
            "fit_queried": _percent(right[n_start:]) if t else None,
            "metrics": group_metrics(predict(network, test, device), test, pool.group_counts),
            "selection": selection | {name: chosen[name]["value"] for name in ("average", "minority")},
            "seconds": round(run.seconds, 2),
        }
        records.append(record)
        if on_round is not None:
            on_round(t, network, record)
    return records


def _query(
    network: Backbone, pool: GroupDataset, labelled: Tensor, plan: Plan, device: torch.device, seed: int,
    trail: Tensor | None,
) -> Tensor:  # fmt: skip
    """Rows of the pool to label next."""
    free = torch.ones(len(pool), dtype=torch.bool)
    free[labelled] = False
    rows = free.nonzero().flatten()
    logits, z = predict_with_features(network, pool, device, rows=rows)
    _, z_labelled = predict_with_features(network, pool, device, rows=labelled)
    tried = None if trail is None else trail[:, rows]
    scores = Pool(logits, z, z_labelled, copy.deepcopy(network.head).cpu().float(), tried)
    return rows[acquire(plan.acquisition, scores, plan.query, torch.Generator().manual_seed(seed))]


def _percent(flags: Tensor) -> float:
    return 100 * float(flags.double().mean())
