"""Runs the chapters, and remembers what it ran so that an unchanged chapter is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from book import renderer
from book.dependencies import dependencies
from caml_core.errors import CamlError
from caml_core.store import atomic

CELL_TIMEOUT = 3600  # seconds; a chapter of the quick profile takes minutes, so this only ends a cell that hangs
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ThisPython(AsyncKernelManager):
    """The kernel is the Python that builds the book, whatever kernels the machine has registered."""

    python = sys.executable

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=[*command, "--log-level=ERROR"], display_name="Python 3", language="python")


def execution_key(root: Path, source: Path) -> str:
    """Digest of all that a chapter's results depend on."""
    digest = hashlib.sha256()
    for file in [*dependencies(root, source), root / "constraints.txt"]:
        if file.is_file():
            digest.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    settings = [
        os.environ.get("CAML_PROFILE", "quick"),
        f"{os.environ.get('CAML_DATA', '')} {_has_data()}",
        sys.version,
        _version("torch"),
    ]
    digest.update("\n".join(settings).encode())
    return digest.hexdigest()


def execute_all(root: Path, sources: Sequence[Path]) -> list[Path]:
    """Run chapters, two at a time where they share no GPU, each with its share of the cores; a failure ends it."""
    from caml_core.device import pick_device

    cores = os.cpu_count() or 1
    workers = min(2, cores, len(sources)) if pick_device().type == "cpu" else 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(cores // workers)
    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(execute, root, source, threads) for source in sources]
        try:
            for run in as_completed(runs):
                run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [run.result() for run in runs]


def execute(root: Path, source: Path, threads: str) -> Path:
    """Run a chapter unless ``_build/executed`` holds the results of exactly this one; returns their path."""
    target = root / "_build" / "executed" / f"{source.stem}.ipynb"
    key = execution_key(root, source)
    if target.exists() and nbformat.read(target, as_version=4).metadata.get("book_build", {}).get("key") == key:
        print(f"{source.stem}: unchanged, not run again")
        return target
    notebook = convert(source)
    start = time.perf_counter()
    _run(notebook, source, threads)
    seconds = time.perf_counter() - start
    notebook = neutral(notebook)
    notebook.metadata["book_build"] = {"key": key, "seconds": round(seconds, 1)}
    notebook.metadata["book_run"] = how_it_was_run(seconds, threads)
    save(notebook, target)
    tqdm.write(f"{source.stem}: run in {seconds:.0f} s")
    return target


def how_it_was_run(seconds: float, threads: str) -> dict[str, Any]:
    """What the foot of a chapter's page tells of its run; nothing that names a machine or a folder."""
    from caml_core.device import pick_device
    from caml_core.runs.records import provenance

    found = provenance(pick_device(), seconds)
    return {
        **{name: found[name] for name in ("commit", "date")},
        "device": re.sub(r"\d+ threads", f"{threads} threads", found["device"]),
        "seconds": round(seconds),
        "profile": os.environ.get("CAML_PROFILE", "quick"),
        "data": _has_data(),
        "versions": {name: found["versions"][name] for name in ("python", "torch", "caml_core")},
    }


def _has_data() -> bool:
    """Whether the folder of datasets that the environment names is there."""
    data = os.environ.get("CAML_DATA", "")
    return bool(data) and Path(data).expanduser().is_dir()


