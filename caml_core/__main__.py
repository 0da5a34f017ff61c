"""Command line for long runs: `python -m caml_core run METHOD --dataset NAME ... --out FILE.json`.

The same code as the notebooks. Ctrl-C (or a kill) leaves a checkpoint beside the output file; the same command goes
on from there. Exit code 2 and one message on bad arguments or data.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caml_core.errors import CamlError

if TYPE_CHECKING:
    import torch

    from caml_core.backbones import Backbone
    from caml_core.data.dataset import GroupDataset

    Splits = tuple[GroupDataset, GroupDataset, GroupDataset]

ACTIVE_METHODS = ("append", "upweight", "mldg", "caml", "balanced", "jtt", "groupdro", "erm_all")
HEADS = ("erm-head", "dfr", "balanced-head", "jtt-head", "gdro-head", "afr", "dac", "hsfm")  # on a frozen body
METHODS = ("erm", *ACTIVE_METHODS, *HEADS)
AUGMENT = ("none", "shift")
# Defaults by profile. Active learning: "full" is published, "quick" is the regime that the chapters explain.
ERM = {
    "quick": {"epochs": 8, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-4, "select": "average"},
    "full": {"epochs": 50, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-4, "select": "average"},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "quick": {"start": 600, "query": 50, "epochs": 60, "lr": 1e-3, "weight_decay": 1e-4, "alpha": 0.1},
    "full": {},  # those of caml_core.active.Plan
}
# Options that a method takes; given to another method they are refused, not ignored.
TRAINING = ("epochs", "batch_size", "lr", "weight_decay", "select")
INNER = ("alpha", "inner_steps")
ROUNDS = ("optimizer", "acquisition", "start", "query", "rounds", "order")
FROZEN = ("val_labels", "train_backbone")
HSFM = (
    *INNER, "support", "eta", "edits", "edit_optimizer", "hard", "hard_set", "hypergradient", "published", "scaled",
)  # fmt: skip
TAKES = {
    "erm": TRAINING,
    **dict.fromkeys(ACTIVE_METHODS, (*TRAINING, *INNER, *ROUNDS)),
    **dict.fromkeys(HEADS, ("epochs", "select", *FROZEN)),
    "erm-head": (*TRAINING, *FROZEN),
    "dfr": ("select", *FROZEN),
    "hsfm": ("epochs", "select", *FROZEN, *HSFM),
}
# The same for options that have a default, with the value that says nothing.
DEFAULTS = {"augment": "shift", "profile": "quick", "head_only": False, "balance": None, "queries_from": None}
TAKES_ALSO = {
    "erm": ("augment", "profile", "head_only", "balance"),
    **dict.fromkeys(ACTIVE_METHODS, ("augment", "profile", "queries_from")),
    "erm_all": ("augment", "profile"),  # it buys nothing
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text."""
        print(f"caml_core: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    from caml_core.published import add_tables
    from caml_core.sweep import add_sweep

    root = _Parser(prog="python -m caml_core", description="Runs of the book, from the command line.")
    commands = root.add_subparsers(dest="command", required=True)
    add_run(commands)
    add_data(commands)
    add_sweep(commands)
    add_tables(commands)
    add_train_tiny(commands)
    return root


def add_run(commands: Any) -> None:
    """`run METHOD`: train and score; a subcommand sets `go`, the function that `main` calls with the arguments."""
    from caml_core.data import DATASETS

    run = commands.add_parser("run", help="train a method and write one record a seed")
    run.set_defaults(go=go_run)
    run.add_argument("method", choices=METHODS)
    run.add_argument("--dataset", required=True, help=", ".join(DATASETS))
    run.add_argument("--rho", type=float, help="share of majority examples in training, 0.5 to 1")
    run.add_argument("--seed", type=int, nargs="+", default=[0], metavar="S")
    run.add_argument("--stack", action="store_true", help="train all seeds side by side (methods of active learning)")
    run.add_argument("--profile", choices=ACTIVE, default="quick", help="default settings; full: the published ones")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--data", type=Path, metavar="DIR", help="data folder, in place of CAML_DATA")
    run.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="passed to the loader")
    run.add_argument("--backbone", default="small_resnet")
    run.add_argument("--from-scratch", action="store_true", help="do not load pretrained weights")
    run.add_argument("--epochs", type=int)
    run.add_argument("--batch-size", type=int)
    run.add_argument("--lr", type=float)
    run.add_argument("--weight-decay", type=float)
    run.add_argument("--augment", choices=AUGMENT, default="shift", help="of training images (shift: by 3 pixels)")
    run.add_argument("--select", help="validation rule that chooses the epoch")
    erm = run.add_argument_group("erm")
    erm.add_argument("--head-only", action="store_true", help="train a linear head on frozen, standardised features")
    erm.add_argument("--balance", choices=("class", "group"))
    active = run.add_argument_group(f"active learning ({', '.join(ACTIVE_METHODS)})")
    active.add_argument("--acquisition", help="least_confidence (default), random, margin, entropy, bald, badge, ...")
    active.add_argument("--start", type=int, help="labels drawn at random first")
    active.add_argument("--query", type=int, help="labels of a round")
    active.add_argument("--rounds", type=int)
    active.add_argument("--optimizer", choices=("adam", "adamw"))
    active.add_argument("--alpha", type=float, help="size of the inner step (also hsfm)")
    active.add_argument("--order", choices=("first", "exact"))
    active.add_argument("--inner-steps", type=int, help="(also hsfm)")
    active.add_argument(
        "--queries-from",
        type=Path,
        metavar="FILE.json",
        help="buy the labels that the run of the same seed in this file bought, and train on the last round only",
    )
    heads = run.add_argument_group(f"heads on frozen, standardised features ({', '.join(HEADS)})")
    heads.add_argument("--train-backbone", type=int, metavar="EPOCHS", help="train the network by ERM, then freeze it")
    heads.add_argument("--val-labels", type=int, metavar="N", help="keep only N of the validation examples")
    heads.add_argument("--published", metavar="NAME", help="hsfm: settings published for dominoes (default), ...")
    heads.add_argument("--scaled", action="store_true", default=None, help="hsfm: scale these to other features")
    heads.add_argument("--support", type=int, help="hsfm: support examples of each class")
    heads.add_argument("--eta", type=float, help="hsfm: size of an edit")
    heads.add_argument("--edits", type=int, help="hsfm: edits of an epoch")
    heads.add_argument("--hard", type=int, help="hsfm: hard examples of each class")
    heads.add_argument("--hard-set", help="hsfm: loss (default), random, minority")
    heads.add_argument("--edit-optimizer", help="hsfm: adam (default), sgd")
    heads.add_argument("--hypergradient", help="hsfm: adjoint (default), unrolled, first_order, implicit, ...")
    run.add_argument("--out", type=out_file, required=True, metavar="FILE.json")


