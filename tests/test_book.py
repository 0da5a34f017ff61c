"""The built book in a browser: no request leaves, nothing fails, figures and widgets are alive."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import plotly.graph_objects as go
import pytest
from conftest import require
from sample_book import ADDRESS, ROOT, make_sample_book

from book import assets, build, pairs
from caml_core.book_renderer import BookRenderer

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = ("file:", "data:", "blob:", "about:")
READY = """() => {
    const all = (selector, done) => [...document.querySelectorAll(selector)].every(done);
    const widget = view => view.parentElement.querySelector('.jupyter-widgets');
    return all('.plotly-graph-div', div => div.querySelector('.main-svg'))
        && all('.math', math => math.querySelector('mjx-container'))
        && all('script[type$="widget-view+json"]', widget);
}"""
SHOWN = """rail => {
    const figure = rail.closest('.plotly-graph-div');
    const parts = '.cartesianlayer path, .cartesianlayer image, .annotation-text, .gtitle';
    return JSON.stringify(figure.data) + [...figure.querySelectorAll(parts)]
        .map(part => part.getAttribute('d') + part.getAttribute('href') + part.textContent);
}"""
COLAB = "a[href*='colab.research.google.com']"


@dataclass
class Visit:
    """A page that stays open, and what happened since it was opened."""

    page: Any
    faults: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    @property
    def weight(self) -> int:
        """Bytes of all local files that the page loaded."""
        paths = [Path(unquote(urlsplit(url).path)) for url in self.files if url.startswith("file:")]
        return sum(path.stat().st_size for path in set(paths) if path.is_file())


class Browser:
    """Chromium without a network: requests that leave the machine are recorded and refused."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium

    def visit(self, file: Path) -> Visit:
        """Open a page of the book from the disk and wait until its figures and formulas are drawn."""
        page = self.chromium.new_page(viewport={"width": 1280, "height": 900})
        visit = Visit(page)

        def request(route: Any) -> None:
            url = route.request.url
            if url.startswith(LOCAL):
                visit.files.add(url)
                route.continue_()
            else:
                visit.faults.append(f"asks for {url}")
                route.abort()

        page.route("**/*", request)
        page.on("requestfailed", lambda failed: visit.faults.append(f"cannot load {failed.url}"))
        page.on("pageerror", lambda error: visit.faults.append(f"script error: {error}"))
        page.on("console", lambda m: visit.faults.append(f"console: {m.text}") if m.type == "error" else None)
        page.goto(file.as_uri(), wait_until="load")
        page.wait_for_function(READY, timeout=30_000)
        return visit


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    require(program, "no browser was found: install chromium or set CHROMIUM to its path")
    require(importlib.util.find_spec("playwright"), "playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=FLAGS)
        yield Browser(chromium)
        chromium.close()


@pytest.fixture(scope="module")
def library() -> assets.Assets:
    found = assets.assemble(ROOT / "_build" / "assets")
    require(found.offline, "npm or its registry is not available, so the pages are not made for offline use")
    return found


@pytest.fixture(scope="module")
def sample(library: assets.Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample book, executed and built."""
    root = make_sample_book(tmp_path_factory.mktemp("sample") / "tree")
    assert build.main(["--sync", "--write"], root) == 0
    return root / "_build" / "html"


@pytest.fixture(scope="module")
def real(library: assets.Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This book, built from its committed notebooks."""
    html = tmp_path_factory.mktemp("real") / "html"
    assert build.main(["--committed", "--html-dir", str(html)]) == 0
    return html


def pages(html: Path) -> list[Path]:
    return [page for page in sorted(html.rglob("*.html")) if "_static" not in page.parts]


def test_every_page_is_whole_and_asks_for_nothing(browser: Browser, real: Path) -> None:
    faults: dict[str, list[str]] = {}
    drawn = 0
    for page in pages(real):
        visit = browser.visit(page)
        name = page.relative_to(real).as_posix()
        for figure in visit.page.query_selector_all(".plotly-graph-div .main-svg:first-child"):
            box = figure.bounding_box()
            assert box, f"{name}: a figure is not shown"
            assert min(box["width"], box["height"]) > 50, f"{name}: a figure has no size"
            drawn += 1
        print(f"{name}: {visit.weight / 1e6:.1f} MB")
        if visit.faults:
            faults[name] = visit.faults
        visit.page.close()
    assert not faults
    assert drawn > 0


def test_sliders_of_the_chapters_change_their_figures(browser: Browser, real: Path) -> None:
    tried = 0
    for page in sorted((real / "notebooks").glob("*.html")):
        visit = browser.visit(page)
        for rail in visit.page.query_selector_all(".slider-rail-touch-rect"):
            assert slide(visit, rail), f"{page.name}: a slider does not change its figure"
            tried += 1
        assert not visit.faults
    assert tried > 0, "no chapter has a figure with a slider"


def test_widgets_of_the_chapters_react(browser: Browser, real: Path) -> None:
    tried = 0
    for chapter in sorted((real / "notebooks").glob("*.html")):
        visit = browser.visit(chapter)
        for handle in visit.page.query_selector_all(".widget-subarea .noUi-handle"):
            contents = "handle => handle.closest('.widget-subarea').innerText"
            before = handle.evaluate(contents)
            handle.press("ArrowRight")
            visit.page.wait_for_timeout(500)
            assert handle.evaluate(contents) != before, f"{chapter.name}: a widget does not react"
            tried += 1
        assert not visit.faults
    assert tried > 0, "no chapter has a widget with a slider"


def slide(visit: Visit, rail: Any) -> bool:
    """Whether a click near the other end of a plotly slider changes what the figure shows."""
    before = rail.evaluate(SHOWN)
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    for part in (0.97, 0.03):  # one of them is not where the slider starts
        visit.page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        visit.page.wait_for_timeout(700)
        if rail.evaluate(SHOWN) != before:
            return True
    return False


def test_sample_chapter_is_alive(browser: Browser, sample: Path) -> None:
    visit = browser.visit(sample / "notebooks" / "sample.html")
    page = visit.page
    assert page.locator(".book-figure .main-svg").count() >= 2
    assert page.get_by_role("figure", name="Two groups").count() == 1
    assert page.locator(".math mjx-container svg").count() == 1
    assert slide(visit, page.query_selector(".slider-rail-touch-rect"))

    assert page.locator(".cell_output table").inner_text().split() == ["groups", "total", "4", "6"]
    assert page.locator(".widget-slider").count() == 1, "a widget is drawn twice"
    assert page.get_by_text("panel 0").is_visible()
    page.locator(".noUi-handle").press("ArrowRight")
    page.get_by_text("panel 1").wait_for(state="visible", timeout=5000)
    assert not page.get_by_text("panel 0").is_visible()
    assert page.locator(".widget-label mjx-container").count() == 1
    page.locator(".widget-play button").first.click()
    assert not visit.faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_fit_a_telephone_and_need_no_plate(browser: Browser, sample: Path, scheme: str) -> None:
    visit = browser.visit(sample / "notebooks" / "sample.html")
    page = visit.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for figure in page.query_selector_all(".plotly-graph-div .main-svg:first-child"):
        assert figure.bounding_box()["width"] <= 390
    plate = page.locator(".text_html:has(.book-figure)").first
    assert plate.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_links_follow_the_address(browser: Browser, sample: Path, real: Path) -> None:
    page = browser.visit(sample / "notebooks" / "sample.html").page
    path = ADDRESS.removeprefix("https://github.com/")
    wanted = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/sample.ipynb"
    assert page.locator(COLAB).first.get_attribute("href") == wanted
    edit = page.locator("a[href*='/edit/']").first.get_attribute("href")
    assert edit == f"{ADDRESS}/edit/main/notebooks/sample.py"

    path = pairs.repository(ROOT).removeprefix("https://github.com/")
    for chapter in pairs.sources(ROOT):
        page = (real / "notebooks" / f"{chapter.stem}.html").read_text("utf-8")
        assert f"github/{path}/blob/main/notebooks/{chapter.stem}.ipynb" in page


def test_address_stands_in_one_place() -> None:
    """Committed files other than those made from pyproject.toml do not repeat it."""
    address = pairs.repository(ROOT)
    for name in ("_config.yml", "_toc.yml", *(p.as_posix() for p in (ROOT / "book").rglob("*.*"))):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yml", ".js", ".css"}:
            assert address not in path.read_text("utf-8"), path


def test_index_links_the_chapters_that_exist() -> None:
    index = (ROOT / "book" / "index.md").read_text("utf-8")
    linked = re.findall(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", index)
    assert linked == [chapter.stem for chapter in pairs.sources(ROOT)]
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    assert re.findall(r"file: notebooks/(\w+)", toc) == linked


def rendered(figure: go.Figure) -> str:
    return BookRenderer().to_mimebundle(figure.to_dict())["text/html"]


def test_renderer_gives_each_figure_its_own_place() -> None:
    figure = go.Figure(layout={"title": {"text": 'A <b>"quoted"</b><br>title &lt;x & y'}, "height": 300})
    first, second = rendered(figure), rendered(figure)
    ids = [re.findall(r'id="(book-figure-\d+)"', page) for page in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 1
    assert ids[0] != ids[1]
    assert 'aria-label="A &quot;quoted&quot; title &lt;x &amp; y"' in first
    assert '<b>"quoted"</b><br>title &lt;x &amp; y</figcaption>' in first
    assert "window.BOOK_PLOTLY_URL" in first


def test_title_stands_above_the_figure_unless_it_changes() -> None:
    layout = {"title": "rho = 0.9", "margin": {"t": 70}}
    page = rendered(go.Figure(layout=layout))
    assert page.count("rho = 0.9") == 2, "in the label and the caption, not in the figure"
    assert '"t":35' in page
    assert "height:415px" in page, "the room of the title is given back"
    frames = [go.Frame(name="a", layout={"title": "rho = 0.5"})]
    page = rendered(go.Figure(layout={**layout, "height": 300}, frames=frames))
    assert "height:300px" in page
    assert '<figcaption style="font-weight: 600; text-align: left"></figcaption>' in page
    assert '"t":70' in page
    assert 'aria-label="untitled"' in rendered(go.Figure())


def test_picture_keeps_its_shape() -> None:
    layout = {"height": 360, "yaxis": {"scaleanchor": "x"}, "template": {"layout": {"height": 400}}}
    page = rendered(go.Figure(layout=layout))
    assert "width:100%; aspect-ratio:720 / 360;" in page
    assert '"height":null' in page or '"height":' not in page.split('"template"')[0]
    assert "width:500px" in rendered(go.Figure(layout={**layout, "width": 500}))


@pytest.mark.parametrize("version", ["5.24.1", "6.0.1"])
def test_renderer_names_the_plotly_that_drew(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caml_core.book_renderer.get_plotlyjs_version", lambda: version)
    assert f"cdn.plot.ly/plotly-{version}.min.js" in rendered(go.Figure())
