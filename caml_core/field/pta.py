"""PTA, small (Weng et al., arXiv 2604.05584): weigh noisy sensors on a held-out set, pull each towards their mean.

After the authors' code for activity recognition; chapter 21 builds it, results/studies/field_pta.py adds diffusion.
R runs go side by side: x float32 (R, M, N, 64) for M sensors, y int64 (R, N), w = softmax(k) and k (R, M).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from caml_core.errors import CamlError
from caml_core.hypergradients import Problem, adjoint
from caml_core.linear import cross_entropies, head_logits

HIDDEN, WIDTH, CLASSES = 64, 32, 10  # units of an encoder's two layers; digits
NOISE = 0.3  # standard deviation of what a sensor adds


class Sensors(NamedTuple):
    x: Tensor
    y: Tensor
    group: Tensor  # int64 (R, N), what a sensor C sees: 0 the picture, 1 noise, 2 another example's picture


def sense(rows: slice, seeds: Sequence[int], kinds: str = "ABC", bad: float = 1.0) -> Sensors:
    """Rows of scikit-learn's digits, shuffled for each seed, as sensors see them, each of a kind that is a letter.

    A sees the picture; B a third of the sums of its rows and columns; C, in a share `bad`, noise or another's picture.
    """
    (pixels, digits), found = map(torch.from_numpy, load_digits(return_X_y=True)), []
    for g in [torch.Generator().manual_seed(seed) for seed in seeds]:
        order = torch.randperm(len(pixels), generator=g)
        picture, y, chance = pixels[order].float() / 16, digits[order], torch.rand(len(order), generator=g)
        group, other = (chance < bad).long() + (chance < bad / 2), picture[torch.randperm(len(y), generator=g)]
        looks = torch.stack([picture, torch.rand(picture.shape, generator=g), other])
        sums = torch.cat([picture.view(-1, 8, 8).sum(dim=d) for d in (1, 2)], dim=1)
        seen = {"A": picture, "B": F.pad(sums / 3, (0, 48)), "C": looks[group, torch.arange(len(y))]}
        x = torch.stack([seen[kind] for kind in kinds])
        x += NOISE * torch.randn(x.shape, generator=g) * (x.sum(dim=1, keepdim=True) > 0)
        found.append((x[:, rows], y[rows], group[rows]))
    return Sensors(*(torch.stack(parts) for parts in zip(*found)))


def shares(w: Tensor, present: Tensor) -> Tensor:
    """Weights made to sum to 1 over the sensors that are present; a set with nothing in it raises `CamlError`."""
    if not present.any(dim=1).all():
        what = f"an empty set of sensors in run {int(present.any(dim=1).int().argmin())}"
        raise CamlError(what, "at least one sensor in every set", "leave that set out: nothing has no average")
    return F.normalize((w + 1e-6) * present, p=1, dim=1)  # those of weight 0 count equally where they are alone


def fuse(w: Tensor, z: Tensor) -> Tensor:
    """Weighted sum (R, N, F) of features (R, M, N, F), normalised for each example: only ratios of weights matter."""
    return F.layer_norm(torch.einsum("rm,rmnf->rnf", w, z), z.shape[-1:])


def weight_gradient(
    k: Tensor, z: Tensor, y: Tensor, held_z: Tensor, held_y: Tensor, alpha: float = 0.5, steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out loss (R,) of a head trained on fused features, and its gradient in k in two parts, (R, M) each.

    The first is at a fixed head, all that the released code takes; the second is what k changes in the head, through
    its `steps` of size `alpha` from zero, by `caml_core.hypergradients`. Their sum is exact.
    """
    k = k.detach().requires_grad_()
    h, held = fuse(k.softmax(dim=1), z), fuse(k.softmax(dim=1), held_z)
    zero = h.new_zeros(len(h), CLASSES, h.shape[2])
    found = adjoint(Problem(h.detach(), y, held.detach(), held_y, zero, zero[..., 0]), alpha=alpha, steps=steps)
    loss = cross_entropies(head_logits(held, found.weight, found.bias), held_y).mean(dim=1)
    (direct,) = torch.autograd.grad(loss.sum(), k)
    return found.loss, direct, torch.autograd.grad(h, k, found.gradient)[0]


