"""The loop around every training: score each epoch, keep the best, save so that a killed run goes on to the same end.

What happens inside an epoch is a function handed in; it must draw all its randomness from (seed, epoch), as
`caml_core.device.seeded` and `stream_seed` do, so that there is no random state to restore.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from caml_core.data.dataset import GroupDataset
from caml_core.errors import CamlError
from caml_core.features import predict
from caml_core.metrics import group_metrics, select_epoch
from caml_core.store import load_checkpoint, save_checkpoint


@dataclass
class Run:
    """What training leaves beside the network, which holds the chosen epoch's weights at the end."""

    history: list[dict[str, Any]]  # one an epoch: epoch (from 1), loss, whatever the epoch reports, val metrics
    best_epoch: int  # counted from 1
    rule: str  # how it was chosen, in words
    seconds: float  # of training, over all resumed parts


def fit(
    network: nn.Module,
    opt: torch.optim.Optimizer,
    run_epoch: Callable[[int], dict[str, Any]],
    val: GroupDataset,
    *,
    epochs: int,
    config: dict[str, Any],
    select: str,
    device: torch.device,
    train_counts: Tensor | None = None,
    extra: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Run `epochs` epochs and leave the network with the weights of the best one.

    Args:
        run_epoch: called with the epoch (from 0), trains the network in place, returns at least `loss`.
        config: JSON-able settings; a checkpoint written under others is refused.
        select: rule for the epoch (`caml_core.metrics.select_epoch`), on the validation split.
        train_counts: int64 (n_groups,), for the adjusted average.
        extra: tensors changed in place by `run_epoch`, saved and restored with the weights.
        checkpoint: safetensors file written after every epoch; when it is there, training goes on from it.
        on_epoch: called with (epoch from 1, network) after each epoch; must not change the network.

    Raises:
        CamlError: the checkpoint belongs to another run, or the loss is not finite.
    """
    (run,) = fit_all(
        [network],
        opt,
        lambda epoch: [run_epoch(epoch)],
        [val],
        epochs=epochs,
        config=config,
        select=select,
        device=device,
        train_counts=[train_counts],
        extra=extra,
        checkpoint=checkpoint,
        progress=progress,
        on_epoch=on_epoch,
    )
    return run


def fit_all(
    networks: Sequence[nn.Module],
    opt: torch.optim.Optimizer,
    run_epoch: Callable[[int], Sequence[dict[str, Any]]],
    vals: Sequence[GroupDataset],
    *,
    epochs: int,
    config: dict[str, Any],
    select: str,
    device: torch.device,
    train_counts: Sequence[Tensor | None],
    extra: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> list[Run]:
    """`fit` for networks that one epoch trains side by side (`caml_core.stacked`): one optimiser and one checkpoint,
    but each its own history and its own best epoch. `on_epoch` sees the first network; seconds are shared out.
    """
    extra, together = extra or {}, nn.ModuleList(networks)
    chance = [100 * float(torch.bincount(val.y).max()) / len(val) for val in vals]
    histories: list[list[dict[str, Any]]] = [[] for _ in networks]
    best_state = copy.deepcopy(together.state_dict())
    seconds = 0.0
    if checkpoint is not None and checkpoint.exists():
        histories, best_state, seconds = resume_run(checkpoint, config, together, opt, extra)

    done = len(histories[0])
    bar = tqdm(range(done, epochs), initial=done, total=epochs, unit="epoch", disable=not progress)
    for epoch in bar:
        start = time.perf_counter()
        together.train()
        reports = run_epoch(epoch)
        for i, (network, report, history) in enumerate(zip(networks, reports, histories)):
            if not math.isfinite(report["loss"]):
                raise CamlError(
                    what=f"the loss became {report['loss']} in epoch {epoch + 1}",
                    expected="a finite loss",
                    remedy="lower the learning rate (--lr)",
                )
            metrics = group_metrics(predict(network, vals[i], device), vals[i], train_counts[i])
            history.append({"epoch": epoch + 1, **report, "val": metrics})
            if select_epoch(history, select, chance[i])[0] == epoch:
                best_state |= {f"{i}.{name}": value.clone() for name, value in network.state_dict().items()}
        seconds += time.perf_counter() - start
        if checkpoint is not None:
            save_run(checkpoint, config, together, opt, best_state, extra, histories, seconds)
        if on_epoch is not None:
            on_epoch(epoch + 1, networks[0])
        bar.set_postfix_str(
            f"loss {report['loss']:.3f}, validation WGA {metrics['worst_group']['value']:.1f}, "
            f"average {metrics['average']['value']:.1f}"
        )
    together.load_state_dict(best_state)
    together.eval()
    chosen = [select_epoch(history, select, rate) for history, rate in zip(histories, chance)]
    return [Run(history, best + 1, rule, seconds / len(networks)) for history, (best, rule) in zip(histories, chosen)]


def save_run(
    path: Path,
    config: dict[str, Any],
    network: nn.Module,
    opt: torch.optim.Optimizer,
    best_state: dict[str, Tensor],
    extra: dict[str, Tensor],
    history: list[Any],
    seconds: float,
) -> None:
    """Write what a later call of `resume_run` needs; `best_state` is whatever weights the caller keeps beside."""
    tensors = {f"network/{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best_state.items()}
    tensors |= {f"extra/{name}": value for name, value in extra.items()}
    tensors |= {
        f"optimizer/{i}/{name}": torch.as_tensor(value)
        for i, slots in opt.state_dict()["state"].items()
        for name, value in slots.items()
        if value is not None
    }
    save_checkpoint(path, tensors, {"config": config, "history": history, "seconds": seconds})


def resume_run(
    path: Path,
    config: dict[str, Any],
    network: nn.Module,
    opt: torch.optim.Optimizer,
    extra: dict[str, Tensor],
) -> tuple[list[Any], dict[str, Tensor], float]:
    """Restore network, optimiser and `extra` in place; the history, the weights kept beside, and the seconds so far.

    Raises:
        CamlError: the file is broken, or was written under another config or for another network.
    """
    tensors, meta = load_checkpoint(path)
    if meta["config"] != config:
        differs = sorted(key for key in config if meta["config"].get(key) != config[key])
        raise CamlError(
            what=f"checkpoint {path} belongs to another run: {', '.join(differs)} differ",
            expected="the settings and data it was started with",
            remedy="delete it to start again, or repeat the original command",
        )
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "extra": {}, "optimizer": {}}
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
    for name, tensor in extra.items():
        tensor.copy_(parts["extra"][name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        i, slot = name.split("/")
        state.setdefault(int(i), {})[slot] = tensor
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return meta["history"], parts["best"], meta["seconds"]
