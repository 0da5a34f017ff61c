"""Empirical risk minimisation: plain training, the method that learns the shortcut.

`train_erm` is also the reference for everything later: any network, any optimiser of torch, class or group
balancing, a live view of worst-group accuracy, and a checkpoint after every epoch from which a killed run goes on to
the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.data.dataset import GroupDataset
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.fit import Run, fit
from caml_core.loader import Augment, Balance, batches
from caml_core.memory import in_pieces, piece_that_fits
from caml_core.meta import flatten, loss_at
from caml_core.metrics import SELECTION_RULES


def train_erm(
    network: nn.Module,
    train: GroupDataset,
    val: GroupDataset,
    *,
    epochs: int,
    seed: int = 0,
    device: torch.device | None = None,
    batch_size: int = 64,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    balance: Balance = None,
    augment: Augment | None = None,
    select: str = "average",
    checkpoint: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Minimise the mean cross-entropy over `train` and keep the best validation epoch.

    The step size follows half a cosine from `lr` to 0. Every epoch draws from its own random stream, fixed by
    (seed, epoch), so the same seed gives bit-identical weights, whether or not the run was interrupted.

    A batch that does not fit into the device's memory goes through in pieces, with a warning.

    Args:
        network: maps a batch x to logits (B, C); trained in place.
        optimizer: called as `optimizer(parameters, lr=lr, weight_decay=weight_decay)`.
        balance: see `caml_core.loader.batches`.
        select, checkpoint, progress, on_epoch: see `caml_core.fit.fit`.

    Returns:
        The history (with `train_minority` and `train_majority` accuracy, percent, of each epoch) and the choice.

    Raises:
        CamlError: the checkpoint belongs to another run, the loss is not finite, or a setting is out of range.
    """
    if epochs < 1 or batch_size < 1 or lr <= 0 or len(train) == 0 or select not in SELECTION_RULES:
        raise CamlError(
            what=f"epochs={epochs}, batch_size={batch_size}, lr={lr}, {len(train)} examples, select={select!r}",
            expected="epochs, batch size and examples of at least 1, lr above 0, a rule of SELECTION_RULES",
            remedy="correct the setting",
        )
    device = device or torch.device("cpu")
    network.to(device)
    opt = optimizer(network.parameters(), lr=lr, weight_decay=weight_decay)
    piece = _piece(network, train, batch_size, device)
    steps_per_epoch = math.ceil(len(train) / batch_size)
    config = {
        "epochs": epochs, "seed": seed, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "optimizer": getattr(optimizer, "__name__", str(optimizer)), "balance": balance, "select": select,
        "augment": getattr(augment, "__name__", str(augment)), "train": train.content_hash(), "val": val.content_hash(),
    }  # fmt: skip
    if piece < min(batch_size, len(train)):  # BatchNorm sees the pieces, so a run goes on only with the same
        config["piece"] = piece

    def run_epoch(epoch: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
        summed = torch.zeros((), dtype=torch.float64, device=device)  # kept on the device: no wait at every step
        seen, right = (torch.zeros(int(train.index.max()) + 1, dtype=torch.bool, device=device) for _ in range(2))
        with seeded(seed, epoch):  # dropout and the like
            loader = batches(train, batch_size, device=device, generator=generator, balance=balance, augment=augment)
            for step, batch in enumerate(loader):
                done = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
                for group in opt.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
                with autocast(device):
                    logits = in_pieces(network, batch.x, piece)
                    loss = F.cross_entropy(logits.float(), batch.y)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
                summed += loss.detach() * len(batch.y)
                right[batch.index] = logits.argmax(dim=1) == batch.y
                seen[batch.index] = True
        right, seen = right.cpu()[train.index], seen.cpu()[train.index]
        return {
            "loss": float(summed) / len(train),
            "train_majority": _percent(right, seen & ~train.is_minority),
            "train_minority": _percent(right, seen & train.is_minority),
        }

    return fit(
        network,
        opt,
        run_epoch,
        val,
        epochs=epochs,
        config=config,
        select=select,
        device=device,
        train_counts=train.group_counts,
        checkpoint=checkpoint,
        progress=progress,
        on_epoch=on_epoch,
    )


def _piece(network: nn.Module, train: GroupDataset, batch_size: int, device: torch.device) -> int:
    """How many examples of a batch the device takes at once (`caml_core.memory`)."""
    few = train[torch.arange(4) % len(train)]
    x, y = few.x.to(device), few.y.to(device)
    loss, theta = loss_at(network.train(), device), flatten(network).requires_grad_()
    state = 4 * theta.nbytes  # gradient, two moments of Adam, the best weights
    return piece_that_fits(lambda n: loss(theta, (x[:n], y[:n])), min(batch_size, len(train)), device, state)


def _percent(right: Tensor, rows: Tensor) -> float | None:
    """Training accuracy over the rows seen in an epoch, measured while the weights moved; None without rows."""
    return 100 * float(right[rows].double().mean()) if rows.any() else None
