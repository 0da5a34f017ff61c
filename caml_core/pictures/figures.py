"""Figures of the book: one style, one colour for each thing, functions that return a plotly figure.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart. Blue always speaks of the label y,
orange of the spurious attribute a; majority groups are gray-blue, minority groups vermilion.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Colours = Mapping[str, str]  # of names
Curves = Mapping[str, np.ndarray]  # for each name float (seeds, n)
Rows = Mapping[str, Mapping[str, float]]  # name of a row: `mean`, `low`, `high`, as `paired_difference` has them
LABEL, ATTRIBUTE = "#0072B2", "#E69F00"
MAJORITY, MINORITY = "#7A93AC", "#D55E00"
CHANCE = "#8C8C8C"
PAGE_WIDTH = 720  # pixels of a figure on a page
GAP = 2  # pixels between the images of a contact sheet
# One colour a method in the whole book (but for two that no figure shows beside those of another part).
METHOD_COLOURS = {
    "append": "#7A7A7A",
    "upweight": "#E69F00",
    "mldg": "#56B4E9",
    "caml": "#0072B2",
    "caml exact": "#CC79A7",
    "balanced": "#009E73",
    "dfr": "#009E73",
    "hsfm": "#CC79A7",
}

# On a telephone these would always cover the legend. To zoom, drag; to return, click twice.
_BUTTONS = ["toimage", "sendcharttocloud", "zoom", "pan", "select", "lasso"]
_BUTTONS += ["zoomin", "zoomout", "autoscale", "resetscale"]
_AXIS = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.5)", "automargin": True}
pio.templates["book"] = go.layout.Template(
    layout={
        "colorway": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#3b4048"},
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad": {"t": 10}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _AXIS,
        "yaxis": {**_AXIS, "title": {"standoff": 8}},  # beside the tick labels, never among them
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 60, "r": 60, "t": 60, "b": 50},
        "modebar": {"remove": _BUTTONS},
        "height": 400,
    }
)


def use_book_style() -> None:
    """Draw every figure of this notebook in the book's style."""
    pio.templates.default = "book"


def contact_sheet(images: Tensor, *, columns: int) -> np.ndarray:
    """Images in rows, with clear gaps of two pixels: uint8 (N, 3, H, W) to uint8 (height, width, 4)."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, h + GAP, w + GAP, 4), np.uint8)
    cells[:n, :h, :w, :3] = images.permute(0, 2, 3, 1).numpy()
    cells[:n, :h, :w, 3] = 255
    sheet = cells.reshape(rows, columns, h + GAP, w + GAP, 4).swapaxes(1, 2)
    return sheet.reshape(rows * (h + GAP), columns * (w + GAP), 4)[:-GAP, :-GAP]


def image_grid(images: Tensor, *, columns: int, title: str, labels: Sequence[str] = ()) -> go.Figure:
    """A contact sheet of uint8 (N, 3, H, W) as one picture; labels: one short text for each row, at its left."""
    return picture(contact_sheet(images, columns=columns), title=title, rows=labels)


def picture(pixels: np.ndarray, *, title: str, rows: Sequence[str] = ()) -> go.Figure:
    """One picture as a figure, uint8 (H, W, 3 or 4), as high as it is on a page; axes count in its pixels.

    rows: of a contact sheet, one short text each, written at its left.
    """
    height, width = pixels.shape[:2]
    figure = go.Figure(layout={"title": title, "images": [_layer(pixels)], "showlegend": False})
    figure.add_scatter(x=[0, width], y=[0, height], mode="markers", marker_opacity=0, hoverinfo="skip")
    fixed = {"visible": False, "fixedrange": True, "constrain": "domain"}  # a finger on it scrolls the page
    figure.update_xaxes(range=[0, width], **fixed)
    figure.update_yaxes(range=[height, 0], scaleanchor="x", constraintoward="top", **fixed)
    room = PAGE_WIDTH - 20
    if rows:
        ticks = [(row + 0.5) * height / len(rows) for row in range(len(rows))]
        figure.update_yaxes(visible=True, tickvals=ticks, ticktext=list(rows), ticklabelstandoff=4)
        figure.update_yaxes(showgrid=False, zeroline=False)
        room -= 7 * max(len(line) for label in rows for line in label.split("<br>"))
    height = min(700, round(60 + room * height / width))
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 0}, height=height)


def still(name: str, *, title: str, labels: Sequence[str] = ()) -> go.Figure:
    """The stored picture `stills/NAME.webp`, for readers without its data; labels as in `image_grid`."""
    with Image.open(Path(__file__).with_name("stills") / f"{name}.webp") as stored:
        return picture(np.asarray(stored.convert("RGBA")), title=title, rows=labels)


def picture_slider(
    pictures: Sequence[np.ndarray], labels: Sequence[str], *, title: str, prefix: str = "", rows: Sequence[str] = (),
    start: int = 0,
) -> go.Figure:  # fmt: skip
    """A slider that chooses among pictures, the first of them `start`; it needs no Python behind the page.

    Args:
        pictures: as `picture` takes them, all of one shape. Each is stored once.
        labels: one a picture, shown above the slider after `prefix`.
    """
    figure = picture(pictures[start], title=title, rows=rows)
    n, height = len(pictures), pictures[0].shape[0]
    figure.layout.images = [{**_layer(pixels), "visible": i == start} for i, pixels in enumerate(pictures)]
    steps = [
        {"method": "relayout", "label": label, "args": [{f"images[{j}].visible": i == j for j in range(n)}]}
        for i, label in enumerate(labels)
    ]
    unseen = {"size": 1, "color": "rgba(0,0,0,0)"}  # the label of the moment is enough, and fits a telephone
    now = {"prefix": prefix, "font": {"size": 14, "color": "#3b4048"}}
    slider = {"steps": steps, "active": start, "currentvalue": now, "font": unseen, "ticklen": 0, "pad": {"t": 5}}
    # The slider is as high on a telephone as elsewhere, so the height stays, and the picture is at most twice its size.
    figure.update_xaxes(scaleanchor="y", constraintoward="left").update_yaxes(scaleanchor=None)
    height = min(2 * height, figure.layout.height - 60)
    return figure.update_layout(sliders=[slider], height=height + 120)


def _layer(pixels: np.ndarray) -> dict[str, Any]:
    """A picture that fills axes which count in its pixels."""
    height, width = pixels.shape[:2]
    # WebP keeps a quarter of the colours: with each pixel four times, that is the colour of every pixel.
    source = data_uri(pixels.repeat(2, axis=0).repeat(2, axis=1), "WEBP")
    place = {"xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": width, "sizey": height}
    return {"source": source, "sizing": "stretch", "layer": "below", **place}


def data_uri(pixels: np.ndarray, kind: str = "PNG") -> str:
    """A picture as a data address, "PNG" or (much smaller) "JPEG" or "WEBP": no file, no request."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, optimize=True, quality=75)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()


