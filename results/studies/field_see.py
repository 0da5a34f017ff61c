"""Do copying rows teach analogies? Arms of equal steps, few and many alphabets: results/field_see.json.

python results/studies/field_see.py

A run that is in its folder already is not made again; with `40` only those of 40 alphabets are made.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from caml_core.device import seeded
from caml_core.field.see import Transformer, correct, fit, loss_of, matching
from caml_core.field.strings import COMPOSED, NOVEL, SIZE, TRAINED, Alphabet, Rows, draw_alphabets, draw_rows
from caml_core.meta import add_to_gradient, meta_gradient
from caml_core.runs.records import provenance, read_records, write_records

FILE = Path(__file__).parent.parent / "field_see.json"
STEPS, ROWS = 8000, 4000
PLAIN = tuple(range(SIZE))
TASKS: list[tuple[str, int]] = [
    ("copy", 40), ("plain", 40), ("twice the rows", 40), ("half the steps", 40), ("copy", 8), ("plain", 8),
    ("asked", 8), ("copy", 1), ("plain", 1),
]  # fmt: skip
SEEDS = {arm: range(5 if arm in (("copy", 40), ("plain", 40)) else 3) for arm in TASKS}
POOL, ROUNDS, ASK, EACH, MORE = 24, 2, 6, 40, 150  # alphabets; rounds of ASK alphabets, EACH answers; further steps
LR, ALPHA = 4e-3, 0.1


def world(seed: int, n: int) -> tuple[list[Alphabet], list[Alphabet], list[Alphabet]]:
    """Alphabets to train on (one: the plain one), never met, and those that one may ask about."""
    drawn = draw_alphabets(max(n, 40) + 10 + POOL, seed)
    seen = drawn[:40] + drawn[50 + POOL :]
    return [PLAIN] if n == 1 else seen[:n], drawn[40:50], drawn[50 : 50 + POOL]


def made(arm: str, n: int, seed: int) -> Rows:
    rows = ROWS * (1 + (arm == "twice the rows")) if n > 1 else ROWS // 8  # one alphabet has few problems
    return draw_rows(world(seed, n)[0], TRAINED, rows, seed, copy="copy" in arm)


def steps_of(arm: str, n: int) -> int:
    return STEPS // 2 if arm == "half the steps" or n == 1 else STEPS


@cache
def trained(arm: str, n: int, seed: int) -> Transformer:
    return fit(made(arm, n, seed), steps_of(arm, n), seed)


def by_rule(model: Transformer, rows: Rows) -> list[float]:
    """Percent of answers that are right, for each transformation."""
    right = correct(model, rows)
    return [100 * right[rows.rule == r].double().mean().item() for r in range(int(rows.rule.max()) + 1)]


def judge(model: Transformer, n: int, seed: int) -> dict[str, float]:
    """Means over transformations, the worst one, and what the encoder's heads do; no row that can be copied."""
    seen, new, _ = world(seed, n)
    metrics = {}
    for where, alphabets in {"seen": seen, "new": new}.items():
        for kind, rules in {"trained": TRAINED, "composed": COMPOSED, "novel": NOVEL}.items():
            rows = draw_rows(alphabets, rules, 80 if n == 1 and where == "seen" else 600, 1000 + seed, held_out=True)
            found = by_rule(model, rows)
            metrics[f"{where}, {kind}"] = sum(found) / len(found)
            if kind == "trained":
                metrics[f"{where}, worst"] = min(found)
                metrics |= {f"{where}, {rule}": value for rule, value in zip(rules, found)}
                paid = matching(model, rows)
                metrics |= {f"{where}, heads": 100 * (paid > 0.5).double().mean().item()}
                metrics |= {f"{where}, best head": 100 * paid.max().item()}
    rows = made("copy", n, seed)
    half = len(rows.source) // 2
    metrics["fitted"] = sum(by_rule(model, Rows(*(part[:600] for part in rows)))) / len(TRAINED)
    metrics["copied"] = 100 * correct(model, Rows(*(part[half : half + 600] for part in rows))).double().mean().item()
    return metrics


def entropy(model: Transformer, rows: Rows) -> float:
    """Mean entropy in nats of the tokens that the model says."""
    with torch.no_grad():
        known, said = model.encode(rows.source), torch.full((len(rows.source), 1), 2)
        for _ in range(rows.target.shape[1]):
            logits = model.decode(known, rows.source, said)
            said = torch.cat([said, logits[:, -1:].argmax(-1)], dim=1)
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean().item()


def joined(parts: list[Rows]) -> Rows:
    pad = torch.nn.utils.rnn.pad_sequence
    source, target = (pad([row for part in parts for row in part[i]], batch_first=True) for i in (0, 1))
    return Rows(source, target, *(torch.cat(column) for column in list(zip(*parts))[2:]))


