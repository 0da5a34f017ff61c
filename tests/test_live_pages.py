"""Explorables under a reader's hand: mouse, keys, links, both schemes, a telephone; and what their texts claim."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Browser, Visit
from live_pages import page_of, recomputation
from tour import violations

from book import bundles
from caml_core.errors import CamlError
from caml_core.pictures.explore import BUNDLE, explore

pytest_plugins = ["book_fixtures"]

NAMES = bundles.names()
each = pytest.mark.parametrize("name", NAMES)
Open = Callable[..., "Hand"]
NUMBERS = """() => Object.fromEntries([...document.querySelectorAll('[data-name]')]
    .map(shown => [shown.dataset.name, +shown.dataset.value]))"""
SHOWN = "() => document.querySelector('.plots').innerHTML + document.querySelector('dl').innerText"
RENDER = """async ([module, state]) => {
    const it = (await import(URL.createObjectURL(new Blob([module], {type: "text/javascript"})))).default;
    const el = document.body.appendChild(document.createElement("div")), told = {};
    window.model = {
        values: {state, caption: "A caption"}, get(key) { return this.values[key]; },
        save_changes() { this.saved = true; }, set(key, value) { this.values[key] = value; },
        on(event, done) { told[event] = done; },
    };
    window.told = told;
    it.render({model: window.model, el});
}"""


class Hand:
    """A reader at one explorable."""

    def __init__(self, visit: Visit) -> None:
        self.visit, self.page = visit, visit.page

    @property
    def numbers(self) -> dict[str, float]:
        return dict(self.page.evaluate(NUMBERS))

    @property
    def shown(self) -> str:
        return str(self.page.evaluate(SHOWN))

    def press(self, button: str, times: int = 1) -> Hand:
        for _ in range(times):
            self.page.get_by_role("button", name=button, exact=True).click()
        return self

    def keys(self, handle: str, key: str, times: int = 1) -> Hand:
        part = self.page.locator(f"[data-id='{handle}']")
        for _ in range(times):
            part.press(key)
        return self

    def slide(self, name: str, to: str) -> Hand:
        """Move a slider to an end ("Home", "End") or by an arrow key."""
        self.page.locator(f"input[name='{name}']").press(to)
        return self

    def tick(self, name: str) -> Hand:
        self.page.locator(f"input[name='{name}']").click()
        return self

    def drag(self, handle: str, right: float, down: float) -> Hand:
        part = self.page.locator(f"[data-id='{handle}'] .mark")
        part.scroll_into_view_if_needed()
        box = part.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=4)
        self.page.mouse.up()
        return self


@pytest.fixture
def hand(browser: Browser, tmp_path: Path) -> Open:
    """Opens an explorable; an address may follow."""

    def open_it(name: str, address: str = "", **state: Any) -> Hand:
        file = tmp_path / f"{name}.html"
        file.write_text(page_of(name, **state), "utf-8")
        browser.page.goto("about:blank")  # an address that differs after # alone would not be loaded
        return Hand(browser.visit(file, address))

    return open_it


@each
def test_it_stands_in_both_schemes_and_on_a_telephone(hand: Open, axe: str, name: str) -> None:
    visit = (there := hand(name)).visit
    there.page.evaluate(axe)
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)):
        visit.turn(scheme, width)
        there.page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
        assert there.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not violations(visit, [])
        small = there.page.locator("[tabindex] .hit").first.bounding_box()
        assert small["width"] >= 24, "a finger needs room"
    assert not visit.faults


@each
def test_keys_reach_and_move_everything(hand: Open, name: str) -> None:
    there = hand(name)
    page = there.page
    page.locator(".explorable-body :is([tabindex], button, input, select)").first.focus()
    for part in page.locator(".explorable-body :is([data-move], input[type=range])").all():
        before = there.shown
        label = part.get_attribute("aria-label")
        assert label
        if part.get_attribute("type") == "range":
            part.press("End" if part.input_value() == part.get_attribute("min") else "Home")
        else:
            part.press("ArrowRight")
            part.press("ArrowUp")
        assert there.shown != before, f"{label} changes nothing"
    for part in page.locator(".explorable-body [data-id]:not([data-move])").all()[:5]:
        before = there.shown
        part.press("Enter")
        assert there.shown != before
    page.wait_for_function("document.querySelector('[role=status]').textContent.length > 20")
    assert not there.visit.faults


@each
def test_reset_and_link(hand: Open, name: str) -> None:
    there = hand(name)
    at_start = there.shown
    changed = there.page.locator(".explorable-body :is([data-move], input[type=range], input[type=checkbox])").first
    changed.press("Space" if changed.get_attribute("type") == "checkbox" else "ArrowLeft")
    moved, numbers = there.shown, there.numbers
    assert moved != at_start
    link = there.page.get_by_role("link", name="Link to this state").get_attribute("href")
    there.press("Reset")
    assert there.shown == at_start

    again = hand(name, link)
    assert again.numbers == numbers
    again.press("Reset")
    assert again.shown == at_start
    broken = hand(name, f"#{name}=%7Bnonsense")
    assert broken.shown == at_start
    assert not broken.visit.faults


@each
def test_a_page_without_scripts_has_its_caption(name: str) -> None:
    assert "<figcaption" in page_of(name)
    assert "A caption</figcaption>" in page_of(name)


@each
def test_a_hand_waits_for_nothing(hand: Open, name: str) -> None:
    """The bar is 16 ms on a core of its own (benchmarks/explorables.py); a busy one has room here."""
    assert recomputation(hand(name).page) < 50


@each
def test_the_same_module_is_a_widget(hand: Open, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sets the state and reads what the reader's hand has made of it."""
    monkeypatch.delenv("CAML_STATIC", raising=False)
    widget = explore(name, "A caption")
    assert widget.state == {}
    page = hand(name).page
    page.evaluate("document.querySelector('main').remove()")
    page.evaluate(RENDER, [widget._esm, {}])
    assert page.get_by_text("A caption").count() == 1
    assert page.get_by_role("link", name="Link to this state").count() == 0
    state = page.evaluate("model.get('state')")
    assert page.evaluate("model.saved")
    before = page.evaluate(SHOWN)
    page.locator(".explorable-body :is([data-move], input[type=range])").first.press("ArrowLeft")
    changed = page.evaluate("model.get('state')")
    assert changed != state
    page.evaluate("state => { model.values.state = state; told['change:state'](); }", state)
    assert page.evaluate(SHOWN) == before


