"""The pages look as they did when somebody last looked at them and ran ``python tests/looks.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browsing import Browser
from looks import COMMAND, STORED, distance, fingerprint, look, looks
from tour import Seen

pytest_plugins = ["book_fixtures"]

TOLERANCE = 0.015  # other fonts, a line more; two chapters are twice as far apart, a page without its sidebar, too


def test_pages_look_as_they_did(tour: dict[str, Seen]) -> None:
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    changed = []
    for page, seen in tour.items():
        for kind, now in seen.looks.items():
            then = stored.get(page, {}).get(kind)
            if then is None or distance(now, then) > TOLERANCE:
                changed.append(f"{page}, {kind}: " + (f"changed by {distance(now, then):.3f}" if then else "is new"))
    assert not changed, f"look at these pages; if they are as they should be, run: {COMMAND}"
    assert stored.keys() == tour.keys(), f"pages are gone; run: {COMMAND}"


@pytest.mark.parametrize(
    "damage",
    [
        ".bd-article-container { filter: invert(1); }",
        ".bd-sidebar-primary, .bd-header-article { display: none; }",
        "figure, pre { visibility: hidden; }",
        "main { padding-top: 500px; }",
    ],
)
def test_a_damaged_page_looks_another(browser: Browser, sample: Path, damage: str) -> None:
    visit = browser.visit(sample / "notebooks" / "sample.html")
    before = look(visit)
    assert distance(before, look(visit)) == 0
    visit.page.add_style_tag(content=damage)
    found = distance(before, look(visit))
    print(f"{damage}: {found:.3f}")
    assert found > TOLERANCE


def test_looks_differ_where_the_pages_do(browser: Browser, sample: Path) -> None:
    found = looks(browser.visit(sample / "notebooks" / "sample.html"))
    assert distance(found["light 1280"], found["dark 1280"]) > 20 * TOLERANCE
    assert distance(found["light 1280"], found["light 390"]) > TOLERANCE


def test_fingerprint_is_the_mean_of_blocks() -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    def picture(value: int) -> bytes:
        stream = BytesIO()
        pixels = np.zeros((160, 120, 3), np.uint8)
        pixels[:80] = value
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    assert distance(fingerprint(picture(0)), fingerprint(picture(0))) == 0
    assert distance(fingerprint(picture(0)), fingerprint(picture(255))) == pytest.approx(0.5**0.5)
