"""Colab, simulated: a notebook alone in an empty folder, with everything installed but the book's package."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import require, toy_split
from nbclient import NotebookClient
from sample_book import ROOT

from book import pairs
from book.execute import ThisPython
from caml_core import colab, store
from caml_core.backbones import backbone
from caml_core.errors import CamlError
from caml_core.features import extract_features


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


def test_versions_device_and_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert re.fullmatch(r"torch \S+ on the CPU with \d+ GB of memory: no GPU here, .*", colab._torch_line())
    t4 = types.SimpleNamespace(name="Tesla T4", total_memory=15_828_320_256)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda: t4)
    assert re.fullmatch(r"torch \S+ on Tesla T4 with 16 GB, \d+ GB of main memory", colab._torch_line())


def test_a_new_session_goes_on_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first session extracts features; the second, on an empty disk, finds them by CAML_RESTORE alone."""
    split, network = toy_split(16), backbone("small_cnn", 2)
    lasting = tmp_path / "lasting"
    lasting.mkdir()
    monkeypatch.setenv("CAML_CACHE", str(tmp_path / "first"))
    assert colab.restore(lasting) == lasting == store.cache_dir()
    z = extract_features(network, split, torch.device("cpu")).x
    assert not (tmp_path / "first").exists()

    monkeypatch.setenv("CAML_CACHE", str(tmp_path / "second"))
    monkeypatch.setenv("CAML_RESTORE", str(lasting))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(colab, "missing_requirements", lambda package: [])
    capsys.readouterr()
    colab.setup()
    assert f"The cache is {lasting}: 1 files, 0.0 GB" in capsys.readouterr().out
    monkeypatch.setattr(network, "features", lambda x: pytest.fail("computed again"))
    assert torch.equal(extract_features(network, split, torch.device("cpu")).x, z)


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ["CAML_CACHE"]
    with pytest.raises(CamlError, match="there is no folder"):
        colab.restore(tmp_path / "missing")
    monkeypatch.setattr(colab.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=4e8))
    with pytest.raises(CamlError, match=r"has 0\.4 GB free"):
        colab.restore(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(store.tempfile, "mkstemp", lambda **options: (_ for _ in ()).throw(OSError(errno.EROFS, "x")))
    with pytest.raises(CamlError, match="cannot write"):
        colab.restore(tmp_path)
    assert os.environ["CAML_CACHE"] == before


def test_drive_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAML_CACHE", "")
    with pytest.raises(CamlError, match="Google Drive is not mounted"):
        colab.restore("drive")

    def refused(folder: str) -> None:
        raise ValueError("mount failed")

    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=refused)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(colab, "DRIVE", tmp_path)
    with pytest.raises(CamlError, match="ValueError: mount failed"):
        colab.restore("drive")
    module.drive.mount = lambda folder: (Path(folder) / "MyDrive").mkdir()  # type: ignore[attr-defined]
    assert colab.restore("drive") == tmp_path / "MyDrive" / "caml_core" == store.cache_dir()


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


@pytest.fixture
def on_colab(fresh_python: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[ThisPython]:
    """A kernel in that environment, with no way to fetch anything but the package."""

    class FreshPython(ThisPython):
        python = str(fresh_python)

    for name in ("PYTHONPATH", "CAML_DATA", "CAML_STATIC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAML_REPOSITORY", repository)
    monkeypatch.setenv("CAML_PROFILE", "quick")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads this flag as "isolation: no"
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing else may be fetched
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return FreshPython


def run(notebook: nbformat.NotebookNode, kernel: type[ThisPython], folder: Path) -> None:
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, kernel_manager_class=kernel, resources=resources, timeout=1200, record_timing=False
    )
    client.execute()


def ask(python: Path, code: str, folder: Path) -> str:
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True, cwd=folder
    ).stdout.strip()


def test_quickstart_runs_on_simulated_colab(fresh_python: Path, on_colab: type[ThisPython], tmp_path: Path) -> None:
    assert ask(fresh_python, "import sys; print('google.colab' in sys.modules)", tmp_path) == "True"
    missing = "import importlib.util as u; print(u.find_spec('caml_core'))"
    assert ask(fresh_python, missing, tmp_path) == "None", "the package must not be there before the first cell"

    alone = tmp_path / "content"
    alone.mkdir()
    shutil.copy(ROOT / "notebooks" / "00_quickstart.ipynb", alone)
    notebook = nbformat.read(alone / "00_quickstart.ipynb", as_version=4)
    run(notebook, on_colab, alone)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    said = "".join(output.get("text", "") for output in first.outputs)
    assert "caml_core" in said
    assert "torch" in said
    assert " of m" in said, "memory"
    nothing_replaced(fresh_python, tmp_path)
    assert os.listdir(alone) == ["00_quickstart.ipynb"], "a notebook leaves nothing beside itself"


def nothing_replaced(python: Path, folder: Path) -> None:
    """Whether the environment got the package, and kept its torch and numpy."""
    show = "print(json.dumps({m.__name__: m.__file__ for m in (caml_core, numpy, torch)}))"
    places = json.loads(ask(python, f"import json, caml_core, numpy, torch; {show}", folder))
    own = python.parent.parent
    assert Path(places["caml_core"]).is_relative_to(own)
    assert not Path(places["torch"]).is_relative_to(own)
    assert not Path(places["numpy"]).is_relative_to(own)
    installed = {entry.name for entry in next(own.glob("lib/python*/site-packages")).iterdir()}
    assert not {name for name in installed if name.startswith(("torch", "numpy"))}


def imports(source: str) -> list[str]:
    """Every import statement of a notebook, also those inside functions."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_every_notebook_starts_on_simulated_colab(
    fresh_python: Path, on_colab: type[ThisPython], tmp_path: Path
) -> None:
    """The first cell and all imports of each chapter, alone in an empty folder.

    One kernel serves them all; `%reset` takes away the names that the chapter before has imported.
    """
    chapters = pairs.sources(ROOT)
    assert len({pairs.first_cell(chapter)[0] for chapter in chapters}) == 1, "then one installation stands for all"
    code = pairs.first_cell(chapters[0])[0].split("\n", 1)[1]
    cells = [code]
    for chapter in chapters:
        lines = imports(chapter.read_text("utf-8"))
        assert any("caml_core" in line for line in lines), chapter.name
        cells += ["%reset -f -s", "\n".join([f"# {chapter.name}", *lines])]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    alone = tmp_path / "content"
    alone.mkdir()
    run(notebook, on_colab, alone)
    nothing_replaced(fresh_python, tmp_path)
    assert os.listdir(alone) == []
