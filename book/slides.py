"""Slides for a course: a page of HTML for each session of book/map.md, made from the executed notebooks.

Nothing is written here twice. A session is a row of the map's table: chapters, exercises, question. Of each chapter its
slides have the question, what one will be able to do, the formulas and figures in their order, "What we saw", the first
quick question, its answer on the next slide, and the first exercise that the row names. ``make slides`` makes them from
the committed notebooks, ``make book`` from those that it has run; `slides.html` is how they look.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book import assets, pairs, renderer  # noqa: E402

WORDS = 140  # of text on one slide; a formula counts as forty
_ROW = re.compile(r"^\| (\d) ([^:|]+): ([^|]+)\|[^|]*\|([^|]*)\|([^|]+)\|", re.MULTILINE)
_OPTION = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
_PAPER = Template(Path(__file__).with_name("slides.html").read_text("utf-8"))
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_MARKDOWN.use(
    dollarmath_plugin,
    renderer=lambda text, how: html.escape(
        ("\\[%s\\]" if how["display_mode"] else "\\(%s\\)") % text.replace("\n", " ")
    ),
)


@dataclass(frozen=True)
class Session:
    """A row of the course: its number, name and question, and for each chapter its exercises as the row lists them."""

    number: int
    name: str
    question: str
    chapters: dict[str, list[int]]


def sessions(text: str) -> list[Session]:
    """The sessions of the table in the text of book/map.md; the keys of their chapters are as `07_caml`."""
    found = []
    for number, name, links, exercises, question in _ROW.findall(text.partition("## Teach a course")[2]):
        named = re.findall(r"(\d\d): ([\d, ]+)", exercises)
        asked = {chapter: [int(n) for n in re.findall(r"\d+", ns)] for chapter, ns in named}
        chapters = {stem: asked.get(stem[:2], []) for stem in re.findall(r"notebooks/(\w+)\.ipynb", links)}
        found.append(Session(int(number), name.strip(), question.strip(), chapters))
    return found


def write(
    notebooks: Sequence[Path], folder: Path, course: str, vendor: str, pages: str, offline: bool = True
) -> list[Path]:
    """Make the decks of those sessions whose chapters are among the executed notebooks; returns their files.

    `course` is the text of book/map.md; `vendor` is the address of the browser's libraries as seen from `folder`,
    `pages` that of the built book. Where not all libraries are there (not `offline`), formulas come from a public copy.
    """
    files, known = [], {notebook.stem: notebook for notebook in notebooks}
    folder.mkdir(parents=True, exist_ok=True)
    for session in sessions(course):
        if session.chapters.keys() <= known.keys():
            chapters = {stem: nbformat.read(known[stem], as_version=4) for stem in session.chapters}
            files.append(folder / f"session_{session.number}.html")
            files[-1].write_text(deck(session, chapters, vendor, pages, offline), "utf-8")
    return files


def deck(session: Session, chapters: dict[str, NotebookNode], vendor: str, pages: str, offline: bool) -> str:
    """The page of one session; `chapters` are its executed notebooks, in order; the rest as for `write`."""
    names = {stem: f"{stem[:2]} {one.cells[0].source.splitlines()[0][2:]}" for stem, one in chapters.items()}
    title = f"Session {session.number}: {session.name}"
    ask = f'<p class="ask">{_inline(session.question)}</p>'
    slides = [("title", "")]
    figure, plan = 0, ""
    for stem, notebook in chapters.items():
        for kind, heading, content in chapter(notebook, session.chapters[stem]):
            if isinstance(content, str):
                body = _MARKDOWN.render(content)
            else:
                figure += 1
                still = next((content.data[kind] for kind in renderer.KINDS if kind in content.data), "")
                source = f"data:image/png;base64,{still.strip()}" if still else ""
                body = renderer.page(content.data[renderer.MIME], figure, source)
            address = f"{pages}/notebooks/{stem}.html"
            body = re.sub(r'href="([\w.]+)\.ipynb', rf'href="{pages}/notebooks/\1.html', body)
            body = re.sub(r'href="\.\./book/([\w.]+)\.md', rf'href="{pages}/book/\1.html', body)
            above = names[stem] if kind == "chapter" else heading
            foot = f'<p class="chapter"><a href="{address}">{_inline(names[stem])}</a></p>'
            slides.append((kind, f"<h2>{_inline(above)}</h2>{body}{foot}"))
            if kind == "chapter":
                plan += f'<li><a href="#{len(slides)}">{_inline(names[stem])}</a></li>'
    slides[0] = ("title", f"<h1>{html.escape(title)}</h1>{ask}<ul>{plan}</ul>")
    slides.append(("title", f"<h2>To discuss</h2>{ask}"))
    sections = "\n".join(f'<section class="{kind}"><div>{body}</div></section>' for kind, body in slides)
    math = f"{vendor}/tex-svg.js" if offline else "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-svg.js"
    return _PAPER.substitute(title=html.escape(title), slides=sections, vendor=vendor, math=math)


def chapter(notebook: NotebookNode, exercises: Sequence[int] = ()) -> Iterator[tuple[str, str, str | NotebookNode]]:
    """The slides of one executed notebook: kind, heading, and Markdown or the output that holds a figure."""
    parts = _parts(notebook)
    opening = parts[0][1]
    wanted = [block for block in opening.split("\n\n") if block.startswith(("**Question.**", "**You will be able"))]
    yield "chapter", "", "\n\n".join(wanted)
    taught = [name for name, _, _ in parts].index("What we saw") if _text(parts, "What we saw") else len(parts)
    for name, text, figures in parts[:taught]:
        for page in _formulas(text):
            yield "formula", name, page
        for output in figures:
            yield "figure", name, output
    saw = re.split(r"\n\n(?!- )", _text(parts, "What we saw").strip())[0]
    for page in _pages(re.split(r"\n+(?=- )", saw), "\n"):
        yield "saw", "What we saw", page
    first = re.search(r"\*\*1\.\*\*(.*?)(?=^\*\*2\.\*\*|\Z)", _text(parts, "Two quick questions"), re.S | re.M)
    if first:
        asked, options = first[1].partition("<details>")[0].strip(), _OPTION.findall(first[1])
        yield "ask", "A quick question", asked + "\n\n" + "".join(f"1. {option}\n" for option, _ in options)
        told = "".join(f"1. {option}: *{' '.join(why.split())}*\n" for option, why in options)
        yield "ask", "Its answer", asked + "\n\n" + told
    for number in exercises[:1]:
        task = re.search(
            rf"\*\*Exercise {number}: .*?(?=^<details>|^\*\*Exercise |\Z)", _text(parts, "Exercises"), re.S | re.M
        )
        if task:
            heading, _, rest = task[0].strip("*").partition("**")
            yield "exercise", " ".join(heading.rstrip(".").split()), rest.strip()


def _inline(text: str) -> str:
    return str(_MARKDOWN.renderInline(text))


def _parts(notebook: NotebookNode) -> list[tuple[str, str, list[NotebookNode]]]:
    """Heading, text and figures of the sections; a solution's figures are nobody's."""
    parts: list[tuple[str, str, list[NotebookNode]]] = [("", "", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "solution" not in cell.metadata.get("tags", []):
                parts[-1][2].extend(renderer.figures_of([cell]))
            continue
        for piece in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
            name, text, figures = parts[-1]
            if piece.startswith("## "):
                heading, _, text = piece.partition("\n")
                parts.append((heading.removeprefix("## ").strip(), text, []))
            else:
                parts[-1] = (name, f"{text}\n\n{piece}", figures)
    return parts


def _text(parts: list[tuple[str, str, list[NotebookNode]]], name: str) -> str:
    return next((text for heading, text, _ in parts if heading == name), "")


def _formulas(text: str) -> list[str]:
    """Displayed formulas with the sentence that leads to each, on as few slides as hold them."""
    pieces, found = re.split(r"(\$\$.*?\$\$)", text, flags=re.DOTALL), []
    for before, formula, after in zip(pieces[::2], pieces[1::2], pieces[2::2]):
        lead = re.split(r"\n\s*\n|\n(?=- )", before.strip())[-1]
        sentences = re.split(r"(?<=[.?!:]) (?=[A-Z*$`])", " ".join(lead.split()))
        while len(" ".join(sentences).split()) > 45 and len(sentences) > 1:
            sentences.pop(0)
        between = "\n\n" not in after.strip() and after is not pieces[-1]  # it leads to the next formula
        end = "" if between or not re.match(r"\s*[a-z.,;]", after) else " ".join(after.strip().split("\n\n")[0].split())
        found.append(f"{' '.join(sentences)}\n\n{formula}\n\n{end}")
    return list(_pages(found, "\n\n"))


def _pages(pieces: Sequence[str], between: str) -> Iterator[str]:
    """Pieces of text on slides, in their order; none is cut."""
    slide: list[str] = []
    for piece in pieces:
        if slide and len(re.sub(r"\$\$.*?\$\$", " x" * 40, " ".join([*slide, piece]), flags=re.S).split()) > WORDS:
            yield between.join(slide)
            slide = []
        slide.append(piece)
    if slide and any(slide):
        yield between.join(slide)


def main() -> int:
    """Decks of the committed notebooks in _build/slides, with the libraries that they need."""
    folder = ROOT / "_build" / "slides"
    with tempfile.TemporaryDirectory() as work:
        library = assets.assemble(ROOT / "_build" / "assets", Path(work))
        shutil.copytree(library.site / "_static" / "vendor", folder / "vendor", dirs_exist_ok=True)
    notebooks = [source.with_suffix(".ipynb") for source in pairs.sources(ROOT)]
    course = (ROOT / "book" / "map.md").read_text("utf-8")
    for file in write(notebooks, folder, course, "vendor", "../html", library.offline):
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
