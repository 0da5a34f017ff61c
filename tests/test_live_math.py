"""The numbers of the explorables are those of the package: math.js in Chromium against caml_core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browsing import Browser
from sample_book import ROOT
from torch import Tensor

from caml_core import acquisition
from caml_core.groups import GroupDataset
from caml_core.hsfm import draw_support, hard_rows, hsfm
from caml_core.hsfm_settings import HYPERGRADIENTS, Settings
from caml_core.hypergradients import Answer, Problem, adjoint
from caml_core.implicit import hypergradient
from caml_core.linear import Adam, cross_entropies
from caml_core.meta import meta_gradient
from caml_core.metrics import group_metrics, wilson
from caml_core.pictures.space import ClipSpace, along, turn

pytest_plugins = ["book_fixtures"]

SEEDS = pytest.mark.parametrize("seed", range(3))
LOAD = """async source => {
    window.math = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
}"""
Math = Callable[..., Any]


@pytest.fixture(scope="module")
def page(browser: Browser) -> Any:
    """A page in which math.js is loaded as `math`."""
    page = browser.page.context.browser.new_page()
    page.evaluate(LOAD, (ROOT / "book" / "live" / "math.js").read_text("utf-8"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def js(page: Any) -> Math:
    """Calls an expression of `math` with arguments a, b, ...: tensors go as lists."""

    def call(expression: str, *arguments: Any) -> Any:
        names = ", ".join("abcdefg"[: len(arguments)])
        return page.evaluate(f"([{names}]) => {expression}", [plain(argument) for argument in arguments])

    return call


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def same(ours: Any, package: Any) -> None:
    """Equal to 1e-5 of the largest number."""
    want = np.asarray(plain(package), dtype=float)
    assert np.abs(want).max() > 0, "a comparison of zeros says nothing"
    np.testing.assert_allclose(np.asarray(ours, dtype=float), want, rtol=0, atol=1e-5 * np.abs(want).max())


def random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(seed: int, classes: int = 3, width: int = 4) -> Problem:
    draw, n, k = random(seed), 9, 12
    return Problem(
        draw(n, width), torch.arange(n) % classes, draw(k, width), torch.arange(k) % classes,
        draw(classes, width), draw(classes),
    )  # fmt: skip


def as_js(p: Problem) -> dict[str, Any]:
    return {
        "support": p.support, "supportY": p.support_y, "hard": p.hard, "hardY": p.hard_y,
        "head": {"weight": p.weight, "bias": p.bias},
    }  # fmt: skip


@SEEDS
def test_head_and_its_training(js: Math, seed: int) -> None:
    p = problem(seed)
    z = p.support @ p.weight.T + p.bias
    head = {"weight": p.weight, "bias": p.bias}
    same(js("math.logits(a, b)", p.support, head), z)
    same(js("a.map(math.softmax)", z), z.softmax(1))
    same(js("a.map(math.argmax)", z), z.argmax(1))
    same(js("math.crossEntropies(a, b)", z, p.support_y), cross_entropies(z[None], p.support_y)[0])

    weights = random(seed)(9).abs()
    weights /= weights.sum()
    parameters = [p.weight.clone().requires_grad_(), p.bias.clone().requires_grad_()]
    losses = torch.nn.functional.cross_entropy(
        p.support @ parameters[0].T + parameters[1], p.support_y, reduction="none"
    )
    loss = (weights * losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = js("math.lossAndGradient(a, b, c, d)", p.support, p.support_y, head, weights)
    same([found["loss"]], [float(loss.detach())])
    same(found["gradient"]["weight"], parameters[0].grad)
    same(found["gradient"]["bias"], parameters[1].grad)

    trained = hypergradient(p, "adjoint", alpha=0.3, steps=7)
    path = js("math.train(a, b, c, {alpha: 0.3, steps: 7})", p.support, p.support_y, head)
    assert len(path) == 8
    same(path[-1]["weight"], trained.weight)
    same(path[-1]["bias"], trained.bias)


@SEEDS
@pytest.mark.parametrize("how", ["adjoint", "first_order", "last"])
def test_hypergradient(js: Math, seed: int, how: str) -> None:
    p = problem(seed, classes=2 + seed)
    if how == "last":
        batch = Problem(*(part[None] for part in p[:6]))  # type: ignore[index]
        answer = Answer(*(part[0] for part in adjoint(batch, alpha=0.4, steps=6, last=2)))
    else:
        assert how in HYPERGRADIENTS
        answer = hypergradient(p, how, alpha=0.4, steps=6)  # type: ignore[arg-type]
    kinds: dict[str, dict[str, Any]] = {"adjoint": {}, "first_order": {"feedback": False}, "last": {"last": 2}}
    found = js("math.hypergradient(a, b)", as_js(p), {"alpha": 0.4, "steps": 6, **kinds[how]})
    same([found["loss"]], [answer.loss])
    same(found["gradient"], answer.gradient)
    same(found["head"]["weight"], answer.weight)


@SEEDS
def test_factors_of_a_quadratic(js: Math, seed: int) -> None:
    """Against autograd: how far the end of a training run follows a shift of its target, over the curvature."""
    alpha, steps, last = 0.4, 9, 4
    curvature = float(random(seed)(1).abs())
    found = js("math.factors(a, b)", curvature, {"alpha": alpha, "steps": steps, "last": last})
    for name, begin in {"exact": 0, "truncated": steps - last}.items():
        target = torch.zeros((), dtype=torch.float64, requires_grad=True)
        theta = torch.ones((), dtype=torch.float64)
        for t in range(steps):
            pull = target if t >= begin else target.detach()
            theta = theta - alpha * curvature * (theta - pull)
        (follows,) = torch.autograd.grad(theta, target)
        same([found[name]], [follows / curvature])
    same([found["first"]], [alpha * steps])
    minimum = torch.linalg.solve(torch.tensor([[curvature + 1 / (alpha * steps)]]), torch.ones(1))
    same([found["implicit"]], minimum)


@SEEDS
def test_adam_clipping_and_hard_set(js: Math, seed: int) -> None:
    draw = random(seed)
    parameter, gradients = draw(3, 4), [draw(3, 4) for _ in range(5)]
    ours = parameter.clone()[None]
    adam = Adam(ours, torch.tensor([0.3], dtype=torch.float64))
    for gradient in gradients:
        adam.step(ours, gradient[None])
    steps = "(() => { const adam = new math.Adam(a, 0.3); b.forEach(g => adam.step(a, g)); return a; })()"
    same(js(steps, parameter, gradients), ours[0])

    for most in (0.5, 100.0):
        want = gradients[0] * (most / gradients[0].norm().clamp_min(most))
        same(js("math.clipped(a, b)", gradients[0], most), want)

    x, y = draw(40, 3), torch.arange(40) % 2
    val = GroupDataset(x, y, y, class_names=("0", "1"), attribute_names=("0", "1"))
    z = draw(40, 2)
    assert js("math.hardRows(a, b, 5)", z, y) == hard_rows(z[None], val, Settings(hard=5), [0], 0)[0].tolist()


@SEEDS
@pytest.mark.parametrize("on_a_sphere", [False, True])
def test_epochs_of_hsfm(js: Math, seed: int, on_a_sphere: bool) -> None:
    draw = random(seed)
    y = torch.arange(40) % 2
    a = (y + (torch.arange(40) % 7 == 0)) % 2
    names = {"class_names": ("0", "1"), "attribute_names": ("0", "1")}
    x = draw(40, 3) + torch.stack([a, 0.5 * y, 0 * y], dim=1)
    train = GroupDataset(x, y, a, **names)  # type: ignore[arg-type]
    val = GroupDataset(draw(40, 3) + x.flip(0), y.flip(0), a.flip(0), **names)  # type: ignore[arg-type]
    settings = Settings(support=4, steps=5, alpha=0.05, eta=0.2, edits=3, hard=6, epochs=4, clip=0.05)
    head: tuple[Tensor, Tensor] = (draw(2, 3), draw(2))
    seen: list[list[Tensor]] = []

    def keep(_epoch: int, *parts: Tensor) -> None:
        seen.append([part[0].clone() for part in parts])

    project = (lambda h: h / h.norm(dim=-1, keepdim=True)) if on_a_sphere else None
    hsfm(train, val, *head, settings, seeds=[seed], on_epoch=keep, project=project)
    rows = draw_support(train, 4, [seed])[0]
    start = {
        "support": train.x[rows], "supportY": train.y[rows], "x": val.x, "y": val.y,
        "head": {"weight": head[0], "bias": head[1]},
    }  # fmt: skip
    wanted = {name: getattr(settings, name) for name in ("steps", "alpha", "eta", "edits", "hard", "clip")}
    epochs = js(
        "(() => { const run = math.hsfm(a, {...b, project: d ? math.unit : undefined});"
        " return c.map(() => run.next().value); })()",
        start, wanted, [1] * 4, on_a_sphere,
    )  # fmt: skip
    for ours, (support, weight, bias, hard) in zip(epochs, seen[1:], strict=True):
        same(ours["support"], support)
        same(ours["head"]["weight"], weight)
        same(ours["head"]["bias"], bias)
        assert ours["rows"] == hard.tolist()


@SEEDS
@pytest.mark.parametrize("how", [
    {"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 0.5, "cumulative": False}, {"alpha": 0.5, "order": "exact"},
    {"alpha": 0.5, "order": "exact", "cumulative": False},
])  # fmt: skip
def test_meta_gradient(js: Math, seed: int, how: dict[str, Any]) -> None:
    draw = random(seed)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        return draw(n, 2), torch.arange(n) % 3

    def loss(theta: Sequence[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        (flat,) = theta
        return torch.nn.functional.cross_entropy(batch[0] @ flat[:6].view(3, 2).T + flat[6:], batch[1])

    theta, tasks = draw(9), [(batch(8), batch(5)) for _ in range(3)]
    for_js = [[{"x": x, "y": y} for x, y in task] for task in tasks]
    (want,) = meta_gradient(loss, [theta], tasks, **how)
    same(js("math.metaGradient(math.softmaxLoss(3, 2), a, b, c)", theta, for_js, how), want)

    def squared(theta: Sequence[Tensor], wish: Any) -> Tensor:
        return 0.5 * (theta[0] - wish).square().sum()

    theta, wishes = draw(2), [(draw(2), draw(2)) for _ in range(3)]
    (want,) = meta_gradient(squared, [theta], wishes, **how)  # type: ignore[arg-type]
    same(js("math.metaGradient(math.pull, a, b, c)", theta, wishes, how), want)


@SEEDS
def test_the_sphere_of_clip(js: Math, seed: int) -> None:
    draw = random(seed)
    e = F.normalize(draw(40, 6) * torch.tensor([3.0, 2, 1, 1, 0.01, 0.001]), dim=1)
    space = ClipSpace.fit(e, keep=0.99)
    made = "new math.Space(a, b)"
    basis = space.mean, space.directions
    u = draw(space.directions.shape[1])
    same(js(f"{made}.to(c)", *basis, e[0]), space.to(e[0]))
    same(js(f"{made}.back(c)", *basis, u), space.back(u))
    same(js(f"{made}.project(c)", *basis, u), space.project(u))
    towards = draw(6)
    same(js("math.turn(a, b, 0.7)", e[0], towards), turn(e[0], towards, torch.tensor(0.7)))
    there = js(f"math.randomMove({made}, c, 0.6, math.normal(1))", *basis, e[0])
    assert (torch.tensor(there) - e[0]).norm() == pytest.approx(0.6)
    assert torch.tensor(there).norm() == pytest.approx(1)
    same([js("math.cosine(a, b)", e[0], e[1])], along(e[0], e[1])[None])


@SEEDS
def test_queries(js: Math, seed: int) -> None:
    draw = random(seed)
    z, features, labelled = draw(60, 3), draw(60, 4), draw(7, 4)
    pool = acquisition.Pool(z, features, labelled, torch.nn.Identity())

    def bought(name: str) -> list[int]:
        return list(acquisition.acquire(name, pool, 9, torch.Generator().manual_seed(seed)).tolist())

    p = z.softmax(1)
    same(js("math.leastConfidence(a)", z), 1 - p.amax(1))
    same(js("math.entropy(a)", z), -(p * p.log()).sum(1))
    first, second = p.topk(2).values.unbind(1)
    same(js("math.margin(a)", z), second - first)
    for name, score in {"least_confidence": "leastConfidence", "margin": "margin", "entropy": "entropy"}.items():
        assert js(f"math.highest(math.{score}(a), 9)", z) == bought(name)
    assert js("math.coreSet(a, b, 9)", features, labelled) == bought("core_set")
    generator = torch.Generator().manual_seed(seed)
    chance = [float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(8)]
    assert js("math.badge(a, b, 9, () => c.shift())", z, features, chance) == bought("badge")


@SEEDS
def test_group_accuracies(js: Math, seed: int) -> None:
    draw = random(seed)
    y, a, counts = torch.arange(90) % 3, (torch.arange(90) * (seed + 1) // 7) % 3, torch.arange(1, 10)
    split = GroupDataset(draw(90, 2), y, a, class_names=("0", "1", "2"), attribute_names=("0", "1", "2"))
    z = draw(90, 3)
    want = group_metrics(z, split, counts)
    found = js("math.groupAccuracies(a, b, c, 3, d)", z.argmax(1), y, a, counts)
    for ours, theirs in {"average": "average", "adjusted": "adjusted", "worst": "worst_group"}.items():
        same([found[ours]], [want[theirs]["value"]])
    same([found["minority"], found["majority"]], [want["minority"]["value"], want["majority"]["value"]])
    for ours, theirs in zip(found["groups"], want["groups"], strict=True):
        if theirs["n"]:
            same(
                [ours[name] for name in ("value", "low", "high", "n")],
                [theirs[n] for n in ("value", "low", "high", "n")],
            )
    low, high = wilson(3, 17)
    same(list(js("math.wilson(3, 17)").values()), [low, high])


def test_a_difference_is_noticed(js: Math) -> None:
    """A wrong formula does not pass: another step size is another gradient."""
    p = problem(0)
    found = js("math.hypergradient(a, {alpha: 0.4001, steps: 6})", as_js(p))
    with pytest.raises(AssertionError):
        same(found["gradient"], hypergradient(p, alpha=0.4, steps=6).gradient)


def test_chance_is_uniform_and_normal(js: Math) -> None:
    drawn = np.array(js("(() => { const next = math.uniform(7); return a.map(() => next()); })()", [0] * 4000))
    assert 0 <= drawn.min() < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.02
    drawn = np.array(js("(() => { const next = math.normal(7); return a.map(() => next()); })()", [0] * 4000))
    assert abs(drawn.mean()) < 0.06
    assert abs(drawn.std() - 1) < 0.05
    assert sorted(js("math.sample(9, 9, math.uniform(3))")) == list(range(9))
