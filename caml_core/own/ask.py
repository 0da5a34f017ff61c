"""Ask: which pictures somebody should look at, and their answers, kept in a csv that a spreadsheet opens.

What is asked is the attribute: what is it in the picture that the model may be looking at? A folder of pictures and
`labels.csv` (picture, row, y, a) are all that is needed; `caml_core.own.label` fills the same file in a notebook.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from caml_core.data.listing import codes, read_csv
from caml_core.device import stream_seed
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.own.slices import Slice
from caml_core.store import write_text

Rule = Literal["slices", "hardest", "random"]
HEADER = ("picture", "row", "y", "a")
UNSURE = "?"  # the answer of somebody who cannot tell; it does not count


def queue(
    y: Tensor, logits: Tensor, slices: Sequence[Slice], n: int, *, rule: Rule = "slices", seed: int = 0
) -> Tensor:
    """Rows to ask about, in the order to ask in, classes in turn: int64 (n,).

    - `slices`: as many from inside the first slice of a class as from the rest of it (a class without one: `hardest`);
    - `hardest`: the highest and the lowest losses in turn, as chapter 16 and EVaLS choose;
    - `random`.

    Args:
        y, logits: labels (N,) and the model's answers (N, C).
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, 1))
    losses = F.cross_entropy(logits.double(), y, reduction="none")
    columns = []
    for label in y.unique().tolist():
        rows = (y == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        inside = next((one.rows for one in slices if one.label == label), None)
        if rule == "slices" and inside is not None:
            rest = rows[~torch.isin(rows, inside)]
            columns += [inside[torch.randperm(len(inside), generator=generator)], rest]
        elif rule == "random":
            columns.append(rows)
        else:
            order = rows[losses[rows].argsort(descending=True, stable=True)]
            columns += [order, order.flip(0)]
    asked: dict[int, None] = {}
    for turn in range(max(map(len, columns))):
        asked.update(dict.fromkeys(int(column[turn]) for column in columns if turn < len(column)))
    return torch.tensor(list(asked)[:n])


def write_folder(folder: Path, split: GroupDataset, rows: Tensor) -> Path:
    """Pictures to look at and `labels.csv` to fill in; where it is there, answers stay and only new rows are added.

    Returns:
        the csv.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    file = folder / "labels.csv"
    lines = read_lines(file) if file.exists() else []
    known = {int(line[1]) for line in lines}
    for row in rows.tolist():
        if row not in known:
            name = f"pictures/{row:06}.jpg"
            Image.fromarray(split.x[row].permute(1, 2, 0).numpy()).save(folder / name, quality=90)
            lines.append([name, str(row), split.class_names[int(split.y[row])], ""])
    save(file, lines)
    return file


def read_lines(file: Path) -> list[list[str]]:
    """Its rows, each as picture, row, y and a."""
    columns = read_csv(file, HEADER[:3])
    return [list(line) for line in zip(*(columns[name] for name in HEADER))]


def save(file: Path, lines: Sequence[Sequence[str]]) -> None:
    """Rows under the header, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *lines])
    write_text(file, text.getvalue())


def read_answers(file: Path, split: GroupDataset) -> GroupDataset:
    """The examples whose attribute was answered, with it; lines without an answer do not count.

    Args:
        split: the one that was asked about.

    Raises:
        CamlError: no answer, a row that the split does not have or with another label, one attribute only.
    """
    columns = read_csv(file, HEADER[:3]) if file.exists() else {}
    answered = [i for i, answer in enumerate(columns.get("a", [])) if answer not in ("", UNSURE)]
    if not answered:
        raise CamlError(f"{file} has no answer in its column `a`", "words for what you see", "fill in some, then go on")
    labels = codes(columns, "y", {name: k for k, name in enumerate(split.class_names)}, file)
    rows, y = [int(columns["row"][i]) for i in answered], [int(labels[i]) for i in answered]
    if not all(0 <= row < len(split) and int(split.y[row]) == label for row, label in zip(rows, y)):
        remedy = "use the csv with the data and the seed that it was written for"
        raise CamlError(f"{file} was not written for these pictures", "their rows and labels", remedy)
    answers = [columns["a"][i].casefold() for i in answered]
    words = sorted(set(answers))
    if len(words) < 2:
        what = f"{file}: every answer is {words[0]!r}"
        raise CamlError(what, "two or more, such as land and water", "answer more pictures, or look for something else")
    a = [words.index(answer) for answer in answers]
    return GroupDataset(
        split.x[rows], y, a, class_names=split.class_names, attribute_names=words, index=split.index[rows],
        majority=torch.zeros(len(split.class_names), len(words)), source=split.source,
    )  # fmt: skip
