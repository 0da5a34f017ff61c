"""Sweeps: the runs of a list (`caml_core.runs.lists`), on this machine or on a cluster, each made once.

A run is known by its identity (`caml_core.runs.identity`). What has a record with this identity is not run again.
Everything lies in one folder, FILE.json.work: a file of one line for each finished run, a log for each run that was
started, and the checkpoints, from which whoever takes the run up goes on. On several machines this folder should be
one they share; records travel through Ray and arrive in any case.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from caml_core.device import pick_device
from caml_core.errors import CamlError
from caml_core.runs.identity import REVISION, identity
from caml_core.runs.lists import Run, expand
from caml_core.runs.records import Record, compact, read_records, scores, write_records
from caml_core.runs.run import run as run_it
from caml_core.runs.settings import config, of_record
from caml_core.runs.workers import workers
from caml_core.store import write_text


def make(
    run: Run,
    folder: Path,
    device: torch.device,
    seller: Record | None = None,
    *,
    data_dir: Path | None = None,
    place: Sequence[str] = (),
    gpus: float | None = None,
) -> Record:
    """The whole record of a run: read where it is finished, else made, from its checkpoints if there are any.

    Raises:
        CamlError: the record there is another run's; and whatever `caml_core.runs.run.run` raises.
    """
    file = folder / f"{run.label}.json"
    if file.exists():
        (record,) = read_records(file)
        return known(file, record, run)
    own, start = folder / "unfinished" / run.identity, _now()  # no checkpoints of other settings or data
    where: Any = {"device": device, "data_dir": data_dir, "work": own, "place": place}
    found = run_it(run.method, run.data, run.seed, seller=seller, **where)
    if run.content and run.content != found["data"]["content"]:
        raise CamlError(f"the data of {run.label} changed while it was made", "the same data", "run it again")
    record = {"run": run.name, "identity": run.identity, **found}
    record["provenance"] |= {"start": start, "end": _now()} | ({} if gpus is None else {"gpus": gpus})
    record["config"] |= {"queries_from": run.buys} if run.buys else {}
    write_text(file, json.dumps([record]) + "\n")
    shutil.rmtree(own, ignore_errors=True)
    return record


def execute(run: Run, folder: Path, device: str, seller: Record | None = None, gpus: float = 0) -> Record:
    """Make a run of a sweep in this process, with one thread.

    Args:
        folder: of the sweep.
        seller: record of the run whose labels it buys.
        gpus: share of a GPU that it has, for its record.

    Returns:
        Its compact record, or `{"failed": why}`. Nothing is raised: one bad run must not stop the others.
    """
    log, threads = folder / f"{run.label}.log", torch.get_num_threads()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # as many runs side by side as there are cores; and the same sums everywhere
        with open(log, "a", encoding="utf-8") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
            print(f"{run.label} on {platform.node()}, process {os.getpid()}", flush=True)
            place = ["--queries-from", f"{run.buys}.json"] if run.buys else []
            place += ["--device", device, "--out", f"{run.label}.json"]
            try:
                return compact(make(run, folder, pick_device(device), seller, place=place, gpus=gpus))
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        why = error.what if isinstance(error, CamlError) else f"{type(error).__name__}: {error}"
        return {"failed": why}
    finally:
        torch.set_num_threads(threads)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def known(file: Path, record: Record, run: Run) -> Record:
    """The record of a run, with its identity: that of its list today, for it carries it or its settings say so.

    Raises:
        CamlError: it was made with other settings, other data or another revision of the method.
    """
    if record.get("identity") == run.identity:
        return record
    now, same = REVISION[record["method"]], False
    with contextlib.suppress(CamlError):  # settings that exist no more
        its = identity(config(*of_record(record)), run.content, record["seed"], run.seller)
        same = its == run.identity and record["config"].get("queries_from") == run.buys and not run.content
    if same and record.get("revision") == now:
        return {"run": run.name, **record, "identity": run.identity}
    other = "other settings or data" if record.get("revision") == now else "another revision of the method"
    raise CamlError(
        what=f"{file} has a record of {run.label!r} made with {other} (commit {record['provenance']['commit']})",
        expected=f"records of these runs, of revision {now}",
        remedy="choose another --out, or move that file away, to make the runs again; "
        "or go back to the commit and the list that made it",
    )


def sweep(
    file: Path, out: Path, *, address: str = "local", device: str = "auto", gpus_per_run: float | None = None
) -> list[Record]:
    """Make the runs of `file` that have no record yet, and write all records to `out`.

    Args:
        file: the list of runs.
        out: JSON list of compact records; its folder `out`.work holds finished runs, logs and checkpoints.
        address, device, gpus_per_run: where and on what, see `caml_core.runs.workers.workers`.

    Returns:
        The compact records, in the order of the list.

    Raises:
        CamlError: before anything runs, whatever is wrong with the file, the folder, the device, the address, or
            another sweep that is at work there; at the end, the runs that failed.
    """
    from caml_core.runs.tables import summary

    runs, folder, failed = expand(file), out.with_name(out.name + ".work"), dict[str, str]()
    with alone(folder):
        done = _finished(file, runs, out, folder)
        todo = [run for run in runs if run.label not in done]
        print(f"{len(runs)} runs, {len(done)} of them finished, {len(todo)} to do", flush=True)
        start = time.perf_counter()
        try:
            for run, outcome in _outcomes(todo, done, folder, address, device, gpus_per_run):
                if "failed" in outcome:
                    failed[run.label] = f"{outcome['failed'].splitlines()[0]} (log: {folder / run.label}.log)"
                else:
                    done[run.label] = outcome
                    if not (folder / f"{run.label}.json").exists():  # made on another machine, on another disk
                        write_records(folder / f"{run.label}.json", [outcome])
                left = len(runs) - len(done) - len(failed)
                seconds = (time.perf_counter() - start) / (len(todo) - left) * left
                said = "failed" if run.label in failed else scores(outcome)
                about = f"{left} left, about {datetime.timedelta(seconds=round(seconds))}"
                print(f"[{len(runs) - left}/{len(runs)}] {run.label}: {said}; {about}", flush=True)
        finally:
            records = [done[run.label] for run in runs if run.label in done]
            if records:
                write_records(out, records)
    print(f"\n{summary(records, names=list(dict.fromkeys(run.name for run in runs)))}\n\n{out}: {len(records)} records")
    for label, why in failed.items():
        print(f"failed: {label}: {why}", flush=True)
    if failed:
        raise CamlError(
            what=f"{len(failed)} of {len(runs)} runs failed: {', '.join(list(failed)[:5])}",
            expected="a record of every run",
            remedy=f"read their logs in {folder}; the same command makes only these again",
        )
    return records


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else writes below this folder during the block.

    Raises:
        CamlError: somebody does, or the folder cannot be written.
    """
    write_text(folder / "started.txt", f"{_now()}\n")  # what is wrong with the folder shows here, not after an hour
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise CamlError(
            what=f"another command is at work in {folder}",
            expected="one at a time for each --out",
            remedy="wait until it ends, or choose another --out",
        ) from error


