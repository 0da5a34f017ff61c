"""Our functions beside what one would pick instead: maintained packages, authors' loops, plain scripts.

Every line first shows that both do the same, then times them in turn (a round of each, so that a busy moment hits all),
and prints medians in Markdown; a peer that is ahead by more than 5% is marked. Peers that are not installed are named.

    pip install -e ".[peers]"
    python -m benchmarks.peers                                  # all lines
    python -m benchmarks.peers acquisition hypergradients --repeats 5 --out results/peers.json
    python -m benchmarks.peers --small                          # a minute: does everything run and agree?

A new line is a function under `@line` that returns `Line`s; a peer's import stands inside its own function.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.meta_step import ALPHA, by_higher, by_torchopt, deep_copies
from benchmarks.sweep import LIST
from caml_core.acquisition import Pool, acquire
from caml_core.data.images import packed
from caml_core.features import extract_features
from caml_core.groups import GroupDataset
from caml_core.heads import C_GRID, dfr
from caml_core.hsfm import draw_support, hsfm
from caml_core.hsfm_settings import PUBLISHED, Settings, scaled
from caml_core.meta import add_to_gradient, loss_at, meta_gradient, trainable
from caml_core.metrics import group_metrics
from caml_core.networks import backbone
from caml_core.runs.lists import expand
from caml_core.runs.records import provenance, write_records
from caml_core.runs.sweep import execute, sweep
from caml_core.store import cache_dir

VERSIONS = (
    "torch", "torchvision", "numpy", "pillow", "scikit-learn", "onnxruntime", "joblib",
    "scikit-activeml", "torchopt", "higher", "openvino",
)  # fmt: skip
CPU, FLOOR = torch.device("cpu"), "its gradients alone"


class Line(NamedTuple):
    """One row of the table."""

    work: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    agree: Callable[
        [Any, dict[str, Any]], str
    ]  # (our result, theirs by name): how they agree; raises where they do not
    floor: Callable[[], Any] | None = None  # what no way can go below


LINES: dict[str, Callable[[bool], list[Line]]] = {}


def line(make: Callable[[bool], list[Line]]) -> Callable[[bool], list[Line]]:
    """Register a function that makes lines; it is told whether they should be small."""
    LINES[make.__name__] = make
    return make


def same(ours: Any, theirs: dict[str, Any]) -> str:
    """The same rows, in any order."""
    for name, rows in theirs.items():
        assert set(ours) == set(rows), f"{name} takes {len(set(ours) - set(rows))} other rows"
    return "same rows"


# --- acquisition ------------------------------------------------------------------------------------------------------


@line
def acquisition(small: bool) -> list[Line]:
    n, d, classes, labelled, k = (2_000, 32, 4, 50, 20) if small else (50_000, 512, 10, 1_000, 100)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(60, d, generator=g)
    z, known = (
        (centres[torch.randint(60, (m,), generator=g)] + torch.randn(m, d, generator=g)).relu() for m in (n, labelled)
    )
    head = nn.utils.skip_init(nn.Linear, d, classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, d, generator=g) / d**0.5)
        head.bias.zero_()
        pool = Pool(head(z), z, known, head)
    both, y = np.concatenate([z.numpy(), known.numpy()]), np.r_[np.full(n, np.nan), np.zeros(labelled)]

    def ours(name: str) -> Callable[[], list[int]]:
        return lambda: acquire(name, pool, k, torch.Generator().manual_seed(5)).tolist()

    def uncertainty(method: str) -> Callable[[], list[int]]:
        def run() -> list[int]:
            from skactiveml.pool import uncertainty_scores

            return (
                (-uncertainty_scores(pool.logits.softmax(1).numpy(), method=method)).argsort(kind="stable")[:k].tolist()
            )

        return run

    def k_greedy() -> list[int]:
        from skactiveml.pool import k_greedy_center

        return k_greedy_center(both, y, batch_size=k, random_state=0)[0].tolist()

    def mutual_information() -> list[int]:
        from skactiveml.pool import batch_bald

        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            masks = (torch.rand(z.shape, generator=g) >= 0.5 for _ in range(20))
            probabilities = torch.stack([head(z * mask / 0.5).softmax(1) for mask in masks]).numpy()
        return (-batch_bald(probabilities, 1)[0]).argsort(kind="stable")[:k].tolist()

    def seeding() -> list[int]:
        """BADGE as its authors' code does it: distances from the two factors of a gradient, all float64 on NumPy."""
        p = pool.logits.softmax(1).double().numpy()
        a, x = p - np.eye(classes)[p.argmax(1)], z.double().numpy()
        length, generator = (a * a).sum(1) * (x * x).sum(1), torch.Generator().manual_seed(5)
        rows, nearest = [int(length.argmax())], np.full(n, np.inf)
        while len(rows) < k:
            row = rows[-1]
            nearest = np.minimum(nearest, np.maximum(length + length[row] - 2 * (a @ a[row]) * (x @ x[row]), 0))
            nearest[rows] = 0
            weight = nearest.cumsum()
            at = float(torch.rand((), generator=generator, dtype=torch.float64)) * weight[-1]
            rows.append(int(np.searchsorted(weight, at, side="right")))
        return rows

    def typical() -> list[int]:
        from skactiveml.pool import TypiClust
        from sklearn.cluster import MiniBatchKMeans

        how = {"n_init": 1, "random_state": 0}
        query = TypiClust(cluster_algo=MiniBatchKMeans, cluster_algo_dict=how, n_cluster_param_name="n_clusters", k=20)
        unit = both / np.linalg.norm(both, axis=1, keepdims=True)
        return query.query(unit, y, candidates=np.arange(n), batch_size=k).tolist()

    def differ(ours: Any, theirs: dict[str, Any]) -> str:
        assert all(len(set(rows)) == k for rows in (ours, *theirs.values()))
        return "other clusters, so other rows"

    at = f"{k} of {n:,} x {d}"
    lines = [
        Line(f"{name.replace('_', ' ')}, {at}", ours(name), {"scikit-activeml": uncertainty(method)}, same)
        for name, method in (
            ("least_confidence", "least_confident"),
            ("margin", "margin_sampling"),
            ("entropy", "entropy"),
        )
    ]
    return [
        *lines,
        Line(f"core-set, {at}", ours("core_set"), {"scikit-activeml": k_greedy}, same),
        Line(f"BALD, 20 draws, {at}", ours("bald"), {"scikit-activeml": mutual_information}, same),
        Line(f"BADGE, {at}", ours("badge"), {"authors' way in NumPy": seeding}, same),
        Line(f"TypiClust, {at}", ours("typiclust"), {"scikit-activeml, mini-batches": typical}, differ),
    ]


