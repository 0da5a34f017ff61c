"""The long tables of the book: lists of `python -m caml_core run` commands, run once, merged into results/NAME.json.

python benchmarks/tables.py digits|regimes|dominoes10 [--device cuda] [--merge-only]

Every run is kept in _build/tables/NAME until all are done, so the command goes on where it was stopped; `--merge-only`
writes what there is. A table says by its missing runs what was not run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caml_core.__main__ import main as caml_core
from caml_core.records import read_records, write_records

ROOT = Path(__file__).parent.parent
DIGITS = ["--dataset", "spuco_mnist", "--option", "classes=10", "--backbone", "small_cnn"]
Job = tuple[str, list[str], str | None]  # name, arguments, name of the run whose labels it buys


def digits() -> Iterator[Job]:
    """Ten MNIST digits on ten colours, the quick profile: every method on the labels that append bought."""
    methods = {
        "upweight": [],
        "mldg": [],
        "caml": [],
        "balanced": [],
        "jtt": [],
        "groupdro": [],
        "append, 11 x epochs": ["--epochs", "275"],  # 2R + 1 gradients a step, as CAML
        "upweight, 2 x epochs": ["--epochs", "46"],  # 11 / 6 of 25
        "caml exact": ["--order", "exact"],
    }
    for seed in range(5):
        common = [*DIGITS, "--seed", str(seed), "--rho", "0.95"]
        bought = f"append-{seed}"
        yield bought, ["append", *common], None
        for name, more in methods.items():
            yield f"{name}-{seed}", [name.split()[0].strip(","), *common, *more], bought
        yield f"caml, own queries-{seed}", ["caml", *common], None
        yield f"erm_all-{seed}", ["erm_all", *common, "--epochs", "8"], None


def regimes() -> Iterator[Job]:
    """Where the gain lives: one setting or two moved at a time around the quick profile. Seeds not used elsewhere."""
    base = {"rho": 0.95, "start": 600, "acquisition": "least_confidence", "weight-decay": 1e-4}
    cells: list[dict[str, Any]] = [{**base, "alpha": a} for a in (0.01, 0.1, 1.0)]
    for rho, start in itertools.product((0.9, 0.95, 0.98), (300, 600, 1500)):
        cells.append({**base, "rho": rho, "start": start, "alpha": 0.1})
    for acquisition, alpha in itertools.product(("random", "badge", "core_set"), (0.01, 0.1, 1.0)):
        cells.append({**base, "acquisition": acquisition, "alpha": alpha})
    for decay in (1e-3, 1e-2):
        cells.append({**base, "weight-decay": decay, "alpha": 0.1})
    seen = set()
    for seed, cell in itertools.product((10, 11), cells):
        for method in ("append", "upweight", "caml"):
            used = {k: v for k, v in cell.items() if k != "alpha" or method == "caml"}
            name = "-".join([method, *(f"{k}{v}" for k, v in used.items()), str(seed)])
            bought = "-".join(["append", *(f"{k}{v}" for k, v in used.items() if k != "alpha"), str(seed)])
            if name not in seen:
                seen.add(name)
                options = [part for key, value in used.items() for part in (f"--{key}", str(value))]
                yield name, [method, *DIGITS, "--seed", str(seed), *options], bought if method != "append" else None


def dominoes10() -> Iterator[Job]:
    """The published setting, for a GPU: ten-class Dominoes, ResNet-18 from scratch, 4,500 + 5 x 100, 64 x 32 pixels."""
    for seed, acquisition in itertools.product(range(3), ("random", "least_confidence", "badge", "core_set")):
        common = ["--dataset", "dominoes", "--option", "protocol=caml", "--backbone", "resnet18", "--from-scratch"]
        common += ["--profile", "full", "--augment", "none", "--acquisition", acquisition, "--seed", str(seed)]
        bought = f"append-{acquisition}-{seed}"
        yield bought, ["append", *common], None
        for method in ("upweight", "mldg", "caml"):
            yield f"{method}-{acquisition}-{seed}", [method, *common], bought


TABLES = {"digits": digits, "regimes": regimes, "dominoes10": dominoes10}


def compact(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What tables and figures need: no hundred groups, and bought rows only with the run that chose them."""
    metrics = {k: v for k, v in record["metrics"].items() if k not in ("groups", "empty_groups")}
    keep = ["round", "labels", "batch_minority", "fit_start", "fit_queried"]
    if "queries_from" in record["config"]:
        record["config"]["queries_from"] = Path(record["config"]["queries_from"]).stem
    elif not name.startswith("append-rho"):  # the regime map is large
        keep.append("queried")
    rounds = [
        {k: v for k, v in r.items() if k in keep}
        | {"minority": r["metrics"]["minority"]["value"], "average": r["metrics"]["average"]["value"]}
        for r in record["rounds"]
    ]
    return {"run": name.rsplit("-", 1)[0], **record, "metrics": metrics, "rounds": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--merge-only", action="store_true")
    arguments = parser.parse_args()
    work = ROOT / "_build" / "tables" / arguments.table
    jobs = list(TABLES[arguments.table]())
    records = []
    for i, (name, command, bought) in enumerate(jobs):
        out = work / f"{name}.json"
        if not out.exists() and not arguments.merge_only:
            print(f"[{i + 1}/{len(jobs)}] {name}", flush=True)
            labels = ["--queries-from", str(work / f"{bought}.json")] if bought else []
            sys.argv = ["caml_core", "run", *command, *labels, "--device", arguments.device, "--out", str(out)]
            if code := caml_core(sys.argv[1:]):
                return code
        if out.exists():
            record = compact(name, read_records(out)[0])
            record["provenance"]["command"] = record["provenance"]["command"].replace(f"{work}/", "")
            records.append(record)
    write_records(ROOT / "results" / f"{arguments.table}.json", records)
    size = len(json.dumps(records)) // 1000
    print(f"results/{arguments.table}.json: {len(records)} of {len(jobs)} runs, {size} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
