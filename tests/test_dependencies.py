"""Which chapters run again when a file changes: no dependency may be missed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sample_book import ROOT

from book import execute, pairs
from book.dependencies import dependencies


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package, and a chapter that imports one of them."""
    files = {
        "notebooks/chapter.py": "from caml_core import a\n",
        "caml_core/__init__.py": "",
        "caml_core/__main__.py": "import caml_core.c\n",
        "caml_core/a.py": "def f():\n    from caml_core.sub.b import g\n    return g\n",
        "caml_core/c.py": "",
        "caml_core/runs/records.py": "def stored(name):\n    return 'results'\n",
        "caml_core/sub/__init__.py": "",
        "caml_core/sub/b.py": "import torch\n",
        "caml_core/sub/d.py": "",
        "caml_core/weights.json": "{}",
        "caml_core/pictures/explorables.js": "",  # pages run it, chapters do not
        "caml_core/weights/any.page.safetensors": "",
        "results/x.json": "[]",
        "results/studies/x.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def reached(tree: Path, chapter: str) -> set[str]:
    """Files of the tree on which a chapter depends, beyond those on which every chapter does."""
    source = tree / "notebooks" / "chapter.py"
    source.write_text(chapter)
    found = {file.relative_to(tree).as_posix() for file in dependencies(tree, source)}
    always = {"notebooks/chapter.py", "caml_core/__init__.py", "caml_core/weights.json"}
    assert always <= found
    return found - always


SUB = {"caml_core/sub/__init__.py", "caml_core/sub/b.py"}


@pytest.mark.parametrize(
    ("chapter", "expected"),
    [
        ("x = 1\n", set()),
        ("import caml_core.c\n", {"caml_core/c.py"}),
        ("from caml_core import a\n", {"caml_core/a.py", *SUB}),
        ("from caml_core.a import f as g\n", {"caml_core/a.py", *SUB}),
        ("if False:\n    import caml_core.sub.b as b\n", SUB),
        ("from caml_core.runs.records import describe\n", {"caml_core/runs/records.py"}),
        ("from caml_core.runs.records import stored\n", {"caml_core/runs/records.py", "results/x.json"}),
        ("from caml_core.runs import records\nrecords.stored('x')\n", {"caml_core/runs/records.py", "results/x.json"}),
        ("[python, '-m', 'caml_core', 'run']\n", {"caml_core/__main__.py", "caml_core/c.py"}),
        ("open('../results/x.json')\n", {"results/x.json"}),
    ],
)
def test_chapter_depends_on_what_it_reaches(tree: Path, chapter: str, expected: set[str]) -> None:
    assert reached(tree, chapter) == expected


def test_names_put_together_at_run_time(tree: Path) -> None:
    everything = {file.relative_to(tree).as_posix() for file in (tree / "caml_core").rglob("*.py")}
    chapter = "from importlib import import_module\nimport_module(f'caml_core.{name}')\n"
    assert everything - {"caml_core/__init__.py"} <= reached(tree, chapter)
    assert everything - {"caml_core/__init__.py"} <= reached(tree, "no python\n")
    (tree / "caml_core" / "sub" / "__init__.py").write_text("import importlib\nimportlib.import_module('x')\n")
    assert reached(tree, "import caml_core.sub\n") == {*SUB, "caml_core/sub/d.py"}


def test_star_and_relative_imports(tree: Path) -> None:
    (tree / "caml_core" / "sub" / "b.py").write_text("from ..c import *\n")
    assert "caml_core/c.py" in reached(tree, "from caml_core.sub.b import *\n")
    (tree / "caml_core" / "sub" / "b.py").write_text("from . import d\n")
    assert "caml_core/sub/d.py" in reached(tree, "from caml_core.sub import b\n")


def test_key_follows_what_the_chapter_reaches_and_nothing_else(tree: Path) -> None:
    source = tree / "notebooks" / "chapter.py"
    key = execute.execution_key(tree, source)
    for name in ("caml_core/c.py", "caml_core/sub/d.py", "results/x.json"):
        (tree / name).write_text("# changed\n")
        assert execute.execution_key(tree, source) == key, name
    for name in ("notebooks/chapter.py", "caml_core/sub/b.py", "caml_core/weights.json", "constraints.txt"):
        with (tree / name).open("a") as file:
            file.write("# changed\n")
        assert execute.execution_key(tree, source) != key, name
        key = execute.execution_key(tree, source)


def test_this_package_is_readable_in_this_way() -> None:
    """Modules named at run time lie in the folder of the one that names them."""
    for file in (ROOT / "caml_core").rglob("*.py"):
        text = file.read_text("utf-8")
        if file != ROOT / "caml_core" / "data" / "__init__.py":
            assert "import_module" not in text, f"{file.name}: see book/dependencies.py"
    assert "caml_core.data.{name}" in (ROOT / "caml_core" / "data" / "__init__.py").read_text("utf-8")


@pytest.mark.parametrize("source", pairs.sources(ROOT), ids=lambda source: source.stem)
def test_chapter_depends_on_each_module_that_it_names(source: Path) -> None:
    found = dependencies(ROOT, source)
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("caml_core"):
            path = ROOT.joinpath(*str(node.module).split("."))
            assert path.with_suffix(".py") in found or path / "__init__.py" in found