# --- heads on features ------------------------------------------------------------------------------------------------


def features(n: int, rho: float, d: int, seed: int, dtype: torch.dtype = torch.float32) -> GroupDataset:
    """Features of two classes with a loud shortcut: 60 say a, 60 say y more softly."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    a = torch.where(torch.rand(n, generator=g) < rho, y, 1 - y)
    x = torch.randn(n, d, generator=g)
    x[:, :60] += 0.35 * (2 * a - 1)[:, None]
    x[:, 60:120] += 0.18 * (2 * y - 1)[:, None]
    return GroupDataset(x.to(dtype), y, a, class_names=("0", "1"), attribute_names=("0", "1"))


def double_backward(
    train: GroupDataset, val: GroupDataset, start: tuple[Tensor, Tensor], settings: Settings, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """HSFM as a script: autograd through the inner steps, torch's Adam; the edited support and the best head."""
    rows = draw_support(train, settings.support, [seed])[0]
    h, y = train.x[rows].clone().requires_grad_(), train.y[rows]
    head = [part.clone().requires_grad_() for part in start]
    edit = torch.optim.Adam([h], lr=settings.eta)
    last = torch.optim.Adam(head, lr=settings.alpha)
    best, kept = -1.0, [part.detach().clone() for part in head]
    for epoch in range(settings.epochs + 1):
        with torch.no_grad():
            logits = val.x @ head[0].T + head[1]
            worst = group_metrics(logits, val)["worst_group"]["value"]
            losses = F.cross_entropy(logits, val.y, reduction="none")
            of_class = [torch.where(val.y == c)[0] for c in range(len(val.class_names))]
            hard = torch.cat([r[losses[r].topk(settings.hard).indices] for r in of_class])
        if worst > best:
            best, kept = worst, [part.detach().clone() for part in head]
        if epoch == settings.epochs:
            break
        for _ in range(settings.edits):
            w, b = (part.detach().requires_grad_() for part in head)
            for _ in range(settings.steps):
                g = torch.autograd.grad(F.cross_entropy(h @ w.T + b, y), (w, b), create_graph=True)
                w, b = w - settings.alpha * g[0], b - settings.alpha * g[1]
            edit.zero_grad()
            F.cross_entropy(val.x[hard] @ w.T + b, val.y[hard]).backward()
            torch.nn.utils.clip_grad_norm_([h], settings.clip)
            edit.step()
        for _ in range(settings.steps):
            last.zero_grad()
            F.cross_entropy(h.detach() @ head[0].T + head[1], y).backward()
            last.step()
    return h.detach(), kept


