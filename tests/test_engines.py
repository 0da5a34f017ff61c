"""The networks of the pages are those of the package: `book.engines` against PyTorch, and by the bars of the card."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load as read
from sample_book import ROOT
from torch import Tensor

from book import engines
from caml_core.data import load
from caml_core.pictures.clip import embed_images, load_clip, zero_shot
from caml_core.pictures.tiny_unclip import FOLD, LATENT, load_tiny_unclip

NAMES = ("pictures", "texts", "velocity")
STEPS = 10  # as the page draws


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    return read(engines.FILE.read_bytes())


def session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    inference = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda **feeds: torch.from_numpy(inference.run(None, {k: v.numpy() for k, v in feeds.items()})[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_the_network_and_the_file_has_it_in_8_bits(name: str, stored: dict[str, np.ndarray]) -> None:
    network, example = engines.graphs()[name]
    with torch.no_grad():
        want = network.eval()(*example.values())
    exact = engines.to_onnx(network, example)
    assert (session(exact.SerializeToString())(**example) - want).abs().max() < 1e-4
    one = {key: value[:1] for key, value in example.items()}
    assert (session(exact.SerializeToString())(**one) - want[:1]).abs().max() < 1e-4
    whole = engines.to_int8(exact).SerializeToString()
    assert whole == stored[f"{name}.onnx"].tobytes(), "run: python book/engines.py"
    assert (session(whole)(**example) - want).square().mean() < 1e-4 * want.square().mean()


def test_what_is_drawn_in_8_bits_keeps_the_bars_of_the_card(stored: dict[str, np.ndarray]) -> None:
    velocity, pictures = (session(stored[f"{name}.onnx"].tobytes()) for name in ("velocity", "pictures"))
    _, _, test = load("birdscapes", rho=0.5, n_train=2000, seed=0)
    clip, n = load_clip(), 256
    e = embed_images(clip, test.x[:n])
    noise = torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(0))
    pipeline = load_tiny_unclip()
    pipeline.scheduler.set_timesteps(STEPS)

    def drawn(embeds: Tensor, x: Tensor) -> Tensor:
        for t in pipeline.scheduler.timesteps:
            v = velocity(x=x, t=t[None].float(), e=embeds, w=torch.tensor([3.0]))
            x = pipeline.scheduler.step(v, t, x).prev_sample
        return (255 * (F.pixel_shuffle(x, FOLD) / 2 + 0.5).clamp(0, 1)).round()

    x = torch.cat([drawn(*batch) for batch in zip(e.split(32), noise.split(32))])
    again = torch.cat([pictures(x=batch) for batch in x.split(64)])
    agree = {name: 100 * float((zero_shot(clip, again, name) == test.extra[name][:n]).double().mean()) for name in
             ("bird", "background")}  # fmt: skip
    print(agree)
    assert agree["bird"] >= 90
    assert agree["background"] >= 98
    exact = pipeline(image_embeds=e[:16], latents=noise[:16], num_inference_steps=STEPS).images
    assert (x[:16] - 255 * exact).abs().mean() < 1.5  # grey levels


def test_the_file_holds_what_chapter_15_begins_with(stored: dict[str, np.ndarray]) -> None:
    fresh = engines.scenes()
    assert set(stored) == {*fresh, *(f"{name}.onnx" for name in NAMES)}
    for name, value in fresh.items():
        if name == "scenes":  # a JPEG depends on its library
            continue
        np.testing.assert_allclose(stored[name], value, atol=1e-4, err_msg="run: python book/engines.py")
    assert engines.FILE.stat().st_size < 15e6
    assert engines.FILE.is_relative_to(ROOT / "caml_core" / "weights")


@pytest.mark.parametrize("name", ["biased", "fair"])
def test_the_networks_that_are_asked_about_the_bird_are_those_of_their_card(name: str) -> None:
    """As made by results/studies/move_the_bird.py; rounding to 8 bits moves no accuracy by more than a point."""
    file = engines.FILE.with_name("move_the_bird.page.safetensors")
    card = json.loads(file.with_suffix(".json").read_text("utf-8"))["metrics"][name]
    answer = session(read(file.read_bytes())[f"{name}.onnx"].tobytes())
    _, _, test = load("birdscapes", rho=0.5, n_train=2000, seed=0)
    right = ((answer(x=test.x.float()) > 0.5) == test.y).double()
    assert 100 * right[test.is_minority].mean() == pytest.approx(card["minority"], abs=1)
    assert 100 * right[~test.is_minority].mean() == pytest.approx(card["majority"], abs=1)
