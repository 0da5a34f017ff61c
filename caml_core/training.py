"""Training: score each epoch, keep the best, save so that a killed run goes on to the same end.

`train_erm` minimises the plain mean cross-entropy, the method that learns the shortcut, and is the reference for
everything later. `fit` is the loop around every training: what happens inside an epoch is a function handed in, which
must draw all its randomness from (seed, epoch), as `caml_core.device.seeded` and `stream_seed` do, so that there is no
random state to restore.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from tqdm.auto import tqdm

from caml_core.checked import settings
from caml_core.device import autocast, seeded, stream_seed
from caml_core.errors import CamlError
from caml_core.features import predict
from caml_core.groups import GroupDataset, same_names
from caml_core.loader import Augment, Balance, batches
from caml_core.metrics import Rule, check_selection, group_metrics, select_epoch
from caml_core.store import load_checkpoint, save_checkpoint
from caml_core.threads import threads_for


@settings
class Erm:
    """Settings of `train_erm`.

    Args:
        lr: the step size follows half a cosine from here to 0.
        balance: draw classes or groups equally often (`caml_core.loader.batches`).
        select: rule for the epoch, on the validation split (`caml_core.metrics.select_epoch`).
    """

    epochs: PositiveInt
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    balance: Balance = None
    select: Rule = "average"


@dataclass
class Run:
    """What training leaves beside the network, which holds the chosen epoch's weights at the end."""

    history: list[dict[str, Any]]  # one an epoch: epoch (from 1), loss, whatever the epoch reports, val metrics
    best_epoch: int  # counted from 1
    rule: str  # how it was chosen, in words
    seconds: float  # of training, over all resumed parts