@line
def hypergradients(small: bool) -> list[Line]:
    """HSFM, one fit and sixteen, at both widths of the book's backbones."""
    widths, few = ((128,), 2) if small else ((1_280, 2_048), 16)
    return [_hsfm(small, d, tuple(range(n))) for d in widths for n in (1, few)]


def _hsfm(small: bool, d: int, seeds: tuple[int, ...]) -> Line:
    n_train, n_val = (400, 400) if small else (8_000, 2_000)
    train, val = features(n_train, 0.9, d, 0), features(n_val, 0.5, d, 1)
    how = scaled(PUBLISHED["dominoes"], train.x)
    if small:
        how = dataclasses.replace(how, hard=32, epochs=2)
    weight, bias = torch.zeros(2, d), torch.zeros(2)
    weight[1, :120], weight[0, :120] = 0.02, -0.02

    def agree(ours: Any, theirs: dict[str, Any]) -> str:
        """One epoch in float64: rounding in float32 moves single seeds by a point or two of accuracy."""
        precise = [split.with_x(split.x.double()) for split in (train, val)]
        head, once = (weight.double(), bias.double()), dataclasses.replace(how, epochs=1)
        seen: list[Tensor] = []
        hsfm(precise[0], precise[1], *head, once, on_epoch=lambda _, h, *rest: seen.append(h[0].clone()))
        edited, _ = double_backward(precise[0], precise[1], head, once, 0)
        apart = float((seen[-1] - edited).abs().max() / edited.abs().max())
        assert apart < 1e-9, f"edited features are {apart:.1e} apart"
        return f"edited features {apart:.0e} apart after an epoch in float64"

    return Line(
        f"HSFM, {len(seeds)} seeds, {how.epochs} epochs, {n_train:,} x {d:,}",
        lambda: hsfm(train, val, weight, bias, how, seeds=seeds),
        {"a script of double backward": lambda: [double_backward(train, val, (weight, bias), how, s) for s in seeds]},
        agree,
    )


