"""The figures: helpers of the book, and what the chapters show."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from sample_book import ROOT

from book import pairs, renderer
from caml_core.pictures import figures

SOURCES = pairs.sources(ROOT)
CARTESIAN = ("scatter", "scattergl", "bar", "box", "violin", "histogram", "heatmap", "contour")


def scenes(n: int = 8, height: int = 12, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator).to(torch.uint8)


def sheets(n: int = 3) -> list[np.ndarray]:
    return [figures.contact_sheet(scenes().roll(i, 0), columns=4) for i in range(n)]


def helpers() -> dict[str, go.Figure]:
    groups = [{"name": f"{y}, {a}", "value": 60.0, "low": 50.0, "high": 70.0} for y in "yz" for a in "ab"]
    curves = {"append": np.arange(6.0).reshape(2, 3), "caml": np.ones((1, 3))}
    gains = {"first": {"mean": 9.0, "low": 4.0, "high": 12.0}, "second": {"mean": -1.0, "low": -2.0, "high": 0.0}}
    return {
        "image_grid": figures.image_grid(scenes(), columns=4, title="T", labels=["above", "below"]),
        "picture": figures.picture(sheets()[0], title="T"),
        "still": figures.still("dominoes", title="T", labels=["above", "below"]),
        "picture_slider": figures.picture_slider(sheets(), "abc", title="T", prefix="step "),
        "group_bars": figures.group_bars({"groups": groups}, title="T", minority=[False, True] * 2, chance=50),
        "curves_with_band": figures.curves_with_band([1, 2, 3], curves, title="T", x_title="x (s)", y_title="y (%)"),
        "interval_rows": figures.interval_rows({"caml": gains}, title="T", x_title="x (s)"),
    }


# ---- what readers are told ----------------------------------------------------------------------------------


def untitled(figure: dict[str, Any]) -> list[str]:
    """The axes that show numbers and do not say of what.

    Panels of one figure may share a title; that of a y axis may stand above its panel, with its unit: "accuracy (%)".
    """
    drawn = [trace for trace in figure["data"] if trace["type"] in CARTESIAN]
    notes = figure["layout"].get("annotations", [])
    found = []
    for letter in "xy":
        axes = {trace.get(f"{letter}axis", letter) for trace in drawn}  # "x", "x2", ...
        layout = {axis: figure["layout"].get(f"{letter}axis{axis[1:]}", {}) for axis in axes}
        titles = [(layout[axis].get("title") or {}).get("text") for axis in axes]
        if letter == "y":
            titles += [note["text"].endswith(")") for note in notes if note.get("yref") == "paper"]
        if not any(titles):
            found += [axis for axis in sorted(axes) if has_numbers(layout[axis], drawn, axis)]
    return found


def has_numbers(layout: dict[str, Any], drawn: list[dict[str, Any]], axis: str) -> bool:
    """Whether an axis is seen, has tick labels, and these are numbers (not names of groups or pictures)."""
    if layout.get("visible") is False or layout.get("showticklabels") is False:
        return False
    if "ticktext" in layout:
        return any(re.fullmatch(r"[\d.,%−+-]+", str(text)) for text in layout["ticktext"])
    mine = [trace for trace in drawn if trace.get(f"{axis[0]}axis", axis[0]) == axis]
    values = [value for trace in mine for value in (*listed(trace.get(axis[0])), trace.get(f"{axis[0]}0"))]
    return not any(isinstance(value, str) for value in values)


def listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []  # arrays in base64 ({"bdata": ...}) hold numbers


@pytest.mark.parametrize("name", helpers())
def test_a_helper_makes_a_figure_that_says_what_it_shows(name: str) -> None:
    figure = helpers()[name]
    figure.update_layout(template="book", meta={"alt": "What is drawn & how"})
    assert renderer.title(figure.to_dict()) == "T"
    assert untitled(figure.to_dict()) == []
    assert 'aria-label="What is drawn &amp; how"' in renderer.page(figure.to_dict(), 1)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_figures_of_a_chapter_have_a_title_and_titles_of_axes(source: Path) -> None:
    faults = []
    outputs = renderer.figures_of(nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells)
    assert outputs
    for output in outputs:
        figure = output.data[renderer.MIME]
        title = html.unescape(renderer.title(figure))
        faults += [f"{title[:50]!r}: {axis} axis has no title" for axis in untitled(figure)]
        if not title:
            faults.append(f"a figure without a title: {str(figure)[:200]}")
    assert faults == []


def test_an_axis_without_a_title_is_found() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"title": "T", "xaxis": {"title": "x"}})
    assert untitled(figure.to_dict()) == ["y"]
    names = go.Figure(go.Bar(x=["a", "b"], y=[3, 4]), layout={"yaxis": {"title": "n"}})
    assert untitled(names.to_dict()) == []


def test_intervals_stand_in_rows_from_the_top_down() -> None:
    figure = helpers()["interval_rows"]
    (points,) = figure.data
    assert np.subtract(points.x, points.error_x.arrayminus).tolist() == [4, -2]
    assert np.add(points.x, points.error_x.array).tolist() == [12, 0]
    bottom, top = figure.layout.yaxis.range
    assert bottom > points.y[1] > points.y[0] > top
    assert [(note.text, note.y) for note in figure.layout.annotations] == list(zip(("first", "second"), points.y))


# ---- pictures -----------------------------------------------------------------------------------------------


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB")).astype(int)


def test_a_contact_sheet_has_gaps_that_let_the_page_through() -> None:
    sheet = figures.contact_sheet(scenes(3), columns=2)
    assert sheet.shape == (26, 26, 4)
    assert (sheet[:12, 14:, :3] == scenes(3)[1].permute(1, 2, 0).numpy()).all()
    assert (sheet[:, 12:14, 3] == 0).all()
    assert (sheet[14:, 14:, 3] == 0).all()


@pytest.mark.parametrize("columns", [1, 4, 16])
def test_a_figure_is_as_high_as_its_picture(columns: int) -> None:
    """On a page 720 pixels wide: nothing but 60 pixels above and 10 at each side beside the picture."""
    figure = figures.image_grid(scenes(16), columns=columns, title="T")
    margin, height, width = figure.layout.margin, figure.layout.yaxis.range[0], figure.layout.xaxis.range[1]
    room = 720 - margin.l - margin.r
    assert figure.layout.height == min(700, round(margin.t + margin.b + room * height / width))


def test_a_picture_keeps_its_colours_in_a_quarter_of_the_bytes() -> None:
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(99)), axis=2)
    shown = decoded(figures.picture(smooth, title="T").layout.images[0].source)
    assert shown.shape == (96, 96, 3)
    assert np.abs(shown[::2, ::2] - smooth).mean() < 4
    noisy = scenes(1, 48, 48)[0].permute(1, 2, 0).numpy()
    assert len(figures.data_uri(noisy, "WEBP")) < len(figures.data_uri(noisy)) / 3


def test_each_step_of_a_slider_shows_its_own_picture_and_each_is_stored_once() -> None:
    figure = figures.picture_slider(sheets(), ["0%", "50%", "100%"], title="T", prefix="share: ", start=1)
    sources = [image.source for image in figure.layout.images]
    assert len(set(sources)) == 3
    assert [image.visible for image in figure.layout.images] == [False, True, False]
    slider = figure.layout.sliders[0]
    assert slider.active == 1
    for i, step in enumerate(slider.steps):
        assert step.method == "relayout"
        assert [name for name, seen in step.args[0].items() if seen] == [f"images[{i}].visible"]
        assert len(step.args[0]) == 3
    assert figure.to_json().count("data:image") == 3
