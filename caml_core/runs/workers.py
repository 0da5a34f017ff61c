"""Where the runs of a sweep are made: here, in processes of this machine, or on Ray."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import joblib

from caml_core.device import pick_device
from caml_core.errors import CamlError

RETRIES = 3  # of a run whose worker or machine was lost
Work = Callable[..., Any]  # (run, folder, device, seller, gpus) to a record
Submit = Callable[[Any, Any], "Future[Any]"]  # (run, seller) to the record that will be


@contextlib.contextmanager
def workers(work: Work, folder: Path, address: str, device: str, gpus: float | None) -> Iterator[tuple[Submit, float]]:
    """How to hand out runs, and how many at a time.

    Args:
        address: "local": as many at a time as this machine has cores, or GPUs by Ray; "serial": one after the other;
            else the address of a Ray cluster (HOST:PORT, or auto).
        device: of each run: auto, cpu or cuda.
        gpus: share of a GPU that Ray reserves for a run; default 1 where there is one and `device` allows it.

    Raises:
        CamlError: no such device or address, more GPUs for a run than there are, a share where nobody can share.
    """
    if gpus is not None and (
        not gpus >= 0 or (gpus > 1 and gpus % 1) or (gpus > 0 and device == "cpu") or (gpus == 0 and device == "cuda")
    ):
        raise CamlError(
            what=f"--gpus-per-run {gpus} with --device {device}",
            expected="a share between 0 and 1, or a whole number; 0 without --device cuda, others without --device cpu",
            remedy="for four runs on a GPU: --gpus-per-run 0.25",
        )
    if gpus and gpus < 1 and (address == "serial" or not find_spec("ray")):
        raise CamlError(
            what=f"--gpus-per-run {gpus} where runs are made one after the other",
            expected="Ray, which makes several at a time",
            remedy="pip install 'caml_core[ray]' and no --address serial; or leave --gpus-per-run out",
        )
    here = address in ("local", "serial")
    place = pick_device("cpu" if gpus == 0 else "cuda" if gpus else device).type if here else ""
    if not here or (address == "local" and place == "cuda" and find_spec("ray")):
        with _ray(address) as ray:
            yield _on_ray(ray, work, folder.resolve(), device, gpus), float("inf")
    elif address == "local" and place == "cpu" and joblib.cpu_count() > 1:
        with _processes(work, folder.resolve()) as submit:
            yield submit, float("inf")
    else:
        yield _here(work, folder, place), 1


def _here(work: Work, folder: Path, place: str) -> Submit:
    """In this process, one after the other."""

    def submit(run: Any, seller: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(run, folder, place, seller, 1 if place == "cuda" else 0))
        return future

    return submit


@contextlib.contextmanager
def _processes(work: Work, folder: Path) -> Iterator[Submit]:
    """A process for each run, one a core. Where the system can, they are copies of one that has imported PyTorch."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([work.__module__])
    alive: set[Any] = set()
    over = threading.Event()

    def watched(run: Any, seller: Any) -> Any:
        for _ in range(RETRIES + 1):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(theirs, dict(os.environ), work, run, folder, "cpu", seller))
            if over.is_set():
                break
            process.start()
            alive.add(process)
            theirs.close()
            with contextlib.suppress(EOFError, OSError):  # it was killed
                return ours.recv()
            alive.discard(process)
        return {"failed": f"its worker was lost {RETRIES + 1} times"}

    pool = ThreadPoolExecutor(joblib.cpu_count())
    try:
        yield lambda run, seller: pool.submit(watched, run, seller)
    finally:
        over.set()
        for process in list(alive):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _worker(result: Connection, environment: dict[str, str], work: Work, *call: Any) -> None:
    """Make one run in a process of its own, which ends when the sweep ends."""

    def leave() -> None:
        wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its workers
    threading.Thread(target=leave, daemon=True).start()
    os.environ.update(environment)
    result.send(work(*call))


def _on_ray(ray: Any, work: Work, folder: Path, device: str, gpus: float | None) -> Submit:
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
    remote = ray.remote(work).options(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)
    return lambda run, seller: remote.remote(run, folder, "cuda" if gpus else "cpu", seller, gpus).future()


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Any]:
    """A connection to Ray, or a Ray of our own for "local"; without reports to its makers.

    Raises:
        CamlError: Ray is not installed, or nobody answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {"include_dashboard": False, "object_store_memory": 10**8} if address == "local" else {}
    try:
        import ray

        if ":" in address:  # Ray would try for a minute; a closed port answers at once
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)  # type: ignore[arg-type]
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
