"""Widgets that recompute: driven by setting their values, as a reader's hand would."""

from __future__ import annotations

from typing import Any

import ipywidgets
import nbformat
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient

from book.execute import ThisPython
from caml_core.pictures.live import live


@pytest.fixture(autouse=True)
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAML_STATIC", raising=False)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was displayed."""
    figures: list[Any] = []
    monkeypatch.setattr("ipywidgets.widgets.interaction.display", figures.append)
    return figures


def draw(rho: float = 0.9, method: str = "dfr", seed: int = 7) -> go.Figure:
    return go.Figure(layout={"title": f"{method} at {rho:.2f}, seed {seed}"})


def titles(figures: list[Any]) -> list[str]:
    return [figure.layout.title.text for figure in figures]


def test_a_value_recomputes_the_figure(shown: list[Any]) -> None:
    view = live(draw, rho=(0.5, 1.0, 0.05), method=["erm", "dfr", "jtt"])
    assert view is not None
    slider, choice, _ = view.children
    assert isinstance(slider, ipywidgets.FloatSlider)
    assert (slider.value, choice.value) == (0.9, "dfr")
    assert (slider.min, slider.max, slider.step, slider.description) == (0.5, 1.0, 0.05, "rho")
    assert not slider.continuous_update
    assert choice.options == ("erm", "dfr", "jtt")
    slider.value = 0.6
    choice.value = "erm"
    assert titles(shown)[-2:] == ["dfr at 0.60, seed 7", "erm at 0.60, seed 7"]


def test_whole_numbers_and_widgets(shown: list[Any]) -> None:
    rho = ipywidgets.FloatText(0.75, description="strength")
    view = live(draw, seed=(0, 9, 3), rho=rho)
    assert view is not None
    assert isinstance(view.children[0], ipywidgets.IntSlider)
    assert rho.description == "strength"
    rho.value = 1.0
    assert titles(shown)[-1] == "dfr at 1.00, seed 7"


@pytest.mark.parametrize("controls", [{"rate": (0, 1, 0.1)}, {"rho": (1, 0, 0.1)}, {"rho": None}])
def test_a_wrong_control_is_told_on_the_page_already(monkeypatch: pytest.MonkeyPatch, controls: dict[str, Any]) -> None:
    monkeypatch.setenv("CAML_STATIC", "1")
    with pytest.raises((KeyError, ValueError, AttributeError)):
        live(draw, **controls)


def test_a_page_without_kernel_says_what_would_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAML_STATIC", "1")
    assert live(draw, rho=(0.5, 1.0, 0.05), method=["dfr"]) is None
    assert "choose rho, method, and the figure follows" in capsys.readouterr().out


def test_in_a_kernel_the_output_follows_the_slider() -> None:
    cells = [
        "import plotly.graph_objects as go\n"
        "from caml_core.pictures.figures import use_book_style\n"
        "from caml_core.pictures.live import live\n"
        "use_book_style()\n"
        "def draw(n):\n"
        "    return go.Figure(go.Scatter(y=[1 / (n - 3)]), {'title': f'value {n}'})\n"
        "view = live(draw, n=(0, 4, 1))\n"
        "view",
        "view.children[0].value = 3",
        "print(view.out.outputs)",
        "view.children[0].value = 4",
        "print(view.out.outputs)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_manager_class=ThisPython).execute()
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[0].outputs[0].data
    wrong, right = (notebook.cells[number].outputs[0].text for number in (2, 4))
    assert "ZeroDivisionError" in wrong
    assert "value 4" in right
    assert "ZeroDivisionError" not in right
