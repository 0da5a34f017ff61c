"""Exercises are numbered on each page from 1, as in the notebook; sphinx-exercise counts through the whole book."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def number_by_page(app: Sphinx, env: BuildEnvironment) -> None:
    for kinds in env.toc_fignumbers.values():
        for number, label in enumerate(kinds.get("exercise", {}), start=1):
            kinds["exercise"][label] = (number,)


def drop_repeated_ids(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """The content of all exercises of a page has the same id, which HTML does not allow."""
    for section in doctree.findall(nodes.section):
        section["ids"] = [i for i in section["ids"] if i not in ("exercise-content", "solution-content")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", number_by_page)  # after Sphinx has numbered
    app.connect("doctree-resolved", drop_repeated_ids)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
