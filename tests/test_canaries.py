"""Canaries: a tiny run of every family of methods, whose numbers must not change when the code does.

A stored result is known by its settings, its data and the hand-set revision of its family, not by the text of the code.
So code may move freely, and these runs say whether its behaviour moved with it: queried rows, chosen epochs and
accuracies are compared exactly, norms to rounding. A canary that moves is a bug, or a revision to raise:

    python tests/test_canaries.py        # after a revision was raised: writes the numbers again
"""

from __future__ import annotations

import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import toy_split
from second_device import DEVICE, second_device
from torch import Tensor

from caml_core.acquisition import ACQUISITIONS, Pool, acquire
from caml_core.active import run_active
from caml_core.active_hsfm import active_hsfm, batch, round_tasks
from caml_core.comparators import COMPARATORS
from caml_core.dac import dac
from caml_core.data import birdscapes, drawn_digits, spuco_mnist
from caml_core.environments import regrouped
from caml_core.features import extract_features, predict, standardise
from caml_core.groups import GroupDataset, assign_attributes
from caml_core.heads import HEADS
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import HYPERGRADIENTS, HardSet, Select, Settings
from caml_core.hypergradients import Problem, adjoint_in_weights
from caml_core.implicit import hypergradient
from caml_core.last_layer import Head
from caml_core.metrics import group_metrics
from caml_core.networks import Backbone, backbone
from caml_core.pictures import clip as tiny_clip
from caml_core.pictures.space import ClipSpace
from caml_core.pictures.tiny_unclip import load_tiny_unclip
from caml_core.round import METHODS, Plan
from caml_core.training import Erm, train_erm

FILE = Path(__file__).parent / "canaries.json"
CPU = torch.device("cpu")
TOLERANCE = 2e-6  # relative
Numbers = dict[str, Any]

# ---- the package as the canaries call it: a name that changes is followed here, in one line --------------------------


def fitted(network: torch.nn.Module, device: torch.device, **settings: Any) -> Any:
    """ERM in place: history, chosen epoch and rule."""
    train, val, _ = scenes()
    return train_erm(network, train, val, Erm(**settings), seed=3, device=device, progress=False)


def active(plan: Plan, device: torch.device) -> list[Numbers]:
    """The records of a run on scenes, with the norms of every round's network."""
    sizes: list[Any] = []
    records = run_active(
        lambda: backbone("small_cnn", 2, seed=1),
        *scenes(),
        plan,
        seed=1,
        device=device,
        progress=False,
        on_round=lambda _, network, __: sizes.append(norms(network)),
    )
    return [
        {
            "queried": record["queried"],
            "epoch": record["selection"]["epoch"],
            "fit": [record["fit_start"], record["fit_queried"]],
            "accuracy": accuracies(record["metrics"]),
            "norms": size,
        }
        for record, size in zip(records, sizes, strict=True)
    ]


# ---- what they run on ------------------------------------------------------------------------------------------------


@cache
def scenes() -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """Birdscapes of 16 pixels: 160 for training, 80 for validation, 80 to test."""
    return birdscapes.load(rho=0.75, n_train=160, n_val=80, n_test=80, size=16, progress=False)


