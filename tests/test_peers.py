"""The comparison with peers: every line runs small and agrees, and a peer that is ahead is called ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import peers
from caml_core.runs.records import read_records


def test_every_line_agrees_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--small", "--repeats", "1", "--out", str(tmp_path / "peers.json")]) == 0
    records = read_records(tmp_path / "peers.json")
    assert len(records) == capsys.readouterr().out.count("\n") - 2
    assert all(record["metrics"]["ours"]["value"] > 0 for record in records)
    by_work = {record["dataset"].split(",")[0]: record for record in records}
    assert by_work["BADGE"]["agree"] == "same rows"
    assert "in float64" in by_work["HSFM"]["agree"]
    assert by_work["2 short trainings on all cores"]["agree"] == "same numbers, bit for bit"
    assert peers.FLOOR in by_work["CAML's step"]["metrics"]


def test_a_peer_that_is_ahead_is_called_so_and_one_that_differs_stops_it() -> None:
    seconds = {"ours": {"value": 1.0}, "fast": {"value": 0.9}, "level": {"value": 0.97}, peers.FLOOR: {"value": 0.5}}
    row = {"dataset": "w", "metrics": seconds, "missing": ["c (no c)"], "agree": "same"}
    told = "fast 0.9 s (0.9x, ahead); level 0.97 s (0.97x); its gradients alone 0.5 s (0.5x); c (no c)"
    assert peers.in_markdown(row) == f"| w | 1 s | {told} | same |"
    with pytest.raises(AssertionError, match="other rows"):
        peers.measure(peers.Line("w", lambda: [1, 2], {"other": lambda: [1, 3]}, peers.same), 1)
