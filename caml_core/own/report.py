"""The page of an audit: one HTML file that opens anywhere, without a network and without scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caml_core.groups import GroupDataset
from caml_core.own.audit import Audited, neighbours, occlusion, verdict
from caml_core.own.slices import Slice
from caml_core.runs.records import Record, describe
from caml_core.store import write_text

SIDE, SHOWN, MAPS = 112, 12, 4  # pixels of a picture, pictures of a sheet, pictures that are covered cell by cell
STYLE = """
:root { color-scheme: light dark; --text: #1f2933; --back: #fff; --soft: #f3f5f7; --line: #6b7785; --mark: #b3480f; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --back: #14181d; --soft: #20262d; --line: #98a3af; --mark: #f0a070; } }
body { color: var(--text); background: var(--back); font: 1rem/1.6 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; } th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); }
.verdict { font-size: 1.2rem; border-left: .3rem solid var(--mark); padding: .5rem 1rem; background: var(--soft); }
.sheet { display: flex; flex-wrap: wrap; gap: .4rem; margin: .4rem 0 1rem; } .sheet img { width: 5.5rem; height: auto; border-radius: .2rem; }
footer { font-size: .9rem; overflow-wrap: anywhere; border-top: 1px solid var(--line); margin-top: 2rem; }
"""  # noqa: E501


def page(found: Audited, record: Record, file: Path) -> None:
    """Write the report: verdict, groups, slices with their pictures, where it comes from."""
    val = found.pictures[1]
    parts = [f'<p class="verdict">{html.escape(verdict(found))}</p>']
    if found.knows_groups:
        metrics = record["metrics"]
        rows = [[one["name"], str(one["n"]), _percent(one)] for one in metrics["groups"] if one["n"]]
        rows += [
            [name.replace("_", " "), "", _percent(metrics[name])] for name in ("average", "adjusted") if name in metrics
        ]
        parts += ["<h2>Groups</h2>", _table(["group", "pictures", "accuracy (95% interval)"], rows)]
    parts += ["<h2>Parts of a class, found without the attribute</h2>", _table(
        ["class", "found by", "judged", "errors", "errors elsewhere in the class", "difference, 95% interval", ""],
        [[val.class_names[one.label], one.way, str(one.n), f"{one.error:.0f}%", f"{one.rest:.0f}%",
          f"{one.gap:+.0f} [{one.low:+.0f}, {one.high:+.0f}]", "fails" if one.alarm else ""] for one in found.slices],
    )]  # fmt: skip
    parts.append(
        "<p>A part is a rule on the model's features that was learned on one half of the validation split and judged "
        "on the other; the interval counts all parts that were tried. Look at the pictures: what do those that fail "
        "share, which the others lack? A part can fail because its pictures are hard, too.</p>"
    )
    if val.x.ndim == 4:
        for one in (found.alarms or found.slices)[:3]:
            parts.append(_pictures(found, one))
    parts.append(f"<footer><p>{html.escape(describe([record]))}</p></footer>")
    title = "What does this model lean on?"
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    head += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
    write_text(file, f"{head}\n<body><main><h1>{title}</h1>\n" + "\n".join(parts) + "\n</main></body></html>\n")


def _pictures(found: Audited, one: Slice) -> str:
    """A slice and the rest of its class; what the model looks at; what is near."""
    (train, val, _), (train_z, val_z) = found.pictures, found.features
    name = val.class_names[one.label]
    inside = one.rows[:SHOWN].tolist()
    of_class = (val.y == one.label).nonzero().flatten()
    others = of_class[~torch.isin(of_class, one.rows)][:SHOWN].tolist()
    answers = found.logits.argmax(dim=1)
    parts = [f"<h2>{html.escape(name)}: {one.error:.0f}% errors in this part ({one.way})</h2>"]
    parts += ["<h3>In this part</h3>", _sheet(val, inside, answers)]
    parts += ["<h3>In the rest of the class</h3>", _sheet(val, others, answers)]
    if found.network is not None:
        maps = [_covered(val.x[row], occlusion(found.network, val.x[row], one.label)) for row in inside[:MAPS]]
        text = "what the model looks at, as bright cells: without them it is less for this class"
        parts += [
            "<h3>What speaks for the class</h3>",
            _images(maps, [f"Picture {i + 1}: {text}" for i in range(len(maps))]),
        ]
    near = neighbours(train_z, val_z.x[inside[0]]).tolist()
    said = ", ".join(train.class_names[int(train.y[row])] for row in near)
    parts += [f"<h3>Nearest training pictures of the first one ({html.escape(said)})</h3>", _sheet(train, near)]
    return "\n".join(parts)


def _sheet(split: GroupDataset, rows: Sequence[int], answers: Tensor | None = None) -> str:
    names, said = split.class_names, [""] * len(rows)
    if answers is not None:
        said = [f"{names[int(split.y[row])]}, called {names[int(answers[row])]}" for row in rows]
    return _images([split.x[row].permute(1, 2, 0).numpy() for row in rows], said)


def _images(pictures: Sequence[np.ndarray], said: Sequence[str]) -> str:
    shown = []
    for pixels, text in zip(pictures, said):
        data = io.BytesIO()
        Image.fromarray(pixels).resize((SIDE, round(SIDE * pixels.shape[0] / pixels.shape[1]))).save(data, "JPEG")
        code, text = base64.b64encode(data.getvalue()).decode(), html.escape(text, quote=True)
        shown.append(f'<img src="data:image/jpeg;base64,{code}" alt="{text}" title="{text}">')
    return f'<div class="sheet">{"".join(shown)}</div>'


def _covered(x: Tensor, heat: Tensor) -> np.ndarray:
    """A picture whose cells are as bright as they speak for the class: uint8 (H, W, 3)."""
    scale = heat.clamp_min(0) / heat.abs().max().clamp_min(1e-6)
    h, w = x.shape[1:]
    light = np.array(Image.fromarray((255 * (0.4 + 0.6 * scale.numpy())).astype(np.uint8)).resize((w, h)))
    return (x.permute(1, 2, 0).numpy() * (light[..., None] / 255)).astype(np.uint8)


def _percent(one: dict[str, float]) -> str:
    return f"{one['value']:.1f}% [{one['low']:.1f}, {one['high']:.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<th>{html.escape(cell) or '&nbsp;'}</th>" for cell in head)]
    cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f'<table tabindex="0"><tr>{"</tr><tr>".join(cells)}</tr></table>'