def test_a_wrong_name_is_told() -> None:
    with pytest.raises(CamlError, match="there is no explorable 'hsfm'"):
        explore("hsfm", "")


def test_the_bundle_is_made_from_these_sources_and_they_are_in_order() -> None:
    bundles.tools()
    for name in NAMES:
        size = len(bundles.bundle([name]).encode())
        print(f"{name}: {size / 1000:.0f} kB alone")
        assert size < 150_000
    assert bundles.bundle(NAMES) == BUNDLE.read_text("utf-8"), "run: python book/bundles.py"
    bundles.check()
    (bundles.WORK / "wrong.js").write_text('import { dot } from "./math.js";\nexport const x = dot(1, "a");\n')
    with pytest.raises(CamlError, match="not assignable"):
        bundles.check()


# --- what the texts claim, from the numbers in the page ------------------------------------------------------------


def test_hsfm_by_hand(hand: Open) -> None:
    there = hand("hsfm_by_hand")
    start = there.numbers
    assert (start["right"], start["worst"]) == (0, 0)
    path = [start]
    for _ in range(60):
        path.append(there.press("One edit").numbers)
    worst = [now["worst"] for now in path]
    best = worst.index(max(worst))
    assert 30 <= best <= 40
    assert worst[best] > 85
    assert worst[-1] < 20
    assert path[-1]["majority"] < path[-1]["minority"] - 50
    losses = [now["loss"] for now in path]
    assert losses == sorted(losses, reverse=True)
    assert there.page.evaluate("document.querySelectorAll('.trails path').length") == 8

    there.press("Reset")
    share = "document.querySelector('[data-id=support-0]').getAttribute('aria-label').match(/(\\d+)%/)[1]"
    first = int(there.page.evaluate(share))
    there.drag("support-0", -90, 0)
    assert there.numbers["edits"] == 0
    assert int(there.page.evaluate(share)) < first / 4
    there.press("Reset").drag("support-0", 70, 0)
    assert int(there.page.evaluate(share)) > 2 * first
    assert json.loads(there.page.evaluate("document.querySelector('[data-explorable]').dataset.state")) == {}


