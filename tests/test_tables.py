"""Published numbers beside ours: each cell comes from a record; the book shows no number that no record carries."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from sample_book import ROOT

from book import pairs
from caml_core.__main__ import main
from caml_core.runs import tables as published
from caml_core.runs.records import stored

STORED = sorted(file.stem for file in (ROOT / "results").glob("*.json"))
OF_RECORDS = ("07_caml", "09_caml_tables", "12_hsfm_tables", "16_active_hsfm")  # show stored numbers, a run a row
TYPED = r"(?<![\w./])\d+\.\d+(?![\w.])"  # a decimal in prose
PAIR = r"(\d+\.\d)\s*±\s*(\d+\.\d)"
INTERVAL = r"([+-]\d+\.\d)\s*\[([+-]\d+\.\d), ([+-]\d+\.\d)\]"
SAID = {"0.5", "99.9", "3.11", "3.12", "3.13"}  # the least rho, variance that CLIP keeps, versions of Python


def record(run: str, seed: int, wga: float) -> dict[str, Any]:
    metrics = {name: {"value": wga + step} for step, name in enumerate(published.METRICS)}
    where = {
        "device": "cpu (1 threads)",
        "date": "2026-01-02 03:04 UTC",
        "commit": "0123456789ab",
        "wall_seconds": 36.0,
    }
    return {"run": run, "method": run, "seed": seed, "metrics": metrics, "provenance": where}


# ---- tables -------------------------------------------------------------------------------------------------


def test_summary_has_a_row_for_every_run_and_says_what_was_not_run() -> None:
    lines = published.summary([record("a", 0, 50.0), record("a", 1, 52.0)], names=["b", "a"]).splitlines()
    assert lines[2] == "| b | not run | not run | not run |  |  |  |  |"
    spread = "51.0\u00a0±\u00a01.4"
    assert lines[3].startswith(f"| a | {spread} | 52.0")
    assert lines[3].endswith("| 2 | cpu (1 threads) | 2026-01-02 | 0123456789ab |")
    assert lines[-1] == "2 runs, 0.02 hours of computing in all"


def test_a_gain_is_paired_over_the_seeds_that_both_have() -> None:
    ours = [record("a", seed, 10.0 * seed - 3) for seed in (0, 1, 2, 3)]
    other = [record("b", seed, 10.0 * seed) for seed in (1, 2, 3, 7)]
    assert published.gain_text(ours, other, "worst_group") == "−3.0 [−3.0, −3.0], n\u00a0=\u00a03"
    assert published.gain_text(ours, other[1:], "worst_group") == "−3.0, n\u00a0=\u00a02", "two seeds have no interval"
    assert published.gain_text(ours, other[3:], "worst_group") == "not run"


def test_tables_show_every_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables"]) == 0
    shown = capsys.readouterr().out
    for name in ("digits", "regimes", "birdscapes", "dominoes10", "heads", "heads_resnet"):
        assert f"### {name}\n" in shown
    assert "| append-badge | not run | not run | not run |  |  |  |  |" in shown
    assert f"| hsfm | {published.mean_text(published.by_run('heads')['hsfm'], 'worst_group')} |" in shown
    for line in shown.splitlines():
        if line.startswith("|"):
            n, device, date, commit = line.split(" | ")[-4:]
            assert bool(n) == bool(device) == bool(date) == bool(commit.strip(" |")), line


def test_an_unknown_table_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "waterbirds"]) == 2
    assert "no stored results 'waterbirds'" in capsys.readouterr().err


def test_broken_records_are_not_taken_for_missing_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits.json").write_text("[{")
    monkeypatch.setattr("caml_core.runs.records.__file__", str(tmp_path / "caml_core" / "runs" / "records.py"))
    with pytest.raises(Exception, match="not a readable"):
        published.by_run("digits")


# ---- numbers in the book ------------------------------------------------------------------------------------


Carried = dict[str, set[tuple[str, ...]]]  # name of a row: what is printed of it; "": of any


def told(d: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{d[key]:+.1f}" for key in ("mean", "low", "high"))


def carried() -> Carried:
    """(mean, spread) of every run and metric, and (mean, low, high) of every paired difference.

    As they are printed; by the name of the run, and for differences of the first of the two.
    """
    found: Carried = defaultdict(set)
    for table in STORED:
        runs = published.by_run(table)
        every = [record["metrics"] for records in runs.values() for record in records]
        metrics = [m for m in published.METRICS if all((one.get(m) or {}).get("value") is not None for one in every)]
        for metric in metrics:
            for name, records in runs.items():
                if pair := re.fullmatch(PAIR, published.mean_text(records, metric)):
                    found[name].add(pair.groups())
            for (name, a), b in itertools.product(runs.items(), runs.values()):
                if len({r["seed"] for r in a} & {r["seed"] for r in b}) > 1:
                    found[name].add(told(published.paired(a, b, metric)))
    for name, values in active().items():
        found[name] |= values
    found[""] = set().union(*found.values())
    for methods in published.HSFM.values():
        for cells in methods.values():
            found[""] |= {(f"{cell[0]:.1f}", f"{cell[1]:.1f}") for cell in cells if len(cell) > 1}
    return found


def active() -> Carried:
    """Rows of chapter 16: each dataset and budget, against `append`, and in the pairs that it prints."""
    source = (ROOT / "notebooks" / "16_active_hsfm.py").read_text("utf-8")
    rows = {name: key for name, *key in re.findall(r'^    "(.+)": \("(.+)", "(.+)", ".*"\),$', source, re.MULTILINE)}
    runs: dict[tuple[str, str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for one in stored("active_hsfm"):
        for method, scores in one["metrics"].items() if one["method"] == "all" else ():
            for at, budget in enumerate(one["config"]["budgets"]):
                values = {name: value[at % len(value)] for name, value in scores.items()}
                if values["average"] is not None:
                    metrics = {name: {"value": value} for name, value in values.items()}
                    runs[one["dataset"], method, one["acquisition"], budget].append({**one, "metrics": metrics})
    found: Carried = defaultdict(set)
    for name, key in rows.items():
        for (dataset, *which, budget), mine in runs.items():
            if which == key:
                for other in ("append", "dfr, groups", "hsfm", "hsfm, rounds, no bias"):
                    over = runs[dataset, other, "least_confidence", budget]
                    found[name].add(told(published.paired(mine, over, "worst_group")))
    return found


def outputs(notebook: nbformat.NotebookNode) -> str:
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text") or output.get("data", {}).get("text/markdown", ""))
    return "\n".join(texts)


def strangers(text: str, known: Carried) -> list[tuple[str, ...]]:
    """Numbers that no record carries; in a table, no record of the run that the row names."""
    found: list[tuple[str, ...]] = []
    for line in text.splitlines():
        row = line.split("|")[1].strip() if line.startswith("|") else ""
        name = next((name for name in (row, f"hsfm, {row}") if name in known), "")
        found += [p for pattern in (PAIR, INTERVAL) for p in re.findall(pattern, line) if p not in known[name]]
    return found


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: no notebooks")
def test_what_a_chapter_shows_is_carried_by_a_record() -> None:
    """A stale notebook, and a table made from anything else than `results/`, fail here."""
    known = carried()
    shown = 0
    for name in OF_RECORDS:
        file = ROOT / "notebooks" / f"{name}.ipynb"
        if file.exists():
            text = outputs(nbformat.read(file, as_version=4))
            shown += len(re.findall(PAIR, text)) + len(re.findall(INTERVAL, text))
            assert strangers(text, known) == [], f"{name}: execute it again, or store the records it shows"
    assert shown > 50, "the patterns find nothing any more"
    assert strangers("33.7 ± 4.8, no: 33.7 ± 4.7", known) == [("33.7", "4.7")]
    assert strangers("+25.8 [+15.3, +36.2]", known) == [("+25.8", "+15.3", "+36.2")]


def test_a_row_shows_the_numbers_of_its_own_run() -> None:
    """Two rows of a table that have changed places fail, though each of their numbers has a record."""
    known = carried()
    for table, left, right in (("heads", "dfr", "hsfm, hard 32"), ("heads_resnet", "dfr", "hsfm")):
        runs = published.by_run(table)
        a, b = (published.mean_text(runs[name], "worst_group") for name in (left, right))
        right = right.removeprefix("hsfm, ")
        assert strangers(f"| {left} | {a} |\n| {right} | {b} |", known) == []
        assert len(strangers(f"| {left} | {b} |\n| {right} | {a} |", known)) == 2
    rows = active()
    hardest, random = (rows[f"HSFM (a), {which} queries"] for which in ("hardest", "random"))
    for mine, other, name in ((hardest, random, "random"), (random, hardest, "hardest")):
        mean, low, high = sorted(mine - other)[0]
        assert strangers(f"| HSFM (a), {name} queries | {mean} [{low}, {high}] |", known) == [(mean, low, high)]


def prose(text: str) -> str:
    """Without code, formulas and addresses."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for pattern in (
        r"`[^`]*`",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"\]\([^)]*\)",
        r"arXiv:?[\s#]*\d{4}\.\d+",
        r"https?://\S+",
    ):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return text


