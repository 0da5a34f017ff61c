"""What the pages say of themselves and lead to: map, package, foot of a chapter, downloads, previews, 404, sitemap."""

from __future__ import annotations

import ast
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from sample_book import ADDRESS, ROOT, make_sample_book

from book import build, execute, pairs

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from book_pages import site_url

MAP = (ROOT / "book" / "static" / "map.svg").read_text("utf-8")
COURSE = (ROOT / "book" / "map.md").read_text("utf-8").partition("## Teach a course")[2]
SITE = "https://some-account.github.io/another-book/"
CHAPTERS = {source.stem[:2]: source for source in pairs.sources(ROOT)}
DOCSTRINGS = "# Package\n\n" + "".join(
    f"```{{docstrings}} caml_core.{name}\n```\n\n"
    for name in ("active", "meta", "round", "runs.lists", "hypergradients")
)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample book with a page of docstrings, run with a folder of datasets."""
    root = make_sample_book(tmp_path_factory.mktemp("pages") / "tree")
    (root / "book" / "package.md").write_text(DOCSTRINGS)
    toc = root / "_toc.yml"
    toc.write_text(toc.read_text() + "- file: book/package\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAML_DATA", str(root))
        assert build.main(["--sync", "--write"], root) == 0
    return root / "_build" / "html"


class Page(HTMLParser):
    """Tags of a page with their attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def links(self) -> list[str]:
        return [a[name] for _, a in self.tags for name in ("href", "src", "action") if name in a]

    def meta(self, name: str) -> list[str]:
        return [a["content"] for tag, a in self.tags if tag == "meta" and name in (a.get("property"), a.get("name"))]


# Map and paths.


def needed(source: Path) -> set[str]:
    """Chapters that "Before you start" names: "[01](...)", "chapter 07", "chapters 04 to 06"."""
    text = source.read_text("utf-8")
    text = text[text.index("**Before you start.**") :].partition("\n\n")[0].replace("\n# >", "").replace("\n#", "")
    found = set(re.findall(r"\[(\d\d)\]\(", text)) | set(re.findall(r"[Cc]hapters? (\d\d)\b", text))
    for first, last in re.findall(r"\[?(\d\d)(?:\]\([^)]*\))? to \[?(\d\d)\b", text):
        found |= {f"{n:02d}" for n in range(int(first), int(last) + 1)}
    return found & set(CHAPTERS)


def arrows() -> set[tuple[str, str]]:
    return set(re.findall(r'data-from="(\d\d)" data-to="(\d\d)"', MAP))


def test_every_arrow_of_the_map_is_asked_for_by_its_chapter() -> None:
    assert arrows()
    for first, then in arrows():
        assert first in needed(CHAPTERS[then]), f"chapter {then} does not say that it needs {first}"


def test_what_a_chapter_needs_lies_before_it_on_the_map() -> None:
    before: dict[str, set[str]] = {}
    for number in sorted(CHAPTERS):  # arrows lead to later chapters
        direct = {first for first, then in arrows() if then == number}
        before[number] = direct.union(*(before[first] for first in direct))
    for number, source in CHAPTERS.items():
        assert needed(source) <= before[number] | {number}, number


def test_map_names_and_links_each_chapter_once() -> None:
    links = re.findall(r'<a href="\.\./notebooks/(\w+)\.html" aria-label="(\d\d) ', MAP)
    assert sorted(links) == [(source.stem, number) for number, source in CHAPTERS.items()]
    ElementTree.fromstring(MAP)


def test_course_gives_exercises_that_exist() -> None:
    rows = [row for row in COURSE.splitlines() if re.match(r"\| \d", row)]
    assert len(rows) == 8
    assert sorted(re.findall(r"\[(\d\d)\]", COURSE)) == sorted(CHAPTERS)
    for row in rows:
        chapters = re.findall(r"\[(\d\d)\]", row)
        for number, exercises in re.findall(r"(\d\d): ([\d, ]+)", row.split("|")[3]):
            assert number in chapters
            text = CHAPTERS[number].read_text("utf-8")
            for exercise in exercises.split(","):
                assert f"**Exercise {exercise.strip()}:" in text, f"chapter {number} has no exercise {exercise}"


# The package.


def test_every_module_stands_on_a_page_and_in_the_table() -> None:
    sources = [file for file in (ROOT / "caml_core").rglob("*.py") if len(ast.parse(file.read_text("utf-8")).body) > 1]
    files = {file.relative_to(ROOT).with_suffix("") for file in sources}
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files} - {"caml_core", "caml_core.__main__"}
    text = "".join(page.read_text("utf-8") for page in sorted((ROOT / "book").glob("api_*.md")))
    assert sorted(re.findall(r"\{docstrings\} (\S+)", text)) == sorted(modules)
    table = re.findall(r"`([a-z_.]+)`", (ROOT / "book" / "api.md").read_text("utf-8").partition("| Module |")[2])
    assert {f"caml_core.{name}" for name in table} >= modules


def test_docstrings_are_read_as_markdown(html: Path) -> None:
    text = (html / "book" / "package.html").read_text("utf-8")
    names = set(re.findall(r'<dt class="sig[^>]* id="caml_core\.([\w.]+)"', text))
    assert {"meta.meta_gradient", "hypergradients.adjoint", "runs.lists.Run"} <= names
    assert not [name for name in names if re.search(r"(^|\.)_", name)]
    assert re.search(r"<td[^>]*>(<p>)?upweight\W", text), "a table is no table"
    assert re.search(r"<pre>.*theta.*for.*t.*=", text, re.DOTALL), "a formula is no block"
    assert 'href="#caml_core.meta.meta_gradient"' in text
    assert "Raises" in text
    assert "Alias for field number" not in text
    assert "Return type" not in text


