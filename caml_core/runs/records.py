"""Records: what a run found and everything needed to repeat it, as JSON; tables are made from nothing else."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from caml_core import store
from caml_core.device import device_name
from caml_core.errors import CamlError

Record = dict[str, Any]
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pyarrow", "caml_core")
REQUIRED = {"method", "dataset", "seed", "metrics", "config", "provenance"}


def provenance(device: torch.device, seconds: float, command: str = "python -m caml_core") -> Record:
    """Command, commit, date, device, versions and wall time (seconds) of a run that ends now."""
    now = datetime.datetime.now(datetime.UTC)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "command": command,
        "commit": git_commit(),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "end": now.isoformat(timespec="milliseconds"),
        "device": device_name(device),
        "wall_seconds": round(seconds, 2),
        "versions": {"python": platform.python_version(), **versions},
    }


@functools.cache
def git_commit() -> str:
    """Commit of the checkout that holds this package, with `+changes` when files differ; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a JSON list, one record a run, atomically."""
    store.write_text(path, json.dumps(list(records), indent=1) + "\n")


def read_records(path: Path) -> list[Record]:
    """Read a JSON list of records; `CamlError` where the file is missing or broken, or a record not whole."""
    why: Any = f"a record without one of {', '.join(sorted(REQUIRED))}"
    try:
        records: list[Record] = json.loads(Path(path).read_text(encoding="utf-8"))
        if all(record.keys() >= REQUIRED for record in records):
            return records
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = error
    expected = "the JSON list that `python -m caml_core run ... --out FILE.json` writes"
    raise CamlError(f"{path} is not a readable file of records: {why}", expected, "run that command again")


def result(name: str) -> Path | None:
    """A file of the folder `results`, in the checkout or installed with the package; None where there is none."""
    beside = Path(__file__).parents[2] / "results" / name
    if beside.exists():
        return beside
    ours = importlib.metadata.files("caml_core") or []
    return next((Path(str(f.locate())) for f in ours if f.as_posix().endswith(f"caml_core/results/{name}")), None)


def stored(name: str) -> list[Record]:
    """The committed records `results/NAME.json`."""
    file = result(f"{name}.json")
    if file is None:
        raise CamlError(f"no stored results {name!r}", "a file results/NAME.json", "check the spelling")
    return read_records(file)


def compact(record: Record) -> Record:
    """A record of a table: without the accuracy of each group, of which there can be hundreds."""
    return {**record, "metrics": {k: v for k, v in record["metrics"].items() if k not in ("groups", "empty_groups")}}


def mean_and_spread(records: Sequence[Record], metric: str) -> tuple[float, float]:
    """Mean and sample standard deviation over records of `metrics[metric]["value"]`, in percent."""
    values = [record["metrics"][metric]["value"] for record in records]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def paired_difference(records: Sequence[Record], baseline: Sequence[Record], metric: str) -> dict[str, float]:
    """Mean of the differences over the `n` seeds that both have, in points: `mean`, and `low` and `high`, the ends of
    its 95% interval by Student's t (nan for one seed)."""
    ours, other = ({r["seed"]: r["metrics"][metric]["value"] for r in side} for side in (records, baseline))
    difference = np.array([ours[seed] - other[seed] for seed in ours if seed in other])
    n, mean = len(difference), float(difference.mean())
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(difference)) if n > 1 else float("nan")
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def describe(records: Sequence[Record]) -> str:
    """One Markdown line on where stored numbers come from, printed wherever they are shown."""
    first = records[0]["provenance"]
    seeds = ", ".join(str(record["seed"]) for record in records)
    minutes = sum(record["provenance"]["wall_seconds"] for record in records) / 60
    return (
        f"seeds {seeds}; {first['date']}; commit {first['commit']}; {first['device']}; "
        f"torch {first['versions']['torch']}; {minutes:.1f} minutes in all; `{first['command']}`"
    )
