"""Active HSFM against its controls at equal label budgets, on frozen features: results/active_hsfm.json (chapter 16).

python results/studies/active_hsfm.py

A budget of B labels is B/2 drawn at random, D_0, and five batches of B/10, Q_1..Q_5, queried by a plain linear head.
All methods get these labels and no other: no validation split chooses an epoch, the last one counts. Settings are
chosen beforehand on the validation split of another draw of the dataset, among as many for every method, by worst-group
accuracy (the records named "tuning"). Finished records stay in the file and the command goes on where it was stopped;
records of another commit are made again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.active import run_active
from caml_core.active_hsfm import active_hsfm, round_tasks
from caml_core.data import load
from caml_core.device import pick_device, seeded, stream_seed
from caml_core.features import extract_features, standardise
from caml_core.groups import GroupDataset
from caml_core.heads import dfr
from caml_core.hsfm_settings import PUBLISHED, scaled
from caml_core.last_layer import Head, balanced_rows, descend
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.round import Acquisition, Plan
from caml_core.runs.records import git_commit, provenance, read_records, write_records
from caml_core.runs.run import keep_labels

FILE = Path(__file__).parent.parent / "active_hsfm.json"
DATASETS: dict[str, dict[str, Any]] = {
    "dominoes": {"rho": 0.9},
    "birdscapes": {"rho": 0.95, "size": 64, "n_train": 3000, "n_val": 800, "n_test": 1200},
}
BUDGETS, ROUNDS, SEEDS = (100, 200, 400, 800, 1600), 5, range(5)
TUNE_SEED, TUNE_RUNS = 100, ((200, 100), (800, 101))  # one draw of the data; (budget, draw of the first labels)
TUNE_SIZES = {"dominoes": {"n_train": 4000, "n_val": 1000, "n_test": 100}, "birdscapes": {"n_test": 100}}
ASK = Plan(method="append", epochs=20, lr=1e-3, batch_size=128, rounds=ROUNDS, select="last")  # trains theta_0, asks


def grid(**values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(values, each)) for each in itertools.product(*values.values())]


HSFM_GRID = grid(eta=(0.1, 1.0), epochs=(5, 10, 20))
PLAIN_GRID = grid(lr=(3e-4, 1e-3, 3e-3), epochs=(10, 20))
FINETUNE_GRID = grid(step=(0.2, 1.0), epochs=(2, 5, 20))
GRIDS: dict[str, list[dict[str, Any]]] = {
    "append": PLAIN_GRID,
    "upweight": PLAIN_GRID,
    "caml": grid(alpha=(0.01, 0.1, 1.0), epochs=(10, 20)),
    "finetune": FINETUNE_GRID,
    "finetune, same groups": FINETUNE_GRID,
    "dfr": grid(c=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "dfr, groups": grid(c=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "hsfm": HSFM_GRID,
    "hsfm, rounds": HSFM_GRID,
    "hsfm, rounds, no bias": HSFM_GRID,
    "hsfm, same groups": HSFM_GRID,
    "hsfm, groups": HSFM_GRID,
    "finetune, hardest": grid(part=(1 / 2, 1 / 4, 1 / 8), epochs=(5, 20), step=(1.0,)),
    "hsfm, hardest": grid(part=(1 / 2, 1 / 4, 1 / 8), epochs=(5, 20)),
}
FAIR = {"finetune, fair": FINETUNE_GRID, "hsfm, fair": HSFM_GRID}  # B/2 labels of the fair validation split
METHODS = {  # by acquisition; of two classes, margin and entropy ask as least confidence does
    "least_confidence": GRIDS,
    "random": {name: GRIDS[name] for name in ("append", "hsfm")} | FAIR,
    "badge": {name: GRIDS[name] for name in ("append", "dfr, groups", "hsfm", "hsfm, rounds", "finetune, same groups")},
}


@functools.cache
def features(dataset: str, seed: int) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """Pool, validation and test split as ImageNet features, float32 (N, 1280), standardised on the pool: no labels."""
    sizes = TUNE_SIZES[dataset] if seed == TUNE_SEED else {}
    network = backbone("efficientnet_lite0", n_classes=2)
    device = pick_device("cpu")
    splits = load(dataset, seed=seed, **{**DATASETS[dataset], **sizes})
    pool, val, test = (extract_features(network, split, device, batch_size=16) for split in splits)
    pool, val, test = standardise(pool, val, test)
    return pool, val, test


class Bought(NamedTuple):
    """The labels of one run of active learning, and the head that asked first."""

    pool: GroupDataset
    sets: list[Tensor]  # D_0, Q_1..Q_R
    first: Head  # theta_0, trained on D_0
    fair: GroupDataset  # as many labels of the validation split as there are queries
    seed: int


def buy(dataset: str, seed: int, budget: int, acquisition: Acquisition, draw: int) -> tuple[Bought, list[float]]:
    """Query in rounds by a plain head; also the minority share of each batch, percent."""
    pool, val, _ = features(dataset, seed)
    plan = dataclasses.replace(ASK, acquisition=acquisition, start=budget // 2, query=budget // 2 // ROUNDS)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(stream_seed(draw, 0)))
    start = order[: plan.start].sort().values  # as run_active draws them
    heads, rounds = active(pool, start, plan, draw)
    queries = [torch.tensor(record["queried"]) for record in rounds[1:]]
    fair = keep_labels(val, budget // 2, draw)
    return Bought(pool, [start, *queries], heads[0], fair, draw), [record["batch_minority"] for record in rounds[1:]]


def active(
    pool: GroupDataset, start: Tensor, plan: Plan, seed: int, **more: Any
) -> tuple[list[Head], list[dict[str, Any]]]:
    """Heads and records of the trained rounds. D_0 stands in for validation and test split, which nothing looks at."""
    heads: list[Head] = []
    known = pool.subset(start)

    def keep(t: int, network: Backbone, record: dict[str, Any]) -> None:
        heads.append(Head(network.head.weight.detach().clone(), network.head.bias.detach().clone(), {}))

    def network() -> Backbone:
        """A linear head, as the network that `caml_core.active` trains."""
        with seeded(seed):
            return Backbone(nn.Identity(), pool.x.shape[1], len(pool.class_names))

    records = run_active(network, pool, known, known, plan, seed=seed, progress=False, on_round=keep, **more)
    return heads, records


def train(method: str, bought: Bought, how: dict[str, Any]) -> Head | None:
    """The head that a method makes of these labels, or of the fair ones; None where a group lacks the labels for it."""
    pool, sets, seed = bought.pool, bought.sets, bought.seed
    if method in ("append", "upweight", "caml"):
        plan = dataclasses.replace(ASK, method=method, start=len(sets[0]), query=len(sets[1]), **how)  # type: ignore[arg-type]
        queries = [rows.tolist() for rows in sets[1:]]
        return active(pool, sets[0], plan, seed, queries=queries, first_round=ROUNDS)[0][0]
    if method.endswith("same groups"):
        sets = [sets[0], same_groups(pool, sets, seed)]
    if method.endswith("hardest"):
        how = dict(how)
        sets = [sets[0], hardest(pool, torch.cat(sets[1:]), bought.first, how.pop("part"))]
    asked = pool.subset(torch.cat(sets[1:]))
    if method == "hsfm, groups":
        if int(asked.group_counts.min()) < 2:
            return None
        rows = balanced_rows(asked.group, torch.Generator().manual_seed(stream_seed(seed, 100)))
        sets = [sets[0], torch.cat(sets[1:])[rows]]
    if method.endswith("fair"):
        asked, known = bought.fair, pool.subset(sets[0])
        pool, sets = joined(known, asked), list(torch.arange(len(known) + len(asked)).split([len(known), len(asked)]))
    if method.startswith("finetune"):
        weights = (1 / torch.bincount(asked.y)[asked.y]).double()
        weights /= weights.sum()
        return descend(asked, asked, lambda losses: weights, start=bought.first, select="last", **how)
    if method == "dfr":  # balanced over the classes, the only groups it knows
        asked = GroupDataset(
            asked.x, asked.y, torch.zeros_like(asked.y), class_names=asked.class_names, attribute_names=["any"],
            majority=torch.ones(len(asked.class_names), 1, dtype=torch.bool),
        )  # fmt: skip
    if method.startswith("dfr"):
        few = int(asked.group_counts.min()) < 2
        return None if few else dfr(asked, asked, seed=seed, c_grid=[how["c"]], subsets=5)
    settings = scaled(dataclasses.replace(PUBLISHED["dominoes"], **how), pool.x)
    tasks = round_tasks(pool, sets, settings.support, seed=seed, one_hard_set="rounds" not in method)
    edited = active_hsfm(
        tasks, bought.first.weight, bought.first.bias, settings, cumulative=not method.endswith("no bias")
    )
    return Head(edited.weight[0], edited.bias[0], {})


def hardest(pool: GroupDataset, rows: Tensor, head: Head, part: float) -> Tensor:
    """Of these rows, the part with the highest loss under the head."""
    loss = F.cross_entropy(head.logits(pool.x[rows]), pool.y[rows], reduction="none")
    return rows[loss.topk(int(part * len(rows))).indices.sort().values]


def same_groups(pool: GroupDataset, sets: list[Tensor], seed: int) -> Tensor:
    """Rows outside D_0, drawn at random within the groups, as many of each group as were queried: an oracle."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(stream_seed(seed, 100)))
    order = order[~torch.isin(order, sets[0])]
    wanted = torch.bincount(pool.group[torch.cat(sets[1:])], minlength=pool.n_groups)
    return torch.cat([order[pool.group[order] == g][:n] for g, n in enumerate(wanted.tolist())])


