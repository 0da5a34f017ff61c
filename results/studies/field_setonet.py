"""SetONet control beside MAML and refitted heads, with a paint that tells the mass: results/field_setonet.json.

python results/studies/field_setonet.py

Two worlds with the same vehicles: the paint tells the mass of 594 of 600 (rho 0.99), or nothing (0.5). Tests have fair
paint. Every choice is made on other fair vehicles (`choose`); settings of meta-learning were tried on one more seed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caml_core.device import pick_device, seeded
from caml_core.field.setonet import Plain, SetONet, act, adapt, clone, meta_train, refit_b, refit_head
from caml_core.field.vehicles import Drives, Policy, Tasks, batches, draw_tasks, judge, observe
from caml_core.runs.records import provenance, write_records

SEEDS, SHOTS = range(3), (1, 5, 20)
PLAN = [(m, 32) for m in (5, 10, 20, 40)]  # observations and demonstrations of a vehicle in cloning
RIDGES, FAIR = (0.003, 0.03, 0.3, 3.0), (40, 80)
META = {"rho": 0.05, "": 0.006}  # first inner steps, for 300 outer steps from the clone; MAML: 0.02, 1,500 from scratch


def start(make: Callable[[], Any], tasks: Tasks, seed: int, steps: int = 600) -> Any:
    with seeded(seed):
        model = make()
    return clone(model, batches(tasks, seed, 32, PLAN), steps, 2e-3)


def by_task(model: nn.Module, prefix: str, data: Drives, known: Drives, step: float | Tensor) -> Policy:
    own = {name: w.detach() for name, w in adapt(model, prefix, known, step).items()}
    return lambda y: act(model, own, data.sets, y)


def with_b(model: SetONet, b: Tensor) -> Policy:
    return lambda y: torch.einsum("Nndp,Ndp->Nnd", model.basis(y), b) + model.bias


def linear(known: Drives) -> Policy:
    """Least squares by whom knows that the expert is linear: no training, no set."""
    gain = torch.linalg.lstsq(known.y, known.u, driver="gelsd").solution
    return lambda y: y @ gain


def worst(values: Tensor, group: Tensor) -> float:
    return max(values[group == g].mean().item() for g in group.unique())


def choose(options: Iterable[Any], policy: Callable[[Any], Policy], data: Drives) -> Any:
    """The option with the smallest error of the worst group, among vehicles kept for choices."""

    def error(option: Any) -> float:
        fitted = policy(option)
        with torch.no_grad():
            miss = (fitted(data.y) - data.u).norm(dim=(1, 2)) / data.u.norm(dim=(1, 2))
        return worst(miss.nan_to_num(9), data.tasks.group)

    return min(options, key=error)


class Study:
    """One seed: its vehicles, and the records of what was done with them."""

    def __init__(self, seed: int) -> None:
        self.seed, self.start = seed, time.perf_counter()
        self.records: list[dict[str, Any]] = []
        self.test, self.val = draw_tasks(120, 1000 + seed), draw_tasks(80, 2000 + seed)

    def see(self, tasks: Tasks, k: int, m: int = 20) -> tuple[Drives, Drives]:
        """Vehicles with 50 states to be judged by, and the same with k demonstrations."""
        data = observe(tasks, m, 50 + max(SHOTS), 10 + self.seed)
        judged = data._replace(y=data.y[:, :50], u=data.u[:, :50])
        return judged, data._replace(y=data.y[:, 50 : 50 + k], u=data.u[:, 50 : 50 + k])

    def note(self, method: str, policy: Policy, data: Drives, **config: Any) -> None:
        found, group = judge(data, policy, self.seed), data.tasks.group
        with torch.no_grad():
            metrics = {key: float(v.mean()) for key, v in found.items()}
            metrics |= {f"worst_{key}": worst(v, group) for key, v in found.items()}
        seconds = time.perf_counter() - self.start
        self.start = time.perf_counter()
        self.records.append({
            "method": method,
            "dataset": "vehicles",
            "seed": self.seed,
            "config": config,
            "metrics": {key: {"value": round(value, 2)} for key, value in metrics.items()},
            "provenance": provenance(torch.device("cpu"), seconds, "python results/studies/field_setonet.py"),
        })  # fmt: skip

    def shots(
        self, world: str, method: str, fit: Callable[[Drives, Drives, Any], Policy], options: Iterable[Any]
    ) -> None:
        """`fit` on k demonstrations of each vehicle; its option chosen for each k."""
        for k in SHOTS:
            judged, known = self.see(self.val, k)
            best = choose(options, lambda option: fit(judged, known, option), judged)  # noqa: B023
            tests = {"fair": self.test} | ({"twice the mass": self.heavier} if k == 5 else {})
            for test, tasks in tests.items():
                judged, known = self.see(tasks, k)
                self.note(method, fit(judged, known, best), judged, world=world, test=test, shots=k)

    @property
    def heavier(self) -> Tasks:
        return draw_tasks(120, 1000 + self.seed, scale=2.0)

    def world(self, world: str, rho: float) -> None:
        train = draw_tasks(600, self.seed, rho)
        operator = start(SetONet, train, self.seed)
        pooled = start(partial(Plain, True), train, self.seed)
        for m in (5, 20, 100):
            judged, _ = self.see(self.test, 1, m)
            for method, model in (("setonet", operator), ("pooled mlp", pooled)):
                self.note(method, partial(model, judged.sets), judged, world=world, test="fair", shots=0, m=m)
        judged, _ = self.see(self.heavier, 1)
        self.note("setonet", partial(operator, judged.sets), judged, world=world, test="twice the mass", shots=0, m=20)
        if world == "shortcut":
            self.fair(operator)

        def b(data: Drives, known: Drives, ridge: float) -> Policy:
            return with_b(operator, refit_b(operator, known, ridge))

        self.shots(world, "refit b", b, RIDGES)
        for prefix, steps in (("rho", (0.003, 0.01, 0.03)), ("", (0.001, 0.003, 0.01))):
            fit = partial(by_task, operator, prefix)
            self.shots(world, f"adapt {prefix or 'all'}", fit, steps)
            model, step = meta_train(operator, prefix, train, self.seed, META[prefix], 300, 2e-3)
            self.shots(world, "meta" if prefix else "meta-full", partial(by_task, model, prefix), [step])

    def fair(self, operator: SetONet) -> None:
        """The last layer or every weight, on a small fair set of vehicles: chapter 02's question."""
        val, judged = self.see(self.val, 1)[0], self.see(self.test, 1)[0]
        for n in FAIR:
            data = observe(draw_tasks(n, 3000 + self.seed), 20, 16, 4000 + self.seed)
            heads = [refit_head(operator, data, ridge) for ridge in RIDGES]
            wholes = [clone(operator, repeat(data), steps, lr) for lr in (3e-4, 1e-3, 3e-3) for steps in (30, 150)]
            for method, models in (("fair head", heads), ("fair all", wholes)):
                best = choose(models, lambda model: partial(model, val.sets), val)
                policy = partial(best, judged.sets)
                self.note(method, policy, judged, world="shortcut", test="fair", shots=0, m=20, fair=n)

    def blind(self) -> None:
        """Policies that read no set, so that the paint is nothing to them; and least squares."""
        train = draw_tasks(600, self.seed)
        judged, _ = self.see(self.test, 1)
        one = start(partial(Plain, False), train, self.seed)
        self.note("blind mlp", partial(one, judged.sets), judged, world="no set", test="fair", shots=0)
        with seeded(self.seed):
            model: nn.Module = Plain(False)
        model, step = meta_train(model, "", train, self.seed, 0.02, 1500, 2e-3)
        self.shots("no set", "maml", partial(by_task, model, ""), [step])
        self.shots("no set", "linear", lambda data, known, option: linear(known), [None])

    def control(self) -> None:
        """All vehicles are one: a set has nothing to tell."""
        same = Tasks(*(value[:1].expand(600, *value.shape[1:]) for value in draw_tasks(600, self.seed)))
        test = Tasks(*(value[:120] for value in same))
        judged, _ = self.see(test, 1)
        for method, make in (("setonet", SetONet), ("blind mlp", partial(Plain, False))):
            model = start(make, same, self.seed, 300)
            self.note(
                method, partial(model, judged.sets), judged, world="one vehicle", test="one vehicle", shots=0, m=20
            )


def main() -> list[dict[str, Any]]:
    pick_device("cpu")
    records = []
    for seed in SEEDS:
        study = Study(seed)
        study.world("shortcut", 0.99)
        study.world("fair", 0.5)
        study.blind()
        study.control()
        records += study.records
        print(f"seed {seed}: done", file=sys.stderr)
    return records


if __name__ == "__main__":
    write_records(Path(__file__).parent.parent / "field_setonet.json", main())
