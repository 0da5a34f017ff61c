"""A still of each figure, for readers without its script: GitHub, a printout, the first moment of a page.

Headless Chromium draws the figures of a notebook on one page and photographs each; the picture is stored beside the
figure's data, for viewers that know pictures but not plotly. Texts are gray on nothing, legible on a light page and a
dark one.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image
from plotly.offline import get_plotlyjs

from book import execute, renderer
from caml_core.pictures.figures import PAGE_WIDTH

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


def add(files: Sequence[Path]) -> None:
    """Draw the stills that executed notebooks lack; without Chromium, say so in one line."""
    notebooks = {file: nbformat.read(file, as_version=4) for file in files}
    missing = {
        file: notebook
        for file, notebook in notebooks.items()
        if any(not renderer.still(output) for output in renderer.figures_of(notebook.cells))
    }
    if not missing:
        return
    with ThreadPoolExecutor(1) as thread:  # a thread has one session of playwright, and a test may be in one
        reason = thread.submit(_draw, missing).result()
    if reason:
        print(f"stills: {reason}; figures of these notebooks are seen only where scripts run")


def _draw(missing: dict[Path, NotebookNode]) -> str:
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
            for file, notebook in missing.items():
                figures = dict(enumerate(renderer.figures_of(notebook.cells), start=1))
                shown = [renderer.page(output.data[renderer.MIME], number) for number, output in figures.items()]
                page.evaluate("figures => show(figures)", "".join(shown))
                for number, output in figures.items():
                    photograph = page.locator(f"#{renderer.div(number)}").screenshot(omit_background=True)
                    kind, picture = compact(photograph)
                    output.data[kind] = base64.b64encode(picture).decode()
                execute.save(notebook, file)
            browser.close()
    except Error as error:
        return f"Chromium failed ({error.message.splitlines()[0]})"
    return ""


def chromium() -> str | None:
    """The browser to use: ``CHROMIUM``, one on the path, or (None) playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def compact(png: bytes) -> tuple[str, bytes]:
    """A photograph as a notebook keeps it: 256 colours suit a chart, a coarse JPEG on white suits pictures."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    chart, photograph = io.BytesIO(), io.BytesIO()
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(chart, "PNG", optimize=True)
    on_white(picture).save(photograph, "JPEG", quality=30, optimize=True)
    return min(zip(renderer.KINDS, (chart.getvalue(), photograph.getvalue())), key=lambda kept: len(kept[1]))


def on_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    return white.convert("RGB")
