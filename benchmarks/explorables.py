"""Bytes and speed of each explorable: ``python benchmarks/explorables.py``.

One line each: kB alone with its libraries (the pages load all of them as one file), and milliseconds to recompute and
draw after a move.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import Browser, open_chromium  # noqa: E402
from live_pages import page_of, recomputation  # noqa: E402

from book import bundles  # noqa: E402


def main() -> None:
    bundles.tools()
    print(f"{'explorable':20} {'kB alone':>9} {'ms':>6}")
    with tempfile.TemporaryDirectory() as work, open_chromium() as chromium:
        browser = Browser(chromium)
        for name in bundles.names():
            file = Path(work) / f"{name}.html"
            file.write_text(page_of(name), "utf-8")
            ms = recomputation(browser.visit(file).page)
            print(f"{name:20} {len(bundles.bundle([name]).encode()) / 1000:9.0f} {ms:6.1f}", flush=True)
    print(f"all of them: {bundles.BUNDLE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