def add_data(commands: Any) -> None:
    """`data list | info NAME | fetch NAME | verify NAME`, see `caml_core.data.catalogue`."""

    def go(arguments: argparse.Namespace) -> None:
        from caml_core.data.catalogue import go_data  # imports PyTorch, which --help should not wait for

        go_data(arguments)

    data = commands.add_parser("data", help="datasets: what is where, licences; fetch and verify")
    data.set_defaults(go=go)
    data.add_argument("action", choices=("list", "info", "fetch", "verify"))
    data.add_argument("name", nargs="?", help="a dataset, see `data list`")
    data.add_argument("--data", type=Path, metavar="DIR", help="data folder, in place of CAML_DATA")


def add_train_tiny(commands: Any) -> None:
    """`train-tiny clip|unclip`, see `caml_core.train_tiny`."""

    def go(arguments: argparse.Namespace) -> None:
        from caml_core.train_tiny import go_train_tiny  # as above

        go_train_tiny(arguments)

    command = commands.add_parser("train-tiny", help="train the small CLIP or unCLIP that come with the book")
    command.set_defaults(go=go)
    command.add_argument("model", choices=("clip", "unclip"))
    command.add_argument("--device", default="auto")
    command.add_argument("--steps", type=int, help="of the whole run")
    command.add_argument("--minutes", type=float, default=math.inf, help="end this stretch after so many minutes")
    command.add_argument("--folder", type=Path, default=Path("tiny"), help="of checkpoint, weights and card")