def authors_dfr(val: GroupDataset, seed: int, subsets: int = 10) -> tuple[np.ndarray, float]:
    """DFR as its authors' script does it: choose C on a random half by worst group, then average balanced refits."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    x, y, group = val.x.numpy(), val.y.numpy(), val.group.numpy()

    def balanced(rows: np.ndarray) -> np.ndarray:
        by_group = [rng.permutation(rows[group[rows] == g]) for g in range(val.n_groups)]
        return np.concatenate([r[: min(map(len, by_group))] for r in by_group])

    def fit(rows: np.ndarray, c: float) -> Any:
        return LogisticRegression(solver="liblinear", l1_ratio=1.0, C=c).fit(x[rows], y[rows])

    order = rng.permutation(len(y))
    held, half = np.split(order, 2)
    half, worst = balanced(half), []
    for c in C_GRID:
        right = fit(half, c).predict(x[held]) == y[held]
        worst.append(min(right[group[held] == g].mean() for g in range(val.n_groups)))
    best = C_GRID[int(np.argmax(worst))]
    fits = [fit(balanced(order), best) for _ in range(subsets)]
    return np.mean([np.append(f.coef_[0], f.intercept_[0]) for f in fits], axis=0), best


@line
def reweighting(small: bool) -> list[Line]:
    """DFR on a biased and on a balanced validation split."""
    sizes = ((600, 0.8), (400, 0.5)) if small else ((8_000, 0.9), (2_000, 0.5))
    return [_dfr(n, rho, 130 if small else 1_280) for n, rho in sizes]


def _dfr(n: int, rho: float, d: int) -> Line:
    val, test = features(n, rho, d, 1), features(4_000, 0.5, d, 2)
    if rho == 0.5:  # exactly as many of each group
        val = val.subset(torch.cat([torch.where(val.group == g)[0][: int(val.group_counts.min())] for g in range(4)]))

    def agree(ours: Any, theirs: dict[str, Any]) -> str:
        ((coefficients, _),) = theirs.values()
        right = (test.x.numpy() @ coefficients[:-1] + coefficients[-1] > 0) == test.y.numpy()
        other = 100 * min(right[(test.group == g).numpy()].mean() for g in range(4))
        own = group_metrics(ours.logits(test.x), test)["worst_group"]["value"]
        assert abs(own - other) < 4, f"worst group {own:.1f} and {other:.1f}"
        return f"worst group {own:.1f} and {other:.1f}"

    work = f"DFR, {len(val):,} x {d:,}, {'biased' if rho > 0.5 else 'balanced'}"
    return Line(work, lambda: dfr(val, val), {"authors' way": lambda: authors_dfr(val, 0)}, agree)


# --- networks, pictures, sweeps ---------------------------------------------------------------------------------------


@line
def meta_step(small: bool) -> list[Line]:
    """A step of CAML; the floor is what its 2R + 1 gradients cost alone."""
    name, size, rounds = ("small_cnn", (16, 16), 2) if small else ("resnet18", (64, 32), 5)
    network = backbone(name, 10, pretrained=False).train()
    draws = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (32, 3, *size), dtype=torch.uint8, generator=draws)
        return x, torch.randint(0, 10, (32,), generator=draws)

    final, tasks = batch(), [(batch(), batch()) for _ in range(rounds)]
    loss, theta = loss_at(network, CPU), trainable(network)

    def step(way: Callable[[], list[Tensor]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            network.zero_grad()
            F.cross_entropy(network(final[0]), final[1]).backward()
            c = way()
            add_to_gradient(theta, c)
            return torch.cat([part.flatten() for part in c])

        return run

    def agree(ours: Tensor, theirs: dict[str, Tensor]) -> str:
        apart = max(float((ours - found).norm() / ours.norm()) for found in theirs.values())
        assert apart < 1e-4, f"meta-gradients are {apart:.1e} apart"
        return f"meta-gradients {apart:.0e} apart"

    def floor() -> None:
        for _ in range(2 * rounds + 1):
            network.zero_grad()
            F.cross_entropy(network(final[0]), final[1]).backward()

    peers = {"a deep copy a task": deep_copies, "torchopt": by_torchopt, "higher": by_higher}
    return [
        Line(
            f"CAML's step, {name}, {size[0]} x {size[1]}, R = {rounds}",
            step(lambda: meta_gradient(loss, theta, tasks, alpha=ALPHA)),
            {peer: step(functools.partial(way, network, tasks, CPU)) for peer, way in peers.items()},
            agree,
            floor,
        )
    ]


@line
def encoder(small: bool) -> list[Line]:
    """Features of a pretrained network, from pictures in memory; what has to be set up first counts."""
    n, network = 32 if small else 2_000, backbone("efficientnet_lite0", 2).eval()
    x = torch.randint(0, 256, (n, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 2
    split = GroupDataset(x, y, y, class_names=("0", "1"), attribute_names=("0", "1"))

    @torch.no_grad()
    def plain() -> Tensor:
        return torch.cat([network.features(part) for part in x.split(32)])

    def openvino() -> Tensor:
        import openvino as ov

        body: Any = copy.deepcopy(network)
        body.head = nn.Identity()
        with warnings.catch_warnings(action="ignore"):  # PyTorch's, that its tracing is deprecated
            model = ov.convert_model(body, example_input=x[:2], input=[-1, 3, 64, 32])
        run = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return torch.cat([torch.from_numpy(run(part.numpy())[0].copy()) for part in x.split(32)])

    def agree(ours: Tensor, theirs: dict[str, Tensor]) -> str:
        apart = max(float((ours - z).abs().max()) for z in theirs.values())
        assert apart < 1e-3, f"features are {apart:.1e} apart"
        return f"features at most {apart:.0e} apart"

    ours = lambda: extract_features(network, split, CPU, cache=False, engine="onnx").x  # noqa: E731
    work = f"features of {n:,} pictures, EfficientNet-Lite0, 64 x 32 enlarged to 192 x 96"
    return [Line(work, ours, {"a plain loop, 32 at a time": plain, "OpenVINO": openvino}, agree)]


@line
def pictures(small: bool) -> list[Line]:
    """JPEG files of photographs' size to uint8 pictures of 224 x 224, all of them once."""
    n = 24 if small else 2_000
    folder = Path(tempfile.mkdtemp(dir=cache_dir()))
    rng, files = np.random.default_rng(0), [folder / f"{i}.jpg" for i in range(n)]
    for i, file in enumerate(files):
        if i % 50 == 0:
            coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            drawn = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        Image.fromarray((drawn + rng.integers(-12, 12, drawn.shape)).clip(0, 255).astype(np.uint8)).save(file)

    def ours() -> Tensor:
        for old in (cache_dir() / "packed").glob("*.npy"):
            old.unlink()
        return packed(files, progress=False)

    def by(decode: Callable[[Path], Tensor]) -> Callable[[], Tensor]:
        dataset: Any = Decoded(files, decode)
        return lambda: torch.cat([part.clone() for part in DataLoader(dataset, 64, num_workers=2)])

    def agree(ours: Tensor, theirs: dict[str, Tensor]) -> str:
        apart = {name: float((ours.int() - x.int()).abs().float().mean()) for name, x in theirs.items()}
        assert max(apart.values()) < 1, f"grey levels apart on average: {apart}"
        return f"on average at most {max(apart.values()):.2f} grey levels apart"

    peers = {"DataLoader, 2 workers, Pillow": by(by_pillow), "DataLoader, 2 workers, decode_jpeg": by(by_torchvision)}
    return [Line(f"{n:,} JPEG files of 500 x 375 to 224 x 224", ours, peers, agree)]