@cache
def digits() -> tuple[GroupDataset, ...]:
    """A few of the drawn digits, in pairs on coloured grounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_digits, "SIZES", {"train": 400, "test": 200})
        return spuco_mnist.load(digits="drawn", magnitude=0.5, n_train=200, n_val=50, n_test=50, seed=2)


@cache
def vectors(n_classes: int = 2) -> tuple[GroupDataset, ...]:
    """Standardised features: the attribute loud, the label soft, the rest noise; biased training, balanced others."""
    splits = []
    for seed, (n, rho) in enumerate(((240, 0.9), (160, 0.5), (160, 0.5))):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % n_classes
        a = torch.where(torch.rand(n, generator=g) < rho, y, torch.randint(n_classes, (n,), generator=g))
        x = torch.randn(n, 12, generator=g)
        x[torch.arange(n), a] += 2.5
        x[torch.arange(n), n_classes + y] += 1.5
        names = [str(k) for k in range(n_classes)]
        splits.append(GroupDataset(x, y, a, class_names=names, attribute_names=names))
    return standardise(*splits)


@cache
def erm_head() -> tuple[Tensor, Tensor]:
    """A head that leans on the attribute: four steps of gradient descent from zero, float32 (2, 12) and (2,)."""
    train = vectors()[0]
    weight, bias = torch.zeros(2, 12), torch.zeros(2)
    for _ in range(4):
        residual = ((train.x @ weight.T + bias).softmax(1) - torch.eye(2)[train.y]) / len(train)
        weight, bias = weight - residual.T @ train.x, bias - residual.sum(0)
    return weight, bias


# ---- what they look at -----------------------------------------------------------------------------------------------


def norms(what: torch.nn.Module | Tensor | tuple[Tensor, ...] | list[Tensor]) -> list[float]:
    """Of every tensor together: the norm, and the norm under fixed uneven weights, which sees a change of order."""
    tensors = list(what.state_dict().values()) if isinstance(what, torch.nn.Module) else what
    flat = torch.cat([t.detach().cpu().double().flatten() for t in tensors])
    return [float(flat.norm()), float((flat * torch.linspace(0, 1, len(flat), dtype=torch.float64)).norm())]


def accuracies(metrics: Numbers) -> list[float]:
    """Average, worst group and minority accuracy of `group_metrics`, percent."""
    return [metrics[kind]["value"] for kind in ("average", "worst_group", "minority")]


Canary = Callable[[torch.device], Numbers]
CANARIES: dict[str, tuple[str, Canary]] = {}


def canary(family: str) -> Callable[[Canary], Canary]:
    """Register a run; `family` has the revision to raise where it moves for a reason."""

    def keep(run: Canary) -> Canary:
        CANARIES[run.__name__] = family, run
        return run

    return keep


# ---- the runs --------------------------------------------------------------------------------------------------------


@canary("birdscapes, spuco_mnist")
def data(device: torch.device) -> Numbers:
    """Pixels of scenes and digits (their mean: rendering may differ in last digits), groups and their order."""
    numbers: Numbers = {}
    for name, splits in (("scenes", scenes()), ("digits", digits())):
        for part, split in zip(("train", "val", "test"), splits):
            x = split.x.to(device).double().mean(dim=(0, 2, 3)).cpu().tolist()
            numbers[f"{name} {part}"] = {"groups": split.group.tolist(), "colour": x}
    numbers["attributes"] = assign_attributes(np.arange(40) % 4, 4, 0.7, np.random.default_rng(11)).tolist()
    return numbers


@canary("training")
def erm(device: torch.device) -> Numbers:
    """Plain and balanced training of the small CNN."""
    numbers: Numbers = {}
    for balance in (None, "class", "group"):
        network = backbone("small_cnn", 2, seed=0)
        run = fitted(network, device, epochs=3, batch_size=16, lr=3e-3, balance=balance, select="worst_group")
        metrics = group_metrics(predict(network, scenes()[2], device), scenes()[2])
        losses = [epoch["loss"] for epoch in run.history]
        numbers[str(balance)] = {"epoch": run.best_epoch, "accuracy": accuracies(metrics), "norms": norms(network)}
        numbers[str(balance)]["losses"] = losses
    return numbers


@canary("training")
def networks(device: torch.device) -> Numbers:
    """Fresh networks and their features; a step of training where BatchNorm and residual blocks take part."""
    numbers: Numbers = {}
    few = scenes()[2].subset(torch.arange(8))
    for name in ("small_cnn", "small_resnet", "efficientnet_lite0"):
        network = backbone(name, 2, pretrained=False, upscale=2, seed=4)
        numbers[name] = norms(network) + norms(extract_features(network, few, device, cache=False).x)
    for name, n_inputs in (("mlp", 12), ("resnet18", None)):
        numbers[name] = norms(backbone(name, 2, pretrained=False, n_inputs=n_inputs, seed=4))
    network = backbone("small_resnet", 2, seed=4)
    fitted(network, device, epochs=1, batch_size=40, lr=1e-3)
    return {**numbers, "trained": norms(network)}


def _plan(**change: Any) -> Plan:
    small: Numbers = {"start": 40, "query": 8, "rounds": 2, "epochs": 2, "batch_size": 16, "lr": 1e-3, "alpha": 0.02}
    return Plan(**{**small, "select": "average", **change})


@canary("active")
def active_plain(device: torch.device) -> Numbers:
    """The methods that train plainly on what was bought."""
    return {m: active(_plan(method=m, acquisition="entropy"), device) for m in ("append", "balanced", "groupdro")}


@canary("active")
def active_all(device: torch.device) -> Numbers:
    """The methods with a first training or with all labels."""
    return {method: active(_plan(method=method, rounds=1), device) for method in ("jtt", "erm_all")}


@canary("caml")
def active_meta(device: torch.device) -> Numbers:
    """Up-weighting, independent tasks and CAML's cumulative bias, to first order."""
    return {method: active(_plan(method=method), device) for method in ("upweight", "mldg", "caml")}


