"""Fixtures of the tests that look at the built book; a test file names this module in ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Browser, open_chromium, pages
from conftest import require
from sample_book import ROOT, make_sample_book
from tour import Seen, see

from book import assets, build


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_chromium() as chromium:
        yield Browser(chromium)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> assets.Assets:
    found = assets.assemble(ROOT / "_build" / "assets", tmp_path_factory.mktemp("assets") / "site")
    require(found.offline, "npm or its registry is not available, so the pages are not made for offline use")
    return found


@pytest.fixture(scope="session")
def sample(library: assets.Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample book, executed and built."""
    root = make_sample_book(tmp_path_factory.mktemp("sample") / "tree")
    assert build.main(["--sync", "--write"], root) == 0
    return root / "_build" / "html"


@pytest.fixture(scope="session")
def real(library: assets.Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This book, built from its committed notebooks."""
    html = tmp_path_factory.mktemp("real") / "html"
    assert build.main(["--committed", "--html-dir", str(html)]) == 0
    return html


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which looks for what keeps people out; it is no part of the book's pages."""
    folder = tmp_path_factory.mktemp("axe")
    lock = Path(__file__).with_name("axe.lock.json")
    reason = assets.fetch(lock, ROOT / "_build" / "assets" / "packages", folder)
    require(not reason, reason)
    return (folder / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="session")
def tour(browser: Browser, axe: str, real: Path) -> dict[str, Seen]:
    """What was seen of each page of this book, by its name; every page is opened once."""
    return {page.relative_to(real).as_posix(): see(browser, axe, real, page) for page in pages(real)}