def group_bars(metrics: Mapping[str, Any], *, title: str, minority: Sequence[bool], chance: float) -> go.Figure:
    """Accuracy of each group with its 95% interval, from `group_metrics`; minority groups vermilion, chance a line."""
    figure = go.Figure(layout={"title": title, "yaxis": {"title": "accuracy (%)", "range": [0, 104]}})
    names = [f"{g['name'].replace(', ', '<br>')}<br><b>{g['value']:.0f}%</b>" for g in metrics["groups"]]
    for kind, colour, wanted in (("majority group", MAJORITY, False), ("minority group", MINORITY, True)):
        bars = [(name, g) for name, g, rare in zip(names, metrics["groups"], minority) if rare == wanted]
        up, down = ([abs(group[end] - group["value"]) for _, group in bars] for end in ("high", "low"))
        error = {"array": up, "arrayminus": down}
        x, y = [name for name, _ in bars], [group["value"] for _, group in bars]
        figure.add_bar(name=kind, x=x, y=y, marker_color=colour, error_y=error)
    figure.update_xaxes(title={"text": "group", "standoff": 15}, tickangle=0, tickfont_size=11)
    return add_chance(figure.update_xaxes(categoryorder="array", categoryarray=names), chance)


def add_chance(figure: go.Figure, chance: float) -> go.Figure:
    """Draw chance as a dotted line, named at its right end."""
    figure.add_hline(y=chance, line={"dash": "dot", "color": CHANCE})
    name = {"text": "chance", "xref": "paper", "x": 1, "xanchor": "left", "yanchor": "middle", "showarrow": False}
    figure.add_annotation(y=chance, font={"color": CHANCE}, **name)
    return figure


def interval_rows(
    found: Mapping[str, Rows], *, title: str, x_title: str, colours: Colours = METHOD_COLOURS
) -> go.Figure:
    """Differences with their intervals, one row each, its name above it; zero as a line.

    found: for each of up to three names of the legend, of these `colours`, the same rows from the top down.
    """
    figure = go.Figure(layout={"title": title, "xaxis_title": x_title, "margin": {"l": 10, "r": 10}})
    for (name, rows), symbol in zip(found.items(), ("circle", "diamond", "square")):
        mean, low, high = (np.array([row[key] for row in rows.values()]) for key in ("mean", "low", "high"))
        error = {"array": (high - mean).tolist(), "arrayminus": (mean - low).tolist()}
        how = {"mode": "markers", "marker": {"size": 10, "color": colours[name], "symbol": symbol}, "error_x": error}
        figure.add_scatter(x=mean.tolist(), y=list(range(len(rows))), name=name, **how)
    for i, row in enumerate(rows):
        at = {"x": 0, "xref": "paper", "xanchor": "left", "y": i, "yshift": 18, "showarrow": False}
        figure.add_annotation(text=row, font_size=13, **at)
    figure.add_vline(x=0, line_color=CHANCE).update_yaxes(visible=False, range=[len(rows) - 0.5, -0.8])
    return figure.update_layout(height=110 + 46 * len(rows))


def curves_with_band(
    x: Sequence[float], curves: Curves, *, title: str, x_title: str, y_title: str, colours: Colours = METHOD_COLOURS
) -> go.Figure:
    """One line a name, the mean over seeds, in a band of one standard deviation either side; other names get colours of
    the template."""
    figure, x, palette = go.Figure(), list(x), pio.templates["book"].layout.colorway
    for i, (name, values) in enumerate(curves.items()):
        colour = {**METHOD_COLOURS, **colours}.get(name, palette[i % len(palette)])
        mean = np.mean(values, axis=0)
        if len(values) > 1:
            spread = np.std(values, axis=0, ddof=1)
            edge = [*(mean + spread), *(mean - spread)[::-1]]
            quiet = {"hoverinfo": "skip", "showlegend": False, "legendgroup": name, "line_width": 0, "mode": "lines"}
            figure.add_scatter(x=[*x, *x[::-1]], y=edge, fill="toself", fillcolor=colour, opacity=0.15, **quiet)
        line = {"color": colour, "width": 2.5}
        figure.add_scatter(x=x, y=mean.tolist(), name=name, mode="lines+markers", line=line, legendgroup=name)
    return figure.update_layout(title=title, xaxis_title=x_title, yaxis_title=y_title)
