"""The table of "Which method when": what is known, what to do with it, and what it gave in the book's runs."""

from __future__ import annotations

from caml_core.runs.records import mean_and_spread
from caml_core.runs.tables import by_run, gain_text, markdown, mean_text

WORLDS = {  # title: (list of the heads, list of the comparators, what its names begin with there)
    "Dominoes, network trained on it": ("authors", "", ""),
    "Dominoes, frozen ImageNet": ("heads", "comparators", "dominoes, "),
    "Dominoes, small ResNet": ("heads_resnet", "comparators", "resnet, "),
    "Birdscapes, frozen ImageNet": ("heads_birdscapes", "comparators", "birdscapes, "),
}
OWN = {"authors": "hsfm, authors", "heads_birdscapes": "hsfm, scaled", "heads_resnet": "hsfm, scaled"}  # HSFM there
SITUATIONS = (
    ("labels only", "leave alone: the ERM head", "erm-head"),
    ("labels, and a fair validation set", "HSFM, epoch by inferred groups", "hsfm, groups inferred"),
    ("the same", "EVaLS, by inferred groups", "evals, groups inferred"),
    ("the same", "DFR, by inferred groups", "dfr, groups inferred"),
    ("its groups, too", "HSFM", "hsfm"),
    ("the same", "DFR", "dfr"),
    ("the same", "SELF", "self"),
    ("groups of the training set", "GroupDRO head", "gdro-head"),
    ("the same", "balanced head", "balanced-head"),
)  # fmt: skip


def table() -> str:
    """Worst group / average, and the gain of the worst group over the ERM head, in Markdown."""
    rows = []
    for known, do, name in SITUATIONS:
        cells = []
        for heads, more, start in WORLDS.values():
            runs, extra = by_run(heads), by_run(more) if more else {}
            own = OWN.get(heads, name) if name == "hsfm" else name
            mine = runs.get(own) or runs.get(f"trained, {own}") or extra.get(start + name, [])
            text = mean_text(mine, "worst_group")
            if mine:
                text += f" / {mean_and_spread(mine, 'average')[0]:.1f}"
            if mine and name != "erm-head":
                text += f"<br>{gain_text(mine, runs['erm-head'], 'worst_group').rpartition(', n')[0]}"
            cells.append(text)
        rows.append([known, do, *cells])
    return markdown(["what you know", "what to do", *WORLDS], rows)