def further(model: Transformer, base: Rows, queries: list[Rows], how: str, seed: int) -> Transformer:
    """MORE steps of AdamW from the model, 160 examples a step: appended, or the answers bought up-weighted, or CAML."""
    batch = 32 * (2 * ROUNDS + 1)
    labelled = [joined([base, *queries[:t]]) for t in range(len(queries) + 1)]
    names, start = zip(*model.named_parameters())
    opt = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.95), weight_decay=0.01)

    def loss(theta: Any, some: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(functional_call(model, dict(zip(names, theta)), some), some[1])

    def some(rows: Rows, n: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(rows.source), (n,))
        return rows.source[pick], rows.target[pick]

    with seeded(seed):
        for _ in range(MORE):
            opt.zero_grad()
            now = some(labelled[-1], batch if how == "append" else batch - 64 if how == "upweight" else 32)
            loss_of(model(*now), now[1]).backward()
            if how != "append":
                tasks = [(some(labelled[t], 32 * (how == "caml") or 1), some(q, 32)) for t, q in enumerate(queries)]
                alpha = ALPHA if how == "caml" else 0.0
                add_to_gradient(list(start), meta_gradient(loss, list(start), tasks, alpha=alpha))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
    return model


def asked(base: Transformer, seed: int) -> dict[str, dict[str, float]]:
    """Which alphabets to ask answers of, and what to do with the answers."""
    start, (_, new, pool) = base.state_dict(), world(seed, 8)
    rows = made("copy", 8, seed)

    def again() -> Transformer:
        model = Transformer()
        model.load_state_dict(start)
        return model

    found, fresh = {}, draw_rows(new, TRAINED, 600, 1000 + seed, held_out=True)
    for rule in ("random", "uncertain"):
        left, bought, model = list(pool), [], again()
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
        for t in range(ROUNDS):
            if rule == "random":
                chosen = [pool[i] for i in order[t * ASK : (t + 1) * ASK]]
            else:
                unsure = [entropy(model, draw_rows([one], TRAINED, 40, seed)) for one in left]
                chosen = [left[i] for i in torch.tensor(unsure).argsort(descending=True)[:ASK].tolist()]
            left = [one for one in left if one not in chosen]
            bought.append(draw_rows(chosen, TRAINED, ASK * EACH, seed + t))
            model = further(again(), rows, bought, "append", seed)
        models = {"append": model}
        if rule == "uncertain":
            models |= {how: further(again(), rows, bought, how, seed) for how in ("upweight", "caml")}
        for how, model in models.items():
            accuracy = by_rule(model, fresh)
            found[f"{rule}, {how}"] = {"new, trained": sum(accuracy) / len(accuracy), "new, worst": min(accuracy)}
    more = further(again(), rows, [], "append", seed)
    accuracy = by_rule(more, fresh)
    found["nothing asked"] = {"new, trained": sum(accuracy) / len(accuracy), "new, worst": min(accuracy)}
    return found


def record(
    method: str, n: int, seed: int, found: dict[str, float], start: float, dataset: str = "letter strings"
) -> dict[str, Any]:
    where = provenance(torch.device("cpu"), time.perf_counter() - start, "python results/studies/field_see.py")
    config: dict[str, float] = {"alphabets": n, "steps": steps_of(method, n), "rows": ROWS if n > 1 else ROWS // 8}
    config |= {"pool": POOL, "rounds": ROUNDS, "ask": ASK, "each": EACH, "more": MORE, "lr": LR, "alpha": ALPHA}
    return {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "config": config,
        "metrics": {name: {"value": round(value, 2)} for name, value in found.items()},
        "provenance": where,
    }


def main(only: list[int]) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    folder = FILE.with_suffix(".work")
    folder.mkdir(exist_ok=True)
    for arm, n in TASKS:
        for seed in SEEDS[arm, n]:
            start, part = time.perf_counter(), folder / f"{arm} {n} {seed}.json"
            if (not only or n in only) and not part.exists():
                if arm == "asked":
                    found = asked(trained("copy", n, seed), seed)
                    records = [record(name, n, seed, values, start, "asking") for name, values in found.items()]
                else:
                    records = [record(arm, n, seed, judge(trained(arm, n, seed), n, seed), start)]
                write_records(part, records)
                print(arm, n, seed, f"{time.perf_counter() - start:.0f} s", records[-1]["metrics"], file=sys.stderr)
    parts = [folder / f"{arm} {n} {seed}.json" for arm, n in TASKS for seed in SEEDS[arm, n]]
    if all(part.exists() for part in parts):
        write_records(FILE, [one for part in parts for one in read_records(part)])


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]])
