"""Tables that set our records beside published numbers (`results/published.toml`): `python -m caml_core tables`.

A cell is made from a file of `results` or says "not run". Percent; a ± is the sample standard deviation over seeds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime

from caml_core.errors import CamlError
from caml_core.runs.records import METRICS, Record, mean_and_spread, paired_difference, result, stored

Cell = tuple[float, float | None]  # a number and its ±, where one is printed
NOT_RUN = "not run"


def _published() -> tuple[dict[str, tuple[float, str]], dict[str, dict[str, tuple[Cell, ...]]]]:
    file = result("published.toml")
    table = tomllib.loads(file.read_text("utf-8")) if file else {"caml": {}, "hsfm": {}}
    hsfm = {
        dataset: {name: tuple((cell[0], cell[1] if cell[1:] else None) for cell in cells) for name, cells in of.items()}
        for dataset, of in table["hsfm"].items()
    }
    return {dataset: (found["gain"], found["metric"]) for dataset, found in table["caml"].items()}, hsfm


CAML, HSFM = _published()  # by dataset: best gain and its metric; by method: WGA and average


def by_run(name: str) -> dict[str, list[Record]]:
    """Records of `results/NAME.json` by the name of their run, empty where nothing was run."""
    groups: dict[str, list[Record]] = {}
    for record in stored(name) if result(f"{name}.json") else []:
        groups.setdefault(record.get("run") or record["method"], []).append(record)
    return groups


def mean_text(records: Sequence[Record], metric: str) -> str:
    """Mean ± spread over seeds in percent, with spaces that do not break; "not run" without records."""
    if not records:
        return NOT_RUN
    if any(record["metrics"][metric]["value"] is None for record in records):
        return "none"
    return with_spread(*mean_and_spread(records, metric))


def with_spread(value: float, spread: float | None) -> str:
    """`90.4 ± 0.3`; without a spread (one seed, or none published) the value alone."""
    return f"{value:.1f}" if spread is None or spread != spread else f"{value:.1f}\u00a0±\u00a0{spread:.1f}"


def paired(records: Sequence[Record], baseline: Sequence[Record], metric: str) -> dict[str, float]:
    """`caml_core.runs.records.paired_difference` over the seeds that both sides have."""
    common = {r["seed"] for r in records} & {r["seed"] for r in baseline}
    sides = [[r for r in side if r["seed"] in common] for side in (records, baseline)]
    return paired_difference(sides[0], sides[1], metric)


def gain_text(records: Sequence[Record], baseline: Sequence[Record], metric: str) -> str:
    """Difference paired over the seeds that both have, with its 95% interval and n, in points."""
    if not {r["seed"] for r in records} & {r["seed"] for r in baseline}:
        return NOT_RUN
    d = paired(records, baseline, metric)
    interval = f" [{d['low']:+.1f}, {d['high']:+.1f}]" if d["n"] > 1 else ""
    return f"{d['mean']:+.1f}{interval}, n = {d['n']}"


def origin(records: Sequence[Record]) -> list[str]:
    """Cells on where numbers come from: n, device, date, commit; several values are joined."""
    if not records:
        return [""] * 4
    found = [record["provenance"] for record in records]
    days = sorted({one["date"][:10] for one in found})
    unique = [sorted({one[key] for one in found}) for key in ("device", "commit")]
    return [str(len(records)), ", ".join(unique[0]), " to ".join(days[:: max(1, len(days) - 1)]), ", ".join(unique[1])]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def caml_table() -> str:
    """The gains that the CAML paper reports, beside ours: CAML on the labels that append bought, paired by seed."""
    rows = []
    for dataset, (points, metric) in CAML.items():
        runs = by_run("dominoes10") if dataset == "Dominoes" else {}
        bought = [name.removeprefix("caml-") for name in runs if name.startswith("caml-")] or [""]
        for acquisition in bought:
            caml, append = (runs.get(f"{method}-{acquisition}", []) for method in ("caml", "append"))
            name = f"{dataset}, {acquisition}" if acquisition else dataset
            rows.append([name, METRICS[metric], f"+{points}", gain_text(caml, append, metric), *origin(caml)])
    digits = by_run("digits")
    caml, append = digits.get("caml", []), digits.get("append", [])
    found = gain_text(caml, append, "minority")
    rows.append(["ten digits on ten colours", METRICS["minority"], "not in the paper", found, *origin(caml)])
    header = ("", "metric", "paper: best gain over append", "ours", "runs", "device", "date", "commit")
    return markdown(header, rows)


def hsfm_table() -> str:
    """The table of the HSFM paper, beside ours on Dominoes: on frozen ImageNet features, and on a ResNet of our own."""
    ours = {"heads": "Lite0, frozen ImageNet features", "heads_resnet": "small ResNet trained on Dominoes"}
    rows = []
    for dataset, methods in HSFM.items():
        for method in ["erm-head", "dfr", "dac", "ddb", "hsfm"]:
            published = [with_spread(*cell) for cell in methods[method]] if method in methods else ["not reported", ""]
            for source, backbone in ours.items() if dataset == "Dominoes" else {"": ""}.items():
                records = by_run(source).get(method, []) if source else []
                found = [mean_text(records, metric) for metric in ("worst_group", "average")]
                rows.append([f"{dataset}, {method}", *published, *found, backbone, *origin(records)])
    header = ("", "paper: WGA", "paper: average", "WGA", "average", "backbone", "n", "device", "date", "commit")
    return markdown(header, rows)


def summary(records: Sequence[Record], names: Sequence[str] = ()) -> str:
    """A row for each run, mean ± spread over its seeds; `names` without a record say "not run"."""
    groups: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        groups.setdefault(record.get("run") or record["method"], []).append(record)
    rows = [[name, *(mean_text(found, metric) for metric in METRICS), *origin(found)] for name, found in groups.items()]
    table = markdown(("run", *METRICS.values(), "n", "device", "date", "commit"), rows)
    return f"{table}\n\n{len(records)} runs, {sum(hours(records).values()):.2f} hours of computing in all"


def hours(records: Sequence[Record]) -> dict[str, float]:
    """Core-hours ("CPU") and GPU-hours ("GPU"): a run with a share of a GPU used that share of it."""
    found = {"CPU": 0.0, "GPU": 0.0}
    for where in (record["provenance"] for record in records):
        kind = "CPU" if where["device"].startswith("cpu") else "GPU"
        found[kind] += where["wall_seconds"] / 3600 * (where.get("gpus") or 1)
    return found


def runs_an_hour(records: Sequence[Record]) -> float:
    """From the start of the first run of a sweep to the end of the last."""
    times = [[datetime.fromisoformat(r["provenance"][key]) for r in records] for key in ("start", "end")]
    return 3600 * len(records) / (max(times[1]) - min(times[0])).total_seconds()


def stored_table(name: str) -> str:
    """The records of `results/NAME.json`, with what its list `results/tables/NAME.toml` still wants."""
    from caml_core.runs.lists import expand

    listed = result(f"tables/{name}.toml")
    runs = expand(listed) if listed else []
    records = [record for group in by_run(name).values() for record in group]
    if not runs and not records:
        known = f"one of {', '.join(TABLES)}, or the name of a file in results"
        raise CamlError(f"no table {name!r}", known, "check the spelling")
    missing = len(runs) - len(records)
    rest = f"; {missing} of {len(runs)} not run" if runs and missing > 0 else ""
    return summary(records, names=list(dict.fromkeys(run.name for run in runs))) + rest


TABLES: dict[str, Callable[[], str]] = {"caml": caml_table, "hsfm": hsfm_table}


def table(name: str) -> str:
    """A table by its name, as Markdown."""
    return TABLES[name]() if name in TABLES else stored_table(name)


def names() -> list[str]:
    """Published tables, then every list of runs."""
    lists = result("tables")
    return [*TABLES, *sorted(file.stem for file in (lists.glob("*.toml") if lists else []))]
