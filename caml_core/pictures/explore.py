"""Figures that compute under the reader's hand: in a page without Python, and as widgets in Jupyter and Colab."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from pathlib import Path
from typing import Any

from caml_core.errors import CamlError

BUNDLE = Path(__file__).with_name("explorables.js")  # made by book/bundles.py, as the stills
STILLS = Path(__file__).with_name("stills")
WEIGHTS = Path(__file__).parent.parent / "weights"  # NAME.page.safetensors, made by book/engines.py


def explore(name: str, caption: str, **state: Any) -> Any:
    """An explorable: a widget whose trait `state` Python reads and sets, or (`CAML_STATIC=1`) its place in a page.

    `CamlError` where there is no explorable of this name.
    """
    script = BUNDLE.read_text("utf-8")
    if not re.search(rf"\.bookExplorables=\{{[^}}]*\b{name}:", script):
        raise CamlError(f"there is no explorable {name!r}", "the name of a module of book/live", "check the spelling")
    if os.environ.get("CAML_STATIC") == "1":
        from IPython.display import HTML

        said, given = html.escape(caption), html.escape(json.dumps(state))
        still = base64.b64encode((STILLS / f"{name}.webp").read_bytes()).decode()
        return HTML(
            f'<figure class="explorable" data-explorable="{name}" data-state="{given}" style="margin: 0 0 1em">\n'
            f'<figcaption style="font-weight: 600; text-align: left">{said}</figcaption>\n'
            f'<img class="still dark-light" alt="A still: {said}" src="data:image/webp;base64,{still}"></figure>'
        )
    import anywidget
    import traitlets

    module = f"{script}\nexport default globalThis.bookExplorables.{name};"
    traits = {"state": traitlets.Dict(state).tag(sync=True), "caption": traitlets.Unicode(caption).tag(sync=True)}
    widget = type("Explorable", (anywidget.AnyWidget,), {"_esm": module, **traits})()
    if (weights := WEIGHTS / f"{name}.page.safetensors").exists():  # sent when the reader asks
        widget.on_msg(lambda *_: widget.send({}, [weights.read_bytes()]))
    return widget