def joined(*parts: GroupDataset) -> GroupDataset:
    x, y, a = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "a"))
    return GroupDataset(x, y, a, class_names=parts[0].class_names, attribute_names=parts[0].attribute_names)


def score(head: Head | None, split: GroupDataset) -> dict[str, float | None]:
    """Accuracies, percent."""
    names = ("worst_group", "average", "majority", "minority")
    found = group_metrics(head.logits(split.x), split) if head else {}
    return {name: round(found[name]["value"], 3) if head else None for name in names}


def tune(dataset: str, acquisition: Acquisition) -> dict[str, Any]:
    """Validation scores of every setting on the draw that is used for nothing else; the best by mean WGA."""
    tried: dict[str, list[dict[str, Any]]] = {}
    chosen = {}
    _, val, _ = features(dataset, TUNE_SEED)
    runs = [buy(dataset, TUNE_SEED, budget, acquisition, draw)[0] for budget, draw in TUNE_RUNS]
    for method, settings in METHODS[acquisition].items():
        tried[method] = []
        for how in settings:
            scores = []
            for bought in runs:
                unseen = ~torch.isin(val.index, bought.fair.index) if "fair" in method else val.y >= 0
                rest = val.subset(unseen.nonzero().flatten())
                scores.append(score(train(method, bought, how), rest)["worst_group"] or 0.0)
            tried[method].append({**how, "worst_group": round(sum(scores) / len(scores), 2)})
        best = max(range(len(settings)), key=lambda i: tried[method][i]["worst_group"])
        chosen[method] = settings[best]
    return {"metrics": tried, "config": {"chosen": chosen, "budgets": [budget for budget, _ in TUNE_RUNS]}}


