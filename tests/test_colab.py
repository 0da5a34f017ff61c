"""The first cell of the notebooks, with a pip that is played, and with the real one in a Colab that is simulated."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import require
from sample_book import ROOT

from book import pairs
from caml_core.errors import CamlError

SOURCES = pairs.sources(ROOT)
CELL = pairs.first_cell(SOURCES[0])[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The package is missing; what pip is asked for."""
    commands: list[list[str]] = []

    def pip(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, int("broken" in command[5]), "", "ERROR: No matching distribution")

    missing = {"caml_core", "torchvision"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.delenv("CAML_REPOSITORY", raising=False)
    return commands


def test_nothing_happens_where_the_package_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *command, **how: pytest.fail("nothing is to be installed"))
    exec(CELL, {})
    assert capsys.readouterr().out == ""


def test_pip_is_held_to_what_is_there(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAML_REPOSITORY", "git+https://example.org/book")
    exec(CELL, {})
    held = [f"torch=={version('torch')}", f"numpy=={version('numpy')}"]
    assert asked == [[sys.executable, "-m", "pip", "install", "-q", "git+https://example.org/book", *held]]


def test_the_placeholder_and_a_failure_are_one_message(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = CELL.replace(pairs.repository(ROOT), "https://github.com/your_account/caml-book")
    with pytest.raises(SystemExit, match=r"^Set CAML_REPOSITORY to .*$"):
        exec(cell, {})
    assert asked == []
    monkeypatch.setenv("CAML_REPOSITORY", "broken")
    with pytest.raises(SystemExit, match="could not install broken:\nERROR: No matching distribution"):
        exec(cell, {})


@pytest.mark.parametrize("gpu", ["", "Tesla T4"])
def test_colab_is_told_versions_device_and_minutes(
    gpu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    exec(CELL, {})
    versions, minutes = capsys.readouterr().out.splitlines()
    assert versions == f"caml_core {version('caml_core')} torch {version('torch')} {gpu or 'no GPU (not needed)'}"
    assert minutes == "expect 1 minute on two cores"


def test_each_chapter_has_its_minutes(tmp_path: Path) -> None:
    for source in SOURCES:
        assert pairs.first_cell(source)[0] == pairs.wanted_first_cell(source, pairs.repository(ROOT))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "minutes.toml").write_text("new = 2.5\n")
    assert "expect 2.5 minutes on" in pairs.wanted_first_cell(tmp_path / "notebooks" / "new.py", "x")
    with pytest.raises(CamlError, match="no line for newer"):
        pairs.wanted_first_cell(tmp_path / "notebooks" / "newer.py", "x")


# ---- the real pip -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The package as it is now, as a local git repository in the form that pip takes."""
    require(shutil.which("git"), "git is not installed")
    root = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    for name in ("caml_core", "results"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(root)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "the book"]):
        subprocess.run([*git, *command], check=True)
    return f"git+{root.as_uri()}"


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that sees every installed package but caml_core, and believes that it is Colab."""
    root = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    packages = root / "packages"
    packages.mkdir()
    for scheme in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_path(scheme)).iterdir():
            ours = entry.name.startswith(("caml_core", "__editable__"))
            if not ours and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    own = next((root / "venv").glob("lib/python*/site-packages"))
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").write_text("")
    (own / "colab.pth").write_text(f"{packages}\nimport google.colab\n")
    return root / "venv" / "bin" / "python"


def test_every_notebook_starts_on_simulated_colab(fresh_python: Path, repository: str, tmp_path: Path) -> None:
    """The first cell, then all imports of each chapter, alone in an empty folder; pip can fetch but the package."""
    program = [CELL, "import importlib; importlib.invalidate_caches()"]
    for chapter in SOURCES:
        nodes = ast.walk(ast.parse(chapter.read_text("utf-8")))
        lines = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        assert any("caml_core" in line for line in lines), chapter.name
        program += [line for line in lines if line not in program]
    show = "print(json.dumps({m.__name__: m.__file__ for m in (caml_core, numpy, torch)}))"
    program.append(f"import json, caml_core, numpy, torch; {show}")
    lost = ("PYTHONPATH", "CAML_DATA", "CAML_STATIC")
    there = {name: value for name, value in os.environ.items() if name not in lost}
    # NO_BUILD_ISOLATION=0: pip reads this flag as "isolation: no"
    pip = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(fresh_python), "-c", "\n".join(program)],
        env={**there, **pip, "CAML_REPOSITORY": repository},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("caml_core ")
    own, places = fresh_python.parent.parent, json.loads(said[-1])
    assert Path(places["caml_core"]).is_relative_to(own)
    assert not Path(places["torch"]).is_relative_to(own)
    assert not Path(places["numpy"]).is_relative_to(own)
    installed = {entry.name for entry in next(own.glob("lib/python*/site-packages")).iterdir()}
    assert not {name for name in installed if name.startswith(("torch", "numpy"))}
    assert os.listdir(tmp_path) == []
