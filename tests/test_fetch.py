"""Fetching: a broken, cut, wrong, hostile or killed download is one clear error and never a dataset that loads."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caml_core.data import fetch, find
from caml_core.data.fetch import File, download, extract
from caml_core.data.find import CATALOGUE, Dataset
from caml_core.errors import CamlError

NOISE = np.random.default_rng(0)
TREE = {  # what a right archive unpacks to
    "toy/metadata.csv": b"img,y,place\n" + b"a.jpg,1,0\n" * 50,
    "toy/train/a.jpg": NOISE.bytes(9000),
    "toy/train/b.jpg": NOISE.bytes(7000),
}
FORMATS = ("zip", "tar.gz")


# ---- a server that misbehaves as told -------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `payload` at every path; requests take their behaviours from `plan`, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.payload, self.plan, self.asked = b"", ["whole"], 0
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up; nothing to say."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        self.close_connection = True
        plan = self.server.plan
        self.server.asked += 1
        getattr(self, plan.pop(0) if len(plan) > 1 else plan[0])(self.server.payload)

    def answer(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self, data: bytes, *, cut: int | None = None, spoil: int = 0) -> None:
        self.answer(200, Content_Length=len(data))
        body = bytearray(data)
        body[len(body) // 2] ^= spoil
        self.wfile.write(body[:cut])

    def truncated(self, data: bytes) -> None:
        self.whole(data, cut=len(data) // 2)

    def corrupt(self, data: bytes) -> None:
        self.whole(data, spoil=16)

    def stall(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data))
        self.wfile.write(data[:100])
        self.server.go_on.wait()

    def no_length(self, data: bytes) -> None:
        self.answer(200)
        self.wfile.write(data[: len(data) // 2])

    def chunked(self, data: bytes, end: bytes = b"0\r\n\r\n") -> None:
        self.protocol_version = "HTTP/1.1"
        self.answer(200, Transfer_Encoding="chunked")
        for i in range(0, len(data), 5000):
            piece = data[i : i + 5000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(end)

    def chunked_cut(self, data: bytes) -> None:
        self.chunked(data[: len(data) // 2], b"")

    def length_too_long(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data) + 100)
        self.wfile.write(data)

    def gzip_encoding(self, data: bytes) -> None:
        """Apache says so of a tar.gz; the file itself is what was asked for."""
        self.answer(200, Content_Length=len(data), Content_Encoding="x-gzip")
        self.wfile.write(data)

    def e500(self, data: bytes) -> None:
        self.answer(500)

    def e404(self, data: bytes) -> None:
        self.answer(404)

    def page(self, data: bytes) -> None:
        self.answer(200, Content_Type="text/html; charset=utf-8", Content_Length=5)
        self.wfile.write(b"quota")

    def hang_up(self, data: bytes) -> None: ...

    def redirect_loop(self, data: bytes) -> None:
        self.answer(302, Location=self.path)

    def redirect_file(self, data: bytes) -> None:
        self.answer(307, Location="file:///etc/hostname")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


# ---- archives, right and hostile ------------------------------------------------------------------------------------

EXTRA: dict[str, list[tuple[str, bytes, int]]] = {  # fault: further members, with their mode
    "parent": [("toy/../../evil.txt", b"x", 0o100644)],
    "absolute": [("/tmp/evil-caml.txt", b"x", 0o100644)],
    "backslash": [("..\\evil.txt", b"x", 0o100644)],
    "symlink": [("toy/link", b"/etc/hostname", 0o120777)],
    "through_link": [("toy/up", b"..", 0o120777), ("toy/up/evil.txt", b"x", 0o100644)],
    "device": [("toy/null", b"", 0o020666)],
    "bomb": [("toy/zeros", bytes(3_000_000), 0o100644)],
    "below_a_file": [("toy/metadata.csv/x", b"x", 0o100644)],
}
DAMAGE = ("cut", "cut_a_little", "flip_early", "flip_middle", "empty", "garbage", "header")


def pack(form: str, fault: str = "none") -> bytes:
    """An archive of TREE with one fault."""
    stream = io.BytesIO()
    members = [(name, data, 0o100644) for name, data in TREE.items()] + EXTRA.get(fault, [])
    if form == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data, mode in members:
                info = zipfile.ZipInfo(name)
                info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
                archive.writestr(info, data)
        data = stream.getvalue()
    else:
        kinds = {0o10: tarfile.REGTYPE, 0o12: tarfile.SYMTYPE, 0o2: tarfile.CHRTYPE}
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, data, mode in members:
                member = tarfile.TarInfo(name)
                member.type = kinds[mode >> 12]
                is_link = member.issym()
                member.size, member.linkname = (0, data.decode()) if is_link else (len(data), "")
                tar.addfile(member, io.BytesIO(b"" if is_link else data))
        data = stream.getvalue()
        if fault == "header":  # of the last member: read as the end of the archive
            at = data.rindex(b"toy/train/b.jpg")
            spoilt = bytearray(gzip.compress(data[:at] + b"T" + data[at + 1 :], mtime=0))
            spoilt[-8:-4] = gzip.compress(data, mtime=0)[-8:-4]  # the sum of what it was
            return bytes(spoilt)
        data = gzip.compress(data, mtime=0)
    if fault == "header":
        return data.replace(b"PK\3\4", b"PK\3\5", 1)
    cut = {"cut": len(data) // 2, "cut_a_little": len(data) - 9, "empty": 0}.get(fault)
    if fault.startswith("flip"):
        at = len(data) // (7 if fault == "flip_early" else 2)
        data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    return b"<html>quota exceeded" * 99 if fault == "garbage" else data[:cut]


def tree(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if not p.is_dir()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", ["none", *EXTRA, *DAMAGE])
def test_an_archive_is_unpacked_whole_or_refused(form: str, fault: str, tmp_path: Path) -> None:
    archive = tmp_path / f"toy.{form}"
    archive.write_bytes(pack(form, fault))
    if fault == "none":
        extract(archive, tmp_path / "out")
        assert tree(tmp_path / "out") == TREE
        return
    with pytest.raises(CamlError, match=f"cannot unpack toy.{form}") as caught:
        extract(archive, tmp_path / "out")
    assert caught.value.remedy
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/evil-caml.txt").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert not archive.exists(), "it is fetched anew"


# ---- downloads ------------------------------------------------------------------------------------------------------


def get(server: Server, folder: Path, *, sha: bool = False) -> bytes:
    digest = hashlib.sha256(server.payload).hexdigest() if sha else None
    return download(File("f", (server.url + "/file",), digest), folder, progress=False).read_bytes()


def test_a_cut_download_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.payload, server.plan = NOISE.bytes(10_000), ["e500", "truncated", "whole"]
    assert get(server, tmp_path) == server.payload
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert get(server, tmp_path, sha=True) == server.payload
    assert server.asked == 3, "what is there and right is not fetched again"


@pytest.mark.parametrize(
    "fault", ["e404", "e500", "redirect_loop", "redirect_file", "hang_up", "stall", "chunked_cut", "length_too_long"]
)
def test_faults_that_last_are_one_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.05 if fault == "stall" else 5)
    server.payload, server.plan = b"data" * 1000, [fault]
    with pytest.raises(CamlError, match="could not download") as caught:
        get(server, tmp_path)
    assert server.url in caught.value.what
    assert list(tmp_path.iterdir()) == []
    server.plan = ["whole"]
    assert get(server, tmp_path) == server.payload


def test_the_checksum_is_held_against_the_file(server: Server, tmp_path: Path) -> None:
    server.payload, server.plan = NOISE.bytes(5000), ["corrupt"]
    with pytest.raises(CamlError, match="does not match the known hash") as caught:
        get(server, tmp_path, sha=True)
    assert hashlib.sha256(server.payload).hexdigest() in caught.value.expected
    assert list(tmp_path.iterdir()) == []
    server.plan = ["gzip_encoding"]
    assert get(server, tmp_path, sha=True) == server.payload


def test_a_place_to_write_and_a_second_address(server: Server, tmp_path: Path) -> None:
    server.payload = b"data"
    with pytest.raises(CamlError, match="cannot write"):
        get(server, Path("/dev/null/f"))
    both = File("f", (server.url + "/gone", server.url))
    server.plan = ["e404"] * (1 + fetch.RETRIES) + ["whole"]
    assert download(both, tmp_path, progress=False).read_bytes() == b"data"


# ---- all of it: faults of server and archive, then a kill -----------------------------------------------------------


def toy(form: str, url: str, payload: bytes = b"", sha: bool = False) -> Dataset:
    file = File(f"toy.{form}", (f"{url}/toy.{form}",), hashlib.sha256(payload).hexdigest() if sha else None)
    return Dataset("Toy", ("toy",), (("metadata.csv#place",),), "draw it", "none", "nobody", "nowhere", (file,))


CASES = [(form, fault, "whole") for form in FORMATS for fault in ("none", *EXTRA, *DAMAGE)]
CASES += [("tar.gz", "none", name) for name in ("truncated", "corrupt", "no_length", "chunked_cut", "page", "e404")]


@pytest.mark.parametrize(("form", "fault", "behaviour"), CASES)
def test_no_fault_leaves_a_dataset_that_loads(
    form: str, fault: str, behaviour: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error and no folder, or the whole right folder; then an honest server is enough to get it."""
    server.payload, server.plan = pack(form, fault), [behaviour]
    # A checksum is that of what the source has: the archive itself may be the hostile one.
    monkeypatch.setitem(CATALOGUE, "toy", toy(form, server.url, server.payload, sha=fault in EXTRA))
    if (fault, behaviour) != ("none", "whole"):
        with pytest.raises(CamlError) as caught:
            find.fetch("toy", progress=False)
        assert f"toy.{form}" in str(caught.value)
        with pytest.raises(CamlError, match="not found"):
            find.locate("toy", download=False)
        server.plan, server.payload = ["whole"], pack(form)
        monkeypatch.setitem(CATALOGUE, "toy", toy(form, server.url, server.payload))
    folder = find.fetch("toy", progress=False)
    assert tree(folder.parent) == TREE
    assert not folder.parent.with_name("toy.download").exists()
    assert not list(cache.parent.rglob("*evil*"))


