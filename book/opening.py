"""The picture that opens a chapter: the still of its cell with the tag "opening", shown below its question."""

from __future__ import annotations

import base64
import io
import re
from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image, ImageOps

from book.stills import DIV, LABEL, figures_of
from caml_core.errors import CamlError

FOLDER = Path("book", "static", "openings")  # of the stage; of the pages it is _static/openings
PREVIEW = (720, 378)  # pixels; the shape in which sites show the preview of a link
_QUESTION = re.compile(r"^\*\*Question\.\*\*.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_STILL = re.compile(r'src="data:image/webp;base64,([^"]+)"')
_PICTURE = """

<p class="opening">
<a href="#{div}"><img class="dark-light" src="../_static/openings/{chapter}.webp" alt="{label}" \
width="{width}" height="{height}" style="height: auto"></a>
<br><span class="caption">{caption}</span>
</p>"""


def find(notebook: NotebookNode, chapter: str) -> tuple[str, int]:
    """The HTML of the figure that opens a chapter, and where the question ends in the first cell.

    Raises:
        CamlError: when not exactly one cell has the tag "opening", it shows no figure, or there is no question.
    """
    tagged = [cell for cell in notebook.cells if "opening" in cell.metadata.get("tags", [])]
    figures = figures_of(tagged)
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
    return str(figures[0].data["text/html"]), question.end()


def show(notebook: NotebookNode, committed: Path, stage: Path) -> None:
    """Put the opening picture into a staged chapter, linked to its figure.

    Where no still could be drawn, that of the committed notebook stands in; without that, nothing happens. The stage
    gets the picture twice: transparent (``.webp``) for the page, on white (``.png``) for previews of links to it.
    """
    chapter, folder = committed.stem, stage / FOLDER
    figure, end = find(notebook, chapter)
    still = _STILL.search(figure)
    if not still and committed.exists():
        with suppress(CamlError):
            still = _STILL.search(find(nbformat.read(committed, as_version=4), chapter)[0])
    if not still:
        return
    folder.mkdir(parents=True, exist_ok=True)
    webp = base64.b64decode(still[1])
    (folder / f"{chapter}.webp").write_bytes(webp)
    picture = Image.open(io.BytesIO(webp)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    ImageOps.pad(white.convert("RGB"), PREVIEW, color="white").save(folder / f"{chapter}.png", optimize=True)
    shown = _PICTURE.format(
        chapter=chapter,
        div=DIV.findall(figure)[0],
        label=LABEL.findall(figure)[0],
        caption=re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", figure, re.DOTALL)[0],
        width=picture.width,
        height=picture.height,
    )
    first = notebook.cells[0]
    first.source = first.source[:end] + shown + first.source[end:]