def train_erm(
    network: nn.Module,
    train: GroupDataset,
    val: GroupDataset,
    erm: Erm,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Minimise the mean cross-entropy over `train` by AdamW and keep the best validation epoch; a seed fixes every bit.

    Args:
        network: maps a batch x to logits (B, C); trained in place, but for parameters without `requires_grad`.
        checkpoint, progress, on_epoch: see `fit`.

    Returns:
        The history (with `train_minority` and `train_majority` accuracy, percent, of each epoch) and the choice.

    Raises:
        CamlError: see `fit`; an empty split.
    """
    device = device or torch.device("cpu")
    network.to(device)
    opt = torch.optim.AdamW(network.parameters(), lr=erm.lr, weight_decay=erm.weight_decay)
    steps = math.ceil(len(train) / erm.batch_size)

    def run_epoch(epoch: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
        summed = torch.zeros((), dtype=torch.float64, device=device)  # kept on the device: no wait at every step
        n = int(train.index.max()) + 1 if len(train) else 0
        right = torch.full((n,), math.nan, dtype=torch.float64, device=device)  # of what was not drawn, nothing
        how: dict[str, Any] = {"device": device, "generator": generator, "balance": erm.balance, "augment": augment}
        with seeded(seed, epoch):  # dropout and the like
            for step, batch in enumerate(batches(train, erm.batch_size, **how)):
                done = (epoch * steps + step) / (erm.epochs * steps)
                opt.param_groups[0]["lr"] = erm.lr * 0.5 * (1 + math.cos(math.pi * done))
                with autocast(device):
                    logits = network(batch.x)
                    loss = F.cross_entropy(logits.float(), batch.y)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
                summed += loss.detach() * len(batch.y)
                right[batch.index] = (logits.argmax(dim=1) == batch.y).double()
        drawn = right.cpu()[train.index]
        shares = {"majority": drawn[~train.is_minority].nanmean(), "minority": drawn[train.is_minority].nanmean()}
        while_training = {f"train_{part}": None if x.isnan() else 100 * float(x) for part, x in shares.items()}
        return {"loss": float(summed) / len(train), **while_training}

    config = asdict(erm) | {"seed": seed, "optimizer": "AdamW", "augment": getattr(augment, "__name__", str(augment))}
    return fit(
        network, opt, run_epoch, val, epochs=erm.epochs, batch_size=erm.batch_size, config=config, select=erm.select,
        device=device, train=train, checkpoint=checkpoint, progress=progress, on_epoch=on_epoch,
    )  # fmt: skip


def fit(
    network: nn.Module,
    opt: torch.optim.Optimizer,
    run_epoch: Callable[[int], dict[str, Any]],
    val: GroupDataset,
    *,
    epochs: int,
    batch_size: int,
    select: Rule,
    device: torch.device,
    any_epoch: bool = False,
    config: dict[str, Any] | None = None,
    train: GroupDataset | None = None,
    extra: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Run `epochs` epochs and leave the network with the weights of the best one.

    Args:
        run_epoch: called with the epoch (from 0), trains the network in place, returns at least `loss`.
        batch_size: of a step; a small network with small batches trains on one thread (`caml_core.threads`).
        select: rule for the epoch (`caml_core.metrics.select_epoch`), on the validation split.
        any_epoch: choose also one that does not clearly beat chance.
        config: JSON-able settings; a checkpoint written under others, or with other data, is refused.
        train: gives the group sizes of the adjusted average.
        extra: tensors changed in place by `run_epoch`, saved and restored with the weights.
        checkpoint: safetensors file written after every epoch; when it is there, training goes on from it.
        on_epoch: called with (epoch from 1, network) after each epoch; must not change the network.

    Raises:
        CamlError: a validation split that cannot choose by this rule, a checkpoint of another run, a loss that is not
            finite, too little memory, a batch of one for BatchNorm.
    """
    check_selection(val, select)
    if train is not None:
        same_names(train, val)
    chance = -1.0 if any_epoch else 100 * float(torch.bincount(val.y).max()) / len(val)
    counts = None if train is None else train.group_counts
    history: list[dict[str, Any]] = []
    best, seconds = copy.deepcopy(network.state_dict()), 0.0
    if checkpoint is not None:
        data = {"train": train, "val": val}
        config = (config or {}) | {name: split.content_hash() for name, split in data.items() if split is not None}
        if checkpoint.exists():
            history, best, seconds = _resume(checkpoint, config, network, opt, extra or {})
    bar = tqdm(range(len(history), epochs), initial=len(history), total=epochs, unit="epoch", disable=not progress)
    with _explained(device), threads_for(network, val.x, batch_size):
        for epoch in bar:
            start = time.perf_counter()
            network.train()
            report = run_epoch(epoch)
            if not math.isfinite(report["loss"]):
                what = f"the loss became {report['loss']} in epoch {epoch + 1}"
                raise CamlError(what, "a finite loss", "lower the learning rate (--lr)")
            metrics = group_metrics(predict(network, val, device), val, counts)
            history.append({"epoch": epoch + 1, **report, "val": metrics})
            if select_epoch(history, select, chance)[0] == epoch:
                best = copy.deepcopy(network.state_dict())
            seconds += time.perf_counter() - start
            if checkpoint is not None:
                parts = {"network": network.state_dict(), "best": best, "extra": extra or {}}
                parts |= {f"optimizer/{i}": slots for i, slots in opt.state_dict()["state"].items()}
                tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
                save_checkpoint(checkpoint, tensors, {"config": config, "history": history, "seconds": seconds})
            if on_epoch is not None:
                on_epoch(epoch + 1, network)
            worst, average = metrics["worst_group"]["value"], metrics["average"]["value"]
            bar.set_postfix_str(f"loss {report['loss']:.3f}, validation WGA {worst:.1f}, average {average:.1f}")
    network.load_state_dict(best)
    network.eval()
    chosen, rule = select_epoch(history, select, chance)
    return Run(history, chosen + 1, rule, seconds)


def _resume(
    path: Path, config: dict[str, Any], network: nn.Module, opt: torch.optim.Optimizer, extra: dict[str, Tensor]
) -> tuple[list[Any], dict[str, Tensor], float]:
    """Restore network, optimiser and `extra` in place; the history, the best weights and the seconds so far."""
    tensors, meta = load_checkpoint(path)
    if differs := sorted(key for key in config if meta["config"].get(key) != config[key]):
        what = f"checkpoint {path} belongs to another run: {', '.join(differs)} differ"
        remedy = "delete it to start again, or repeat the original command"
        raise CamlError(what, "the settings and data it was started with", remedy)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, rest = name.rsplit("/", 1)
        parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    for name, tensor in extra.items():
        tensor.copy_(parts["extra"][name])
    state = {int(part.split("/")[1]): slots for part, slots in parts.items() if part.startswith("optimizer/")}
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return meta["history"], parts["best"], meta["seconds"]


@contextlib.contextmanager
def _explained(device: torch.device) -> Iterator[None]:
    """Say what to do where a device runs out of memory, or BatchNorm is to learn from a single value."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "more than 1 value per channel" in str(error):
            what = f"BatchNorm cannot train on a batch of one: {error}"
            raise CamlError(what, "batches of two or more", "give a larger --batch-size, or more labels") from error
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        what = f"a training step does not fit into the memory of {device}: {str(error).splitlines()[0]}"
        remedy = "end other programs on it, or choose a smaller --batch-size or --backbone (CAML: --order first)"
        raise CamlError(what, "enough for network, optimiser and what a batch leaves behind", remedy) from error
