"""Group accuracies, and which epoch they choose.

All accuracies are in percent. Half of "I can't get your numbers" is a definition, so every one is named:

- `average`: accuracy over the examples of the split, as they are;
- `adjusted`: group accuracies weighted by the *training* group proportions (the average that Waterbirds tables use);
- `worst_group`: the lowest accuracy of any group that has examples (WGA);
- `minority`, `majority`: accuracy pooled over all minority (majority) examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.groups import GroupDataset

Rule = Literal["average", "worst_group", "minority", "last"]  # how the epoch is chosen
BOOTSTRAP_DRAWS = 2000


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion, in percent; (nan, nan) for n = 0. Wilson (1927)."""
    if n == 0:
        return math.nan, math.nan
    p = correct / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + side * spread) / (1 + z * z / n) for side in (-1, 1))
    return max(0.0, low), min(100.0, high)


def group_metrics(logits: Tensor, split: GroupDataset, train_counts: Tensor | None = None) -> dict[str, Any]:
    """Accuracies of one split, as plain numbers that go into a record.

    Args:
        logits: float (N, C), in the order of `split`.
        train_counts: int64 (n_groups,), training group sizes, for `adjusted`; without them, or where training has
            none of the groups of `split`, it is left out.

    Returns:
        For `average`, `adjusted`, `worst_group`, `minority`, `majority`: `value`, `low`, `high` (95%: Wilson for
        proportions, bootstrap within groups for the other two, but where groups of 0% or 100% leave it nothing to vary,
        the same of their Wilson ends); `groups`: a list with `name`, `n`, `correct`, `value`, `low`, `high`;
        `empty_groups`: names of groups without examples (their value is None).

    Raises:
        CamlError: not (N, C), or not finite.
    """
    logits, expected = torch.as_tensor(logits), (len(split), len(split.class_names))
    if logits.shape != expected or not torch.isfinite(logits).all():
        what = f"logits of shape {tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of them NaN or infinite"
        remedy = "compute them on this split; where training has diverged, lower the learning rate"
        raise CamlError(what, f"finite {expected}: examples by classes", remedy)
    right = (logits.argmax(dim=1) == split.y.to(logits.device)).cpu()
    n = split.group_counts.numpy()
    correct = torch.bincount(split.group, weights=right.double(), minlength=split.n_groups).numpy().astype(int)
    groups = [{"name": name, **_proportion(int(c), int(m))} for name, c, m in zip(split.group_names, correct, n)]
    filled = np.flatnonzero(n)
    accuracy = 100 * correct[filled] / n[filled]
    ends = np.array([[groups[g]["low"], groups[g]["high"]] for g in filled]).T
    # Resampling a group's examples is drawing its number of right ones from a binomial.
    draws = np.random.default_rng(0).binomial(n[filled], correct[filled] / n[filled], (BOOTSTRAP_DRAWS, len(filled)))
    resampled = 100 * draws / n[filled]
    worst = int(accuracy.argmin())
    metrics: dict[str, Any] = {
        "average": _proportion(int(correct.sum()), int(n.sum())),
        "worst_group": {
            "value": float(accuracy[worst]),
            **_bootstrap(resampled.min(axis=1), ends.min(axis=1)),
            "name": split.group_names[int(filled[worst])],
        },
    }
    weights = np.zeros(0) if train_counts is None else np.asarray(train_counts)[filled].astype(float)
    if weights.any():  # MetaShift's test groups have no training examples at all
        weights /= weights.sum()
        metrics["adjusted"] = {"value": float(accuracy @ weights), **_bootstrap(resampled @ weights, ends @ weights)}
    for name, rows in (("minority", split.is_minority), ("majority", ~split.is_minority)):
        metrics[name] = _proportion(int(right[rows].sum()), int(rows.sum()))
    return {**metrics, "groups": groups, "empty_groups": [group["name"] for group in groups if group["n"] == 0]}


def _proportion(correct: int, n: int) -> dict[str, Any]:
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "correct": 0}
    low, high = wilson(correct, n)
    return {"value": 100 * correct / n, "low": low, "high": high, "n": n, "correct": correct}


def _bootstrap(draws: np.ndarray, ends: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    if np.isclose(low, high):  # all right or all wrong, however few
        low, high = ends
    return {"low": float(low), "high": float(high)}


def check_selection(split: GroupDataset, rule: Rule, name: str = "validation") -> None:
    """Refuse, before anything is trained, a split that is empty or has no minority to choose by."""
    if len(split) == 0 or (rule == "minority" and not split.is_minority.any()):
        what = f"select={rule!r} with {len(split)} {name} examples, {int(split.is_minority.sum())} of a minority"
        remedy = "choose by another rule (--select average, worst_group), or put examples of every group there"
        raise CamlError(what, "examples to choose the epoch by", remedy)


def select_epoch(history: Sequence[dict[str, Any]], rule: Rule, chance: float) -> tuple[int, str]:
    """Choose an epoch by its validation metrics; return its number in `history` and the rule in words.

    With two classes a coin has 50% minority and worst-group accuracy, more than a network that leans on a shortcut,
    so only epochs that clearly beat chance on average (lower end of the 95% interval above `chance`) compete; when
    there is none, the best average is taken. Ties go to the earlier epoch.

    Args:
        history: one dict an epoch, with the validation metrics of `group_metrics` under "val".
        chance: average accuracy of the best constant answer, percent; below 0, every epoch competes.
    """
    if rule == "last":
        return len(history) - 1, "last epoch"
    if any(epoch["val"].get(rule, {}).get("value") is None for epoch in history):
        remedy = "choose by another rule (average, worst_group)"
        raise CamlError(f"no epoch can be chosen by select={rule!r}", "validation examples that it counts", remedy)
    able = [i for i, epoch in enumerate(history) if epoch["val"]["average"]["low"] > chance]
    words = f"best validation {rule}"
    words += f" among epochs whose average clearly beats chance ({chance:.1f}%)" if chance >= 0 else ""
    if not able:
        able, rule = list(range(len(history))), "average"
        words = "best validation average (no epoch clearly beats chance)"
    return max(able, key=lambda i: (history[i]["val"][rule]["value"], -i)), words
