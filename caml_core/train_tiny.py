"""How the two small models that come with the book were trained: `python -m caml_core train-tiny clip|unclip`.

Both see only birdscapes in which bird and background are drawn independently (rho = 0.5), so that they know both
factors. A stretch of training ends after `--minutes`; the same command goes on from the checkpoint. Every random draw
of step k comes from (seed, k), so that a run in stretches ends with the same weights as a run in one piece.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caml_core.errors import CamlError

if TYPE_CHECKING:
    from caml_core.data.dataset import GroupDataset
    from caml_core.tiny_clip import Clip
    from caml_core.tiny_unclip import TinyUnCLIPPipeline

DATA_SEED = 2026  # used nowhere else: every other birdscape of the book is held out
EVERY = 250  # steps between two checkpoints
WARMUP = 100  # steps
DECAY = 0.25  # share of the steps over which the step size falls to 0
STEPS = {"clip": 3000, "unclip": 20_000}
BATCH = {"clip": 128, "unclip": 32}


def scenes(progress: bool = True) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
    """The 30,000 scenes that the models learn from, and 2,000 + 2,000 held out."""
    from caml_core.data.birdscapes import load

    return load(rho=0.5, n_train=30_000, n_val=2000, n_test=2000, seed=DATA_SEED, progress=progress)


def step_size(step: int, steps: int) -> float:
    """Share of the full step size: up over WARMUP steps, constant, down to 0 over the last DECAY of the run."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def train(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    opt: torch.optim.Optimizer,
    *,
    steps: int,
    config: dict[str, Any],
    checkpoint: Path,
    minutes: float = math.inf,
    ema: float = 0.999,
    progress: bool = True,
) -> tuple[dict[str, Tensor], list[dict[str, Any]], float] | None:
    """Minimise `loss(step)`; keep an exponential moving average of the weights, which is what is used afterwards.

    Args:
        loss: mean loss of the batch of a step; must draw everything random from (seed, step).
        steps: of the whole run. May differ from that of an earlier stretch while the step size is still constant.
        checkpoint: safetensors file, written every `EVERY` steps and at the end.
        minutes: after which this stretch ends.
        ema: decay of the average a step, lower in the beginning.

    Returns:
        The averaged weights, the mean loss of every `EVERY` steps, the seconds of all stretches; None while
        steps are missing.

    Raises:
        CamlError: the checkpoint is broken or belongs to another run, or the loss is not finite.
    """
    from tqdm.auto import tqdm

    from caml_core.fit import resume_run, save_run

    average = copy.deepcopy(network.state_dict())
    history: list[dict[str, Any]] = []
    seconds = 0.0
    if checkpoint.exists():
        history, average, seconds = resume_run(checkpoint, config, network, opt, {})
    done = history[-1]["step"] if history else 0
    if history and done > (1 - DECAY) * min(steps, history[-1]["of"]) and steps != history[-1]["of"]:
        raise CamlError(
            what=f"{checkpoint} is at step {done} of {history[-1]['of']}, and {steps} were asked for",
            expected="the same number of steps once the step size has begun to fall",
            remedy=f"ask for {history[-1]['of']} steps, or delete the checkpoint to start again",
        )
    full = [group["lr"] for group in opt.param_groups]
    last = time.perf_counter()
    end = last + 60 * minutes
    losses: list[float] = []
    bar = tqdm(range(done, steps), initial=done, total=steps, unit="step", disable=not progress, mininterval=5)
    network.train()
    for step in bar:
        for group, lr in zip(opt.param_groups, full):
            group["lr"] = lr * step_size(step, steps)
        value = loss(step)
        opt.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        opt.step()
        keep = min(ema, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - keep)
            else:
                average[name].copy_(tensor)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise CamlError(
                what=f"the loss became {losses[-1]} at step {step + 1}",
                expected="a finite loss",
                remedy=f"delete {checkpoint} and lower the step size (--lr)",
            )
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            now = time.perf_counter()
            seconds, last = seconds + now - last, now
            history.append({"step": step + 1, "of": steps, "loss": sum(losses) / len(losses)})
            losses = []
            save_run(checkpoint, config, network, opt, average, {}, history, seconds)
            bar.set_postfix_str(f"loss {history[-1]['loss']:.4f}")
            if now > end and step + 1 < steps:
                return None
    return average, history, seconds


