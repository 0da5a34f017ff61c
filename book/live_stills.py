"""A still of each explorable, for readers without scripts: ``python book/live_stills.py`` photographs them.

They lie in the package, beside the bundle, because the place that `explore` makes in a page holds its still.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from book import assets, bundles, stills  # noqa: E402
from caml_core.pictures.explore import STILLS  # noqa: E402

# The moment to be shown, where it is not the first.
MOMENTS = {"see_the_edit": '{"rounds": 2}', "hsfm_by_hand": '{"edits": 30}'}
_PAGE = """<!DOCTYPE html><html data-theme="light"><meta charset="utf-8">
<style>body {{ font-family: sans-serif; margin: 0; background: #fff; }} main {{ width: 44rem; padding: 0.5rem; }}
.controls, details, .explorable-body > p {{ display: none !important; }}</style>
<main><figure style="margin: 0" data-explorable="{name}" data-state='{state}'></figure></main>
<script src="{bundle}"></script></html>"""
_DRAWN = """() => {
    const { drawn, answered } = document.querySelector(".explorable-body").dataset;
    return (drawn ?? "true") === "true" && (answered ?? "true") === "true";
}"""


def main() -> None:
    from playwright.sync_api import sync_playwright

    STILLS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, sync_playwright() as started:
        site = assets.assemble(ROOT / "_build" / "assets", Path(work) / "site").site
        browser = started.chromium.launch(executable_path=stills.chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 760, "height": 900})
        for name in bundles.names():
            bundle = (site / "_static" / "explorables.js").as_uri()
            file = Path(work) / f"{name}.html"
            file.write_text(_PAGE.format(name=name, state=MOMENTS.get(name, "{}"), bundle=bundle), "utf-8")
            page.goto(file.as_uri())
            if page.locator(".waiting").count():
                page.evaluate("document.querySelector('.ask button').click()")
                page.wait_for_selector(".explorable-body:not(.waiting)", timeout=60_000)
            page.wait_for_function(_DRAWN, timeout=60_000)
            still = Image.open(io.BytesIO(page.locator(".explorable-body").screenshot()))
            still.convert("RGB").save(STILLS / f"{name}.webp", quality=60, method=6)
            print(f"{name}: {(STILLS / f'{name}.webp').stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
