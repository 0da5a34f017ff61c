"""The built book in a browser: no request leaves, nothing fails, nobody is kept out, figures and widgets are alive."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import plotly.graph_objects as go
import pytest
from browsing import Browser, pages, served
from plotly.offline import get_plotlyjs_version
from sample_book import ADDRESS, ROOT
from tour import Seen, slide

from book import assets, pairs, renderer

pytest_plugins = ["book_fixtures"]

PAGE_BUDGET = 1_000_000  # bytes that only one page loads
SHARED_BUDGET = 10_000_000  # bytes that pages share
COLAB = "a[href*='colab.research.google.com']"
MATH = re.compile(r'class="[^"]*\bmath\b|widget-view\+json')
Tour = dict[str, Seen]


def said(notes: dict[str, list[str]]) -> str:
    return "\n".join(f"{page}: {note}" for page, found in notes.items() for note in found)


def test_every_page_is_whole_and_asks_for_nothing(tour: Tour) -> None:
    """Both colour schemes, 1280 and 390 pixels: no error, no outside request, nothing too wide, no lost picture."""
    assert not said({page: seen.faults for page, seen in tour.items()})
    assert sum(seen.figures for seen in tour.values()) > 0


def test_nobody_is_kept_out(tour: Tour) -> None:
    """No violation of WCAG 2.1 A or AA, as far as axe-core finds them."""
    assert not said({page: seen.violations for page, seen in tour.items()})


def test_what_can_be_moved_changes_what_is_shown(tour: Tour) -> None:
    assert not said({page: seen.stuck for page, seen in tour.items()})
    for kind in ("slider", "menu", "widget"):
        assert any(kind in seen.moved for seen in tour.values()), f"no page has a {kind}"


def test_pages_are_light(tour: Tour) -> None:
    for page, seen in tour.items():
        print(f"{page}: {seen.own / 1000:.0f} kB, {seen.figures} figures, {len(seen.moved)} parts to move")
    shared = sum(path.stat().st_size for path in frozenset().union(*(seen.shared for seen in tour.values())))
    print(f"shared: {shared / 1e6:.2f} MB")
    assert not {page: seen.own for page, seen in tour.items() if seen.own >= PAGE_BUDGET}
    assert shared < SHARED_BUDGET


def test_mathjax_is_loaded_where_there_is_math(tour: Tour, real: Path) -> None:
    for page, seen in tour.items():
        math = MATH.search((real / page).read_text("utf-8"))
        assert math or not any(path.name.startswith("tex-") for path in seen.shared), page


class Links(HTMLParser):
    """The addresses that a page names, and its own anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in {"href", "src", "poster"}:
                self.targets.add(value)
            elif value and name == "content" and (found := re.match(r"\d+; *url=(.*)", value)):
                self.targets.add(found[1])
            elif value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)


def broken_links(html: Path) -> list[str]:
    """The links of built pages to files or anchors of the book that do not exist."""
    links = {page: Links(page) for page in pages(html, redirects=True)}
    broken = []
    for page, found in links.items():
        for target in sorted(found.targets):
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            path, anchor = unquote(address.path), unquote(address.fragment)
            file = served(Path(path), page) if path.startswith("/") else (page.parent / path).resolve()
            file = page if not path else file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in links and anchor not in links[file].anchors):
                broken.append(f"{page.relative_to(html)}: {target}")
    return broken


def test_links_within_the_book_lead_somewhere(real: Path) -> None:
    assert not broken_links(real.resolve())


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="#"><a href="b.html#there"><a href="https://a.b/c"><img src="c.png">'
        '<a href="b.html#nowhere"><a href="#gone"><a href="./"><meta http-equiv="Refresh" content="0; url=d.html">'
    )
    (tmp_path / "b.html").write_text('<a name="there">')
    assert broken_links(tmp_path.resolve()) == [
        "a.html: #gone",
        "a.html: ./",
        "a.html: b.html#nowhere",
        "a.html: c.png",
        "a.html: d.html",
    ]


