"""The rows of the leaderboard: every run that `results/tables` lists, with what its records found, or "not run"."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from caml_core.runs.lists import Run, expand
from caml_core.runs.records import Record, result
from caml_core.runs.settings import Frozen, Rounds, words
from caml_core.runs.tables import HSFM, NOT_RUN, by_run, names

LISTS = [name for name in names() if name != "regimes"]  # that one asks where CAML helps, in many small worlds
KNOWS_GROUPS = ("balanced", "groupdro", "balanced-head", "gdro-head")  # of what they are trained on
HEAD = ("method", "setting", "dataset", "backbone", "worst group", "average", "minority", "group labels",
        "labels", "s a seed", "protocol", "published", "seeds", "how")  # fmt: skip
SAID = {  # names in prose
    "hsfm": "HSFM", "dfr": "DFR", "afr": "AFR", "dac": "DaC", "crt": "CRT", "leia": "LEIA", "self": "SELF",
    "evals": "EVaLS", "neurontune": "NeuronTune", "reweight": "ReWeight", "erm-head": "ERM head",
    "jtt-head": "JTT head", "balanced-head": "balanced head", "gdro-head": "GroupDRO head", "caml": "CAML",
    "mldg": "MLDG", "jtt": "JTT", "groupdro": "GroupDRO", "erm_all": "ERM, all labels", "upweight": "up-weight",
}  # fmt: skip
NUMBERS = ("worst group", "average", "minority", "s a seed", "published", "seeds")


class Row(NamedTuple):
    """One line: texts, and the records that they come from."""

    cells: dict[str, str]  # by the names of `HEAD`
    records: Sequence[Record]


def rows() -> list[Row]:
    """A row for each name of a list, all seeds together; where fewer than three seeds were run there is none."""
    found = []
    for name in LISTS:
        file, records = result(f"tables/{name}.toml"), by_run(name)
        assert file is not None
        seen: dict[str, Run] = {}
        for run in expand(file):
            seen.setdefault(run.name, run)
        found += [row(run, of) for run in seen.values() if len(of := records.get(run.name, [])) not in (1, 2)]
    return found


def row(run: Run, records: Sequence[Record]) -> Row:
    method, data = run.method, run.data
    rho = "" if data.rho is None else f", rho {data.rho}"
    classes = " (10 classes)" if data.option.get("protocol") == "caml" else ""
    trained = getattr(method, "train_backbone", None)
    how = f"ERM here, {trained} epochs" if trained else "frozen" if isinstance(method, Frozen) else "trained"
    start = "random" if method.from_scratch or method.backbone.startswith("small") else "ImageNet"
    said = run.name.replace(f"{method.method}-", "").split(", ")
    setting = ", ".join(part for part in said if part not in (method.method, data.dataset, "resnet"))
    used = max((one["rounds"][-1]["labels"] for one in records if one.get("rounds")), default=None)
    if used is None and isinstance(method, Rounds) and method.method != "erm_all":
        used = method.start + method.rounds * method.query
    few = getattr(method, "val_labels", None)
    comparable = isinstance(method, Frozen) and setting in ("", "authors")
    published = HSFM.get(data.dataset.title(), {}).get(method.method) if comparable else None
    seconds = [one["train_seconds"] for one in records if "train_seconds" in one]
    command = shlex.join(["python", "-m", "caml_core", *words(method, data), "--out", "FILE.json"])
    cells = {
        "method": SAID.get(method.method, method.method),
        "setting": setting,
        "dataset": data.dataset + classes + rho,
        "backbone": f"{method.backbone} ({start}; {how})",
        **{
            said: interval(records, metric)
            for said, metric in (("worst group", "worst_group"), ("average", "average"), ("minority", "minority"))
        },
        "group labels": supervision(run),
        "labels": f"{used:,} bought" if used else "all" if few is None else f"all; {few} of validation",
        "s a seed": f"{np.mean(seconds):,.1f}" if seconds else "",
        "protocol": getattr(method, "protocol", "ours"),
        "published": " / ".join(f"{cell[0]:.1f}" for cell in published) if published else "",
        "seeds": str(len(records)) if records else "",
        "how": command,
    }
    return Row(cells, records)


def supervision(run: Run) -> str:
    """Who must know groups: to train on them, to choose by them, or nobody."""
    method = run.method
    if getattr(method, "val_groups", None):
        return "none"
    trains = method.method in KNOWS_GROUPS or getattr(method, "by", "") == "group"
    said = ["training"] if trains else ["validation, to train"] if method.method == "dfr" else []
    rule = getattr(method, "select", "worst_group")
    if rule in ("worst_group", "minority") and method.method != "erm-head":
        said.append("validation, to choose")
    return "; ".join(said) or "none"


def interval(records: Sequence[Record], metric: str) -> str:
    """Mean over seeds and half of its 95% interval (Student's t); from three seeds on."""
    values = [one["metrics"][metric]["value"] for one in records]
    if not values:
        return NOT_RUN
    if None in values:
        return "none"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 2 else np.nan
    return f"{np.mean(values):.1f}" + (f" ± {half:.1f}" if np.isfinite(half) else "")


def table() -> str:
    """All rows as HTML; the best come first, those that were not run last."""

    def place(one: Row) -> tuple[bool, float]:
        value = one.cells["worst group"].split()[0]
        return not one.records, -float(value) if one.records and value != "none" else 0.0

    def cell(name: str, one: Row) -> str:
        text = html.escape(one.cells[name])
        if name == "how":
            said = html.escape(" ".join(origin(one.records)))
            return f"<details><summary>command</summary><code>{text}</code> {said}</details>"
        return text

    def order(name: str, one: Row) -> str:
        """What a column of numbers is sorted by."""
        if name not in NUMBERS:
            return ""
        first = one.cells[name].replace(",", "").split()[:1]
        return f' data-order="{first[0] if first and first[0][0].isdigit() else -1}"'

    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    lines = [
        "<tr>" + "".join(f"<td{order(name, one)}>{cell(name, one)}</td>" for name in HEAD) + "</tr>"
        for one in sorted(rows(), key=place)
    ]
    body = "\n".join(lines)
    return (
        f'<div class="leaderboard" role="region" tabindex="0" aria-label="Leaderboard">'
        f'<table class="table"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def origin(records: Sequence[Record]) -> list[str]:
    where = [one["provenance"] for one in records]
    return sorted({f"{one['device']}, {one['date'][:10]}, commit {one['commit']}" for one in where})
