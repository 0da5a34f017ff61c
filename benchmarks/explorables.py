"""Bytes and speed of each explorable: ``python benchmarks/explorables.py``.

One line each: kB alone with its libraries (the pages load all of them as one file), and milliseconds to recompute and
draw after a move. Of one with networks also their MB, seconds to load and start them, and seconds to draw a picture.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import Browser, open_chromium  # noqa: E402
from live_pages import page_of, recomputation  # noqa: E402

from book import assets, bundles  # noqa: E402

BODY = "document.querySelector('.explorable-body')"
READY = f"() => {BODY}.dataset.loaded && [{BODY}.dataset.drawn, {BODY}.dataset.answered].includes('true')"
TIMES = {"loaded": "loaded in", "decode": "ten guided steps in", "frame": "two answers in"}


def main() -> None:
    bundles.tools()
    print(f"{'explorable':20} {'kB alone':>9} {'ms':>6}")
    with tempfile.TemporaryDirectory() as work, open_chromium() as chromium:
        static = assets.assemble(ROOT / "_build" / "assets", Path(work) / "site").site / "_static"
        browser = Browser(chromium)
        for name in bundles.names():
            file = Path(work) / f"{name}.html"
            file.write_text(page_of(name, static / bundles.BUNDLE.name), "utf-8")
            page, about = browser.visit(file).page, ""
            if page.locator(".waiting").count():
                page.locator(".ask button").click()
                page.wait_for_function(READY, timeout=120_000)
                parts = [static / "engines" / f"{part}.js" for part in ("ort.mjs", "ort.wasm", name)]
                about = f"  {sum(part.stat().st_size for part in parts) / 1e6:.1f} MB"
                for what, words in TIMES.items():
                    if (ms := page.evaluate(f"{BODY}.dataset.{what}")) is not None:
                        about += f", {words} {float(ms) / 1000:.2f} s"
            ms = recomputation(page)
            print(f"{name:20} {len(bundles.bundle([name]).encode()) / 1000:9.0f} {ms:6.1f}{about}", flush=True)
    print(f"all of them: {bundles.BUNDLE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
