"""Figures of the book: one style, one colour for each thing, functions that return a plotly figure.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart. Blue always speaks of the label y,
orange of the spurious attribute a; majority groups are gray-blue, minority groups vermilion.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from caml_core.book_renderer import use_book_renderer

LABEL, ATTRIBUTE = "#0072B2", "#E69F00"
MAJORITY, MINORITY = "#7A93AC", "#D55E00"
CHANCE = "#8C8C8C"
# One colour a method in the whole book.
METHOD_COLOURS = {
    "append": "#7A7A7A",
    "upweight": "#E69F00",
    "mldg": "#56B4E9",
    "caml": "#0072B2",
    "caml exact": "#CC79A7",
    "balanced": "#009E73",
}

pio.templates["book"] = go.layout.Template(
    layout={
        "colorway": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#3b4048"},
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {
            "gridcolor": "rgba(128,128,128,.25)",
            "zerolinecolor": "rgba(128,128,128,.5)",
            "automargin": True,
        },
        "yaxis": {
            "gridcolor": "rgba(128,128,128,.25)",
            "zerolinecolor": "rgba(128,128,128,.5)",
            "automargin": True,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 60, "r": 60, "t": 60, "b": 50},
        "height": 400,
    }
)


def use_book_style() -> None:
    """Show every figure of this notebook in the book's style, small and without outside requests."""
    use_book_renderer()
    pio.templates.default = "book"


