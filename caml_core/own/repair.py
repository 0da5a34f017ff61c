"""Repair: which way to retrain the last layer does best with the answers at hand, or is it better left alone?

Every way gets the features of the training split and those of the examples whose attribute is known, and is scored by
cross-validation over these: what is chosen inside a way (epoch, penalty, weights) is chosen without the fold it is
scored on.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from caml_core.comparators import evals
from caml_core.device import stream_seed
from caml_core.environments import regrouped
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.heads import afr, balanced_head, dfr, shares
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED, scaled
from caml_core.last_layer import Head, descend
from caml_core.loader import odds_of
from caml_core.metrics import BOOTSTRAP_DRAWS

# training, answered, other examples with a label, the model's head, seed
Way = Callable[[GroupDataset, GroupDataset, GroupDataset, Head, int], Head]


def _edited(train: GroupDataset, known: GroupDataset, rest: GroupDataset, head: Head, seed: int) -> Head:
    fewest = int(torch.bincount(known.y, minlength=len(known.class_names)).min())
    settings = dataclasses.replace(scaled(PUBLISHED["dominoes"], train.x), hard=max(1, fewest // 2))
    with warnings.catch_warnings(action="ignore"):  # it says so where nothing moves: then the head stays
        done = hsfm(train, known, head.weight, head.bias, settings, seeds=[seed])
    return Head(done.weight[0], done.bias[0], {"epoch": int(done.epoch[0])})


def _continued(train: GroupDataset, known: GroupDataset, rest: GroupDataset, head: Head, seed: int) -> Head:
    return descend(known, known, shares(odds_of(known.group)).to, start=head, epochs=10)


def _guessed(train: GroupDataset, known: GroupDataset, rest: GroupDataset, head: Head, seed: int) -> Head:
    """DFR on all labels; who was not asked gets an attribute from a linear model of the answers (the idea of Spread
    Spurious Attribute, Nam et al., arXiv 2204.02070, which trains a network for it)."""
    linear = LogisticRegression(class_weight="balanced", max_iter=500)
    strengths = {"C": [1e-4, 1e-3, 1e-2, 1e-1]}
    model = GridSearchCV(linear, strengths, scoring="balanced_accuracy", cv=3).fit(known.x, known.a)
    x, y = torch.cat([known.x, rest.x]), torch.cat([known.y, rest.y])
    a = torch.cat([known.a, torch.from_numpy(model.predict(rest.x))])
    every = GroupDataset(x, y, a, class_names=known.class_names, attribute_names=known.attribute_names)
    return dfr(train, every, seed=seed)


WAYS: dict[str, Way] = {
    "leave alone": lambda train, known, rest, head, seed: head,
    "dfr": lambda train, known, rest, head, seed: dfr(train, known, seed=seed),
    "dfr, groups guessed": _guessed,
    "continue, balanced": _continued,
    "hsfm": _edited,
    "afr": lambda train, known, rest, head, seed: afr(train, known, seed=seed),
    "evals, no answers": lambda train, known, rest, head, seed: evals(
        train, regrouped(known, head, "inferred"), seed=seed
    ),
    "balanced": lambda train, known, rest, head, seed: balanced_head(train, known),
}
NEEDS_GROUPS = ("balanced",)  # of the training split
FOLDS = 5


class Scored(NamedTuple):
    """One way: accuracy in percent on answers that it did not see, and its gain over leaving the head alone."""

    name: str
    worst_group: float
    average: float  # of the answered examples, every group counting the same
    gain: tuple[float, float, float]  # of the worst group: mean, and 95% interval over draws of the answers
    plain: float  # accuracy on all labelled examples, asked or not, in the same way: what the repair costs


class Repair(NamedTuple):
    head: Head
    way: str
    sure: float  # share of draws of the answers in which this way has the best worst group, percent
    ways: list[Scored]

    @property
    def advice(self) -> str:
        if self.way == "leave alone":
            return "Leave the last layer alone: no way gains more than its interval."
        best = next(one for one in self.ways if one.name == self.way)
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*best.gain)
        return f"Use {self.way}: worst group {gain} points; best of all ways in {self.sure:.0f}% of draws."


def repair(
    train: GroupDataset, known: GroupDataset, head: Head, every: GroupDataset, *, seed: int = 0,
    ways: Sequence[str] | None = None,
) -> Repair:  # fmt: skip
    """Score the ways, and train the best of them on all answers.

    Args:
        train: features, x float (N, D), scaled like those of the others; its attribute counts only for "balanced",
            which is left out where it has none.
        known: the examples whose attribute was answered.
        head: the model's own.
        every: all examples with a label among which the questions were asked; those asked have the same `index`.

    Raises:
        CamlError: fewer than `FOLDS` answers in one of the groups.
    """
    if int(known.group_counts.min()) < FOLDS:
        few = [f"{name} ({n})" for name, n in zip(known.group_names, known.group_counts.tolist()) if n < FOLDS]
        what = f"too few answers of {', '.join(few)}"
        raise CamlError(what, f"{FOLDS} or more of every group", "ask for more, or leave out an attribute that is rare")
    if len(train.attribute_names) < len(known.attribute_names):  # nobody knows those of the training split
        names_of: dict[str, Any] = {"class_names": train.class_names, "attribute_names": known.attribute_names}
        train = GroupDataset(train.x, train.y, torch.zeros_like(train.y), **names_of)
        ways = ways or [name for name in WAYS if name not in NEEDS_GROUPS]
    names, rest = list(ways or WAYS), every.subset(~torch.isin(every.index, known.index))
    generator = torch.Generator().manual_seed(stream_seed(seed, 2))
    fold, fold_rest = _folds(known.group, generator), _folds(rest.y, generator)
    right, right_rest, heads = {}, {}, {}
    for name in names:
        right[name], right_rest[name] = torch.empty(len(known), dtype=torch.bool), torch.empty(len(rest)).bool()
        for k in range(FOLDS):
            found = WAYS[name](train, known.subset(fold != k), rest.subset(fold_rest != k), head, seed)
            for part, folds, answers in ((known, fold, right[name]), (rest, fold_rest, right_rest[name])):
                held = folds == k
                answers[held] = found.logits(part.x[held]).argmax(dim=1) == part.y[held]
        heads[name] = WAYS[name](train, known, rest, head, seed)
    drawn = _redrawn(right, known.group, seed)
    base = drawn["leave alone"]
    scored = []
    for name in names:
        by_group = [100 * float(right[name][known.group == g].double().mean()) for g in known.group.unique()]
        low, high = np.percentile(drawn[name] - base, [2.5, 97.5])
        gain = (float((drawn[name] - base).mean()), float(low), float(high))
        plain = 100 * float(torch.cat([right[name], right_rest[name]]).double().mean())
        scored.append(Scored(name, min(by_group), float(np.mean(by_group)), gain, plain))
    scored.sort(key=lambda one: (-one.worst_group, -one.average))
    best = next((one.name for one in scored if one.gain[1] > 0), "leave alone")
    top = np.stack([drawn[name] for name in names]).max(axis=0)
    return Repair(heads[best], best, 100 * float((drawn[best] == top).mean()), scored)


def _folds(strata: Tensor, generator: torch.Generator) -> Tensor:
    """A number from 0 to FOLDS - 1 for each example, each as often as the others in every stratum: int64 (N,)."""
    fold = torch.empty_like(strata)
    for g in strata.unique():
        rows = (strata == g).nonzero().flatten()
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return fold


def _redrawn(right: dict[str, Tensor], group: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Worst-group accuracy of every way in draws of the answers with replacement within groups, percent."""
    rng = np.random.default_rng([seed, 0x0B0])
    worst = {name: np.full(BOOTSTRAP_DRAWS, 100.0) for name in right}
    for g in group.unique():
        rows = (group == g).nonzero().flatten().numpy()
        draws = rng.choice(rows, (BOOTSTRAP_DRAWS, len(rows)))
        for name, answers in right.items():
            worst[name] = np.minimum(worst[name], 100 * answers.numpy()[draws].mean(axis=1))
    return worst