def purify(z: Tensor, y: Tensor, held_z: Tensor, held_y: Tensor, exact: bool = True, rounds: int = 60) -> Tensor:
    """Weights after each round (rounds + 1, R, M) by Adam on k, from equal ones; exact, or as if the head stood."""
    k = z.new_zeros(z.shape[:2])
    optimiser, path = torch.optim.Adam([k], lr=0.1), [k.softmax(dim=1)]
    for _ in range(rounds):
        _, direct, response = weight_gradient(k, z, y, held_z, held_y)
        k.grad = direct + response * exact
        optimiser.step()
        path.append(k.softmax(dim=1))
    return torch.stack(path)


class Network(nn.Module):
    """An encoder of two layers a sensor, a head on the fused features, and k, which starts at the weights given."""

    LAYERS: tuple[tuple[str, int, int], ...] = (("one", 64, HIDDEN), ("two", HIDDEN, WIDTH))

    def __init__(self, seeds: Sequence[int], w: Tensor) -> None:
        super().__init__()
        self.draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        sizes = {name: (w.shape[1], *size) for name, *size in self.LAYERS} | {"head": (WIDTH, CLASSES)}
        start = {name: (2 / size[-2]) ** 0.5 * self.drawn(torch.randn, *size) for name, size in sizes.items()}
        self.maps, self.k = nn.ParameterDict(start), nn.Parameter((w + 1e-6).log())
        self.shifts = nn.ParameterDict({name: torch.zeros_like(at[..., :1, :]) for name, at in start.items()})

    def drawn(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        return torch.stack([draw(*shape, generator=g) for g in self.draws])

    def layer(self, name: str, x: Tensor) -> Tensor:
        return x @ self.maps[name] + self.shifts[name]

    def features(self, x: Tensor) -> Tensor:  # (R, M, N, F)
        return self.layer("two", self.layer("one", x).relu()).relu()

    def logits(self, z: Tensor, present: Tensor) -> Tensor:  # (R, N, C), by the weights of those present
        return self.layer("head", fuse(shares(self.k.softmax(dim=1), present), z))

    def align(self, z: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What the head learns from, (R, M, N, F) like z, and the distance (R, M) to the teacher (R, N, F)."""
        seen, wanted = (F.layer_norm(v, v.shape[-1:]) for v in (z, teacher[:, None]))  # or it would win by small z
        return z, (seen - wanted).square().mean(dim=(2, 3))


def fit(network: Network, train: Sensors, held: Sensors, learn: Tensor, pull: Tensor, steps: int = 600) -> Tensor:
    """Train as released, on batches of 32 with a random set of sensors (its size first): weights over time.

    The weighted mean of those present is their teacher, and stands for the absent. Every ten batches k takes a step on
    the held-out loss at fixed networks, in runs that `learn`, bool (R,). `pull`, float (R,): strength of alignment.
    """
    meta, path = torch.optim.Adam([network.k], lr=0.05), [network.k.detach().softmax(dim=1)]
    main, m = [p for name, p in network.named_parameters() if name != "k"], network.k.shape[1]
    optimiser = torch.optim.Adam(main, lr=2e-3, weight_decay=5e-4)
    for step in range(1, steps + 1):
        rows = (network.drawn(torch.rand, 32) * train.y.shape[1]).long()
        present = network.drawn(torch.rand, m).argsort(dim=1).argsort(dim=1) <= m * network.drawn(torch.rand, 1)
        z = network.features(train.x.gather(2, rows[:, None, :, None].expand(-1, m, -1, 64)))
        mean, taught = shares(path[-1], present), (present.sum(dim=1) > 1) & ((path[-1] * present).sum(dim=1) > 1e-3)
        seen, apart = network.align(z, torch.einsum("rm,rmnf->rnf", mean, z).detach())
        seen = torch.where(taught[:, None, None, None], seen, z)
        fill = (present + (~present).sum(dim=1, keepdim=True) * mean) / m
        loss = cross_entropies(network.layer("head", fuse(fill, seen)), train.y.gather(1, rows)).mean(dim=1)
        optimiser.zero_grad()
        (loss + pull * taught * (apart * present).sum(dim=1) / present.sum(dim=1)).sum().backward()
        optimiser.step()
        if step % 10 == 0:
            logits = network.logits(network.features(held.x).detach(), torch.ones_like(present))
            loss = cross_entropies(logits, held.y).mean(dim=1)
            network.k.grad = torch.autograd.grad(loss.sum(), network.k)[0] * learn[:, None]
            meta.step()
            path.append(network.k.detach().softmax(dim=1))
    return torch.stack(path)
