"""What a sweep costs beside its runs: speed-up on the cores of this machine, Ray's tasks, the disk.

OMP_NUM_THREADS=1 python benchmarks/sweep.py [--workers 2] [--runs 8] [--epochs 6] [--tasks 1000] [--records 500]

The runs are small ERM trainings on birdscapes with one thread each. Both sides are timed with everything imported and
the pictures drawn; what Ray needs to start is printed by itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from caml_core.store import write_text
from caml_core.sweep import execute, expand

LIST = """
dataset = "birdscapes"
option = {{ size = 32, n_train = 1000, n_val = 200, n_test = 200 }}
backbone = "small_cnn"
method = "erm"
epochs = {epochs}
seed = {seeds}
[[runs]]
"""


def speed_up(ray: Any, folder: Path, workers: int, n: int, epochs: int) -> None:
    """The same runs one after the other and side by side."""
    file = folder / "list.toml"
    file.write_text(LIST.format(epochs=epochs, seeds=list(range(n))))
    runs = expand(file)
    for run in runs:  # draws the pictures, once for both sides
        execute([run], folder / "first", "cpu")
    task = ray.remote(execute).options(num_cpus=1)
    start = time.perf_counter()
    ray.get([task.remote([run], folder / "warm", "cpu") for run in runs[:workers]])
    print(f"workers ready after      {time.perf_counter() - start:8.1f} s")
    start = time.perf_counter()
    one = [execute([run], folder / "serial", "cpu") for run in runs]
    serial = time.perf_counter() - start
    start = time.perf_counter()
    many = ray.get([task.remote([run], folder / "ray", "cpu") for run in runs])
    parallel = time.perf_counter() - start
    assert [r["metrics"] for (r,) in one] == [r["metrics"] for (r,) in many]
    print(f"{n} runs, one by one      {serial:8.1f} s   {3600 * n / serial:8.0f} runs/hour")
    print(f"{n} runs, {workers} side by side {parallel:8.1f} s   {3600 * n / parallel:8.0f} runs/hour")
    print(f"speed-up on {workers} workers    {serial / parallel:8.2f}   (the same numbers, bit for bit)")


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
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--records", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    start = time.perf_counter()
    ray.init(address="local", num_cpus=arguments.workers, include_dashboard=False, logging_level=logging.ERROR)
    print(f"Ray {ray.__version__} started in {time.perf_counter() - start:8.1f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk(folder, arguments.records)
        overhead(ray, arguments.tasks)
        speed_up(ray, folder, arguments.workers, arguments.runs, arguments.epochs)
    ray.shutdown()


if __name__ == "__main__":
    main()