def evaluate(dataset: str, acquisition: Acquisition, seed: int, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Test scores of every method at every budget: `metrics[method][name]` is a list, one value a budget."""
    pool, _, test = features(dataset, seed)
    scores: dict[str, list[dict[str, float | None]]] = {method: [] for method in chosen}
    shares = []
    for budget in BUDGETS:
        bought, minority = buy(dataset, seed, budget, acquisition, seed)
        shares.append(round(sum(minority) / len(minority), 2))
        for method, how in chosen.items():
            scores[method].append(score(train(method, bought, how), test))
    if acquisition == "random":
        plan = dataclasses.replace(ASK, method="erm_all", **chosen["append"])
        scores["erm_all"] = [score(active(pool, torch.arange(len(pool)), plan, seed)[0][0], test)]
    metrics = {m: {name: [s[name] for s in found] for name in found[0]} for m, found in scores.items()}
    return {"metrics": metrics, "batch_minority": shares, "config": {"chosen": chosen, "budgets": BUDGETS}}


def main() -> int:
    records = [r for r in read_records(FILE) if r["provenance"]["commit"] == git_commit()] if FILE.exists() else []

    def run(method: str, dataset: str, acquisition: Acquisition, seed: int, make: Any) -> dict[str, Any]:
        key = {"method": method, "dataset": dataset, "acquisition": acquisition, "seed": seed}
        done = [record for record in records if all(record[k] == v for k, v in key.items())]
        if done:
            return done[0]
        print(*key.values(), end=" ", flush=True)
        start = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - start
        print(f"{seconds:.0f} s", flush=True)
        provenance_ = provenance(torch.device("cpu"), seconds, "python results/studies/active_hsfm.py")
        records.append({**key, **made, "provenance": provenance_})
        write_records(FILE, records)
        return records[-1]

    for seed, acquisition, dataset in itertools.product(SEEDS, METHODS, DATASETS):
        best = run("tuning", dataset, acquisition, TUNE_SEED, functools.partial(tune, dataset, acquisition))
        make = functools.partial(evaluate, dataset, acquisition, seed, best["config"]["chosen"])
        run("all", dataset, acquisition, seed, make)
    print(f"{FILE.name}: {len(records)} records, {FILE.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
