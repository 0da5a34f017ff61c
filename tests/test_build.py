"""The builder: what it runs, what it skips, and how it fails."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from conftest import require
from PIL import Image
from sample_book import ADDRESS, CHAPTER, make_sample_book

from book import assets, build, execute, exercises, opening, pairs, renderer, stills
from caml_core.errors import CamlError

FIGURE = {"data": [], "layout": {"title": {"text": "Two <b>groups</b>"}, "meta": {"alt": "two groups"}}}
PLACEHOLDER = "<p>Interactive figure</p>"
_HEAD, _TAIL = CHAPTER.index("import plotly"), CHAPTER.index("# %%\nprint(6 * 7)")
_DISPLAY = f"from IPython.display import display\n\ndisplay({ {renderer.MIME: FIGURE} }, raw=True)"
SHORT = f"{CHAPTER[:_HEAD]}{_DISPLAY}\n\n{CHAPTER[_TAIL:]}"
FIRST_SOLUTION, LAST_SOLUTION = re.findall(r"# <details>.*?# </details>\n", CHAPTER, re.DOTALL)


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return make_sample_book(tmp_path / "tree", SHORT)


def test_unchanged_chapter_is_not_run_again(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--only", "sample"], sample) == 0
    assert "run in" in capsys.readouterr().out
    assert build.main(["--only", "sample"], sample) == 0
    assert "not run again" in capsys.readouterr().out
    (sample / "caml_core").mkdir()
    (sample / "caml_core" / "__init__.py").write_text("x = 1\n")
    assert build.main(["--only", "sample"], sample) == 0
    assert "run in" in capsys.readouterr().out


def test_chapters_run_side_by_side_and_one_that_fails_ends_it(
    sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fails, meets = (sample / "notebooks" / name for name in ("fails.py", "meets.py"))
    fails.write_text("# %%\nassert False\n")
    meets.write_text("# %%\nimport os, time\n\ntime.sleep(1)\nprint(os.environ['OMP_NUM_THREADS'])\n")
    with pytest.raises(CamlError, match=r"fails\.py, line 2"):
        execute.execute_all(sample, [fails, meets])
    (done,) = execute.execute_all(sample, [meets])
    assert "meets: unchanged, not run again" in capsys.readouterr().out, "what ran beside it is kept"
    assert nbformat.read(done, as_version=4).cells[0].outputs[0].text == "2\n"


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
        notebook = nbformat.read(written, as_version=4)
        assert notebook.metadata.pop("book_run")["seconds"] >= 0
        contents.append(nbformat.writes(notebook))
    assert contents[0] == contents[1]
    nbformat.validate(notebook)
    assert "book_build" not in notebook.metadata
    outputs = {cell.source.splitlines()[-1]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert outputs["print(6 * 7)"][0].text == "42\n"
    markdown = next(shown for line, shown in outputs.items() if line.startswith("Markdown"))
    assert [output.output_type for output in markdown] == ["execute_result"]
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
    assert "kernel of sample.py died in code cell 5" in capsys.readouterr().err


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


def chapter_of(text: str, folder: Path) -> nbformat.NotebookNode:
    (folder / "sample.py").write_text(text)
    return execute.convert(folder / "sample.py")


def test_exercises_become_directives(tmp_path: Path) -> None:
    notebook = chapter_of(CHAPTER, tmp_path)
    exercises.to_directives(notebook, "04_sample")
    first, code, last = notebook.cells[-3:]
    assert first.source.startswith(
        "## Exercises\n\nThink first.\n\n:::::{exercise} two numbers\n:label: exercise-04-1\n\n"
    )
    assert "What is `6 * 9`?\n\n- Count in base 13.\n:::::" in first.source
    solution = ":::::{solution} exercise-04-1\n:label: solution-to-exercise-04-1\n:class: dropdown\n\nIn base 13:"
    assert solution in first.source
    assert "details" not in first.source
    assert code.source == 'print("the answer is", 42)'
    assert code.metadata.mystnb.code_prompt_show == "Solution 2, with code"
    assert last.source.endswith("Done.\n:::::\n\n## References\n\nNone.")


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("## Exercises", "## Questions", "there is no exercise"),
        ("**Exercise 2: the", "**Exercise 3: the", "exercise 3 stands where exercise 2 is due"),
        ("**Exercise 1: two\n# numbers.** What", "1. What", "solution 1 does not stand below exercise 1"),
        ("<summary>Solution 1", "<summary>Solution 2", "solution 2 does not stand below exercise 2"),
        ("<summary>Solution 1", "<summary>Solutions", "neither to an exercise nor to a solution: <details>"),
        (FIRST_SOLUTION, "", "exercise 1 has no solution"),
        (LAST_SOLUTION, "", "exercise 3 has no solution"),
        ("@title Solution 2", "@title Solution 1", "solution 1 does not stand below exercise 1"),
        (
            "# @title Solution 2",
            "# Solution 2",
            'this code cell is not a solution: # Solution 2 { display-mode: "form" }',
        ),
        ('"hide-cell", "solution"', '"hide-cell"', "this code cell is not a solution: # @title"),
        ("# **Exercise 2", "# As above.\n#\n# **Exercise 2", "neither to an exercise nor to a solution: As above."),
    ],
)
def test_exercises_that_break_the_convention(before: str, after: str, what: str, tmp_path: Path) -> None:
    assert before in CHAPTER
    notebook = chapter_of(CHAPTER.replace(before, after), tmp_path)
    with pytest.raises(CamlError) as error:
        exercises.to_directives(notebook, "sample")
    assert error.value.what.startswith('sample, part "## Exercises": ')
    assert what in error.value.what
    assert "notebooks/sample.py" in error.value.remedy


def shows(figure: object = FIGURE, still: bytes = b"") -> nbformat.NotebookNode:
    picture = {"image/png": base64.b64encode(still).decode()} if still else {}
    return nbformat.v4.new_output("display_data", {renderer.MIME: figure, **picture})


def test_a_chapter_has_one_question_and_one_opening(tmp_path: Path) -> None:
    notebook = chapter_of(CHAPTER, tmp_path)
    tagged, other = notebook.cells[2:4]
    for outputs in ([], [nbformat.v4.new_output("display_data", {"text/html": "<b>"})], [shows(), shows()]):
        tagged.outputs = outputs
        with pytest.raises(CamlError, match=r'sample: 1 cells .* "opening"; figures in their output: [02]'):
            opening.find(notebook, "sample")
    tagged.outputs = other.outputs = [shows()]
    assert opening.find(notebook, "sample")[0] == shows()
    other.metadata["tags"] = ["opening"]
    with pytest.raises(CamlError, match="sample: 2 cells"):
        opening.find(notebook, "sample")
    other.metadata["tags"] = []
    notebook.cells[0].source = "# A\n\nA **Question.** in a sentence."
    with pytest.raises(CamlError, match="asks no question"):
        opening.find(notebook, "sample")


def test_opening_picture_comes_from_the_results_or_from_the_committed_notebook(tmp_path: Path) -> None:
    notebook = chapter_of(CHAPTER, tmp_path)
    stream = io.BytesIO()
    Image.new("RGBA", (72, 40), (0, 0, 0, 0)).save(stream, "PNG")
    still = stream.getvalue()
    committed = tmp_path / "04_sample.ipynb"

    def shown(output: nbformat.NotebookNode) -> str:
        copied = chapter_of(CHAPTER, tmp_path)
        copied.cells[2].outputs = [output]
        opening.show(copied, committed, tmp_path / "stage")
        return copied.cells[0].source

    plain = notebook.cells[0].source
    assert shown(shows()) == plain
    notebook.cells[2].outputs = [shows(still=still)]
    nbformat.write(notebook, committed)
    page = shown(shows())
    committed.unlink()
    assert page == shown(shows(still=still))
    assert '**Question.** Do both groups gain?\n\n<p class="opening">\n<a href="#book-figure-1">' in page
    assert 'src="../_static/openings/04_sample.webp" alt="two groups" width="72" height="40"' in page
    assert "Two <b>groups</b></span>\n</p>\n\nSpurious" in page
    folder = tmp_path / "stage" / "book" / "static" / "openings"
    with Image.open(folder / "04_sample.webp") as picture:
        assert picture.convert("RGBA").getpixel((1, 1))[3] == 0
    with Image.open(folder / "04_sample.png") as preview:
        assert preview.size == opening.PREVIEW
        assert preview.getpixel((1, 1)) == (255, 255, 255), "previews of links have no background of their own"


def test_page_links_exercises_and_hides_solutions(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = sample / "book" / "index.md"
    earlier = ":::{exercise} an earlier one\n:label: earlier\n\nSee {numref}`exercise-sample-2`.\n:::\n"
    index.write_text(f"{index.read_text()}\n{earlier}")
    assert build.main([], sample) == 0
    assert capsys.readouterr().out.count("stills: ") == 1
    page = (sample / "_build" / "html" / "notebooks" / "sample.html").read_text("utf-8")
    assert PLACEHOLDER in page
    assert 'class="opening"' not in page
    numbers = re.findall(r'id="exercise-sample-(\d)".*?<span class="caption-number">Exercise (\d) ', page, re.DOTALL)
    assert numbers == [("1", "1"), ("2", "2"), ("3", "3")], "each page counts from 1"
    linked = (sample / "_build" / "html" / "book" / "index.html").read_text("utf-8")
    assert re.search(r'href="../notebooks/sample.html#exercise-sample-2">(<span[^>]*>)?Exercise 2<', linked)
    assert re.search(r'class="solution dropdown[^>]*>\s*<p[^>]*>Solution to<a[^>]*href="#exercise-sample-1">', page)
    folded = page[page.index("Solution 2, with code") :]
    assert folded.index("the answer is 42") < folded.index("</details>") < folded.index("exercise-sample-3")
    assert "@title" not in page
    assert 'id="exercise-content"' not in page
    download = (sample / "_build" / "html" / "_sources" / "notebooks" / "sample.ipynb").read_text("utf-8")
    assert "**Exercise 2: the same in code.**" in download
    assert "@title Solution 2" in download


def test_stills_take_the_place_of_placeholders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM")
    require(importlib.util.find_spec("playwright"), "playwright is not installed")
    require(stills.chromium(), "no browser was found: install chromium or set CHROMIUM to its path")
    layout = {"title": "Two groups", "meta": {"alt": 'Bars of 97 & 41 "%"'}, "paper_bgcolor": "rgba(0,0,0,0)"}
    figures = [go.Figure(go.Bar(y=[97, 41]), layout), go.Figure(go.Scatter(y=[1, 2]))]
    outputs = [shows(json.loads(figure.to_json())) for figure in figures]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    files = [tmp_path / "first.ipynb", tmp_path / "second.ipynb"]
    for file in files:
        nbformat.write(notebook, file)
    stills.add(files)
    assert files[0].read_bytes() == files[1].read_bytes()
    notebook = nbformat.read(files[0], as_version=4)
    seen = [renderer.still(output) for output in renderer.figures_of(notebook.cells)]
    assert [len(picture) < 15_000 for picture in seen] == [True, True]
    renderer.to_html(notebook)
    pages = [output.data["text/html"] for output in notebook.cells[0].outputs]
    first, second = (re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL) for page in pages)
    assert PLACEHOLDER not in first + second
    assert 'alt="Bars of 97 &amp; 41 &quot;%&quot;"' in first
    assert 'alt="untitled"' in second
    assert re.findall(r'<img [^>]*src="data:image/webp;base64,[^"]+"', first)
    with Image.open(io.BytesIO(seen[0])) as still:
        assert still.size == (720, 415), "the size of the figure on the page"
        pixels = np.asarray(still.convert("RGBA"))
    assert pixels[2, 2, 3] == 0, "nothing behind the figure"
    assert (pixels[..., 3] == 255).mean() > 0.1, "bars"
    monkeypatch.setattr(stills, "_draw", lambda missing: pytest.fail("drawn again"))
    stills.add(files)


def test_alt_text_is_told_and_not_shown() -> None:
    page = renderer.page({"layout": {"title": "A title", "meta": {"alt": "two bars"}}}, 1)
    assert page.count("two bars") == page.count('aria-label="two bars"') == 1
    assert ">A title</figcaption>" in page
    assert "elsewhere" in renderer.page({"layout": {"meta": ["elsewhere"]}}, 1)


def test_sync_fills_in_the_address_and_the_minutes(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sample / "notebooks" / "sample.py"
    assert build.main(["--sync"], sample) == 0
    assert f'"git+{ADDRESS}"' in source.read_text()
    assert "A sample" in source.read_text()
    assert "print(6 * 7)" in source.read_text()
    assert "expect 1 minute on" in source.read_text()
    assert pairs.sync_first_cells(sample) == []
    (sample / "book" / "minutes.toml").write_text("sample = 2\n")
    (sample / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/moved/"\n')
    assert pairs.sync_first_cells(sample) == ["sample"]
    assert '"git+https://example.org/moved"' in source.read_text()
    assert "expect 2 minutes on" in source.read_text()


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
        assets.assemble(tmp_path, tmp_path / "site", _lock(tmp_path))


def test_without_npm_pages_use_public_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    library = assets.assemble(tmp_path, tmp_path / "site", _lock(tmp_path))
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
    assert not assets.assemble(tmp_path, tmp_path / "site", _lock(tmp_path)).offline
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
    assert text.endswith(' on two cores")\n\n\n# %%\ndef f():\n    return 1\n')
    assert pairs.sync_first_cells(sample) == []
    source.write_text("# %% [markdown]\n# # A\n")
    with pytest.raises(CamlError, match="holds no code cell"):
        pairs.sync_first_cells(sample)
