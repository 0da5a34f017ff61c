"""Sweeps: the runs of a list (`caml_core.runs.lists`), on this machine or on a cluster, each made once.

What has a record with a run's identity (`caml_core.runs.identity`) is not run again. Everything lies in one folder,
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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import filelock
import joblib
import torch
from tqdm import tqdm

from caml_core.device import pick_device
from caml_core.errors import CamlError
from caml_core.runs.lists import Run, expand
from caml_core.runs.records import Record, compact, read_records, write_records
from caml_core.runs.run import run as run_it
from caml_core.runs.tables import scores, summary
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
    record = {"run": run.name, "identity": its.identity, **found, "provenance": found["provenance"] | where}
    write_text(file, json.dumps([record]) + "\n")
    shutil.rmtree(own, ignore_errors=True)
    return record


def execute(run: Run, folder: Path, seller: Record | None, device: str, gpus: float = 0) -> Record:
    """Make a run in this process, on one thread: its compact record, or `{"failed": why}`, which stops no other."""
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
    file: Path, out: Path, *, address: str = "local", device: str = "auto", gpus_per_run: float = 1
) -> list[Record]:
    """Make the runs of `file` that have no record yet, and write the compact records of all to `out`, a JSON list.

    Args:
        address: "local": as many at a time as this machine has cores, or its GPU has shares; "serial": one after the
            other; else a Ray cluster (HOST:PORT, or auto).
        device: of each run: auto, cpu or cuda, and of that the share `gpus_per_run`.

    Raises:
        CamlError: before anything runs, whatever is wrong; at the end, the runs that failed.
    """
    if not 0 < gpus_per_run <= 1:
        raise CamlError(f"{gpus_per_run:g} GPU for each run", "a share above 0, at most 1", "correct --gpus-per-run")
    runs = expand(file)
    with alone(out) as folder:
        done = _finished(file, runs, out, folder)
        todo = [run for run in runs if run.label not in done]
        print(f"{len(runs)} runs, {len(done)} of them finished, {len(todo)} to do", flush=True)
        try:
            for run, found in tqdm(_outcomes(todo, done, folder, address, device, gpus_per_run), total=len(todo)):
                if "failed" in found:
                    tqdm.write(f"{run.label}: failed: {found['failed'].splitlines()[0]}")
                    continue
                done[run.label] = found
                if not (folder / f"{run.label}.json").exists():  # made on another machine, on another disk
                    write_records(folder / f"{run.label}.json", [found])
                tqdm.write(f"{run.label}: {scores(found)}")
        finally:
            records = [done[run.label] for run in runs if run.label in done]
            if records:
                write_records(out, records)
    print(f"\n{summary(records, names=list(dict.fromkeys(run.name for run in runs)))}\n\n{out}: {len(records)} records")
    if missing := [run.label for run in runs if run.label not in done]:
        what = f"{len(missing)} of {len(runs)} runs failed, or buy from one that did: {', '.join(missing)}"
        raise CamlError(what, "a record of every run", f"read {folder}/*.log; the same command makes only these again")
    return records


@contextlib.contextmanager
def alone(out: Path) -> Iterator[Path]:
    """The work folder of `out`, in which nobody else writes during the block; `CamlError` where somebody does."""
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
    todo: Sequence[Run], done: Mapping[str, Record], folder: Path, address: str, device: str, share: float
) -> Iterator[tuple[Run, Record]]:
    """Each run with what came of it, as they finish; buyers wait for the record of their seller."""
    if not todo:
        return
    workers = _processes if address in ("local", "serial") else _cluster
    with workers(address, device, share) as submit:
        try:
            first = [run for run in todo if run.buys is None or run.buys in done]
            busy = {submit(run, folder, done.get(run.buys or "")): run for run in first}
            while busy:
                future = next(as_completed(busy))
                run, found = busy.pop(future), future.result()
                buyers = [] if "failed" in found else [buyer for buyer in todo if buyer.buys == run.label]
                busy |= {submit(buyer, folder, found): buyer for buyer in buyers}
                yield run, found
        except Exception as error:
            remedy = f"see whether memory was short, and the logs in {folder}; the same command goes on"
            raise CamlError(f"a worker was lost: {error}", "workers that live until they are done", remedy) from error


@contextlib.contextmanager
def _processes(address: str, device: str, share: float) -> Iterator[Submit]:
    """Processes of this machine."""
    place = pick_device(device).type
    gpus, many = (0.0, joblib.cpu_count()) if place == "cpu" else (share, int(1 / share))
    context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload([__name__])  # workers are copies of a process that has imported PyTorch
    pool = ProcessPoolExecutor(many if address == "local" else 1, context, _begin, (dict(os.environ),))
    try:
        yield lambda run, folder, seller: pool.submit(execute, run, folder, seller, place, gpus)
    finally:
        pool.shutdown(cancel_futures=True)


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
def _cluster(address: str, device: str, share: float) -> Iterator[Submit]:
    """The machines of a Ray cluster, each run a task that Ray starts again where one is lost."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray

        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        expected = "local, serial, or HOST:PORT of a Ray cluster to which this machine belongs (`ray start`)"
        remedy = "check the address, or pip install 'caml_core[ray]'"
        raise CamlError(f"no Ray at {address!r}: {str(error).splitlines()[0]}", expected, remedy) from error
    try:
        there = ray.cluster_resources().get("GPU", 0)
        gpus = 0.0 if device == "cpu" or (device == "auto" and not there) else share
        if gpus > there:  # Ray would wait for one for ever
            raise CamlError(f"{gpus:g} GPU for each run, and Ray sees {there:g}", "a GPU", "give --device cpu")
        # Runs that share a GPU may be more than there are cores.
        task: Any = ray.remote(execute).options(num_cpus=gpus or 1, num_gpus=gpus)
        place = "cuda" if gpus else "cpu"
        yield lambda run, folder, seller: task.remote(run, folder, seller, place, gpus).future()
    finally:
        ray.shutdown()
