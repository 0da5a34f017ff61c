"""The two networks of the page "Move the bird", and what it moves: python results/studies/move_the_bird.py

Chapter 00's network, trained as there on birdscapes whose background gives the bird away (rho 0.95), and the same with
bird and background independent (rho 0.5). Two minutes on one core. They become ONNX of 8 bits (`book.engines`) in
caml_core/weights/move_the_bird.page.safetensors, beside birds cut out of test scenes and a strip of backgrounds; the
card next to it says how they were made and what they get right.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from scipy.ndimage import label
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # run as a script, Python looks only beside this file
    sys.path.insert(0, str(ROOT))

from book.engines import to_int8, to_onnx  # noqa: E402
from caml_core.data import load  # noqa: E402
from caml_core.data.backgrounds import Canvas, draw_land, draw_water  # noqa: E402
from caml_core.data.birdscapes import draw  # noqa: E402
from caml_core.device import pick_device  # noqa: E402
from caml_core.features import predict  # noqa: E402
from caml_core.metrics import group_metrics  # noqa: E402
from caml_core.networks import backbone  # noqa: E402
from caml_core.runs.records import provenance  # noqa: E402
from caml_core.store import atomic, write_text  # noqa: E402
from caml_core.training import Erm, train_erm  # noqa: E402

FILE = ROOT / "caml_core" / "weights" / "move_the_bird.page.safetensors"
RHOS = {"biased": 0.95, "fair": 0.5}
RECIPE = Erm(epochs=8, lr=2e-3, batch_size=32, select="last")
BIRDS = ((0, 0), (0, 3), (1, 0), (1, 2))  # kind, number of the test scene
STRIP = (0, 1, 0, 1)  # land, water, land, water


class Answer(nn.Module):
    """Pictures float (N, 3, 48, 48) of 0 to 255 to the probability of a waterbird (N,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 255).softmax(dim=1)[:, 1]


def cut_out(bird: int, k: int) -> np.ndarray:
    """A bird alone: the pixels that stay when its background is exchanged, uint8 (48, 48, 4)."""
    one, other = (draw(bird, bird, k, split="test", onto=place)[0] for place in (0, 1))
    parts, n = label((one == other).all(axis=-1))
    largest = parts == 1 + np.argmax([(parts == i).sum() for i in range(1, n + 1)])
    return np.concatenate([one, 255 * largest[..., None].astype(np.uint8)], axis=-1)


def strip() -> np.ndarray:
    """Backgrounds side by side, without a bird: uint8 (48, 192, 4)."""
    panels = []
    for k, place in enumerate(STRIP):
        canvas = Canvas(48)
        (draw_land, draw_water)[place](canvas, np.random.default_rng([7, k]))
        panels.append(canvas.finish())
    picture = np.concatenate(panels, axis=1).round().astype(np.uint8)
    return np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=-1)


def main() -> None:
    start, device = time.perf_counter(), pick_device("cpu")
    arrays: dict[str, Any] = {"birds": np.stack([cut_out(*bird) for bird in BIRDS]), "strip": strip()}
    card: dict[str, Any] = {"model": "small ResNet", "licence": "BSD-3-Clause, as the book", "metrics": {}}
    for name, rho in RHOS.items():
        train, val, test = load("birdscapes", rho=rho, n_train=2000, seed=0)
        network = backbone("small_resnet", n_classes=2, seed=0)
        train_erm(network, train, val, RECIPE, seed=0, device=device)
        metrics = group_metrics(predict(network, test, device), test, train.group_counts)
        card["metrics"][name] = {key: round(metrics[key]["value"], 2) for key in ("average", "minority", "majority")}
        print(name, card["metrics"][name])
        model = to_int8(to_onnx(Answer(network).eval(), {"x": test.x[:2].float()}))
        arrays[f"{name}.onnx"] = np.frombuffer(model.SerializeToString(), np.uint8)
    card |= {"data": "2,000 birdscapes, seed 0, as chapter 00", "rho": RHOS, "recipe": vars(RECIPE)}
    seconds = time.perf_counter() - start
    card["provenance"] = provenance(device, seconds, "python results/studies/move_the_bird.py")
    with atomic(FILE) as temporary:
        temporary.write_bytes(save(arrays))
    write_text(FILE.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