def kernel_environment(threads: str) -> dict[str, str]:
    """The environment of a chapter, which runs in its own folder: paths that were given from here become absolute."""
    paths = {name: os.environ[name] for name in ("CAML_DATA", "CAML_CACHE") if os.environ.get(name)}
    absolute = {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items()}
    # Pages have no kernel (see caml_core.pictures.live) and convert plotly's own data (see book.renderer).
    shown = {"CAML_STATIC": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
    return {**os.environ, **absolute, **shown, "OMP_NUM_THREADS": threads}


def convert(source: Path) -> NotebookNode:
    """The notebook of a percent script, with cell ids that do not change from one conversion to the next."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    notebook.metadata.setdefault("kernelspec", {"display_name": "Python 3", "language": "python", "name": "python3"})
    return notebook


def neutral(notebook: NotebookNode) -> NotebookNode:
    """The notebook without traces of one run: no progress bars, widget ids counted, no exact versions."""
    notebook.metadata["language_info"] = {"name": "python"}
    state = notebook.metadata.get("widgets", {}).get(_WIDGET_STATE, {}).get("state", {})
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output, state)]
            shown += [output.data[_WIDGET_VIEW]["model_id"] for output in cell.outputs if _has_view(output)]
    for output in renderer.figures_of(notebook.cells):
        output.data["text/plain"] = f"Interactive figure: {renderer.alt(output.data[renderer.MIME])}"
    used = _reachable(shown, state)
    for identity in [identity for identity in state if identity not in used]:
        del state[identity]
    if not state:
        notebook.metadata.pop("widgets", None)
    text = nbformat.writes(notebook)
    for number, identity in enumerate(state, start=1):
        text = text.replace(identity, f"{number:032x}")
    return nbformat.reads(text, as_version=4)


def _has_view(output: NotebookNode) -> bool:
    return _WIDGET_VIEW in output.get("data", {})


def _is_progress_bar(output: NotebookNode, state: dict[str, Any]) -> bool:
    """Whether an output is a bar of tqdm: present, or closed and gone from the widget state."""
    if not _has_view(output):
        return False
    model = state.get(output.data[_WIDGET_VIEW]["model_id"])
    if model is None:
        return True
    children = [state.get(child, {}) for child in _references(model["state"].get("children", []))]
    return any(child.get("model_name") == "FloatProgressModel" for child in children)


def _reachable(shown: list[str], state: dict[str, Any]) -> set[str]:
    """The widget models that the shown ones need, among them the links between them."""
    used: set[str] = set()
    new = set(shown) & set(state)
    while new:
        used |= new
        needed = {other for identity in new for other in _references(state[identity])}
        links = {
            identity
            for identity, model in state.items()
            if "Link" in model["model_name"] and used.intersection(_references(model))
        }
        new = ((needed | links) & set(state)) - used
    return used


def _references(value: Any) -> list[str]:
    return re.findall(r"IPY_MODEL_(\w+)", json.dumps(value))


def save(notebook: NotebookNode, target: Path) -> None:
    """Write a notebook; it is whole or absent."""
    with atomic(target) as part:
        part.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", "utf-8")


def _run(notebook: NotebookNode, source: Path, threads: str) -> None:
    """Execute all cells in place, with a progress line."""
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    current = 0
    with tqdm(total=len(code), desc=source.stem, unit="cell", leave=False) as bar:

        def starts(cell: NotebookNode, cell_index: int) -> None:
            nonlocal current
            if cell_index in code:
                current = code.index(cell_index) + 1
                lines = [line for line in cell.source.splitlines() if line.strip() and line[0] != "#"]
                bar.set_postfix_str(lines[0][:40] if lines else "")

        def ends(cell: NotebookNode, cell_index: int) -> None:
            bar.update(cell_index in code)

        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisPython,
            timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": str(source.parent)}},
            record_timing=False,
            store_widget_state=True,
            coalesce_streams=True,
            on_cell_start=starts,
            on_cell_complete=ends,
        )
        try:
            client.execute(env=kernel_environment(threads))
        except CellExecutionError as error:
            raise CamlError(
                what=_failure(notebook, source, error),
                expected="a chapter that runs from its first cell to its last",
                remedy=f"mend the cell, then: python book/build.py --only {source.stem}",
            ) from None
        except CellTimeoutError:
            raise CamlError(
                what=f"code cell {current} of {source.name} ran longer than {CELL_TIMEOUT} s and was stopped",
                expected="cells that take minutes at most in the quick profile",
                remedy="make the cell smaller, or read its long version from a stored result",
            ) from None
        except DeadKernelError:
            raise CamlError(
                what=f"the kernel of {source.name} died in code cell {current}",
                expected="enough memory for the chapter",
                remedy="close other programs or use CAML_PROFILE=quick; the last lines above may say more",
            ) from None


def _failure(notebook: NotebookNode, source: Path, error: CellExecutionError) -> str:
    """The failing cell, with its place in the source, and where it went wrong below that."""
    failed = next(cell for cell in notebook.cells if _has_error(cell))
    position = source.read_text("utf-8").find(failed.source)
    line = source.read_text("utf-8").count("\n", 0, position) + 1 if position >= 0 else "?"
    cell = "\n".join("    | " + text for text in failed.source.splitlines())
    message = f"{source.name}, line {line}: this cell failed\n{cell}\n    {error.ename}: {error.evalue}"
    trace = next(output for output in failed.outputs if output.output_type == "error").traceback
    deeper = [_COLOURS.sub("", frame) for frame in trace[3:-1] if frame.strip()]  # frames below the cell's own
    return f"{message}\n{deeper[-1]}".rstrip() if deeper else message


def _has_error(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
