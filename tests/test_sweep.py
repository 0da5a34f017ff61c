"""Sweeps: the lists of the book, identities, refusals before anything runs, and killed workers and machines."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import own_pictures, require

from caml_core.__main__ import main
from caml_core.errors import CamlError
from caml_core.runs import sweep as module
from caml_core.runs.commands import parse_run
from caml_core.runs.identity import REVISION
from caml_core.runs.lists import expand
from caml_core.runs.records import read_records, write_records
from caml_core.runs.settings import words
from caml_core.runs.sweep import sweep
from caml_core.runs.tables import hours

ROOT = Path(__file__).parent.parent
LISTS = sorted((ROOT / "results" / "tables").glob("*.toml"))
TINY = """
dataset = "birdscapes"
option = { size = 16, n_train = 120, n_val = 32, n_test = 40 }
backbone = "small_cnn"
start = 40
query = 8
rounds = 2
epochs = 5
seed = [0, 1]

[[runs]]
method = ["upweight", "caml"]
queries-from = "append"

[[runs]]
method = "append"
"""
ERM = """
dataset = "birdscapes"
option = { size = 16, n_train = 120, n_val = 32, n_test = 40 }
backbone = "small_cnn"
epochs = 1
[[runs]]
method = "erm"
"""


OWN = """
dataset = "folder"
option = {{ path = "{path}", size = 16 }}
epochs = 1
[[runs]]
method = "erm"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "list.toml"
    file.write_text(text)
    return file