@canary("caml")
def active_exact(device: torch.device) -> Numbers:
    """CAML's exact meta-gradient, and two inner steps under AdamW."""
    return {
        "exact": active(_plan(method="caml", order="exact", epochs=1, acquisition="margin"), device),
        "two": active(_plan(method="caml", inner_steps=2, epochs=1, optimizer="adamw", select="minority"), device),
    }


@canary("acquisition")
def acquisitions(device: torch.device) -> Numbers:
    """The rows that every rule asks for, by itself and in the loop."""
    train, val, _ = vectors(3)
    head = torch.nn.Linear(12, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 12) + torch.eye(3, 12).roll(3, 1))
        head.bias.zero_()
        pool = Pool(head(train.x), train.x, val.x[:30], head)
    rows = {name: acquire(name, pool, 12, torch.Generator().manual_seed(6)).tolist() for name in ACQUISITIONS}
    plan = _plan(method="append", epochs=1, rounds=1, start=30)
    loop = {name: active(Plan(**{**vars(plan), "acquisition": name}), device)[1]["queried"] for name in ACQUISITIONS}
    return {"rows": rows, "loop": loop}


@canary("acquisition")
def slow_dynamics(device: torch.device) -> Numbers:
    """The rows that DIAL asks for in the loop, and what follows from them."""
    return {"append": active(_plan(method="append", acquisition="dial", epochs=3), device)}


@canary("heads")
def heads(device: torch.device) -> Numbers:
    """Every head on features of two classes, with few epochs and short grids; two of them on three classes."""
    short: Numbers = {
        "erm-head": {"epochs": 3},
        "dfr": {"c_grid": (1.0, 0.1), "subsets": 3},
        "balanced-head": {"epochs": 12},
        "jtt-head": {"first_epochs": 2, "upweights": (5, 20), "epochs": 8},
        "gdro-head": {"epochs": 12},
        "afr": {"gammas": (4, 12), "pulls": (0.0, 1.0), "epochs": 5},
    }
    numbers: Numbers = {}
    for n_classes, names in ((2, HEADS), (3, ("dfr", "gdro-head"))):
        train, val, test = vectors(n_classes)
        for name in names:
            takes = inspect.signature(HEADS[name]).parameters
            how = {key: value for key, value in {"seed": 7, "device": device}.items() if key in takes}
            head = HEADS[name](train, val, **how, **short[name])
            metrics = group_metrics(head.logits(test.x), test)
            numbers[f"{name}, {n_classes} classes"] = {
                "chosen": {key: value for key, value in head.chosen.items() if key != "rule"},
                "accuracy": accuracies(metrics),
                "norms": norms((head.weight, head.bias)),
            }
    return numbers


@canary("reweight, crt, leia, self, evals, neurontune")
def comparators(device: torch.device) -> Numbers:
    """Every comparator with a short grid, by labelled groups and by inferred ones; two of them on three classes."""
    short: Numbers = {
        "leia": {"ranks": (1, 3), "gammas": (2, 5), "steps": (5, 20)},
        "self": {"early": (1, 2), "sizes": (10, 30)},
        "evals": {"sizes": (8, 15), "c_grid": (1.0, 0.1)},
        "neurontune": {"thresholds": (0.0, 0.4)},
    }
    numbers: Numbers = {}
    for n_classes, names in ((2, COMPARATORS), (3, ("leia", "evals"))):
        train, val, test = vectors(n_classes)
        splits = {"labelled": val}
        if n_classes == 2:
            splits["inferred"] = regrouped(val, Head(*erm_head(), {}), "inferred")
        for name, (groups, seen) in itertools.product(names, splits.items()):
            takes = inspect.signature(COMPARATORS[name]).parameters
            how = {key: value for key, value in {"seed": 7, "device": device}.items() if key in takes}
            head = COMPARATORS[name](train, seen, **how, **short.get(name, {}))
            numbers[f"{name}, {n_classes} classes, {groups}"] = {
                "chosen": {key: value for key, value in head.chosen.items() if key != "rule"},
                "accuracy": accuracies(group_metrics(head.logits(test.x), test)),
                "norms": norms((head.weight, head.bias)),
            }
    return numbers


