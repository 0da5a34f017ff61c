"""What a sweep costs beside its runs: speed-up on the cores of this machine, Ray's tasks, the disk.

OMP_NUM_THREADS=1 python benchmarks/sweep.py [--runs 8] [--epochs 6] [--tasks 1000] [--records 500]

The runs are small ERM trainings on birdscapes with one thread each: one after the other, in processes, in joblib's
workers, which a reader would take otherwise, and in Ray's. All are timed from the call to the last record, with
everything imported here and the pictures drawn; so what the workers need to start counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib

from caml_core.runs.lists import expand
from caml_core.runs.sweep import execute, sweep
from caml_core.store import write_text

LIST = """
dataset = "birdscapes"
option = {{ size = 32, n_train = 1000, n_val = 200, n_test = 200 }}
backbone = "small_cnn"
method = "erm"
epochs = {epochs}
seed = {seeds}
[[runs]]
"""


def speed_up(ray: Any, folder: Path, n: int, epochs: int) -> None:
    """The same runs one after the other and side by side."""
    file = folder / "list.toml"
    file.write_text(LIST.format(epochs=epochs, seeds=list(range(n))))
    runs, cores = expand(file), joblib.cpu_count()
    for run in runs:  # draws the pictures, once for all
        execute(run, folder / "first", None, "cpu")

    def by_joblib() -> list[Any]:
        work = joblib.Parallel(cores)(joblib.delayed(execute)(run, folder / "joblib", None, "cpu") for run in runs)
        return list(work)

    def by_sweep(address: str) -> list[Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return sweep(file, folder / f"{address}.json", address=address, device="cpu")

    def by_ray() -> list[Any]:
        ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR)
        task = ray.remote(execute).options(num_cpus=1)
        return ray.get([task.remote(run, folder / "ray", None, "cpu") for run in runs])

    ways: dict[str, Callable[[], list[Any]]] = {
        "one by one": lambda: by_sweep("serial"),
        "processes": lambda: by_sweep("local"),
        "joblib": by_joblib,
        "Ray": by_ray,
    }
    first = None
    for name, way in ways.items():
        start = time.perf_counter()
        metrics = [record["metrics"] for record in way()]
        seconds = time.perf_counter() - start
        first = first or metrics
        assert metrics == first, "the same numbers, bit for bit"
        print(f"{n} runs, {name:<12} {seconds:8.1f} s   {3600 * n / seconds:8.0f} runs/hour")


def overhead(ray: Any, n: int) -> None:
    """Empty tasks, collected one by one as a sweep does."""

    @ray.remote(num_cpus=1)
    def nothing() -> None: ...

    ray.get([nothing.remote() for _ in range(10)])
    start = time.perf_counter()
    waiting = [nothing.remote() for _ in range(n)]
    submitted = time.perf_counter() - start
    while waiting:
        _, waiting = ray.wait(waiting)
    seconds = time.perf_counter() - start
    print(f"{n} empty tasks          {seconds:8.2f} s   {n / seconds:8.0f} tasks/s ({n / submitted:.0f}/s to submit)")


def disk(folder: Path, n: int) -> None:
    """A file for each record, written whole and synchronised, then read again."""
    text = json.dumps([{"metrics": list(range(1000))}]) + "\n"
    start = time.perf_counter()
    for i in range(n):
        write_text(folder / "records" / f"run-{i}.json", text)
    written = time.perf_counter() - start
    start = time.perf_counter()
    for file in (folder / "records").glob("*.json"):
        json.loads(file.read_text())
    print(f"a record of {len(text) / 1000:.0f} kB          {1000 * written / n:8.2f} ms to write")
    print(f"                         {1000 * (time.perf_counter() - start) / n:8.2f} ms to find and read")


def main() -> None:
    import ray
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--records", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk(folder, arguments.records)
        speed_up(ray, folder, arguments.runs, arguments.epochs)
        overhead(ray, arguments.tasks)
    ray.shutdown()


if __name__ == "__main__":
    main()
