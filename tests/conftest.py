"""Shared fixtures: a private cache, small image sources in the official layout, and `require`."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from caml_core.data.sources import SOURCES
from caml_core.groups import GroupDataset

REAL_DATA = os.environ.get("CAML_DATA")


def require(condition: object, reason: str) -> None:
    """Skip the test when something it needs is missing; fail instead where CAML_STRICT=1 promises that it is there."""
    if condition:
        return
    if os.environ.get("CAML_STRICT") == "1":
        pytest.fail(f"CAML_STRICT=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests never read or fill the user's cache; they share one of their own for the session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAML_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("CAML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_source(root: Path, name: str, per_class: dict[str, int], seed: int = 0) -> None:
    """Write small parquet files of one image source, laid out as on the Hub: each image a noisy stripe per class."""
    source = SOURCES[name]
    rng = np.random.default_rng(seed)
    for split, count in per_class.items():
        encoded, labels = [], rng.permutation(np.repeat(np.arange(10), count))
        for label in labels:
            pixels = rng.integers(0, 60, source.shape, dtype=np.uint8)
            pixels[2 * label : 2 * label + 4] += 150
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        table = pa.table(
            {
                source.column: pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": pa.array(labels, pa.int64()),
            }
        )
        file = root / source.repository / source.folder / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)


@pytest.fixture
def small_sources(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CAML_DATA with small MNIST, Fashion-MNIST and CIFAR-10 look-alikes; the Hub is out of reach."""
    root = tmp_path / "data"
    for name in SOURCES:
        write_source(root, name, {"train": 60, "test": 30})
    monkeypatch.setenv("CAML_DATA", str(root))
    monkeypatch.setattr("caml_core.store.hub_is_reachable", lambda: False)
    return root


def killed_at_random(job: Callable[[Path, Path], None], work: Path, out: Path, kills: int) -> int:
    """Run `job(work, out)` in a process of its own, again after each SIGKILL, until it ends; how often it was killed.

    It dies a random moment after a checkpoint of `work` was written: in an epoch, between two, in a write.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "caml_core.active", "caml_core.data.sources", "pytest"])
    rng, killed = random.Random(0), 0

    def written() -> int:
        return sum(file.stat().st_mtime_ns for file in work.glob("*.safetensors"))

    while True:
        before, child = written(), context.Process(target=job, args=(work, out))
        child.start()
        while killed < kills and child.is_alive() and written() == before:
            time.sleep(0.002)
        child.join(rng.random() * 0.05 if killed < kills else None)
        if child.exitcode is not None:
            assert child.exitcode == 0
            return killed
        child.kill()
        child.join()
        killed += 1


def toy_split(n: int = 64, seed: int = 0, rho: float = 0.75, size: int = 16) -> GroupDataset:
    """Images whose top half says a and whose bottom half says y, with noise: learnable in a few steps."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randint(0, 100, (n, 3, size, size), generator=g)
    x[:, :, : size // 2] += 120 * a[:, None, None, None]
    x[:, :, size // 2 :] += 120 * y[:, None, None, None]
    return GroupDataset(x.to(torch.uint8), y, a, class_names=("dark", "bright"), attribute_names=("low", "high"))


def own_pictures(folder: Path, names: tuple[str, str] = ("finch", "gull")) -> Path:
    """Forty pictures of two labels and two places, and the labels.csv that lists them."""
    folder.mkdir()
    lines = ["path,y,a"]
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{names[i % 2]},{('forest', 'shore')[i // 2 % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "labels.csv"