class Decoded(Dataset[Tensor]):
    """Pictures as they are read from their files."""

    def __init__(self, files: list[Path], decode: Callable[[Path], Tensor]) -> None:
        self.files, self.decode = files, decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.decode(self.files[i])


def by_pillow(file: Path) -> Tensor:
    with Image.open(file) as image:
        rgb = image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    return torch.from_numpy(np.asarray(rgb).transpose(2, 0, 1).copy())


def by_torchvision(file: Path) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2.functional import center_crop, resize

    pixels = decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB)
    return center_crop(resize(pixels, [256, 256], antialias=True), [224, 224])


@line
def sweeps(small: bool) -> list[Line]:
    """A list of runs on all cores, from the call to the last record."""
    n, epochs = (2, 1) if small else (16, 12)
    folder = Path(tempfile.mkdtemp(dir=cache_dir()))
    file, turns = folder / "list.toml", itertools.count()
    file.write_text(LIST.format(epochs=epochs, seeds=list(range(n))), encoding="utf-8")
    for run in expand(file):  # draws the pictures, once for all
        execute(run, folder / "first", None, "cpu")

    def ours() -> list[Any]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            records = sweep(file, folder / f"{next(turns)}.json", device="cpu")
        return [record["metrics"] for record in records]

    def by_joblib() -> list[Any]:
        work = folder / f"joblib{next(turns)}"
        records: Any = joblib.Parallel(joblib.cpu_count())(
            joblib.delayed(execute)(run, work, None, "cpu") for run in expand(file)
        )
        return [record["metrics"] for record in records]

    def agree(ours: list[Any], theirs: dict[str, list[Any]]) -> str:
        assert all(found == ours for found in theirs.values()), "other numbers"
        return "same numbers, bit for bit"

    return [Line(f"{n} short trainings on all cores", ours, {"joblib": by_joblib}, agree)]


