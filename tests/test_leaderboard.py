"""The leaderboard: a row for every run that is listed, numbers from records alone, sorted and filtered in the page."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from browsing import Browser
from sample_book import ROOT

from book import leaderboard
from caml_core.runs.commands import parse_run
from caml_core.runs.lists import expand
from caml_core.runs.tables import NOT_RUN, by_run

pytest_plugins = ("book_fixtures",)
ROWS = leaderboard.rows()
NUMBERS = {"worst group": "worst_group", "average": "average", "minority": "minority"}


def test_every_listed_run_has_a_row() -> None:
    """But for those of one or two seeds."""
    listed = {n: {run.name for run in expand(ROOT / "results/tables" / f"{n}.toml")} for n in leaderboard.LISTS}
    thin = [run for name, runs in listed.items() for run in runs if len(by_run(name).get(run, [])) in (1, 2)]
    assert len(ROWS) == sum(map(len, listed.values())) - len(thin)
    assert "append, 3000" in thin


def test_numbers_are_those_of_the_records() -> None:
    shown = [one for one in ROWS if one.records]
    assert shown
    for one in shown:
        for name, metric in NUMBERS.items():
            values = [record["metrics"][metric]["value"] for record in one.records]
            if None not in values:
                assert float(one.cells[name].split()[0]) == pytest.approx(np.mean(values), abs=0.051)
        assert int(one.cells["seeds"]) == len({record["seed"] for record in one.records})


def test_what_was_not_run_says_so_with_its_command() -> None:
    for one in ROWS:
        if not one.records:
            assert [one.cells[name] for name in NUMBERS] == [NOT_RUN] * 3
        words = shlex.split(one.cells["how"])
        assert words[:4] == ["python", "-m", "caml_core", "run"]
        parse_run(words[4:])


def test_who_knows_the_groups() -> None:
    said = {
        (one.cells["method"], one.cells["setting"]): one.cells["group labels"]
        for one in ROWS
        if one.cells["backbone"] == "efficientnet_lite0 (ImageNet; frozen)" and one.cells["dataset"].startswith("domi")
    }
    assert said["ERM head", ""] == "none"
    assert said["HSFM", "select worst_class"] == said["DFR", "groups inferred"] == "none"
    assert said["HSFM", ""] == "validation, to choose"
    assert said["DFR", ""] == "validation, to train; validation, to choose"
    assert said["balanced head", ""] == "training; validation, to choose"


def test_a_row_needs_three_seeds_and_its_versions() -> None:
    for one in ROWS:
        if one.records:
            assert len(one.records) >= 3, one.cells
            assert all(record["provenance"]["versions"]["torch"] for record in one.records)


def test_in_the_page_it_is_filtered_and_sorted(browser: Browser, real: Path) -> None:
    visit = browser.visit(real / "book" / "leaderboard.html")
    page = visit.page
    page.wait_for_selector(".datatable-input")
    page.select_option(".datatable-selector", "-1")
    lines = page.locator(".leaderboard tbody tr")
    assert lines.count() == len(ROWS)
    page.fill(".datatable-input", "dominoes hsfm frozen")
    wanted = [one for one in ROWS if all(w in " ".join(one.cells.values()).lower() for w in ("domi", "hsfm", "frozen"))]
    assert visit.holds(f"document.querySelectorAll('.leaderboard tbody tr').length == {len(wanted)}", "rows are left")
    page.click(".leaderboard th:nth-child(6) button")
    page.click(".leaderboard th:nth-child(6) button")
    averages = [float(text.split()[0]) for text in page.locator(".leaderboard tbody td:nth-child(6)").all_inner_texts()]
    assert averages == sorted(averages, reverse=True)
    assert len(set(averages)) > 5
