"""Which files of the repository a chapter's results depend on: what it imports, and what that imports in turn.

Read from the source, without running it: every import statement counts, also one inside a function that is never
called. A file too many costs a run; one too few would leave a page that no longer says what the code does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "caml_core"
RECORDS = Path(PACKAGE, "runs/records.py")  # its `stored` reads the folder `results`, for those who call it
PAGES_ONLY = ("explorables.js", ".page.safetensors", ".page.json")  # pages run it, chapters do not
_FOLDER = re.compile(r"(^|/)results(/|$)")


def dependencies(root: Path, source: Path) -> list[Path]:
    """The chapter, the modules it reaches, the package's data files, and all stored results if it can read them.

    The programs in `results/studies` are no part of it: what they wrote is.
    """
    trees: dict[Path, ast.Module] = {}
    waiting = [source, *_module(root, PACKAGE)]
    while waiting:
        file = waiting.pop()
        if file not in trees:
            trees[file] = _parsed(file)
            waiting += _imports(root, file, trees[file])
    files = (file for file in (root / PACKAGE).rglob("*") if file.suffix not in {".py", ".pyc"})
    data = (file for file in files if not file.name.endswith(PAGES_ONLY))
    found = {*trees, *data}
    if any(_reads_results(tree) for file, tree in trees.items() if file != root / RECORDS):
        found.update(set((root / "results").rglob("*")) - set((root / "results" / "studies").rglob("*")))
    return sorted(file for file in found if file.is_file())


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text("utf-8"))
    except SyntaxError:  # running it will say so; until then it may import and read anything
        return ast.parse("import_module, stored")


def _imports(root: Path, file: Path, tree: ast.Module) -> Iterator[Path]:
    """The package's modules that a file names in its imports; a name put together at run time may be any neighbour."""
    inside = file.is_relative_to(root / PACKAGE)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(root, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield from file.parents[node.level - 1].rglob("*.py")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from _module(root, f"{node.module}.{alias.name}")
        elif not inside and isinstance(node, ast.Constant) and PACKAGE in str(node.value):
            yield from _module(root, f"{PACKAGE}.__main__")  # [sys.executable, "-m", "caml_core", ...]
        elif _name(node) in {"import_module", "__import__", "runpy"}:
            yield from (file.parent if inside else root / PACKAGE).rglob("*.py")


def _module(root: Path, dotted: str) -> Iterator[Path]:
    """The files that ``import dotted`` runs: the module, if it is the package's, and the packages it lies in."""
    parts = dotted.split(".")
    if parts[0] == PACKAGE:
        for n in range(1, len(parts) + 1):
            path = root.joinpath(*parts[:n])
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


def _reads_results(tree: ast.Module) -> bool:
    """Whether a file names `records.stored`, or the folder in a path."""
    return any(
        _name(node) == "stored"
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and _FOLDER.search(node.value))
        for node in ast.walk(tree)
    )


def _name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return name
    return ""
