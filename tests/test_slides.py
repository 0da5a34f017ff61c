"""The slides of the course: made from the notebooks by their structure, shown by a browser without a network."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from browsing import READY, Browser
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sample_book import ROOT

from book import assets, pairs, renderer, slides

pytest_plugins = ["book_fixtures"]

COURSE = (ROOT / "book" / "map.md").read_text("utf-8")
TABLE = """## Teach a course

| Session, chapters | Minutes | Exercises | To discuss | Show |
|:--|:--|:--|:--|:--|
| 1 A start: [00](../notebooks/00_one.ipynb) | 1 | 00: 2 | Who *pays*? | slides |
"""
FIRST = """# One: a start

**Question.** Is $a < b$?

**You will be able to** count, see [02](02_last_layer.ipynb).

> Not this."""
THEN = """## A loss

First words. The loss is

$$
L = \\sum_t y_{<t}
$$

where $t$ counts.

Not this."""
LAST = """## What we saw

- It went
  down.
- It stayed.

Turn these knobs.

## Two quick questions

**1.** Which one?

<details><summary>This</summary>

No. Never.

</details>

<details><summary>That</summary>

Yes. Always.

</details>

**2.** Another?

## Exercises

**Exercise 1: easy.** Skip it.

<details><summary>Solution 1</summary>

So.

</details>

**Exercise 2: hard
one.** Do $x$.

<details><summary>Solution 2</summary>

Thus.

</details>"""


def figure(title: str, tags: tuple[str, ...] = (), height: int = 900) -> NotebookNode:
    data = {"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {"title": {"text": title}, "height": height}}
    return new_code_cell("", metadata={"tags": list(tags)}, outputs=[new_output("display_data", {renderer.MIME: data})])


def sample() -> NotebookNode:
    cells = [new_markdown_cell(text) for text in (FIRST, THEN, LAST)]
    return new_notebook(cells=[*cells[:2], figure("It falls"), cells[2], figure("Not shown", ("solution",))])


def test_the_course_is_read_from_the_map() -> None:
    found = slides.sessions(COURSE)
    assert [session.number for session in found] == list(range(1, 9))
    assert sorted(stem for session in found for stem in session.chapters) == [s.stem for s in pairs.sources(ROOT)]
    assert found[2].chapters["05_dilution"] == [1]
    assert found[2].question.endswith("?")
    for number in range(1, 9):
        assert f'<a href="../_static/slides/session_{number}.html">' in COURSE


def test_a_chapter_gives_its_slides_in_order() -> None:
    made = list(slides.chapter(sample(), [2]))
    assert [kind for kind, _, _ in made] == ["chapter", "formula", "figure", "saw", "ask", "ask", "exercise"]
    texts = [content for _, _, content in made if isinstance(content, str)]
    assert "Not this" not in "".join(texts)
    assert texts[1].split("\n\n")[0] == "First words. The loss is"
    assert texts[1].endswith("where $t$ counts.")
    assert texts[2] == "- It went\n  down.\n- It stayed."
    assert "Always" not in texts[3]
    assert "That: *Yes. Always.*" in texts[4]
    assert made[-1][1:] == ("Exercise 2: hard one", "Do $x$.")


def test_a_deck_needs_all_chapters_of_its_session(tmp_path: Path) -> None:
    nbformat.write(sample(), tmp_path / "00_one.ipynb")
    assert slides.write([], tmp_path / "out", TABLE, "vendor", "../html") == []
    (file,) = slides.write([tmp_path / "00_one.ipynb"], tmp_path / "out", TABLE, "vendor", "../html")
    text = file.read_text("utf-8")
    assert text.count("<section") == 9
    assert '<li><a href="#2">00 One: a start</a></li>' in text
    assert "y_{&lt;t}" in text
    assert 'href="../html/notebooks/02_last_layer.html"' in text
    assert "It falls" in text
    assert "Not shown" not in text
    assert not re.findall(r'(?:src|href)="http', text)


def test_every_chapter_has_what_slides_are_made_of() -> None:
    for session in slides.sessions(COURSE):
        for stem, exercises in session.chapters.items():
            notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
            kinds = [kind for kind, _, _ in slides.chapter(notebook, exercises)]
            assert kinds.count("chapter") == 1, stem
            assert kinds.count("ask") == 2, stem
            assert {"figure", "saw"} <= set(kinds), stem
            assert kinds.count("exercise") == bool(exercises), stem


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
def test_decks_in_a_browser(browser: Browser, library: assets.Assets, tmp_path: Path, width: int, height: int) -> None:
    """A made one and two of the book: all is drawn, nothing is too wide, a slide fits a wide screen, keys turn them."""
    (tmp_path / "vendor").symlink_to(library.site / "_static" / "vendor")
    nbformat.write(sample(), tmp_path / "00_one.ipynb")
    slides.write([tmp_path / "00_one.ipynb"], tmp_path / "made", TABLE, "../vendor", "..")
    notebooks = [source.with_suffix(".ipynb") for source in pairs.sources(ROOT)]
    slides.write(notebooks, tmp_path / "book", COURSE, "../vendor", "..")
    for name in ("made/session_1", "book/session_5", "book/session_6"):
        visit = browser.visit(tmp_path / f"{name}.html")
        page = visit.page
        page.set_viewport_size({"width": width, "height": height})
        page.reload()
        page.wait_for_function(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if width > 800:
            assert page.evaluate(
                "[...document.querySelectorAll('section')].every(s => s.offsetHeight <= innerHeight)"
            ), name
        for key, number in (("ArrowRight", 2), ("Space", 3), ("ArrowLeft", 2), ("Home", 1)):
            page.keyboard.press(key)
            assert visit.holds(
                "n => location.hash == '#' + n && Math.abs(document.getElementById(n).getBoundingClientRect().top) < 2",
                f"{key} does not lead to slide {number}",
                number,
            )
        page.locator(".title li a").first.click()
        assert visit.holds("() => location.hash == '#2'", "the plan does not lead to its first chapter")
        page.keyboard.press("Home")
        page.get_by_role("button", name="Next slide").click()
        assert page.locator("nav span").text_content().startswith("2 / ")
        assert visit.faults == [], name