def out_file(text: str) -> Path:
    """A local file for records."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is no local file; checkpoints can go there: sweep --checkpoints URL")
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, not a file")
    return Path(text)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["classes=3,5", "bottom=fashion_mnist"]` to keyword arguments: numbers, lists of them, or words."""

    def value(text: str) -> Any:
        if "," in text:
            return tuple(value(part) for part in text.split(",") if part)
        try:
            return json.loads(text)
        except ValueError:
            return text

    options = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise CamlError(
                what=f"--option {pair!r}",
                expected="KEY=VALUE, for example classes=3,5 or bottom=fashion_mnist",
                remedy="put an equals sign between the name and the value",
            )
        options[key] = value(text)
    return options


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of the method that were given.

    Raises:
        CamlError: an option that this method does not take.
    """
    known = {name for names in TAKES.values() for name in names}
    found = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    said = {name for name, default in DEFAULTS.items() if getattr(arguments, name) != default}
    takes = (*TAKES[arguments.method], *TAKES_ALSO.get(arguments.method, ()))
    if unused := sorted((said | set(found)) - set(takes)):
        raise CamlError(
            what=f"{arguments.method} does not take " + ", ".join(map(_flag, unused)),
            expected=", ".join(map(_flag, takes)),
            remedy="leave it out, or choose another method",
        )
    return found


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training settings of the method: what was given, over its defaults or the profile's.

    Raises:
        CamlError: an option that the method or the loader does not take, a setting out of range, a seed given twice,
            seeds that the method cannot stack.
    """
    check_options(arguments.dataset, parse_options(arguments.option))
    if len(set(arguments.seed)) < len(arguments.seed):
        raise CamlError(what=f"--seed {arguments.seed}", expected="each seed once", remedy="leave the others out")
    if arguments.stack:
        from caml_core.stacked import stackable

        stackable(arguments.method)
    if arguments.method in HEADS:
        from caml_core import head_runs

        return head_runs.settings(arguments.method, given(arguments))
    table = ERM if arguments.method == "erm" else ACTIVE
    return {**table[arguments.profile], **given(arguments)}


def check_options(dataset: str, options: dict[str, Any]) -> None:
    """Refuse loader options of unknown name, or of another kind than the loader's signature says."""
    from caml_core.data import loader

    kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "Sequence[int]": tuple}
    for name, parameter in inspect.signature(loader(dataset, options)).parameters.items():
        kind = str(parameter.annotation).split(" ")[0]
        if name in options and not isinstance(options[name], kinds.get(kind, object)):
            raise CamlError(
                what=f"--option {name}={options[name]}",
                expected=f"{name} of kind {kind}" + (", for example 3,5" if kinds.get(kind) is tuple else ""),
                remedy="correct the option",
            )