def image_grid(
    images: Tensor,
    *,
    columns: int,
    title: str,
    labels: Sequence[str] | None = None,
    pad: int = 2,
) -> go.Figure:
    """A contact sheet as one picture.

    Args:
        images: uint8 (N, 3, H, W).
        columns: images in a row.
        labels: one short text for each row of the sheet, written at its left.
    """
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * (h + pad) - pad, columns * (w + pad) - pad, 4), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = (i // columns) * (h + pad), (i % columns) * (w + pad)
        sheet[y : y + h, x : x + w, :3] = image
        sheet[y : y + h, x : x + w, 3] = 255
    figure = picture(sheet, title=title)
    if labels:
        ticks = [r * (h + pad) + h / 2 for r in range(rows)]
        figure.update_yaxes(visible=True, tickvals=ticks, ticktext=list(labels), showgrid=False, zeroline=False)
    return figure


def picture(pixels: np.ndarray, *, title: str) -> go.Figure:
    """One picture as a figure, uint8 (H, W, 3 or 4); axes count in its pixels."""
    height, width = pixels.shape[:2]
    figure = go.Figure(layout={"title": title, "height": min(700, int(90 + 760 * height / width))})
    figure.add_layout_image(
        source=data_uri(pixels),
        xref="x",
        yref="y",
        x=0,
        y=0,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    figure.add_trace(go.Scatter(x=[0, width], y=[0, height], mode="markers", marker_opacity=0, hoverinfo="skip"))
    figure.update_xaxes(range=[0, width], visible=False, constrain="domain")
    figure.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain", constraintoward="top")
    figure.update_layout(showlegend=False, margin={"l": 10, "r": 10, "t": 60, "b": 10})
    return figure


def evidence(images: Sequence[Tensor], heats: Sequence[Tensor], names: Sequence[str], *, title: str) -> go.Figure:
    """Pictures, each beside the map of its evidence; all maps share one scale.

    Args:
        images: uint8 (3, H, H).
        heats: float (n, n), evidence on an even grid over the picture.
        names: of the pictures.
    """
    titles = [text for name in names for text in (name, "its evidence")]
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.03)
    reach = max(float(heat.abs().max()) for heat in heats)
    for i, (image, heat) in enumerate(zip(images, heats)):
        side, n, axis = image.shape[-1], len(heat), 2 * i + 1
        centres = (np.arange(n) + 0.5) * side / n
        colours = {"colorscale": "RdBu_r", "zmin": -reach, "zmax": reach, "colorbar": {"title": "margin"}}
        figure.add_layout_image(
            source=data_uri(image.permute(1, 2, 0).numpy()),
            xref=f"x{axis}", yref=f"y{axis}", x=0, y=0, sizex=side, sizey=side, sizing="stretch",
        )  # fmt: skip
        points = go.Scatter(x=[0, side], y=[0, side], mode="markers", marker_opacity=0, hoverinfo="skip")
        figure.add_trace(points, 1, axis)
        figure.add_trace(go.Heatmap(z=heat, x=centres, y=centres, showscale=i == 0, **colours), 1, axis + 1)
        for column in (axis, axis + 1):
            figure.update_xaxes(visible=False, range=[0, side], constrain="domain", row=1, col=column)
            figure.update_yaxes(visible=False, range=[side, 0], constrain="domain", row=1, col=column)
            figure.update_yaxes(scaleanchor=f"x{column}", row=1, col=column)
    return figure.update_layout(showlegend=False, height=280, title=title)


def data_uri(pixels: np.ndarray, kind: str = "PNG") -> str:
    """A picture as a data address, "PNG" or (much smaller for many pictures) "JPEG": no file, no request."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, optimize=True)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()


def group_bars(metrics: Mapping[str, Any], *, title: str, minority: Sequence[bool], chance: float) -> go.Figure:
    """Accuracy of each group with its 95% interval; minority groups in vermilion, chance as a line.

    Args:
        metrics: from `caml_core.metrics.group_metrics`.
        minority: for each group, whether it is a minority group.
        chance: percent.
    """
    groups = metrics["groups"]
    values = [group["value"] for group in groups]
    names = [
        group["name"].replace(", ", ",<br>") + ("" if value is None else f"<br><b>{value:.0f}%</b>")
        for group, value in zip(groups, values)
    ]
    figure = go.Figure(layout={"title": title, "yaxis": {"title": "accuracy (%)", "range": [0, 104]}})
    for name, colour, wanted in (("majority group", MAJORITY, False), ("minority group", MINORITY, True)):
        rows = [i for i, is_minority in enumerate(minority) if is_minority == wanted and values[i] is not None]
        figure.add_trace(
            go.Bar(
                name=name,
                x=[names[i] for i in rows],
                y=[values[i] for i in rows],
                marker_color=colour,
                error_y={
                    "array": [groups[i]["high"] - values[i] for i in rows],
                    "arrayminus": [values[i] - groups[i]["low"] for i in rows],
                },
            )
        )
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    return add_chance(figure, chance)


def add_chance(figure: go.Figure, chance: float) -> go.Figure:
    """Draw chance as a dotted line, named at its right end."""
    figure.add_hline(y=chance, line={"dash": "dot", "color": CHANCE})
    name = {"text": "chance", "xref": "paper", "x": 1, "xanchor": "left", "yanchor": "middle", "showarrow": False}
    figure.add_annotation(y=chance, font={"color": CHANCE}, **name)
    return figure


def accuracy_curves(history: Sequence[Mapping[str, Any]], *, title: str, chance: float) -> go.Figure:
    """Majority and minority accuracy over epochs: lines on the validation split, dots on the training split."""
    epochs = [epoch["epoch"] for epoch in history]
    figure = go.Figure(
        layout={
            "title": title,
            "xaxis": {"title": "epoch"},
            "yaxis": {"title": "accuracy (%)", "range": [0, 104]},
        }
    )
    for name, colour in (("majority", MAJORITY), ("minority", MINORITY)):
        curves = {
            "validation": [epoch["val"][name]["value"] for epoch in history],
            "training": [epoch[f"train_{name}"] for epoch in history],
        }
        for split, values in curves.items():
            style = {"mode": "lines+markers", "line": {"color": colour}}
            if split == "training":
                style = {"mode": "markers", "marker": {"color": colour, "symbol": "circle-open", "size": 9}}
            figure.add_trace(go.Scatter(x=epochs, y=values, name=f"{name}, {split}", **style))
    return add_chance(figure, chance)


def curves_with_band(
    x: Sequence[float],
    curves: Mapping[str, np.ndarray],
    *,
    title: str,
    x_title: str,
    y_title: str,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """One line a method, the mean over seeds, in a band of one standard deviation either side.

    Args:
        curves: for each name float (seeds, len(x)); with one seed there is no band.
        colours: of the names; default `METHOD_COLOURS`, then the template's.
    """
    figure = go.Figure()
    palette = list(pio.templates["book"].layout.colorway)
    for i, (name, values) in enumerate(curves.items()):
        colour = {**METHOD_COLOURS, **(colours or {})}.get(name, palette[i % len(palette)])
        mean = np.mean(values, axis=0)
        if len(values) > 1:
            spread = np.std(values, axis=0, ddof=1)
            figure.add_scatter(
                x=[*x, *list(x)[::-1]],
                y=[*(mean + spread), *(mean - spread)[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        figure.add_scatter(
            x=list(x),
            y=mean.tolist(),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            legendgroup=name,
        )
    return figure.update_layout(title=title, xaxis_title=x_title, yaxis_title=y_title)
