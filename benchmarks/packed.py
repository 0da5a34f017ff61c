"""The packed cache on one core: its first pass over plain Pillow, a shuffled pass over what it packed, and memory.

python benchmarks/packed.py

Images are drawn: JPEGs of 500 x 375 pixels and about 60 kB, as those of Waterbirds. Times are the best of a few turns,
on the clock and on the processor; on a busy machine only the second is worth comparing.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from caml_core.data.images import packed
from caml_core.groups import GroupDataset
from caml_core.loader import batches

N, SIZE, BATCH, REPEATS = 2000, 224, 64, 3


def draw(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = []
    for i in range(N):
        if i % 50 == 0:
            coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        grain = picture + rng.integers(-12, 12, picture.shape)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def plain(files: list[Path]) -> None:
    """Decode and resize, and keep nothing."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240)))


def seconds(work: Callable[[], object]) -> np.ndarray:
    """On the clock, and on the processor."""
    start = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - start


def memory() -> dict[str, float]:
    """MB of this process: its own, and at most so far with everything mapped."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "own": int(lines["RssAnon"].split()[0]) / 1e3,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def show(name: str, value: np.ndarray, unit: str) -> None:
    print(f"{name}: {value[0]:,.2f} {unit} on the clock, {value[1]:,.2f} on the processor")


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CAML_CACHE"] = folder
        files = draw(Path(folder))
        packed(files[:1], SIZE, progress=False)  # imports
        plain(files[:100])
        before = memory()
        decode, first, again = (np.full(2, np.inf) for _ in range(3))
        for _ in range(REPEATS):  # alternating, so that a busy moment hits both
            shutil.rmtree(Path(folder) / "packed")
            decode = np.minimum(decode, seconds(lambda: plain(files)))
            first = np.minimum(first, seconds(lambda: packed(files, SIZE, progress=False)))
            again = np.minimum(again, seconds(lambda: packed(files, SIZE, progress=False)))
        grown = memory()
        show("plain decoding and resizing", N / decode, "images/s")
        show("first pass", N / first, "images/s")
        show("first pass over plain", first / decode, "times")
        show("opening it again", again, "seconds")
        print(
            f"peak memory grew by {grown['peak'] - before['peak']:.0f} MB for {N * 3 * SIZE**2 / 1e6:.0f} MB of pixels"
        )

        x = packed(files, SIZE, progress=False)
        split = GroupDataset(x, torch.arange(N) % 2, torch.arange(N) % 2, class_names="ab", attribute_names="cd")
        generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")

        def epoch() -> None:
            for batch in batches(split, BATCH, device=cpu, generator=generator):
                assert batch.x.dtype == torch.uint8

        def rows() -> None:
            for chosen in torch.randperm(N, generator=generator).split(BATCH):
                x.index_select(0, chosen)

        before = memory()
        passes = [np.min([seconds(work) for _ in range(REPEATS + 1)], axis=0) for work in (epoch, rows)]
        show(f"shuffled batches of {BATCH}", N / passes[0], "images/s")
        show("the same by index_select alone", N / passes[1], "images/s")
        print(f"memory of its own grew by {memory()['own'] - before['own']:.0f} MB")


if __name__ == "__main__":
    main()