# ---- CLIP --------------------------------------------------------------------------------------------------


def train_clip(
    steps: int, folder: Path, device: torch.device, minutes: float, *, lr: float = 1e-3, seed: int = 0
) -> bool:
    """Train the tiny CLIP with open_clip's contrastive loss; at the end write the weights (fp16) and the card."""
    from open_clip import ClipLoss

    from caml_core.data.birdscapes import caption
    from caml_core.data.scenery import Attributes
    from caml_core.device import seeded
    from caml_core.store import save_checkpoint
    from caml_core.tiny_clip import build_clip, load_clip, preprocess, tokenize, zero_shot_accuracy

    train_set, val, test = scenes()
    columns = torch.stack([train_set.extra[name] for name in Attributes._fields], dim=1)
    with seeded(seed):
        network = build_clip().to(device)
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    contrast = ClipLoss()
    said = torch.tensor([0.9, 0.9, 0.7, 0.5, 0.5])  # how often a caption names each of the attributes

    def loss(step: int) -> Tensor:
        with seeded(seed, step + 1):
            rows = torch.randint(len(train_set), (BATCH["clip"],))
            flip = torch.rand(len(rows)) < 0.5
            named = torch.rand(len(rows), len(said)) < said
            contrast_noise = 1 + 0.1 * torch.randn(len(rows), 1, 1, 1)
            tint = 0.05 * torch.randn(len(rows), 3, 1, 1)
        images, attributes = train_set.x[rows], columns[rows].clone()
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        attributes[flip, 3] = 1 - attributes[flip, 3]  # a bird that faced left faces right
        texts = [
            caption(Attributes(*row), include=[f for f, yes in zip(Attributes._fields, keep) if yes])
            for row, keep in zip(attributes.tolist(), named.tolist())
        ]
        x = (preprocess(images) * contrast_noise + tint).to(device, memory_format=torch.channels_last)
        image_features, text_features, scale = network(x, tokenize(texts).to(device))
        value: Tensor = contrast(image_features, text_features, scale)
        return value

    config = {"model": "clip", "seed": seed, "lr": lr, "batch": BATCH["clip"], "data": train_set.content_hash()}
    done = train(network, loss, opt, steps=steps, config=config, checkpoint=folder / "clip.checkpoint", minutes=minutes)
    if done is None:
        return False
    weights, history, seconds = done
    path = folder / "tiny_clip.safetensors"
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_checkpoint(path, half, {"model": "tiny CLIP"})
    accuracy = zero_shot_accuracy(load_clip(weights=path), test)
    write_card(
        folder / "tiny_clip.json",
        "tiny CLIP",
        {"zero_shot": accuracy, "images": len(test)},
        config,
        history,
        seconds,
        device,
    )
    print("zero-shot, per cent of held-out scenes: " + ", ".join(f"{k} {v:.1f}" for k, v in accuracy.items()))
    return True


def write_card(
    path: Path,
    model: str,
    metrics: dict[str, Any],
    config: dict[str, Any],
    history: list[dict[str, Any]],
    seconds: float,
    device: torch.device,
) -> None:
    """The card of a model: what it is, how it was trained, what it can do, and where it may be used."""
    from caml_core.records import provenance
    from caml_core.store import write_text

    card = {
        "model": model,
        "licence": "BSD-3-Clause, as the book",
        "data": f"30,000 birdscapes, rho 0.5, seed {DATA_SEED}; judged on held-out ones",
        "metrics": metrics,
        "config": {**config, "steps": history[-1]["step"]},
        "loss": {record["step"]: round(record["loss"], 4) for record in history if record["step"] % (4 * EVERY) == 0},
        "train_seconds": round(seconds, 1),
        "provenance": provenance(device, seconds),
    }
    write_text(path, json.dumps(card, indent=1) + "\n")


# ---- unCLIP ------------------------------------------------------------------------------------------------


