"""The long tables of the book: lists of `python -m caml_core run` commands, run once, merged into results/NAME.json.

python benchmarks/tables.py NAME [--device cuda] [--merge-only]   (without a name it says which there are)

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

from caml_core.__main__ import HEADS
from caml_core.__main__ import main as caml_core
from caml_core.records import read_records, write_records

ROOT = Path(__file__).parent.parent
TEN = ["--dataset", "spuco_mnist", "--option", "classes=10", "--option", "n_val=1000", "--backbone", "small_cnn"]
Job = tuple[str, list[str], str | None]  # name, arguments, name of the run whose labels it buys


def digits() -> Iterator[Job]:
    """Ten MNIST digits on ten colours, the quick profile: every method on the labels that append bought."""
    methods = {
        "upweight": [],
        "caml": [],
        "mldg": [],
        "balanced": [],
        "jtt": [],
        "groupdro": [],
        "append, 11 x epochs": ["--epochs", "660"],  # 2R + 1 gradients a step, as many as CAML
        "upweight, 11/6 x epochs": ["--epochs", "110"],  # R + 1 against 2R + 1
    }
    common = [[*TEN, "--rho", "0.95", "--seed", str(seed)] for seed in range(5)]
    for seed in range(5):
        yield f"append-{seed}", ["append", *common[seed]], None
        for name, more in methods.items():
            yield (
                f"{name.replace('/', ' of ')}-{seed}",
                [name.split()[0].strip(","), *common[seed], *more],
                f"append-{seed}",
            )
    for seed in range(5):
        yield f"erm_all-{seed}", ["erm_all", *common[seed], "--epochs", "10"], None
    for seed in range(5):
        yield f"caml, own queries-{seed}", ["caml", *common[seed]], None
    for seed in range(5):
        yield f"caml exact-{seed}", ["caml", *common[seed], "--order", "exact"], f"append-{seed}"


def regimes() -> Iterator[Job]:
    """Where the gain lives: settings moved one or two at a time around the chapters' regime, on drawn digits.

    Its seeds are used nowhere else, so that settings read off this map are not chosen on a table's test data.
    """
    fixed = [*TEN, "--option", "digits=drawn", "--option", "magnitude=0.1", "--rounds", "3", "--lr", "2e-3"]
    base = {"rho": 0.95, "start": 600, "acquisition": "least_confidence", "weight-decay": 1e-4, "alpha": 0.1}
    changes: list[dict[str, Any]] = [{"alpha": alpha} for alpha in (0.1, 0.01, 1.0)]
    changes += [{"rho": rho, "start": start} for rho, start in itertools.product((0.9, 0.95, 0.98), (300, 600, 1500))]
    changes += [{"acquisition": name} for name in ("random", "badge", "core_set")]
    changes += [{"weight-decay": decay} for decay in (1e-3, 1e-2)]
    seen = set()
    for seed, change in itertools.product((10, 11, 12), changes):
        cell = {**base, **change}
        labels = "-".join(str(value) for key, value in cell.items() if key != "alpha")
        for method in ("append", "upweight", "caml"):
            name = f"{method}-{labels}" + (f"-alpha {cell['alpha']}" if method == "caml" else "") + f"-{seed}"
            if name not in seen:
                seen.add(name)
                options = [part for key, value in cell.items() for part in (f"--{key}", str(value))]
                command = [method, *fixed, "--seed", str(seed), *options]
                yield name, command, f"append-{labels}-{seed}" if method != "append" else None


def dominoes10() -> Iterator[Job]:
    """The published setting, for a GPU: ten-class Dominoes, ResNet-18 from scratch, 4,500 + 5 x 100, 64 x 32 pixels."""
    for seed, acquisition in itertools.product(range(3), ("random", "least_confidence", "badge", "core_set")):
        common = ["--dataset", "dominoes", "--option", "protocol=caml", "--backbone", "resnet18", "--from-scratch"]
        common += ["--profile", "full", "--augment", "none", "--acquisition", acquisition, "--seed", str(seed)]
        bought = f"append-{acquisition}-{seed}"
        yield bought, ["append", *common], None
        for method in ("upweight", "mldg", "caml"):
            yield f"{method}-{acquisition}-{seed}", [method, *common], bought


def birdscapes() -> Iterator[Job]:
    """Scenes in place of digits: two classes, and a core feature that a small network learns late."""
    for start, seeds in ((1000, range(3)), (3000, range(1))):
        for seed in seeds:
            common = ["--dataset", "birdscapes", "--option", "n_train=10000", "--rho", "0.95", "--seed", str(seed)]
            common += ["--start", str(start), "--query", str(start // 15), "--rounds", "3", "--epochs", "20"]
            yield f"append, {start}-{seed}", ["append", *common], None
            for method in ("upweight", "caml"):
                yield f"{method}, {start}-{seed}", [method, *common], f"append, {start}-{seed}"


def heads() -> Iterator[Job]:
    """Heads on frozen ImageNet features, two-class Dominoes: every method, then HSFM with one thing changed.

    With few validation labels the hard set stays a quarter of the validation examples, as published.
    """
    runs: dict[str, list[str]] = {name: [name] for name in HEADS}  # hsfm: the settings published for Dominoes
    runs["hsfm, scaled"] = ["hsfm", "--scaled"]
    changes = {
        "select": ("worst_class", "hard_loss"),  # no group label at all
        "hard-set": ("random", "minority"),
        "support": (4, 64),
        "inner-steps": (1, 30),
        "hard": (32,),
        "edits": (1, 5),
        "hypergradient": ("first_order", "implicit", "kfac"),
    }
    for key, values in changes.items():
        runs |= {f"hsfm, {key} {value}": ["hsfm", f"--{key}", str(value)] for value in values}
    for n in (40, 100, 400):
        runs[f"dfr, val-labels {n}"] = ["dfr", "--val-labels", str(n)]
        runs[f"hsfm, val-labels {n}"] = ["hsfm", "--val-labels", str(n), "--hard", str(n // 8)]
    for seed, (name, command) in itertools.product(range(5), runs.items()):
        fixed = ["--dataset", "dominoes", "--rho", "0.9", "--backbone", "efficientnet_lite0", "--seed", str(seed)]
        yield f"{name}-{seed}", [command[0], *fixed, *command[1:]], None


def heads_resnet() -> Iterator[Job]:
    """The protocol of the paper in small: a ResNet trained by ERM on Dominoes itself, then frozen."""
    fixed = ["--dataset", "dominoes", "--rho", "0.9", "--train-backbone", "8"]
    return _few_heads(fixed, {"hsfm": ["hsfm"], "hsfm, scaled": ["hsfm", "--scaled"]})


def heads_birdscapes() -> Iterator[Job]:
    """Scenes, where the shortcut is all around the bird: the pictures and features of chapter 10.

    (The small ResNet learns nothing of the bird from so few: there is no head to repair.)
    """
    sizes = {"size": 64, "n_train": 1600, "n_val": 800, "n_test": 1000}
    fixed = ["--dataset", "birdscapes", "--rho", "0.95", "--backbone", "efficientnet_lite0"]
    fixed += [part for key, value in sizes.items() for part in ("--option", f"{key}={value}")]
    return _few_heads(fixed, {"hsfm, scaled": ["hsfm", "--published", "waterbirds", "--scaled"]})


def _few_heads(fixed: list[str], hsfm: dict[str, list[str]]) -> Iterator[Job]:
    methods = {name: [name] for name in ("erm-head", "dfr", "balanced-head", "dac")} | hsfm
    for seed, (name, command) in itertools.product(range(5), methods.items()):
        yield f"{name}-{seed}", [command[0], *fixed, "--seed", str(seed), *command[1:]], None


TABLES = {
    "digits": digits,
    "regimes": regimes,
    "birdscapes": birdscapes,
    "dominoes10": dominoes10,
    "heads": heads,
    "heads_resnet": heads_resnet,
    "heads_birdscapes": heads_birdscapes,
}


def compact(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What tables and figures need: no hundred groups, and bought rows only with the run that chose them."""
    metrics = {k: v for k, v in record["metrics"].items() if k not in ("groups", "empty_groups")}
    if "rounds" not in record:  # a head; its settings as used differ from the config only where they were scaled
        unsaid = ("history",) if record["config"].get("scaled") else ("history", "settings")
        kept = {k: v for k, v in record.items() if k not in unsaid}
        return {"run": name.rsplit("-", 1)[0], **kept, "metrics": metrics}
    keep = ["round", "labels", "batch_minority", "fit_start", "fit_queried"]
    if "queries_from" in record["config"]:
        record["config"]["queries_from"] = Path(record["config"]["queries_from"]).stem
    elif "digits" not in record["config"]["option"]:  # the map of regimes is large
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
