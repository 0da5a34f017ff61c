"""The builder: what it runs, what it skips, and how it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from sample_book import ADDRESS, CHAPTER, make_sample_book

from book import assets, build, execute, pairs
from caml_core.errors import CamlError

SHORT = CHAPTER[: CHAPTER.index("# %%\nimport ipywidgets")] + "# %%\nprint(6 * 7)\n"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return make_sample_book(tmp_path / "tree", SHORT)


def test_unchanged_chapter_is_not_run_again(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--only", "sample"], sample) == 0
    assert "run in" in capsys.readouterr().out
    assert build.main(["--only", "sample"], sample) == 0
    assert "not run again" in capsys.readouterr().out
    (sample / "caml_core").mkdir()
    (sample / "caml_core" / "new.py").write_text("x = 1\n")
    assert build.main(["--only", "sample"], sample) == 0
    assert "run in" in capsys.readouterr().out


def test_key_follows_profile_and_data(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sample / "notebooks" / "sample.py"
    keys = {execute.execution_key(sample, source)}
    monkeypatch.setenv("CAML_PROFILE", "full")
    keys.add(execute.execution_key(sample, source))
    monkeypatch.setenv("CAML_DATA", str(sample))
    keys.add(execute.execution_key(sample, source))
    assert len(keys) == 3


def test_writing_twice_gives_the_same_bytes(sample: Path) -> None:
    written = sample / "notebooks" / "sample.ipynb"
    (sample / "notebooks" / "sample.py").write_text(CHAPTER)
    contents = []
    for _ in range(2):
        shutil.rmtree(sample / "_build" / "executed", ignore_errors=True)
        assert build.main(["--write", "--only", "sample"], sample) == 0
        contents.append(written.read_bytes())
    assert contents[0] == contents[1]
    notebook = nbformat.reads(contents[0].decode(), as_version=4)
    nbformat.validate(notebook)
    assert "book_build" not in notebook.metadata
    assert notebook.cells[-1].outputs[0].text == "42\n"
    assert [output.output_type for output in notebook.cells[-2].outputs] == ["execute_result"]
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    names = {model.model_name for model in state.values()}
    assert {"IntSliderModel", "StackModel", "LinkModel"} <= names
    assert "FloatProgressModel" not in names, "progress bars are no results"


def test_failing_cell_is_shown_and_leaves_nothing(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sample / "notebooks" / "sample.py"
    source.write_text(source.read_text() + "\n# %%\nrho = 0.95\nrho / 0\n")
    assert build.main([], sample) == 1
    shown = capsys.readouterr().err
    line = source.read_text().splitlines().index("rho = 0.95") + 1
    assert f"sample.py, line {line}" in shown
    assert "| rho / 0" in shown
    assert "ZeroDivisionError: float division by zero" in shown
    assert not list((sample / "_build").rglob("*.ipynb"))
    assert not (sample / "_build" / "html").exists()


def test_dead_kernel_is_reported(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sample / "notebooks" / "sample.py"
    source.write_text(source.read_text() + "\n# %%\nimport os\n\nos._exit(1)\n")
    assert build.main([], sample) == 1
    assert "kernel of sample.py died in code cell 3" in capsys.readouterr().err


def test_warning_stops_the_build_and_keeps_the_old_pages(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = sample / "_build" / "html"
    html.mkdir(parents=True)
    (html / "genindex.html").write_text("an earlier book")
    index = sample / "book" / "index.md"
    index.write_text(index.read_text() + "\n[gone](no_such_page.md)\n")
    assert build.main([], sample) == 1
    shown = capsys.readouterr().err
    assert "no_such_page" in shown
    assert "book/index.md:5" in shown
    assert "stage-" not in shown
    assert (html / "genindex.html").read_text() == "an earlier book"
    assert not list((sample / "_build").glob("stage-*"))


def test_foreign_folder_is_not_overwritten(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert build.main(["--html-dir", str(tmp_path / "mine")], sample) == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_unknown_chapter_and_missing_results(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--only", "smaple"], sample) == 1
    assert "expected: one of sample" in capsys.readouterr().err
    assert build.main(["--committed"], sample) == 1
    assert "--write" in capsys.readouterr().err


def test_large_and_unexecuted_notebooks_are_refused(tmp_path: Path) -> None:
    large = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * build.LARGEST)])
    unrun = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    for notebook, check, words in ((large, build.check_size, "bytes"), (unrun, build.check_executed, "not run")):
        nbformat.write(notebook, tmp_path / "a.ipynb")
        with pytest.raises(CamlError, match=words):
            check(tmp_path / "a.ipynb")


def test_sync_fills_in_the_address_and_keeps_the_minutes(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sample / "notebooks" / "sample.py"
    assert build.main(["--sync"], sample) == 0
    assert f'"git+{ADDRESS}"' in source.read_text()
    assert "A sample" in source.read_text()
    assert "print(6 * 7)" in source.read_text()
    source.write_text(source.read_text().replace("setup()", 'setup({"T4": 1})'))
    assert pairs.sync_first_cells(sample) == []
    (sample / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/moved/"\n')
    assert pairs.sync_first_cells(sample) == ["sample"]
    assert '"git+https://example.org/moved"' in source.read_text()
    assert 'setup({"T4": 1})' in source.read_text()


def test_check_finds_a_changed_source(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--sync", "--write", "--only", "sample"], sample) == 0
    assert build.main(["--check"], sample) == 0
    source = sample / "notebooks" / "sample.py"
    source.write_text(source.read_text().replace("6 * 7", "6 * 8"))
    capsys.readouterr()
    assert build.main(["--check"], sample) == 1
    assert "sample.ipynb is not made from the present sample.py" in capsys.readouterr().out


def test_pyproject_without_address(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sample / "pyproject.toml").write_text("[project]\n")
    assert build.main(["--sync"], sample) == 1
    assert "[project.urls]" in capsys.readouterr().err


def _lock(folder: Path, **changes: object) -> Path:
    package = {"name": "tiny", "version": "1.0.0", "integrity": "sha512-", "files": {"a.js": "package/a.js"}}
    (folder / "lock.json").write_text(json.dumps([{**package, **changes}]))
    return folder / "lock.json"


def test_wrong_checksum_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "tiny-1.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(CamlError, match="wrong checksum"):
        assets.assemble(tmp_path, _lock(tmp_path))


def test_without_npm_pages_use_public_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    library = assets.assemble(tmp_path, _lock(tmp_path))
    assert not library.offline
    assert "mathjax_path" not in library.sphinx_config()
    assert (library.site / "_static" / "vendor" / "plotly.min.js").stat().st_size > 1_000_000
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "npm is not installed" in said[0]
    assert "CDN" in said[0]


def test_unreachable_registry_is_the_same_as_no_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not assets.assemble(tmp_path, _lock(tmp_path)).offline
    assert "npm could not fetch tiny@1.0.0 (npm error code ENOTFOUND)" in capsys.readouterr().out
    assert not list((tmp_path / "packages").iterdir())


def test_only_named_files_leave_a_package(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "a.js").write_text("1")
    with tarfile.open(tmp_path / "tiny.tgz", "w:gz") as archive:
        archive.add(tmp_path / "a.js", "package/a.js")
        archive.add(tmp_path / "a.js", "package/b.js")
    site = tmp_path / "site"
    assets.extract(tmp_path / "tiny.tgz", {"deep/a.js": "package/a.js"}, site)
    assert [p.name for p in site.rglob("*") if p.is_file()] == ["a.js"]
    with pytest.raises(CamlError, match="outside the book"):
        assets.extract(tmp_path / "tiny.tgz", {"../a.js": "package/a.js"}, site)
    with pytest.raises(CamlError, match=r"holds no file 'package/c.js'"):
        assets.extract(tmp_path / "tiny.tgz", {"c.js": "package/c.js"}, site)


def test_sync_leaves_the_layout_after_the_first_cell_alone(sample: Path) -> None:
    source = sample / "notebooks" / "sample.py"
    source.write_text("# %% [markdown]\n# # A\n\n# %%\nold = 1\n\n\n# %%\ndef f():\n    return 1\n")
    assert pairs.sync_first_cells(sample) == ["sample"]
    text = source.read_text()
    assert text.startswith("# %% [markdown]\n# # A\n\n# %% tags=")
    assert text.endswith("    setup()\n\n\n# %%\ndef f():\n    return 1\n")
    assert pairs.sync_first_cells(sample) == []
    source.write_text("# %% [markdown]\n# # A\n")
    with pytest.raises(CamlError, match="holds no code cell"):
        pairs.sync_first_cells(sample)
