"""The picture that opens a chapter: the still of its cell with the tag "opening", shown below its question."""

from __future__ import annotations

import html
import io
import re
from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image, ImageOps

from book import renderer, stills
from caml_core.errors import CamlError

FOLDER = Path("book", "static", "openings")  # of the stage; of the pages it is _static/openings
PREVIEW = (720, 378)  # pixels; the shape in which sites show the preview of a link
_QUESTION = re.compile(r"^\*\*Question\.\*\*.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_PICTURE = """

<p class="opening">
<a href="#{div}"><img class="dark-light" src="../_static/openings/{chapter}.webp" alt="{label}" \
width="{width}" height="{height}" style="height: auto"></a>
<br><span class="caption">{caption}</span>
</p>"""


def find(notebook: NotebookNode, chapter: str) -> tuple[NotebookNode, int]:
    """The output with the figure that opens a chapter, and where the question ends in the first cell.

    Raises:
        CamlError: when not exactly one cell has the tag "opening", it shows no figure, or there is no question.
    """
    tagged = [cell for cell in notebook.cells if "opening" in cell.metadata.get("tags", [])]
    figures = renderer.figures_of(tagged)
    if len(tagged) != 1 or len(figures) != 1:
        raise CamlError(
            what=f'{chapter}: {len(tagged)} cells have the tag "opening"; figures in their output: {len(figures)}',
            expected="one code cell with this tag, whose output is one plotly figure",
            remedy=f'mark the figure that tells the chapter best: # %% tags=["opening"] in notebooks/{chapter}.py',
        )
    question = _QUESTION.search(notebook.cells[0].source)
    if not question:
        raise CamlError(
            what=f"{chapter}: its first cell asks no question",
            expected='a paragraph that begins with "**Question.**", below which the opening picture is shown',
            remedy=f"add it to notebooks/{chapter}.py",
        )
    return figures[0], question.end()


def show(notebook: NotebookNode, committed: Path, stage: Path) -> None:
    """Put the opening picture into a staged chapter, linked to its figure.

    Where no still could be drawn, that of the committed notebook stands in; without that, nothing happens. The stage
    gets the picture twice: transparent (``.webp``) for the page, on white (``.png``) for previews of links to it.
    """
    chapter, folder = committed.stem, stage / FOLDER
    output, end = find(notebook, chapter)
    still = renderer.still(output)
    if not still and committed.exists():
        with suppress(CamlError):
            still = renderer.still(find(nbformat.read(committed, as_version=4), chapter)[0])
    if not still:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{chapter}.webp").write_bytes(renderer.webp(still))
    picture = Image.open(io.BytesIO(still))
    preview = ImageOps.pad(stills.on_white(picture), PREVIEW, color="white")
    preview.save(folder / f"{chapter}.png", optimize=True)
    figure = output.data[renderer.MIME]
    shown = _PICTURE.format(
        chapter=chapter,
        div=renderer.div(1 + renderer.figures_of(notebook.cells).index(output)),
        label=html.escape(renderer.alt(figure)),
        caption=renderer.caption(figure),
        width=picture.width,
        height=picture.height,
    )
    first = notebook.cells[0]
    first.source = first.source[:end] + shown + first.source[end:]
