"""Sweeps: many runs from one plain file, on one core or on a cluster, each made once.

A file of runs (TOML) holds options of `python -m caml_core run`, spelt as on the command line. Those at the top are
for all runs, each `[[runs]]` adds its own, and a list stands for one run an entry (several lists: all combinations):

    dataset = "birdscapes"
    seed = [0, 1, 2]

    [[runs]]
    method = "append"

    [[runs]]
    name = "{method}, {epochs} epochs"    # default: "{method}"
    method = ["upweight", "caml"]
    epochs = [20, 60]
    queries-from = "append"               # buys the labels that the run of this name and the same seed bought

A run is known by its *identity*, the hash of its settings and of the code that computes it. What has a record with
this identity is not run again. Everything lies in one folder, FILE.json.work: a file of one line for each finished
run, a log for each run that was started, and the checkpoints, from which whoever takes the run up goes on. On several
machines this folder should be one they share, or `--checkpoints` names a URL that all of them reach; records travel
through Ray and arrive in any case.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import platform
import shutil
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caml_core.errors import CamlError

Record = dict[str, Any]
FREE = 10**8  # bytes that must be free on the disk before a sweep starts
RETRIES = 3  # of a run whose worker or machine was lost
PLACE = {
    "command",
    "go",
    "out",
    "device",
    "data",
    "queries_from",
    "stack",
}  # where a run computes: no part of its identity


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: `command` is what stands behind `python -m caml_core run`."""

    name: str  # the same for all seeds
    seed: int
    command: tuple[str, ...]
    buys: str | None  # label of the run whose queries it buys again
    code: str  # version of the code
    identity: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"


# ---- from a file to runs ------------------------------------------------------------------------------------


def expand(file: Path) -> list[Run]:
    """The runs that a file lists, each after the run whose labels it buys.

    Raises:
        CamlError: the file is missing or no TOML, an unknown key, a setting that the method refuses, a run listed
            twice, or labels bought from a run that does not buy its own.
    """
    from caml_core.__main__ import parser

    try:
        table = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(file, f"cannot be read: {error}", "a TOML file of runs") from error
    entries = table.pop("runs", None)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(file, "lists no runs", "at least one [[runs]]")
    command_line = parser()
    known = vars(command_line.parse_args(["run", "erm", "--dataset", "", "--out", "run.json"])).keys() - PLACE
    keys = {name.replace("_", "-") for name in known} | {"name", "queries-from"}
    runs: dict[str, Run] = {}
    parsed: dict[str, argparse.Namespace] = {}
    for entry in entries:
        given = {"seed": 0, "name": "{method}", **table, **entry}
        if unknown := sorted(given.keys() - keys):
            raise _wrong(file, f"has unknown keys: {', '.join(unknown)}", "some of " + ", ".join(sorted(keys)))
        if missing := {"method", "dataset"} - given.keys():
            raise _wrong(file, f"has a run without {' and '.join(sorted(missing))}", "both for every run")
        lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        if empty := [key for key, values in lists.items() if not values]:
            raise _wrong(file, f"has an empty list: {', '.join(empty)}", "at least one value")
        for values in itertools.product(*lists.values()):
            run, arguments = _run(file, dict(zip(lists, values)), command_line)
            if run.label in runs:
                raise _wrong(file, f"lists {run.label!r} twice", "another name for each run, see `name`")
            runs[run.label], parsed[run.label] = run, arguments
    return _identified(file, runs, parsed)


def _run(file: Path, cell: Mapping[str, Any], command_line: argparse.ArgumentParser) -> tuple[Run, argparse.Namespace]:
    """One combination of settings, parsed as the command line would parse it."""
    options = dict(cell)
    try:
        name = options.pop("name").format(**cell)
        buys = options.pop("queries-from").format(**cell) if "queries-from" in options else None
    except (LookupError, ValueError, AttributeError) as error:
        raise _wrong(file, f"has a name that cannot be filled in: {error}", "{key} for keys of that run") from error
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise _wrong(file, f"has a run called {name!r}", "names that can be names of files")
    command = [str(options.pop("method"))]
    for key, value in options.items():
        if isinstance(value, dict):
            if lists := [k for k, v in value.items() if isinstance(v, list | dict)]:
                text = f'a word or number each: "3,5" for a tuple, another [[runs]] for another {lists[0]}'
                raise _wrong(file, f"has a list in {key}: {', '.join(lists)}", text)
            command += [part for k, v in value.items() for part in (f"--{key}", f"{k}={v}")]
        elif value is True:
            command.append(f"--{key}")
        elif value is not False:
            command.append(f"--{key}={value}" if str(value).startswith("-") else f"--{key}")
            command += [] if str(value).startswith("-") else [str(value)]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            arguments = command_line.parse_args(["run", *command, "--out", "run.json"])
    except SystemExit as error:
        raise _wrong(file, f"run {name!r}: {message.getvalue().strip()}", "options of `run`") from error
    (seed,) = arguments.seed
    code = code_version(arguments.method, arguments.dataset)
    return Run(name, seed, tuple(command), buys and f"{buys}-{seed}", code), arguments


