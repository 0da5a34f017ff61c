"""How the two small models that come with the book were trained, into `tiny/`: weights, a card, sheets of pictures.

python results/studies/train_tiny.py clip [FOLDER], then python results/studies/train_tiny.py unclip [FOLDER]

Both see only birdscapes in which bird and background are drawn independently (rho = 0.5), so that they know both
factors. The CLIP takes ten minutes on one core, the decoder one and a half hours. A run that was stopped goes on from
its checkpoint, to the same weights: every random draw of step k comes from (seed, k). The committed weights were made
by an earlier form of this program, whose average began one step earlier.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from open_clip import ClipLoss
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from caml_core.data import birdscapes
from caml_core.data.scenery import Attributes
from caml_core.device import pick_device, seeded
from caml_core.errors import CamlError
from caml_core.features import extract_features, predict
from caml_core.groups import GroupDataset
from caml_core.networks import backbone
from caml_core.pictures import tiny_unclip
from caml_core.pictures.clip import WIDTH, Clip, build_clip, embed_images, load_clip, preprocess, tokenize, zero_shot
from caml_core.pictures.unclip import decode
from caml_core.runs.records import provenance
from caml_core.store import atomic, hash_state, save_checkpoint, write_text
from caml_core.training import Erm, train_erm

SEED, DATA_SEED = 0, 2026  # the second is used nowhere else: every other birdscape of the book is held out
SIZES: dict[str, Any] = {"n_train": 30_000, "n_val": 2000, "n_test": 2000}
STEPS = {"clip": 3000, "unclip": 20_700}
BATCH = {"clip": 128, "unclip": 32}
LR = 1e-3
EVERY = 250  # steps between two checkpoints
WARMUP, DECAY = 100, 0.25  # steps up to the full step size; share of the run over which it falls to 0
EMA = 0.999  # of the average of the weights, a step; less in the beginning
GUIDANCES = (1.0, 1.5, 2.0, 3.0)
Config = dict[str, Any]


def step_size(step: int, steps: int) -> float:
    """Share of the full step size: up over WARMUP steps, constant, down to 0 over the last DECAY of the run."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def train(
    network: nn.Module, loss: Callable[[int], Tensor], opt: torch.optim.Optimizer, checkpoint: Path, config: Config
) -> tuple[dict[str, Tensor], dict[int, float], float]:
    """Minimise `loss(step)`, which draws everything random from (seed, step).

    Returns the moving average of weights and batch statistics, the mean loss of every `EVERY` steps, and seconds.
    """

    def mean(average: Tensor, now: Tensor, n: Tensor | int) -> Tensor:
        return average.lerp(now, 1 - min(EMA, (1 + n) / (10 + n))) if now.is_floating_point() else now

    average = AveragedModel(network, avg_fn=mean, use_buffers=True)
    parts: dict[str, Any] = {"network": network, "average": average, "opt": opt}
    full = [group["lr"] for group in opt.param_groups]
    history, seconds, steps = {}, 0.0, config["steps"]
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["config"] != config:
            raise CamlError(f"{checkpoint} belongs to another run", str(config), "delete it to start again")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history, seconds = saved["history"], saved["seconds"]
    done, start, losses = max(history, default=0), time.perf_counter() - seconds, []
    bar = tqdm(range(done, steps), initial=done, total=steps, mininterval=5)
    network.train()
    for step in bar:
        share = step_size(step, steps)
        for group, lr in zip(opt.param_groups, full):
            group["lr"] = lr * share
        value = loss(step)
        opt.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        opt.step()
        average.update_parameters(network)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise CamlError(f"the loss became {losses[-1]} at step {step + 1}", "a finite loss", "lower LR")
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            history[step + 1], losses = sum(losses) / len(losses), []
            seconds = time.perf_counter() - start
            state = {name: part.state_dict() for name, part in parts.items()}
            with atomic(checkpoint) as temporary:
                torch.save({**state, "config": config, "history": history, "seconds": seconds}, temporary)
            bar.set_postfix_str(f"loss {history[step + 1]:.4f}")
    return average.module.state_dict(), history, seconds


def settings(model: str, images: GroupDataset) -> Config:
    sizes = {"batch": BATCH[model], "steps": STEPS[model]}
    return {"model": model, "seed": SEED, "lr": LR, **sizes, "data": images.content_hash()}


def write_card(file: Path, metrics: dict[str, Any], config: Config, history: dict[int, float], seconds: float) -> None:
    """The card of a model: what it is, how it was trained, what it can do, and where it may be used."""
    card = {
        "model": file.stem.replace("_", " ").replace("clip", "CLIP"),
        "licence": "BSD-3-Clause, as the book",
        "data": f"30,000 birdscapes, rho 0.5, seed {DATA_SEED}; judged on held-out ones",
        "metrics": metrics,
        "config": config,
        "loss": {step: round(value, 4) for step, value in history.items() if step % (4 * EVERY) == 0},
        "train_seconds": round(seconds, 1),
        "provenance": provenance(pick_device(), seconds, f"python results/studies/train_tiny.py {config['model']}"),
    }
    write_text(file, json.dumps(card, indent=1) + "\n")
    print(json.dumps(metrics))


