"""Weight and start of each page of the built book: ``python benchmarks/pages.py [_build/html]``.

One line a page: bytes of its own, bytes it shares with other pages, and milliseconds from the start of loading until
everything is drawn and can be moved. Each page is opened in a fresh tab, so that nothing is compiled before it starts;
the time is the middle one of three.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import Browser, open_chromium, pages, shared  # noqa: E402

REPEATS = 3


def main() -> None:
    html = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html").resolve()
    print(f"{'page':40} {'own kB':>8} {'shared kB':>10} {'ms':>6}")
    with open_chromium() as chromium:
        for page in pages(html):
            times = []
            for _ in range(REPEATS):
                browser = Browser(chromium)
                start = time.perf_counter()
                visit = browser.visit(page)
                times.append(1000 * (time.perf_counter() - start))
                browser.page.close()
            own = sum(file.stat().st_size for file in visit.files if not shared(file, html))
            rest = sum(file.stat().st_size for file in visit.files) - own
            name = page.relative_to(html).as_posix()
            print(f"{name:40} {own / 1000:8.0f} {rest / 1000:10.0f} {statistics.median(times):6.0f}", flush=True)


if __name__ == "__main__":
    main()
