"""Rules that move with a hundred answers, beside what else could move: results/field_pasm.json.

python results/studies/field_pasm.py

Made households (`caml_core.field.households`): two states of 1,500 to learn from; of a third, 100 answers to adapt by
and 2,000 to be judged by. It has other archetypes, or the same ones (control), or all follow one rule (control), or no
rule is in the grammar. Then the experts as inferred groups beside those of JTT and EIIL, and which households to ask.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score, log_loss, matthews_corrcoef
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.func import functional_call, grad

from caml_core.device import seeded
from caml_core.environments import environments
from caml_core.field.households import KINDS, NAMES, Survey, columns, draw, plain_terms, size, typed_terms
from caml_core.field.pasm import FOLDS, PULLS, Mixture, adapt, fit_mixture
from caml_core.groups import GroupDataset
from caml_core.heads import balanced_head, jtt_head
from caml_core.last_layer import Head, erm_head
from caml_core.runs.records import provenance, write_records

SEEDS, N_SOURCE, N_CALIBRATION, N_TEST = range(5), 1500, 100, 2000
SOURCES = (((0.75, 0.2, 0.05), 0.0), ((0.6, 0.3, 0.1), 0.3))  # mix of archetypes, shift of the features
OTHER, ALIKE = ((0.1, 0.3, 0.6), 0.6), ((0.68, 0.25, 0.07), 0.6)
WORLDS = {  # law, third state
    "other archetypes": ("rules", OTHER),
    "only features shift": ("rules", ALIKE),
    "one rule for all": ("one rule", OTHER),
    "outside the grammar": ("outside", OTHER),
}
TRUTH = ({"order": 1, "pets": -1}, {"risk": 1, "notice": 1}, {"mobile": 1, "storms": -1})  # variables and signs
WEIGHTS, ASKED = (1.0, 10.0, 30.0), (30, 60, 100)  # of a calibration household beside one of the sources; budgets
Answer = Callable[[Tensor], np.ndarray]  # households to P(goes)


def survey(law: str, seed: int) -> Survey:
    """Both sources together."""
    parts = [draw(N_SOURCE, 100 * seed + i, mix, shift, law) for i, (mix, shift) in enumerate(SOURCES)]
    return Survey(*(torch.cat(column) for column in zip(*parts)))


def chosen(make: Callable[[Any], Any], settings: list[Any], few: Survey, rest: Survey | None = None) -> Answer:
    """A scikit-learn model; setting and weight of `few` by five-fold log loss there; `rest` is always learned from."""
    x, y = few.x.numpy(), few.y.numpy()
    more = (rest.x.numpy(), rest.y.numpy()) if rest else (x[:0], y[:0])
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y))

    def fitted(setting: Any, weight: float, rows: np.ndarray) -> Any:
        weights = np.r_[np.ones(len(more[1])), np.full(len(rows), weight)]
        return make(setting).fit(np.r_[more[0], x[rows]], np.r_[more[1], y[rows]], sample_weight=weights)

    tried = [(s, w) for s in settings for w in (WEIGHTS if rest else WEIGHTS[:1])]
    scores = [sum(log_loss(y[j], fitted(*t, i).predict_proba(x[j])[:, 1]) for i, j in folds) for t in tried]
    model = fitted(*tried[int(np.argmin(scores))], np.arange(len(y)))
    return lambda x: model.predict_proba(x.numpy())[:, 1]


def logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000)


def boosting(leaves: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_leaf_nodes=leaves, max_iter=60, min_samples_leaf=8, early_stopping=False, random_state=0
    )


class Experts(nn.Module):
    """Three small networks and a linear router: the mixture without rules. forward: P(goes), (N,)."""

    def __init__(self) -> None:
        super().__init__()
        d = len(NAMES)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(3))
        self.router = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        p = torch.cat([expert(x) for expert in self.experts], dim=1).sigmoid()
        return (self.router(x).softmax(dim=1) * p).sum(dim=1).clamp(1e-6, 1 - 1e-6)


def descend(model: nn.Module, data: Survey, rows: np.ndarray, steps: int, decay: float, pull: float) -> nn.Module:
    """Adam on the loss; `pull`: strength of the way back to where it starts."""
    moved = Experts()
    moved.load_state_dict(model.state_dict())
    x, y = data.x[rows].float(), data.y[rows].float()
    first = [part.detach().clone() for part in model.parameters()]
    opt = torch.optim.AdamW(moved.parameters(), lr=0.01, weight_decay=decay)
    for _ in range(steps):
        opt.zero_grad()
        back = sum((a - b).square().sum() for a, b in zip(moved.parameters(), first))
        (F.binary_cross_entropy(moved(x), y) + pull / 2 / len(x) * back).backward()
        opt.step()
    return moved


def networks(source: Survey, few: Survey, seed: int) -> dict[str, Answer]:
    """The mixture of networks: decay by a fifth of the source kept aside, then the same adaptation as for rules."""
    with seeded(seed):
        start, order = Experts(), np.random.default_rng(seed).permutation(len(source.y))
        kept, rest = order[: len(order) // 5], order[len(order) // 5 :]

        def miss(model: nn.Module, data: Survey, rows: np.ndarray) -> float:
            with torch.no_grad():
                return float(F.binary_cross_entropy(model(data.x[rows].float()), data.y[rows].float(), reduction="sum"))

        made = [descend(start, source, rest, 400, decay, 0.0) for decay in (0.01, 1.0)]
        model = min(made, key=lambda m: miss(m, source, kept))
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(few.x, few.y))
        scores = [sum(miss(descend(model, few, i, 60, 0, c), few, j) for i, j in folds) for c in PULLS]
        moved = descend(model, few, np.arange(len(few.y)), 60, 0, PULLS[int(np.argmin(scores))])
    found = {"MLP experts, not adapted": model, "MLP experts": moved}
    return {name: lambda x, m=m: m(x.float()).detach().numpy() for name, m in found.items()}  # type: ignore[misc]


def meta(source: Survey, few: Survey, seed: int) -> dict[str, Answer]:
    """MAML and a prototypical network; episodes of 100 households to learn from and 100 to be judged by, of a state."""
    with seeded(seed):
        d, states = len(NAMES), torch.arange(len(source.y)).view(2, -1)
        net = nn.Sequential(nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, 1))
        body = nn.Sequential(nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, 16))

        def episode() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            rows = states[int(torch.randint(2, ()))]
            rows = rows[torch.randperm(len(rows))[:200]]
            x, y = source.x[rows].float(), source.y[rows].float()
            return x[:100], y[:100], x[100:], y[100:]

        def miss(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(functional_call(net, theta, (x,))[:, 0], y)

        def steps(theta: dict[str, Tensor], x: Tensor, y: Tensor, n: int, rate: float) -> dict[str, Tensor]:
            for _ in range(n):
                theta = {k: v - rate * g for (k, v), g in zip(theta.items(), grad(miss)(theta, x, y).values())}
            return theta

        opt = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(300):
            x, y, new, truth = episode()
            opt.zero_grad()
            miss(steps(dict(net.named_parameters()), x, y, 3, 0.5), new, truth).backward()
            opt.step()
        theta = {k: v.detach() for k, v in net.named_parameters()}
        x, y = few.x.float(), few.y.float()
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y))
        tried = [(n, rate) for n in (1, 3, 10, 30) for rate in (0.1, 0.5)]
        scores = [sum(float(miss(steps(theta, x[i], y[i], *t), x[j], y[j])) for i, j in folds) for t in tried]
        moved = steps(theta, x, y, *tried[int(np.argmin(scores))])

        def nearest(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
            """Logit of "goes": how much nearer its prototype is."""
            z, u = body(x), body(new)
            away, home = ((u - z[y == c].mean(dim=0)).square().sum(dim=1) for c in (0, 1))
            return away - home

        opt = torch.optim.Adam(body.parameters(), lr=0.01)
        for _ in range(300):
            a, b, new, truth = episode()
            opt.zero_grad()
            F.binary_cross_entropy_with_logits(nearest(a, b, new), truth).backward()
            opt.step()
    return {
        "MAML": lambda new: functional_call(net, moved, (new.float(),))[:, 0].sigmoid().numpy(),
        "ProtoNet": lambda new: nearest(x, y, new.float()).detach().sigmoid().numpy(),
    }


def recovered(m: Mixture) -> float:
    """Of the three true rules, the share that some expert has, with exactly its variables and their signs."""
    seen = [
        {NAMES[t.i]: int(np.sign(float(v))) for t, v in zip(rule, w) if t.j is None} if len(rule) == 2 else {}
        for rule, w in zip(m.rules, m.weights)
    ]
    return sum(truth in seen for truth in TRUTH) / len(TRUTH)


def judge(p: np.ndarray, test: Survey) -> dict[str, float]:
    """MCC, and accuracies in percent; the threshold is a half for everyone."""
    right = (p > 0.5) == test.y.numpy().astype(bool)
    by_kind = [100 * right[test.kind.numpy() == k].mean() for k in range(len(KINDS))]
    found = dict(zip(KINDS, by_kind)) | {"accuracy": 100 * right.mean(), "worst_archetype": min(by_kind)}
    return found | {"mcc": 100 * matthews_corrcoef(test.y.numpy(), p > 0.5)}


def record(
    method: str, world: str, seed: int, metrics: dict[str, float], begun: float, **config: Any
) -> dict[str, Any]:
    where = provenance(torch.device("cpu"), time.perf_counter() - begun, "python results/studies/field_pasm.py")
    law, target = WORLDS[world]
    config |= {"law": law, "sources": SOURCES, "target": target, "n_source": N_SOURCE, "calibration": N_CALIBRATION}
    values = {name: {"value": round(float(value), 2)} for name, value in metrics.items()}
    return {
        "method": method,
        "dataset": world,
        "seed": seed,
        "config": config,
        "metrics": values,
        "provenance": where,
    }


def compared(law: str, seed: int) -> tuple[list[dict[str, Any]], Mixture]:
    """Every method in every world of a law; what learns from the sources alone is learned once."""
    source, records = survey(law, seed), []
    mixtures = {k: fit_mixture(k, source.x, source.y, seed) for k in (1, 2, 3, 4)}
    k = min(mixtures, key=lambda k: mixtures[k].price(source.x, source.y))
    rules = {"PASM": mixtures[k], "one formula": mixtures[1], "three rules": mixtures[3]}
    rules["plain experts"] = fit_mixture(3, source.x, source.y, seed, plain_terms())
    alone = {
        "logistic regression, sources": chosen(logistic, [0.01, 0.1, 1.0, 10.0], source),
        "boosting, sources": chosen(boosting, [4, 8, 31], source),
    }
    for world, (known, (mix, shift)) in WORLDS.items():
        if known != law:
            continue
        few, test = draw(N_CALIBRATION, 100 * seed + 2, mix, shift, law), draw(N_TEST, 100 * seed + 3, mix, shift, law)
        begun = time.perf_counter()
        moved = {name: adapt(m, few.x, few.y) for name, m in rules.items()}
        answers: dict[str, Answer] = {name: lambda x, m=m: m.predict(x).numpy() for name, m in moved.items()}  # type: ignore[misc]
        answers["PASM, not adapted"] = lambda x: mixtures[k].predict(x).numpy()
        answers["three rules, not adapted"] = lambda x: mixtures[3].predict(x).numpy()
        answers |= alone | networks(source, few, seed) | meta(source, few, seed)
        for name, make, settings in (
            ("logistic regression", logistic, [0.01, 0.1, 1.0, 10.0]),
            ("boosting", boosting, [4, 8]),
        ):
            answers[f"{name}, 100"] = chosen(make, [2, *settings] if name == "boosting" else settings, few)
            answers[f"{name}, sources and 100"] = chosen(make, settings, few, source)
        for name, answer in answers.items():
            metrics = judge(answer(test.x), test)
            texts: dict[str, Any] = {}
            if name in moved:
                metrics |= {"constants": sum(map(size, moved[name].rules)), "experts": len(moved[name].rules)}
                metrics["recovered"] = 100 * recovered(moved[name])
                texts["rules"] = str(moved[name])
            records.append(record(name, world, seed, metrics, begun, **texts))
        records.append(record("the law itself", world, seed, judge(test.p.numpy(), test), begun))
    return records, mixtures[k]


def split_of(data: Survey, a: Tensor, like: Tensor | None = None) -> GroupDataset:
    """Pieces of the grammar as standardised features, with attribute a."""
    z = columns(typed_terms(), data.x)[:, :-1]
    like = z if like is None else columns(typed_terms(), like)[:, :-1]
    x = ((z - like.mean(dim=0)) / like.std(dim=0).clamp_min(1e-3)).float()
    names = [f"part {i}" for i in range(3)]
    return GroupDataset(
        x, data.y.long(), a, class_names=["stays", "goes"], attribute_names=names, majority=torch.ones(2, 3)
    )


def inferred_groups(m: Mixture, seed: int) -> list[dict[str, Any]]:
    """One head on the pieces of the grammar, with groups by experts, by EIIL, by errors (JTT), or true ones."""
    world, begun = "other archetypes", time.perf_counter()
    mix, shift = OTHER
    source, aside, test = survey("rules", seed), survey("rules", seed + 50), draw(N_TEST, 100 * seed + 3, mix, shift)
    train, val = split_of(source, source.kind), split_of(aside, aside.kind, source.x)
    new = split_of(test, test.kind, source.x).x
    erm = erm_head(train, val, seed=seed)
    wrong = erm.logits(train.x).argmax(dim=1) != train.y
    by_expert = m.log_joint(source.x, source.y).argmax(dim=1).clamp_max(2)
    parts = {"EIIL": environments(erm.logits(train.x), train.y).long(), "experts": by_expert, "archetypes": source.kind}
    heads: dict[str, Head] = {"ERM": erm, "JTT": jtt_head(train, val)}
    heads |= {f"balanced by {name}": balanced_head(split_of(source, a), val) for name, a in parts.items()}
    overlap = {"JTT": wrong.long(), **{f"balanced by {name}": a for name, a in parts.items()}}
    records = []
    for name, head in heads.items():
        metrics = judge(head.logits(new).softmax(dim=1)[:, 1].numpy(), test)
        if name in overlap:
            metrics["overlap"] = 100 * adjusted_mutual_info_score(source.kind.numpy(), overlap[name].numpy())
        records.append(record(name, world, seed, metrics, begun, part="groups"))
    return records


def disagreement(m: Mixture, x: Tensor) -> Tensor:
    """Mutual information of the answer and the rule behind it, in nats: (N,)."""
    both = torch.stack([m.log_joint(x, torch.full((len(x),), y).to(x)) for y in (0.0, 1.0)], dim=2)  # (N, K, 2)
    entropy = {dims: -(both.logsumexp(dims).exp() * both.logsumexp(dims)).sum(dim=1) for dims in ((1,), (2,))}
    return entropy[(1,)] + entropy[(2,)] + (both.exp() * both).sum(dim=(1, 2))


def who_to_ask(m: Mixture, seed: int) -> list[dict[str, Any]]:
    """Adapt by households that are drawn, unsure, or on which the rules disagree, at several budgets."""
    mix, shift = OTHER
    pool, test = draw(1000, 100 * seed + 4, mix, shift), draw(N_TEST, 100 * seed + 3, mix, shift)
    p = m.predict(pool.x)
    scores = {"random": torch.rand(1000, generator=torch.Generator().manual_seed(seed)), "unsure": -(p - 0.5).abs()}
    scores["rules disagree"] = disagreement(m, pool.x)
    records = []
    for name, score in scores.items():
        for n in ASKED:
            begun, rows = time.perf_counter(), score.argsort(descending=True)[:n]
            metrics = judge(adapt(m, pool.x[rows], pool.y[rows]).predict(test.x).numpy(), test)
            records.append(record(name, "other archetypes", seed, metrics, begun, part="asking", asked=n))
    return records


if __name__ == "__main__":
    found: list[dict[str, Any]] = []
    for seed in SEEDS:
        for law in ("rules", "one rule", "outside"):
            records, mixture = compared(law, seed)
            found += records
            if law == "rules":
                found += inferred_groups(mixture, seed) + who_to_ask(mixture, seed)
            print(f"seed {seed}, {law}: done", file=sys.stderr)
    write_records(Path(__file__).parent.parent / "field_pasm.json", found)
