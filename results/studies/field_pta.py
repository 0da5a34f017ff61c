"""PTA beside fusion with equal weights, exact weights and an oracle's, on digits: results/field_pta.json.

python results/studies/field_pta.py

Three sensors see the same digit, the last of them a wrong one. All arms start from the same first weights and see the
same batches; the strength of alignment is chosen for each arm and world on the held-out set. All seven sets of sensors
are judged on the test set. Then the two gradients of the weights are compared on frozen features, also with a held-out
set of another law than training.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caml_core.field.pta import HIDDEN, WIDTH, Network, Sensors, fit, purify, sense, weight_gradient
from caml_core.runs.records import provenance, write_records

SEEDS, STEPS = [0, 1, 2, 3, 4], 600
TRAIN, HELD, TEST = slice(0, 400), slice(400, 500), slice(900, None)
WORLDS = {"C bad": ("ABC", 1.0), "C half bad": ("ABC", 0.5), "C fine": ("ABC", 0.0), "all equal": ("AAA", 0.0)}
PULLS = (0.1, 1.0, 10.0)
SETS = {
    "".join(n for n, on in zip("ABC", s) if on): torch.tensor(s) for s in product([True, False], repeat=3) if any(s)
}
CODE = WIDTH // 2
KEPT = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(dim=0)  # the signal's share of the variance, by diffusion time


class Diffused(Network):
    """Aligned as in the release by DiffKD (Huang et al., arXiv 2305.15712), its convolutions over tokens left out.

    For each sensor: an autoencoder of the teacher, a map of the student, a judge of how much noise to mix into it, a
    predictor of noise, and a last map.
    """

    LAYERS = (
        *Network.LAYERS,
        *(("encode", WIDTH, CODE), ("decode", CODE, WIDTH), ("student", WIDTH, CODE), ("judge", CODE, 1)),
        *(("noise one", CODE + 1, HIDDEN), ("noise two", HIDDEN, CODE), ("project", CODE, CODE)),
    )

    def noise(self, x: Tensor, time: Tensor) -> Tensor:
        """What of x (R, M, N, CODE) is noise, at times (R, M, N, 1) from 0 to 999."""
        return self.layer("noise two", self.layer("noise one", torch.cat([x, time / 1000], dim=-1)).relu())

    def align(self, z: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        t = teacher[:, None].expand_as(z)
        code = standard(self.layer("encode", t))
        apart = (self.layer("decode", code) - t).square().mean(dim=(2, 3))
        code, student = code.detach(), self.layer("student", z)
        keep = self.layer("judge", student).sigmoid()
        x = keep * student + (1 - keep) * self.drawn(torch.randn, *student.shape[1:])
        for at in (800, 600, 400, 200, 0):  # DDIM
            now, then = KEPT[at], KEPT[at - 200] if at else torch.ones(())
            e = self.noise(x, torch.full_like(keep, at))
            x = (then / now).sqrt() * (x - (1 - now).sqrt() * e) + (1 - then).sqrt() * e
        refined = standard(self.layer("project", x))
        times = (1000 * self.drawn(torch.rand, *keep.shape[1:])).long()
        e, now = self.drawn(torch.randn, *code.shape[1:]), KEPT[times]
        apart = apart + (self.noise(now.sqrt() * code + (1 - now).sqrt() * e, times) - e).square().mean(dim=(2, 3))
        return self.layer("decode", refined), apart + correlation_loss(refined, code)


def standard(x: Tensor) -> Tensor:
    """Batch normalisation of (R, M, N, F), each run and sensor by itself."""
    return (x - x.mean(dim=2, keepdim=True)) / (x.var(dim=2, keepdim=True) + 1e-5).sqrt()


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """DIST (Huang et al., arXiv 2205.10536), (R, M): 1 - correlation within examples, and 1 - within features."""
    s, t = student.softmax(dim=-1), teacher.softmax(dim=-1)
    parts = [F.cosine_similarity(s - s.mean(d, True), t - t.mean(d, True), dim=d) for d in (-1, -2)]
    return 2 - parts[0].mean(dim=-1) - parts[1].mean(dim=-1)


@torch.no_grad()
def accuracy(network: Network, data: Sensors, present: Tensor) -> tuple[Tensor, Tensor]:
    """Percent right (R,) by one set of sensors, bool (M,), for all runs, and of the worst group of examples."""
    right = 100.0 * (network.logits(network.features(data.x), present.expand_as(network.k)).argmax(dim=2) == data.y)
    worst = [min(float(row[g == value].mean()) for value in g.unique()) for row, g in zip(right, data.group)]
    return right.mean(dim=1), torch.tensor(worst)


def alone(train: Sensors, held: Sensors) -> tuple[list[Network], Tensor, Tensor]:
    """A network a sensor, trained on nothing else; their features of both sets, (seeds, 3, N, F)."""
    networks, features = [], []
    for m in range(3):
        network = Network(SEEDS, torch.ones(len(SEEDS), 1))
        off = torch.zeros(len(SEEDS))
        fit(network, one(train, m), one(held, m), off.bool(), off, STEPS)
        networks.append(network)
        with torch.no_grad():
            features.append([network.features(one(part, m).x) for part in (train, held)])
    z, held_z = (torch.cat(parts, dim=1) for parts in zip(*features))
    return networks, z, held_z


def one(data: Sensors, m: int) -> Sensors:
    """What sensor m alone sees."""
    return data._replace(x=data.x[:, m : m + 1])


def arms(exact: Tensor) -> dict[str, tuple[Tensor, bool, bool, bool]]:
    """Of each arm: weights at first (seeds, M), do they learn, is there alignment, by diffusion?"""
    equal, oracle = torch.full_like(exact, 1 / 3), torch.eye(3)[0].expand_as(exact)
    return {
        "fusion, equal": (equal, False, False, False),
        "fusion, learned": (equal, True, False, False),
        "aligned, equal": (equal, False, True, False),
        "aligned, learned": (equal, True, True, False),
        "aligned, exact": (exact, False, True, False),
        "aligned, oracle": (oracle, False, True, False),
        "diffusion, equal": (equal, False, True, True),
        "diffusion, learned": (equal, True, True, True),
    }


def world(name: str) -> list[dict[str, Any]]:
    """Every arm and seed, with every strength of alignment, in two batches of runs."""
    start, (kinds, bad) = time.perf_counter(), WORLDS[name]
    train, held, test = (sense(rows, SEEDS, kinds, bad) for rows in (TRAIN, HELD, TEST))
    networks, z, held_z = alone(train, held)
    path = purify(z, train.y, held_z, held.y)
    records, n = [], len(SEEDS)
    for m, network in enumerate(networks):
        right, worst = accuracy(network, one(test, m), torch.tensor([True]))
        config = {"world": name, "pull": 0.0}
        records += recorded(f"alone, {'ABC'[m]}", config, {"ABC"[m]: right, f"{'ABC'[m]} worst": worst}, start)
    for diffusion in (False, True):
        chosen = {key: arm for key, arm in arms(path[-1]).items() if arm[3] == diffusion}
        runs = [(key, pull) for key, arm in chosen.items() for pull in (PULLS if arm[2] else (0.0,))]
        w = torch.cat([chosen[key][0] for key, _ in runs])
        network = (Diffused if diffusion else Network)(SEEDS * len(runs), w)
        learn = torch.tensor([chosen[key][1] for key, _ in runs]).repeat_interleave(n)
        pull = torch.tensor([pull for _, pull in runs]).repeat_interleave(n)
        again = [Sensors(*(torch.cat([part] * len(runs)) for part in data)) for data in (train, held, test)]
        fit(network, again[0], again[1], learn, pull, STEPS)
        on_held = torch.stack([accuracy(network, again[1], s)[0] for s in SETS.values()]).mean(dim=0).view(-1, n)
        found = {key: [v.view(-1, n) for v in accuracy(network, again[2], s)] for key, s in SETS.items()}
        weights = network.k.detach().softmax(dim=1).view(-1, n, 3)
        for key in chosen:
            tried = [i for i, run in enumerate(runs) if run[0] == key]
            best = max(tried, key=lambda i: float(on_held[i].mean()))
            metrics = {s: both[0][best] for s, both in found.items()}
            metrics |= {f"{s} worst": both[1][best] for s, both in found.items()}
            metrics |= {f"w {'ABC'[m]}": 100 * weights[best, :, m] for m in range(3)}
            records += recorded(key, {"world": name, "pull": runs[best][1]}, metrics, start)
    return records


def recorded(method: str, config: dict[str, Any], metrics: dict[str, Tensor], start: float) -> list[dict[str, Any]]:
    """A record a seed; metrics (seeds,)."""
    where = provenance(torch.device("cpu"), time.perf_counter() - start, "python results/studies/field_pta.py")
    settings = config | {"train": TRAIN.stop, "held": HELD.stop - HELD.start, "steps": STEPS}
    return [
        {
            "method": method,
            "dataset": "digits",
            "seed": seed,
            "config": settings,
            "metrics": {name: {"value": round(float(v[i]), 4)} for name, v in metrics.items()},
            "provenance": where,
        }
        for i, seed in enumerate(SEEDS)
    ]


def gradients() -> list[dict[str, Any]]:
    """Exact weights and those at a fixed head: C bad everywhere, or only away from training, held out or not."""
    records = []
    cases = {"C bad": (1.0, 1.0), "C breaks, seen": (0.0, 1.0), "C breaks, not seen": (0.0, 0.0)}
    for name, (bad, bad_held) in cases.items():
        start = time.perf_counter()
        train, test = sense(TRAIN, SEEDS, bad=bad), sense(TEST, SEEDS)
        held = sense(HELD, SEEDS, bad=bad_held)
        networks, z, held_z = alone(train, held)
        with torch.no_grad():
            test_z = torch.cat([n.features(one(test, m).x) for m, n in enumerate(networks)], dim=1)
        equal = torch.zeros(len(SEEDS), 3)
        _, direct, response = weight_gradient(equal, z, train.y, held_z, held.y)
        cosine = F.cosine_similarity(direct, direct + response, dim=1)
        size = direct.norm(dim=1) / (direct + response).norm(dim=1)
        ways = {"equal": equal.softmax(dim=1)}
        ways |= {
            key: purify(z, train.y, held_z, held.y, exact)[-1]
            for key, exact in (("exact", True), ("fixed head", False))
        }
        for key, w in ways.items():
            held_loss, *_ = weight_gradient(w.log(), z, train.y, held_z, held.y)
            test_loss, *_ = weight_gradient(w.log(), z, train.y, test_z, test.y)
            metrics = {f"w {'ABC'[m]}": 100 * w[:, m] for m in range(3)}
            metrics |= {"held loss": held_loss, "test loss": test_loss, "cosine": cosine, "size": size}
            records += recorded(f"weights, {key}", {"world": name}, metrics, start)
    return records


if __name__ == "__main__":
    found: list[dict[str, Any]] = gradients()
    for name in WORLDS:
        found += world(name)
        print(f"{name}: done", file=sys.stderr)
    write_records(Path(__file__).parent.parent / "field_pta.json", found)
