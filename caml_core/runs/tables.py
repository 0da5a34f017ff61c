"""Cells and tables of stored results, and the numbers that the papers print (`results/published.toml`).

A cell is made from a file of `results` or says "not run". Percent; a ± is the sample standard deviation over seeds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from caml_core.runs.records import Record, mean_and_spread, result, stored
from caml_core.runs.records import paired_difference as paired

NOT_RUN = "not run"
METRICS = {"worst_group": "WGA", "average": "average", "minority": "minority"}  # those that tables show
_FILE = result("published.toml")
_PUBLISHED: dict[str, dict[str, Any]] = tomllib.loads(_FILE.read_text("utf-8")) if _FILE else {"caml": {}, "hsfm": {}}
CAML = _PUBLISHED["caml"]  # by dataset: best `gain` over append, in points of `metric`
HSFM = _PUBLISHED["hsfm"]  # by dataset and method: WGA and average, each a list of the number and, where printed, its ±


def grouped(records: Sequence[Record], names: Sequence[str] = ()) -> dict[str, list[Record]]:
    """Records by the name of their run, those of `names` first."""
    groups: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        groups.setdefault(record.get("run") or record["method"], []).append(record)
    return groups


def by_run(name: str) -> dict[str, list[Record]]:
    """Records of `results/NAME.json` by the name of their run, empty where nothing was run."""
    return grouped(stored(name)) if result(f"{name}.json") else {}


def mean_text(records: Sequence[Record], metric: str) -> str:
    """Mean ± spread over seeds in percent, with spaces that do not break; "not run" without records."""
    if not records:
        return NOT_RUN
    if any(record["metrics"][metric]["value"] is None for record in records):
        return "none"
    value, spread = mean_and_spread(records, metric)
    return f"{value:.1f}\u00a0±\u00a0{spread:.1f}" if len(records) > 1 else f"{value:.1f}"


def gain_text(records: Sequence[Record], baseline: Sequence[Record], metric: str) -> str:
    """Difference paired over the seeds that both have, in points, its 95% interval (from three on) and n."""
    if {r["seed"] for r in records}.isdisjoint(r["seed"] for r in baseline):
        return NOT_RUN
    d = paired(records, baseline, metric)
    interval = f" [{d['low']:+.1f}, {d['high']:+.1f}]" if d["n"] > 2 else ""
    return f"{d['mean']:+.1f}{interval}, n\u00a0=\u00a0{d['n']}".replace("-", "−")


def scores(record: Record) -> str:
    """`WGA 71.2, average 80.4, minority none (worst: gull, forest)`, percent."""
    values = ", ".join(f"{short} {mean_text([record], metric)}" for metric, short in METRICS.items())
    return f"{values} (worst: {record['metrics']['worst_group'].get('name', 'none')})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def summary(records: Sequence[Record], names: Sequence[str] = ()) -> str:
    """A row for each run, mean ± spread over its seeds; `names` without a record say "not run"."""
    rows = []
    for name, found in grouped(records, names).items():
        where = [record["provenance"] for record in found]
        days, devices, commits = (sorted({one[key] for one in where}) for key in ("date", "device", "commit"))
        dates = " to ".join(sorted({day[:10] for day in (*days[:1], *days[-1:])}))
        means = (mean_text(found, metric) for metric in METRICS)
        rows.append([name, *means, str(len(found) or ""), ", ".join(devices), dates, ", ".join(commits)])
    table = markdown(("run", *METRICS.values(), "n", "device", "date", "commit"), rows)
    return f"{table}\n\n{len(records)} runs, {sum(hours(records).values()):.2f} hours of computing in all"


def hours(records: Sequence[Record]) -> dict[str, float]:
    """Core-hours ("CPU") and GPU-hours ("GPU"): a run with a share of a GPU used that share of it."""
    found = {"CPU": 0.0, "GPU": 0.0}
    for where in (record["provenance"] for record in records):
        kind = "CPU" if where["device"].startswith("cpu") else "GPU"
        found[kind] += where["wall_seconds"] / 3600 * (where.get("gpus") or 1)
    return found


def names() -> list[str]:
    """Every list of runs, `results/tables/NAME.toml`."""
    lists = result("tables")
    return sorted(file.stem for file in (lists.glob("*.toml") if lists else []))