# --- the table --------------------------------------------------------------------------------------------------------


def measure(row: Line, repeats: int) -> dict[str, Any]:
    """Medians of seconds, in turn, after a first run of each that is compared and not counted."""
    start = time.perf_counter()
    runs, missing = {"ours": row.ours, **row.peers}, []
    first = {}
    for name, run in list(runs.items()):
        try:
            first[name] = run()
        except ModuleNotFoundError as error:
            missing.append(f"{name} (no {error.name})")
            del runs[name]
    theirs = {name: result for name, result in first.items() if name != "ours"}
    agree = row.agree(first["ours"], theirs) if theirs else "nobody to compare with"
    if row.floor:
        runs[FLOOR] = row.floor
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {
        "method": "peers",
        "dataset": row.work,
        "seed": 0,
        "config": {
            "repeats": repeats,
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "packages": packages(),
        },
        "metrics": {name: {"value": statistics.median(values)} for name, values in seconds.items()},
        "agree": agree,
        "missing": missing,
        "provenance": provenance(CPU, time.perf_counter() - start, "python -m benchmarks.peers"),
    }


def packages() -> dict[str, str]:
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return {name: installed[name] for name in VERSIONS if name in installed}


def in_markdown(record: dict[str, Any]) -> str:
    """Seconds and how many times ours each peer takes."""
    seconds = {name: found["value"] for name, found in record["metrics"].items()}
    own = seconds.pop("ours")
    cells = [
        f"{name} {value:.3g} s ({value / own:.2g}x{', ahead' if value < own / 1.05 and name != FLOOR else ''})"
        for name, value in seconds.items()
    ]
    return f"| {record['dataset']} | {own:.3g} s | {'; '.join(cells + record['missing'])} | {record['agree']} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="NAME", help=f"of {', '.join(LINES)}; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything agrees")
    parser.add_argument("--out", type=Path, help="JSON file for a record of each line")
    given = parser.parse_args(arguments)
    if unknown := set(given.lines) - set(LINES):
        parser.error(f"no line {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    torch.set_flush_denormal(True)
    print("| work | ours | others | agreement |\n|:--|--:|:--|:--|")
    records = []
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, CAML_CACHE=cache):
        for name in given.lines or LINES:
            for row in LINES[name](given.small):
                records.append(measure(row, given.repeats))
                print(in_markdown(records[-1]), flush=True)
                if given.out:
                    write_records(given.out, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
