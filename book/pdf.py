"""The book as one PDF to print: ``python book/pdf.py`` prints the built pages with Chromium, in their order.

Needs ``make book``, Chromium, and ``pip install -e '.[pdf]'``. Figures are printed as they stand when a page opens,
solutions and answers with them; the code of figures stays folded.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from caml_core.errors import CamlError

ROOT = Path(__file__).resolve().parents[1]
HTML, PDF = ROOT / "_build" / "html", ROOT / "_build" / "shortcuts-queries-and-edits.pdf"
FOOT = (
    '<div style="width: 100%; font-size: 8px; text-align: center">'
    '<span class="title"></span> · <span class="pageNumber"></span></div>'
)
UNFOLD = "document.querySelectorAll('details:not(.hide), .tag_solution details').forEach(part => { part.open = true; })"
DRAWN = """() => [...document.querySelectorAll('.plotly-graph-div')].every(div => div.querySelector('.main-svg'))
    && [...document.querySelectorAll('.math')].every(math => math.querySelector('mjx-container'))"""


def contents(toc: Path) -> list[str]:
    """The pages of the book without their ending, in order."""

    def below(part: Any) -> list[str]:
        if isinstance(part, list):
            return [page for one in part for page in below(one)]
        own = [part[key] for key in ("root", "file") if key in part]
        return own + [page for key in ("parts", "chapters", "sections") for page in below(part.get(key, []))]

    return below(yaml.safe_load(toc.read_text("utf-8")))


def print_book(html: Path = HTML, pdf: Path = PDF, toc: Path = ROOT / "_toc.yml") -> None:
    from playwright.sync_api import sync_playwright
    from pypdf import PdfWriter

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    pages = contents(toc)
    if not chromium or not all((html / f"{page}.html").exists() for page in pages):
        raise CamlError(f"{html}, Chromium: {chromium}", "the whole built book, and Chromium", "run `make book` first")
    whole = PdfWriter()
    with sync_playwright() as play, tempfile.TemporaryDirectory() as work:
        page = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.emulate_media(media="print", color_scheme="light")
        page.set_viewport_size({"width": 760, "height": 1000})  # A4 less its margins
        for number, name in enumerate(tqdm(pages, unit="page")):
            page.goto((html / f"{name}.html").as_uri())
            page.evaluate(UNFOLD)
            page.wait_for_function(DRAWN)
            file = Path(work, f"{number}.pdf")
            margin: Any = dict.fromkeys(("top", "bottom", "left", "right"), "18mm")
            page.pdf(path=file, format="A4", margin=margin, display_header_footer=True, header_template="<i></i>",
                     footer_template=FOOT, print_background=True)  # fmt: skip
            whole.append(file, outline_item=page.title().partition(" — ")[0])
    whole.write(pdf)
    print(f"{pdf}: {len(whole.pages)} pages, {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    print_book()
