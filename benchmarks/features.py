"""Features on a CPU: PyTorch by large and by small batches, with memory given back and kept, and ONNX Runtime.

python benchmarks/features.py [--backbone efficientnet_lite0] [--images 512] [--size 64 32]

Each way in a process of its own, since memory that is kept stays kept; processor seconds, so that other programs count
less. The features are checked to be equal to 1e-4 first. Export to ONNX is part of its time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from typing import Literal

import torch

from caml_core.device import keep_memory
from caml_core.features import extract_features
from caml_core.groups import GroupDataset
from caml_core.networks import backbone

Engine = Literal["torch", "onnx"]
CPU = torch.device("cpu")
WAYS: dict[str, tuple[Engine, int | None, bool]] = {
    "PyTorch, 256 at a time": ("torch", 256, False),
    "PyTorch, as many as are fast": ("torch", None, False),
    "the same, memory kept": ("torch", None, True),
    "ONNX Runtime": ("onnx", None, True),
}


def features(job: tuple[argparse.Namespace, Engine, int | None, bool]) -> tuple[float, float, torch.Tensor]:
    """Processor seconds, page faults, and what was computed."""
    arguments, engine, n, keep = job
    torch.set_num_threads(1)
    if keep:
        keep_memory()
    pretrained = None if arguments.backbone == "efficientnet_lite0" else False
    network = backbone(arguments.backbone, 2, pretrained=pretrained)
    shape = (arguments.images, 3, *arguments.size)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(len(x)) % 2
    split = GroupDataset(x, y, y, class_names=("a", "b"), attribute_names=("c", "d"))
    extract_features(network, split.subset(range(16)), CPU, cache=False)
    before = resource.getrusage(resource.RUSAGE_SELF)
    z = extract_features(network, split, CPU, batch_size=n, cache=False, engine=engine).x
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_minflt - before.ru_minflt, z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 32))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, torch.Tensor]]] = {name: [] for name in WAYS}
    for _ in range(arguments.repeats):
        for name, how in WAYS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(features, ((arguments, *how),)))
    print(f"{arguments.backbone}, {arguments.images} images of {tuple(arguments.size)}, one thread")
    expected = found["PyTorch, 256 at a time"][0][2]
    for name, runs in found.items():
        seconds, faults = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
        apart = max(float((run[2] - expected).abs().max()) for run in runs)
        assert apart < 1e-4, name
        print(f"{name:30} {arguments.images / seconds:7.0f} images/s, {faults / 1e3:6.0f}k faults, {apart:.0e} apart")


if __name__ == "__main__":
    main()
