"""The last layer on frozen features: trained by ERM or by weighted descent, or fitted; the best kept by validation.

What `caml_core.heads` is made of. `CamlError` for features with NaN and for splits that differ in their classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.device import seeded
from caml_core.groups import GroupDataset
from caml_core.linear import check_features
from caml_core.metrics import Rule, group_metrics, select_epoch
from caml_core.training import Erm, Run, fit, train_erm

STEPS = 4  # full-batch steps between two looks at the validation split, called an epoch
Weigh = Callable[[Tensor], Tensor]  # losses (N,) to weights (N,) that sum to 1; called at every step
Device = torch.device | None  # None: the CPU


class Head(NamedTuple):
    """A linear head and how it was chosen."""

    weight: Tensor  # float (C, D), on the CPU, of the type of the features
    bias: Tensor  # float (C,)
    chosen: dict[str, Any]  # JSON-able: the rule in words, the epoch, C, lambda, ...

    def logits(self, x: Tensor) -> Tensor:
        """W x + b of every row: (N, D) to (N, C)."""
        return x @ self.weight.T + self.bias


def erm_head(
    train: GroupDataset,
    val: GroupDataset,
    *,
    seed: int = 0,
    device: Device = None,
    epochs: int = 8,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    select: Rule = "average",
) -> Head:
    """Empirical risk minimisation (`caml_core.training.train_erm`); `seed` fixes first weights and order of batches."""
    check_features(train, val)
    with seeded(seed):
        head = nn.Linear(train.x.shape[1], len(train.class_names), dtype=train.x.dtype)
    erm = Erm(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, select=select)
    return _head(head, train_erm(head, train, val, erm, seed=seed, device=device, progress=False))


def descend(
    train: GroupDataset,
    val: GroupDataset,
    weigh: Weigh | None,
    *,
    start: Head | None = None,
    pull: float = 0.0,
    step: float = 0.2,
    epochs: int = 50,
    select: Rule = "worst_group",
    device: Device = None,
) -> Head:
    """Adam on sum_i w_i CE_i + pull ||theta - theta_0||^2, over all of `train` at once; keeps the best epoch.

    Args:
        weigh: gives the weights w from the losses of the moment; None: all alike.
        start: theta_0 = (W, b), where the descent begins; None: zeros.
        step: about how far one step of Adam moves a logit: a weight moves by step / D, and |x|_1 is close to D.
        epochs: of `STEPS` steps each.
    """
    check_features(train, val)
    device = device or torch.device("cpu")
    x, y = train.x.to(device), train.y.to(device)
    head = nn.utils.skip_init(nn.Linear, x.shape[1], len(train.class_names), device=device, dtype=x.dtype)
    with torch.no_grad():
        for part, given in zip(head.parameters(), start or torch.zeros(2)):
            part.copy_(given)
    first = [part.detach().clone() for part in head.parameters()]
    opt = torch.optim.Adam(head.parameters(), lr=step / x.shape[1])

    def run_epoch(_: int) -> dict[str, Any]:
        for _ in range(STEPS):
            losses = F.cross_entropy(head(x), y, reduction="none")
            moved = [(now - then).square().sum() for now, then in zip(head.parameters(), first)]
            weights = weigh(losses.detach()) if weigh else torch.full_like(losses, 1 / len(losses))
            loss = (weights * losses).sum() + pull * sum(moved)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
        return {"loss": float(loss.detach())}

    how: Any = {"epochs": epochs, "batch_size": len(x), "select": select, "device": device, "progress": False}
    return _head(head, fit(head, opt, run_epoch, val, **how))


def _head(head: nn.Linear, run: Run) -> Head:
    return Head(head.weight.detach().cpu(), head.bias.detach().cpu(), {"rule": run.rule, "epoch": run.best_epoch})


def noted(head: Head, **chosen: Any) -> Head:
    """The head with more said in `chosen`."""
    return head._replace(chosen={**head.chosen, **chosen})


def best_of(heads: Sequence[Head], val: GroupDataset, select: Rule) -> Head:
    """The head that does best on a validation split, by the rule that also chooses epochs; ties: the earlier."""
    chance = 100 * float(torch.bincount(val.y).max()) / len(val)
    scores = [{"val": group_metrics(head.logits(val.x), val)} for head in heads]
    return heads[select_epoch(scores, select, chance)[0]]


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
        rows.append(torch.tensor([*model.coef_[0], model.intercept_[0]]))
    both = torch.stack([-rows[0] / 2, rows[0] / 2] if n_classes == 2 else rows).to(split.x.dtype)
    return Head(both[:, :-1], both[:, -1], {})


def balanced_rows(group: Tensor, generator: torch.Generator) -> Tensor:
    """As many random rows of each group as the smallest has: int64, sorted. Groups without examples are left out."""
    rows = _by_group(group, generator)
    return torch.cat([r[: min(map(len, rows))] for r in rows]).sort().values


def halves(group: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of two random halves of every group; the first gets the odd example."""
    first, second = zip(*(rows.tensor_split([(len(rows) + 1) // 2]) for rows in _by_group(group, generator)))
    return torch.cat(first), torch.cat(second)


def _by_group(group: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The rows of each group that has any, in a random order."""
    order = torch.randperm(len(group), generator=generator)
    return [order[group[order] == g] for g in group.unique()]