def test_search_finds_the_chapter(browser: Browser, real: Path) -> None:
    visit = browser.visit(real / "search.html", "?q=hypergradient")
    hit = visit.page.locator("#search-results a[href*='notebooks/11_hypergradients.html']").first
    hit.wait_for(timeout=10_000)
    assert not visit.faults
    hit.click()
    visit.page.wait_for_url("**/11_hypergradients.html*")


def test_pages_draw_with_the_plotly_that_made_the_figures() -> None:
    locked = next(package for package in assets.locked() if package["name"].startswith("plotly"))
    assert locked["version"] == get_plotlyjs_version(), "mend book/assets.lock.json"


def test_sample_chapter_is_alive(browser: Browser, sample: Path) -> None:
    visit = browser.visit(sample / "notebooks" / "sample.html")
    page = visit.page
    assert page.locator(".book-figure .main-svg").count() >= 2
    assert page.get_by_role("figure", name="Two groups").count() == 1
    assert page.locator(".math mjx-container svg").count() == 1
    assert slide(page, page.query_selector(".slider-rail-touch-rect"))

    assert page.locator(".cell_output table").inner_text().split() == ["groups", "total", "4", "6"]
    assert page.locator(".widget-slider").count() == 1, "a widget is drawn twice"
    explorable = page.locator("[data-explorable]")
    assert explorable.locator("output").first.inner_text() == "5", "the state of the page is not that of the cell"
    explorable.get_by_role("button", name="One edit").click()
    assert explorable.locator("[data-name=edits]").inner_text() == "1"
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
    visit.turn(scheme, 390)
    assert not visit.faults
    for figure in visit.page.query_selector_all(".plotly-graph-div .main-svg:first-child"):
        assert figure.bounding_box()["width"] <= 390
    plate = visit.page.locator(".text_html:has(.book-figure)").first
    assert plate.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_links_follow_the_address(browser: Browser, sample: Path, real: Path) -> None:
    page = browser.visit(sample / "notebooks" / "sample.html").page
    path = ADDRESS.removeprefix("https://github.com/")
    wanted = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/sample.ipynb"
    assert page.locator(COLAB).first.get_attribute("href") == wanted
    edit = page.locator("a[href*='/edit/']").first.get_attribute("href")
    assert edit == f"{ADDRESS}/edit/main/notebooks/sample.py"

    path = pairs.address_for_readers(ROOT).removeprefix("https://github.com/")
    for chapter in pairs.sources(ROOT):
        page = (real / "notebooks" / f"{chapter.stem}.html").read_text("utf-8")
        assert "your_account/caml-book/" not in page, "a button that leads nowhere"
        assert not path or f"github/{path}/blob/main/notebooks/{chapter.stem}.ipynb" in page


@pytest.mark.parametrize(
    ("named", "origin", "wanted"),
    [
        ("me/mine", "git@github.com:you/yours.git", "me/mine"),
        ("your_account/caml-book", "git@github.com:you/yours.git", "you/yours"),
        ("your_account/caml-book", "https://github.com/you/yours", "you/yours"),
        ("your_account/caml-book", "/a/folder/of/mine.git", ""),
        ("your_account/caml-book", "", ""),
    ],
)
def test_buttons_lead_to_the_address_or_to_where_git_lies(named: str, origin: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "https://github.com/{named}"\n')
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if origin:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", origin], check=True)
    assert pairs.address_for_readers(tmp_path) == (f"https://github.com/{wanted}" if wanted else "")


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


def rendered(figure: go.Figure, number: int = 1) -> str:
    return renderer.page(figure.to_dict(), number)


def test_renderer_gives_each_figure_its_own_place() -> None:
    figure = go.Figure(layout={"title": {"text": 'A <b>"quoted"</b><br>title &lt;x & y'}, "height": 300})
    first, second = rendered(figure), rendered(figure, 2)
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
    monkeypatch.setattr("book.renderer.get_plotlyjs_version", lambda: version)
    assert f"cdn.plot.ly/plotly-{version}.min.js" in rendered(go.Figure())
