"""Label: a widget that fills in `labels.csv` (`caml_core.own.ask`) in a notebook, keyboard first."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caml_core.errors import CamlError
from caml_core.own.ask import UNSURE, read_lines, save

SCRIPT = Path(__file__).with_name("label.js")


def labeller(file: Path, words: Sequence[str], *, told: Callable[[], str] = lambda: "", every: int = 20) -> Any:
    """A digit or a first letter answers, `?` passes, Backspace takes an answer back.

    The csv is written after each answer, so another widget, or a spreadsheet, goes on where this one stopped.

    Args:
        file: `labels.csv` of `write_folder`.
        words: the attributes to choose from, two to nine.
        told: asked what the answers have changed after each `every` of them, and after the last; its text is shown.

    Raises:
        CamlError: words that are not two to nine different ones.
    """
    import anywidget
    import traitlets

    if not 2 <= len({word.casefold() for word in words}) == len(words) <= 9 or {"", UNSURE} & set(words):
        what = f"the attributes {', '.join(words)}"
        raise CamlError(what, "two to nine different words", "name what the picture may show beside its class")
    lines = read_lines(file)
    done = [i for i, line in enumerate(lines) if line[3]]  # what Backspace takes back, the last first

    def unanswered() -> int | None:
        return next((i for i, line in enumerate(lines) if not line[3]), None)

    def state(note: str) -> dict[str, Any]:
        now: dict[str, Any] = {"options": [*words, UNSURE], "done": len(done), "total": len(lines), "note": note}
        if (todo := unanswered()) is not None:
            picture = base64.b64encode((file.parent / lines[todo][0]).read_bytes()).decode()
            now |= {"y": lines[todo][2], "picture": f"data:image/jpeg;base64,{picture}"}
        return now

    def hear(widget: Any, message: dict[str, str], buffers: Any) -> None:
        todo, note = unanswered(), widget.state["note"]
        if "undo" in message and done:
            lines[done.pop()][3] = ""
        elif message.get("answer") in (*words, UNSURE) and todo is not None:
            lines[todo][3] = message["answer"]
            done.append(todo)
        save(file, lines)
        if "answer" in message and (len(done) % every == 0 or len(done) == len(lines)):
            note = told()
        widget.state = state(note)

    traits = {"_esm": SCRIPT.read_text("utf-8"), "state": traitlets.Dict().tag(sync=True)}
    widget = type("Labeller", (anywidget.AnyWidget,), traits)()
    widget.on_msg(hear)
    widget.state = state("")
    return widget
