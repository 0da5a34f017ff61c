"""How fast birdscapes are drawn: images/s on one core at several sizes, and the speed-up of all cores.

Run: python benchmarks/birdscapes.py
"""

from __future__ import annotations

import time

from joblib import Parallel, cpu_count, delayed

from caml_core.data.birdscapes import CHUNK, draw_scenes


def work(size: int, count: int) -> list:  # type: ignore[type-arg]
    """The first `count` chunks of scenes, the four groups in turn."""
    options = {"size": size, "seed": 0, "split": "train"}
    firsts = [i // 4 * CHUNK for i in range(count)]
    groups = [(i // 2 % 2, i % 2) for i in range(count)]
    return [delayed(draw_scenes)(range(k, k + CHUNK), *group, **options) for k, group in zip(firsts, groups)]


def rate(size: int, count: int, jobs: int) -> float:
    """Images drawn per second by `jobs` processes that have already started."""
    with Parallel(n_jobs=jobs) as parallel:
        parallel(work(16, 2 * jobs))
        start = time.perf_counter()
        parallel(work(size, count))
        return count * CHUNK / (time.perf_counter() - start)


def main() -> None:
    for size, count in ((32, 8), (48, 16), (96, 8), (224, 4)):
        print(f"{size:4d} px: {rate(size, count, 1):6.0f} images/s on one core")
    cores = cpu_count()
    one, all_cores = rate(48, 16, 1), rate(48, 16 * cores, cores)
    print(f"  48 px: {all_cores:6.0f} images/s on {cores} cores, {all_cores / one:.2f} times one core")


if __name__ == "__main__":
    main()
