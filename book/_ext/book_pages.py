"""Small corrections to the pages that the Jupyter Book theme makes."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def drop_thebe(context: dict[str, Any]) -> None:
    """Leave out the scripts of sphinx-thebe: no kernel stands behind a page, and they raise errors."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in str(getattr(script, "filename", "")).lower()
        and "THEBE_JS_URL" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]


def drop_unused_mathjax(app: Sphinx, page: str, context: dict[str, Any]) -> None:
    """Load MathJax only where there is math; Sphinx loads it on the parents of such pages, too."""
    if not app.env.domaindata["math"]["has_equations"].get(page):
        context["script_files"] = [
            script
            for script in context["script_files"]
            if not str(getattr(script, "filename", "")).endswith(app.config.mathjax_path)
        ]


def edit_the_source(buttons: list[dict[str, Any]]) -> None:
    """Let the edit button of a chapter lead to its ``.py`` file, from which the notebook is made."""
    for button in buttons:
        edit_the_source(button.get("buttons", []))
        if button.get("label") == "source-edit-button":
            button["url"] = re.sub(r"\.ipynb$", ".py", button["url"])


def correct_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    drop_thebe(context)
    drop_unused_mathjax(app, page, context)
    edit_the_source(context.get("header_buttons", []))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", correct_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
