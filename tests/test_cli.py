"""The command line: records, one-line errors with exit code 2, and going on after Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from caml_core.__main__ import main, parse_options
from caml_core.errors import CamlError
from caml_core.records import describe, mean_and_spread, paired_difference, read_records, stored, write_records
from caml_core.sweep import compact

SMALL = ["--option", "n_train=60", "--option", "n_val=20", "--option", "n_test=40"]


def arguments(out: Path, *more: str) -> list[str]:
    return [
        "run",
        "erm",
        "--dataset",
        "birdscapes",
        *SMALL,
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


def test_a_record_says_everything(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert main(arguments(out, "--rho", "0.9", "--seed", "3", "4")) == 0
    first, second = read_records(out)
    assert (first["seed"], second["seed"]) == (3, 4)
    assert first["method"] == "erm"
    assert first["dataset"] == "birdscapes"
    assert {"average", "worst_group", "minority", "groups"} <= set(first["metrics"])
    assert [group["n"] for group in first["metrics"]["groups"]] == [10] * 4
    assert first["data"]["train_groups"] == {
        "landbird, land": 27, "landbird, water": 3, "waterbird, land": 3, "waterbird, water": 27,
    }  # fmt: skip
    assert first["selection"]["split"] == "validation"
    assert first["config"]["rho"] == 0.9
    assert first["config"]["option"] == {"n_train": 60, "n_val": 20, "n_test": 40}
    assert len(first["history"]) == 2
    for key in ("command", "commit", "date", "device", "wall_seconds", "versions"):
        assert first["provenance"][key]
    assert not list(tmp_path.glob("*.work"))
    assert "seeds 3, 4" in describe([first, second])
    mean, spread = mean_and_spread([first, second], "average")
    values = [record["metrics"]["average"]["value"] for record in (first, second)]
    assert mean == pytest.approx(sum(values) / 2)
    assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_head_only_and_loader_options(tmp_path: Path, small_sources: Path) -> None:
    out = tmp_path / "r.json"
    command = ["run", "erm", "--dataset", "dominoes", "--rho", "0.8", "--epochs", "3", "--out", str(out)]
    options = ["classes=3,5", "bottom=fashion_mnist", "n_train=40", "n_val=20", "n_test=20"]
    pairs = [part for option in options for part in ("--option", option)]
    assert (
        main([*command, *pairs, "--backbone", "efficientnet_lite0", "--head-only", "--data", str(small_sources)]) == 0
    )
    (record,) = read_records(out)
    assert record["config"]["option"]["classes"] == [3, 5]
    assert next(iter(record["data"]["train_groups"])) == "dress, 0"
    assert str(small_sources) not in json.dumps(record["config"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--dataset", "birds"], "unknown dataset 'birds'"),
        (["--rho", "0.3"], "rho = 0.3"),
        (["--option", "colour=1"], "no option colour"),
        (["--option", "colour"], "KEY=VALUE"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--backbone", "vgg"], "unknown backbone"),
        (["--epochs", "-1"], "epochs=-1"),
        (["--select", "test"], "select='test'"),
        (["--data", "/nowhere", "--dataset", "dominoes", "--option", "x=1"], "no option"),
        (["--option", "n_val=abc"], "--option n_val=abc; expected n_val of kind int"),
        (["--option", "size=16,32"], "--option size=(16, 32)"),
        (["--dataset", "dominoes", "--option", "classes=3"], "for example 3,5"),
        (["--seed", "0", "1", "0"], "--seed [0, 1, 0]; expected each seed once"),
        (["--queries-from", "nowhere.json"], "erm does not take --queries-from"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main(arguments(tmp_path / "r.json", *change)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("caml_core:")]) == 1
    assert "\n" not in error[error.index("caml_core:") :]
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("bad", [["run"], ["run", "erm"], ["walk"], ["run", "erm", "--seed", "x"], []])
def test_argparse_errors_are_one_line(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(bad)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [["run", "erm", "--dataset", "birdscapes"], ["sweep", "list.toml"]])
@pytest.mark.parametrize(("out", "message"), [(".", "is a folder"), ("s3://bucket/x.json", "sweep --checkpoints URL")])
def test_out_is_a_local_file(command: list[str], out: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--out", out])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody can make another")
def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(Path("/proc/nope/r.json"))) == 2
    assert "/proc/nope" in capsys.readouterr().err


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(tmp_path / "file" / "r.json")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_parse_options() -> None:
    assert parse_options(["a=3", "b=0.5", "c=1,2", "d=word", "e=true", "f=3,"]) == {
        "a": 3, "b": 0.5, "c": (1, 2), "d": "word", "e": True, "f": (3,),
    }  # fmt: skip


def test_broken_records_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    with pytest.raises(CamlError, match="not a readable"):
        read_records(file)
    file.write_text('[{"method": "erm"}]')
    with pytest.raises(CamlError, match="lack config"):
        read_records(file)
    with pytest.raises(CamlError, match="no stored results"):
        stored("nothing")


def _without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("provenance", "train_seconds")} for record in records]


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        more = arguments(out, "--epochs", "12", "--seed", "0", "1")
        return [sys.executable, "-m", "caml_core", *more]

    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    subprocess.run(command(whole), check=True, capture_output=True)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # of tests in the background, too
    child = subprocess.Popen(command(stopped), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, handler)
    checkpoint = tmp_path / "stopped.json.work" / "seed-0.safetensors"
    while child.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 130, errors
    assert "goes on from where it stopped" in errors
    assert checkpoint.exists()
    assert not stopped.exists()
    other = subprocess.run([*command(stopped), "--lr", "0.1"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "lr differ" in other.stderr
    subprocess.run(command(stopped), check=True, capture_output=True)
    assert _without_times(read_records(stopped)) == _without_times(read_records(whole))


ACTIVE = [
    *("--dataset", "spuco_mnist", "--option", "digits=drawn", "--option", "n_train=300", "--option", "n_val=50"),
    *("--option", "n_test=50", "--backbone", "small_cnn", "--device", "cpu", "--start", "60", "--query", "10"),
    *("--rounds", "2", "--epochs", "2"),
]


def test_active_learning_and_its_labels_bought_again(tmp_path: Path) -> None:
    append, caml = tmp_path / "append.json", tmp_path / "caml.json"
    assert main(["run", "append", *ACTIVE, "--acquisition", "margin", "--seed", "0", "1", "--out", str(append)]) == 0
    records = read_records(append)
    for record in records:
        assert [r["labels"] for r in record["rounds"]] == [60, 70, 80]
        assert record["config"]["acquisition"] == "margin"
        assert record["config"]["profile"] == "quick"
    again = ["--queries-from", str(append), "--order", "exact", "--alpha", "0.3", "--inner-steps", "2"]
    assert main(["run", "caml", *ACTIVE, *again, "--seed", "1", "--out", str(caml)]) == 0
    (record,) = read_records(caml)
    (last,) = record["rounds"]
    assert last["queried"] == records[1]["rounds"][2]["queried"]
    assert (record["config"]["alpha"], record["config"]["order"], record["config"]["inner_steps"]) == (0.3, "exact", 2)
    short = tmp_path / "short.json"
    write_records(short, [record, *map(compact, records)])  # the buyer's own record sells nothing
    more = [*again[2:], "--queries-from", str(short), "--seed", "1", "--out", str(caml)]
    assert main(["run", "caml", *ACTIVE, *more]) == 0
    assert read_records(caml)[0]["rounds"][0]["queried"] == last["queried"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--rho", "0.6"], "rho"),
        (["--option", "n_train=200"], "option"),
        (["--start", "50"], "start"),
        (["--query", "9"], "query"),
        (["--rounds", "1"], "rounds"),
        (["--seed", "5"], None),
    ],
)
def test_labels_of_another_pool_are_not_bought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str | None
) -> None:
    sold = {
        "rho": None,
        "option": parse_options([a for a in ACTIVE if "=" in a]),
        "start": 60,
        "query": 10,
        "rounds": 2,
    }
    rounds = [{"queried": list(range(10 * t))[-10:]} for t in range(3)]
    rest: dict[str, Any] = {"metrics": {}, "provenance": {}, "method": "append", "dataset": "spuco_mnist", "seed": 0}
    write_records(tmp_path / "append.json", [{**rest, "config": sold, "rounds": rounds}])
    from_it = ["--queries-from", str(tmp_path / "append.json"), "--out", str(tmp_path / "r.json")]
    assert main(["run", "caml", *ACTIVE, *change, *from_it]) == 2
    said = capsys.readouterr().err
    assert (f"from the same pool: other {message};" if message else "with seed 5; expected") in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--head-only", "--balance", "group"], "caml does not take --balance, --head-only"),
        (["--alpha", "-1"], "alpha=-1.0"),
        (["--acquisition", "oracle"], "acquisition='oracle'"),
        (["--query", "500"], "60 + 2 x 500 labels from a pool of 300"),
        (["--queries-from", "nothing.json"], "nothing.json is not a readable file of records"),
    ],
)
def test_active_learning_errors(tmp_path: Path, capsys: Any, more: list[str], message: str) -> None:
    assert main(["run", "caml", *ACTIVE, *more, "--out", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


FROZEN = [
    *("--dataset", "dominoes", "--option", "n_train=80", "--option", "n_val=40", "--option", "n_test=40"),
    *("--backbone", "small_cnn", "--device", "cpu"),
]


def test_hsfm_on_frozen_features(tmp_path: Path, small_sources: Path) -> None:
    out = tmp_path / "r.json"
    own = [
        "--published",
        "waterbirds",
        "--support",
        "4",
        "--hard",
        "10",
        "--edits",
        "2",
        "--epochs",
        "3",
        "--eta",
        "0.1",
    ]
    more = ["--hypergradient", "first_order", "--hard-set", "random", "--select", "worst_class", "--inner-steps", "4"]
    assert main(["run", "hsfm", *FROZEN, *own, *more, "--scaled", "--seed", "1", "2", "--out", str(out)]) == 0
    first, second = read_records(out)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert {"average", "worst_group", "adjusted", "minority"} <= set(first["metrics"])
    assert [group["n"] for group in first["metrics"]["groups"]] == [10] * 4
    used = {"support": 4, "hard": 10, "edits": 2, "epochs": 3, "eta": 0.1, "steps": 4, "select": "worst_class"}
    used |= {"hypergradient": "first_order", "hard_set": "random"}
    for settings_of in (first["settings"], first["config"]):
        assert used.items() <= settings_of.items()
    assert (first["config"]["published"], first["config"]["scaled"]) == ("waterbirds", True)
    assert first["config"]["alpha"] == 5e-5
    assert first["settings"]["alpha"] == pytest.approx(5e-5 * 2048 / 128, rel=0.1), "features are 128 wide"
    assert 0 <= first["selection"]["epoch"] <= 3
    assert "worst_class" in first["selection"]["rule"]
    assert [epoch["epoch"] for epoch in first["history"]] == [0, 1, 2, 3]
    assert main(["run", "hsfm", *FROZEN, "--hard", "5", "--epochs", "1", "--out", str(out)]) == 0
    (plain,) = read_records(out)
    assert (plain["settings"]["alpha"], plain["settings"]["support"]) == (1e-4, 16), "published for Dominoes"
    short = compact(first)
    assert "history" not in short
    assert "groups" not in short["metrics"]


def test_a_backbone_is_trained_once_for_all_methods(tmp_path: Path, small_sources: Path, cache: Path) -> None:
    out = tmp_path / "r.json"
    accuracy = {}
    for method, more in (
        ("erm-head", []),
        ("dfr", ["--train-backbone", "2"]),
        ("balanced-head", ["--train-backbone", "2"]),
    ):
        assert main(["run", method, *FROZEN, *more, "--out", str(out)]) == 0
        (record,) = read_records(out)
        assert record["config"].get("train_backbone") == (2 if more else None)
        accuracy[method] = record["metrics"]["average"]["value"]
        if method == "dfr":
            (kept,) = (cache / "erm").iterdir()
            written = kept.stat().st_mtime_ns
    assert [file.stat().st_mtime_ns for file in (cache / "erm").iterdir()] == [written], "not trained again"
    assert len(list((cache / "features").iterdir())) == 6, "features of the fresh and of the trained network"
    assert accuracy["dfr"] > 80, "stripes are easy"


def test_dfr_on_frozen_features_and_few_validation_labels(tmp_path: Path, small_sources: Path, cache: Path) -> None:
    out = tmp_path / "r.json"
    assert main(["run", "dfr", *FROZEN, "--out", str(out)]) == 0
    features = sorted((cache / "features").iterdir())
    assert len(features) == 3
    few = tmp_path / "few.json"
    assert main(["run", "dfr", *FROZEN, "--val-labels", "24", "--out", str(few)]) == 0
    assert sorted((cache / "features").iterdir()) == features, "extracted once"
    (whole,), (part,) = read_records(out), read_records(few)
    assert whole["config"]["val_labels"] is None
    assert part["config"]["val_labels"] == 24
    assert whole["selection"]["C"] in whole["config"]["c_grid"]
    assert whole["metrics"]["average"]["value"] > 80, "stripes are easy"
    assert whole["metrics"]["average"]["n"] == part["metrics"]["average"]["n"] == 40
    assert main(["run", "dfr", *FROZEN, "--val-labels", "2", "--out", str(few)]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["hsfm", "--published", "cifar"], "--published cifar"),
        (["hsfm", "--hard", "21"], "20 examples for 21 of the hard set"),
        (["hsfm", "--support", "0"], "support=0"),
        (["hsfm", "--alpha", "0"], "alpha=0.0"),
        (["hsfm", "--hard-set", "easy"], "hard_set='easy'"),
        (["hsfm", "--hypergradient", "magic"], "hypergradient='magic'"),
        (["hsfm", "--select", "average"], "select='average'"),
        (["hsfm", "--val-labels", "41"], "--val-labels 41 of 40"),
        (["hsfm", "--start", "5"], "hsfm does not take --start"),
        (["hsfm", "--head-only", "--balance", "group"], "hsfm does not take --balance, --head-only"),
        (["dfr", "--augment", "none", "--profile", "full"], "dfr does not take --augment, --profile"),
        (["afr", "--queries-from", "nowhere.json"], "afr does not take --queries-from"),
        (["dfr", "--hard-set", "loss", "--alpha", "1"], "dfr does not take --alpha, --hard-set"),
        (["gdro-head", "--epochs", "0"], "epochs=0"),
        (["erm-head", "--select", "test"], "select='test'"),
        (["caml", "--scaled"], "caml does not take --scaled"),
    ],
)
def test_head_errors(
    tmp_path: Path, small_sources: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    method, *more = change
    hard = [] if method != "hsfm" or "--hard" in more else ["--hard", "5"]
    assert main(["run", method, *FROZEN, *hard, *more, "--out", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_paired_differences() -> None:
    def runs(values: list[float], seeds: list[int]) -> list[dict[str, Any]]:
        return [{"seed": s, "metrics": {"minority": {"value": v}}} for s, v in zip(seeds, values)]

    found = paired_difference(runs([30, 41, 52], [0, 1, 2]), runs([50, 20, 40], [2, 0, 1]), "minority")
    assert found["mean"] == pytest.approx((10 + 1 + 2) / 3)
    half = 4.302653 * (((10 - 13 / 3) ** 2 + (1 - 13 / 3) ** 2 + (2 - 13 / 3) ** 2) / 2) ** 0.5 / 3**0.5
    assert (found["low"], found["high"]) == pytest.approx((13 / 3 - half, 13 / 3 + half), rel=1e-5)
    with pytest.raises(CamlError, match="the same seeds"):
        paired_difference(runs([1], [0]), runs([1], [1]), "minority")