def train_unclip(
    steps: int, folder: Path, device: torch.device, minutes: float, *, lr: float = 1e-3, seed: int = 0
) -> bool:
    """Train the decoder on embeddings of the tiny CLIP; at the end write the weights (fp16) and the card."""
    from diffusers import DDPMScheduler
    from PIL import Image

    from caml_core.device import seeded
    from caml_core.store import atomic, hash_state, save_checkpoint
    from caml_core.tiny_clip import WIDTH, embed_images, load_clip
    from caml_core.tiny_unclip import (
        FOLD,
        LATENT,
        SCHEDULE,
        TIMESTEPS,
        Normaliser,
        build_unet,
        condition,
        load_tiny_unclip,
    )

    train_set, val, test = scenes()
    clip = load_clip(device=device)
    plain, mirrored = (embed_images(clip, images) for images in (train_set.x, train_set.x.flip(3)))
    normaliser = Normaliser().fit(plain)
    plain, mirrored = normaliser(plain), normaliser(mirrored)
    with seeded(seed):
        network = build_unet().to(device)
    opt = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    noiser: Any = DDPMScheduler(**SCHEDULE)
    n = BATCH["unclip"]

    def loss(step: int) -> Tensor:
        with seeded(seed, step + 1):
            rows, flip = torch.randint(len(train_set), (n,)), torch.rand(n) < 0.5
            # Evenly spread times make the loss of a batch less noisy than independent ones.
            times = ((torch.arange(n) + torch.rand(n)) / n * TIMESTEPS).long()
            level = torch.randint(1, 300, (n,)) * (torch.rand(n) < 0.25)  # noise augmentation for every fourth
            told = torch.rand(n, 1) > 0.1  # the others train the unconditional prediction of the guidance
            noise, embedding_noise = torch.randn(n, *LATENT), torch.randn(n, WIDTH)
        images = torch.where(flip[:, None, None, None], train_set.x[rows].flip(3), train_set.x[rows])
        x = F.pixel_unshuffle(images.float() / 127.5 - 1, FOLD)
        c = condition(torch.where(flip[:, None], mirrored[rows], plain[rows]), level, embedding_noise) * told
        noised = noiser.add_noise(x, noise, times).to(device, memory_format=torch.channels_last)
        target = noiser.get_velocity(x, noise, times).to(device)
        unused = torch.zeros(n, 1, 8, device=device)
        v = network(noised, times.to(device), encoder_hidden_states=unused, class_labels=c.to(device)).sample
        return F.mse_loss(v, target)

    config = {"model": "unclip", "seed": seed, "lr": lr, "batch": n, "data": train_set.content_hash()}
    config["clip"] = hash_state(clip.model.state_dict())
    done = train(
        network, loss, opt, steps=steps, config=config, checkpoint=folder / "unclip.checkpoint", minutes=minutes
    )
    if done is None:
        return False
    average, history, seconds = done
    path = folder / "tiny_unclip.safetensors"
    tensors = {f"unet/{name}": value.half() for name, value in average.items()}
    tensors |= {f"normaliser/{name}": value for name, value in normaliser.state_dict().items()}
    save_checkpoint(path, tensors, {"model": "tiny unCLIP"})
    metrics, sheet = judge_decoder(load_tiny_unclip(device, path), clip, val, test)
    write_card(folder / "tiny_unclip.json", "tiny unCLIP", metrics, config, history, seconds, device)
    with atomic(folder / "tiny_unclip.png") as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")
    for name, value in metrics.items():
        print(f"{name}: {value}")
    return True


GUIDANCES = (1.0, 1.5, 2.0, 3.0)