def _finished(file: Path, runs: Sequence[Run], out: Path, folder: Path) -> dict[str, Record]:
    """Records of the list that are there already, in the folder or in the table."""
    done: dict[str, Record] = {}
    stored = {f"{r.get('run')}-{r['seed']}": r for r in (read_records(out) if out.exists() else [])}
    for run in runs:
        own = folder / f"{run.label}.json"
        record = read_records(own)[0] if own.exists() else stored.get(run.label)
        if record and run.content and record["data"].get("content") != run.content:
            print(f"{run.label}: the data have changed since; it is made again")
            own.unlink(missing_ok=True)
        elif record:
            done[run.label] = compact(known(own if own.exists() else out, record, run))
    if strange := sorted(stored.keys() - {run.label for run in runs}):
        raise CamlError(
            what=f"{out} has records of runs that {file} does not list: {', '.join(strange[:3])} ...",
            expected="records of this list only, since the file is written again",
            remedy="choose another --out",
        )
    return done


def _outcomes(
    todo: Sequence[Run], done: Mapping[str, Record], folder: Path, *where: Any
) -> Iterator[tuple[Run, Record]]:
    """Each run with what came of it, as they finish; buyers wait for the record of their seller, which `done` gets."""
    waiting, busy = {run.label: run for run in todo}, dict[Any, Run]()
    if not todo:
        return
    with workers(execute, folder, *where) as (submit, slots):
        while waiting or busy:
            for run in list(waiting.values()):
                if len(busy) < slots and (run.buys is None or run.buys in done):
                    busy[submit(run, done.get(run.buys or ""))] = waiting.pop(run.label)
                elif run.buys and run.buys not in {*done, *waiting, *(other.label for other in busy.values())}:
                    yield waiting.pop(run.label), {"failed": f"{run.buys}, whose labels it buys, has no record"}
            for future in concurrent.futures.wait(busy, return_when=concurrent.futures.FIRST_COMPLETED).done:
                run = busy.pop(future)
                try:
                    yield run, future.result()
                except Exception as error:  # of Ray: it has lost the worker too often
                    yield run, {"failed": f"its worker was lost: {error}"}
