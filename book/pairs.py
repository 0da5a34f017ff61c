"""What keeps the two files of a chapter together: the first cell they share, and the comparison of a pair."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import jupytext
from jupytext.compare import NotebookDifference, compare_notebooks

from caml_core.errors import CamlError

TEMPLATE = Path(__file__).with_name("colab_cell.py")

_FIRST_CODE_CELL = re.compile(r"^# %%(?! *\[)[^\n]*\n.*?(?=\s*(?:^# %%|\Z))", re.MULTILINE | re.DOTALL)


def sources(root: Path) -> list[Path]:
    """The chapters, as their editable ``.py`` files."""
    return sorted((root / "notebooks").glob("*.py"))


def repository(root: Path) -> str:
    """Address of the repository: it stands in pyproject.toml and nowhere else."""
    urls = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {}).get("urls", {})
    if "Repository" not in urls:
        raise CamlError(
            what=f"{root / 'pyproject.toml'} names no repository",
            expected='[project.urls] with Repository = "https://..."',
            remedy="add it; links of the pages and the first cell of each notebook are made from it",
        )
    return str(urls["Repository"]).rstrip("/")


def address_for_readers(root: Path) -> str:
    """Where buttons lead: `repository`; while that is a placeholder, git's remote on GitHub; empty without either."""
    address = repository(root)
    if "/your_account/" not in address:
        return address
    remote = subprocess.run(["git", "-C", root, "remote", "get-url", "origin"], capture_output=True, text=True).stdout
    found = re.fullmatch(r"(?:https://|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", remote.strip())
    return f"https://github.com/{found[1]}" if found else ""


def first_cell(source: Path) -> re.Match[str]:
    """The first code cell of a chapter, marker line included."""
    found = _FIRST_CODE_CELL.search(source.read_text("utf-8"))
    if found is None:
        raise CamlError(
            what=f"{source} holds no code cell",
            expected="a percent script whose first '# %%' cell is the Colab cell",
            remedy="add an empty '# %%' cell after the introduction, then run: python book/build.py --sync",
        )
    return found


def wanted_first_cell(source: Path, address: str) -> str:
    """The template with the repository's address and the minutes that the chapter takes, from ``book/minutes.toml``."""
    table = source.parents[1] / "book" / "minutes.toml"
    minutes = tomllib.loads(table.read_text("utf-8")).get(source.stem)
    if minutes is None:
        raise CamlError(
            what=f"{table} has no line for {source.stem}",
            expected="the minutes that each chapter takes on two cores",
            remedy=f"add: {source.stem} = 1",
        )
    cell = TEMPLATE.read_text("utf-8").rstrip().replace("git+REPOSITORY", f"git+{address}")
    return cell.replace("MINUTES", f"{minutes} minute" + "s" * (minutes != 1))


def sync_first_cells(root: Path) -> list[str]:
    """Rewrite first cells that differ from the template; returns the names of the chapters changed."""
    changed = []
    for source in sources(root):
        cell, wanted = first_cell(source), wanted_first_cell(source, repository(root))
        if cell[0] != wanted:
            text = source.read_text("utf-8")
            source.write_text(text[: cell.start()] + wanted + text[cell.end() :], "utf-8")
            changed.append(source.stem)
    return changed


def faults(source: Path, address: str) -> list[str]:
    """What is wrong with a chapter's pair, in words; empty when it is in order."""
    found = []
    if first_cell(source)[0] != wanted_first_cell(source, address):
        found.append(f"{source.name}: the first code cell differs from the template; run: python book/build.py --sync")
    notebook = source.with_suffix(".ipynb")
    if not notebook.exists():
        found.append(f"{source.name} has no {notebook.name}; run: python book/build.py --write")
        return found
    try:
        compare_notebooks(jupytext.read(notebook), jupytext.read(source), fmt="py:percent", compare_outputs=False)
    except NotebookDifference as difference:
        found.append(
            f"{notebook.name} is not made from the present {source.name}; run: python book/build.py --write\n"
            + "\n".join("    " + line for line in str(difference).strip().splitlines()[:12])
        )
    return found
