"""`{leaderboard}` in a page stands for the table of all runs (`book/leaderboard.py`)."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book import leaderboard


class Leaderboard(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # records may have changed
        return [nodes.raw("", leaderboard.table(), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("leaderboard", Leaderboard)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
