"""The built book in Chromium without a network: what the tests of the pages share."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sample_book  # noqa: F401  # so that `book` can be imported
from conftest import require

from book.stills import chromium as chromium_here

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",
]
LOCAL = ("file:", "data:", "blob:", "about:")
HEIGHT = 1600
ALL = "const all = (selector, done) => [...document.querySelectorAll(selector)].every(done);"
# Everything is drawn: figures, formulas, widgets, explorables, pictures.
READY = f"""() => {{
    {ALL}
    return all('.plotly-graph-div', div => div.querySelector('.main-svg'))
        && all('.math', math => math.querySelector('mjx-container'))
        && all('script[type$="widget-view+json"]', view => view.parentElement.querySelector('.jupyter-widgets'))
        && all('[data-explorable]', place => place.dataset.ready)
        && all('img', image => image.complete || image.loading == 'lazy')
        && document.fonts.status == 'loaded';
}}"""
# Scripts have answered the last change of the width: figures fill their place, what scrolls can be reached by keyboard.
SETTLED = f"""() => {{
    {ALL}
    return all('.plotly-graph-div', div => !div.checkVisibility()
            || Math.abs(div.querySelector('.main-svg').clientWidth - div.clientWidth) < 2)
        && all('pre', box => !box.checkVisibility() || box.scrollWidth <= box.clientWidth || box.tabIndex == 0);
}}"""


@dataclass
class Visit:
    """A page in the browser's one tab, and what happened since it was opened."""

    page: Any
    file: Path
    faults: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)

    def turn(self, scheme: str, width: int) -> None:
        """Show the page in a colour scheme at a width in pixels, and wait until it has settled."""
        self.page.emulate_media(color_scheme=scheme)
        if self.page.viewport_size["width"] != width:
            self.page.set_viewport_size({"width": width, "height": HEIGHT})
        self.holds(SETTLED, f"does not settle at {width} px")

    def holds(self, condition: str, otherwise: str, argument: Any = None) -> bool:
        """Whether a condition comes true within seconds; if not, that is noted as a fault."""
        from playwright.sync_api import TimeoutError as TooLong

        try:
            self.page.wait_for_function(condition, arg=argument, timeout=10_000)
        except TooLong:
            self.faults.append(otherwise)
            return False
        return True


class Browser:
    """One tab of Chromium; requests that leave the machine are recorded and refused.

    A single tab, because the libraries that its first page has compiled are then ready for the next.
    """

    def __init__(self, chromium: Any) -> None:
        self.page = chromium.new_page()
        self.visited = Visit(self.page, Path())
        self.page.route("**/*", self._request)
        self.page.on("requestfailed", lambda failed: self.visited.faults.append(f"cannot load {failed.url}"))
        self.page.on("pageerror", lambda error: self.visited.faults.append(f"script error: {error}"))
        self.page.on("console", self._console)

    def _request(self, route: Any) -> None:
        url = route.request.url
        if not url.startswith(LOCAL):
            self.visited.faults.append(f"asks for {url}")
            route.abort()
            return
        asked = Path(unquote(urlsplit(url).path))
        file = served(asked, self.visited.file)
        if url.startswith("file:"):
            self.visited.files.add(file)
        if file == asked:
            route.continue_()
        else:
            route.fulfill(path=file)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.visited.faults.append(f"console: {message.text}")

    def visit(self, file: Path, query: str = "") -> Visit:
        """Open a page of the book from the disk, light and 1280 pixels wide, and wait until everything is drawn."""
        self.visited = Visit(self.page, file)
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size({"width": 1280, "height": HEIGHT})
        self.page.goto(file.as_uri() + query, wait_until="load")
        # What fades in would be seen half: by axe as too little contrast, by a fingerprint as another page.
        self.page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        self.page.wait_for_function(READY, timeout=60_000)
        return self.visited


def served(path: Path, page: Path) -> Path:
    """The file behind an address: the page for lost visitors names files as a web server does, from its root."""
    if page.name != "404.html" or path.exists():
        return path
    prefix = re.search(r'(?:src|href)="(/[^"]*?)_static/', page.read_text("utf-8"))
    return page.parent / path.as_posix().removeprefix(prefix[1]) if prefix and path.is_absolute() else path


def shared(file: Path, html: Path) -> bool:
    """Whether a file of the book is one that pages share."""
    return file.is_relative_to(html / "_static") or file.name == "searchindex.js"


@contextmanager
def open_chromium() -> Iterator[Any]:
    program = chromium_here()
    require(program, "no browser was found: install chromium or set CHROMIUM to its path")
    require(importlib.util.find_spec("playwright"), "playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


def pages(html: Path, redirects: bool = False) -> list[Path]:
    """The pages of a built book, with or without those that only lead to another."""
    found = [page for page in sorted(html.rglob("*.html")) if "_static" not in page.parts]
    return [page for page in found if redirects or 'http-equiv="refresh"' not in page.read_text("utf-8").lower()]
