"""Batches of 100 from a pool of 50,000 with 512 features and 10 classes, 4,500 labelled: seconds of each acquisition,
and what BADGE saves by not forming its N x (C D) gradients.

python benchmarks/acquisition.py
"""

from __future__ import annotations

import time

import torch
from torch import nn

from caml_core.acquisition import ACQUISITIONS, Pool, acquire

N, M, D, C, K = 50_000, 4_500, 512, 10, 100


def main() -> None:
    g = torch.Generator().manual_seed(0)
    head = nn.Linear(D, C)
    z = torch.randn(N, D, generator=g)
    with torch.no_grad():
        pool = Pool(head(z), z, torch.randn(M, D, generator=g), head)
    for name in ACQUISITIONS:
        start = time.perf_counter()
        acquire(name, pool, K, torch.Generator().manual_seed(0))
        print(f"{name:17s} {time.perf_counter() - start:6.2f} s", flush=True)
    formed, used = N * C * D * 4, N * (C + D) * 4
    print(
        f"BADGE's gradients, formed: {formed / 2**30:.2f} GiB; kept as two factors: {used / 2**20:.0f} MiB; ratio",
        end=" ",
    )
    print(f"{formed / used:.1f}")


if __name__ == "__main__":
    main()