class Colours(torch.nn.Module):
    """Six maps of a picture, more and less than grey in each channel: (B, 3, H, W) to (B, 6, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], dim=1)


@canary("dac")
def decompose(device: torch.device) -> Numbers:
    """DaC on noisy pictures: heat maps, masks, combined pictures, the last layer. Masks hang on the order of pixels, so
    the network is one whose maps no rounding can reorder."""
    body = torch.nn.Sequential(Colours(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = Backbone(body, 6, 2)
    splits = [toy_split(n, seed, rho, size=8) for seed, (n, rho) in enumerate(((200, 0.9), (120, 0.5), (120, 0.5)))]
    train, val, test = (extract_features(network, split, device, cache=False) for split in splits)
    head = dac(network, splits[0], train, val, seed=8, device=device, alphas=(3.0, 10.0), pictures=40, epochs=8)
    metrics = group_metrics(head.logits(standardise(train, test)[1].x), test)
    chosen = {key: value for key, value in head.chosen.items() if key != "rule"}
    return {"chosen": chosen, "accuracy": accuracies(metrics), "norms": norms((head.weight, head.bias))}


def _settings(**change: Any) -> Settings:
    small: Numbers = {"support": 8, "steps": 3, "alpha": 1e-2, "eta": 0.1, "edits": 2, "hard": 8, "epochs": 3}
    return Settings(**{**small, **change})


def _edited(device: torch.device, *, seeds: tuple[int, ...] = (0, 1), **change: Any) -> Numbers:
    train, val, _ = vectors()
    edits = hsfm(train, val, *erm_head(), _settings(**change), seeds=seeds, device=device)
    return {
        "rows": edits.rows.tolist(),
        "epoch": edits.epoch.tolist(),
        "accuracy": edits.average.cpu().tolist(),
        "norms": norms((edits.weight, edits.bias)) + norms(edits.after) + norms(edits.loss),
    }


@canary("hsfm")
def feature_edits(device: torch.device) -> Numbers:
    """HSFM with every hard set, rule for the epoch and optimiser of edits; a support set beyond the Gram matrix."""
    numbers = {name: _edited(device, hard_set=name) for name in get_args(HardSet)}
    numbers |= {name: _edited(device, select=name) for name in get_args(Select)}
    return {
        **numbers,
        "sgd": _edited(device, edit_optimizer="sgd"),
        "large support": _edited(device, support=60, seeds=(2,)),
    }


@canary("hsfm")
def hypergradients(device: torch.device) -> Numbers:
    """Every way to the hypergradient, on two problems with and without weights of the hard set; and a run of each."""
    g = torch.Generator().manual_seed(9)
    size = (2, 10, 6), (2, 14, 6), (2, 3, 6), (2, 3)
    h, hard, weight, bias = (torch.randn(s, generator=g).to(device) for s in size)
    y, hard_y = (torch.randint(3, (2, n), generator=g).to(device) for n in (10, 14))
    share = torch.rand(2, 14, generator=g).softmax(dim=1).to(device)
    numbers: Numbers = {}
    for name, problem in (
        ("even", Problem(h, y, hard, hard_y, weight, bias)),
        ("shared", Problem(h, y, hard[0], hard_y[0], weight, bias, share)),
    ):
        answers: dict[str, Any] = {how: hypergradient(problem, how, alpha=0.3, steps=4) for how in HYPERGRADIENTS}
        answers["in weights"] = adjoint_in_weights(problem, alpha=0.3, steps=4)
        numbers[name] = {how: [norms(part) for part in answer] for how, answer in answers.items()}
    return {**numbers, "runs": {how: _edited(device, hypergradient=how, epochs=2) for how in HYPERGRADIENTS}}


@canary("active_hsfm")
def active_edits(device: torch.device) -> Numbers:
    """Queries as hard sets: one a round with and without the bias that accumulates, and one hard set for all."""
    pool = vectors()[0]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(10))
    sets = list(order[:100].split((40, 20, 20, 20)))
    weight, bias = (part.to(device) for part in erm_head())
    numbers: Numbers = {}
    for form, cumulative in (("rounds", True), ("independent", False), ("one hard set", True)):
        one = form == "one hard set"
        tasks = batch([round_tasks(pool, sets, 6, seed=seed, one_hard_set=one) for seed in (0, 1)])
        there = [type(task)(*(part.to(device) for part in task)) for task in tasks]
        edited = active_hsfm(there, weight, bias, _settings(), cumulative=cumulative)
        numbers[form] = [norms((edited.weight, edited.bias)), norms(edited.support), norms(edited.loss)]
    return numbers


@canary("pictures")
def pictures(device: torch.device) -> Numbers:
    """The tiny CLIP reads scenes, HSFM edits their embeddings on the sphere, the tiny decoder starts to draw two."""
    clip = tiny_clip.load_clip(device=device)
    train, val, _ = (split.with_x(tiny_clip.embed_images(clip, split.x)) for split in scenes())
    space = ClipSpace.fit(train.x)
    train_u, val_u = (split.with_x(space.to(split.x)) for split in (train, val))
    texts = tiny_clip.text_centres(clip, tiny_clip.prompts("bird")[0])
    head = 5 * texts @ space.directions, 5 * texts @ space.mean
    on_device = ClipSpace(space.mean.to(device), space.directions.to(device))
    edits = hsfm(train_u, val_u, *head, _settings(eta=1e-2), device=device, project=on_device.project)
    decode, generator = load_tiny_unclip(device), torch.Generator().manual_seed(1)
    images = decode(train.x[:2], num_inference_steps=2, output_type="pt", generator=generator).images
    return {
        "directions": space.directions.shape[1],
        "read": tiny_clip.zero_shot(clip, train.x, "background").tolist(),
        "epoch": edits.epoch.tolist(),
        "norms": norms(train.x) + norms((edits.weight, edits.bias)) + norms(edits.after) + norms(images),
    }


# ---- the comparison --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def moved(got: Any, want: Any, where: str = "") -> list[str]:
    """The places where two nests of numbers differ: whole numbers at all, others by more than rounding."""
    if isinstance(want, dict) and isinstance(got, dict) and list(got) == list(want):
        return [line for key in want for line in moved(got[key], want[key], f"{where} / {key}")]
    if isinstance(want, list) and isinstance(got, list) and len(got) == len(want):
        return [line for i, (g, w) in enumerate(zip(got, want)) for line in moved(g, w, f"{where} [{i}]")]
    same = got == pytest.approx(want, rel=TOLERANCE) if isinstance(want, float) else got == want
    return [] if same else [f"{where}: {got}, was {want}"]


@pytest.fixture(autouse=True)
def any_size_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of memory asks for addresses, which the second device has not."""
    for name in ("memory", "active", "erm"):
        if hasattr(sys.modules.get(f"caml_core.{name}"), "piece_that_fits"):
            monkeypatch.setattr(f"caml_core.{name}.piece_that_fits", lambda forward, batch_size, *_, **__: batch_size)


