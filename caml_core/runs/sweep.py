"""Sweeps: the runs of a list (`caml_core.runs.lists`), on this machine or on a cluster, each made once.

A run is known by its identity (`caml_core.runs.identity`). What has a record with this identity is not run again; what
has a record with another one (other settings, corrected data, a raised revision) is. Everything lies in one folder,
FILE.json.work: a file of one line for each finished run, a log for each run that was started, and the checkpoints, from
which whoever takes the run up goes on. On several machines this folder should be one they share.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import filelock
import joblib
import torch
from tqdm import tqdm

from caml_core.device import pick_device
from caml_core.errors import CamlError
from caml_core.runs.lists import Run, expand
from caml_core.runs.records import Record, compact, read_records, scores, write_records
from caml_core.runs.run import run as run_it
from caml_core.runs.tables import summary
from caml_core.store import write_text

Submit = Callable[[Run, Path, Record | None], "Future[Record]"]


def make(run: Run, folder: Path, device: torch.device, seller: Record | None = None, **where: float) -> Record:
    """The record of a run: read where it is finished, else made, from its checkpoints if there are any."""
    file = folder / f"{run.label}.json"
    if file.exists() and (record := read_records(file)[0]).get("identity") == run.identity:
        return record
    own = folder / "unfinished" / run.identity  # no checkpoints of other settings or data
    found = run_it(run.method, run.data, run.seed, device=device, work=own, seller=seller)
    its = run.known(found["data"]["content"], run.seller)  # another where data of your own have changed meanwhile
    record = {"run": run.name, "identity": its.identity, **found, "provenance": {**found["provenance"], **where}}
    write_text(file, json.dumps([record]) + "\n")
    shutil.rmtree(own, ignore_errors=True)
    return record


def execute(run: Run, folder: Path, seller: Record | None, device: str, gpus: float = 0) -> Record:
    """Make a run of a sweep in this process, on one thread.

    Args:
        folder: of the sweep.
        seller: record of the run whose labels it buys.
        gpus: share of a GPU that it has, for its record.

    Returns:
        Its compact record, or `{"failed": why}`: one bad run must not stop the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as many runs side by side as there are cores; and the same sums everywhere
    with (
        open(folder / f"{run.label}.log", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        print(f"{run.label} on {platform.node()}, process {os.getpid()}", flush=True)
        try:
            return compact(make(run, folder, pick_device(device), seller, gpus=gpus))
        except Exception as error:
            traceback.print_exc()
            return {"failed": error.what if isinstance(error, CamlError) else repr(error)}


def sweep(
    file: Path, out: Path, *, address: str = "local", device: str = "auto", gpus_per_run: float | None = None
) -> list[Record]:
    """Make the runs of `file` that have no record yet, and write all records to `out`.

    Args:
        file: the list of runs.
        out: JSON list of compact records; its folder `out`.work holds finished runs, logs and checkpoints.
        address: "local": as many at a time as this machine has cores, or one on its GPU; "serial": one after the other;
            else a Ray cluster (HOST:PORT, or auto).
        device: of each run: auto, cpu or cuda.
        gpus_per_run: share of a GPU that Ray, on a cluster or here, reserves for a run.

    Returns:
        The compact records, in the order of the list.

    Raises:
        CamlError: before anything runs, whatever is wrong with the file, the folder, the device, the address, or
            another sweep that is at work there; at the end, the runs that failed.
    """
    runs, failed = expand(file), dict[str, str]()
    with alone(out) as folder:
        done = _finished(file, runs, out, folder)
        todo = [run for run in runs if run.label not in done]
        print(f"{len(runs)} runs, {len(done)} of them finished, {len(todo)} to do", flush=True)
        try:
            for run, outcome in tqdm(_outcomes(todo, done, folder, address, device, gpus_per_run), total=len(todo)):
                if "failed" in outcome:
                    failed[run.label] = f"{outcome['failed'].splitlines()[0]} (log: {folder / run.label}.log)"
                else:
                    done[run.label] = outcome
                    if not (folder / f"{run.label}.json").exists():  # made on another machine, on another disk
                        write_records(folder / f"{run.label}.json", [outcome])
                tqdm.write(f"{run.label}: {'failed' if run.label in failed else scores(outcome)}")
        finally:
            records = [done[run.label] for run in runs if run.label in done]
            if records:
                write_records(out, records)
    print(f"\n{summary(records, names=list(dict.fromkeys(run.name for run in runs)))}\n\n{out}: {len(records)} records")
    missing = [run.label for run in runs if run.label not in done]
    for label in missing:
        print(f"failed: {label}: {failed.get(label, 'the run whose labels it buys has no record')}", flush=True)
    if missing:
        remedy = f"read their logs in {folder}; the same command makes only these again"
        what = f"{len(missing)} of {len(runs)} runs failed: {', '.join(missing[:5])}"
        raise CamlError(what, "a record of every run", remedy)
    return records


@contextlib.contextmanager
def alone(out: Path) -> Iterator[Path]:
    """The work folder of `out`, in which nobody else writes during the block.

    Raises:
        CamlError: somebody does, or the folder cannot be written.
    """
    if out.is_dir():
        raise CamlError(f"--out {str(out)!r} is a folder", "a file", "add the name of a file")
    folder = out.with_name(out.name + ".work")
    write_text(folder / "started.txt", "")  # what is wrong with the folder shows here, not after an hour
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            yield folder
    except filelock.Timeout as error:
        what, remedy = f"another command is at work in {folder}", "wait until it ends, or choose another --out"
        raise CamlError(what, "one at a time for each --out", remedy) from error


def _finished(file: Path, runs: Sequence[Run], out: Path, folder: Path) -> dict[str, Record]:
    """Records of the list that are there already, in the folder or in the table."""
    stored = read_records(out) if out.exists() else []
    if strange := sorted({f"{r.get('run')}-{r['seed']}" for r in stored} - {run.label for run in runs}):
        what = f"{out} has records of runs that {file} does not list: {', '.join(strange[:3])} ..."
        raise CamlError(what, "records of this list only, since the file is written again", "choose another --out")
    files = [folder / f"{run.label}.json" for run in runs]
    found = stored + [record for path in files if path.exists() for record in read_records(path)]
    known = {record.get("identity"): record for record in found}
    return {run.label: compact(known[run.identity] | {"run": run.name}) for run in runs if run.identity in known}


def _outcomes(
    todo: Sequence[Run], done: Mapping[str, Record], folder: Path, *where: Any
) -> Iterator[tuple[Run, Record]]:
    """Each run with what came of it, as they finish; buyers wait for the record of their seller."""
    first = [run for run in todo if run.buys is None or run.buys in done]
    if not first:
        return
    with _workers(*where) as submit:
        busy = {submit(run, folder, done.get(run.buys or "")): run for run in first}
        while busy:
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                run = busy.pop(future)
                try:
                    outcome = future.result()
                    if "failed" not in outcome:
                        busy |= {submit(buyer, folder, outcome): buyer for buyer in todo if buyer.buys == run.label}
                except Exception as error:
                    what = f"a worker was lost while {run.label} was made or waited: {error}"
                    remedy = f"see whether memory was short, and the logs in {folder}; the same command goes on"
                    raise CamlError(what, "workers that live until they are done", remedy) from error
                yield run, outcome


@contextlib.contextmanager
def _workers(address: str, device: str, gpus: float | None) -> Iterator[Submit]:
    """How to hand out runs: to processes of this machine, or to Ray."""
    if address == "serial" or (address == "local" and gpus is None):
        place = pick_device(device).type
        n = joblib.cpu_count() if (address, place) == ("local", "cpu") else 1
        context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
        if os.name != "nt":
            context.set_forkserver_preload([__name__])  # workers are copies of a process that has imported PyTorch
        pool = ProcessPoolExecutor(n, context, _begin, (dict(os.environ),))
        try:
            yield lambda run, folder, seller: pool.submit(execute, run, folder, seller, place, float(place == "cuda"))
        finally:
            pool.shutdown(cancel_futures=True)
        return
    with _ray(address) as ray:
        there = ray.cluster_resources().get("GPU", 0)
        share = float(device != "cpu" and there > 0) if gpus is None else gpus
        fits = {"cpu": share == 0, "cuda": share > 0}.get(device, True) and (share <= 1 or share % 1 == 0)
        if not (fits and 0 <= share <= there):  # Ray would wait for them for ever
            what = f"{share:g} GPU for each run, --device {device}, and Ray sees {there:g}"
            expected = "a share between 0 and 1 or a whole number, no more than there are, none with --device cpu"
            raise CamlError(what, expected, "for four runs on a GPU: --gpus-per-run 0.25")
        # Runs that share a GPU may be more than there are cores.
        task = ray.remote(execute).options(num_cpus=min(1, share) or 1, num_gpus=share)
        where = ("cuda" if share else "cpu", share)
        yield lambda run, folder, seller: task.remote(run, folder, seller, *where).future()


def _begin(environment: dict[str, str]) -> None:
    """What a worker does first. It ends with its sweep, also where that was killed."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Any]:
    """A connection to Ray, or for "local" a Ray of our own; without reports to its makers."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        import ray

        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        expected = "local, serial, or HOST:PORT of a Ray cluster to which this machine belongs (`ray start`)"
        remedy = "check the address, or pip install 'caml_core[ray]'"
        raise CamlError(f"no Ray at {address!r}: {str(error).splitlines()[0]}", expected, remedy) from error
    try:
        yield ray
    finally:
        ray.shutdown()