def numbers(thing: Any) -> Iterator[str]:
    """Every number in nested settings, as Python writes it."""
    if isinstance(thing, dict | list | tuple):
        for value in thing.values() if isinstance(thing, dict) else thing:
            yield from numbers(value)
    elif isinstance(thing, float):
        yield str(thing)


def typed() -> dict[str, str]:
    """Prose of each chapter and page."""
    texts = {page.name: page.read_text("utf-8") for page in (ROOT / "book").glob("*.md")}
    for source in pairs.sources(ROOT):
        cells = re.split(r"^# %%", source.read_text("utf-8"), flags=re.MULTILINE)
        told = [cell.replace("\n# ", "\n") for cell in cells if cell.startswith(" [markdown]")]
        texts[source.name] = "\n".join(told)
    return {name: prose(text) for name, text in texts.items()}


def test_no_measured_number_is_typed_into_prose() -> None:
    """A decimal in prose is a setting of a stored run or a published number; what was measured is printed by a cell."""
    settings = set(SAID) | set(numbers(tomllib.loads((ROOT / "results" / "published.toml").read_text("utf-8"))))
    for name in STORED:
        for one in json.loads((ROOT / "results" / f"{name}.json").read_text()):
            settings |= set(numbers([one["config"], one.get("settings", {})]))
    strange = {name: sorted(set(re.findall(TYPED, text)) - settings) for name, text in typed().items()}
    assert {name: found for name, found in strange.items() if found} == {}
    assert re.findall(TYPED, prose("about 41.3 points, `0.25` and [x](1.2.html)")) == ["41.3"]