def check(name: str, device: torch.device) -> None:
    """Run a canary and compare."""
    family, run = CANARIES[name]
    lines = moved(json.loads(json.dumps(run(device))), json.loads(FILE.read_text("utf-8"))[name])
    assert not lines, f"find the bug, or raise the revision of {family}:\n" + "\n".join(lines[:20])


@pytest.mark.parametrize("name", CANARIES)
def test_canary(name: str) -> None:
    check(name, CPU)


@pytest.mark.parametrize("name", [name for name in CANARIES if name != "data"])
def test_canary_elsewhere(name: str) -> None:
    with second_device():
        check(name, DEVICE)


def test_every_method_has_a_canary() -> None:
    stored = json.loads(FILE.read_text("utf-8"))
    seen = {method for name in stored if name.startswith("active_") for method in stored[name]}
    assert set(METHODS) <= seen | {"caml"}
    assert set(stored) == set(CANARIES)


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    here, rows = torch.arange(6.0).view(3, 2), torch.tensor([2, 0])
    with second_device():
        there, rows_there = here.to(DEVICE), rows.to(DEVICE)
        mixed: list[Callable[[], object]] = [
            lambda: there + here,
            lambda: here @ there.T,
            lambda: torch.cat([there, here]),
            lambda: there.add_(here),
            lambda: here.add_(there),
            lambda: torch.nn.functional.cross_entropy(there, torch.tensor([0, 1, 1])),
            lambda: here[rows_there],
            lambda: there.index_put((rows,), here[:2]),
            lambda: torch.nn.Linear(2, 2)(there),
            lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
            there.numpy,
        ]
        for attempt in mixed:
            with pytest.raises((RuntimeError, TypeError)):
                attempt()
        assert torch.equal(there.cpu(), here), "nothing was changed on the way"
        for fine in (there + torch.tensor(1.0), there[rows], there[rows_there], torch.tensor([1.0], device=DEVICE)):
            assert fine.device == DEVICE
        assert here.copy_(there).device == CPU
        assert there[0].sum().item() == 1
        view = there[1]
        view += 1
        assert there.tolist() == [[0, 1], [3, 4], [4, 5]], "a view shares its numbers"


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {name: run(CPU) for name, (_, run) in CANARIES.items()}
    entries = {
        name: [f"  {json.dumps(key)}: {json.dumps(n)}" for key, n in run.items()] for name, run in numbers.items()
    }
    blocks = [f'"{name}": {{\n' + ",\n".join(lines) + "\n}" for name, lines in entries.items()]
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", "utf-8")
