"""The pages of the package: its docstrings, which are Markdown with the sections "Args:", "Returns:", "Raises:".

`{docstrings} NAME` in a page stands for the text of a module and its public functions and classes. The module's text,
with its tables and formulas, is read as Markdown; that of a function goes through Sphinx's autodoc and napoleon, which
expect another notation for code.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Docstrings(SphinxDirective):
    """A module's docstring, then its members (all public ones, or those named)."""

    required_arguments = 1
    option_spec = {"members": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        members = f".. automodule:: {name}\n   :members: {self.options.get('members', '')}"
        text = f"{importlib.import_module(name).__doc__}\n\n```{{eval-rst}}\n{members}\n```\n"
        found = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), name), self.content_offset, found)
        return list(found.children)


def to_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn a Markdown docstring into what napoleon reads, in place."""
    if what == "module":
        lines.clear()  # `Docstrings` has shown it
        return
    parts = re.split(r"`{1,2}([^`]+)`{1,2}", "\n".join(lines))
    parts[::2] = [re.sub(r"[*|]", r"\\\g<0>", text) for text in parts[::2]]
    parts[1::2] = [
        f":py:obj:`{code}`" if re.fullmatch(r"[^\W\d][\w.]*", code) else f"``{code}``" for code in parts[1::2]
    ]
    text = re.sub(r"^Returns:\n\s+", ":returns: ", "".join(parts), flags=re.MULTILINE)  # all text: no type before ":"
    lines[:] = text.split("\n")


def is_noise(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: object) -> bool | None:
    """Fields of a NamedTuple stand in its signature already."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("docstrings", Docstrings)
    app.connect("autodoc-process-docstring", to_rst, priority=400)
    app.connect("autodoc-skip-member", is_noise)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
