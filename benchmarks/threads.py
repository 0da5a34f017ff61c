"""What a training step costs when the machine is idle and beside one busy process, with the package's threads and
without: threads of OpenMP that wait for work spin, and where a core is taken they spin while the others wait for them.

    python benchmarks/threads.py            # minutes; wants an otherwise idle machine
    python benchmarks/threads.py --all      # and the ways not taken

Every way has a process of its own, since the spin count is read when PyTorch is loaded; they take short turns, so that
a machine that becomes slower does so for all. Printed is the median over the turns of ms a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

SPINS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")


KEPT: list[object] = []


class Case(NamedTuple):
    """A network and what it trains on."""

    backbone: str
    size: int  # side of an image, pixels; for vectors their length
    batch: int


CASES = {
    "mlp": Case("mlp", 384, 64),
    "cnn16": Case("small_cnn", 16, 16),
    "cnn28": Case("small_cnn", 28, 32),
    "cnn28b64": Case("small_cnn", 28, 64),
    "cnn48": Case("small_cnn", 48, 64),
    "resnet32": Case("small_resnet", 32, 32),
    "resnet48": Case("small_resnet", 48, 64),
    "resnet18": Case("resnet18", 64, 32),
    "lite0": Case("efficientnet_lite0", 48, 32),
}


class Way(NamedTuple):
    """How many threads compute ("all", "one", "ours" for the package's rule) and their spin count (None: PyTorch's)."""

    threads: str
    spin: str | None


WAYS = {"without": Way("all", None), "with": Way("ours", "")}  # "": the package's
NOT_TAKEN = {
    "one thread": Way("one", None),
    **{f"all, spin {spin}": Way("all", spin) for spin in ("0", "1000", "5000", "20000")},
}


def stepper(case: Case, threads: str) -> Callable[[], None]:
    """A function that does one training step."""
    import torch
    import torch.nn.functional as F

    from caml_core.device import pick_device
    from caml_core.networks import backbone
    from caml_core.threads import threads_for

    pick_device("cpu")
    vectors = case.backbone == "mlp"
    network = backbone(case.backbone, 2, pretrained=False if not vectors else None, n_inputs=case.size).train()
    opt = torch.optim.AdamW(network.parameters())
    g = torch.Generator().manual_seed(0)
    shape = (case.batch, case.size) if vectors else (case.batch, 3, case.size, case.size)
    x = torch.rand(shape, generator=g) if vectors else torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    y = torch.arange(case.batch) % 2
    if threads == "one":
        torch.set_num_threads(1)
    around = threads_for(network, x, case.batch) if threads == "ours" else contextlib.nullcontext()

    def step() -> None:
        loss = F.cross_entropy(network(x), y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()

    around.__enter__()
    KEPT.append(around)  # for the life of the process: one that nobody holds is closed, and gives the threads back
    return step


def work(case: Case, threads: str) -> None:
    """The process of a way: for each line read, so many steps; answers with their ms."""
    step = stepper(case, threads)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print((time.perf_counter() - start) * 1e3 / int(line), flush=True)


@contextlib.contextmanager
def processes(name: str, ways: dict[str, Way]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One process a way, warmed up."""
    started = {}
    for label, way in ways.items():
        env = {key: value for key, value in os.environ.items() if key not in SPINS}
        # Without: PyTorch is loaded before the package has a say.
        first = "import torch; " if way.spin is None else ""
        env |= {"GOMP_SPINCOUNT": way.spin} if way.spin else {}
        program = f"{first}import caml_core, threads; threads.work(threads.CASES[{name!r}], {way.threads!r})"
        env["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        started[label] = subprocess.Popen(
            [sys.executable, "-c", program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    try:
        for process in started.values():
            ask(process, 3)
        yield started
    finally:
        for process in started.values():
            process.terminate()
            process.wait()


def ask(process: subprocess.Popen[str], steps: int) -> float:
    """ms a step."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def turns(started: dict[str, subprocess.Popen[str]], seconds: float, rounds: int) -> dict[str, float]:
    """Median ms a step of each way, in turns of about so many seconds."""
    found: dict[str, list[float]] = {label: [] for label in started}
    for label, process in started.items():
        found[label].append(ask(process, 2))
    for _ in range(rounds):
        for label, process in started.items():
            steps = max(2, round(1e3 * seconds / min(found[label])))
            found[label].append(ask(process, steps))
    return {label: statistics.median(ms[1:]) for label, ms in found.items()}


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """One process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="also the ways not taken")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("idle", "busy"))
    options = parser.parse_args()
    ways = WAYS | (NOT_TAKEN if options.all else {})
    print(f"{os.cpu_count()} cores; ms a step, and in brackets times the idle step without")
    print(f"{'':10s}{'':6s}" + "".join(f"{label:>20s}" for label in ways))
    for name in options.cases:
        base = 0.0
        with processes(name, ways) as started:
            for state in ("idle", "busy"):
                if options.only in (None, state):
                    with busy() if state == "busy" else contextlib.nullcontext():
                        found = turns(started, options.seconds, options.rounds)
                    base = base or found["without"]
                    cells = (f"{ms:11.2f} ({ms / base:5.2f})" for ms in found.values())
                    print(f"{name:10s}{state:6s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
