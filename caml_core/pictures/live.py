"""Figures that recompute while you turn a knob, where Python is behind the page (Colab, JupyterLab).

    live(draw, rho=(0.5, 1.0, 0.05), method=["erm", "dfr"])

as the last line of a cell shows a slider, a list and the figure that `draw(rho, method)` returns.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from ipywidgets import interactive


def live(function: Callable[..., Any], **controls: Any) -> interactive | None:
    """Widgets for some arguments of `function`, above the figure that it returns for their values, within about 2 s.

    A control is a tuple (low, high, step), a list of options, or a widget, and starts at the argument's default. In the
    pages of the book (`CAML_STATIC=1`), where no kernel answers, there is a printed line instead.
    """
    defaults = inspect.signature(function).parameters
    widgets = {n: interactive.widget_from_abbrev(control, defaults[n].default) for n, control in controls.items()}
    for widget in widgets.values():
        widget.continuous_update = False  # a slider recomputes when it is let go
    if os.environ.get("CAML_STATIC") == "1":
        print(f"With Python behind it (Colab, JupyterLab): choose {', '.join(controls)}, and the figure follows.")
        return None

    def show(**chosen: Any) -> Any:  # `interactive` would make a widget of every argument of `function`
        return function(**chosen)

    return interactive(show, {"auto_display": True}, **widgets)
