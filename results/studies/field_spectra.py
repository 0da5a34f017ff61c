"""Target detection in spectra: closed forms, prototypes, adapters, bought labels: results/field_spectra.json.

python results/studies/field_spectra.py [SEED ...]

A seed has its library, 60 source scenes, 8 for every choice (`choose`, by the mean area) and 12 to test. Worlds: sun,
shade and air, or laboratory light (the control). A seed that the file already has is not run again.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from caml_core.device import pick_device, seeded
from caml_core.field.detectors import closed_form, descend, evidence, loss_on, meta_train, pretrain
from caml_core.field.scenes import Scene, draw_materials, draw_scene, given, shots
from caml_core.field.spectra import Adapter, Body, View, Whole, read, view
from caml_core.meta import Batch, meta_gradient
from caml_core.runs.records import provenance, read_records, write_records

OUT = Path(__file__).parent.parent / "field_spectra.json"
SEEDS = (0, 1, 2)
BETAS, RIDGES, READINGS = (0.0, 0.5, 0.8, 1.0), (1e-3, 1e-2, 1e-1), ("raw", "logs")
STEPS = [(0.02, 0), (0.02, 3), (0.1, 3), (0.1, 15)]  # of adaptation: size, number
BUY = 5
Detector = Callable[[int], Tensor]  # number of a scene -> scores (P,)


def areas(score: Tensor, scene: Scene, known: Tensor) -> dict[str, float]:
    """Percent: AUC(Pf, Pd) of all target pixels but the known ones, and of the lit and shaded; AUC(tau, Pd), (tau, Pf).

    The last two are the means of the scores, scaled to [0, 1] in the scene, over target and background.
    """
    keep = torch.ones(len(scene.y), dtype=torch.bool)
    keep[known] = False
    back = scene.y == 0

    def auc(rows: Tensor) -> float:
        return 100 * float(roc_auc_score(scene.y[rows], score[rows]))

    scaled = (score - score[keep].min()) / (score[keep].max() - score[keep].min())
    return {
        "auc": auc(keep),
        "lit": auc(keep & (back | ~scene.shade)),
        "shade": auc(keep & (back | scene.shade)),
        "tau_pd": 100 * float(scaled[keep & ~back].mean()),
        "tau_pf": 100 * float(scaled[keep & back].mean()),
    }


class Study:
    """One seed and one world."""

    def __init__(self, seed: int, world: str) -> None:
        self.seed, self.world, self.start = seed, world, time.perf_counter()
        self.records: list[dict[str, Any]] = []
        self.library, first = draw_materials(30, seed), 10_000 * (seed + 1)
        parts = {"train": range(first, first + 60), "val": range(first + 5000, first + 5008)}
        parts["test"] = range(first + 7000, first + 7012)
        clean = world != "sun, shade and air"
        self.raw = {part: [draw_scene(self.library, n, clean=clean) for n in rows] for part, rows in parts.items()}
        self.read = {
            name: {part: [read(s, self.library, white=white) for s in rows] for part, rows in self.raw.items()}
            for name, white in (("logs", False), ("white", True))
        } | {"raw": self.raw}

    def judge(self, detect: Detector, part: str, k: int = 5, also: Sequence[Tensor] = ()) -> list[dict[str, float]]:
        """`also`: indices in each scene that are not counted either (bought ones)."""
        found = []
        for n, scene in enumerate(self.raw[part]):
            known = torch.cat([given(scene, k), also[n]]) if also else given(scene, k)
            found.append(areas(detect(n).detach(), scene, known))
        return found

    def choose(self, make: Callable[[Any, str, int], Detector], options: Sequence[Any]) -> Any:
        def mean(option: Any) -> float:
            found = self.judge(make(option, "val", 5), "val")
            return sum(f["auc"] for f in found) / len(found)

        return max(options, key=mean)

    def note(self, method: str, found: list[dict[str, float]], **config: Any) -> None:
        metrics = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
        metrics["worst_group"] = min(metrics["lit"], metrics["shade"])
        metrics["worst_scene"] = min(f["auc"] for f in found)
        seconds, self.start = time.perf_counter() - self.start, time.perf_counter()
        self.records.append({
            "method": method,
            "dataset": "scenes",
            "seed": self.seed,
            "config": {"world": self.world, "k": 5, **config},
            "metrics": {key: {"value": round(value, 2)} for key, value in metrics.items()},
            "provenance": provenance(torch.device("cpu"), seconds, "python results/studies/field_spectra.py"),
        })  # fmt: skip
        print(self.seed, self.world, method, config, {k: round(v, 1) for k, v in metrics.items()}, file=sys.stderr)

    def arm(self, method: str, make: Callable[[Any, str, int], Detector], options: Sequence[Any], **config: Any) -> Any:
        """Choose an option on the scenes kept for that, then test: with 5 known pixels and with 1."""
        best = self.choose(make, options)
        for k in (5, 1):
            self.note(method, self.judge(make(best, "test", k), "test", k), k=k, option=str(best), **config)
        return best

    def closed(self) -> None:
        def make(kind: str) -> Callable[[Any, str, int], Detector]:
            def detector(option: Any, part: str, k: int) -> Detector:
                reading, beta, ridge = option

                def detect(n: int) -> Tensor:
                    scene = self.read[reading][part][n]
                    seen = scene.x[given(scene, k)].mean(dim=0)
                    return closed_form(kind, scene.x, beta * seen + (1 - beta) * scene.lab, ridge)

                return detect

            return detector

        for kind in ("mf", "ace", "cem"):
            every = list(itertools.product(READINGS, BETAS, RIDGES))
            best = self.arm(kind, make(kind), every, trained=0)
            if kind == "ace":
                self.ace = best
                self.arm("ace, k pixels", make(kind), [o for o in every if o[:2] == ("raw", 1.0)], trained=0)
                self.arm("ace, k pixels, logs", make(kind), [o for o in every if o[:2] == ("logs", 1.0)], trained=0)
                self.arm("ace, laboratory", make(kind), [o for o in every if o[:2] == ("raw", 0.0)], trained=0)
                self.arm("ace, laboratory, logs", make(kind), [o for o in every if o[:2] == ("logs", 0.0)], trained=0)

        def cosine(reading: str, part: str, k: int) -> Detector:
            return lambda n: F.cosine_similarity(self.read[reading][part][n].x, self.read[reading][part][n].lab, dim=-1)

        self.arm("cosine to laboratory", cosine, ["raw"], trained=0)
        self.arm("cosine to laboratory, logs", cosine, ["logs"], trained=0)

    def body(self, reading: str) -> None:
        self.reading = reading
        self.trunk = pretrain(self.read[reading]["train"], 30, self.seed, 300)
        self.views = {
            tokens: {
                part: [view(self.trunk, s, tokens=tokens) for s in rows] for part, rows in self.read[reading].items()
            }
            for tokens in (True, False)
        }

    def shots(self, part: str, n: int, k: int) -> Batch:
        return shots(self.raw[part][n], k, 1000 * self.seed + n)

    def adapted(
        self, net: nn.Module, theta: list[Tensor], part: str, n: int, k: int, how: tuple[float, int]
    ) -> list[Tensor]:
        scene, known = self.views[not isinstance(net, Body)][part][n], self.shots(part, n, k)
        return descend(loss_on(net, scene, known, self.beta), theta, known, *how)

    def score(self, net: nn.Module, theta: list[Tensor], part: str, n: int, known: Batch) -> Tensor:
        scene = self.views[not isinstance(net, Body)][part][n]
        with torch.no_grad():
            return evidence(net, theta, scene, known, beta=self.beta)[0]

    def networks(self, kinds: Sequence[str]) -> dict[str, tuple[nn.Module, list[Tensor], tuple[float, int]]]:
        identity, made = Adapter("mlp"), {}
        start = list(identity.parameters())

        def frozen(beta: float, part: str, k: int) -> Detector:
            self.beta = beta
            return lambda n: self.score(identity, [*start], part, n, self.shots(part, n, k))

        beta = self.arm("frozen", frozen, BETAS, trained=0, reading=self.reading)
        self.beta = min(beta, 0.8)  # the laboratory keeps a say
        for kind in kinds:
            with seeded(self.seed):
                net: nn.Module = Whole() if "full" in kind else Adapter(kind)
            if isinstance(net, Whole):
                net.load_state_dict(self.trunk.state_dict())
            theta = [p.detach() for p in net.parameters()]
            if kind != "full":
                lr = 5e-4 if isinstance(net, Whole) else 3e-3
                sources = self.views[not isinstance(net, Whole)]["train"]
                theta = meta_train(net, sources, self.seed, steps=200, alpha=0.02, lr=lr, beta=self.beta)

            def make(how: Any, part: str, k: int, net: Any = net, theta: Any = theta) -> Detector:
                return lambda n: self.score(
                    net, self.adapted(net, theta, part, n, k, how), part, n, self.shots(part, n, k)
                )

            size = sum(p.numel() for p in net.parameters())
            how = self.arm(kind, make, STEPS, trained=size, reading=self.reading)
            made[kind] = (net, theta, how)
        return made

    def labels(self, name: str, net: nn.Module, start: list[Tensor], how: tuple[float, int]) -> None:
        """Test-time learning from the adapted network: five bought labels, or pseudo-labels for nothing."""
        tokens = not isinstance(net, Body)

        def bought(part: str, alpha: float) -> list[list[Batch]]:
            """Five rounds of one label: where the appending learner is least sure."""
            rounds = []
            for n, scene in enumerate(self.raw[part]):
                known, theta = self.shots(part, n, 5), self.adapted(net, start, part, n, 5, how)
                own: list[Batch] = []
                loss = loss_on(net, self.views[tokens][part][n], known, self.beta)
                for _ in range(BUY):
                    unsure = self.score(net, theta, part, n, known).abs()
                    unsure[torch.cat([known[0], *(index for index, _ in own)])] = float("inf")
                    index = unsure.argmin()[None]
                    own.append((index, scene.y[index]))
                    theta = descend(loss, theta, joined([known, *own]), alpha, 2)
                rounds.append(own)
            return rounds

        def learned(method: str, part: str, n: int, own: list[Batch], alpha: float) -> Tensor:
            known, scene = self.shots(part, n, 5), self.views[tokens][part][n]
            theta, loss = self.adapted(net, start, part, n, 5, how), loss_on(net, scene, known, self.beta)
            every = joined([known, *own])
            if method == "pseudo-labels":
                theta, every = self.pseudo(net, theta, scene, known, alpha), known
            elif method == "append":
                theta = descend(loss, theta, every, alpha, 5)
            elif method != "nothing more":
                tasks = [(joined([known, *own[:t]]), own[t]) for t in range(len(own))]
                for _ in range(5):
                    inner = alpha if method == "caml" else 0.0
                    c = meta_gradient(loss, theta, tasks, alpha=inner)
                    whole = [p.requires_grad_() for p in theta]
                    g = torch.autograd.grad(loss(whole, every), whole)
                    theta = [(p - alpha * (a + b)).detach() for p, a, b in zip(whole, g, c)]
            return self.score(net, theta, part, n, every)

        asked = {part: bought(part, 0.02) for part in ("val", "test")}
        also = [joined(own)[0] for own in asked["test"]]
        hits = sum(int(joined(own)[1].sum()) for own in asked["test"]) / len(also)
        for method in ("nothing more", "pseudo-labels", "append", "upweight", "caml"):

            def make(alpha: float, part: str, k: int, method: str = method) -> Detector:
                return lambda n: learned(method, part, n, asked[part][n], alpha)

            best = self.choose(make, [0.02, 0.1]) if method != "nothing more" else 0.0
            found = self.judge(make(best, "test", 5), "test", 5, also)
            self.note(f"{name}: {method}", found, option=best, hits=hits, part="labels")

        def ace(n: int) -> Tensor:
            reading, beta, ridge = self.ace
            scene, every = self.read[reading]["test"][n], joined([self.shots("test", n, 5), *asked["test"][n]])
            seen = scene.x[every[0][every[1] == 1]].mean(dim=0)
            return closed_form("ace", scene.x, beta * seen + (1 - beta) * scene.lab, ridge)

        self.note(f"{name}: ace, same labels", self.judge(ace, "test", 5, also), option=str(self.ace), part="labels")

    def pseudo(self, net: nn.Module, theta: list[Tensor], scene: View, known: Batch, alpha: float) -> list[Tensor]:
        """Up to ten steps on the surest pixels of each class where both paths agree; ends if the known ones suffer."""
        loss, before = loss_on(net, scene, known, self.beta), float("inf")
        with torch.no_grad():
            p = frozen_logits(scene, known, self.trunk, self.beta)
        for _ in range(10):
            now = float(loss(theta, known))
            if now > before:
                break
            before, theta = now, [w.detach().requires_grad_() for w in theta]
            logit = evidence(net, theta, scene, known, beta=self.beta)[0]
            guess, sure = logit.detach() > 0, logit.detach().abs()  # entropy falls as |logit| grows
            parts = []
            for g in (True, False):
                if (guess == g).any():
                    kept = (guess == g) & (sure >= sure[guess == g].quantile(0.9)) & ((p > 0) == g)
                    parts += [F.softplus(-logit[kept] if g else logit[kept]).mean()] if kept.any() else []
            q = p.sigmoid()
            apart = q * (F.logsigmoid(p) - F.logsigmoid(logit)) + (1 - q) * (F.logsigmoid(-p) - F.logsigmoid(-logit))
            slopes = torch.autograd.grad(torch.stack([*parts, apart.mean()]).sum(), theta)
            theta = [(w - alpha * s).detach() for w, s in zip(theta, slopes)]
        return theta


def frozen_logits(scene: View, known: Batch, trunk: Body, beta: float) -> Tensor:
    """The path without an adapter, from pixels or tokens."""
    if scene.inputs.ndim == 3:
        net: nn.Module = Adapter("mlp")
        return evidence(net, list(net.parameters()), scene, known, beta=beta)[0]
    net = Whole()
    net.load_state_dict(trunk.state_dict())
    return evidence(net, list(net.parameters()), scene, known, beta=beta)[0]


def joined(batches: Sequence[Batch]) -> Batch:
    index, y = zip(*batches)
    return torch.cat(index), torch.cat(y)


def run(seed: int) -> list[dict[str, Any]]:
    records = []
    for world in ("sun, shade and air", "laboratory light"):
        study = Study(seed, world)
        study.closed()
        full = world == "sun, shade and air"
        study.body("white")
        adapters = ["dct scan", "scan", "mlp"] if full else ["dct scan"]
        made = study.networks([*adapters, *["full"] * full, "full, meta-learned"])
        if full:
            study.labels("full, meta-learned", *made["full, meta-learned"])
            study.body("logs")
            study.networks(["dct scan"])
        records += study.records
    return records


def done() -> list[dict[str, Any]]:
    return read_records(OUT) if OUT.exists() else []


def main() -> None:
    pick_device("cpu")
    for seed in [int(word) for word in sys.argv[1:]] or SEEDS:
        if not any(record["seed"] == seed for record in done()):
            records = run(seed)
            write_records(OUT, sorted(done() + records, key=lambda record: int(record["seed"])))


if __name__ == "__main__":
    main()
