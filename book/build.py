"""Builds the book: ``python book/build.py`` runs the chapters that changed and makes ``_build/html``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, Python looks only beside this file
    sys.path.insert(0, str(ROOT))

from book import assets, execute, exercises, opening, pairs, renderer, slides, stills  # noqa: E402
from caml_core.errors import CamlError  # noqa: E402

BRANCH = "main"
LARGEST = 1_000_000  # bytes of a notebook: it is read on a telephone, too


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options, root)
    except CamlError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; finished chapters are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python book/build.py", description="Build the book.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--committed", action="store_true", help="run nothing: use the results in notebooks/*.ipynb")
    what.add_argument("--write", action="store_true", help="run, then copy the results to notebooks/*.ipynb")
    what.add_argument("--check", action="store_true", help="only compare notebooks/*.py with notebooks/*.ipynb")
    parser.add_argument("--sync", action="store_true", help="rewrite first cells; alone, do only that")
    parser.add_argument("--only", metavar="NAME", help="run and check one chapter, make no pages")
    parser.add_argument("--html-dir", metavar="DIR", type=Path, help="where the pages go (_build/html)")
    return parser


def _run(options: argparse.Namespace, root: Path) -> int:
    if options.sync:
        changed = pairs.sync_first_cells(root)
        print("first cells rewritten: " + (", ".join(changed) or "none"))
        if not (options.write or options.only):
            return 0
    chapters = _chapters(root, options.only)
    if options.check:
        address = pairs.repository(root)
        found = [fault for chapter in chapters for fault in pairs.faults(chapter, address)]
        print("\n".join(found) or f"{len(chapters)} pairs in order")
        return 1 if found else 0
    if options.committed:
        notebooks = [chapter.with_suffix(".ipynb") for chapter in chapters]
    else:
        notebooks = execute.execute_all(root, chapters)
        stills.add(notebooks)
    for notebook in notebooks:
        check_executed(notebook)
        check_parts(notebook)
        if options.committed or options.write or options.only:
            check_size(notebook)
    if options.write:
        write_back(root, notebooks)
    if options.only:
        print(f"{options.only}: in order")
        return 0
    html = options.html_dir or root / "_build" / "html"
    build_html(root, notebooks, html)
    print(f"The book is ready, open {html / 'index.html'}")
    return 0


def _chapters(root: Path, only: str | None) -> list[Path]:
    chapters = pairs.sources(root)
    if only is None:
        return chapters
    wanted = [chapter for chapter in chapters if chapter.stem == Path(only).stem]
    if not wanted:
        raise CamlError(
            what=f"there is no chapter {only!r}",
            expected="one of " + ", ".join(chapter.stem for chapter in chapters),
            remedy="check the name after --only",
        )
    return wanted


def check_executed(notebook: Path) -> None:
    """A notebook that goes into the book exists and was run to its end."""
    if not notebook.exists():
        raise CamlError(
            what=f"{notebook} does not exist",
            expected="the executed notebook beside each chapter's .py file",
            remedy="run: python book/build.py --write",
        )
    cells = nbformat.read(notebook, as_version=4).cells
    if any(cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None for cell in cells):
        raise CamlError(
            what=f"{notebook} holds cells that were not run",
            expected="an executed notebook",
            remedy="run: python book/build.py --write",
        )


def check_parts(notebook: Path) -> None:
    """A chapter has an opening picture and exercises with solutions."""
    content = nbformat.read(notebook, as_version=4)
    opening.find(content, notebook.stem)
    exercises.to_directives(content, notebook.stem)


def check_size(notebook: Path) -> None:
    """A notebook that goes into the repository is small."""
    size = notebook.stat().st_size
    if size > LARGEST:
        raise CamlError(
            what=f"{notebook} has {size:,} bytes",
            expected=f"at most {LARGEST:,}",
            remedy="show fewer or smaller pictures, or thin out the points of its figures",
        )


def write_back(root: Path, notebooks: Sequence[Path]) -> None:
    """Copy results to the committed notebooks, without the notes that only the builder needs."""
    for notebook in notebooks:
        content = nbformat.read(notebook, as_version=4)
        content.metadata.pop("book_build", None)
        target = root / "notebooks" / notebook.name
        execute.save(content, target)
        print(f"written: {target.relative_to(root)} ({target.stat().st_size / 1000:.0f} kB)")


def build_html(root: Path, notebooks: Sequence[Path], html: Path) -> None:
    """Make the pages in a stage beside ``html`` and move them there when all went well."""
    if html.exists() and not (html / "genindex.html").exists() and any(html.iterdir()):
        raise CamlError(
            what=f"{html} holds something that is not a built book",
            expected="a new or empty folder, or an earlier book",
            remedy="choose another folder with --html-dir",
        )
    html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=html.parent, prefix="stage-") as work:
        stage = Path(work) / "book"
        stage.mkdir()
        library = assets.assemble(root / "_build" / "assets", Path(work) / "assets")
        _fill_stage(root, stage, notebooks, library)
        print(f"making pages of {len(notebooks)} chapters and the text pages")
        command = [
            sys.executable,
            "-c",
            "from jupyter_book.cli.main import main; main()",
            "build",
            str(stage),
        ]
        done = subprocess.run(
            [*command, "-W", "--keep-going", "-q"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        if done.returncode:
            output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
            lines = output.replace(f"{stage.resolve()}/", "").replace(f"{stage}/", "").strip().splitlines()
            lines = [line for line in lines if re.search("WARNING|ERROR|Error:", line)] or lines
            raise CamlError(
                what="the pages were not built:\n" + "\n".join("    " + line for line in lines),
                expected="no error and no warning (line 10002 of a notebook is line 2 of its first cell)",
                remedy="mend the page named above; the pages built before are still in place",
            )
        for notebook in notebooks:  # readers download the plain one, not that made for its page, and its script
            for file in (notebook, root / "notebooks" / f"{notebook.stem}.py"):
                shutil.copy(file, stage / "_build" / "html" / "_sources" / "notebooks")
            content = nbformat.read(notebook, as_version=4)
            exercises.without_solutions(content)
            file = stage / "_build" / "html" / "_sources" / "notebooks" / f"{notebook.stem}.exercises.ipynb"
            execute.save(content, file)
        course = (root / "book" / "map.md").read_text("utf-8")
        decks = stage / "_build" / "html" / "_static" / "slides"
        slides.write(notebooks, decks, course, "../vendor", "../..", library.offline)
        if html.exists():
            shutil.rmtree(html)
        os.replace(stage / "_build" / "html", html)


def _fill_stage(root: Path, stage: Path, notebooks: Sequence[Path], library: assets.Assets) -> None:
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    add_to_config(config, pairs.address_for_readers(root), library)
    (stage / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    shutil.copy(root / "_toc.yml", stage)
    shutil.copytree(root / "book", stage / "book", ignore=shutil.ignore_patterns("__pycache__"))
    (stage / "notebooks").mkdir()
    for notebook in notebooks:
        content = nbformat.read(notebook, as_version=4)
        opening.show(content, root / "notebooks" / notebook.name, stage)
        exercises.to_directives(content, notebook.stem)
        content.cells[0].source = numbered(content.cells[0].source, notebook.stem)
        renderer.to_html(content)
        execute.save(content, stage / "notebooks" / notebook.name)


def numbered(text: str, chapter: str) -> str:
    """A chapter's first cell with its number in the heading, so that sidebar and links show it: `07_caml` is 07."""
    number = re.match(r"\d+(?=_)", chapter)
    return re.sub(r"^# ", f"# {number[0]} ", text, count=1, flags=re.MULTILINE) if number else text


def add_to_config(config: dict[str, Any], address: str, library: assets.Assets) -> None:
    """Complete ``_config.yml`` by what is known only now: the repository's address, if there is one, and the assets."""
    if address:
        config["repository"] = {"url": address, "branch": BRANCH}
        config["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
        buttons = ("use_repository_button", "use_edit_page_button", "use_issues_button")
        config.setdefault("html", {}).update(dict.fromkeys(buttons, True))
    else:
        print("no buttons to Colab and GitHub: neither pyproject.toml nor git's origin has the book's address")
    sphinx = config["sphinx"]["config"]
    for name, value in library.sphinx_config().items():
        sphinx[name] = [*sphinx.get(name, []), *value] if isinstance(value, list) else value


if __name__ == "__main__":
    raise SystemExit(main())
