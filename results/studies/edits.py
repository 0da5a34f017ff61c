"""What HSFM's edits change in CLIP space, with controls: five sets of scenes, written to results/edits.json.

python results/studies/edits.py

Birdscapes with rho = 0.95, embedded by the tiny CLIP. The ERM head is the book's short one (8 epochs), which leans on
the background; HSFM edits five support sets of each seed, for several sizes of an edit. Controls: random moves of the
same lengths; the head trained as long on the unedited support; DFR, which edits nothing.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caml_core.data import load
from caml_core.device import pick_device
from caml_core.groups import GroupDataset
from caml_core.heads import dfr
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import PUBLISHED
from caml_core.last_layer import Head, erm_head
from caml_core.metrics import group_metrics
from caml_core.pictures.clip import Clip, embed_images, load_clip, prompts, text_centres
from caml_core.pictures.space import ClipSpace, along, flips, random_moves
from caml_core.pictures.unclip import decode, load_unclip
from caml_core.runs.records import provenance, write_records

SEEDS, SUPPORTS = range(5), range(5)
ALPHA, ETAS = 1.0, (0.001, 0.003, 0.01, 0.03)
DECODED = 0.01  # the size of an edit whose pictures are decoded
SIGNED = ("bird", "background")  # their moves count as positive towards the label's own side
DIRECTIONS = (*SIGNED, "facing", "size")


def score(head: Head | tuple[Tensor, Tensor], test: GroupDataset) -> dict[str, Any]:
    weight, bias = head[0], head[1]
    metrics = group_metrics(test.x @ weight.T + bias, test)
    return {name: {"value": metrics[name]["value"]} for name in ("worst_group", "average", "minority")}


def measure(clip: Clip, before: Tensor, after: Tensor, y: Tensor, minority: Tensor) -> dict[str, Any]:
    """How far and where the N edits went, and what they flipped, in per cent; unit embeddings (N, width)."""
    moves = after - before
    found = {"length": float(moves.norm(dim=-1).mean())}
    for name in DIRECTIONS:
        low, high = text_centres(clip, prompts(name)[0])
        sign = 2 * y - 1 if name in SIGNED else torch.ones_like(y)
        found[f"along {name}"] = float((along(moves, high - low) * sign).mean())
    flipped = flips(clip, before, after)
    found |= {f"flip {name}": 100 * float(value.float().mean()) for name, value in flipped.items()}
    alone = flipped["background"] & ~flipped["bird"]
    found["flip background, bird kept"] = 100 * float(alone.float().mean())
    for name, rows in (("majority", ~minority), ("minority", minority)):
        found[f"flip background of {name}"] = 100 * float(flipped["background"][rows].float().mean())
    return {name: {"value": round(value, 4)} for name, value in found.items()}


def main() -> int:
    device = pick_device("cpu")
    clip, pipeline = load_clip(), load_unclip("tiny", device)
    records: list[dict[str, Any]] = []
    for seed in SEEDS:
        start = time.perf_counter()
        splits = load("birdscapes", rho=0.95, seed=seed)
        embedded = [split.with_x(embed_images(clip, split.x)) for split in splits]
        space = ClipSpace.fit(embedded[0].x)
        train, val, test = (split.with_x(space.to(split.x)) for split in embedded)
        erm, long = (erm_head(train, val, seed=seed, epochs=epochs) for epochs in (8, 30))
        found: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("erm-head", {"epochs": 8}, score(erm, test)),
            ("erm-head, long", {"epochs": 30}, score(long, test)),
            ("dfr", {}, score(dfr(train, val, seed=seed), test)),
        ]
        for eta in (1e-9, *ETAS):  # an edit of next to nothing: the head's own training
            settings = dataclasses.replace(PUBLISHED["waterbirds"], alpha=ALPHA, eta=eta)
            edits = hsfm(train, val, *erm[:2], settings, seeds=SUPPORTS, project=space.project)
            scores = [score((w, b), test) for w, b in zip(edits.weight, edits.bias)]
            mean = {k: {"value": sum(s[k]["value"] for s in scores) / len(scores)} for k in scores[0]}
            config = {"settings": dataclasses.asdict(settings), "supports": len(SUPPORTS)}
            if eta == 1e-9:
                found.append(("unedited support", config, mean))
                continue
            before, after = (space.back(h).flatten(0, 1) for h in (edits.before, edits.after))
            y, minority = edits.support_y.flatten(), train.is_minority[edits.rows].flatten()
            random = random_moves(space, before, (after - before).norm(dim=-1), seed)
            moved = {"hsfm": after, "random": random}
            for name, there in moved.items():
                metrics = measure(clip, before, there, y, minority)
                if eta == DECODED:
                    first = slice(0, edits.rows.shape[1])  # the first support set
                    pictures = [decode(pipeline, e[first], seed=seed) for e in (before, there)]
                    read = flips(clip, *(embed_images(clip, picture) for picture in pictures))
                    for attribute, value in read.items():
                        metrics[f"decoded flip {attribute}"] = {"value": round(100 * float(value.float().mean()), 4)}
                found.append((f"{name}, eta {eta:g}", config, (mean if name == "hsfm" else {}) | metrics))
        for method, config, metrics in found:
            where = provenance(device, time.perf_counter() - start, "python results/studies/edits.py")
            record = {"method": method, "dataset": "birdscapes", "seed": seed, "metrics": metrics, "config": config}
            records.append({"run": method, **record, "provenance": where})
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    write_records(Path(__file__).parent.parent / "edits.json", records)
    for name in dict.fromkeys(str(record["run"]) for record in records):
        rows: list[Any] = [record["metrics"] for record in records if record["run"] == name]
        print(name, {key: round(sum(row[key]["value"] for row in rows) / len(rows), 2) for key in rows[0]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
