"""The committed notebooks: made from their sources, executed, small, and free of traces of a machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from sample_book import ROOT

from book import build, exercises, pairs, renderer

SOURCES = pairs.sources(ROOT)
TRACES = ("/work/", "/root/", "/home/", "/tmp/", "/Users/", "C:\\\\")

chapters = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def committed(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_there_are_chapters_and_no_orphans() -> None:
    assert SOURCES
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [notebook.stem for notebook in notebooks] == [source.stem for source in SOURCES]


@chapters
def test_pair_is_in_order(source: Path) -> None:
    assert pairs.faults(source, pairs.repository(ROOT)) == []


@chapters
def test_notebook_is_executed_and_small(source: Path) -> None:
    build.check_executed(source.with_suffix(".ipynb"))
    build.check_size(source.with_suffix(".ipynb"))
    code = [cell for cell in committed(source).cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code)
    for cell in code:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, cell.source


@chapters
def test_notebook_is_neutral(source: Path) -> None:
    notebook = committed(source)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert notebook.metadata.language_info == {"name": "python"}
    assert set(notebook.metadata) <= {"jupytext", "kernelspec", "language_info", "widgets", "book_run"}
    for cell in notebook.cells:
        assert "execution" not in cell.metadata, "timings change with every run"
    text = source.with_suffix(".ipynb").read_text("utf-8")
    assert [trace for trace in TRACES if trace in text] == []


@chapters
def test_notebook_tells_how_it_was_run(source: Path) -> None:
    """The foot of its page; the committed results are those of the default profile."""
    run = committed(source).metadata["book_run"]
    assert set(run) == {"commit", "date", "device", "seconds", "profile", "data", "versions"}
    assert run["profile"] == "quick"
    assert re.match(r"\d{4}-\d\d-\d\d", run["date"])
    assert run["device"].startswith(("cpu (", "NVIDIA", "Tesla"))


@chapters
def test_the_copy_for_a_class_keeps_everything_but_solutions_and_results(source: Path) -> None:
    whole, copy = committed(source), committed(source)
    exercises.without_solutions(copy)
    nbformat.validate(copy)
    text = "".join(cell.source for cell in copy.cells)
    assert "Solution" not in text
    tasks = re.findall(r"^\*\*Exercise \d+: .*", "\n".join(cell.source for cell in whole.cells), re.MULTILINE)
    assert tasks
    for task in tasks:
        place = next(i for i, cell in enumerate(copy.cells) if cell.source.startswith(task))
        assert (copy.cells[place + 1].cell_type, copy.cells[place + 1].source) == ("code", "")
    code = [c.source for c in whole.cells if c.cell_type == "code" and "solution" not in c.metadata.get("tags", [])]
    assert code == [c.source for c in copy.cells if c.cell_type == "code" and c.source]
    assert not any(c.outputs for c in copy.cells if c.cell_type == "code")
    assert "Two quick questions" in text
    assert "## References" in text


@chapters
def test_opening_exercises_and_stills(source: Path) -> None:
    build.check_parts(source.with_suffix(".ipynb"))
    figures = renderer.figures_of(committed(source).cells)
    bare = [renderer.alt(figure.data[renderer.MIME]) for figure in figures if not renderer.still(figure)]
    assert not bare, "figures without a still; run: make notebooks"


DRAWS = re.compile(
    r"\b(go|px)\.|[Ff]igure|make_subplots|markdown\(|image_grid|update_(layout|xaxes|yaxes|traces)|add_trace"
)
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


@chapters
def test_what_stands_open_in_the_page_is_the_idea(source: Path) -> None:
    """Plots and tables are folded: of the lines that are not, a third at most draw, and no cell is long."""
    cells = [cell for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    shown = [cell.source for cell in cells if not FOLDED & set(cell.metadata.get("tags", []))]
    statements = [ast.get_source_segment(text, node) or "" for text in shown for node in ast.parse(text).body]
    lines = sum(len(text.splitlines()) for text in statements)
    drawing = sum(len(text.splitlines()) for text in statements if DRAWS.search(text))
    assert drawing <= lines / 3
    assert [text for text in shown if len(text.splitlines()) > 25] == []


@chapters
def test_text_reads_as_plain_markdown(source: Path) -> None:
    """Colab and GitHub do not know MyST: no directives or roles in chapters."""
    for cell in committed(source).cells:
        if cell.cell_type == "markdown":
            assert "```{" not in cell.source
            assert ":::" not in cell.source
            assert "}`" not in cell.source or "{" not in cell.source.split("}`")[0][-12:]


@chapters
def test_first_cell_is_silent_here(source: Path) -> None:
    first = next(cell for cell in committed(source).cells if cell.cell_type == "code")
    assert "google.colab" in first.source
    assert first.outputs == []
