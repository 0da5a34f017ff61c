"""The comparison with peers: every line runs small and agrees, and a peer that is ahead is called ahead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import peers


def test_every_line_agrees_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--small", "--repeats", "1", "--out", str(tmp_path / "peers.json")]) == 0
    record = json.loads((tmp_path / "peers.json").read_text("utf-8"))
    assert len(record["lines"]) == capsys.readouterr().out.count("\n") - 2
    assert all(row["seconds"]["ours"] > 0 for row in record["lines"])
    by_work = {row["work"].split(",")[0]: row for row in record["lines"]}
    assert by_work["BADGE"]["agree"] == "same rows"
    assert "in float64" in by_work["HSFM"]["agree"]
    assert {"machine", "versions", "date"} <= set(record)


def test_a_peer_that_is_ahead_is_called_so_and_one_that_differs_stops_it() -> None:
    row = {"work": "w", "seconds": {"ours": 1.0, "fast": 0.9, "level": 0.97}, "missing": ["c (no c)"], "agree": "same"}
    assert peers.in_markdown(row) == "| w | 1 s | fast 0.9 s (0.9x, ahead); level 0.97 s (0.97x); c (no c) | same |"
    with pytest.raises(AssertionError, match="other rows"):
        peers.measure(peers.Line("w", lambda: [1, 2], {"other": lambda: [1, 3]}, peers.same), 1)
