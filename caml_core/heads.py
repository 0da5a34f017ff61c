"""Linear heads on frozen features: what the last-layer methods make of the same numbers.

The backbone is fixed; features are extracted once and standardised on the training split (`caml_core.features`). Every
function here takes a training and a validation split of such features and returns a `Head`. All but `dfr` minimise one
loss, sum_i w_i CE_i with weights that sum to 1, and differ in the weights and in who must know the groups:

| method | weight of training example i | group labels to train | to choose |
|:--|:--|:--|:--|
| `erm_head` | 1/N | none | none |
| `jtt_head` | lambda times larger where a first, short training errs | none | validation |
| `afr` | exp(-gamma p_i), p_i the ERM head's probability of the label; held-out examples only | none | validation |
| `balanced_head` | 1/(G n_g): every group counts the same | training | validation |
| `groupdro_head` | q_g/n_g, with q_g growing by exp(rate * loss of group g) at every step | training | validation |
| `dfr` | trained on group-balanced subsets of the validation split | validation | validation |

What is chosen is the epoch (or C, lambda, gamma) with the best validation worst-group accuracy, by the rule of
`caml_core.metrics.select_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.data.dataset import GroupDataset
from caml_core.device import seeded, stream_seed
from caml_core.erm import train_erm
from caml_core.errors import CamlError
from caml_core.fit import fit
from caml_core.metrics import SELECTION_RULES, group_metrics, select_epoch

C_GRID = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
STEPS = 4  # full-batch steps between two looks at the validation split, called an epoch
Weigh = Callable[[Tensor], Tensor]  # losses (N,) to weights (N,) that sum to 1; called at every step


class Head(NamedTuple):
    """A linear head and how it was chosen."""

    weight: Tensor  # float32 (C, D), on the CPU
    bias: Tensor  # float32 (C,)
    chosen: dict[str, Any]  # JSON-able: the rule in words, the epoch, C, lambda, ...

    def logits(self, x: Tensor) -> Tensor:
        """W x + b of every row: (N, D) to (N, C)."""
        return x @ self.weight.T + self.bias


def erm_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    epochs: int = 8,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    select: str = "average",
) -> Head:
    """Empirical risk minimisation by `caml_core.erm.train_erm`. Uses no group label.

    Args:
        train, val: features, x float32 (N, D), standardised on `train`.
        seed: fixes the first weights and the order of the batches.
        select: validation rule for the epoch.

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range.
    """
    _check(train, val)
    with seeded(seed):
        head = nn.Linear(train.x.shape[1], len(train.class_names))
    run = train_erm(
        head,
        train,
        val,
        epochs=epochs,
        seed=seed,
        device=device,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        select=select,
        progress=False,
    )
    return Head(head.weight.detach().cpu(), head.bias.detach().cpu(), {"rule": run.rule, "epoch": run.best_epoch})


def descend(
    train: GroupDataset,
    val: GroupDataset,
    weigh: Weigh,
    *,
    start: Head | None = None,
    pull: float = 0.0,
    step: float = 0.2,
    epochs: int = 50,
    select: str = "worst_group",
    device: torch.device | None = None,
) -> Head:
    """Adam on sum_i w_i CE_i + pull ||theta - theta_0||^2, over all of `train` at once; keeps the best epoch.

    Args:
        weigh: gives the weights w from the losses of the moment.
        start: theta_0 = (W, b), where the descent begins; None: zeros.
        step: how far one step of Adam can move a logit, about: a weight moves by step / D, since |x|_1 is close to D
            when features are standardised (`caml_core.hsfm.scaled` reasons alike).
        epochs: of `STEPS` steps each.
        select: validation rule for the epoch (`caml_core.metrics.select_epoch`).

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range.
    """
    _check(train, val)
    if epochs < 1 or not step > 0 or not pull >= 0 or select not in SELECTION_RULES:
        raise CamlError(
            what=f"epochs={epochs}, step={step}, pull={pull}, select={select!r}",
            expected=f"epochs of at least 1, step above 0, pull of at least 0, one of {', '.join(SELECTION_RULES)}",
            remedy="correct the setting",
        )
    device = device or torch.device("cpu")
    x, y = train.x.to(device), train.y.to(device)
    head = nn.utils.skip_init(nn.Linear, x.shape[1], len(train.class_names), device=device)
    with torch.no_grad():
        head.weight.copy_(start.weight if start else torch.zeros(()))
        head.bias.copy_(start.bias if start else torch.zeros(()))
    first = [part.detach().clone() for part in head.parameters()]
    opt = torch.optim.Adam(head.parameters(), lr=step / x.shape[1])

    def run_epoch(_: int) -> dict[str, Any]:
        for _ in range(STEPS):
            losses = F.cross_entropy(head(x), y, reduction="none")
            moved = [(now - then).square().sum() for now, then in zip(head.parameters(), first)]
            loss = (weigh(losses.detach()) * losses).sum() + pull * sum(moved)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
        return {"loss": float(loss.detach())}

    run = fit(head, opt, run_epoch, val, epochs=epochs, config={}, select=select, device=device, progress=False)
    return Head(head.weight.detach().cpu(), head.bias.detach().cpu(), {"rule": run.rule, "epoch": run.best_epoch})


def balanced_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    epochs: int = 50,
    select: str = "worst_group",
) -> Head:
    """Every group that has training examples counts the same: w_i = 1 / (G n_g(i)). Uses training group labels.

    The last layer retrained with group balance on the training split, as "DFR Tr" of Kirichenko et al. (arXiv
    2204.02937) does with balanced subsets. `seed` changes nothing: there is nothing random in it.

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range.
    """
    _check(train, val)
    weights = _normal(1 / train.group_counts[train.group].double())
    return descend(train, val, _fixed(weights), epochs=epochs, select=select, device=device)


def groupdro_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    rate: float = 0.1,
    epochs: int = 50,
    select: str = "worst_group",
) -> Head:
    """GroupDRO (Sagawa et al., arXiv 1911.08731, algorithm 1): the worse a group does, the more it counts.

    Before every step q_g <- q_g exp(rate L_g), normalised, with L_g the mean loss of group g; then w_i = q_g / n_g.
    Uses training group labels. `seed` changes nothing.

    Args:
        rate: of the group weights' multiplicative update.

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range.
    """
    _check(train, val)
    if not 0 <= rate < float("inf"):
        raise CamlError(what=f"rate={rate}", expected="a rate of at least 0", remedy="choose for example 0.1")
    device = device or torch.device("cpu")
    group, counts = train.group.to(device), train.group_counts.to(device)
    q = (counts > 0).float()

    def weigh(losses: Tensor) -> Tensor:
        mean = torch.zeros_like(q).index_add_(0, group, losses) / counts.clamp_min(1)
        q.copy_(_normal(q * (rate * mean).exp()))
        return (q / counts)[group]

    return descend(train, val, weigh, epochs=epochs, select=select, device=device)


def jtt_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    first_epochs: int = 10,
    upweights: Sequence[float] = (5, 10, 20, 50),
    epochs: int = 50,
    select: str = "worst_group",
) -> Head:
    """Just train twice (Liu et al., arXiv 2107.09044): what a first, short training gets wrong counts lambda times.

    Uses no training group label: errors stand in for them. `seed` changes nothing.

    Args:
        first_epochs: of the training that finds the errors.
        upweights: values of lambda to choose from on the validation split.

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range.
    """
    _check(train, val)
    check_grid("upweights", upweights)
    even = _fixed(torch.full((len(train),), 1 / len(train)))
    first = descend(train, val, even, epochs=first_epochs, select="last", device=device)
    wrong = first.logits(train.x).argmax(dim=1) != train.y
    heads = []
    for upweight in upweights:
        weights = _normal(torch.where(wrong, upweight, 1.0).double())
        head = descend(train, val, _fixed(weights), epochs=epochs, select=select, device=device)
        heads.append(noted(head, upweight=upweight, errors=int(wrong.sum())))
    return best_of(heads, val, select)


def afr(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    held_out: float = 0.2,
    gammas: Sequence[float] = (4, 8, 12, 16, 20),
    pulls: Sequence[float] = (0.0, 1.0),
    epochs: int = 50,
    select: str = "worst_group",
) -> Head:
    """Automatic feature reweighting (Qiu et al., arXiv 2306.11074): retrain where the ERM head is unsure.

    An ERM head is trained on a part of the training set; on the rest, w_i ~ exp(-gamma p_i) / n_y(i), with p_i the
    probability that this head gives to the right label and n_y the size of a class; the head is retrained there, from
    itself and pulled back to itself. Uses no training group label.

    Args:
        seed: of the split and of the ERM head.
        held_out: share of the training set kept for the second part.
        gammas, pulls: choices of gamma and of the strength of the pull, made on the validation split.

    Raises:
        CamlError: NaN, widths that do not fit, a setting out of range, a class without held-out examples.
    """
    _check(train, val)
    check_grid("gammas", gammas)
    check_grid("pulls", pulls)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(stream_seed(seed, 0)))
    cut = round(held_out * len(train))
    first, rest = train.subset(order[cut:].sort().values), train.subset(order[:cut].sort().values)
    per_class = torch.bincount(rest.y, minlength=len(train.class_names))
    if int(per_class.min()) == 0 or len(first) == 0:
        raise CamlError(
            what=f"held_out={held_out} leaves {len(first)} examples and {per_class.tolist()} held out by class",
            expected="examples of every class in both parts",
            remedy="hold out about 0.2, of more data",
        )
    erm = erm_head(first, val, seed=seed, device=device)
    p = erm.logits(rest.x).double().softmax(dim=1).gather(1, rest.y[:, None])[:, 0]
    heads = []
    for gamma in gammas:
        weights = _fixed(_normal((-gamma * p).exp() / per_class[rest.y]))
        for pull in pulls:
            head = descend(rest, val, weights, start=erm, pull=pull, epochs=epochs, select=select, device=device)
            heads.append(noted(head, gamma=gamma, pull=pull))
    return best_of(heads, val, select)


def dfr(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    c_grid: Sequence[float] = C_GRID,
    subsets: int = 10,
    select: str = "worst_group",
) -> Head:
    """Deep feature reweighting (Kirichenko et al., arXiv 2204.02937): fit the head where the groups are balanced.

    L1 logistic regression (`l1_logistic`) on group-balanced subsets of the validation split, whose group labels it
    needs for training. C is chosen by fitting on one half of the split and scoring on the other; then the weights of
    `subsets` fits, each on another balanced subset of the whole split, are averaged. The halves are drawn within each
    group, so that few labels suffice. The training split and the device are not used.

    Args:
        seed: of the halves, of the subsets and of the solver.
        c_grid: inverse strengths of the L1 penalty, as scikit-learn counts it; ties go to the earlier one.

    Raises:
        CamlError: a group with fewer than two validation examples, NaN, widths that do not fit.
    """
    _check(train, val)
    few = [name for name, count in zip(val.group_names, val.group_counts.tolist()) if count < 2]
    if few or subsets < 1 or not c_grid or min(c_grid) <= 0:
        raise CamlError(
            what=f"fewer than two validation examples of group {'; '.join(few)}"
            if few
            else f"subsets={subsets}, c_grid={list(c_grid)}",
            expected="two or more of every group, to fit and to choose C; at least one subset; values of C above 0",
            remedy="give more validation labels, or use a method that does not train on the groups",
        )
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    half, held = (val.subset(rows) for rows in halves(val.group, generator))
    half = half.subset(balanced_rows(half.group, generator))
    c = best_of([noted(l1_logistic(half, c, seed), C=c) for c in c_grid], held, select).chosen["C"]
    even = len(set(val.group_counts.tolist())) == 1  # then there is only one balanced subset: the whole split
    heads = [
        l1_logistic(val.subset(balanced_rows(val.group, generator)), c, seed) for _ in range(1 if even else subsets)
    ]
    weight, bias = (torch.stack([head[part] for head in heads]).mean(dim=0) for part in (0, 1))  # type: ignore[misc]
    return Head(weight, bias, {"rule": f"C with the best {select} of a held-out half", "C": c, "subsets": len(heads)})


def balanced_rows(group: Tensor, generator: torch.Generator) -> Tensor:
    """As many random rows of each group as the smallest has: int64, sorted. Groups without examples are left out."""
    rows = _by_group(group, generator)
    return torch.cat([r[: min(map(len, rows))] for r in rows]).sort().values


def l1_logistic(split: GroupDataset, c: float, seed: int = 0) -> Head:
    """L1 logistic regression by scikit-learn's liblinear, one class against the rest where there are more than two.

    liblinear penalises the bias like a weight. With two classes there is one row w of weights, for the log-odds; as two
    logits it is (-w/2, w/2).
    """
    from sklearn.linear_model import LogisticRegression

    # The name of the penalty changed with scikit-learn 1.8.
    renamed = LogisticRegression().get_params().get("penalty", "deprecated") == "deprecated"
    l1 = {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}
    x, y, n_classes = split.x.double().numpy(), split.y.numpy(), len(split.class_names)
    rows = []
    for k in [1] if n_classes == 2 else range(n_classes):
        model = LogisticRegression(solver="liblinear", C=c, random_state=seed % 2**32, **l1).fit(x, y == k)
        rows.append(torch.from_numpy(np.append(model.coef_[0], model.intercept_[0])))
    both = torch.stack([-rows[0] / 2, rows[0] / 2] if n_classes == 2 else rows).float()
    return Head(both[:, :-1], both[:, -1], {})


HEADS: dict[str, Callable[..., Head]] = {  # names on the command line
    "erm-head": erm_head,
    "dfr": dfr,
    "balanced-head": balanced_head,
    "jtt-head": jtt_head,
    "gdro-head": groupdro_head,
    "afr": afr,
}


def _normal(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _fixed(weights: Tensor) -> Weigh:
    """Weights that do not follow the losses."""
    return weights.to


def noted(head: Head, **chosen: Any) -> Head:
    """The head with more said in `chosen`."""
    return head._replace(chosen={**head.chosen, **chosen})


def best_of(heads: Sequence[Head], val: GroupDataset, select: str) -> Head:
    """The head that does best on a validation split, by the rule that also chooses epochs; ties: the earlier."""
    chance = 100 * float(torch.bincount(val.y).max()) / len(val)
    scores = [{"val": group_metrics(head.logits(val.x), val)} for head in heads]
    return heads[select_epoch(scores, select, chance)[0]]


def halves(group: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of two random halves of every group; the first gets the odd example."""
    rows = [(r[: (len(r) + 1) // 2], r[(len(r) + 1) // 2 :]) for r in _by_group(group, generator)]
    return torch.cat([first for first, _ in rows]), torch.cat([second for _, second in rows])


def _by_group(group: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The rows of each group that has any, in a random order."""
    order = torch.randperm(len(group), generator=generator)
    return [order[group[order] == g] for g in group.unique()]


def check_grid(name: str, grid: Sequence[float]) -> None:
    """Refuse values to choose from that are none, negative or not finite."""
    if not grid or not all(0 <= value < math.inf for value in grid):
        raise CamlError(
            what=f"{name}={list(grid)}",
            expected="one or more finite values that are not negative",
            remedy="correct the setting",
        )


def _check(train: GroupDataset, val: GroupDataset) -> None:
    if train.x.ndim != 2 or train.x.shape[1:] != val.x.shape[1:] or train.class_names != val.class_names:
        raise CamlError(
            what=f"training x {tuple(train.x.shape)} of {len(train.class_names)} classes, validation x "
            f"{tuple(val.x.shape)} of {len(val.class_names)}",
            expected="features (N, D) of one width, and the same classes",
            remedy="extract the features of both splits with one backbone (caml_core.features.extract_features)",
        )
    for name, split in (("training", train), ("validation", val)):
        if len(split) == 0 or not bool(torch.isfinite(split.x).all()):
            raise CamlError(
                what=f"{name} features are empty or contain NaN or infinity",
                expected="finite features",
                remedy="extract the features again and standardise them (constant columns become 0)",
            )