def judge_decoder(
    pipeline: TinyUnCLIPPipeline, clip: Clip, val: GroupDataset, test: GroupDataset, n: int = 512, n_val: int = 256
) -> tuple[dict[str, Any], np.ndarray]:
    """What a reader may expect of the decoder, from held-out scenes decoded from their embeddings.

    The guidance is chosen on validation scenes: the least of those whose decoded birds are read within 1 point of the
    best. `zero_shot` and `by_resnet` are per cent of decoded pictures read like their source, by the tiny CLIP and by
    a small ResNet that was trained on real scenes and never saw the CLIP. MMD^2 (on standardised ImageNet features of
    EfficientNet-Lite0, in the manner of CMMD, Jayasumana et al., arXiv 2401.09603) compares decoded with other real
    scenes; beside it stands what two halves of real scenes have.

    Returns:
        The figures, and a sheet of real scenes (upper rows) above the decoded ones: uint8 (H, W, 3).
    """
    from caml_core.backbones import backbone
    from caml_core.data.scenery import Attributes
    from caml_core.erm import train_erm
    from caml_core.features import extract_features, predict
    from caml_core.tiny_clip import embed_images, zero_shot
    from caml_core.unclip import decode

    device = pipeline.device
    by_guidance = {}
    source = embed_images(clip, val.x[:n_val])
    for guidance in GUIDANCES:
        embedded = embed_images(clip, decode(pipeline, source, guidance=guidance, same_noise=False))
        by_guidance[guidance] = _agree(zero_shot(clip, embedded, "bird"), val.extra["bird"][:n_val])
    best = max(by_guidance.values())
    guidance = min(g for g, value in by_guidance.items() if value >= best - 1)

    source = embed_images(clip, test.x[:n])
    decoded = decode(pipeline, source, guidance=guidance, same_noise=False)
    embedded = embed_images(clip, decoded)
    like = {name: _agree(zero_shot(clip, embedded, name), zero_shot(clip, source, name)) for name in Attributes._fields}
    judged = test.subset(torch.arange(n))
    by_resnet = {}
    for name in ("bird", "background"):
        labelled = val.with_x(val.x)
        labelled.y = val.extra[name]
        judge = backbone("small_resnet", 2)
        train_erm(judge, labelled, labelled, epochs=8, seed=0, device=device, select="average", progress=False)
        real, made = (predict(judge, judged.with_x(x), device).argmax(1) for x in (judged.x, decoded))
        by_resnet[name] = _agree(made, real)
    lite0 = backbone("efficientnet_lite0", 2)
    parts = [decoded, judged.x, *test.x[n : 3 * n].split(n)]
    z = [extract_features(lite0, judged.with_x(x), device, cache=False).x for x in parts]
    mean, std = z[2].mean(0), z[2].std(0).clamp_min(1e-6)
    z = [(features - mean) / std for features in z]
    metrics = {
        "images": n,
        "guidance": guidance,
        "bird agreement on validation by guidance": by_guidance,
        "zero_shot": like,
        "by_resnet": by_resnet,
        "mmd2_decoded_real": round(mmd2(z[0], z[2]), 3),
        "mmd2_real_real": round(mmd2(z[3], z[2]), 3),
    }
    pictures = torch.stack([judged.x[:64].view(4, 16, 3, 48, 48), decoded[:64].view(4, 16, 3, 48, 48)], dim=1)
    sheet = pictures.permute(0, 1, 4, 2, 5, 3).reshape(8 * 48, 16 * 48, 3).numpy()
    return metrics, sheet


def mmd2(x: Tensor, z: Tensor) -> float:
    """1,000 times the unbiased squared maximum mean discrepancy of two samples (N, D) and (M, D).

    Gretton et al., JMLR 13 (2012), equation 3; Gaussian kernel whose width is the median distance in `z`.
    """
    width = torch.cdist(z, z).median()
    xx, zz, xz = (torch.exp(-torch.cdist(p, q).square() / (2 * width**2)) for p, q in ((x, x), (z, z), (x, z)))
    n, m = len(x), len(z)
    value = (xx.sum() - n) / (n * (n - 1)) + (zz.sum() - m) / (m * (m - 1)) - 2 * xz.mean()
    return 1000 * float(value)


def _agree(read: Tensor, said: Tensor) -> float:
    return round(100 * float((read == said).double().mean()), 2)


# ---- command -----------------------------------------------------------------------------------------------


def go_train_tiny(arguments: argparse.Namespace) -> None:
    from caml_core.device import pick_device

    device = pick_device(arguments.device)
    steps = arguments.steps or STEPS[arguments.model]
    make = {"clip": train_clip, "unclip": train_unclip}[arguments.model]
    if not make(steps, arguments.folder, device, arguments.minutes):
        print("stopped after the minutes given; the same command goes on")