def found(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run found, without when and where."""
    return [{k: v for k, v in record.items() if k not in ("provenance", "train_seconds")} for record in records]


# ---- lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_stored_records_are_runs_of_their_list(file: Path) -> None:
    """Each has the identity that the list gives today, and its command is the one that the list stands for."""
    runs = {run.label: run for run in expand(file)}
    stored = ROOT / "results" / f"{file.stem}.json"
    for record in read_records(stored) if stored.exists() else []:
        run = runs[f"{record['run']}-{record['seed']}"]
        assert record["identity"] == run.identity
        assert record["revision"] == REVISION[record["method"]]
        said, bought = re.subn(" --queries-from .*?[.]json'?", "", record["provenance"]["command"])
        assert bool(bought) == bool(run.buys)
        flags = [*shlex.split(re.split(" --device | --out ", said)[0])[4:], "--out", "x.json"]
        method, data, place = parse_run([*flags, *(["--queries-from", f"{run.buys}.json"] * bought)])
        assert (method, data, place.seed) == (run.method, run.data, [run.seed])


def test_a_list_is_expanded_to_all_combinations_after_what_they_buy(tmp_path: Path) -> None:
    runs = expand(write(tmp_path, TINY))
    assert [run.label for run in runs] == [
        "append-0", "append-1", "upweight-0", "caml-0", "upweight-1", "caml-1",
    ]  # fmt: skip
    assert [run.buys for run in runs] == [None, None, "append-0", "append-0", "append-1", "append-1"]
    assert words(runs[0].method, runs[0].data)[4:8] == ["--option", "size=16", "--option", "n_train=120"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 5", "epoch = 5", "epoch: unexpected keyword"),
        ("epochs = 5", "device = 'cpu'", "device: unexpected keyword"),
        ("epochs = 5", "epochs = 'many'", "epochs: input should be a valid integer"),
        ("epochs = 5", "epochs = 0", "epochs=0"),
        ("epochs = 5", "eta = 1.0", "eta: unexpected keyword"),
        ("n_val", "n_valid", "has no option"),
        ('"birdscapes"', '"birds"', "unknown dataset"),
        ('= "append"\n\n', '= "random"\n\n', "buys from 'random-0'"),
        ('method = "append"', 'method = "append"\nqueries-from = "caml"', "buys from"),
        ("seed = [0, 1]", "seed = [0, 0]", "lists 'upweight-0' twice"),
        ("seed = [0, 1]", "seed = []", "has an empty list: seed"),
        ("seed = [0, 1]", "seed = -1", "seed=-1"),
        ("size = 16", "size = [16, 32]", "size=[16, 32]"),
        ("n_val = 32", "n_val = 'many'", "n_val='many'"),
        ('queries-from = "append"', 'queries-from = "append"\nrho = 0.6', "cannot buy from 'append-0'"),
        ('queries-from = "append"', 'queries-from = "append"\nstart = 41', "cannot buy from 'append-0'"),
        ('method = "append"', 'method = "append"\noption = { size = 16, n_train = 130 }', "cannot buy from 'append-0'"),
        ('method = "append"', 'method = "append"\nrounds = 3', "cannot buy from 'append-0'"),
        ("seed = [0, 1]", "seed = [0, 1]\nname = '{method}/{seed}'", "name='upweight/0'"),
        ("seed = [0, 1]", "seed = [0, 1]\nname = '{methods}'", "cannot be filled in"),
        ('method = "append"', 'method = "dfr"\nqueries-from = "append"', "unexpected keyword"),
        ("dataset =", "dataset", "cannot be read"),
        ("[[runs]]", "[[run]]", "at least one [[runs]]"),
        ('dataset = "birdscapes"', "", "dataset: field required"),
    ],
)
def test_a_wrong_list_is_refused_before_anything_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    with pytest.raises(CamlError) as caught:
        sweep(write(tmp_path, TINY.replace(old, new)), tmp_path / "out.json")
    assert message in f"{caught.value}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.toml"]


def test_a_list_as_the_world_writes_it(tmp_path: Path) -> None:
    """With a byte order mark, true and false, numbers and lists for a loader."""
    text = TINY.replace("n_val = 32", "n_val = 32, progress = false").replace(
        "epochs = 5", "epochs = 5\nfrom-scratch = true"
    )
    plain = expand(write(tmp_path, text))
    assert all(run.method.from_scratch and run.data.option["progress"] is False for run in plain)
    (tmp_path / "list.toml").write_text(text, encoding="utf-8-sig")
    assert expand(tmp_path / "list.toml") == plain
    digits = ERM.replace("birdscapes", "dominoes").replace("size = 16", "classes = [3, 5]")
    (run,) = expand(write(tmp_path, digits))
    assert run.data.option["classes"] == [3, 5]
    with pytest.raises(CamlError, match="classes='3,5'"):
        expand(write(tmp_path, digits.replace("[3, 5]", '"3,5"')))


# ---- identity -----------------------------------------------------------------------------------------------


def test_identity_follows_settings_and_bought_labels_and_nothing_else(tmp_path: Path) -> None:
    def identities(text: str) -> dict[str, str]:
        return {run.label: run.identity for run in expand(write(tmp_path, text))}

    first = identities(TINY)
    assert len(set(first.values())) == 6
    assert identities("# a remark\n" + TINY.replace("seed = [0, 1]", "seed = [1, 0]")) == first
    assert identities(TINY.replace('"append"\n\n', '"bought"\n\n') + 'name = "bought"') == {
        label.replace("append", "bought"): value for label, value in first.items()
    }
    changed = identities(TINY + "lr = 0.01")  # of append alone; the others buy its labels
    assert not set(changed.values()) & set(first.values())


def test_corrected_data_of_your_own_are_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content counts: names, labels and order; a folder that was moved is the same."""
    table = own_pictures(tmp_path / "here")
    text = OWN.format(path=table)

    def identities() -> set[str]:
        return {run.identity for run in expand(write(tmp_path, text))}

    first = identities()
    assert identities() == first
    lines = table.read_text().splitlines()
    for other in ([lines[0], *lines[:0:-1]], [line.replace("shore", "meadow") for line in lines]):
        table.write_text("\n".join(other))
        assert not identities() & first
    table.write_text("\n".join(lines))
    shutil.move(tmp_path / "here", tmp_path / "there")
    text = OWN.format(path=tmp_path / "there" / "labels.csv")
    assert identities() == first


def test_a_raised_revision_makes_its_own_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {run.label: run.identity for run in expand(write(tmp_path, TINY))}
    monkeypatch.setitem(REVISION, "caml", 2)
    now = {run.label: run.identity for run in expand(write(tmp_path, TINY))}
    assert {label for label in now if now[label] != first[label]} == {"caml-0", "caml-1"}
    monkeypatch.setitem(REVISION, "birdscapes", 2)
    assert not set(first.values()) & {run.identity for run in expand(write(tmp_path, TINY))}


# ---- one after the other ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The tiny list and its records, made one after the other."""
    folder = tmp_path_factory.mktemp("serial")
    return write(folder, TINY), sweep(folder / "list.toml", folder / "out.json", address="serial", device="cpu")


def test_records_are_those_of_run(serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    file, records = serial
    assert [f"{r['run']}-{r['seed']}" for r in records] == [run.label for run in expand(file)]
    folder = file.parent / "out.json.work"
    assert {path.suffix for path in folder.glob("*-[01].*")} == {".json", ".log"}
    lines = [path.read_text() for path in folder.glob("*.json")]
    assert [line.count("\n") for line in lines] == [1] * 6
    caml = records[3]
    assert caml["config"]["queries_from"] == "append-0.json"
    assert caml["provenance"]["gpus"] == 0
    assert "--queries-from append-0.json" in caml["provenance"]["command"]
    (whole,) = read_records(folder / "caml-0.json")
    assert "groups" in whole["metrics"]
    assert [len(r["queried"]) for r in records[0]["rounds"]] == [0, 8, 8]
    again = tmp_path / "again.json"
    append = expand(file)[0]
    assert main([*words(append.method, append.data), "--device", "cpu", "--out", str(again)]) == 0
    (one,) = read_records(again)
    assert one["metrics"]["average"] == records[0]["metrics"]["average"]
    assert one["identity"] == append.identity


def started(out: Path) -> set[str]:
    """Labels of the runs that a sweep has begun."""
    return {log.stem for log in Path(f"{out}.work").glob("*.log")}


def test_what_is_finished_is_not_run_again(serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    file, records = serial
    out = tmp_path / "out.json"
    shutil.copy(file.parent / "out.json", out)  # the table alone, without its folder
    assert sweep(file, out, address="serial", device="cpu") == records
    assert started(out) == set()
    out.write_text(json.dumps([record for record in records if record["method"] != "caml"]))
    assert found(sweep(file, out, address="serial", device="cpu")) == found(records)  # labels bought from the table
    assert started(out) == {"caml-0", "caml-1"}
    with pytest.raises(CamlError, match="does not list"):
        sweep(write(tmp_path, TINY.replace("seed = [0, 1]", "seed = 0")), out)


@pytest.mark.parametrize("where", ["table", "folder"])
def test_a_record_of_other_settings_is_made_again(
    serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path, where: str
) -> None:
    """Or of other data, or of another revision: whatever has another identity. The others stay."""
    file, records = serial
    out = tmp_path / "out.json"
    old = {**records[5], "identity": "other", "metrics": {}}
    write_records(out, [*records[:5], old] if where == "table" else records[:5])
    write_records(tmp_path / "out.json.work" / "caml-1.json", [old])
    assert found(sweep(file, out, address="serial", device="cpu")) == found(records)
    assert started(out) == {"caml-1"}


def test_corrected_data_are_made_again(tmp_path: Path) -> None:
    table = own_pictures(tmp_path / "birds")
    file, out = write(tmp_path, OWN.format(path=table)), tmp_path / "out.json"
    first = sweep(file, out, address="serial", device="cpu")
    assert found(sweep(file, out, address="serial")) == found(first)
    table.write_text(table.read_text().replace("shore", "meadow"))
    (again,) = sweep(file, out, address="serial", device="cpu")
    assert list(again["data"]["train_groups"])[1] == "finch, meadow"


def test_two_sweeps_with_one_out(tmp_path: Path) -> None:
    with module.alone(tmp_path / "out.json"), pytest.raises(CamlError, match="another command is at work"):
        sweep(write(tmp_path, ERM), tmp_path / "out.json", address="serial")


BROKEN = TINY.replace("seed = [0, 1]", "seed = 0") + "\n[[runs]]\nname = 'too much'\nmethod = 'append'\nstart = 1000\n"
BROKEN += "\n[[runs]]\nname = 'after'\nmethod = 'caml'\nstart = 1000\nqueries-from = 'too much'\n"


@pytest.mark.parametrize("address", ["serial", "local"])
def test_a_failing_run_stops_no_other_and_is_listed(
    serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    file, out = write(tmp_path, BROKEN), tmp_path / "out.json"
    assert main(["sweep", str(file), "--out", str(out), "--address", address, "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "2 of 5 runs failed" in said.err
    assert "too much-0: failed: 1000 + 2 x 8 labels from a pool of 120" in said.out
    assert "2 of 5 runs failed, or buy from one that did: too much-0, after-0" in said.err
    assert "CamlError" in (tmp_path / "out.json.work" / "too much-0.log").read_text()
    assert len(re.findall(r"^[a-z ]+-0: (failed|WGA \d)", said.out, re.MULTILINE)) == 4
    assert "| after | not run | not run | not run |" in said.out
    assert found(read_records(out)) == [r for r in found(serial[1]) if r["seed"] == 0]


# ---- refused before anything runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "nowhere"}, "no Ray at 'nowhere'"),
        ({"address": "serial", "device": "cuda"}, "device 'cuda'"),
        ({"gpus_per_run": 0}, "0 GPU for each run"),
        ({"gpus_per_run": float("nan")}, "nan GPU for each run"),
        ({"gpus_per_run": 1.5}, "1.5 GPU for each run"),
    ],
)
def test_what_is_not_there_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    if "device" in options:
        monkeypatch.setattr("torch.empty", _no_cuda)
    with pytest.raises(CamlError, match=re.escape(message)):
        sweep(write(tmp_path, ERM), tmp_path / "out.json", **options)
    assert not list(tmp_path.glob("*.work/*.log"))


def _no_cuda(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("no CUDA here")


def test_without_ray_a_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CamlError, match="pip install"):
        sweep(write(tmp_path, ERM), tmp_path / "out.json", address="10.0.0.1:6379")


class NoRay:
    """Stands for Ray on a machine with two cores and a GPU: notes what a task asks for, and makes none."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def init(self, **how: Any) -> None: ...

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2, "GPU": 1}

    def options(self, **asked: Any) -> NoRay:
        self.asked.append(asked)
        return self

    def remote(self, *call: Any) -> Any:
        if len(call) == 1:
            return self
        self.asked.append({"gpus": call[-1]})
        return self

    def future(self) -> Any:
        done: Any = concurrent.futures.Future()
        done.set_exception(RuntimeError("no GPU"))
        return done


def test_runs_that_share_a_gpu_may_be_more_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = NoRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    for device, share, asked in (("auto", 0.25, (0.25, 0.25)), ("cuda", 1, (1, 1)), ("cpu", 0.5, (1, 0))):
        with pytest.raises(CamlError, match="a worker was lost"):
            sweep(write(tmp_path, ERM), tmp_path / "out.json", address="10.0.0.1:1", device=device, gpus_per_run=share)
        options, given = ray.asked[-2:]
        assert (options["num_cpus"], options["num_gpus"]) == asked
        assert given["gpus"] == options["num_gpus"]


def test_hours_count_the_share_of_a_gpu() -> None:
    def record(start: int, end: int, **more: Any) -> dict[str, Any]:
        seconds = 3600.0 * (end - start)
        return {"provenance": {"device": "A GPU", "wall_seconds": seconds, "end": f"2026-01-01T0{end}:00Z", **more}}

    packed = [record(0, 2, gpus=0.25), record(0, 3, gpus=0.25), record(1, 4, gpus=0.25)]
    assert hours(packed) == {"CPU": 0, "GPU": 2}
    assert hours([record(0, 1, gpus=0, device="cpu"), record(0, 1)]) == {"CPU": 1, "GPU": 1}


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CamlError, match="cannot write"):
        sweep(write(tmp_path, ERM), tmp_path / "file" / "out.json")


# ---- workers ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_worker_and_a_killed_sweep_lose_nothing(
    serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """A killed worker ends the sweep, workers end with their sweep, and the same command goes on."""
    file, records = serial
    command = [sys.executable, "-m", "caml_core", "sweep", str(file), "--device", "cpu", "--out"]
    command.append(str(tmp_path / "out.json"))
    folder = tmp_path / "out.json.work"
    identity = {run.label: run.identity for run in expand(file)}

    def in_the_middle() -> int:
        """Process of a run that has written a checkpoint and no record."""
        while True:
            assert child.poll() is None, "the sweep ended before anything was killed"
            for log in folder.glob("*.log"):
                begun = any(folder.glob(f"unfinished/{identity[log.stem]}/**/*.safetensors"))
                if begun and not log.with_suffix(".json").exists():
                    return int(re.findall(r"process (\d+)", log.read_text())[-1])
            time.sleep(0.005)

    for kill_all in (False, True):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        worker = in_the_middle()
        os.kill(child.pid if kill_all else worker, signal.SIGKILL)
        _, errors = child.communicate()
        assert child.returncode == (-signal.SIGKILL if kill_all else 2), errors
        assert kill_all or b"a worker was lost" in errors
        end = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists(), "it has ended with its sweep"
    assert found(sweep(file, tmp_path / "out.json", device="cpu")) == found(records)
    assert not list((folder / "unfinished").iterdir())


# ---- two machines -------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each."""
    require(find_spec("ray"), "Ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield nodes, nodes.add_node(num_cpus=1)
    finally:
        nodes.shutdown()


class Killer(threading.Thread):
    """Kills the worker of a run on the first node, then the whole second node, each in the middle of a run."""

    def __init__(self, cluster: Any, second: Any, folder: Path, identity: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.cluster, self.second, self.folder, self.identity = cluster, second, folder, identity
        self.raylet = second.all_processes["raylet"][0].process.pid
        self.killed: list[str] = []

    def in_the_middle(self, on_second: bool) -> tuple[str, int] | None:
        """A run that has written a checkpoint and no record, and its process, on that node."""
        for log in self.folder.glob("*.log"):
            pid = int(re.findall(r"process (\d+)", log.read_text() or "process 0")[-1])
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            begun = any(self.folder.glob(f"unfinished/{self.identity[log.stem]}/**/*.safetensors"))
            if begun and not log.with_suffix(".json").exists() and (parent == self.raylet) == on_second:
                return log.stem, pid
        return None

    def run(self) -> None:
        for on_second in (False, True):
            end = time.monotonic() + 120
            while (victim := self.in_the_middle(on_second)) is None and time.monotonic() < end:
                threading.Event().wait(0.005)
            if victim is not None:
                if on_second:
                    self.cluster.remove_node(self.second, allow_graceful=False)
                else:
                    os.kill(victim[1], signal.SIGKILL)
                self.killed.append(victim[0])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes of a node in /proc")
def test_a_killed_worker_and_a_killed_node_lose_and_double_nothing(
    serial: tuple[Path, list[dict[str, Any]]], tmp_path: Path, cluster: Any
) -> None:
    file, records = serial
    nodes, second = cluster
    with pytest.raises(CamlError, match="Ray sees 0"):
        sweep(file, tmp_path / "out.json", address=nodes.address, device="cuda")
    killer = Killer(nodes, second, tmp_path / "out.json.work", {run.label: run.identity for run in expand(file)})
    killer.start()
    made = sweep(file, tmp_path / "out.json", address=nodes.address, device="cpu")
    killer.join(timeout=1)
    assert len(killer.killed) == 2, "both were killed in the middle of a run"
    assert found(made) == found(records)
    assert found(read_records(tmp_path / "out.json")) == found(records)
    starts = {log.stem: log.read_text().count(", process ") for log in killer.folder.glob("*.log")}
    once = Counter(run.label for run in expand(file))
    assert starts.keys() == once.keys()
    assert all(starts[label] <= n for label, n in (once + Counter(killer.killed)).items()), "nothing is made twice"
    assert sum(starts.values()) > len(once), "a run that was killed began again"
    assert not list((killer.folder / "unfinished").iterdir())
