"""Parquet of the Hugging Face Hub: a small Hub on this machine, and what becomes of its files."""

from __future__ import annotations

import fnmatch
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from caml_core.__main__ import main
from caml_core.data import load
from caml_core.data.find import CATALOGUE, fetch, locate
from caml_core.errors import CamlError

SPLITS = {"waterbirds": ("train", "validation", "test"), "celeba": ("train", "valid", "test")}
FOLDERS = {"waterbirds": "data", "celeba": "img_align+identity+attr"}


def shards(name: str, per_group: int = 3) -> dict[str, bytes]:
    """Parquet files as the repository of a dataset has them: two for training, an image of its own for each row."""
    columns, rng = CATALOGUE[name].parquet, np.random.default_rng(0)
    assert columns is not None
    files = {}
    for split in SPLITS[name]:
        shares = 2 if split == "train" else 1
        for part in range(shares):
            images, y, a = [], [], []
            for group in range(4):
                for _ in range(per_group):
                    stream = io.BytesIO()
                    Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(stream, "JPEG")
                    images.append({"bytes": stream.getvalue(), "path": None})
                    y.append(group // 2)
                    a.append(group % 2)
            kind = pa.bool_() if name == "celeba" else pa.int64()
            table = {"image": images, columns["y"]: pa.array(y).cast(kind), columns["a"]: pa.array(a).cast(kind)}
            stream = io.BytesIO()
            pq.write_table(pa.table({**table, "another": y}), stream)
            files[f"{FOLDERS[name]}/{split}-{part:05d}-of-{shares:05d}.parquet"] = stream.getvalue()
    return files


class Hub:
    """What of huggingface_hub is used, of one repository; `spoil` names files that arrive damaged."""

    def __init__(self, repository: str, files: dict[str, bytes], folder: Path) -> None:
        self.repository, self.files, self.folder = repository, files, folder
        self.spoil, self.asked = set[str](), list[str]()

    def snapshot_download(self, repository: str, repo_type: str, allow_patterns: str, local_files_only: bool) -> str:
        if repository != self.repository or local_files_only:
            raise ConnectionError
        for name in fnmatch.filter(["README.md", *self.files], allow_patterns):
            self.bring(name)
        return str(self.folder / "snapshot")

    def bring(self, name: str) -> None:
        blob = self.folder / "blobs" / hashlib.sha256(self.files[name]).hexdigest()
        link = self.folder / "snapshot" / name
        if not link.exists():
            self.asked.append(name)
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            data = self.files[name]
            blob.write_bytes(bytes([data[0] ^ 1]) + data[1:] if name in self.spoil else data)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)


@pytest.fixture(params=["waterbirds", "celeba"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hub(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The dataset on a Hub; the archives of its authors are out of reach."""
    dataset = CATALOGUE[name]
    hub = Hub(dataset.hub, shards(name), cache.parent / "hub")
    monkeypatch.delenv("CAML_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("caml_core.store.hub_is_reachable", lambda: True)
    monkeypatch.setattr("caml_core.data.fetch.RETRIES", 0)
    gone = tuple(file._replace(urls=("http://127.0.0.1:9/gone",)) for file in dataset.files)
    monkeypatch.setitem(CATALOGUE, name, dataset._replace(files=gone))
    return hub


def check_loads(name: str, folder: Path | None = None) -> None:
    train, val, test = load(name, data_dir=folder, size=16, check_counts=False, progress=False)
    assert train.group_counts.tolist() == [6, 6, 6, 6]
    assert val.group_counts.tolist() == test.group_counts.tolist() == [3, 3, 3, 3]
    assert len(np.unique(train.x.numpy().reshape(24, -1), axis=0)) == 24, "each row has its own image"


def test_parquet_becomes_the_layout_that_the_loader_reads(hub: Hub, name: str) -> None:
    check_loads(name)
    folder = locate(name, download=False)
    assert len(list(folder.rglob("*.jpg"))) == 48
    assert sorted(hub.asked) == sorted(hub.files), "each file once, the README not at all"
    assert not (folder.parent / f"{name}.download").exists()


def test_images_are_written_as_they_were(hub: Hub, name: str) -> None:
    folder = fetch(name, progress=False)
    first = next(data for file, data in hub.files.items() if "train-00001" in file)
    images = pq.read_table(io.BytesIO(first)).column("image").to_pylist()
    columns = CATALOGUE[name].parquet
    assert columns is not None
    assert (folder / columns["folder"] / "train" / "000012.jpg").read_bytes() == images[0]["bytes"]


def test_a_damaged_file_is_never_unpacked(hub: Hub, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sorted(hub.files)[-1]
    hub.spoil = {bad}
    with pytest.raises(CamlError, match="gone"):
        fetch(name, progress=False)
    assert "wrong checksum" in capsys.readouterr().out
    with pytest.raises(CamlError, match="not found"):
        locate(name, download=False)
    hub.spoil, hub.asked = set(), []
    check_loads(name)
    assert set(hub.asked) == {bad}, "what was whole is kept"


def test_without_the_hub_the_authors_are_asked(
    hub: Hub, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository = "someone/else"
    with pytest.raises(CamlError, match="gone"):
        fetch(name, progress=False)
    assert f"Hugging Face Hub, {CATALOGUE[name].hub} (ConnectionError" in capsys.readouterr().out
    monkeypatch.setattr("caml_core.store.hub_is_reachable", lambda: False)
    with pytest.raises(CamlError, match="gone"):
        fetch(name, progress=False)
    assert "no network" in capsys.readouterr().out
    assert not hub.asked


def test_parquet_on_disk_is_taken_from_there(
    hub: Hub, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mine"
    for file, data in hub.files.items():
        path = root / hub.repository / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert main(["data", "list", "--data", str(root)]) == 0
    assert f"{root / hub.repository}, unpacked when it is loaded" in capsys.readouterr().out
    check_loads(name, root)
    assert not hub.asked
    (root / "SHA256SUMS").write_text("0" * 64 + f"  {path.relative_to(root).as_posix()}\n")
    with pytest.raises(CamlError, match="wrong checksum"):
        fetch_again(name, root)


def fetch_again(name: str, root: Path) -> None:
    folder = locate(name, root, download=False)
    folder.rename(folder.with_name("old"))
    fetch(name, root, progress=False)


@pytest.mark.parametrize("fault", ["no column", "no split", "not parquet", "empty image"])
def test_parquet_of_another_kind_is_refused(
    fault: str, hub: Hub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(file for file in hub.files if "test-" in file)
    table = pq.read_table(io.BytesIO(hub.files[file]))
    stream = io.BytesIO()
    if fault == "no column":
        pq.write_table(table.drop_columns([CATALOGUE[name].parquet["y"]]), stream)  # type: ignore[index]
    elif fault == "empty image":
        images = [{"bytes": None, "path": "a.jpg"} for _ in range(len(table))]
        pq.write_table(table.set_column(0, "image", pa.array(images)), stream)
    hub.files[file] = stream.getvalue()
    if fault == "no split":
        del hub.files[file]
    with pytest.raises(CamlError, match="gone"):
        fetch(name, progress=False)
    said = {"no split": "a split has no parquet files"}.get(fault, "cannot be unpacked")
    assert said in capsys.readouterr().out
    with pytest.raises(CamlError, match="not found"):
        locate(name, download=False)


def test_only_datasets_with_columns_ask_the_hub(cache: Path) -> None:
    assert {name for name, dataset in CATALOGUE.items() if dataset.parquet} == {"waterbirds", "celeba"}
    assert all(dataset.hub for dataset in CATALOGUE.values() if dataset.parquet)
