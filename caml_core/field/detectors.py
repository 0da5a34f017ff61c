"""Detectors of chapter 24: three in closed form, and prototypes in the space of a network (`field.spectra`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from caml_core.device import seeded
from caml_core.errors import CamlError
from caml_core.field.scenes import Scene, shots
from caml_core.field.spectra import WIDTH, Body, View
from caml_core.meta import Batch, Loss, Theta, meta_gradient


def closed_form(kind: str, x: Tensor, s: Tensor, ridge: float = 0.0) -> Tensor:
    """Scores (P,) of pixels x (P, B) for a signature s (B,); mean and covariance are those of all pixels.

    `mf`: matched filter; `ace`: adaptive cosine estimator, signed square; `cem`: constrained energy minimisation, with
    the correlation in the place of the covariance. `ridge` is added to the diagonal, as a share of its mean.
    """
    if s.shape != x.shape[1:]:
        what = f"a spectrum of shape {tuple(s.shape)} for pixels of {x.shape[1]} bands"
        raise CamlError(what, "the bands of the scene", "resample the spectrum to the sensor")
    x, s = x.double(), s.double()
    mean = torch.zeros_like(s) if kind == "cem" else x.mean(dim=0)
    z, t = x - mean, s - mean
    cov = z.T @ z / len(z)
    cov = cov + ridge * cov.diagonal().mean() * torch.eye(len(s), dtype=s.dtype)
    spread = torch.linalg.eigvalsh(cov)
    if not spread[0] > 1e-12 * spread[-1]:
        what = f"a singular background covariance ({len(x)} pixels, {len(s)} bands)"
        raise CamlError(what, "more pixels than bands, and no band twice", "give a ridge above 0")
    w = torch.linalg.solve(cov, t)
    score = z @ w / (t @ w)
    if kind == "ace":
        score = score * (z @ w).abs() / (z * torch.linalg.solve(cov, z.T).T).sum(dim=1).clamp(min=1e-12)
    return score.float()


def evidence(net: nn.Module, theta: Theta, view: View, known: Batch, rows: Any = slice(None), beta: float = 0.8) -> Any:
    """Logits (n,) of pixels, their embeddings (n, 32), and the loss terms of the known ones.

    The target's prototype is beta * (mean of the known pixels) + (1 - beta) * (laboratory spectrum, adapted); that of
    the background is a mean. Logit: how much nearer the first is, in squared distance.
    """
    names = [name for name, _ in net.named_parameters()]
    index, y = known
    both = torch.cat([view.inputs[index], view.lab, view.inputs[rows]])
    support, lab, e = functional_call(net, dict(zip(names, theta)), (both,)).tensor_split([len(y), len(y) + 1])
    seen = support[y == 1].mean(dim=0)
    p = torch.stack([support[y == 0].mean(dim=0), beta * seen + (1 - beta) * lab[0]])
    far = (e[:, None] - p).square().sum(dim=-1)
    return (far[:, 0] - far[:, 1]) / 8, e, (seen - lab[0]).square().sum()


def loss_on(net: nn.Module, view: View, known: Batch, beta: float, drift: float = 0.01) -> Loss:
    """The loss of a batch (indices, labels): cross-entropy, balanced over classes, and two pulls of weight `drift`:

    of the known pixels to the laboratory spectrum, and of all embeddings to what the frozen body says.
    """

    def loss(theta: Theta, batch: Batch) -> Tensor:
        index, y = batch
        logit, e, gap = evidence(net, theta, view, known, index, beta)
        each = F.softplus(torch.where(y == 1, -logit, logit))
        parts = [each[y == label].mean() for label in y.unique()]
        pull = gap + (e - view.frozen[index]).square().sum(dim=1).mean()
        return torch.stack(parts).mean() + drift * pull

    return loss


def descend(loss: Loss, theta: Theta, batch: Batch, alpha: float, steps: int) -> list[Tensor]:
    """Gradient steps on one batch: the adaptation to a scene."""
    theta = [p.detach() for p in theta]
    for _ in range(steps):
        theta = [p.requires_grad_() for p in theta]
        slopes = torch.autograd.grad(loss(theta, batch), theta, materialize_grads=True)
        theta = [(p - alpha * g).detach() for p, g in zip(theta, slopes)]
    return theta


def pretrain(scenes: Sequence[Scene], classes: int, seed: int, steps: int, lr: float = 2e-3) -> Body:
    """Learn to name the main material of a background pixel; then freeze."""
    x, main = (torch.cat([getattr(s, name)[s.y == 0] for s in scenes]) for name in ("x", "main"))
    with seeded(seed):
        body, head = Body(), nn.Linear(WIDTH, classes)
        opt = torch.optim.Adam([*body.parameters(), *head.parameters()], lr)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (256,))
            loss = F.cross_entropy(head(body(x[rows]).mean(dim=1)), main[rows])
            opt.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            opt.step()
            plan.step()
    return body.requires_grad_(False).eval()


def meta_train(
    net: nn.Module, views: Sequence[View], seed: int, *, steps: int, alpha: float, lr: float, beta: float = 0.8
) -> list[Tensor]:
    """A start of net's weights from which three steps on 5 lit pixels detect the other pixels of the scene."""
    theta = [p.detach().clone() for p in net.parameters()]
    opt = torch.optim.Adam(theta, lr)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        view = views[int(torch.randint(len(views), (1,), generator=order))]
        known, y = shots(view.scene, 5, seed + step), view.scene.y
        rest = torch.randperm(len(y), generator=order)
        rest = rest[~torch.isin(rest, known[0])]
        query = torch.cat([rest[y[rest] == 1], rest[y[rest] == 0][:128]])
        tasks = [(known, (query, y[query]))]
        grads = meta_gradient(loss_on(net, view, known, beta), theta, tasks, alpha=alpha, inner_steps=3)
        for p, g in zip(theta, grads):
            p.grad = g
        nn.utils.clip_grad_norm_(theta, 1.0)
        opt.step()
        plan.step()
    return [p.detach() for p in theta]
