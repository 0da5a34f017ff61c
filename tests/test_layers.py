"""The shape of the package: imports go one way, and it stays small enough to be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

CORE = Path(__file__).parent.parent / "caml_core"
OWN = 1_115  # lines at most of your own model: audit, ask, repair
LONGEST = 300  # lines of a file
COMPARATORS = ("comparators.py", "environments.py")  # counted apart: six methods beside those that the book teaches
TOTAL, TOP = 7_768, 3_380  # lines at most: of all but field/, and of what lies in no room. The aim: 6,000 and 2,800


def lines() -> dict[str, int]:
    """Lines of every file of the core, which needs neither `own/` nor `field/`."""
    files = {file.relative_to(CORE).as_posix(): file for file in sorted(CORE.rglob("*.py"))}
    return {
        name: len(f.read_text("utf-8").splitlines())
        for name, f in files.items()
        if not name.startswith(("own/", "field/"))
    }


def test_imports_go_one_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CORE.parent)
    broken = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert not broken, capsys.readouterr().out


def test_files_are_short() -> None:
    assert {name: n for name, n in lines().items() if n > LONGEST} == {}


def test_the_core_is_small() -> None:
    own = sum(len(file.read_text("utf-8").splitlines()) for file in (CORE / "own").glob("*.py"))
    assert own <= OWN
    counts = lines()
    assert sum(counts.pop(name) for name in COMPARATORS) <= 400
    assert sum(counts.values()) <= TOTAL
    assert sum(n for name, n in counts.items() if "/" not in name) <= TOP
