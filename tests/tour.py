"""One visit to each page of the book: all that the tests of the pages ask about is noted on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from browsing import Browser, Visit, shared
from looks import LOOKS, look

WCAG = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']"
NOT_OURS = [
    ".main-svg",  # drawn by plotly; what it shows is said by the label of the figure around it
    "mjx-container svg",  # drawn by MathJax
]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BLANK = """[...document.images].filter(i => i.currentSrc && i.loading != 'lazy' && !i.naturalWidth)
    .map(i => i.currentSrc.slice(0, 80))"""
UNFOLD = """() => {
    document.querySelectorAll('details').forEach(details => { details.open = true; });
    document.querySelectorAll('.toggle-hidden button.toggle-button').forEach(button => button.click());
}"""
UNKNOWN = """() => [...document.querySelectorAll('.plotly-graph-div')].flatMap(div =>
    div.data.filter((trace, i) => div._fullData[i].type != (trace.type || 'scatter')).map(trace => trace.type))"""
SIZES = """() => [...document.querySelectorAll('.plotly-graph-div .main-svg:first-child')].map(figure => {
    const box = figure.getBoundingClientRect();
    return Math.min(box.width, box.height);
})"""
# What a figure or widget shows: its data, what plotly drew of them, its words.
SHOWN = """
    const shown = part => {
        const whole = part.closest('.plotly-graph-div, .widget-subarea');
        const drawn = '.cartesianlayer path, image, .annotation-text, .gtitle';
        return JSON.stringify(whole.data) + whole.innerText + [...whole.querySelectorAll(drawn)]
            .map(d => d.getAttribute('d') + d.getAttribute('href') + d.textContent);
    };"""
REMEMBER = f"part => {{ {SHOWN} part.before = shown(part); }}"
CHANGED = f"part => {{ {SHOWN} return part.before != shown(part); }}"


@dataclass
class Seen:
    """What was noted about one page."""

    faults: list[str] = field(default_factory=list)  # errors, requests, overflow, pictures that are missing
    violations: list[str] = field(default_factory=list)  # of WCAG 2.1 A and AA, as axe finds them
    stuck: list[str] = field(default_factory=list)  # sliders, buttons and widgets that change nothing
    moved: list[str] = field(default_factory=list)  # those that change something
    figures: int = 0
    own: int = 0  # bytes that only this page loads
    shared: frozenset[Path] = frozenset()  # files that pages share
    looks: dict[str, str] = field(default_factory=dict)


def see(browser: Browser, axe: str, html: Path, file: Path) -> Seen:
    """Visit one page: both colour schemes, both widths, folded parts open, everything moved that can be."""
    visit, seen = browser.visit(file), Seen()

    def turn(scheme: str, width: int) -> None:
        visit.turn(scheme, width)
        if over := visit.page.evaluate(OVERFLOW):
            visit.faults.append(f"{over} pixels too wide at {width} px in {scheme} mode")
        visit.faults.extend(f"no picture: {source}" for source in visit.page.evaluate(BLANK))

    visit.page.evaluate(axe)
    for scheme, width in LOOKS:
        turn(scheme, width)
        seen.looks[f"{scheme} {width}"] = look(visit)
        if (scheme, width) == ("dark", 1280):  # the main part follows, unfolded
            seen.violations += violations(visit, [*NOT_OURS, "main"])
    visit.page.evaluate(UNFOLD)
    for scheme, width in (("dark", 390), ("light", 1280)):
        turn(scheme, width)
        seen.violations += [f"{scheme} {width}: {found}" for found in violations(visit, NOT_OURS)]
    sizes = visit.page.evaluate(SIZES)
    visit.faults.extend("a figure has no size" for size in sizes if size < 50)
    visit.faults.extend(f"the plotly of the pages knows no {kind}" for kind in visit.page.evaluate(UNKNOWN))
    seen.figures = len(sizes)
    move_all(visit, seen)
    seen.faults = visit.faults
    own = {path for path in visit.files if not shared(path, html)}
    seen.own = sum(path.stat().st_size for path in own)
    seen.shared = frozenset(visit.files - own)
    return seen


def violations(visit: Visit, exclude: list[str]) -> list[str]:
    """One line for each element that breaks a rule."""
    options = f"{{runOnly: {WCAG}, resultTypes: ['violations'], preload: false}}"
    found = visit.page.evaluate(f"axe.run({{exclude: {exclude}}}, {options})")["violations"]
    return [
        f"{rule['id']}: {node['target'][-1]} {node['failureSummary'].splitlines()[-1].strip()}"
        for rule in found
        for node in rule["nodes"]
    ]


def move_all(visit: Visit, seen: Seen) -> None:
    """Move each slider of a figure, press its buttons, move each widget; note what changes nothing."""
    page = visit.page

    def note(what: str, changed: bool) -> None:
        (seen.moved if changed else seen.stuck).append(what)

    for rail in page.query_selector_all(".slider-rail-touch-rect"):
        note("slider", slide(page, rail))
    for menu in page.query_selector_all("g.updatemenu-header-group"):
        note("menu", press(page, menu))
    for handle in page.query_selector_all(".widget-subarea .noUi-handle"):
        note("widget", changes(page, handle, lambda handle=handle: handle.press("ArrowRight")))
    for chosen in page.query_selector_all(".widget-subarea select"):
        last = chosen.evaluate("chosen => chosen.options.length") - 1
        note("widget", changes(page, chosen, lambda chosen=chosen, last=last: chosen.select_option(index=last)))
    for button in page.query_selector_all(".widget-subarea .widget-toggle-button:not(.mod-active)"):
        note("widget", changes(page, button, button.click))


def changes(page: Any, part: Any, act: Any) -> bool:
    """Whether what a figure or widget shows is soon another after the act."""
    from playwright.sync_api import TimeoutError as TooLong

    part.evaluate(REMEMBER)
    part.evaluate("part => part.scrollIntoView({block: 'center'})")
    act()
    try:
        page.wait_for_function(CHANGED, arg=part, timeout=5000)
    except TooLong:
        return False
    return True


def slide(page: Any, rail: Any) -> bool:
    """Whether a click near one of the ends of a plotly slider changes its figure; the slider starts at one at most."""

    def click(place: float) -> None:
        box = rail.bounding_box()
        page.mouse.click(box["x"] + place * box["width"], box["y"] + box["height"] / 2)

    return any(changes(page, rail, lambda place=place: click(place)) for place in (0.97, 0.03))


def press(page: Any, menu: Any) -> bool:
    """Whether the entries of a plotly menu (buttons in a row, or a list to open) change its figure.

    Last to first, as the first is chosen at the start; one that changes nothing is forgiven where there are others.
    """
    opener = menu.query_selector("g.updatemenu-header")
    place = menu.query_selector("xpath=..") if opener else menu
    entry = "g.updatemenu-dropdown-button" if opener else "g.updatemenu-button"

    def entries() -> list[Any]:
        if opener and not place.query_selector(entry):
            menu.evaluate("menu => menu.scrollIntoView({block: 'center'})")
            opener.click()
            place.wait_for_selector(entry)
        return place.query_selector_all(entry)

    count = len(entries())
    idle = 0
    for number in reversed(range(count)):
        chosen = entries()[number]
        idle += not changes(page, menu, chosen.click)
        if opener:
            chosen.wait_for_element_state("hidden")
    return count > 0 and idle <= (count > 1)
