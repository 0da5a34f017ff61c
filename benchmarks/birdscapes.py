"""How fast birdscapes are drawn: images/s on one core at several sizes, and the speed-up of all cores.

Run: python benchmarks/birdscapes.py
"""

from __future__ import annotations

import time

from joblib import Parallel, cpu_count, delayed

from caml_core.data.birdscapes import BLOCK, Block, draw_block


def blocks(size: int, count: int) -> list[Block]:
    """The first `count` blocks, the four groups in turn."""
    return [Block(size, 0, "train", i // 2 % 2, i % 2, i // 4) for i in range(count)]


def rate(size: int, count: int, jobs: int) -> float:
    """Images drawn per second by `jobs` processes that have already started."""
    with Parallel(n_jobs=jobs) as parallel:
        parallel(delayed(draw_block)(block) for block in blocks(16, 2 * jobs))
        start = time.perf_counter()
        parallel(delayed(draw_block)(block) for block in blocks(size, count))
        return count * BLOCK / (time.perf_counter() - start)


def main() -> None:
    for size, count in ((32, 8), (48, 16), (96, 8), (224, 4)):
        print(f"{size:4d} px: {rate(size, count, 1):6.0f} images/s on one core")
    cores = cpu_count()
    one, all_cores = rate(48, 16, 1), rate(48, 16 * cores, cores)
    print(f"  48 px: {all_cores:6.0f} images/s on {cores} cores, {all_cores / one:.2f} times one core")


if __name__ == "__main__":
    main()