# The foot of a chapter.


def test_foot_says_how_the_chapter_was_run(html: Path) -> None:
    text = (html / "notebooks" / "sample.html").read_text("utf-8")
    (foot,) = re.findall(r'<footer><p class="how-this-was-run">(.*?)</p></footer>', text, re.DOTALL)
    for pattern in (
        r"commit ([0-9a-f]{12}(\+changes)?|unknown) ·",
        r"\d{4}-\d\d-\d\d \d\d:\d\d UTC ·",
        r"(cpu|NVIDIA|cuda).* ·",
        rf"Python {sys.version.split()[0]}, PyTorch \d.*, caml_core \d",
        r"profile quick · with a folder of datasets",
        r"\d+ s\.",
    ):
        assert re.search(pattern, foot), pattern
    assert text.index("how-this-was-run") < text.index("</article>")
    assert "how-this-was-run" not in (html / "book" / "package.html").read_text("utf-8")


def test_committed_notebook_keeps_it_and_names_no_machine(html: Path) -> None:
    notebook = nbformat.read(html.parents[1] / "notebooks" / "sample.ipynb", as_version=4)
    run = notebook.metadata["book_run"]
    assert set(run) == {"commit", "date", "device", "seconds", "profile", "data", "versions"}
    assert set(run["versions"]) == {"python", "torch", "caml_core"}
    assert "/" not in json.dumps(run)


def test_chapters_know_that_no_kernel_stands_behind_the_page(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("# %%\nimport os\n\nprint(os.environ['CAML_STATIC'])\n")
    notebook = execute.convert(source)
    execute._run(notebook, source, "1")
    assert notebook.cells[0].outputs[0].text == "1\n"


# Ways into the book and out of it.


def test_address_of_the_site_follows_the_repository() -> None:
    assert site_url(ADDRESS) == site_url(ADDRESS + ".git") == site_url(ADDRESS + "/") == SITE
    assert site_url("https://github.com/Some-Account/some-account.github.io") == "https://some-account.github.io/"
    assert site_url("https://example.org/some/book") == ""


def test_chapter_can_be_downloaded_edited_opened_and_left(html: Path) -> None:
    links = Page(html / "notebooks" / "sample.html").links()
    notebook = nbformat.read(html / "_sources" / "notebooks" / "sample.ipynb", as_version=4)
    assert notebook.cells == nbformat.read(html.parents[1] / "notebooks" / "sample.ipynb", as_version=4).cells
    script = (html / "_sources" / "notebooks" / "sample.py").read_bytes()
    assert script == (html.parents[1] / "notebooks" / "sample.py").read_bytes()
    assert "# @title Solution" not in (html / "_sources" / "notebooks" / "sample.exercises.ipynb").read_text("utf-8")
    for wanted in (
        "../_sources/notebooks/sample.ipynb",
        "../_sources/notebooks/sample.py",
        "../_sources/notebooks/sample.exercises.ipynb",
        f"{ADDRESS}/edit/main/notebooks/sample.py",
        f"https://colab.research.google.com/github/{urlsplit(ADDRESS).path[1:]}/blob/main/notebooks/sample.ipynb",
        "../book/index.html",
        "../book/package.html",
    ):
        assert wanted in links, wanted


def test_lost_page_works_at_any_depth(html: Path) -> None:
    page, path = Page(html / "404.html"), urlsplit(SITE).path
    for link in page.links():
        if link.startswith(("#", "https:")):
            continue
        assert link.startswith(path), link
        assert (html / unquote(urlsplit(link).path.removeprefix(path))).is_file(), link
    (root,) = [a["data-content_root"] for tag, a in page.tags if tag == "html"]
    assert root == path
    assert not [a for tag, a in page.tags if tag == "link" and a.get("rel") == "canonical"]


def test_sitemap_lists_the_pages(html: Path) -> None:
    tree = ElementTree.parse(html / "sitemap.xml")
    listed = [node.text for node in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    pages = ("book/index", "book/package", "notebooks/sample")
    assert sorted(map(str, listed)) == [f"{SITE}{name}.html" for name in pages]


def test_previews_have_each_tag_once_and_a_picture_that_exists(html: Path) -> None:
    for name in ("book/index", "book/package", "notebooks/sample"):
        page = Page(html / f"{name}.html")
        for tag in ("og:title", "og:type", "og:url", "og:site_name", "description"):
            assert len(page.meta(tag)) == 1, f"{name}: {tag}"
        assert page.meta("og:url") == [f"{SITE}{name}.html"]
        assert page.meta("og:site_name") == [yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["title"]]
        pictures = page.meta("og:image")
        assert len(pictures) == len(page.meta("og:image:alt")) == len(page.meta("twitter:card")) <= 1
        for picture in pictures:
            assert (html / picture.removeprefix(SITE)).is_file()
    drawn = (html / "_static" / "openings" / "sample.png").exists()
    assert bool(Page(html / "notebooks" / "sample.html").meta("og:image")) == drawn


def test_address_of_the_site_leads_to_the_first_page(html: Path) -> None:
    page = Page(html / "index.html")
    assert ("meta", {"http-equiv": "refresh", "content": "0; url=book/index.html"}) in page.tags
    assert page.meta("og:url") == [f"{SITE}book/index.html"]
    assert "book/index.html" in page.links()


def test_search_page_is_unharmed(html: Path) -> None:
    text = (html / "search.html").read_text("utf-8")
    assert "searchtools.js" in text
    assert "og:image" not in text
    assert "meta_gradient" in (html / "searchindex.js").read_text("utf-8")
