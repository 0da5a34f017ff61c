"""What a CAML step costs: in plain gradients, against a deep copy for each task, and for many seeds side by side.

python benchmarks/meta_step.py [--device cuda] [--backbone small_resnet] [--size 64 32]

Prints, from one run: the step over (2R + 1) plain gradients; the deep-copy version over ours; exact over first order;
S seeds stacked by vmap, and on CUDA S seeds on S streams, over one seed; on CUDA the peak memory in copies of the
parameters beyond a plain step.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.backbones import backbone
from caml_core.device import autocast, device_name, pick_device
from caml_core.meta import Batch, add_to_gradient, flatten, loss_at, meta_gradient

BATCH, CLASSES, ALPHA, REPEATS = 32, 10, 1e-2, 7


def deep_copies(network: nn.Module, tasks: list[tuple[Batch, Batch]], device: torch.device) -> Tensor:
    """The same first-order meta-gradient as it is often written: a deep copy of the network for each task."""

    def gradient(net: nn.Module, batch: Batch) -> list[Tensor]:
        net.zero_grad()
        with autocast(device):
            loss = F.cross_entropy(net(batch[0]).float(), batch[1])
        loss.backward()
        return [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]

    c = [torch.zeros_like(p) for p in network.parameters()]
    for t, (meta_train, meta_test) in enumerate(tasks):
        adapted = copy.deepcopy(network)
        u = gradient(adapted, meta_train)
        with torch.no_grad():
            for p, up, cp in zip(adapted.parameters(), u, c):
                p.sub_(ALPHA * (up + (cp / t if t else 0)))
        c = [a + b for a, b in zip(c, gradient(adapted, meta_test))]
    return torch.cat([x.flatten() for x in c]) / len(tasks)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="small_resnet")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    options = {"pretrained": False} if arguments.backbone.startswith("resnet") else {}
    network = backbone(arguments.backbone, CLASSES, **options).to(device).train()  # type: ignore[arg-type]
    x = torch.randint(0, 256, (BATCH, 3, *arguments.size), dtype=torch.uint8, device=device)
    y = torch.randint(0, CLASSES, (BATCH,), device=device)
    rounds, seeds = arguments.rounds, arguments.seeds
    tasks = [((x, y), (x, y))] * rounds
    loss = loss_at(network, device)

    def plain() -> None:
        network.zero_grad()
        with autocast(device):
            value = F.cross_entropy(network(x).float(), y)
        value.backward()

    def step(order: str = "first") -> None:
        plain()
        add_to_gradient(network, meta_gradient(loss, flatten(network), tasks, alpha=ALPHA, order=order))  # type: ignore[arg-type]

    def copied() -> None:
        plain()
        add_to_gradient(network, deep_copies(network, tasks, device))

    theta = torch.stack([flatten(backbone(arguments.backbone, CLASSES, seed=s, **options)) for s in range(seeds)])  # type: ignore[arg-type]
    theta = theta.to(device)
    many = [((x.expand(seeds, *x.shape), y.expand(seeds, -1)),) * 2] * rounds
    streams = [torch.cuda.Stream() for _ in range(seeds)] if device.type == "cuda" else []

    def stacked() -> None:
        meta_gradient(loss, theta, many, alpha=ALPHA)  # type: ignore[arg-type]

    def alone() -> None:
        meta_gradient(loss, theta[0], tasks, alpha=ALPHA)

    def streamed() -> None:
        for s, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                meta_gradient(loss, theta[s], tasks, alpha=ALPHA)
        torch.cuda.synchronize()

    jobs: dict[str, Callable[[], None]] = {
        "plain": plain,
        "first": step,
        "copies": copied,
        "exact": lambda: step("exact"),
        "one seed": alone,
        "vmap": stacked,
    }
    if streams:
        jobs["streams"] = streamed
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(REPEATS):  # alternating, so that a busy moment hits all
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{arguments.backbone}, {BATCH} x {tuple(arguments.size)}, R = {rounds}, {device_name(device)}")
    print(f"plain gradient: {1000 * best['plain']:.2f} ms; CAML step: {1000 * best['first']:.1f} ms")
    print(f"step / ((2R + 1) plain gradients), ratio: {best['first'] / ((2 * rounds + 1) * best['plain']):.2f}")
    print(f"deep copy for each task / ours, ratio: {best['copies'] / best['first']:.2f}")
    print(f"exact / first order, ratio: {best['exact'] / best['first']:.2f}")
    for name in ("vmap", "streams"):
        if name in best:
            print(f"{seeds} seeds by {name} / one seed, ratio: {best[name] / best['one seed']:.2f}")
    if device.type == "cuda":
        size = flatten(network).numel() * 4
        peaks = []
        for job in (plain, step):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            job()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        print(f"memory beyond a plain step: {(peaks[1] - peaks[0]) / size:.1f} copies of the parameters")


if __name__ == "__main__":
    main()
