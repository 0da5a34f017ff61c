"""A page that holds one explorable, dressed as a page of the book: what the tests of `book/live` open."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import pytest
from sample_book import ROOT

from caml_core.pictures.explore import BUNDLE, explore

_PAGE = """\
<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">{styles}
</head><body><main class="bd-article bd-content" style="padding: 1rem; max-width: 47rem">
<div class="cell_output"><div class="output text_html">{place}</div></div></main>
<script src="{bundle}"></script></body></html>"""


def page_of(name: str, bundle: Path = BUNDLE, **state: Any) -> str:
    """The HTML of such a page; opened from the disk, it loads the theme's styles and the bundle from there.

    An explorable with networks finds them beside a bundle that `book.assets` laid out.
    """
    theme = Path(str(importlib.util.find_spec("pydata_sphinx_theme").origin)).parent  # type: ignore[union-attr]
    book = Path(str(importlib.util.find_spec("sphinx_book_theme").origin)).parent  # type: ignore[union-attr]
    styles = [*theme.rglob("styles/pydata*.css"), *book.rglob("styles/*.css"), ROOT / "book/static/book.css"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAML_STATIC", "1")
        place = explore(name, "A caption", **state).data
    links = "".join(f'<link rel="stylesheet" href="{style.as_uri()}">' for style in styles)
    return _PAGE.format(name=name, styles=links, place=place, bundle=bundle.as_uri())


def recomputation(page: Any) -> float:
    """Milliseconds to recompute and draw when the first handle or slider is moved: the median of 20 moves."""
    part = page.locator(".explorable-body :is([data-move], input[type=range])").first
    times = []
    for way in ["ArrowRight", "ArrowLeft"] * 10:
        part.press(way)
        times.append(float(page.evaluate("document.querySelector('.explorable-body').dataset.ms")))
    return statistics.median(times)