def _identified(file: Path, runs: Mapping[str, Run], parsed: Mapping[str, argparse.Namespace]) -> list[Run]:
    """Check the settings of each run, and give it its identity; sellers first."""
    from caml_core.__main__ import TAKES_ALSO, pool_of

    trade = {label for label, one in parsed.items() if "queries_from" in TAKES_ALSO.get(one.method, ())}
    found: dict[str, Run] = {}
    pools: dict[str, Any] = {}
    for run in sorted(runs.values(), key=lambda run: run.buys is not None):
        arguments, sold = parsed[run.label], None
        config = {k: v for k, v in vars(arguments).items() if k not in PLACE} | _checked(file, run, arguments)
        pools[run.label] = pool_of(arguments) if run.label in trade else None
        if run.buys is not None:
            seller = runs.get(run.buys)
            sold = parsed[run.buys] if seller is not None else None
            if seller is None or sold is None or seller.buys or run.buys not in trade:
                raise _wrong(file, f"{run.label!r} buys from {run.buys!r}", "a run in rounds that buys its own labels")
            if sold.dataset != arguments.dataset or run.label not in trade or pools[run.buys] != pools[run.label]:
                same = "two runs in rounds with the same dataset, rho, option, start, query and rounds"
                raise _wrong(file, f"{run.label!r} cannot buy from {run.buys!r}", same)
            config["queries_from"] = found[run.buys].identity
        said = {key: value for key, value in config.items() if value not in (None, []) and value is not False}
        text = json.dumps([said, run.code], sort_keys=True, default=str)
        found[run.label] = dataclasses.replace(run, identity=hashlib.sha256(text.encode()).hexdigest()[:16])
    first = {run.identity: run.label for run in reversed(found.values())}
    for run in found.values():
        if first[run.identity] != run.label:
            raise _wrong(file, f"{first[run.identity]!r} and {run.label!r} are the same run", "each run once")
    return list(found.values())


