"""Empirical risk minimisation: plain training, the method that learns the shortcut.

`train_erm` is also the reference for everything later: any network, any optimiser of torch, class or group
balancing, a live view of worst-group accuracy, and a checkpoint after every epoch from which a killed run goes on to
the same result.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from caml_core.data.dataset import GroupDataset
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict
from caml_core.loader import Augment, Balance, batches
from caml_core.metrics import SELECTION_RULES, group_metrics, select_epoch
from caml_core.store import load_checkpoint, save_checkpoint


@dataclass
class ErmRun:
    """What training leaves beside the network, which holds the chosen epoch's weights at the end."""

    history: list[dict[str, Any]]  # one an epoch: epoch (from 1), loss, train_minority, train_majority, val metrics
    best_epoch: int  # counted from 1
    rule: str  # how it was chosen, in words
    seconds: float  # of training, over all resumed parts


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
) -> ErmRun:
    """Minimise the mean cross-entropy over `train` and keep the best validation epoch.

    The step size follows half a cosine from `lr` to 0. Every epoch draws from its own random stream, fixed by
    (seed, epoch), so the same seed gives bit-identical weights, whether or not the run was interrupted.

    Args:
        network: maps a batch x to logits (B, C); trained in place.
        optimizer: called as `optimizer(parameters, lr=lr, weight_decay=weight_decay)`.
        balance: see `caml_core.loader.batches`.
        select: rule for the epoch (`caml_core.metrics.select_epoch`), on the validation split.
        checkpoint: safetensors file written after every epoch; when it is there, training goes on from it.
        on_epoch: called with (epoch, network) after each epoch; must not change the network.

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
    steps_per_epoch = math.ceil(len(train) / batch_size)
    chance = 100 * float(torch.bincount(val.y).max()) / len(val)
    config = {
        "epochs": epochs, "seed": seed, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "optimizer": getattr(optimizer, "__name__", str(optimizer)), "balance": balance, "select": select,
        "augment": getattr(augment, "__name__", str(augment)), "train": train.content_hash(), "val": val.content_hash(),
    }  # fmt: skip

    history: list[dict[str, Any]] = []
    best_state = copy.deepcopy(network.state_dict())
    seconds = 0.0
    if checkpoint is not None and checkpoint.exists():
        history, best_state, seconds = _resume(checkpoint, config, network, opt)

    bar = tqdm(range(len(history), epochs), initial=len(history), total=epochs, unit="epoch", disable=not progress)
    for epoch in bar:
        start = time.perf_counter()
        network.train()
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
                    logits = network(batch.x)
                    loss = F.cross_entropy(logits.float(), batch.y)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
                summed += loss.detach() * len(batch.y)
                right[batch.index] = logits.argmax(dim=1) == batch.y
                seen[batch.index] = True
        total = float(summed)
        right, seen = right.cpu()[train.index], seen.cpu()[train.index]
        if not math.isfinite(total):
            raise CamlError(
                what=f"the loss became {total} in epoch {epoch + 1}",
                expected="a finite loss",
                remedy="lower the learning rate (--lr)",
            )
        history.append(
            {
                "epoch": epoch + 1,
                "loss": total / len(train),
                "train_majority": _percent(right, seen & ~train.is_minority),
                "train_minority": _percent(right, seen & train.is_minority),
                "val": group_metrics(predict(network, val, device), val, train.group_counts),
            }
        )
        best, rule = select_epoch(history, select, chance)
        if best == epoch:
            best_state = copy.deepcopy(network.state_dict())
        seconds += time.perf_counter() - start
        if checkpoint is not None:
            _save(checkpoint, config, network, opt, best_state, history, seconds)
        if on_epoch is not None:
            on_epoch(epoch + 1, network)
        metrics = history[-1]["val"]
        bar.set_postfix_str(
            f"loss {history[-1]['loss']:.3f}, validation WGA {metrics['worst_group']['value']:.1f}, "
            f"average {metrics['average']['value']:.1f}"
        )
    best, rule = select_epoch(history, select, chance)
    network.load_state_dict(best_state)
    network.eval()
    return ErmRun(history, best + 1, rule, seconds)


def _percent(right: Tensor, rows: Tensor) -> float | None:
    """Training accuracy over the rows seen in an epoch, measured while the weights moved; None without rows."""
    return 100 * float(right[rows].double().mean()) if rows.any() else None


def _save(
    path: Path,
    config: dict[str, Any],
    network: nn.Module,
    opt: torch.optim.Optimizer,
    best_state: dict[str, Tensor],
    history: list[dict[str, Any]],
    seconds: float,
) -> None:
    state = opt.state_dict()
    tensors = {f"network/{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best_state.items()}
    tensors |= {
        f"optimizer/{i}/{name}": torch.as_tensor(value)
        for i, slots in state["state"].items()
        for name, value in slots.items()
        if value is not None
    }
    save_checkpoint(path, tensors, {"config": config, "history": history, "seconds": seconds})


def _resume(
    path: Path, config: dict[str, Any], network: nn.Module, opt: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], dict[str, Tensor], float]:
    tensors, meta = load_checkpoint(path)
    if meta["config"] != config:
        differs = sorted(key for key in config if meta["config"].get(key) != config[key])
        raise CamlError(
            what=f"checkpoint {path} belongs to another run: {', '.join(differs)} differ",
            expected="the settings and data it was started with",
            remedy="delete it to start again, or repeat the original command",
        )
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = tensor
    try:
        network.load_state_dict(parts["network"])
    except RuntimeError as error:
        raise CamlError(
            what=f"checkpoint {path} belongs to another network",
            expected="the network it was started with",
            remedy="delete it to start again, or repeat the original command",
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        i, slot = name.split("/")
        state.setdefault(int(i), {})[slot] = tensor
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return meta["history"], parts["best"], meta["seconds"]
