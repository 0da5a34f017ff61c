"""What the pages look like, as fingerprints: ``python tests/looks.py`` writes those of this book to ``looks.json``."""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from browsing import HEIGHT, Browser, Visit, open_chromium, pages
from PIL import Image
from sample_book import ROOT

from book import build

COMMAND = "python tests/looks.py"
STORED = Path(__file__).with_suffix(".json")
GRID = (12, 16)  # blocks across and down
LOOKS = (("light", 1280), ("dark", 1280), ("light", 390))


def look(visit: Visit) -> str:
    """The fingerprint of the top of a page, as it is shown now."""
    clip = {"x": 0, "y": 0, "width": visit.page.viewport_size["width"], "height": HEIGHT}
    return fingerprint(visit.page.screenshot(clip=clip, animations="disabled"))


def fingerprint(picture: bytes) -> str:
    """The mean brightness (0 to 255) of each block of a picture, in base64: it knows the layout, not the words."""
    blocks = Image.open(io.BytesIO(picture)).convert("L").resize(GRID, Image.Resampling.BOX)
    return base64.b64encode(blocks.tobytes()).decode()


def distance(one: str, other: str) -> float:
    """Root mean square difference of two fingerprints: 0 for the same, 1 for black against white."""
    first, second = (np.frombuffer(base64.b64decode(text), np.uint8) / 255 for text in (one, other))
    return float(np.sqrt(np.mean((first - second) ** 2)))


def looks(visit: Visit) -> dict[str, str]:
    """The fingerprints of a page in each scheme and width of `LOOKS`."""
    found = {}
    for scheme, width in LOOKS:
        visit.turn(scheme, width)
        found[f"{scheme} {width}"] = look(visit)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as work, open_chromium() as chromium:
        browser = Browser(chromium)
        html = Path(work) / "html"
        if build.main(["--committed", "--html-dir", str(html)]):
            sys.exit(1)
        found = {page.relative_to(html).as_posix(): looks(browser.visit(page)) for page in pages(html)}
    STORED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"{len(found)} pages in {STORED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
