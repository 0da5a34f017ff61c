"""The algebra of chapter 24 against definitions and SciPy, its scenes, and its bad inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dct
from scipy.linalg import cholesky, solve_triangular
from torch import Tensor

from caml_core.errors import CamlError
from caml_core.field.detectors import closed_form, descend, evidence, loss_on, meta_train, pretrain
from caml_core.field.scenes import BANDS, Scene, draw_materials, draw_scene, given, shots
from caml_core.field.spectra import Adapter, Body, Scan, Whole, dct_matrix, read, view

LIBRARY = draw_materials(30, 0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(LIBRARY, 1)


def test_the_matrix_is_the_orthonormal_cosine_transform() -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    np.testing.assert_allclose(dct_matrix(8) @ x, dct(x, axis=0, norm="ortho"), atol=1e-6)
    torch.testing.assert_close(dct_matrix(7) @ dct_matrix(7).T, torch.eye(7))


def test_closed_forms_agree_with_whitening_by_cholesky_and_with_the_constraint(scene: Scene) -> None:
    x, s = scene.x.double().numpy(), scene.lab.double().numpy()
    mean, cov = x.mean(axis=0), np.cov(x.T, bias=True) + 0.01 * x.var(axis=0).mean() * np.eye(BANDS)
    lower = cholesky(cov, lower=True)
    z, t = solve_triangular(lower, (x - mean).T, lower=True), solve_triangular(lower, s - mean, lower=True)
    cosine = t @ z / np.linalg.norm(t) / np.linalg.norm(z, axis=0)
    np.testing.assert_allclose(closed_form("ace", scene.x, scene.lab, 0.01), np.sign(cosine) * cosine**2, atol=1e-5)
    np.testing.assert_allclose(closed_form("mf", scene.x, scene.lab, 0.01), t @ z / (t @ t), rtol=1e-4, atol=1e-6)
    # CEM: of all filters that give 1 for s, the one of least energy. Any other direction must cost more.
    got = closed_form("cem", torch.cat([scene.x, scene.lab[None]]), scene.lab).double().numpy()
    assert got[-1] == pytest.approx(1, rel=1e-5)
    w = np.linalg.lstsq(np.vstack([x, s]), got, rcond=None)[0]
    for other in np.random.default_rng(0).normal(size=(5, BANDS)):
        moved = w + 1e-3 * (other - (other @ s) / (s @ s) * s)
        assert np.square(np.vstack([x, s]) @ moved).sum() > np.square(got).sum()


def test_the_scan_is_its_recursion() -> None:
    torch.manual_seed(0)
    scan, u = Scan().double(), torch.randn(3, 6, 32, dtype=torch.float64)
    with torch.no_grad():
        for p in scan.parameters():
            p.add_(0.1 * torch.randn_like(p))
        found = scan(u)
        for pixel in range(3):
            h, out = torch.zeros(32, 8, dtype=torch.float64), []
            for x in u[pixel]:
                step, (write, read_out) = F.softplus(scan.step(x)), scan.gates(x).split(8)
                for channel in range(32):
                    keep = torch.exp(-step[channel] * scan.rate[channel].exp())
                    h[channel] = keep * h[channel] + step[channel] * write * x[channel]
                out.append(scan.out(h @ read_out + scan.skip * x))
            torch.testing.assert_close(found[pixel], torch.stack(out))


@pytest.mark.parametrize("kind", ["dct scan", "scan", "mlp"])
def test_with_its_gate_shut_an_adapter_changes_nothing(kind: str, scene: Scene) -> None:
    torch.manual_seed(0)
    net, seen = Adapter(kind), view(Body(), read(scene, LIBRARY))
    torch.testing.assert_close(net(seen.inputs), seen.frozen, atol=1e-4, rtol=1e-4)
    net.gate.data.fill_(0.5)
    assert (net(seen.inputs) - seen.frozen).abs().max() > 0.01
    assert abs(sum(p.numel() for p in net.parameters()) - 2900) < 30  # all kinds alike


def test_logarithms_do_not_see_a_curve_of_light_and_whitening_leaves_no_direction(scene: Scene) -> None:
    curve = torch.linspace(0.8, 2.0, BANDS)
    bent = scene._replace(x=scene.x.clamp(min=0.05))
    seen = [read(s, LIBRARY, white=False).x for s in (bent, bent._replace(x=bent.x * curve))]
    torch.testing.assert_close(*seen, atol=1e-4, rtol=0)
    before, (x, _, _, _, lab, _) = read(scene, LIBRARY, white=False).x, read(scene, LIBRARY)
    spread = [torch.linalg.eigvalsh(part.T @ part)[8:] for part in (before, x)]  # but for those of almost no noise
    assert spread[0][-1] > 100 * spread[0][0]
    assert spread[1][-1] < 20 * spread[1][0]
    assert lab.square().mean().item() == pytest.approx(1, rel=1e-4)


def test_known_pixels_are_lit_and_half_the_others_are_not(scene: Scene) -> None:
    assert scene.y.sum() == 40
    assert (scene.y[scene.shade] == 1).sum() == 20
    known = given(scene, 5)
    assert scene.y[known].all()
    assert not scene.shade[known].any()
    clean = draw_scene(LIBRARY, 1, clean=True)
    assert torch.equal(clean.y, scene.y)
    assert torch.equal(clean.lab, scene.lab)
    assert scene.x[scene.shade].mean() < 0.6 * scene.x[~scene.shade].mean()
    assert clean.x[clean.shade].mean() > 0.8 * clean.x[~clean.shade].mean()


def test_adaptation_is_gradient_descent(scene: Scene) -> None:
    torch.manual_seed(0)
    net, body = Adapter(), Body()
    net.gate.data.fill_(0.3)
    seen, known = view(body, read(scene, LIBRARY)), shots(scene, 5, 0)
    loss, twin = loss_on(net, seen, known, 0.8), copy.deepcopy(net)
    found = descend(loss, list(net.parameters()), known, 0.05, 3)
    opt = torch.optim.SGD(twin.parameters(), 0.05)
    for _ in range(3):
        opt.zero_grad()
        loss_on(twin, seen, known, 0.8)(list(twin.parameters()), known).backward()  # type: ignore[no-untyped-call]
        opt.step()
    for ours, theirs in zip(found, twin.parameters()):
        torch.testing.assert_close(ours, theirs.detach())


def test_what_is_learned_through_the_steps_is_a_better_start() -> None:
    scenes = [read(draw_scene(LIBRARY, n), LIBRARY) for n in range(4)]
    body = pretrain(scenes, 30, 0, 30)
    net = Whole()
    net.load_state_dict(body.state_dict())
    views = [view(body, s, tokens=False) for s in scenes]

    def after(theta: list[Tensor]) -> float:
        total = 0.0
        for n, seen in enumerate(views):
            known, rest = shots(seen.scene, 5, n), torch.arange(len(seen.scene.y))
            loss = loss_on(net, seen, known, 0.8)
            total += float(loss(descend(loss, theta, known, 0.02, 3), (rest, seen.scene.y)))
        return total

    start = [p.detach().clone() for p in net.parameters()]
    assert after(meta_train(net, views, 0, steps=10, alpha=0.02, lr=2e-3)) < 0.97 * after(start)


def test_a_prototype_is_a_blend(scene: Scene) -> None:
    torch.manual_seed(0)
    net, seen, known = Adapter(), view(Body(), read(scene, LIBRARY)), shots(scene, 5, 0)
    logit = evidence(net, list(net.parameters()), seen, known, beta=0.3)[0]
    e, lab = net(seen.inputs), net(seen.lab)[0]
    target, back = 0.3 * e[known[0][:5]].mean(dim=0) + 0.7 * lab, e[known[0][5:]].mean(dim=0)
    by_hand = ((e - back).norm(dim=1) ** 2 - (e - target).norm(dim=1) ** 2) / 8
    torch.testing.assert_close(logit, by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: given(s, 0), r"^0 known pixels of 20"),
        (lambda s: given(draw_scene(LIBRARY, 0, targets=0), 1), r"^1 known pixels of 0 lit"),
        (lambda s: closed_form("ace", s.x, s.lab[:-1]), r"^a spectrum of shape \(63,\) for pixels of 64 bands"),
        (lambda s: Body()(s.x[:, :60]), r"^spectra of shape \(576, 60\)"),
        (lambda s: closed_form("mf", s.x[:50], s.lab), r"^a singular background covariance \(50 pixels"),
    ],
)
def test_bad_input_is_one_message(call: Callable[[Any], Any], said: str, scene: Scene) -> None:
    with pytest.raises(CamlError, match=said):
        partial(call, scene)()