def test_a_finger_drags(hand: Open) -> None:
    page = hand("one_step").page
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    there = hand("one_step")
    part = page.locator("[data-id=Q2] .mark")
    part.scroll_into_view_if_needed()
    box, before = part.bounding_box(), there.numbers["upweight"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, down in (("touchStart", 0), ("touchMove", 30), ("touchMove", 60), ("touchEnd", None)):
        points = [] if down is None else [{"x": x, "y": y + down}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert there.numbers["upweight"] < before
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    touch.detach()


def test_play_moves_or_for_those_who_prefer_stillness_arrives(hand: Open) -> None:
    there = hand("hsfm_by_hand")
    there.press("Play")
    there.page.wait_for_function("+document.querySelector('[data-name=edits]').dataset.value > 2")
    there.press("Pause")
    stopped = there.numbers["edits"]
    there.page.wait_for_timeout(200)
    assert there.numbers["edits"] == stopped
    there.page.emulate_media(reduced_motion="reduce")
    assert there.press("Reset").press("Play").numbers["edits"] == 80
    there.page.emulate_media(reduced_motion="no-preference")


def test_one_step(hand: Open) -> None:
    there = hand("one_step").press("They agree")
    agree = there.numbers
    assert agree["turn"] < 1e-3
    assert agree["caml"] < 0.9 * agree["mldg"]
    disagree = there.press("They disagree").numbers
    assert disagree["turn"] > 20
    late = (
        "document.querySelector('.dots path:nth-last-child(%d)').getAttribute('transform').split(' ')[1].slice(0, -1)"
    )
    first, last = (float(there.page.evaluate(late % place)) for place in (7, 5))
    assert last < first, "CAML's last batch counts more than its first: higher on the page"
    none = there.slide("alpha", "Home").numbers
    assert len({none[name] for name in ("upweight", "mldg", "caml", "exact")}) == 1
    assert none["append"] == 0 < none["upweight"]
    there.press("Reset")
    before = there.numbers["caml"]
    there.drag("Q2", 0, 60)
    assert there.numbers["caml"] < before
    there.page.locator("select[name=show]").select_option("path")
    assert there.page.evaluate("document.querySelectorAll('.paths path').length") == 5


def test_two_cues(hand: Open) -> None:
    there = hand("two_cues")
    there.slide("step", "ArrowRight")
    first = there.numbers
    assert first["minority"] < 20 < 95 < first["majority"]
    late = there.slide("step", "End").numbers
    assert first["minority"] + 20 < late["minority"]
    more = there.slide("minority", "End").numbers
    assert more["minority"] > late["minority"] + 10
    assert more["rho"] == 0.5
    assert abs(more["majority"] - late["majority"]) < 15
    none = there.slide("minority", "Home").numbers
    assert none["minority"] < 20
    assert math.isnan(none["above"])
    there.press("Reset").slide("step", "End")
    there.keys("centre", "Shift+ArrowUp")
    stronger = there.numbers
    assert stronger["bird"] > 1.5
    assert stronger["minority"] > 50 > late["minority"]


def test_turn_the_head(hand: Open) -> None:
    there = hand("turn_the_head")
    start = there.numbers
    assert start["worst"] < 10 < 90 < start["adjusted"]
    best = there.press("Look for the best").numbers
    assert best["worst"] > 70
    assert best["worst"] - start["worst"] > 4 * abs(start["adjusted"] - best["adjusted"])
    assert best["average"] > start["average"] + 20
    there.press("Reset").drag("a", -60, 0)
    assert there.numbers["majority"] < start["majority"]
    points = [[-1, -1, 0], [1, -1, 1], [-1, 1, 2], [1, 1, 3]]
    own = hand("turn_the_head", points=points, a=[-0.5, 0], b=[0.5, 0]).numbers
    assert own == {"adjusted": 100, "average": 100, "worst": 100, "minority": 100, "majority": 100}


def test_ask_yourself(hand: Open) -> None:
    there = hand("ask_yourself")
    assert there.numbers["you-minority"] < 10
    for point in range(8):
        there.keys(f"point-{point}", "Enter")
    assert there.numbers["you-found"] == 8
    assert there.numbers["you-minority"] > 80
    there.press("Reset").press("Let the others buy")
    found = there.numbers
    assert found["confidence-fog"] > 15 > 2 >= found["confidence-found"]
    assert found["confidence-minority"] < found["chance-minority"] - 30
    assert found["loss-found"] > found["core-found"] > found["badge-found"] > found["confidence-found"]
    assert min(found["loss-minority"], found["core-minority"]) > 90
    assert found["confidence-minority"] < found["badge-minority"] < found["core-minority"]
    clear = there.slide("fog", "Home").numbers
    assert clear["confidence-minority"] > found["confidence-minority"] + 50

    stops = there.page.locator("[data-id][tabindex='0']")
    first = stops.first.get_attribute("data-id")
    stops.first.press("ArrowUp")
    assert stops.count() == 1
    assert there.page.evaluate("document.activeElement.dataset.id") == stops.first.get_attribute("data-id") != first
    there.press("Reset")
    box = there.page.locator("[data-id='point-3'] .mark").bounding_box()
    there.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert there.numbers["left"] == 19


def test_whose_derivative(hand: Open) -> None:
    there = hand("whose_derivative")
    spread = there.numbers
    assert spread["truncated-angle"] > 12
    assert spread["first-angle"] > 25
    assert spread["implicit-angle"] < 8
    for button, length in {"All flat": 5 / 20, "All alike": None}.items():
        alike = there.press(button).numbers
        assert max(alike[f"{way}-angle"] for way in ("truncated", "first", "implicit")) < 1
        if length:
            assert alike["truncated-length"] == pytest.approx(length, abs=0.02)
            assert alike["first-length"] == pytest.approx(1, abs=0.03)
    there.press("Spread")
    steepness = "i => +document.querySelectorAll('.vectors path')[i].getAttribute('d').split(',').at(-1)"
    exact, truncated, first = (there.page.evaluate(steepness, way) for way in range(3))
    assert max(truncated, first) < exact, "both give the steepest direction too much: higher on the page"
    for alpha in range(5):
        for place in range(4):
            there.slide("alpha", "ArrowLeft" if alpha else "End")
            there.keys(f"direction-{place}", "Shift+ArrowRight")
            assert there.numbers["implicit-angle"] < 8


def test_weight_of_a_query(hand: Open) -> None:
    there = hand("weight_of_a_query", step=20)
    few = there.numbers
    assert few["labels"] < 0.05
    assert few["gradient"] > 0.9
    assert few["minority"] < 40
    found = {}
    for queries, weight in ((4, 8), (8, 4), (32, 1)):
        found[queries] = hand("weight_of_a_query", step=20, queries=queries, weight=weight).numbers["minority"]
    assert max(found.values()) - min(found.values()) < 10
    assert min(found.values()) > few["minority"] + 30
    late = {
        n: hand("weight_of_a_query", step=100, queries=n[0], weight=n[1]).numbers for n in ((4, 8), (32, 1), (4, 1))
    }
    assert late[32, 1]["minority"] > late[4, 8]["minority"] > late[4, 1]["minority"] + 10
    assert few["minority"] + 10 < late[4, 1]["minority"] < found[4]
    assert min(now["majority"] for now in late.values()) > 95
    right = hand("weight_of_a_query", step=100, place=[2.5, 1.2]).numbers
    assert right["gradient"] < 0.5
    assert right["turned"] < 5 < late[4, 1]["turned"]
