"""What the commands of `python -m caml_core` take, and what they do. Flags are made from typed settings by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import NonNegativeInt
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from caml_core.checked import settings
from caml_core.errors import CamlError

T = TypeVar("T")
Folder = Annotated[Path | None, arg(metavar="DIR")]
Pairs = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]]


@settings
class Place:
    """Where a run finds its data, and where its record goes."""

    dataset: str
    out: Path
    rho: float | None = None  # share of majority examples in training, 0.5 to 1
    option: Pairs = ()  # passed to the loader
    seed: tuple[NonNegativeInt, ...] = (0,)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    data: Folder = None  # data folder, in place of CAML_DATA


@settings
class PlaceOfTrade(Place):
    """The same for a method that buys labels."""

    # Buy the labels that the run of the same seed in this file bought, and train on the last round only.
    queries_from: Path | None = None


@settings
class Sweep:
    """Make the runs that a file lists and that have no record yet."""

    file: Positional[Path]
    out: Path | None = None  # default: results/NAME.json
    address: str = "local"  # local, serial, or HOST:PORT of a Ray cluster
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_run: float | None = None  # share of a GPU for each run, e.g. 0.25


@settings
class Tables:
    """Published tables beside ours, as Markdown."""

    name: Positional[str | None] = None  # caml, hsfm, or a file of results; default: all


@settings
class Datasets:
    """Datasets: what is where, licences; fetch."""

    action: Positional[Literal["list", "fetch"]]
    name: Positional[str | None] = None
    data: Folder = None  # data folder, in place of CAML_DATA


def parse(kind: Callable[..., T], argv: Sequence[str], prog: str, **more: Any) -> T:
    """An object from flags.

    Raises:
        CamlError: a flag that is unknown, missing, or of another kind.
    """
    said, config = io.StringIO(), (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(argv), prog=f"python -m caml_core {prog}", config=config, **more)
    except SystemExit as end:
        if not end.code:
            raise
    lines = [line.strip(" │") for line in said.getvalue().splitlines()]
    rows = [line for line in lines if line and line[0] not in "╭╰"]
    rule = next((i for i, line in enumerate(rows) if line.startswith("──")), len(rows))
    raise CamlError(" ".join(rows[:rule]), f"flags of {prog}", "see --help")


def parse_run(argv: Sequence[str]) -> tuple[Any, Any, Place]:
    """Settings, dataset and place of `run METHOD ...`; the profile or the published name changes the defaults."""
    from caml_core.runs.identity import read_content
    from caml_core.runs.lists import trades
    from caml_core.runs.settings import Data, kind_of, usual

    read_content.cache_clear()
    name, *flags = argv or [""]
    kind = kind_of(name)
    method = kind(method=name, **usual({"method": name}))
    place = PlaceOfTrade if trades(method) else Place
    both: Any = [("method", OmitArgPrefixes[kind]), ("place", OmitArgPrefixes[place])]  # type: ignore[valid-type, misc]
    shape = dataclasses.make_dataclass("run", both)
    for _ in range(2):
        found = parse(shape, flags, f"run {name}", default=shape(method, tyro.MISSING_NONPROP))
        again = {key: getattr(found.method, key) for key in ("profile", "published") if hasattr(found.method, key)}
        method = kind(method=name, **{**usual({"method": name, **again}), **again})
    place, pairs = found.place, [pair.partition("=") for pair in found.place.option]
    if not all(key and sign for key, sign, _ in pairs):
        raise CamlError(
            f"--option {' '.join(place.option)}", "KEY=VALUE, for example classes=3,5", "put = between them"
        )
    option = {key: text for key, _, text in pairs}
    return found.method, Data(dataset=place.dataset, rho=place.rho, option=option), place


def go_run(argv: Sequence[str]) -> None:
    """One record a seed. Finished seeds and checkpoints wait in FILE.json.work until all are done."""
    from caml_core.device import pick_device
    from caml_core.runs.lists import Run
    from caml_core.runs.records import scores, write_records
    from caml_core.runs.sweep import alone, make

    method, data, place = parse_run(argv)
    out, device, source = local(place.out), pick_device(place.device), getattr(place, "queries_from", None)
    if len(set(place.seed)) < len(place.seed) or not place.seed:
        raise CamlError(f"--seed {list(place.seed)}", "each seed once", "leave the others out")
    sellers = {seed: seller(source, method, data, seed) if source else {} for seed in place.seed}
    words = [*(["--queries-from", str(source)] if source else []), "--device", place.device, "--out", str(place.out)]
    folder, found = out.with_name(out.name + ".work"), []
    with alone(folder):
        runs = [
            Run(method.method, n, method, data, source and str(source), sellers[n].get("identity")) for n in place.seed
        ]
        begun = {path.name for path in (folder / "unfinished").glob("*")}
        if strange := begun - {run.identity for run in runs}:
            raise CamlError(
                what=f"{folder} holds the unfinished runs of another command ({', '.join(sorted(strange))})",
                expected="the same settings and the same data",
                remedy=f"repeat that command, or delete {folder} to start again",
            )
        for run in runs:
            record = make(run, folder, device, sellers[run.seed] or None, data_dir=place.data, place=words)
            found.append(record)
            print(f"seed {run.seed}: {scores(record)}")
        write_records(out, found)
    shutil.rmtree(folder)


def seller(file: Path, method: Any, data: Any, seed: int) -> dict[str, Any]:
    """The record of the same seed whose labels can be bought; one that does not fit is refused later, and why."""
    from caml_core.runs.records import read_records
    from caml_core.runs.run import pool
    from caml_core.runs.settings import of_record

    same = [r for r in read_records(file) if (r["seed"], r["dataset"]) == (seed, data.dataset)]
    if offers := [r for r in same if len(r.get("rounds", [])) > 1]:
        return next((r for r in offers if pool(*of_record(r)) == pool(method, data)), offers[0])
    raise CamlError(
        what=f"{file} has no rounds of {data.dataset} with seed {seed}",
        expected="records of a run in rounds that chose by itself",
        remedy="run the acquisition first, for example: run append --dataset ... --out FILE.json",
    )


def local(out: Path) -> Path:
    """A local file for records."""
    if "://" in str(out) or ":/" in str(out):
        raise CamlError(f"--out {out}", "a local file", "choose a path on this machine")
    if out.is_dir():
        raise CamlError(f"--out {str(out)!r} is a folder", "a file", "add the name of a file")
    return out


def go_sweep(argv: Sequence[str]) -> None:
    how = parse(Sweep, argv, "sweep")
    out = local(how.out or Path("results") / f"{how.file.stem}.json")
    from caml_core.runs.sweep import sweep

    sweep(how.file, out, address=how.address, device=how.device, gpus_per_run=how.gpus_per_run)


def go_tables(argv: Sequence[str]) -> None:
    name = parse(Tables, argv, "tables").name
    from caml_core.runs import tables

    for one in [name] if name else tables.names():
        print(f"### {one}\n\n{tables.table(one)}\n")


def go_data(argv: Sequence[str]) -> None:
    how = parse(Datasets, argv, "data")
    from caml_core.data import find

    find.go_data(**dataclasses.asdict(how))


COMMANDS = {"run": go_run, "sweep": go_sweep, "tables": go_tables, "data": go_data}
