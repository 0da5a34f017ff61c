"""A small book for tests: this book's own builder, configuration and look around one sample chapter."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that `book` can be imported wherever pytest was started

ADDRESS = "https://github.com/some-account/another-book"

CHAPTER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sample
#
# **Question.** Do both groups gain?
#
# Spurious strength $\\rho$.

# %%
"the place of the Colab cell"

# %% tags=["opening"]
import plotly.graph_objects as go

go.Figure(go.Bar(x=["majority", "minority"], y=[97, 41]), layout={"title": {"text": "Two <b>groups</b>"}})

# %%
frames = [go.Frame(name=str(k), data=[go.Scatter(y=[k, 2 * k, k])]) for k in range(4)]
animate = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
steps = [{"method": "animate", "label": f.name, "args": [[f.name], animate]} for f in frames]
layout = {"title": "A slider", "yaxis": {"range": [0, 8]}, "sliders": [{"steps": steps}]}
go.Figure(frames[0].data, layout, frames)

# %%
import ipywidgets

slider = ipywidgets.IntSlider(max=2, description=r"\\(\\rho\\)")
panels = ipywidgets.Stack([ipywidgets.HTML(f"panel {k}") for k in range(3)], selected_index=0)
ipywidgets.jslink((slider, "value"), (panels, "selected_index"))
ipywidgets.VBox([slider, ipywidgets.Play(max=2), panels])

# %%
from IPython.display import Markdown
from tqdm.auto import tqdm

Markdown(f"| groups | total |\\n|---|---|\\n| 4 | {sum(tqdm(range(4)))} |")

# %%
from caml_core.pictures.explore import explore

explore("hsfm_by_hand", "Edits under your hand", steps=5)

# %%
print(6 * 7)

# %% [markdown]
# ## Exercises
#
# Think first.
#
# **Exercise 1: two
# numbers.** What is `6 * 9`?
#
# - Count in base 13.
#
# <details><summary>Solution 1</summary>
#
# In base 13:
#
# ```
# 42
# ```
#
# </details>
#
# **Exercise 2: the same in code.** Compute it.

# %% tags=["hide-cell", "solution"]
# @title Solution 2 { display-mode: "form" }
print("the answer is", 42)

# %% [markdown]
# **Exercise 3: a last one.** Nothing to do.
#
# <details><summary>Solution 3</summary>
#
# Done.
#
# </details>
#
# ## References
#
# None.
"""


def make_sample_book(root: Path, chapter: str = CHAPTER) -> Path:
    """Lay out the sources of the sample book below ``root``."""
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_config.yml", root)
    (root / "book" / "index.md").write_text("# The sample book\n\n[A sample](../notebooks/sample.ipynb)\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/sample\n")
    (root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    (root / "book" / "minutes.toml").write_text("sample = 1\n")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "sample.py").write_text(chapter)
    downloaded = ROOT / "_build" / "assets" / "packages"
    if downloaded.is_dir():  # checked against the lock by every build, so they need not be fetched again
        shutil.copytree(downloaded, root / "_build" / "assets" / "packages")
    return root
