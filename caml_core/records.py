"""Records: what a run found and everything needed to repeat it, as JSON; tables are made from nothing else."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caml_core import store
from caml_core.device import device_name
from caml_core.errors import CamlError

PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pyarrow", "caml_core")
REQUIRED = ("method", "dataset", "seed", "metrics", "config", "provenance")


def provenance(device: torch.device, seconds: float, command: str | None = None) -> dict[str, Any]:
    """Command, commit, date, device, versions and wall time (seconds) of a run."""
    return {
        "command": command or "python -m caml_core " + " ".join(sys.argv[1:]),
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(device),
        "wall_seconds": round(seconds, 2),
        "versions": {"python": platform.python_version(), **_versions()},
    }


@functools.cache
def git_commit() -> str:
    """Commit of the checkout that holds this package, with `+changes` when files differ; "unknown" outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".").strip()
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a JSON list, one record a run, atomically."""
    store.write_text(path, json.dumps(list(records), indent=1) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of records.

    Raises:
        CamlError: the file is missing, is not JSON, or a record lacks one of `REQUIRED`.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = sorted({key for record in records for key in REQUIRED if key not in record})
    except (OSError, ValueError, TypeError) as error:
        raise CamlError(
            what=f"{path} is not a readable file of records: {error}",
            expected="the JSON list that `python -m caml_core run ... --out FILE.json` writes",
            remedy="run that command again",
        ) from error
    if missing:
        raise CamlError(
            what=f"records of {path} lack {', '.join(missing)}",
            expected="records with " + ", ".join(REQUIRED),
            remedy="run the command that made them again",
        )
    return records


def stored(name: str) -> list[dict[str, Any]]:
    """The committed records `results/NAME.json`, from the checkout or from the installed package."""
    beside = Path(__file__).parent.parent / "results" / f"{name}.json"
    if beside.exists():
        return read_records(beside)
    for file in importlib.metadata.files("caml_core") or []:
        if file.name == f"{name}.json":
            return read_records(Path(str(file.locate())))
    raise CamlError(
        what=f"no stored results {name!r}",
        expected="a file results/NAME.json in the repository",
        remedy="check the spelling",
    )


def mean_and_spread(records: Sequence[dict[str, Any]], metric: str) -> tuple[float, float]:
    """Mean and sample standard deviation over records of `metrics[metric]["value"]`, in percent."""
    values = [record["metrics"][metric]["value"] for record in records]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def paired_difference(
    records: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], metric: str
) -> dict[str, float]:
    """Mean of the differences seed by seed, in points, with the 95% interval of Student's t.

    Returns:
        `mean`, `low`, `high`, `n` (seeds); the interval is nan with fewer than two seeds.

    Raises:
        CamlError: the two do not have the same seeds.
    """
    values = [{r["seed"]: r["metrics"][metric]["value"] for r in side} for side in (records, baseline)]
    if values[0].keys() != values[1].keys() or not values[0]:
        raise CamlError(
            what=f"seeds {sorted(values[0])} against {sorted(values[1])}",
            expected="the same seeds on both sides",
            remedy="run the missing seeds, or compare the common ones",
        )
    difference = np.array([values[0][seed] - values[1][seed] for seed in values[0]])
    n, mean = len(difference), float(difference.mean())
    if n < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan"), "n": n}
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def describe(records: Sequence[dict[str, Any]]) -> str:
    """One Markdown line on where stored numbers come from, printed wherever they are shown."""
    first = records[0]["provenance"]
    seeds = ", ".join(str(record["seed"]) for record in records)
    minutes = sum(record["provenance"]["wall_seconds"] for record in records) / 60
    return (
        f"seeds {seeds}; {first['date']}; commit {first['commit']}; {first['device']}; "
        f"torch {first['versions']['torch']}; {minutes:.1f} minutes in all; `{first['command']}`"
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
