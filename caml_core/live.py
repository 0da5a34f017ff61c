"""Figures that recompute while you turn a knob, where Python is behind the page (Colab, JupyterLab).

    live(draw, rho=(0.5, 1.0, 0.05), method=["erm", "dfr"])

as the last line of a cell shows a slider, a list and the figure that `draw(rho, method)` returns.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from caml_core.errors import CamlError

if TYPE_CHECKING:
    from ipywidgets import interactive


def live(function: Callable[..., Any], **controls: Any) -> interactive | None:
    """Widgets for some arguments of `function`, above the plotly figure that it returns for their values.

    A slider recomputes when it is let go, not on its way. It starts at the argument's default; arguments that are not
    named keep theirs. An error of the function is shown as a message in place of the figure, and the widgets live on.

    Args:
        function: returns a figure; should take less than about 2 s.
        controls: for each argument a tuple (low, high, step) of int or float, a list of options, or a widget.

    Returns:
        The widgets (ipywidgets 7.7 to 8), which a notebook shows when they are a cell's last line. Where there is no
        kernel to answer them, as in the pages of the book (`CAML_STATIC=1`), nothing: a line says what they would do.

    Raises:
        CamlError: a control for an argument that the function does not have, or one that cannot be a widget.
    """
    from ipywidgets import interactive

    arguments = inspect.signature(function).parameters
    widgets = {}
    for name, control in controls.items():
        try:
            widgets[name] = widget = interactive.widget_from_abbrev(control, arguments[name].default)
            if widget is None:
                raise ValueError(f"{control!r} is not a control")
        except (KeyError, TypeError, ValueError) as error:
            raise CamlError(
                what=f"{name}={control!r} cannot be a control of {getattr(function, '__name__', 'this function')}",
                expected="an argument of the function, with (low, high, step), a list of options, or a widget",
                remedy=f"the arguments are {', '.join(arguments)}" if name not in arguments else "correct the control",
            ) from error
        if hasattr(widget, "continuous_update"):
            widget.continuous_update = False

    def show(**chosen: Any) -> None:
        from IPython.display import display

        try:
            display(function(**chosen))
        except CamlError as error:
            print(error)
        except Exception as error:  # whatever it is, the next value may do
            settings = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            print(CamlError(f"{type(error).__name__} at {settings}: {error}", "a figure", "choose other values"))

    if os.environ.get("CAML_STATIC") == "1":
        print(f"With Python behind it (Colab, JupyterLab): choose {', '.join(controls)}, and the figure follows.")
        return None
    return interactive(show, **widgets)
