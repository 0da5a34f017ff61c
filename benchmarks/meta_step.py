"""What a CAML step costs: ours, the loop with a deep copy for each task, and packages, over the floor of its gradients.

python benchmarks/meta_step.py [--device cuda] [--backbone resnet18] [--size 64 32] [--rounds 5] [--threads 2]

A step takes 2R + 1 gradients; the floor is as many plain ones of the network itself. All are first checked to give the
same meta-gradient, then timed in turn, so that a busy moment hits all; medians. Packages are timed where installed:
torchopt, higher (`pip install torchopt higher`).
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from caml_core.device import autocast, device_name, pick_device
from caml_core.meta import Batch, add_to_gradient, loss_at, meta_gradient, trainable
from caml_core.networks import backbone

BATCH, CLASSES, ALPHA = 32, 10, 1e-2
Tasks = list[tuple[Batch, Batch]]


def cross_entropy(network: Callable[[Tensor], Tensor], batch: Batch, device: torch.device) -> Tensor:
    with autocast(device):
        return F.cross_entropy(network(batch[0]).float(), batch[1])


def deep_copies(network: nn.Module, tasks: Tasks, device: torch.device) -> list[Tensor]:
    """CAML's first-order meta-gradient from its definition, as it is often written: a copy of the network a task."""

    def gradient(net: nn.Module, batch: Batch) -> list[Tensor]:
        net.zero_grad()
        cross_entropy(net, batch, device).backward()
        return [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]

    c = [torch.zeros_like(p) for p in network.parameters()]
    for t, (meta_train, meta_test) in enumerate(tasks):
        adapted = copy.deepcopy(network)
        u = gradient(adapted, meta_train)
        with torch.no_grad():
            for p, up, cp in zip(adapted.parameters(), u, c):
                p.sub_(ALPHA * (up + (cp / t if t else 0)))
        c = [a + b for a, b in zip(c, gradient(adapted, meta_test))]
    return [part / len(tasks) for part in c]


def by_torchopt(network: nn.Module, tasks: Tasks, device: torch.device) -> list[Tensor]:
    """The same with torchopt's functional optimiser for the inner step."""
    import torchopt

    names, theta = zip(*network.named_parameters())
    scratch = {name: value.clone() for name, value in network.named_buffers()}
    sgd = torchopt.sgd(lr=ALPHA)

    def at(params: tuple[Tensor, ...], batch: Batch) -> Tensor:
        call = lambda x: functional_call(network, (dict(zip(names, params)), scratch), (x,))  # noqa: E731
        return cross_entropy(call, batch, device)

    c = tuple(torch.zeros_like(p) for p in theta)
    for t, (meta_train, meta_test) in enumerate(tasks):
        params = tuple(p.detach().requires_grad_() for p in theta)
        u = torch.autograd.grad(at(params, meta_train), params)
        u = tuple(a + b / t for a, b in zip(u, c)) if t else u
        updates, _ = sgd.update(u, sgd.init(params), inplace=False)
        adapted = torchopt.apply_updates(params, updates, inplace=False)
        adapted = tuple(p.detach().requires_grad_() for p in adapted)
        c = tuple(a + b for a, b in zip(c, torch.autograd.grad(at(adapted, meta_test), adapted)))
    return [part / len(tasks) for part in c]


def by_higher(network: nn.Module, tasks: Tasks, device: torch.device) -> list[Tensor]:
    """The same with higher's stateless copy and differentiable optimiser, to first order."""
    import higher

    c: list[Tensor] = [torch.zeros_like(p) for p in network.parameters()]
    for t, (meta_train, meta_test) in enumerate(tasks):
        opt = torch.optim.SGD(network.parameters(), lr=ALPHA)
        with higher.innerloop_ctx(network, opt, track_higher_grads=False) as (copied, inner):
            bias = sum((p * (part / t)).sum() for p, part in zip(copied.parameters(), c)) if t else 0.0
            inner.step(cross_entropy(copied, meta_train, device) + bias)
            g = torch.autograd.grad(cross_entropy(copied, meta_test, device), list(copied.parameters()))
        c = [a + b for a, b in zip(c, g)]
    return [part / len(tasks) for part in c]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, rounds = pick_device(arguments.device), arguments.rounds
    pretrained = False if arguments.backbone.startswith("resnet") else None
    network = backbone(arguments.backbone, CLASSES, pretrained=pretrained).to(device).train()
    draws = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        x = torch.randint(0, 256, (BATCH, 3, *arguments.size), dtype=torch.uint8, generator=draws)
        return x.to(device), torch.randint(0, CLASSES, (BATCH,), generator=draws).to(device)

    final, tasks = batch(), [(batch(), batch()) for _ in range(rounds)]
    loss, theta = loss_at(network, device), trainable(network)

    def plain() -> None:
        network.zero_grad()
        cross_entropy(network, final, device).backward()

    def floor() -> None:
        for _ in range(2 * rounds + 1):
            plain()

    ways: dict[str, Callable[[], list[Tensor]]] = {
        "ours": lambda: meta_gradient(loss, theta, tasks, alpha=ALPHA),
        "deep copies": lambda: deep_copies(network, tasks, device),
    }
    for package, peer in {"torchopt": by_torchopt, "higher": by_higher}.items():
        if importlib.util.find_spec(package):
            ways[package] = functools.partial(peer, network, tasks, device)
    expected = torch.cat([part.flatten() for part in deep_copies(network, tasks, device)])
    for name, way in ways.items():
        found = torch.cat([part.flatten() for part in way()])
        error = float((found - expected).norm() / expected.norm())
        print(f"{name}: relative difference from the deep copies {error:.1e}")
        assert error < (1e-2 if device.type == "cuda" else 1e-4), name

    def step(way: Callable[[], list[Tensor]]) -> None:
        plain()
        add_to_gradient(theta, way())

    jobs: dict[str, Callable[[], None]] = {"floor": floor}
    jobs |= {name: (lambda way=way: step(way)) for name, way in ways.items()}  # type: ignore[misc]
    jobs["ours, exact"] = lambda: step(lambda: meta_gradient(loss, theta, tasks, alpha=ALPHA, order="exact"))
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(arguments.repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{arguments.backbone}, {BATCH} x {tuple(arguments.size)}, R = {rounds}, {device_name(device)}")
    for name, value in median.items():
        print(f"{name:12} {1000 * value:8.1f} ms, over the floor: {value / median['floor']:.2f}")
    if device.type == "cuda":
        peaks = []
        for job in (plain, jobs["ours"]):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            job()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        size = sum(p.nbytes for p in theta)
        print(f"memory beyond a plain step: {(peaks[1] - peaks[0]) / size:.1f} copies of the parameters")


if __name__ == "__main__":
    main()
