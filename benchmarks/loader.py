"""Batches by one slice against torch's usual way, one example at a time: images a second, and the ratio.

python benchmarks/loader.py
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader

from caml_core.groups import GroupDataset
from caml_core.loader import batches

N, BATCH, REPEATS = 8000, 64, 3


def images_per_second(epoch: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in epoch:
        pass
    return N / (time.perf_counter() - start)


def main() -> None:
    y = torch.arange(N) % 2
    x = torch.randint(0, 256, (N, 3, 64, 32), dtype=torch.uint8)
    split = GroupDataset(x, y, y, class_names="ab", attribute_names="cd")
    cpu, generator = torch.device("cpu"), torch.Generator()
    one_by_one = sliced = 0.0
    for _ in range(REPEATS):  # alternating, so that a busy moment hits both
        one_by_one = max(one_by_one, images_per_second(DataLoader(split, BATCH, shuffle=True)))
        sliced = max(sliced, images_per_second(batches(split, BATCH, device=cpu, generator=generator)))
    print(f"one example at a time: {one_by_one:,.0f} images/s; by slices: {sliced:,.0f} images/s")
    print(f"ratio: {sliced / one_by_one:.1f}")


if __name__ == "__main__":
    main()
