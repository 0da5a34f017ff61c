"""A figure of a notebook as the HTML of a page: small, offline, legible on a telephone and without scripts.

A notebook keeps what plotly makes of a figure, its data as JSON. On a page it becomes one ``<div>`` and one
``<script>`` with these data. The plotly library itself is loaded once a page: from the book's own copy when the page
names one (``window.BOOK_PLOTLY_URL``), otherwise from plotly's public copy of the very version that drew the figure.
The title becomes a caption of the page, because a title inside a figure is cut off on a telephone. Screen readers are
told ``layout.meta["alt"]``, or the title where there is none.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from typing import Any

from nbformat import NotebookNode
from PIL import Image
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs_version

from caml_core.pictures.figures import PAGE_WIDTH

MIME = "application/vnd.plotly.v1+json"
KINDS = ("image/png", "image/jpeg")  # of the stills beside it
_HEIGHT = 450
_TITLE_HEIGHT = 35  # pixels of the top margin that a title takes
_CONFIG = {"responsive": True, "displaylogo": False}

_PAGE = """\
<figure class="book-figure" aria-label="{label}" style="margin: 0 0 1em">
<figcaption style="font-weight: 600; text-align: left">{caption}</figcaption>
<div id="{div}" class="plotly-graph-div" style="{style}">\
{still}</div></figure>
<script>
(window.bookPlotly = window.bookPlotly || new Promise(function (loaded, failed) {{
  if (window.Plotly) {{ loaded(); return; }}
  var script = document.createElement("script");
  script.src = window.BOOK_PLOTLY_URL || "https://cdn.plot.ly/plotly-{version}.min.js";
  script.charset = "utf-8";
  script.onload = loaded;
  script.onerror = function () {{ failed(new Error("plotly could not be loaded from " + script.src)); }};
  document.head.appendChild(script);
}})).then(function () {{
  var div = document.getElementById("{div}");
  div.textContent = "";
  return Plotly.newPlot(div, {figure});
}});
</script>"""
_IMAGE = """\
<img class="dark-light" alt="{label}" style="width: 100%; height: 100%; object-fit: contain; object-position: top" \
src="{source}">"""


def to_html(notebook: NotebookNode) -> None:
    """Put HTML in the place of a notebook's figures."""
    for number, output in enumerate(figures_of(notebook.cells), start=1):
        source = f"data:image/webp;base64,{base64.b64encode(webp(seen)).decode()}" if (seen := still(output)) else ""
        output.data = NotebookNode({"text/html": page(output.data[MIME], number, source)})


def figures_of(cells: Iterable[NotebookNode]) -> list[NotebookNode]:
    """The outputs of these cells that are figures of plotly."""
    return [output for cell in cells for output in cell.get("outputs", []) if MIME in output.get("data", {})]


def still(output: NotebookNode) -> bytes:
    """The picture of a figure, as PNG or JPEG; nothing where none was drawn."""
    return next((base64.b64decode(output.data[kind]) for kind in KINDS if kind in output.data), b"")


def page(figure: dict[str, Any], number: int, source: str = "") -> str:
    """The HTML of a figure: of the plotly JSON, its number on the page, and the address of a picture to show first."""
    outside = caption(figure)
    layout, style = _fitted(figure.get("layout", {}), title_outside=bool(outside))
    drawn = {
        "data": figure.get("data", []),
        "layout": {**layout, "meta": None} if isinstance(layout.get("meta"), dict) else layout,
        "frames": figure.get("frames") or [],
        "config": _CONFIG,
    }
    label = html.escape(alt(figure))
    return _PAGE.format(
        label=label,
        caption=outside,
        div=div(number),
        style=style,
        still=_IMAGE.format(label=label, source=source) if source else "<p>Interactive figure</p>",
        version=get_plotlyjs_version(),
        figure=to_json_plotly(drawn),
    )


def div(number: int) -> str:
    """The id of a figure's place on its page."""
    return f"book-figure-{number}"


def title(figure: dict[str, Any]) -> str:
    """The text of a figure's title, with plotly's markup."""
    found = figure.get("layout", {}).get("title") or ""
    return str((found.get("text") if isinstance(found, dict) else found) or "")


def alt(figure: dict[str, Any]) -> str:
    """What a figure shows, in words."""
    meta = figure.get("layout", {}).get("meta")
    plain = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", title(figure))).split())
    return (meta.get("alt") if isinstance(meta, dict) else None) or plain or "untitled"


def caption(figure: dict[str, Any]) -> str:
    """The title as HTML; none where a slider, a button or a frame writes another: it then stays inside the figure."""
    layout = figure.get("layout", {})
    movers = (figure.get("frames"), layout.get("sliders"), layout.get("updatemenus"))
    if "'title" in repr(movers):
        return ""
    escaped = html.escape(html.unescape(title(figure)), quote=False)
    return re.sub(r"&lt;(/?(?:b|i|em|sub|sup|br))\s*/?&gt;", r"<\1>", escaped)


def webp(picture: bytes) -> bytes:
    """A still as a page shows it, the smaller of two: exact for a chart, coarse for pictures."""
    opened = Image.open(io.BytesIO(picture)).convert("RGBA")
    chart, photograph = io.BytesIO(), io.BytesIO()
    opened.save(chart, "WEBP", lossless=True)
    opened.save(photograph, "WEBP", quality=30, alpha_quality=20)
    return min(chart.getvalue(), photograph.getvalue(), key=len)


def _fitted(layout: dict[str, Any], title_outside: bool) -> tuple[dict[str, Any], str]:
    """The layout of a figure as the page shows it, and the CSS size of its place.

    A figure is as wide as the page and keeps its height; a picture (axes tied to one scale) keeps its shape.
    """
    template = layout.get("template", {}).get("layout", {})
    height = layout.get("height") or template.get("height") or _HEIGHT
    width = layout.get("width") or template.get("width")
    if title_outside:
        margin = {**template.get("margin", {}), **layout.get("margin", {})}
        top = max(25, margin.get("t", 100) - _TITLE_HEIGHT)
        height -= margin.get("t", 100) - top
        layout = {**layout, "title": None, "margin": {**margin, "t": top}}
    if "scaleanchor" in layout.get("yaxis", {}) and not width:
        layout = {**layout, "height": None, "autosize": True}
        return layout, f"width:100%; aspect-ratio:{PAGE_WIDTH} / {height};"
    return {**layout, "height": height}, f"width:{f'{width}px' if width else '100%'}; height:{height}px;"
