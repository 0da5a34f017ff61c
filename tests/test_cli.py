"""The command line: records, one-line errors with exit code 2, and going on after Ctrl-C."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import own_pictures

from caml_core.__main__ import main
from caml_core.errors import CamlError
from caml_core.runs.commands import parse_run
from caml_core.runs.identity import METHODS, identity
from caml_core.runs.records import describe, mean_and_spread, paired_difference, read_records, stored, write_records
from caml_core.runs.run import run
from caml_core.runs.settings import KINDS, Data, build, config, words
from caml_core.training import Erm

SMALL = ["--option", "n_train=60", "--option", "n_val=20", "--option", "n_test=40"]


def arguments(out: Path, *more: str) -> list[str]:
    start = ["run", "erm", "--dataset", "birdscapes", *SMALL, "--epochs", "2", "--device", "cpu"]
    return [*start, "--out", str(out), *more]


# ---- settings -----------------------------------------------------------------------------------------------


def test_python_a_list_and_the_command_line_build_the_same() -> None:
    given = {"method": "hsfm", "dataset": "dominoes", "option": {"classes": [3, 5]}, "inner_steps": 4, "scaled": True}
    method, data = build(given)
    assert (method, data) == (
        KINDS["hsfm"](method="hsfm", steps=4, scaled=True),  # type: ignore[call-arg]
        Data(dataset="dominoes", option={"classes": [3, 5]}),
    )
    flags = [
        *("--dataset", "dominoes", "--option", "classes=[3, 5]", "--inner-steps", "4", "--scaled"),
        "--out",
        "x.json",
    ]
    assert parse_run(["hsfm", *flags])[:2] == (method, data)
    assert words(method, data) == ["run", "hsfm", *flags[:7]]


@pytest.mark.parametrize("method", METHODS)
def test_the_command_in_a_record_builds_its_settings(method: str) -> None:
    more = {"profile": "full"} if method in ("erm", "caml") else {"published": "celeba"} if method == "hsfm" else {}
    built = build({"method": method, "dataset": "spuco_mnist", "rho": 0.9, "backbone": "mlp", **more})
    assert parse_run([*words(*built)[1:], "--out", "x.json"])[:2] == built
    assert config(*build(config(*built))) == config(*built)
    assert pickle.loads(pickle.dumps(built)) == built, "workers get the same"
    if method in ("caml", "hsfm"):
        theirs = build({"method": method, "dataset": "spuco_mnist", "protocol": "authors", "any_epoch": False})
        assert parse_run([*words(*theirs)[1:], "--out", "x.json"])[:2] == theirs
        assert (getattr(theirs[0], "short_batches", True), theirs[0].epochs) == (True, 100 if method == "caml" else 40)  # type: ignore[attr-defined]
    if full := {"erm": 50, "caml": 100, "hsfm": 20}.get(method):
        assert getattr(built[0], "epochs") == full  # noqa: B009


def test_options_are_json_or_text() -> None:
    def option(dataset: str, *given: str) -> dict[str, Any]:
        pairs = [word for pair in given for word in ("--option", pair)]
        return parse_run(["erm", "--dataset", dataset, *pairs, "--out", "x.json"])[1].option

    assert option("folder", "path=a,b", "progress=false") == {"path": "a,b", "progress": False}
    assert option("folder", 'path="2025"') == {"path": "2025"}
    assert option("dominoes", "classes=[3]", "n_val=20") == {"classes": [3], "n_val": 20}


def test_run_in_python_and_its_settings() -> None:
    method, data = build(
        {"method": "erm", "dataset": "birdscapes", "epochs": 1, "option": {"n_train": 60, "n_val": 20}}
    )
    assert isinstance(method, Erm)
    record = run(method, data, 3)
    assert (record["method"], record["seed"], record["config"]["epochs"]) == ("erm", 3, 1)
    said = "python -m caml_core run erm --dataset birdscapes --option n_train=60 --option n_val=20 --epochs 1 --seed 3"
    assert record["provenance"]["command"] == f"{said} --out FILE.json"


# ---- one run ------------------------------------------------------------------------------------------------


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
    assert (first["revision"], len(first["identity"]), len(first["data"]["content"])) == (1, 16, 16)
    assert first["identity"] != second["identity"]
    for key in ("command", "commit", "date", "device", "wall_seconds", "versions"):
        assert first["provenance"][key]
    assert not list(tmp_path.glob("*.work"))
    assert "seeds 3, 4" in describe([first, second])
    mean, spread = mean_and_spread([first, second], "average")
    values = [record["metrics"]["average"]["value"] for record in (first, second)]
    assert mean == pytest.approx(sum(values) / 2)
    assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_head_only_and_loader_options(tmp_path: Path, small_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.json"
    monkeypatch.setenv("CAML_DATA", str(small_sources))
    command = ["run", "erm", "--dataset", "dominoes", "--rho", "0.8", "--epochs", "3", "--out", str(out)]
    options = ["classes=[3,5]", "bottom=fashion_mnist", "n_train=40", "n_val=20", "n_test=20"]
    pairs = [part for option in options for part in ("--option", option)]
    assert main([*command, *pairs, "--backbone", "efficientnet_lite0", "--head-only"]) == 0
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
        (["--option", "colour"], "invalid pair value: 'colour'"),
        (["--seed", "-1"], "greater than or equal to 0"),
        (["--seed", "x"], "--seed"),
        (["--alpha", "1"], "unrecognized arguments: --alpha 1"),
        (["--dataset", "folder"], "no option n_test"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--backbone", "vgg"], "unknown backbone"),
        (["--epochs", "-1"], "epochs=-1"),
        (["--select", "test"], "select='test'"),
        (["--dataset", "dominoes", "--option", "x=1"], "no option"),
        (["--option", "n_val=abc"], "n_val='abc'"),
        (["--option", "size=16,32"], "size='16,32'"),
        (["--dataset", "dominoes", "--option", "classes=x"], "classes"),
        (["--queries-from", "nowhere.json"], "unrecognized arguments: --queries-from"),
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


@pytest.mark.parametrize(
    "bad", [["run"], ["run", "erm"], ["run", "walk"], ["walk"], [], ["sweep"], ["data", "burn"], ["tables", "a", "b"]]
)
def test_what_is_missing_or_unknown_is_one_line(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bad) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_is_there_at_once() -> None:
    code = "import sys; from caml_core.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for flags in (["--help"], ["run", "--help"]):
        said = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert "hsfm" in said.stdout
        assert "waterbirds" in said.stdout


@pytest.mark.parametrize("command", [["run", "erm", "--dataset", "birdscapes"], ["sweep", "list.toml"]])
@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "is a folder"), ("x" * 300, "File name too long")],
)
def test_out_is_a_file_that_can_be_written(
    command: list[str], out: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.toml").write_text('dataset = "birdscapes"\n[[runs]]\nmethod = "erm"\n')
    assert main([*command, "--out", out]) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_print_loses_nothing(tmp_path: Path) -> None:
    table = own_pictures(tmp_path / "birds", names=("雀", "鴎"))
    more = ["--dataset", "folder", "--option", f"path={table}", "--option", "size=16", "--epochs", "1"]
    command = [sys.executable, "-m", "caml_core", "run", "erm", *more, "--out", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert b"\\u96c0" in done.stdout
    assert "雀" in read_records(tmp_path / "r.json")[0]["metrics"]["groups"][0]["name"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody can make another")
def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(Path("/proc/nope/r.json"))) == 2
    assert "/proc/nope" in capsys.readouterr().err


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(tmp_path / "file" / "r.json")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_broken_records_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    with pytest.raises(CamlError, match="not a readable"):
        read_records(file)
    file.write_text('[{"method": "erm"}]')
    with pytest.raises(CamlError, match="a record without one of config"):
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
    begun = tmp_path / "stopped.json.work" / "unfinished"
    while child.poll() is None and not list(begun.glob("*/*.safetensors")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 130, errors
    assert "goes on from where it stopped" in errors
    assert not stopped.exists()
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
    write_records(short, [record, *records])  # the buyer's own record sells nothing
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
    option = {"digits": "drawn", "n_train": 300, "n_val": 50, "n_test": 50}
    sold: dict[str, Any] = {"option": option, "start": 60, "query": 10, "rounds": 2}
    rounds = [{"queried": list(range(10 * t))[-10:]} for t in range(3)]
    rest: dict[str, Any] = {"metrics": {}, "provenance": {}, "method": "append", "dataset": "spuco_mnist", "seed": 0}
    write_records(tmp_path / "append.json", [{**rest, "config": sold, "rounds": rounds}])
    from_it = ["--queries-from", str(tmp_path / "append.json"), "--out", str(tmp_path / "r.json")]
    assert main(["run", "caml", *ACTIVE, *change, *from_it]) == 2
    said = capsys.readouterr().err
    assert (f"not from the same pool: other {message};" if message else "with seed 5") in said


def test_labels_are_bought_from_the_same_data_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when the table of your own data was sorted anew; a record of the old one is not taken for finished."""
    table = own_pictures(tmp_path / "birds")
    own = ["--dataset", "folder", "--option", f"path={table}", "--option", "size=16", "--start", "20", "--query", "2"]
    more = ["--rounds", "1", "--epochs", "1", "--select", "average", "--device", "cpu", "--backbone", "small_cnn"]
    out, bought = tmp_path / "append.json", ["--queries-from", str(tmp_path / "append.json")]
    assert main(["run", "append", *own, *more, "--out", str(out)]) == 0
    (record,) = read_records(out)
    assert main(["run", "caml", *own, *more, *bought, "--out", str(tmp_path / "caml.json")]) == 0
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *lines[::-1]]))
    assert main(["run", "caml", *own, *more, *bought, "--out", str(tmp_path / "caml.json")]) == 2
    assert "not from the same pool: other content" in capsys.readouterr().err
    write_records(out.with_name("append.json.work") / "append-0.json", [record])  # of other data, so it is made again
    assert main(["run", "append", *own, *more, "--out", str(out)]) == 0
    assert read_records(out)[0]["identity"] != record["identity"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--head-only", "--balance", "group"], "unrecognized arguments: --head-only --balance group"),
        (["--alpha", "-1"], "alpha=-1"),
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
    own = ["--published", "waterbirds", *("--support", "4", "--hard", "10", "--edits", "2", "--epochs", "3")]
    own += ["--eta", "0.1"]
    more = ["--hypergradient", "first_order", "--hard-set", "random", "--select", "worst_class", "--inner-steps", "4"]
    assert main(["run", "hsfm", *FROZEN, *own, *more, "--scaled", "--seed", "1", "2", "--out", str(out)]) == 0
    first, second = read_records(out)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert {"average", "worst_group", "adjusted", "minority"} <= set(first["metrics"])
    assert [group["n"] for group in first["metrics"]["groups"]] == [10] * 4
    used = {"support": 4, "hard": 10, "edits": 2, "epochs": 3, "eta": 0.1, "steps": 4, "select": "worst_class"}
    used |= {"hypergradient": "first_order", "hard_set": "random"}
    assert used.items() <= first["config"].items()
    assert (first["config"]["published"], first["config"]["scaled"]) == ("waterbirds", True)
    assert first["config"]["alpha"] == 5e-5
    assert first["settings"]["alpha"] == pytest.approx(5e-5 * 2048 / 128, rel=0.1), "features are 128 wide"
    assert 0 <= first["selection"]["epoch"] <= 3
    assert "worst_class" in first["selection"]["rule"]
    assert main(["run", "hsfm", *FROZEN, "--hard", "5", "--epochs", "1", "--out", str(out)]) == 0
    (plain,) = read_records(out)
    assert (plain["settings"]["alpha"], plain["config"]["support"]) == (1e-4, 16), "published for Dominoes"


def test_the_authors_protocol_of_hsfm(tmp_path: Path, small_sources: Path, cache: Path) -> None:
    """It starts from the network that ERM trains, its last layer and its features as they are, and says so."""
    erm, authors, one, scaled = (tmp_path / f"{name}.json" for name in ("erm", "authors", "one", "scaled"))
    assert main(["run", "erm", *FROZEN, "--epochs", "2", "--out", str(erm)]) == 0
    theirs = ["--protocol", "authors", "--train-backbone", "2", "--hard", "5", "--epochs", "2", "--double"]
    assert main(["run", "hsfm", *FROZEN, *theirs, "--out", str(authors)]) == 0
    assert main(["run", "hsfm", *FROZEN, *theirs, "--no-own-head", "--no-late", "--out", str(one)]) == 0
    assert main(["run", "hsfm", *FROZEN, *theirs, "--no-raw", "--out", str(scaled)]) == 0
    (network,), (record,), (other,), (standard,) = map(read_records, (erm, authors, one, scaled))
    for name, value in record["start"].items():
        assert value == standard["start"][name] == network["metrics"][name]["value"]
    assert record["selection"]["rule"] == "last best validation worst_group"
    used = {name: (record["config"][name], other["config"][name]) for name in ("raw", "own_head", "late", "any_epoch")}
    assert used == {"raw": (True,) * 2, "own_head": (True, False), "late": (True, False), "any_epoch": (True,) * 2}
    said = other["provenance"]["command"].split()
    assert {"authors", "--no-own-head", "--no-late"} <= set(said)
    assert len({identity(run["config"], 0) for run in (record, other)}) == 2
    alone = {**record["config"], "protocol": "ours"}
    assert identity(alone, 0) == identity(record["config"], 0), "what it stands for counts, not its name"


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
        (["hsfm", "--published", "cifar"], "published='cifar'"),
        (["hsfm", "--hard", "21"], "20 examples for 21 of the hard set"),
        (["hsfm", "--support", "0"], "support=0"),
        (["hsfm", "--alpha", "0"], "alpha=0"),
        (["hsfm", "--hard-set", "easy"], "hard_set='easy'"),
        (["hsfm", "--hypergradient", "magic"], "hypergradient='magic'"),
        (["hsfm", "--select", "average"], "select='average'"),
        (["hsfm", "--val-labels", "41"], "--val-labels 41 of 40"),
        (["hsfm", "--start", "5"], "unrecognized arguments: --start 5"),
        (["dfr", "--augment", "none", "--profile", "full"], "unrecognized arguments: --augment none --profile full"),
        (["afr", "--queries-from", "nowhere.json"], "unrecognized arguments: --queries-from"),
        (["gdro-head", "--epochs", "0"], "epochs=0"),
        (["erm-head", "--select", "test"], "select='test'"),
        (["caml", "--scaled"], "unrecognized arguments: --scaled"),
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
    one = paired_difference(runs([1, 5], [0, 3]), runs([2], [3]), "minority")
    assert (one["mean"], one["n"]) == (3, 1), "of the seeds that both have"
