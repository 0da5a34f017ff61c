"""A plotly renderer for the book: small notebooks, pages that work offline, Colab as well.

A figure becomes one ``<div>`` and one ``<script>`` with its data. The plotly library itself is loaded once a
page: from the book's own copy when the page names one (``window.BOOK_PLOTLY_URL``), otherwise from plotly's
public copy of the very version that drew the figure, which is what happens on Colab and in Jupyter. The title
becomes a caption of the page, because a title inside a figure is cut off on a telephone. Screen readers are told
``layout.meta["alt"]``, or the title where there is none.
"""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs_version

PLACEHOLDER = "<p>Interactive figure</p>"  # the builder puts a still in its place, and the script the figure

_NUMBERS = itertools.count(1)  # of the process, not of a renderer: two figures never share an id
_HEIGHT = 450
PAGE_WIDTH = 720  # pixels of a figure on a page
_TITLE_HEIGHT = 35  # pixels of the top margin that a title takes
_CONFIG = {"responsive": True, "displaylogo": False}

_PAGE = """\
<figure class="book-figure" aria-label="{label}" style="margin: 0 0 1em">
<figcaption style="font-weight: 600; text-align: left">{caption}</figcaption>
<div id="{div}" class="plotly-graph-div" style="{style}">\
{placeholder}</div></figure>
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


class BookRenderer(MimetypeRenderer):
    """Turns a figure into the HTML described above."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        layout = fig_dict.get("layout", {})
        title = figure_title(layout)
        meta = layout.get("meta")
        label = (meta.get("alt") if isinstance(meta, dict) else None) or _plain(title) or "untitled"
        caption = "" if _title_changes(fig_dict) else _allow_markup(title)
        layout, style = _fitted(layout, title_outside=bool(caption))
        figure = {
            "data": fig_dict.get("data", []),
            "layout": {**layout, "meta": None} if isinstance(meta, dict) else layout,
            "frames": fig_dict.get("frames") or [],
            "config": _CONFIG,
        }
        page = _PAGE.format(
            label=html.escape(label),
            caption=caption,
            div=f"book-figure-{next(_NUMBERS)}",
            style=style,
            placeholder=PLACEHOLDER,
            version=get_plotlyjs_version(),
            figure=to_json_plotly(figure),
        )
        return {"text/html": page, "text/plain": f"Interactive figure: {label}"}


def use_book_renderer() -> None:
    """Make the book's renderer the one that shows every plotly figure of this process."""
    pio.renderers["book"] = BookRenderer()
    pio.renderers.default = "book"


def figure_title(layout: dict[str, Any]) -> str:
    """The text of a figure's title, with plotly's markup."""
    title = layout.get("title") or ""
    return str((title.get("text") if isinstance(title, dict) else title) or "")


def _title_changes(fig_dict: dict[str, Any]) -> bool:
    """Whether a slider, a button or a frame writes another title: then the title stays inside the figure."""
    layout = fig_dict.get("layout", {})
    movers = (fig_dict.get("frames"), layout.get("sliders"), layout.get("updatemenus"))
    return "'title" in repr(movers)


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


def _plain(title: str) -> str:
    """A title without plotly's markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", title)).split())


def _allow_markup(title: str) -> str:
    """Plotly's simple markup as HTML, everything else as text."""
    text = html.escape(html.unescape(title), quote=False)
    return re.sub(r"&lt;(/?(?:b|i|em|sub|sup|br))\s*/?&gt;", r"<\1>", text)
