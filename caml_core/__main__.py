"""Command line for long runs: `python -m caml_core run METHOD --dataset NAME ... --out FILE.json`.

The same code as the notebooks. Ctrl-C (or a kill) leaves a checkpoint beside the output file; the same command goes
on from there. Exit code 2 and one message on bad arguments or data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from caml_core.errors import CamlError

METHODS = ("erm",)
AUGMENT = ("none", "shift")
EPOCHS = {"quick": 8, "full": 50}  # default by profile


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text."""
        print(f"caml_core: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    root = _Parser(prog="python -m caml_core", description="Runs of the book, from the command line.")
    commands = root.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train a method and write one record a seed")
    run.add_argument("method", choices=METHODS)
    run.add_argument("--dataset", required=True, help="birdscapes, dominoes, spuco_mnist")
    run.add_argument("--rho", type=float, help="share of majority examples in training, 0.5 to 1")
    run.add_argument("--seed", type=int, nargs="+", default=[0], metavar="S")
    run.add_argument("--profile", choices=EPOCHS, default="quick")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--data", type=Path, metavar="DIR", help="data folder, in place of CAML_DATA")
    run.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="passed to the loader")
    run.add_argument("--backbone", default="small_resnet")
    run.add_argument("--from-scratch", action="store_true", help="do not load pretrained weights")
    run.add_argument("--head-only", action="store_true", help="train a linear head on frozen, standardised features")
    run.add_argument("--epochs", type=int)
    run.add_argument("--batch-size", type=int, default=64)
    run.add_argument("--lr", type=float, default=1e-3)
    run.add_argument("--weight-decay", type=float, default=1e-4)
    run.add_argument("--augment", choices=AUGMENT, default="shift", help="of training images (shift: by 3 pixels)")
    run.add_argument("--balance", choices=("class", "group"))
    run.add_argument("--select", default="average", help="validation rule that chooses the epoch")
    run.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    return root


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


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a seed. Finished seeds and checkpoints wait in FILE.json.work until all are done."""
    from caml_core.device import pick_device
    from caml_core.records import read_records, write_records

    device = pick_device(arguments.device)
    options = parse_options(arguments.option)
    work = arguments.out.with_name(arguments.out.name + ".work")
    records = []
    for seed in arguments.seed:
        finished = work / f"seed-{seed}.json"
        config = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
            if key not in ("out", "seed", "command", "data", "device")
        }
        config |= {"option": options, "epochs": arguments.epochs or EPOCHS[arguments.profile]}
        if finished.exists():
            (record,) = read_records(finished)
            if record["config"] != json.loads(json.dumps(config)):
                raise CamlError(
                    what=f"{work} holds the unfinished runs of another command",
                    expected="the same settings",
                    remedy=f"repeat that command, or delete {work} to start again",
                )
        else:
            record = erm(arguments, config, options, seed, device, work / f"seed-{seed}.safetensors")
            write_records(finished, [record])
        metrics = record["metrics"]
        print(
            f"seed {seed}: WGA {metrics['worst_group']['value']:.1f} ({metrics['worst_group']['name']}), "
            f"average {metrics['average']['value']:.1f}, minority {_number(metrics['minority']['value'])}"
        )
        records.append(record)
    write_records(arguments.out, records)
    shutil.rmtree(work)
    return records


def erm(
    arguments: argparse.Namespace,
    config: dict[str, Any],
    options: dict[str, Any],
    seed: int,
    device: Any,
    file: Path,
) -> dict[str, Any]:
    """Train by empirical risk minimisation and score the chosen epoch on the test split."""
    import torch

    from caml_core.backbones import backbone
    from caml_core.data import load
    from caml_core.erm import train_erm
    from caml_core.features import extract_features, predict, standardise
    from caml_core.loader import random_shift
    from caml_core.metrics import group_metrics
    from caml_core.records import provenance

    start = time.perf_counter()
    if arguments.rho is not None:
        options = {**options, "rho": arguments.rho}
    if arguments.data is not None:
        options = {**options, "data_dir": arguments.data}
    train, val, test = load(arguments.dataset, **{"seed": seed, **options})
    pretrained = False if arguments.from_scratch else None
    network: torch.nn.Module = backbone(arguments.backbone, len(train.class_names), pretrained=pretrained, seed=seed)
    if arguments.head_only:
        splits = [extract_features(network, split, device) for split in (train, val, test)]  # type: ignore[arg-type]
        train, val, test = standardise(*splits)
        network = network.head  # type: ignore[assignment]
    shift = arguments.augment == "shift" and not arguments.head_only
    done = train_erm(
        network,
        train,
        val,
        epochs=config["epochs"],
        seed=seed,
        device=device,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        balance=arguments.balance,
        augment=random_shift if shift else None,
        select=arguments.select,
        checkpoint=file,
    )
    return {
        "method": "erm",
        "dataset": arguments.dataset,
        "seed": seed,
        "metrics": group_metrics(predict(network, test, device), test, train.group_counts),
        "selection": {"split": "validation", "rule": done.rule, "epoch": done.best_epoch},
        "config": config,
        "data": {
            "source": train.source,
            "train_groups": dict(zip(train.group_names, train.group_counts.tolist())),
        },
        "history": [
            {
                **{k: v for k, v in epoch.items() if k != "val"},
                **{f"val_{k}": epoch["val"][k]["value"] for k in CURVES},
            }
            for epoch in done.history
        ],
        "train_seconds": round(done.seconds, 2),
        "provenance": provenance(device, time.perf_counter() - start),
    }


CURVES = ("average", "worst_group", "minority", "majority")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except CamlError as error:
        print(f"caml_core: {error.what}; expected {error.expected}; {error.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncaml_core: stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
