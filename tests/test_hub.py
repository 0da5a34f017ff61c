"""Parquet of the Hugging Face Hub: a small Hub on this machine, and what becomes of its files."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_fetch import toy

from caml_core.__main__ import main
from caml_core.data import catalogue, load
from caml_core.data.catalogue import CATALOGUE, fetch, locate, verify
from caml_core.errors import CamlError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
            table = {"image": images, columns.y: pa.array(y).cast(kind), columns.a: pa.array(a).cast(kind)}
            stream = io.BytesIO()
            pq.write_table(pa.table({**table, "another": y}), stream)
            files[f"{FOLDERS[name]}/{split}-{part:05d}-of-{shares:05d}.parquet"] = stream.getvalue()
    return files


class Hub(ThreadingHTTPServer):
    """Lists and serves one repository; `spoil` names files that arrive damaged."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository, self.files, self.spoil, self.asked = repository, files, set[str](), list[str]()
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        path, _, _ = unquote(self.path).partition("?")
        resolve = f"/datasets/{self.server.repository}/resolve/{COMMIT}/"
        if path == f"/api/datasets/{self.server.repository}":
            siblings: list[dict[str, object]] = [{"rfilename": "README.md", "size": 3, "blobId": "0"}]
            for name, data in self.server.files.items():
                lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                siblings.append({"rfilename": name, "size": len(data), "blobId": "0", "lfs": lfs})
            self.send(
                "application/json",
                json.dumps({"id": self.server.repository, "sha": COMMIT, "siblings": siblings}).encode(),
            )
        elif path.startswith(resolve):
            name = path.removeprefix(resolve)
            self.server.asked.append(name)
            data = self.server.files[name]
            if name in self.server.spoil:
                data = bytes([data[0] ^ 1]) + data[1:]
            self.send("application/octet-stream", data)
        else:
            self.send_error(404)

    def send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(params=["waterbirds", "celeba"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hub(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The dataset on a Hub of this machine; the archives of its authors are out of reach."""
    dataset = CATALOGUE[name]
    assert dataset.hub is not None
    with Hub(dataset.hub, shards(name)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("CAML_DATA", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("caml_core.data.sources.hub_is_reachable", lambda: True)
        gone = tuple(file._replace(urls=(server.url + "/gone",)) for file in dataset.files)
        monkeypatch.setitem(CATALOGUE, name, dataset._replace(files=gone))
        yield server
        server.shutdown()


def check_loads(name: str, folder: Path | None = None) -> None:
    train, val, test = load(name, data_dir=folder, size=16, check_counts=False, progress=False)
    assert train.group_counts.tolist() == [6, 6, 6, 6]
    assert val.group_counts.tolist() == test.group_counts.tolist() == [3, 3, 3, 3]
    assert len(np.unique(train.x.numpy().reshape(24, -1), axis=0)) == 24, "each row has its own image"


def test_parquet_becomes_the_layout_that_the_loader_reads(
    hub: Hub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_loads(name)
    size = sum(map(len, hub.files.values()))
    assert f"{name}: 4 parquet files, {size / 1e6:,.0f} MB, from {hub.repository}" in capsys.readouterr().out
    folder = locate(name, download=False)
    count = 48  # images
    assert verify(name) == f"{name} in {folder}: all {count + 1} known checksums are right"
    next(folder.rglob("000003.jpg")).write_bytes(b"other")
    with pytest.raises(CamlError, match="1 of 49 files"):
        verify(name)
    assert sorted(hub.asked) == sorted(hub.files), "each file once, the README not at all"
    assert not (folder.parent / f"{name}.download").exists()


def test_images_are_written_as_they_were(hub: Hub, name: str) -> None:
    folder = fetch(name, progress=False)
    first = next(data for file, data in hub.files.items() if "train-00001" in file)
    images = pq.read_table(io.BytesIO(first)).column("image").to_pylist()
    columns = CATALOGUE[name].parquet
    assert columns is not None
    assert (folder / columns.folder / "train" / "000012.jpg").read_bytes() == images[0]["bytes"]


def test_a_damaged_file_is_never_unpacked(hub: Hub, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sorted(hub.files)[-1]
    hub.spoil = {bad}
    with pytest.raises(CamlError, match="gone"):
        fetch(name, backoff=0, progress=False)
    assert "not from the Hub (wrong checksum" in capsys.readouterr().out
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
        fetch(name, backoff=0, progress=False)
    assert f"the Hub did not list {CATALOGUE[name].hub}" in capsys.readouterr().out
    monkeypatch.setattr("caml_core.data.sources.hub_is_reachable", lambda: False)
    with pytest.raises(CamlError, match="gone"):
        fetch(name, backoff=0, progress=False)
    assert "out of reach" in capsys.readouterr().out
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
        pq.write_table(table.drop_columns([CATALOGUE[name].parquet.y]), stream)  # type: ignore[union-attr]
    elif fault == "empty image":
        images = [{"bytes": None, "path": "a.jpg"} for _ in range(len(table))]
        pq.write_table(table.set_column(0, "image", pa.array(images)), stream)
    hub.files[file] = stream.getvalue()
    if fault == "no split":
        del hub.files[file]
    with pytest.raises(CamlError, match="gone"):
        fetch(name, backoff=0, progress=False)
    said = {"no split": "lists 3 parquet files"}.get(fault, "cannot be unpacked")
    assert said in capsys.readouterr().out
    with pytest.raises(CamlError, match="not found"):
        locate(name, download=False)


def test_the_authors_first_sums_do_not_outlive_them(hub: Hub, name: str, tmp_path: Path) -> None:
    sums = tmp_path / "cache" / "datasets" / f"{name}.sha256"
    sums.parent.mkdir(parents=True)
    sums.write_text("0" * 64 + "  metadata.csv\n")
    fetch(name, progress=False)
    assert "all 49 known" in verify(name)


def test_only_datasets_with_columns_ask_the_hub(cache: Path) -> None:
    assert {name for name, dataset in CATALOGUE.items() if dataset.parquet} == {"waterbirds", "celeba"}
    assert toy("tar.gz", "http://127.0.0.1", b"", sha=False, size=False).parquet is None
    assert all(dataset.hub for dataset in CATALOGUE.values() if dataset.parquet)
    assert catalogue.describe("celeba").count("flwrlabs/celeba") == 1
