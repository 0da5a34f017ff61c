"""Checkpoints at a URL: what a lost machine leaves there is enough to go on, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from caml_core import fit, mirror
from caml_core.errors import CamlError
from caml_core.mirror import check_url, mirrored
from caml_core.store import save_checkpoint
from caml_core.sweep import execute, expand, sweep
from tests.test_sweep import TINY, found, write

ONE = TINY.replace("seed = [0, 1]", "seed = 0").partition("[[runs]]")[0] + '[[runs]]\nmethod = "append"\n'
DIES = """
import os, sys, time
from caml_core import fit, mirror
from caml_core.__main__ import main

THERE = sys.argv[1]

def save(*rest, saved=[], whole=fit.save_run):
    whole(*rest)
    saved.append(1)
    if len(saved) == 8:  # of 15, in the second of three rounds
        for _ in range(3000):  # until it was copied
            if any("round-1.safetensors" in names for _, _, names in os.walk(THERE)):
                break
            time.sleep(0.01)
        os.kill(os.getpid(), 9)

fit.save_run, mirror.LOOK = save, 0.01
main(["sweep", *sys.argv[2:], "--address", "serial", "--device", "cpu", "--checkpoints", "file://" + THERE])
"""


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes the checkpoints that are written from now on."""
    names: list[str] = []
    save = fit.save_run

    def noted(path: Path, *rest: Any) -> None:
        names.append(path.name)
        save(path, *rest)

    monkeypatch.setattr(fit, "save_run", noted)
    return names


def test_a_run_killed_on_one_machine_goes_on_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second shares no folder with the first, which had no chance to clean up."""
    file, there = write(tmp_path, ONE), tmp_path / "there"
    first = [sys.executable, "-c", DIES, str(there), str(file), "--out", str(tmp_path / "first" / "out.json")]
    died = subprocess.run(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # no pipe: it leaves workers
    assert died.returncode == -signal.SIGKILL
    (run,) = expand(file)
    kept = there / "unfinished" / run.identity
    assert {path.name for path in kept.rglob("*.safetensors")} == {"round-0.safetensors", "round-1.safetensors"}
    names = trained(monkeypatch)
    again = sweep(
        file, tmp_path / "second" / "out.json", address="serial", device="cpu", checkpoints=there.as_uri() + "/"
    )
    assert 5 <= len(names) < 10
    assert set(names) == {"round-1.safetensors", "round-2.safetensors"}, "round 0 was finished"
    assert not any(path.is_file() for path in there.rglob("*"))
    peace = sweep(file, tmp_path / "peace.json", address="serial", device="cpu")
    assert found(again) == found(peace)


def test_files_arrive_whole_or_not_at_all(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "LOOK", 0.01)
    tensors = {"w": torch.arange(4.0)}
    with pytest.raises(KeyboardInterrupt), mirrored(tmp_path / "a", url):
        save_checkpoint(tmp_path / "a" / "deep" / "one.safetensors", tensors, {})
        save_checkpoint(tmp_path / "a" / "two.safetensors", tensors, {})
        (tmp_path / "a" / ".two.safetensors.x.part").write_text("half")
        raise KeyboardInterrupt
    memory, root = fsspec.core.url_to_fs(url)
    assert [path.removeprefix(root) for path in memory.find(root)] == ["/deep/one.safetensors", "/two.safetensors"]
    whole = memory.cat_file(f"{root}/two.safetensors")
    memory.pipe_file(f"{root}/two.safetensors", whole[:-3])  # broken
    memory.pipe_file(f"{root}/three.safetensors.0123.part", whole[:-3])  # the upload was cut off
    with mirrored(tmp_path / "b", url):
        assert [path.name for path in (tmp_path / "b").rglob("*") if path.is_file()] == ["one.safetensors"]
        assert (tmp_path / "b" / "deep" / "one.safetensors").read_bytes() == whole
    assert not memory.exists(root)


def test_a_cut_upload_never_has_the_name_of_a_whole_file(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory, root = fsspec.core.url_to_fs(url)

    def cut(local: str, there: str, **more: Any) -> None:
        memory.pipe_file(there, Path(local).read_bytes()[:10])
        raise OSError("the network is gone")

    with pytest.raises(KeyboardInterrupt), mirrored(tmp_path / "a", url):
        save_checkpoint(tmp_path / "a" / "one.safetensors", {"w": torch.zeros(2)}, {})
        monkeypatch.setattr(memory, "put_file", cut)
        raise KeyboardInterrupt
    assert "the network is gone" in capsys.readouterr().out
    assert [path for path in memory.find(root) if not path.endswith(".part")] == []
    monkeypatch.undo()
    with mirrored(tmp_path / "b", url):
        assert not (tmp_path / "b").exists()


def test_a_run_that_fails_keeps_its_checkpoints(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: Any) -> None:
        save(*rest)
        raise OSError("no space")

    save = fit.save_run
    monkeypatch.setattr(fit, "save_run", full)
    runs = expand(write(tmp_path, ONE))
    (outcome,) = execute(runs, tmp_path / "work", "cpu", checkpoints=url)
    assert "no space" in outcome["failed"]
    memory, root = fsspec.core.url_to_fs(url)
    assert [path.rpartition("/")[2] for path in memory.find(root)] == ["round-0.safetensors"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere://bucket/x", "Protocol not known"),
        ("file:///proc/nope", "nothing can be written to file:///proc/nope"),
        ("https://127.0.0.1:9/x", "nothing can be written to https://127.0.0.1:9/x"),
    ],
)
def test_a_url_that_cannot_be_written_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, message: str
) -> None:
    monkeypatch.setattr("caml_core.sweep.execute", None)
    with pytest.raises(CamlError, match=message):
        sweep(write(tmp_path, ONE), tmp_path / "out.json", address="serial", device="cpu", checkpoints=where)
    assert [path.name for path in tmp_path.iterdir()] == ["list.toml"]


def test_a_path_is_made_absolute_for_other_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_url("here/").removeprefix("file://") == f"{tmp_path}/here"
    assert os.listdir("here") == []