CHILD = """
import os, signal, sys
import pooch, tarfile, pathlib
from caml_core.data import fetch, find
fetch.CHUNK = 2048
os.environ["NO_PROXY"] = "127.0.0.1"
url, where, after = sys.argv[1:]
sys.path.insert(0, "tests")
from test_fetch import toy
find.CATALOGUE["toy"] = toy("tar.gz", url)

def die(original, left=[int(after)]):
    def wrapped(*arguments, **options):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*arguments, **options)
    return wrapped

if where == "bytes":  # so many chunks into the download
    fetch.tqdm.update = die(fetch.tqdm.update)
elif where == "member":  # so many members into the archive
    tarfile.TarFile.extract = tarfile.TarFile._extract_one = die(tarfile.TarFile._extract_one)
elif where == "move":  # before the whole file gets its name
    os.rename = die(os.rename)
elif where == "rename":
    pathlib.Path.rename = die(pathlib.Path.rename)
find.fetch("toy", progress=False)
"""


@pytest.mark.parametrize("point", ["bytes 0", "bytes 5", "member 1", "move 0", "rename 0"])
def test_killed_at_any_point_the_same_command_finishes(point: str, server: Server, cache: Path) -> None:
    server.payload = pack("tar.gz")
    command = [sys.executable, "-c", CHILD, server.url]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    died = subprocess.run([*command, *point.split()], env=environment, capture_output=True, text=True, cwd=root)
    assert died.returncode == -signal.SIGKILL, died.stderr
    folder = cache / "datasets" / "toy"
    assert not folder.exists()
    subprocess.run([*command, "nowhere", "0"], env=environment, check=True, cwd=root)
    assert tree(folder) == TREE
