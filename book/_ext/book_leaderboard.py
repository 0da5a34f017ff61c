"""`{leaderboard}` stands for the table of all runs (`book/leaderboard.py`), `{which-method}` for a choice of them."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book import leaderboard, which_method


class Leaderboard(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # records may have changed
        return [nodes.raw("", leaderboard.table(), format="html")]


class WhichMethod(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        found = nodes.Element()
        self.state.nested_parse(StringList(which_method.table().splitlines(), "results"), self.content_offset, found)
        return list(found.children)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("leaderboard", Leaderboard)
    app.add_directive("which-method", WhichMethod)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