def train_clip(folder: Path, device: torch.device) -> None:
    """Train the tiny CLIP with open_clip's contrastive loss."""
    images, _, test = birdscapes.load(rho=0.5, seed=DATA_SEED, **SIZES)
    columns = torch.stack([images.extra[name] for name in Attributes._fields], dim=1)
    with seeded(SEED):
        network = build_clip().to(device)
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98))
    contrast = ClipLoss()
    said = torch.tensor([0.9, 0.9, 0.7, 0.5, 0.5])  # how often a caption names each of the attributes

    def loss(step: int) -> Tensor:
        with seeded(SEED, step + 1):
            rows = torch.randint(len(images), (BATCH["clip"],))
            flip = torch.rand(len(rows)) < 0.5
            named = torch.rand(len(rows), len(said)) < said
            gain = 1 + 0.1 * torch.randn(len(rows), 1, 1, 1)
            tint = 0.05 * torch.randn(len(rows), 3, 1, 1)
        pixels, attributes = images.x[rows], columns[rows].clone()
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        attributes[flip, 3] = 1 - attributes[flip, 3]  # a bird that faced left faces right
        texts = [
            birdscapes.caption(Attributes(*row), include=[f for f, yes in zip(Attributes._fields, keep) if yes])
            for row, keep in zip(attributes.tolist(), named.tolist())
        ]
        x = (preprocess(pixels) * gain + tint).to(device, memory_format=torch.channels_last)
        value: Tensor = contrast(*network(x, tokenize(texts).to(device)))
        return value

    config = settings("clip", images)
    weights, history, seconds = train(network, loss, opt, folder / "clip.checkpoint", config)
    file = folder / "tiny_clip.safetensors"
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_checkpoint(file, half, {"model": "tiny CLIP"})
    accuracy = zero_shot_accuracy(load_clip(weights=file), test)
    metrics = {"zero_shot": accuracy, "images": len(test)}
    write_card(file.with_suffix(".json"), metrics, config, history, seconds)


def zero_shot_accuracy(clip: Clip, dataset: GroupDataset) -> dict[str, float]:
    """Per cent of a birdscapes split for which each attribute is read off correctly without training."""
    embeddings = embed_images(clip, dataset.x)
    return {name: agreement(zero_shot(clip, embeddings, name), column) for name, column in dataset.extra.items()}


def agreement(read: Tensor, said: Tensor) -> float:
    return round(100 * float((read == said).double().mean()), 2)


def normaliser_of(embeddings: Tensor, shrink: float = 1.0) -> tiny_unclip.Normaliser:
    """From embeddings (N, width); `shrink` is in units of the mean variance and bounds what noise can do."""
    mean = embeddings.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((embeddings.double() - mean).T))
    scale = (values + shrink * values.mean()).rsqrt()
    normaliser = tiny_unclip.Normaliser()
    normaliser.mean.copy_(mean)  # type: ignore[operator]
    normaliser.matrix.copy_(vectors @ torch.diag(scale) @ vectors.T)  # type: ignore[operator]
    return normaliser