def go_run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a seed. Finished seeds and checkpoints wait in FILE.json.work until all are done."""
    from caml_core.data import load
    from caml_core.device import pick_device
    from caml_core.records import provenance, read_records, write_records
    from caml_core.store import write_text

    device = pick_device(arguments.device)
    options = parse_options(arguments.option)
    work = arguments.out.with_name(arguments.out.name + ".work")
    write_text(work / "command.txt", " ".join(sys.argv) + "\n")  # a folder that cannot be written shows now
    named = ["method", "dataset", "rho", "backbone", "from_scratch"]
    if arguments.method not in HEADS:
        named += ["augment", "head_only", "balance", "profile"]
    config = {key: getattr(arguments, key) for key in named} | {"option": options} | settings(arguments)
    if arguments.queries_from is not None:
        config["queries_from"] = str(arguments.queries_from)
    records: dict[int, dict[str, Any]] = {}
    for seed in arguments.seed:
        if (finished := work / f"seed-{seed}.json").exists():
            (records[seed],) = read_records(finished)
            if records[seed]["config"] != json.loads(json.dumps(config)):
                raise CamlError(
                    what=f"{work} holds the unfinished runs of another command",
                    expected="the same settings",
                    remedy=f"repeat that command, or delete {work} to start again",
                )
            _say(records[seed])
    still = [seed for seed in arguments.seed if seed not in records]
    method = erm if arguments.method == "erm" else head if arguments.method in HEADS else active
    for seeds in [still] if arguments.stack and still else [[seed] for seed in still]:
        start = time.perf_counter()
        data = {"rho": arguments.rho, "data_dir": arguments.data}
        given = {**options, **{k: v for k, v in data.items() if v is not None}}
        splits = [load(arguments.dataset, **{"seed": seed, **given}) for seed in seeds]
        places = [work / f"seed-{seed}" for seed in seeds]
        if arguments.stack:
            found = stacked(arguments, splits, seeds, device, places)
        else:
            found = [method(arguments, splits[0], seeds[0], device, places[0])]
        where = provenance(device, (time.perf_counter() - start) / len(seeds))
        if len(seeds) > 1:
            where["stacked"] = len(seeds)  # seconds are shared out
        for seed, (train, _, _), results in zip(seeds, splits, found):
            records[seed] = {
                "method": arguments.method,
                "dataset": arguments.dataset,
                "seed": seed,
                **results,
                "config": config,
                "data": {
                    "source": train.source,
                    "train_groups": dict(zip(train.group_names, train.group_counts.tolist())),
                },
                "provenance": where,
            }
            write_records(work / f"seed-{seed}.json", [records[seed]])
            _say(records[seed])
    write_records(arguments.out, [records[seed] for seed in arguments.seed])
    shutil.rmtree(work)
    return [records[seed] for seed in arguments.seed]


def _say(record: dict[str, Any]) -> None:
    metrics = record["metrics"]
    print(
        f"seed {record['seed']}: WGA {metrics['worst_group']['value']:.1f} ({metrics['worst_group']['name']}), "
        f"average {metrics['average']['value']:.1f}, minority {_number(metrics['minority']['value'])}"
    )


def erm(arguments: argparse.Namespace, splits: Splits, seed: int, device: torch.device, work: Path) -> dict[str, Any]:
    """Train by empirical risk minimisation and score the chosen epoch on the test split."""
    from caml_core.erm import train_erm
    from caml_core.features import extract_features, predict, standardise
    from caml_core.loader import random_shift
    from caml_core.metrics import group_metrics

    train, val, test = splits
    network: torch.nn.Module = make_network(arguments, splits, seed)
    if arguments.head_only:
        train, val, test = standardise(*(extract_features(network, split, device) for split in splits))  # type: ignore[arg-type]
        network = network.head  # type: ignore[assignment]
    done = train_erm(
        network,
        train,
        val,
        seed=seed,
        device=device,
        balance=arguments.balance,
        augment=random_shift if arguments.augment == "shift" and train.x.ndim == 4 else None,
        checkpoint=work.with_suffix(".safetensors"),
        **settings(arguments),
    )
    return {
        "metrics": group_metrics(predict(network, test, device), test, train.group_counts),
        "selection": {"split": "validation", "rule": done.rule, "epoch": done.best_epoch},
        "history": [
            {
                **{k: v for k, v in epoch.items() if k != "val"},
                **{f"val_{k}": epoch["val"][k]["value"] for k in CURVES},
            }
            for epoch in done.history
        ],
        "train_seconds": round(done.seconds, 2),
    }


def active(
    arguments: argparse.Namespace, splits: Splits, seed: int, device: torch.device, work: Path
) -> dict[str, Any]:
    """Buy labels in rounds (`caml_core.active`) and score the last round on the test split."""
    from caml_core.active import Plan, run_active

    plan = Plan(method=arguments.method, **settings(arguments))
    return summed_up(run_active(plan=plan, **in_rounds(arguments, splits, seed, device, work)))


def stacked(
    arguments: argparse.Namespace,
    splits: Sequence[Splits],
    seeds: Sequence[int],
    device: torch.device,
    works: Sequence[Path],
) -> list[dict[str, Any]]:
    """`active` for many seeds side by side (`caml_core.stacked`)."""
    from caml_core.active import Plan
    from caml_core.stacked import run_stacked

    plan = Plan(method=arguments.method, **settings(arguments))
    runs = [in_rounds(arguments, split, seed, device, work) for split, seed, work in zip(splits, seeds, works)]
    return [summed_up(rounds) for rounds in run_stacked(runs, plan)]


def in_rounds(
    arguments: argparse.Namespace, splits: Splits, seed: int, device: torch.device, work: Path
) -> dict[str, Any]:
    """Arguments of `caml_core.active.run_active` beside the plan."""
    from caml_core.loader import random_shift

    queries = None if arguments.queries_from is None else bought(arguments, seed)
    return {
        "make_network": lambda: make_network(arguments, splits, seed),
        **dict(zip(("pool", "val", "test"), splits)),
        "seed": seed,
        "device": device,
        "augment": random_shift if arguments.augment == "shift" and splits[0].x.ndim == 4 else None,
        "work": work,
        "queries": queries,
        "first_round": 0 if queries is None else len(queries),
    }


def summed_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """A record's part on the rounds: groups of the last one only."""
    last = rounds[-1]
    for record in rounds[:-1]:
        record["metrics"] = {k: v for k, v in record["metrics"].items() if k != "groups"}
    last_metrics, last["metrics"] = last["metrics"], {k: v for k, v in last["metrics"].items() if k != "groups"}
    return {
        "metrics": last_metrics,
        "selection": last["selection"],
        "rounds": rounds,
        "train_seconds": round(sum(record["seconds"] for record in rounds), 2),
    }