def told(done: Repair, file: Path) -> str:
    """The ways as a table in Markdown, the advice, and the lines that put the head into a model."""
    rows = ["| way | worst group | groups alike | gain in the worst group | all labelled |", "|:--|--:|--:|--:|--:|"]
    for one in done.ways:
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*one.gain)
        rows.append(f"| {one.name} | {one.worst_group:.1f} | {one.average:.1f} | {gain} | {one.plain:.1f} |")
    use = [
        "from safetensors.torch import load_file",
        f"head = load_file({str(file)!r})",
        "last = model.get_submodule('NAME OF ITS LAST LINEAR LAYER')",
        "last.weight.data.copy_(head['weight'])",
        "last.bias.data.copy_(head['bias'])",
    ]
    return "\n".join([*rows, "", done.advice, "", *use])


def put_head(module: nn.Module, name: str, head: Head) -> None:
    """Put it into a model, in place: `name` is that of its last linear layer, such as "classifier"."""
    layer: Any = module.get_submodule(name)
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.copy_(head.bias)


def put_head_onnx(file: Path, head: Head, out: Path) -> None:
    """Write an ONNX file with this head in the place of its own; `CamlError` where it has none."""
    import onnx

    from caml_core.own.models import last_gemm

    model = onnx.load(file)
    _, weight, bias, turned = last_gemm(model)
    if bias is None:
        raise CamlError(f"the last linear layer of {file} has no bias", "one", "export the network with a bias there")
    new = {weight: head.weight.T if turned else head.weight, bias: head.bias}
    for tensor in model.graph.initializer:
        if tensor.name in new:
            values = new[tensor.name].float().contiguous().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, out)
