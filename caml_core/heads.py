"""Linear heads on frozen features: what the last-layer methods make of the same numbers.

Features are extracted once and standardised on the training split (`caml_core.features`). Every function here takes a
training and a validation split of them, x float32 or float64 (N, D), and returns a `Head`. All but `dfr` minimise one
loss, sum_i w_i CE_i with weights that sum to 1, and differ in the weights w. `balanced_head` and `groupdro_head` need
the group labels of the training split, `dfr` those of the validation split; otherwise only `select` looks at groups,
which chooses the epoch (or C, lambda, gamma) on the validation split (`caml_core.metrics.select_epoch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, check_classes
from caml_core.last_layer import Device, Head, balanced_rows, best_of, descend, erm_head, halves, l1_logistic, noted
from caml_core.linear import check_features
from caml_core.loader import odds_of
from caml_core.metrics import Rule

C_GRID = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)


def balanced_head(
    train: GroupDataset, val: GroupDataset, *, device: Device = None, epochs: int = 50, select: Rule = "worst_group"
) -> Head:
    """Every group that has training examples counts the same: w_i = 1 / (G n_g(i)).

    "DFR Tr" of Kirichenko et al. (arXiv 2204.02937) does the same with balanced subsets.
    """
    return descend(train, val, shares(odds_of(train.group)).to, epochs=epochs, select=select, device=device)


def groupdro_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    device: Device = None,
    rate: float = 0.1,
    epochs: int = 50,
    select: Rule = "worst_group",
) -> Head:
    """GroupDRO (Sagawa et al., arXiv 1911.08731, algorithm 1): the worse a group does, the more it counts.

    Before every step q_g <- q_g exp(rate L_g), normalised, with L_g the mean loss of group g; then w_i = q_g / n_g.
    """
    device = device or torch.device("cpu")
    group, counts = train.group.to(device), train.group_counts.to(device)
    q = (counts > 0).to(train.x.dtype)

    def weigh(losses: Tensor) -> Tensor:
        mean = torch.zeros_like(q).index_add_(0, group, losses) / counts.clamp_min(1)
        q.copy_(shares(q * (rate * mean).exp()))
        return (q / counts)[group]

    return descend(train, val, weigh, epochs=epochs, select=select, device=device)


def jtt_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    device: Device = None,
    first_epochs: int = 10,
    upweights: Sequence[float] = (5, 10, 20, 50),
    epochs: int = 50,
    select: Rule = "worst_group",
) -> Head:
    """Just train twice (Liu et al., arXiv 2107.09044): errors of a first, short training stand in for group labels.

    w_i is lambda times larger for them, lambda one of `upweights`.
    """
    first = descend(train, val, None, epochs=first_epochs, select="last", device=device)
    wrong, heads = first.logits(train.x).argmax(dim=1) != train.y, []
    for upweight in upweights:
        weights = shares(torch.where(wrong, upweight, 1.0).double())
        head = descend(train, val, weights.to, epochs=epochs, select=select, device=device)
        heads.append(noted(head, upweight=upweight, errors=int(wrong.sum())))
    return best_of(heads, val, select)


def afr(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    held_out: float = 0.2,
    gammas: Sequence[float] = (4, 8, 12, 16, 20),
    pulls: Sequence[float] = (0.0, 1.0),
    epochs: int = 50,
    select: Rule = "worst_group",
) -> Head:
    """Automatic feature reweighting (Qiu et al., arXiv 2306.11074): retrain where the ERM head is unsure.

    An ERM head is trained on a part of the training set. On the rest, a share `held_out`, it is retrained from itself
    and pulled back to itself, with w_i ~ exp(-gamma p_i) / n_y(i): p_i is the probability that it gives to the right
    label, n_y the size of a class. `CamlError` where a class has no held-out examples.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(stream_seed(seed, 0)))
    cut = round(held_out * len(train))
    first, rest = train.subset(order[cut:].sort().values), train.subset(order[:cut].sort().values)
    check_classes(rest, rest.y, "hold out about 0.2, of more data")
    erm = erm_head(first, val, seed=seed, device=device)
    p, heads = erm.logits(rest.x).double().softmax(dim=1).gather(1, rest.y[:, None])[:, 0], []
    for gamma in gammas:
        weights = shares((-gamma * p).exp() / torch.bincount(rest.y)[rest.y])
        for pull in pulls:
            head = descend(rest, val, weights.to, start=erm, pull=pull, epochs=epochs, select=select, device=device)
            heads.append(noted(head, gamma=gamma, pull=pull))
    return best_of(heads, val, select)


def dfr(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    c_grid: Sequence[float] = C_GRID,
    subsets: int = 10,
    select: Rule = "worst_group",
) -> Head:
    """Deep feature reweighting (Kirichenko et al., arXiv 2204.02937): fit the head where the groups are balanced.

    L1 logistic regression on group-balanced subsets of the validation split, without the training split. C is chosen by
    fitting on one half of the split and scoring on the other; the halves are drawn within each group, so that few
    labels suffice. Then the weights of fits to `subsets` balanced subsets of the whole split are averaged.

    Args:
        c_grid: inverse strengths of the L1 penalty, as scikit-learn counts it; ties go to the earlier one.

    Raises:
        CamlError: a group with fewer than two validation examples.
    """
    check_features(val, val)
    if few := [name for name, count in zip(val.group_names, val.group_counts.tolist()) if count < 2]:
        remedy = "give more validation labels, or use a method that does not train on the groups"
        raise CamlError(f"fewer than two validation examples of group {'; '.join(few)}", "two or more of each", remedy)
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    half, held = (val.subset(rows) for rows in halves(val.group, generator))
    half = half.subset(balanced_rows(half.group, generator))
    c = best_of([noted(l1_logistic(half, c, seed), C=c) for c in c_grid], held, select).chosen["C"]
    if len(set(val.group_counts.tolist())) == 1:  # then there is only one balanced subset: the whole split
        subsets = 1
    heads = [l1_logistic(val.subset(balanced_rows(val.group, generator)), c, seed) for _ in range(subsets)]
    weight, bias = (torch.stack(parts).mean(dim=0) for parts in zip(*((head.weight, head.bias) for head in heads)))
    return Head(weight, bias, {"rule": f"C with the best {select} of a held-out half", "C": c, "subsets": len(heads)})


NAMES = ("erm-head", "dfr", "balanced-head", "jtt-head", "gdro-head", "afr")  # on the command line
HEADS: dict[str, Callable[..., Head]] = dict(zip(NAMES, (erm_head, dfr, balanced_head, jtt_head, groupdro_head, afr)))


def shares(weights: Tensor) -> Tensor:
    """Weights scaled to sum 1."""
    return weights / weights.sum()