def head(arguments: argparse.Namespace, splits: Splits, seed: int, device: torch.device, work: Path) -> dict[str, Any]:
    """Train a linear head on the features of the network as it comes, and score it on the test split."""
    from caml_core.head_runs import run_head

    network = make_network(arguments, splits, seed)
    return run_head(arguments.method, given(arguments), splits, network, seed, device)


def make_network(arguments: argparse.Namespace, splits: Splits, seed: int) -> Backbone:
    from caml_core.backbones import backbone

    x = splits[0].x
    return backbone(
        arguments.backbone,
        len(splits[0].class_names),
        pretrained=False if arguments.from_scratch else None,
        n_inputs=x.shape[1] if x.ndim == 2 else None,
        seed=seed,
    )


def bought(arguments: argparse.Namespace, seed: int) -> list[list[int]]:
    """The queries that a run of the same seed, from the same pool, chose by itself: from a file of records."""
    from caml_core.records import read_records

    file, own = arguments.queries_from, pool_of(arguments)
    differ: set[str] = set()
    for record in read_records(file):
        rounds, config = record.get("rounds", []), record["config"]
        if (record["seed"], record["dataset"]) == (seed, arguments.dataset) and len(rounds) > 1:
            other = _pool(config.get("rho"), config.get("option"), config)
            if other == own:
                return [r["queried"] for r in rounds[1:]]
            differ |= {key for key in own if own[key] != other[key]}
    raise CamlError(
        what=f"{file} has no rounds of {arguments.dataset} with seed {seed}"
        + (" from the same pool: other " + ", ".join(sorted(differ)) if differ else ""),
        expected="records of a run in rounds with the same dataset, seed, rho, options, start, query and rounds",
        remedy="run the acquisition first, for example: run append --dataset ... --out FILE.json",
    )


def pool_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides which labels there are to buy, and how many: only where it is equal can runs buy the same."""
    return _pool(arguments.rho, parse_options(arguments.option), settings(arguments))


def _pool(rho: float | None, option: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from caml_core.active import Plan

    plan = {key: settings.get(key, getattr(Plan, key)) for key in ("start", "query", "rounds")}
    return {"rho": rho, "option": json.loads(json.dumps(option)), **plan}


CURVES = ("average", "worst_group", "minority", "majority")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        arguments.go(arguments)
    except CamlError as error:
        print(f"caml_core: {error.what}; expected {error.expected}; {error.remedy}", file=sys.stderr)
        return 2
    except OSError as error:  # of a path that was given
        print(f"caml_core: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncaml_core: stopped; the same command goes on from where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
