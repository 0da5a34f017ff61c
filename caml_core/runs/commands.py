"""The commands `run`, `sweep`, `tables` and `data` of `python -m caml_core`."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from caml_core.data import find
from caml_core.device import pick_device
from caml_core.errors import CamlError
from caml_core.runs import sweep, tables
from caml_core.runs.lists import Run, expand
from caml_core.runs.records import read_records, result, stored, write_records
from caml_core.runs.settings import Data, Method, build, flag, method_of, word


class Flags(argparse.ArgumentParser):
    """Flags of a command; a wrong one is a `CamlError`."""

    def __init__(self, command: str, purpose: str) -> None:
        super().__init__(prog=f"python -m caml_core {command}", description=purpose, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise CamlError(message, f"flags of {self.prog}", "see --help")


def pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE."""
    key, value = text.split("=", 1)
    return key, word(value)


def parse_run(argv: Sequence[str]) -> tuple[Method, Data, argparse.Namespace]:
    """Method, dataset and place of `run METHOD ...`: its flags build what a list of runs builds."""
    name, *rest = argv or [""]
    method = method_of({"method": name})
    flags = Flags(f"run {name}", str(type(method).__doc__))
    flags.add_argument("--dataset", required=True)
    flags.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    flags.add_argument("--rho", type=word, help="share of majority examples in training, 0.5 to 1")
    flags.add_argument("--option", action="append", type=pair, default=[], metavar="KEY=VALUE", help="for the loader")
    flags.add_argument("--seed", nargs="+", type=int, default=[0])
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    own = [field.name for field in dataclasses.fields(method) if field.name != "method"]
    for setting in own:
        usual = getattr(method, setting)
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if usual is False else {"type": word}
        kind |= {"nargs": "+"} if isinstance(usual, list | tuple) else {}
        flags.add_argument(flag(setting), dest=setting, default=argparse.SUPPRESS, help=f"default {usual}", **kind)
    place = flags.parse_args(rest)
    given = {key: value for key, value in vars(place).items() if key in own}
    data = {"dataset": place.dataset, "rho": place.rho, "option": dict(place.option)}
    return *build({"method": name, **given, **data}), place


def go_run(argv: Sequence[str]) -> None:
    """One record a seed. Finished seeds and checkpoints wait in FILE.json.work until all are done."""
    method, data, place = parse_run(argv)
    device, source = pick_device(place.device), getattr(method, "queries_from", None)
    offers = [record for record in read_records(source) if len(record.get("rounds", ())) > 1] if source else []
    sellers = {record["seed"]: record for record in offers}
    if source and (missing := set(place.seed) - sellers.keys()):
        remedy = "run the acquisition first, for example: run append --dataset ... --out FILE.json"
        raise CamlError(f"{source} has no rounds with seed {min(missing)}", "rounds that chose by themselves", remedy)
    found = []
    with sweep.alone(place.out) as folder:
        for seed in dict.fromkeys(place.seed):
            seller = sellers.get(seed, {})
            run = Run(name=method.method, seed=seed, method=method, data=data)
            run = run.known(run.content(), seller.get("identity"))
            found.append(sweep.make(run, folder, device, seller))
            print(f"seed {seed}: {tables.scores(found[-1])}", flush=True)
        write_records(place.out, found)
    shutil.rmtree(folder)


def go_sweep(argv: Sequence[str]) -> None:
    flags = Flags("sweep", "Make the runs that a file lists and that have no record yet.")
    flags.add_argument("file", type=Path, metavar="FILE.toml")
    flags.add_argument("--out", type=Path, metavar="FILE.json", help="default: results/NAME.json")
    flags.add_argument("--address", default="local", help="local, serial, or HOST:PORT of a Ray cluster")
    flags.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    flags.add_argument("--gpus-per-run", type=float, default=1, metavar="SHARE", help="of a GPU, e.g. 0.25")
    given = flags.parse_args(argv)
    given.out = given.out or Path("results") / f"{given.file.stem}.json"
    sweep.sweep(**vars(given))


def go_tables(argv: Sequence[str]) -> None:
    flags = Flags("tables", "Stored results, as Markdown.")
    flags.add_argument("name", nargs="?", help="a file of results; default: all that have a list of runs")
    name = flags.parse_args(argv).name
    for one in [name] if name else tables.names():
        file = result(f"tables/{one}.toml")
        records = [] if file and not result(f"{one}.json") else stored(one)
        listed = dict.fromkeys(run.name for run in expand(file)) if file else {}
        print(f"### {one}\n\n{tables.summary(records, names=list(listed))}\n")


def go_data(argv: Sequence[str]) -> None:
    flags = Flags("data", "Datasets: what is where, under which licence; fetch one.")
    flags.add_argument("action", choices=("list", "fetch"))
    flags.add_argument("name", nargs="?")
    flags.add_argument("--data", type=Path, metavar="DIR", help="data folder, in place of CAML_DATA")
    find.go_data(**vars(flags.parse_args(argv)))


COMMANDS = {"run": go_run, "sweep": go_sweep, "tables": go_tables, "data": go_data}
