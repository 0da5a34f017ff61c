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
from caml_core.groups import GroupDataset
from caml_core.loader import Augment
from caml_core.metrics import check_selection, group_metrics
from caml_core.networks import Backbone
from caml_core.round import Plan, train_round
from caml_core.training import Run


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
    everything = plan.method == "erm_all"
    rounds, n_start = (0, len(pool)) if everything else (plan.rounds, plan.start)
    _check(pool, plan, rounds, n_start, queries, first_round)
    check_selection(val, plan.select)
    check_selection(test, "average", "test")
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    sets = [torch.randperm(len(pool), generator=generator)[:n_start].sort().values]
    _check_classes(pool, sets[0])
    records: list[dict[str, Any]] = []
    network = make_network()
    trail = torch.zeros(CHECKPOINTS, len(pool), len(pool.class_names)) if plan.acquisition == "dial" else None
    for t in range(rounds + 1):
        queried: list[int] = []
        if t > 0 and queries is not None:
            queried = [int(row) for row in queries[t - 1]]
        elif t > 0:
            queried = _query(network, pool, torch.cat(sets), plan, device, stream_seed(seed, t), trail)
        sets += [torch.tensor(queried)] if t > 0 else []
        if t < first_round:
            continue
        network = make_network().to(device)
        run = train_round(
            network, pool, sets, val, plan, seed=stream_seed(seed, 1000 + t), device=device, augment=augment,
            checkpoint=work / f"round-{t}.safetensors" if work else None,  # finished rounds are replayed at once
            trail=trail, progress=progress,
        )  # fmt: skip
        records.append(_record(t, network, sets, pool, test, run, device))
        if on_round is not None:
            on_round(t, network, records[-1])
    return records


def _query(
    network: Backbone,
    pool: GroupDataset,
    labelled: Tensor,
    plan: Plan,
    device: torch.device,
    seed: int,
    trail: Tensor | None,
) -> list[int]:
    """Rows of the pool to label next."""
    free = torch.ones(len(pool), dtype=torch.bool)
    free[labelled] = False
    rows = free.nonzero().flatten()
    logits, z = predict_with_features(network, pool, device, rows=rows)
    _, z_labelled = predict_with_features(network, pool, device, rows=labelled)
    scores = Pool(
        logits, z, z_labelled, copy.deepcopy(network.head).cpu().float(), None if trail is None else trail[:, rows]
    )
    chosen = acquire(plan.acquisition, scores, plan.query, torch.Generator().manual_seed(seed))
    return rows[chosen].tolist()


def _record(
    t: int, network: Backbone, sets: Sequence[Tensor], pool: GroupDataset, test: GroupDataset, run: Run,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """What is kept of round t."""

    def fitted(rows: Tensor) -> float:
        return _share(predict(network, pool, device, rows=rows).argmax(1) == pool.y[rows])

    chosen = run.history[run.best_epoch - 1]["val"]
    return {
        "round": t,
        "labels": sum(map(len, sets)),
        "queried": sets[t].tolist() if t else [],
        "batch_minority": _share(pool.is_minority[sets[t]]) if t else None,
        "fit_start": fitted(sets[0]),
        "fit_queried": fitted(torch.cat(list(sets[1:]))) if t else None,
        "metrics": group_metrics(predict(network, test, device), test, pool.group_counts),
        "selection": {
            "split": "validation",
            "rule": run.rule,
            "epoch": run.best_epoch,
            **{name: chosen[name]["value"] for name in ("average", "minority")},
        },
        "seconds": round(run.seconds, 2),
    }


def _share(flags: Tensor) -> float:
    return 100 * float(flags.double().mean())


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


def _check_classes(pool: GroupDataset, start: Tensor) -> None:
    if missing := sorted(set(range(len(pool.class_names))) - set(pool.y[start].tolist())):
        raise CamlError(
            what="no first label of class " + ", ".join(pool.class_names[k] for k in missing),
            expected=f"every class among the first {len(start)} labels",
            remedy="draw more labels at the start (--start)",
        )