def _checked(file: Path, run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings of a run with its defaults, refused now if the run would refuse them later."""
    from caml_core.__main__ import ACTIVE_METHODS, settings
    from caml_core.active import Plan

    try:
        found = settings(arguments)
        if arguments.method in ACTIVE_METHODS:
            Plan(method=arguments.method, **found)
    except CamlError as error:
        raise _wrong(file, f"{run.label!r}: {error.what}", error.expected) from error
    return found


def _wrong(file: Path, what: str, expected: str) -> CamlError:
    return CamlError(what=f"{file} {what}", expected=expected, remedy="correct the file; nothing was run")


# ---- identity -----------------------------------------------------------------------------------------------

COMMAND_LINE = {  # of __main__: what they decide stands in the settings
    "parser", "main", "given", "settings", "check_options", "out_file", "pool_of",
}  # fmt: skip
KINDS = {"erm": {"erm"}, "head": {"head"}, "active": {"active", "stacked", "in_rounds", "summed_up", "bought", "_pool"}}
SILENT = {
    "caml_core.errors",
    "caml_core.records",
    "caml_core.store",
    "caml_core.data",
}  # they word, store and look up: they compute nothing


@functools.cache
def code_version(method: str, dataset: str) -> str:
    """Hash (16 hexadecimal digits) of the code that decides what this method finds on this dataset.

    It covers the functions of `caml_core.__main__` that run the method, the module of the dataset, and every module
    of the package that these import, directly or not. Comments, docstrings and layout are left out. So figures,
    chapters, other datasets and other methods can change without a run being made again. Versions of PyTorch and the
    device are in the record of a run, not in its identity: they change last digits, not what a number means.
    """
    from caml_core.__main__ import HEADS

    own = "erm" if method == "erm" else "head" if method in HEADS else "active"
    unused = COMMAND_LINE.union(*KINDS.values()) - KINDS[own]
    waiting, found = ["caml_core.__main__", f"caml_core.data.{dataset}"], {}
    while waiting:
        name = waiting.pop()
        file = Path(__file__).parent.parent / (name.replace(".", "/") + ".py")
        if not name.startswith("caml_core.") or name in found or name in SILENT or not file.exists():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if name == "caml_core.__main__":
            functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            tree.body = [f for f in functions if f.name not in unused and not f.name.startswith("add_")]
        found[name] = repr(_shape(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _shape(node: Any) -> Any:
    """A syntax tree as nested lists, without positions, docstrings and empty fields (which differ among Pythons)."""
    if isinstance(node, list):
        return [_shape(item) for item in node if not (isinstance(item, ast.Expr) and _is_text(item.value))]
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *((name, _shape(value)) for name, value in fields)]
    return node


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# ---- one run ------------------------------------------------------------------------------------------------


def bundles(runs: Sequence[Run], stack: int) -> list[list[Run]]:
    """Tasks of up to `stack` runs that differ in nothing but their seed, where their method can be stacked."""
    from caml_core.stacked import STACKABLE

    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        together = run.seed if stack == 1 or run.command[0] not in STACKABLE else "all"
        alike.setdefault((run.name, *_seeds(run.command, together)), []).append(run)
    return [same[i : i + stack] for same in alike.values() for i in range(0, len(same), stack)]


def _seeds(command: Sequence[str], *seeds: object) -> list[str]:
    """The command with these seeds."""
    i = command.index("--seed")
    return [*command[: i + 1], *map(str, seeds), *command[i + 2 :]]


def execute(
    runs: Sequence[Run],
    folder: Path,
    device: str,
    *bought: Sequence[Record],
    gpus: float = 0,
    checkpoints: str | None = None,
) -> list[Record]:
    """Make the runs of one task, in this process with one thread, or go on with them from their checkpoints.

    Args:
        runs: one, or several seeds that train side by side.
        folder: of the sweep.
        bought: compact records, among them those of the runs whose labels these buy.
        gpus: share of a GPU that the task has, for its records.
        checkpoints: URL to which they are copied, see `caml_core.mirror`.

    Returns:
        For each run its compact record, or `{"failed": why, "log": file}`. Nothing is raised: one bad run must not stop
        the others.
    """
    import torch

    sold = {f"{record['run']}-{record['seed']}": record for part in bought for record in part if "failed" not in record}
    log = folder / f"{runs[0].label}.log"
    threads, argv = torch.get_num_threads(), sys.argv
    found: dict[str, Record] = {}
    try:
        for run in runs:
            if (done := folder / f"{run.label}.json").exists():  # by a worker that was lost before it could say so
                found[run.label] = read_finished(done, run)
            elif run.buys is not None and run.buys not in sold:
                found[run.label] = {"failed": f"{run.buys}, whose labels it buys, has no record", "log": str(log)}
        still = [run for run in runs if run.label not in found]
        if not still:
            return [found[run.label] for run in runs]
        log.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # as many runs side by side as there are cores; and the same sums everywhere
        with open(log, "a", encoding="utf-8") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
            names = ", ".join(run.label for run in still)
            print(f"{names} on {platform.node()}, process {os.getpid()}", flush=True)
            try:
                found |= _make(still, folder, device, sold, gpus, checkpoints)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        why = error.what if isinstance(error, CamlError) else f"{type(error).__name__}: {error}"
        found = {run.label: {"failed": why, "log": str(log)} for run in runs} | found
    finally:
        torch.set_num_threads(threads)
        sys.argv = argv
    return [found[run.label] for run in runs]


def _make(
    runs: Sequence[Run],
    folder: Path,
    device: str,
    sold: Mapping[str, Record],
    gpus: float,
    checkpoints: str | None,
) -> dict[str, Record]:
    from caml_core.__main__ import go_run, parser
    from caml_core.mirror import mirrored
    from caml_core.records import write_records
    from caml_core.store import write_text

    first, several = runs[0], len(runs) > 1
    named = first.identity  # by identity: checkpoints of other settings or code stay untouched
    if several:
        named = hashlib.sha256("".join(run.identity for run in runs).encode()).hexdigest()[:16]
    own = folder / "unfinished" / named
    command = [*_seeds(first.command, *(run.seed for run in runs)), *(["--stack"] if several else [])]
    place = ["--device", device, "--out", f"{first.label}.json"]
    sys.argv = ["caml_core", "run", *command, *(["--queries-from", f"{first.buys}.json"] if first.buys else []), *place]
    arguments = parser().parse_args(["run", *command, "--device", device, "--out", str(own / "run.json")])
    here = code_version(arguments.method, arguments.dataset)
    if here != first.code:
        raise CamlError(
            what=f"{platform.node()} has another version of the code ({here}, not {first.code})",
            expected="the same caml_core on every machine of the cluster",
            remedy="install it there again",
        )
    found, start = {}, _now()
    with mirrored(own, f"{checkpoints}/unfinished/{named}") if checkpoints else contextlib.nullcontext():
        if first.buys is not None:
            arguments.queries_from = own / "bought.json"
            write_records(arguments.queries_from, [sold[run.buys] for run in runs if run.buys])
        made = go_run(arguments)
        when = {"start": start, "end": _now(), "gpus": gpus}
        for run, record in zip(runs, made):
            record = {"run": run.name, "identity": run.identity, "code": run.code, **record}
            record["provenance"] = record["provenance"] | when
            if run.buys is not None:
                record["config"] = record["config"] | {"queries_from": run.buys}
            write_text(folder / f"{run.label}.json", json.dumps([record]) + "\n")
            found[run.label] = compact(record)
        shutil.rmtree(own, ignore_errors=True)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def compact(record: Record) -> Record:
    """What tables and figures need: no hundred groups, no history of epochs, bought rows once. Twice is once."""
    metrics = {k: v for k, v in record["metrics"].items() if k not in ("groups", "empty_groups")}
    if "rounds" not in record:  # a head's settings as used differ from its config only where they were scaled
        unsaid = ("history",) if record["config"].get("scaled") else ("history", "settings")
        return {**{k: v for k, v in record.items() if k not in unsaid}, "metrics": metrics}
    keep = ["round", "labels", "batch_minority", "fit_start", "fit_queried"]
    if "queries_from" not in record["config"]:
        keep.append("queried")
    rounds = [
        {k: v for k, v in r.items() if k in keep} | {k: r["metrics"][k]["value"] for k in ("minority", "average")}
        for r in record["rounds"]
        if "metrics" in r
    ]
    return {**record, "metrics": metrics, "rounds": rounds or record["rounds"]}  # compact already


def read_finished(file: Path, run: Run) -> Record:
    """The compact record of a finished run.

    Raises:
        CamlError: the file is broken, or belongs to other settings or another version of the code.
    """
    from caml_core.records import read_records

    (record,) = read_records(file)
    _check_identity(file, record, run)
    return compact(record)


def _check_identity(file: Path, record: Record, run: Run) -> None:
    if record.get("identity") == run.identity:
        return
    other = "other settings" if record.get("code") == run.code else "another version of the code"
    raise CamlError(
        what=f"{file} has a record of {run.label!r} made with {other} (commit {record['provenance']['commit']})",
        expected=f"records of these runs and of code version {run.code}",
        remedy="choose another --out, or move that file away, to make the runs again; "
        "or go back to the commit and the list that made it",
    )


# ---- all runs -----------------------------------------------------------------------------------------------


def sweep(
    file: Path,
    out: Path,
    *,
    address: str = "local",
    device: str = "auto",
    gpus_per_run: float | None = None,
    stack: int = 1,
    checkpoints: str | None = None,
) -> list[Record]:
    """Make the runs of `file` that have no record yet, and write all records to `out`.

    Args:
        file: the list of runs.
        out: JSON list of compact records; its folder `out`.work holds finished runs, logs and checkpoints.
        address: "local": Ray in this process and its workers, or one run after the other where Ray is not installed;
            "serial": one after the other; else the address of a Ray cluster (HOST:PORT, or auto).
        device: of each run: auto, cpu or cuda.
        gpus_per_run: share of a GPU that Ray reserves for a task; default 1 where there is one and `device` allows it.
        stack: up to so many seeds of a setting are one task and train side by side (`caml_core.stacked`). They find
            what they find alone up to rounding, so this is no more a part of a run's identity than the device is.
        checkpoints: folder or URL to which those of unfinished runs are copied, for machines that share no disk, see
            `caml_core.mirror`.

    Returns:
        The compact records, in the order of the list.

    Raises:
        CamlError: before anything runs, whatever is wrong with the file, the folder, the device, the address, the URL;
            at the end, the runs that failed.
    """
    from caml_core.mirror import check_url
    from caml_core.published import summary
    from caml_core.records import read_records, write_records

    runs, folder = expand(file), out.with_name(out.name + ".work")
    done: dict[str, Record] = {}
    stored = {f"{r.get('run')}-{r['seed']}": r for r in (read_records(out) if out.exists() else [])}
    for run in runs:
        if (finished := folder / f"{run.label}.json").exists():
            done[run.label] = read_finished(finished, run)
        elif run.label in stored:
            _check_identity(out, stored[run.label], run)
            done[run.label] = stored[run.label]
    if strange := sorted(stored.keys() - {run.label for run in runs}):
        raise CamlError(
            what=f"{out} has records of runs that {file} does not list: {', '.join(strange[:3])} ...",
            expected="records of this list only, since the file is written again",
            remedy="choose another --out",
        )
    open_runs = [run for run in runs if run.label not in done]
    if stack < 1:
        raise CamlError(what=f"--stack {stack}", expected="at least 1 seed a task", remedy="correct the option")
    if checkpoints is not None and open_runs:
        checkpoints = check_url(checkpoints)
    _check_disk(folder, open_runs)
    print(f"{len(runs)} runs, {len(done)} of them finished, {len(open_runs)} to do", flush=True)
    failed: dict[str, str] = {}
    try:
        start = time.perf_counter()
        tasks = bundles(open_runs, stack)
        for run, outcome in _engine(tasks, done, folder, device, gpus_per_run, address, checkpoints):
            if "failed" in outcome:
                failed[run.label], said = f"{outcome['failed'].splitlines()[0]} (log: {outcome['log']})", "failed"
            else:
                done[run.label], said = outcome, _line(outcome)
            n = len(done) + len(failed)
            left = len(runs) - n
            seconds = (time.perf_counter() - start) / (len(open_runs) - left) * left
            print(f"[{n}/{len(runs)}] {run.label}: {said}; {left} left, {_duration(seconds)}", flush=True)
    finally:
        records = [done[run.label] for run in runs if run.label in done]
        if records:
            write_records(out, records)
    print(f"\n{summary(records, names=list(dict.fromkeys(run.name for run in runs)))}\n\n{out}: {len(records)} records")
    if failed:
        for label, why in failed.items():
            print(f"failed: {label}: {why}", flush=True)
        raise CamlError(
            what=f"{len(failed)} of {len(runs)} runs failed: {', '.join(list(failed)[:5])}",
            expected="a record of every run",
            remedy=f"read their logs in {folder}; the same command makes only these again",
        )
    return records


def _engine(
    tasks: Sequence[Sequence[Run]],
    done: dict[str, Record],
    folder: Path,
    device: str,
    gpus: float | None,
    address: str,
    checkpoints: str | None,
) -> Iterator[tuple[Run, Record]]:
    """Each run with what came of it, in the order in which they finish."""
    from caml_core.device import pick_device

    if gpus is not None and (
        not gpus >= 0 or (gpus > 1 and gpus % 1) or (gpus > 0 and device == "cpu") or (gpus == 0 and device == "cuda")
    ):
        raise CamlError(
            what=f"--gpus-per-run {gpus} with --device {device}",
            expected="a share between 0 and 1, or a whole number; 0 without --device cuda, others without --device cpu",
            remedy="for four runs on a GPU: --gpus-per-run 0.25",
        )
    if not tasks:
        return
    if address == "serial" or (address == "local" and not _ray_is_installed()):
        if gpus and gpus < 1:
            raise CamlError(
                what=f"--gpus-per-run {gpus} where runs are made one after the other",
                expected="Ray, which makes several at a time",
                remedy="pip install 'caml_core[ray]' and no --address serial; or leave --gpus-per-run out",
            )
        place = "cpu" if gpus == 0 else "cuda" if gpus else device
        share = 1 if pick_device(place).type == "cuda" else 0
        for runs in tasks:
            known = [done[run.buys] for run in runs if run.buys in done]
            yield from zip(runs, execute(runs, folder, place, known, gpus=share, checkpoints=checkpoints))
        return
    with _ray(address) as ray:
        there = ray.cluster_resources().get("GPU", 0)
        if gpus is None:
            gpus = 1 if device == "cuda" or (device == "auto" and there) else 0
        if gpus > there:
            raise CamlError(
                what=f"{gpus:g} GPU for each run, and Ray sees {there:g}",
                expected="at least as many GPUs as one run asks for",
                remedy="use --device cpu, or an --address of a cluster with GPUs",
            )
        cores = min(1, gpus) if gpus else 1  # runs that share a GPU may be more than there are cores
        remote = ray.remote(execute).options(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)
        place = "cuda" if gpus else "cpu"
        refs: dict[str | None, Any] = {}
        waiting: dict[Any, Sequence[Run]] = {}
        for runs in tasks:  # sellers come first; Ray hands their records to the buyers and orders the rest
            known = [done[run.buys] for run in runs if run.buys in done]
            sellers = dict.fromkeys(refs[run.buys] for run in runs if run.buys in refs)
            ref = remote.remote(runs, folder.resolve(), place, known, *sellers, gpus=gpus, checkpoints=checkpoints)
            refs |= {run.label: ref for run in runs}
            waiting[ref] = runs
        while waiting:
            (ref,), _ = ray.wait(list(waiting))
            runs = waiting.pop(ref)
            try:
                outcomes = ray.get(ref)
            except ray.exceptions.RayError as error:
                lost = f"its worker was lost {RETRIES + 1} times: {error}"
                outcomes = [{"failed": lost, "log": str(folder / f"{runs[0].label}.log")}] * len(runs)
            for run, outcome in zip(runs, outcomes):
                if "failed" not in outcome and not (folder / f"{run.label}.json").exists():
                    from caml_core.records import write_records  # another machine, another disk

                    write_records(folder / f"{run.label}.json", [outcome])
                yield run, outcome


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Any]:
    """A connection to Ray, or a Ray of our own for "local"; without reports to its makers.

    Raises:
        CamlError: Ray is not installed, or nobody answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray

        own: dict[str, Any] = {}
        if address == "local":
            own = {"include_dashboard": False, "object_store_memory": 10**8}  # what travels is small
        else:
            _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise CamlError(
            what=f"no Ray at {address!r}: {str(error).splitlines()[0]}",
            expected="local, serial, or HOST:PORT of a Ray cluster to which this machine belongs (`ray start`)",
            remedy="check the address, or pip install 'caml_core[ray]'",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray would try for a minute; a closed port answers at once."""
    import socket

    if address != "auto":
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def _ray_is_installed() -> bool:
    try:
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


def _check_disk(folder: Path, runs: Sequence[Run]) -> None:
    """Write the list of what is to do; a full disk, a read-only or a strange folder shows here, not after an hour."""
    from caml_core.store import write_text

    lines = [f"{run.identity}  {run.label}: {' '.join(run.command)}" for run in runs]
    write_text(folder / "to-do.txt", "\n".join(lines) + "\n")
    free = shutil.disk_usage(folder).free
    if free < FREE:
        raise CamlError(
            what=f"{free / 1e6:.0f} MB are free for {folder}",
            expected=f"at least {FREE / 1e6:.0f} MB",
            remedy="free some space, or choose another --out",
        )


def _line(record: Record) -> str:
    from caml_core.published import METRICS

    values = [
        f"{short} {record['metrics'][key]['value']:.1f}"
        for key, short in METRICS.items()
        if record["metrics"][key]["value"] is not None
    ]
    return ", ".join(values) + f", {record['provenance']['wall_seconds']:.0f} s"


def _duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    return f"about {minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"about {minutes} min {whole} s"


# ---- command line -------------------------------------------------------------------------------------------


def add_sweep(commands: Any) -> None:
    """`sweep FILE`: make the runs that a file lists and that have no record yet."""
    from caml_core.__main__ import out_file

    command = commands.add_parser("sweep", help="make the runs that a file lists, each once")
    command.set_defaults(go=go_sweep)
    command.add_argument("file", type=Path, metavar="FILE.toml")
    command.add_argument("--out", type=out_file, metavar="FILE.json", help="default: results/NAME.json")
    command.add_argument("--address", default="local", help="local (default), serial, or HOST:PORT of a Ray cluster")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--gpus-per-run", type=float, metavar="F", help="share of a GPU for each task, e.g. 0.25")
    command.add_argument(
        "--stack", type=int, default=1, metavar="K", help="train up to K seeds of a setting as one task"
    )
    command.add_argument(
        "--checkpoints", metavar="URL", help="keep those of unfinished runs there, too: s3://..., gs://..."
    )


def go_sweep(arguments: argparse.Namespace) -> None:
    out = arguments.out or Path("results") / f"{arguments.file.stem}.json"
    sweep(
        arguments.file,
        out,
        address=arguments.address,
        device=arguments.device,
        gpus_per_run=arguments.gpus_per_run,
        stack=arguments.stack,
        checkpoints=arguments.checkpoints,
    )
