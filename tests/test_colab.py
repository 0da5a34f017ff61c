"""Colab, simulated: a notebook alone in an empty folder, with everything installed but the book's package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import nbformat
import pytest
from conftest import require
from nbclient import NotebookClient
from sample_book import ROOT

from book.execute import ThisPython
from caml_core import colab
from caml_core.errors import CamlError


def test_silent_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colab, "_pip_install", lambda requirements: pytest.fail("nothing is to be installed"))
    assert not colab.on_colab()
    colab.setup({"T4": 1})
    assert capsys.readouterr().out == ""


def test_only_what_is_missing_is_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(colab, "_is_installed", lambda name: name in {"tqdm", "plotly"})
    monkeypatch.setattr(colab.metadata, "requires", lambda _: REQUIREMENTS)
    monkeypatch.setattr(colab, "_pip_install", wanted.extend)
    colab.setup({"Colab CPU": 4, "T4": 1})
    assert wanted == ["timm>=1.0", 'safetensors>=0.4; python_version >= "3.11"']
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert "Colab CPU about 4 minutes, T4 about 1 minute" in printed


REQUIREMENTS = [
    "torch>=2.11",
    "torchvision",
    "numpy>=2.0",
    "tqdm>=4.66",
    "plotly>=5.24",
    "timm>=1.0",
    'safetensors>=0.4; python_version >= "3.11"',
    'jupyter-book<2,>=1.0.4; extra == "book"',
]


def test_pip_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for timm\n")
    monkeypatch.setattr(colab.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(CamlError, match="No matching distribution found for timm"):
        colab._pip_install(["timm>=1.0"])


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


def test_quickstart_runs_on_simulated_colab(
    fresh_python: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(code: str) -> str:
        done = subprocess.run([str(fresh_python), "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.strip()

    assert ask("import sys; print('google.colab' in sys.modules)") == "True"
    missing = "import importlib.util as u; print(u.find_spec('caml_core'))"
    assert ask(missing) == "None", "the package must not be there before the first cell"

    class FreshPython(ThisPython):
        python = str(fresh_python)

    for name in ("PYTHONPATH", "CAML_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAML_REPOSITORY", repository)
    monkeypatch.setenv("CAML_PROFILE", "quick")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads this flag as "isolation: no"
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing else may be fetched
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")

    alone = tmp_path / "content"
    alone.mkdir()
    shutil.copy(ROOT / "notebooks" / "00_quickstart.ipynb", alone)
    notebook = nbformat.read(alone / "00_quickstart.ipynb", as_version=4)
    NotebookClient(
        notebook,
        kernel_manager_class=FreshPython,
        resources={"metadata": {"path": str(alone)}},
        timeout=1200,
        record_timing=False,
    ).execute()

    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    said = "".join(output.get("text", "") for output in first.outputs)
    assert "caml_core" in said
    assert "torch" in said

    places = json.loads(
        ask(
            "import json, caml_core, numpy, torch;"
            "print(json.dumps({m.__name__: m.__file__ for m in (caml_core, numpy, torch)}))"
        )
    )
    own = fresh_python.parent.parent
    assert Path(places["caml_core"]).is_relative_to(own)
    assert not Path(places["torch"]).is_relative_to(own)
    assert not Path(places["numpy"]).is_relative_to(own)
    installed = {entry.name for entry in next(own.glob("lib/python*/site-packages")).iterdir()}
    assert not {name for name in installed if name.startswith(("torch", "numpy"))}
    assert os.listdir(alone) == ["00_quickstart.ipynb"], "a notebook leaves nothing beside itself"