def train_unclip(folder: Path, device: torch.device) -> None:
    """Train the decoder on embeddings of the tiny CLIP."""
    images, val, test = birdscapes.load(rho=0.5, seed=DATA_SEED, **SIZES)
    clip = load_clip(device=device)
    plain, mirrored = (embed_images(clip, x) for x in (images.x, images.x.flip(3)))
    normaliser = normaliser_of(plain)
    plain, mirrored = normaliser(plain), normaliser(mirrored)
    with seeded(SEED):
        network = tiny_unclip.build_unet().to(device)
    opt = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01, betas=(0.9, 0.99))
    noiser: Any = DDPMScheduler(**tiny_unclip.SCHEDULE)
    n = BATCH["unclip"]

    def loss(step: int) -> Tensor:
        with seeded(SEED, step + 1):
            rows, flip = torch.randint(len(images), (n,)), torch.rand(n) < 0.5
            # Evenly spread times make the loss of a batch less noisy than independent ones.
            times = ((torch.arange(n) + torch.rand(n)) / n * tiny_unclip.TIMESTEPS).long()
            level = torch.randint(1, 300, (n,)) * (torch.rand(n) < 0.25)  # noise augmentation for every fourth
            told = torch.rand(n, 1) > 0.1  # the others train the unconditional prediction of the guidance
            noise, embedding_noise = torch.randn(n, *tiny_unclip.LATENT), torch.randn(n, WIDTH)
        pixels = torch.where(flip[:, None, None, None], images.x[rows].flip(3), images.x[rows])
        x = F.pixel_unshuffle(pixels.float() / 127.5 - 1, tiny_unclip.FOLD)
        c = (
            tiny_unclip.condition(torch.where(flip[:, None], mirrored[rows], plain[rows]), level, embedding_noise)
            * told
        )
        noised = noiser.add_noise(x, noise, times).to(device, memory_format=torch.channels_last)
        target = noiser.get_velocity(x, noise, times).to(device)
        unused = torch.zeros(n, 1, 8, device=device)
        v = network(noised, times.to(device), encoder_hidden_states=unused, class_labels=c.to(device)).sample
        return F.mse_loss(v, target)

    config = settings("unclip", images) | {"clip": hash_state(clip.model.state_dict())}
    average, history, seconds = train(network, loss, opt, folder / "unclip.checkpoint", config)
    file = folder / "tiny_unclip.safetensors"
    tensors = {f"unet/{name}": value.half() for name, value in average.items()}
    tensors |= {f"normaliser/{name}": value for name, value in normaliser.state_dict().items()}
    save_checkpoint(file, tensors, {"model": "tiny unCLIP"})
    metrics, sheet = judge_decoder(tiny_unclip.load_tiny_unclip(device, file), clip, val, test)
    write_card(file.with_suffix(".json"), metrics, config, history, seconds)
    Image.fromarray(sheet).save(file.with_suffix(".png"))


def judge_decoder(
    pipeline: tiny_unclip.TinyUnCLIPPipeline,
    clip: Clip,
    val: GroupDataset,
    test: GroupDataset,
    n: int = 512,
    n_val: int = 256,
) -> tuple[dict[str, Any], np.ndarray]:
    """What a reader may expect of the decoder, from held-out scenes decoded from their embeddings; and a sheet.

    The guidance is chosen on validation scenes: the least of those whose decoded birds are read within 1 point of the
    best. `zero_shot` and `by_resnet` are per cent of decoded pictures read like their source, by the tiny CLIP and by
    a small ResNet that was trained on real scenes and never saw the CLIP. MMD^2 (on standardised ImageNet features of
    EfficientNet-Lite0, in the manner of CMMD, Jayasumana et al., arXiv 2401.09603) compares decoded with other real
    scenes; beside it stands what two halves of real scenes have. The sheet shows real scenes above the decoded ones.
    """
    device = pipeline.device
    source, by_guidance = embed_images(clip, val.x[:n_val]), {}
    for w in GUIDANCES:
        embedded = embed_images(clip, decode(pipeline, source, guidance=w, same_noise=False))
        by_guidance[w] = agreement(zero_shot(clip, embedded, "bird"), val.extra["bird"][:n_val])
    guidance = min(g for g, value in by_guidance.items() if value >= max(by_guidance.values()) - 1)

    source = embed_images(clip, test.x[:n])
    decoded = decode(pipeline, source, guidance=guidance, same_noise=False)
    embedded = embed_images(clip, decoded)
    like = {f: agreement(zero_shot(clip, embedded, f), zero_shot(clip, source, f)) for f in Attributes._fields}
    judged = test.subset(torch.arange(n))
    by_resnet = {}
    for name in ("bird", "background"):
        labelled = val.with_x(val.x)
        labelled.y = val.extra[name]
        judge = backbone("small_resnet", 2)
        train_erm(judge, labelled, labelled, Erm(epochs=8), device=device, progress=False)
        real, made = (predict(judge, judged.with_x(x), device).argmax(1) for x in (judged.x, decoded))
        by_resnet[name] = agreement(made, real)
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
    return metrics, pictures.permute(0, 1, 4, 2, 5, 3).reshape(8 * 48, 16 * 48, 3).numpy()


def mmd2(x: Tensor, z: Tensor) -> float:
    """1,000 times the unbiased squared maximum mean discrepancy of two samples (N, D) and (M, D).

    Gretton et al., JMLR 13 (2012), equation 3; Gaussian kernel whose width is the median distance in `z`.
    """
    width = torch.cdist(z, z).median()
    xx, zz, xz = (torch.exp(-torch.cdist(p, q).square() / (2 * width**2)) for p, q in ((x, x), (z, z), (x, z)))
    n, m = len(x), len(z)
    value = (xx.sum() - n) / (n * (n - 1)) + (zz.sum() - m) / (m * (m - 1)) - 2 * xz.mean()
    return 1000 * float(value)


def main(model: str, folder: str = "tiny") -> None:
    {"clip": train_clip, "unclip": train_unclip}[model](Path(folder), pick_device())


if __name__ == "__main__":
    main(*sys.argv[1:])
