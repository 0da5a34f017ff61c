"""A still of each figure, for readers without its script: GitHub, a printout, the first moment of a page.

Headless Chromium draws the figures of a notebook on one page and photographs each; the picture takes the place of the
renderer's placeholder within the HTML output. (A viewer without scripts shows this HTML; beside it, an image/png would
be stored and not seen, since text/html comes first.) Texts are gray on nothing, legible on a light page and a dark one.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbformat import NotebookNode
from PIL import Image
from plotly.offline import get_plotlyjs

from book import execute
from caml_core.book_renderer import PAGE_WIDTH, PLACEHOLDER

if TYPE_CHECKING:
    from playwright.sync_api import Page

_PAGE = """\
<style>
body { margin: 0; }
.modebar { display: none; }
.main-svg image { image-rendering: pixelated; }
</style>
<script>%s</script><script>
// Figures of one notebook take the place of those of the one before; done when plotly has kept all its promises.
async function show(figures) {
  const promises = [];
  Plotly.newPlot = (div, figure) => {
    figure.layout.font = { ...figure.layout.font, color: "#7a7f86" };  // of texts without a colour of their own
    promises.push(draw(div, figure));
  };
  document.body.innerHTML = figures;
  for (const idle of document.body.querySelectorAll("script")) {
    const script = document.createElement("script");
    script.textContent = idle.textContent;
    idle.replaceWith(script);
  }
  await bookPlotly;
  await Promise.all(promises);
}
const draw = Plotly.newPlot;
</script>"""
DIV = re.compile(r'<div id="(book-figure-\d+)"')
LABEL = re.compile(r'aria-label="([^"]*)"')
_IMAGE = """\
<img class="dark-light" alt="{label}" style="width: 100%; height: 100%; object-fit: contain; object-position: top" \
src="data:image/webp;base64,{picture}">"""


def add(files: Sequence[Path]) -> None:
    """Draw the stills that executed notebooks lack; without Chromium, say so in one line."""
    missing = {}
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        if figures := [output for output in figures_of(notebook.cells) if PLACEHOLDER in output.data["text/html"]]:
            missing[file] = (notebook, figures)
    if not missing:
        return
    with ThreadPoolExecutor(1) as thread:  # a thread has one session of playwright, and a test may be in one
        reason = thread.submit(_draw, missing).result()
    if reason:
        print(f"stills: {reason}; figures of these notebooks are seen only where scripts run")


def _draw(missing: dict[Path, tuple[NotebookNode, list[NotebookNode]]]) -> str:
    """Returns why it could not be done, or an empty string."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return "playwright is not installed"
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium())
            page = browser.new_page(viewport={"width": PAGE_WIDTH, "height": 900}, offline=True)
            page.set_content(_PAGE % get_plotlyjs())
            for file, (notebook, figures) in missing.items():
                page.evaluate("figures => show(figures)", "".join(figure.data["text/html"] for figure in figures))
                for figure in figures:
                    _photograph(page, figure)
                execute.save(notebook, file)
            browser.close()
    except Error as error:
        return f"Chromium failed ({error.message.splitlines()[0]})"
    return ""


def chromium() -> str | None:
    """The browser to use: ``CHROMIUM``, one on the path, or (None) playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _photograph(page: Page, figure: NotebookNode) -> None:
    shown = figure.data["text/html"]
    photograph = page.locator("#" + DIV.findall(shown)[0]).screenshot(omit_background=True)
    picture = base64.b64encode(small(photograph)).decode()
    image = _IMAGE.format(label=LABEL.findall(shown)[0], picture=picture)
    figure.data["text/html"] = shown.replace(PLACEHOLDER, image, 1)


def small(png: bytes) -> bytes:
    """A picture as WebP, the smaller of two: 256 exact colours suit a chart, a coarse photograph suits pictures."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    chart, photograph = io.BytesIO(), io.BytesIO()
    picture.quantize(256, Image.Quantize.FASTOCTREE).convert("RGBA").save(chart, "WEBP", lossless=True)
    picture.save(photograph, "WEBP", quality=30, alpha_quality=20)
    return min(chart.getvalue(), photograph.getvalue(), key=len)


def figures_of(cells: Iterable[NotebookNode]) -> list[NotebookNode]:
    """The outputs of these cells that are figures of the book's renderer."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output for output in outputs if 'class="book-figure"' in output.get("data", {}).get("text/html", "")]
