"""Downloads and archives: whatever a server or an archive does, the right folder or one clear error."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import itertools
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caml_core.data import catalogue, fetch
from caml_core.data.catalogue import Dataset, File
from caml_core.data.fetch import download, extract
from caml_core.errors import CamlError

noise = random.Random(0)
TREE = {  # what every right archive unpacks to
    "toy/metadata.csv": b"img,y,place\n" + b"a.jpg,1,0\n" * 50,
    "toy/train/a.jpg": noise.randbytes(9000),
    "toy/train/b.jpg": noise.randbytes(7000),
    "toy/empty.txt": b"",
}
FORMATS = ("zip", "tar", "tar.gz", "tar.xz")


# ---- a server that misbehaves as told -------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `payload` at every path; requests take their behaviours from `plan`, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.payload = b""
        self.version = 1  # of the payload: its ETag
        self.plan = ["whole"]
        self.ranges: list[str | None] = []
        self.conditions: list[str | None] = []
        self.kill: Callable[[], None] = lambda: None
        self.kill_after = 0
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
        behaviour = "whole" if self.path.endswith("?whole") else plan.pop(0) if len(plan) > 1 else plan[0]
        self.server.ranges.append(self.headers.get("Range"))
        self.server.conditions.append(self.headers.get("If-Range"))
        getattr(self, behaviour)(self.server.payload)

    def answer(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def tag(self) -> str:
        return f'"v{self.server.version}"'

    def asked(self) -> int:
        """First byte of an honoured range, or 0."""
        said = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(said[1]) if said and self.headers.get("If-Range", self.tag()) == self.tag() else 0

    def whole(self, data: bytes, *, cut: int | None = None, spoil: bool = False) -> None:
        start = self.asked()
        if start >= len(data) > 0:
            return self.answer(416, Content_Range=f"bytes */{len(data)}")
        headers = {"ETag": self.tag(), "Content_Length": len(data) - start}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, **headers)
        body = bytearray(data[start:])
        if spoil and body:
            body[len(body) // 2] ^= 0x10
        self.wfile.write(body[:cut])

    def truncated(self, data: bytes) -> None:
        self.whole(data, cut=(len(data) - self.asked()) // 2)

    def corrupt(self, data: bytes) -> None:
        self.whole(data, spoil=True)

    def corrupt_cut(self, data: bytes) -> None:
        self.whole(data, spoil=True, cut=(len(data) - self.asked()) * 3 // 4)

    def slow(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data))
        for i in range(0, len(data), 512):
            self.wfile.write(data[i : i + 512])
            self.wfile.flush()

    def stall(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data), ETag=self.tag())
        self.wfile.write(data[:100])
        self.server.go_on.wait()

    def no_range(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data), ETag=self.tag())
        self.wfile.write(data)

    def no_tag(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data))
        self.wfile.write(data[: len(data) // 2])

    def no_length(self, data: bytes) -> None:
        self.answer(200)
        self.wfile.write(data[: len(data) // 2])

    def chunked(self, data: bytes, end: bytes = b"0\r\n\r\n") -> None:
        self.protocol_version = "HTTP/1.1"
        self.answer(200, Transfer_Encoding="chunked", ETag=self.tag())
        for i in range(0, len(data), 5000):
            piece = data[i : i + 5000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(end)

    def chunked_cut(self, data: bytes) -> None:
        self.chunked(data[: len(data) // 2], b"")

    def chunked_long(self, data: bytes) -> None:
        self.chunked(data + b"x" * 999)

    def over_long(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data) + 999)
        self.wfile.write(data + b"x" * 999)

    def length_too_short(self, data: bytes) -> None:
        self.answer(200, Content_Length=max(0, len(data) - 100))
        self.wfile.write(data)

    def length_too_long(self, data: bytes) -> None:
        self.answer(200, Content_Length=len(data) + 100)
        self.wfile.write(data)

    def length_absurd(self, data: bytes) -> None:
        self.answer(200, Content_Length="9" * 5000)

    def wrong_range(self, data: bytes) -> None:
        if not (start := self.asked()):
            return self.truncated(data)
        body = data[start + 1 :]
        self.answer(206, Content_Length=len(body), Content_Range=f"bytes {start + 1}-{len(data) - 1}/{len(data)}")
        self.wfile.write(body)

    def wrong_total(self, data: bytes) -> None:
        if not (start := self.asked()):
            return self.truncated(data)
        body = data[start:-50]
        self.answer(206, Content_Length=len(body), Content_Range=f"bytes {start}-{len(data) - 51}/{len(data) - 50}")
        self.wfile.write(body)

    def range_unasked(self, data: bytes) -> None:
        self.answer(206, Content_Length=100, Content_Range=f"bytes 0-99/{len(data)}")
        self.wfile.write(data[:100])

    def range_absurd(self, data: bytes) -> None:
        self.answer(206, Content_Length=1, Content_Range=f"bytes {'9' * 5000}-1/2")

    def gzip_encoding(self, data: bytes) -> None:
        """Apache says so of a tar.gz; the file itself is what was asked for."""
        self.answer(200, Content_Length=len(data), Content_Encoding="x-gzip")
        self.wfile.write(data)

    def new_version(self, data: bytes) -> None:
        self.server.version += 1
        self.whole(data)

    def e500(self, data: bytes) -> None:
        self.answer(500)

    def e404(self, data: bytes) -> None:
        self.answer(404)

    def page(self, data: bytes) -> None:
        self.answer(200, Content_Type="text/html; charset=utf-8", Content_Length=5)
        self.wfile.write(b"quota")

    def hang_up(self, data: bytes) -> None: ...

    def redirect(self, data: bytes) -> None:
        self.answer(302, Location=self.path + "?whole")

    def loop(self, data: bytes) -> None:
        self.answer(302, Location=self.path)

    def redirect_elsewhere(self, data: bytes) -> None:
        self.answer(301, Location="http://127.0.0.1.example.org/")

    def redirect_file(self, data: bytes) -> None:
        self.answer(307, Location="file:///etc/hostname")

    def redirect_malformed(self, data: bytes) -> None:
        self.answer(302, Location="http://[")

    def killer(self, data: bytes) -> None:
        """Send so many bytes, see them written, and kill the client."""
        self.answer(200, Content_Length=len(data), ETag=self.tag())
        self.wfile.write(data[: self.server.kill_after])
        self.wfile.flush()
        self.server.kill()


FAULTS = [name for name, value in vars(Handler).items() if callable(value) and name.islower()]
FAULTS = [name for name in FAULTS if name not in ("log_message", "answer", "tag", "asked", "stall", "killer", "do_GET")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


# ---- archives, right and hostile ------------------------------------------------------------------------------------


def tar_member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def zip_member(name: str, data: bytes = b"", mode: int = 0o100644) -> tuple[Any, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return info, data


EXTRA: dict[str, tuple[tuple[Any, bytes], ...]] = {  # fault: further members of a zip; of a tar below
    "parent": (zip_member("toy/../../evil.txt", b"x"),),
    "absolute": (zip_member("/tmp/evil-caml.txt", b"x"),),
    "backslash": (zip_member("..\\evil.txt", b"x"),),
    "drive": (zip_member("C:evil.txt", b"x"),),
    "symlink": (zip_member("toy/link", b"/etc/hostname", 0o120777),),
    "through_link": (zip_member("toy/up", b"..", 0o120777), zip_member("toy/up/evil.txt", b"x")),
    "device": (zip_member("toy/null", b"", 0o020666),),
    "fifo": (zip_member("toy/pipe", b"", 0o010666),),
    "duplicate": (zip_member("toy/metadata.csv", b"other"),),
    "dotted_duplicate": (zip_member("./toy//metadata.csv", b"other"),),
    "case": (zip_member("toy/Metadata.CSV", b"other"),),
    "folder_case": (zip_member("Toy/other.txt", b"other"),),
    "unicode": (zip_member("toy/\u00e9", b"1"), zip_member("toy/e\u0301", b"2")),
    "below_a_file": (zip_member("toy/metadata.csv/x", b"x"),),
    "over_a_folder": (zip_member("toy/train", b"x"),),
    "long_name": (zip_member("toy/" + "n" * 300, b"x"),),
    "deep": (zip_member("toy/" + "d/" * 40 + "x", b"x"),),
    "many": tuple(zip_member(f"toy/{i}.txt") for i in range(60)),
    "bomb": (zip_member("toy/zeros", bytes(3_000_000)),),
}
KINDS = {"symlink": tarfile.SYMTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}


def tar_extra(fault: str) -> list[tuple[Any, bytes]]:
    if fault == "hardlink":
        return [tar_member("toy/link", kind=tarfile.LNKTYPE, target="toy/metadata.csv")]
    if fault == "hardlink_out":
        return [tar_member("toy/link", kind=tarfile.LNKTYPE, target="../../../etc/hostname")]
    if fault == "long_header":
        info, data = tar_member("toy/x")
        info.pax_headers = {"comment": "x" * 3_000_000}
        return [(info, data)]
    members = []
    for info, data in EXTRA[fault]:
        link = info.external_attr >> 28 == 0o12
        kind = tarfile.SYMTYPE if link else KINDS.get(fault, tarfile.REGTYPE)
        members.append(tar_member(info.filename, b"" if link else data, kind, data.decode() if link else ""))
    return members


DAMAGE = ("cut", "cut_a_little", "flip_early", "flip_middle", "flip_late", "empty", "no_members", "garbage")
ZIP_ONLY = ("encrypted", "nul", "wrong_size")
TAR_ONLY = ("hardlink", "hardlink_out", "long_header", "trailing", "hole", "no_end")


@functools.cache
def pack(form: str, fault: str = "none") -> bytes:
    """An archive of TREE with one fault."""
    stream = io.BytesIO()
    tree = {} if fault == "no_members" else TREE
    if form == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in tree.items():
                archive.writestr(*zip_member(name, data))
            for info, data in EXTRA.get(fault, ()):
                with warnings.catch_warnings(action="ignore"):  # of duplicates
                    archive.writestr(info, data)
            if fault == "nul":
                archive.writestr(*zip_member("toy/nulXevil", b"x"))
            if fault == "encrypted":
                archive.infolist()[1].flag_bits |= 0x1
            if fault == "wrong_size":
                archive.infolist()[1].file_size += 5
        data = stream.getvalue().replace(b"nulXevil", b"nul\0evil")
    else:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in tree.items():
                info, content = tar_member(name, content)
                archive.addfile(info, io.BytesIO(content))
            for info, content in tar_extra(fault) if fault in EXTRA or fault in TAR_ONLY[:3] else ():
                archive.addfile(info, io.BytesIO(content))
        data = stream.getvalue()
        if fault == "trailing":
            data += b"more"
        if fault == "hole":  # the second header is lost: zeros, as after the end of an archive
            data = data[:1024] + bytes(512) + data[1536:]
        if fault == "no_end":
            data = data.rstrip(b"\0")
            data += bytes(-len(data) % 512)
        if form == "tar.gz":
            data = gzip.compress(data, 6, mtime=0)
        if form == "tar.xz":
            data = lzma.compress(data, preset=0)
    cut = {"cut": len(data) // 2, "cut_a_little": len(data) - 9, "empty": 0}.get(fault)
    if fault.startswith("flip"):
        spoilt = bytearray(data)
        spoilt[{"flip_early": len(data) // 7, "flip_middle": len(data) // 2, "flip_late": -10}[fault]] ^= 0x04
        data = bytes(spoilt)
    return b"<html>quota exceeded" * 99 if fault == "garbage" else data[:cut]


def faults_of(form: str) -> list[str]:
    """Archive faults that must be seen in an archive of this format whose checksum nobody knows."""
    found = [*EXTRA, *DAMAGE, *(ZIP_ONLY if form == "zip" else TAR_ONLY)]
    if form == "tar":  # which checks nothing but its headers, and cannot be a bomb
        return [f for f in found if not f.startswith("flip") and f not in ("cut_a_little", "bomb")]
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


# ---- extraction -----------------------------------------------------------------------------------------------------


def unpack(tmp_path: Path, data: bytes, most: int = 10**6, files: int = 50) -> Path:
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    return extract(archive, tmp_path / "out" / "toy", max_bytes=most, max_files=files)


@pytest.mark.parametrize("form", FORMATS)
def test_a_right_archive_unpacks_whole(tmp_path: Path, form: str) -> None:
    folder = unpack(tmp_path, pack(form))
    assert tree(folder) == TREE
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    with pytest.raises(CamlError, match="exists"):
        unpack(tmp_path, pack(form))


@pytest.mark.parametrize(("form", "fault"), [(form, fault) for form in FORMATS for fault in faults_of(form)])
def test_hostile_and_damaged_archives_leave_nothing(tmp_path: Path, form: str, fault: str) -> None:
    with pytest.raises(CamlError, match="cannot unpack") as caught:
        unpack(tmp_path, pack(form, fault))
    assert "\n" not in caught.value.what
    assert tree(tmp_path) == {"archive": pack(form, fault)}
    assert list((tmp_path / "out").iterdir()) == []
    assert not Path("/tmp/evil-caml.txt").exists()


def test_limits_count_what_is_written(tmp_path: Path) -> None:
    bytes_in_it = sum(map(len, TREE.values()))
    places = 6  # 4 files, 2 folders
    assert tree(unpack(tmp_path, pack("zip"), bytes_in_it, places)) == TREE
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(CamlError, match="more than"):
        unpack(tmp_path, pack("zip"), bytes_in_it - 1, places)
    with pytest.raises(CamlError, match="more than"):
        unpack(tmp_path, pack("tar.xz"), bytes_in_it, places - 1)


def test_every_cut_and_flip_of_an_archive_is_seen(tmp_path: Path) -> None:
    """Cut at any of many lengths, or with one byte changed: an error, or the right tree all the same."""
    rng = random.Random(1)
    refused = 0
    for form in ("zip", "tar.gz"):
        whole = pack(form)
        cuts = [whole[: rng.randrange(len(whole))] for _ in range(40)]
        flips = []
        for _ in range(120):
            spoilt = bytearray(whole)
            spoilt[rng.choice((rng.randrange(len(whole)), -rng.randrange(1, 400)))] ^= 1 << rng.randrange(8)
            flips.append(bytes(spoilt))
        for data in cuts + flips:
            try:
                folder = unpack(tmp_path, data)
            except CamlError:
                refused += 1
            else:
                assert tree(folder) == TREE
                shutil.rmtree(folder)
    assert refused > 200


# ---- downloads ------------------------------------------------------------------------------------------------------


def get(server: Server, path: Path, *, sha: bool = False, size: bool = False, **more: Any) -> Path:
    return download(
        server.url + "/file",
        path,
        sha256=hashlib.sha256(server.payload).hexdigest() if sha else None,
        size=len(server.payload) if size else None,
        **{"backoff": 0, "timeout": 5, "progress": False, **more},
    )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CHUNK", 2048)


@pytest.mark.parametrize("faults", [["truncated"], ["truncated", "truncated"], ["e500", "truncated", "hang_up"]])
def test_a_cut_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, faults: list[str]) -> None:
    server.payload = noise.randbytes(10_000)
    server.plan = [*faults, "whole"]
    assert get(server, tmp_path / "f").read_bytes() == server.payload
    cuts = faults.count("truncated")
    assert server.ranges[-1] == f"bytes={10_000 - 10_000 // 2**cuts}-"
    assert server.conditions[-1] == '"v1"'
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    asked = len(server.ranges)
    assert get(server, tmp_path / "f", sha=True).read_bytes() == server.payload
    assert len(server.ranges) == asked, "what is there and right is not fetched again"


def test_an_unproven_part_is_not_continued(server: Server, tmp_path: Path) -> None:
    """Without a validator or a checksum, nobody can say that the rest belongs to the same file."""
    server.payload = noise.randbytes(10_000)
    server.plan = ["no_tag", "whole"]
    get(server, tmp_path / "f")
    assert server.ranges == [None, None]
    (tmp_path / "g.part").write_bytes(server.payload[:3000])
    server.ranges.clear()
    get(server, tmp_path / "g", sha=True)
    assert server.ranges == ["bytes=3000-"]


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.payload = noise.randbytes(10_000)
    server.plan = ["truncated"]
    with pytest.raises(CamlError, match="could not download"):
        get(server, tmp_path / "f")
    server.payload, server.version, server.plan = noise.randbytes(12_000), 2, ["whole"]
    assert get(server, tmp_path / "f").read_bytes() == server.payload


@pytest.mark.parametrize(
    ("fault", "message", "requests_made"),
    [
        ("e404", "404", 1),
        ("e500", "500", 5),
        ("page", "a web page", 1),
        ("loop", "redirects", 6),
        ("redirect_elsewhere", "will not fetch", 1),
        ("redirect_file", "will not fetch", 1),
        ("no_length", "how long", 1),
        ("hang_up", "could not download", 5),
        ("redirect_malformed", "will not fetch", 1),
        ("length_absurd", "how long", 1),
    ],
)
def test_faults_that_last_are_one_error(
    server: Server, tmp_path: Path, fault: str, message: str, requests_made: int
) -> None:
    server.payload = b"data" * 1000
    server.plan = [fault]
    with pytest.raises(CamlError, match=message):
        get(server, tmp_path / "f")
    assert len(server.ranges) <= requests_made
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("fault", ["corrupt", "length_too_short", "chunked_long"])
def test_a_wrong_checksum_deletes_the_part(server: Server, tmp_path: Path, fault: str) -> None:
    server.payload = noise.randbytes(5000)
    server.plan = [fault]
    with pytest.raises(CamlError, match="wrong checksum"):
        get(server, tmp_path / "f", sha=True)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.payload = noise.randbytes(5000)
    for fault in ("over_long", "chunked_long", "length_too_long", "length_too_short"):
        server.plan = [fault]
        with pytest.raises(CamlError, match="5,000 bytes" if fault == "chunked_long" else "bytes"):
            get(server, tmp_path / "f", size=True)
    server.plan = ["chunked_long"]
    monkeypatch.setattr(fetch, "LARGEST", 4000)
    with pytest.raises(CamlError, match="goes on after 4,000 bytes"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "f.part").exists()


def test_a_server_that_stalls_is_left(server: Server, tmp_path: Path) -> None:
    server.payload = noise.randbytes(5000)
    server.plan = ["stall"]
    with pytest.raises(CamlError, match="could not download"):
        get(server, tmp_path / "f", timeout=0.05)
    assert not (tmp_path / "f").exists()
    server.plan = ["whole"]
    assert get(server, tmp_path / "f").read_bytes() == server.payload


def test_space_is_checked_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.payload = noise.randbytes(5000)
    usage = shutil.disk_usage(tmp_path)._replace(free=4999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CamlError, match="4,999 bytes free"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f.part").exists()
    with pytest.raises(CamlError, match="cannot write"):
        get(server, Path("/dev/null/f"))


def test_size_is_said_before(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.payload = bytes(1_234_567)
    get(server, tmp_path / "f.zip", progress=True)
    said = capsys.readouterr()
    assert said.out == "f.zip: 1,234,567 bytes from 127.0.0.1\n"
    assert "f.zip" in said.err
    assert "1.23M" in said.err


def test_only_https_and_never_back_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://example.org/f", "ftp://example.org/f", "file:///etc/hostname", "http://127.0.0.1@example.org/"):
        with pytest.raises(CamlError, match="will not fetch"):
            download(url, tmp_path / "f")
    asked = []

    def answer(self: requests.Session, url: str, **_: Any) -> requests.Response:
        asked.append(url)
        response = requests.Response()
        response.status_code, response.raw = 302, io.BytesIO()
        response.headers["Location"] = "http://127.0.0.1:9/f"
        return response

    monkeypatch.setattr(requests.Session, "get", answer)
    with pytest.raises(CamlError, match=r"will not fetch http://127\.0\.0\.1:9/f"):
        download("https://example.org/f", tmp_path / "f")
    assert asked == ["https://example.org/f"]


def test_memory_stays_flat(server: Server, tmp_path: Path) -> None:
    """64 MB are served and unpacked within a few."""
    size = 64_000_000
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(tar_member("zeros", bytes(size))[0], io.BytesIO(bytes(size)))
    server.payload = inner.getvalue()
    packed = gzip.compress(server.payload, 1)
    (tmp_path / "a.tar.gz").write_bytes(packed)
    get(server, tmp_path / "warm")
    (tmp_path / "warm").unlink()
    server.plan = ["no_range"]
    tracemalloc.start()
    get(server, tmp_path / "a.tar")
    extract(tmp_path / "a.tar", tmp_path / "plain", max_bytes=size, max_files=1)
    extract(tmp_path / "a.tar.gz", tmp_path / "packed", max_bytes=size, max_files=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "plain" / "zeros").stat().st_size == (tmp_path / "packed" / "zeros").stat().st_size == size
    assert peak < 8_000_000


# ---- all of it: many faults at once, then a kill --------------------------------------------------------------------


def toy(form: str, url: str, payload: bytes, *, sha: bool, size: bool) -> Dataset:
    digest = hashlib.sha256(payload).hexdigest() if sha else None
    file = File(f"toy.{form}", (f"{url}/toy.{form}",), digest, len(payload) if size else None)
    return Dataset("Toy", ("toy",), (("metadata.csv#place",),), (file,), "draw it", "none", "nobody", "nowhere")


def test_faults_by_the_hundred_never_leave_a_bad_dataset(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    """Faults of server, archive and an earlier part together: an error and no folder, or the whole right folder.

    After any of them an honest server is enough to get the dataset, at the latest at the second attempt (the first
    may find that the part left behind was bad).
    """
    monkeypatch.setattr(catalogue, "MOST_FILES", 50)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here, and the disk is slow
    cases: dict[tuple[Any, ...], str] = {}
    number = itertools.count()

    @st.composite
    def one(draw: st.DrawFn) -> tuple[Any, ...]:
        form = draw(st.sampled_from(FORMATS))
        archive = draw(st.sampled_from(faults_of(form))) if draw(st.booleans()) else "none"
        plan = tuple(draw(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3)))
        plan += ("whole",) if draw(st.booleans()) else ()
        sha = draw(st.booleans()) or form == "tar"  # nothing else tells a damaged tar from a right one
        size = draw(st.booleans())
        return form, archive, plan, sha, size, draw(st.sampled_from(["none", "none", "right", "junk", "long"]))

    @settings(
        max_examples=260,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(one())
    def run(case: tuple[Any, ...]) -> None:
        form, fault, plan, sha, size, part = case
        root = tmp_path / str(next(number)) / "cache"
        monkeypatch.setenv("CAML_CACHE", str(root))
        right, served = pack(form), pack(form, fault)
        server.plan, server.version = [*plan], 1
        # A checksum is that of what the source has: the archive itself may be the hostile one.
        server.payload = served
        monkeypatch.setitem(catalogue.CATALOGUE, "toy", toy(form, server.url, served, sha=sha, size=size))
        work = root / "datasets" / "toy.download"
        work.mkdir(parents=True)
        left = {"right": served[:3000], "junk": b"j" * 3000, "long": served + b"l" * 99}.get(part)
        if left is not None:
            (work / f"toy.{form}.part").write_bytes(left)
            (work / f"toy.{form}.part.json").write_text(json.dumps({"validator": '"v1"', "total": len(served)}))
        try:
            folder = catalogue.fetch("toy", backoff=0, progress=False)
        except CamlError:
            cases[case] = "error"
            assert not (root / "datasets" / "toy").exists()
            with pytest.raises(CamlError, match="not found"):
                catalogue.locate("toy", download=False)
        else:
            cases[case] = "whole"
            assert fault == "none"
            assert tree(folder.parent) == TREE
            assert "all 4" in catalogue.verify("toy")
        assert {p.name for p in root.parent.rglob("*evil*")} == set()
        server.plan, server.payload, server.version = ["whole"], right, 1 if fault == "none" else 9
        monkeypatch.setitem(catalogue.CATALOGUE, "toy", toy(form, server.url, right, sha=sha, size=size))
        try:
            folder = catalogue.fetch("toy", backoff=0, progress=False)
        except CamlError:
            folder = catalogue.fetch("toy", backoff=0, progress=False)
        assert tree(folder.parent) == TREE
        assert not work.exists()
        shutil.rmtree(root.parent)

    run()
    print(len(cases), "cases,", list(cases.values()).count("whole"), "whole")
    assert len(cases) >= 200
    assert list(cases.values()).count("whole") >= 30
    assert list(cases.values()).count("error") >= 100


CHILD = """
import json, os, shutil, signal, sys
from caml_core.data import catalogue, fetch
from caml_core.data.catalogue import Dataset, File

fetch.CHUNK = 16384
os.environ["NO_PROXY"] = "127.0.0.1"
os.fsync = lambda handle: None  # the power is not cut, only the process is killed

def die_at(module, name, after):
    original = getattr(module, name)
    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs) if after else None
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, wrapped)

for line in sys.stdin:  # one process imports; its children work and are killed
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.environ["CAML_CACHE"] = job["cache"]
        file = File("toy.tar.gz", (job["url"],), job["sha256"], None)
        layout = (("metadata.csv#place",),)
        catalogue.CATALOGUE["toy"] = Dataset("Toy", ("toy",), layout, (file,), "", "", "", "")
        if job["die"]:
            module, name, after = job["die"]
            die_at(sys.modules[module], name, after)
        try:
            catalogue.fetch("toy", backoff=0, progress=False)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_at_any_point_the_same_command_finishes(server: Server, tmp_path: Path) -> None:
    """SIGKILL after k chunks, and before and after each step that follows; the next run goes on and ends right."""
    rng = random.Random(2)
    contents = {"toy/metadata.csv": b"img,place\n", "toy/a.jpg": rng.randbytes(300_000)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, data in contents.items():
            archive.addfile(tar_member(name, data)[0], io.BytesIO(data))
    server.payload = stream.getvalue()
    digest = hashlib.sha256(server.payload).hexdigest()
    chunks = len(server.payload) // 16384
    steps = [("os", "fsync"), ("os", "replace"), ("os", "rename"), ("tempfile", "mkdtemp"), ("shutil", "rmtree")]
    points: list[Any] = sorted(rng.choices(range(1, chunks + 1), k=20))
    points += [(module, name, after) for module, name in steps for after in (False, True)]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def start(cache: Path, sha: bool, die: Any = None) -> int:
            job = {"cache": str(cache), "url": server.url + "/f", "sha256": digest if sha else None, "die": die}
            print(json.dumps(job), file=parent.stdin)
            return int(parent.stdout.readline())  # type: ignore[union-attr]

        for number, point in enumerate(points):
            cache, sha = tmp_path / str(number), number % 2 == 0
            part = cache / "datasets" / "toy.download" / "toy.tar.gz.part"
            known, victim = threading.Event(), [0]

            def kill(part: Path = part, known: threading.Event = known, victim: list[int] = victim) -> None:
                while not part.exists() or part.stat().st_size < server.kill_after:
                    os.sched_yield()
                known.wait()
                os.kill(victim[0], signal.SIGKILL)

            server.ranges.clear()
            if isinstance(point, int):
                server.plan, server.kill, server.kill_after = ["killer", "whole"], kill, point * 16384
                victim[0] = start(cache, sha)
                known.set()
            else:
                server.plan = ["whole"]
                start(cache, sha, point)
            assert int(parent.stdout.readline()) == signal.SIGKILL, point
            if isinstance(point, int):
                assert part.stat().st_size == point * 16384
            folder = cache / "datasets" / "toy"
            assert not folder.exists() or tree(folder) == contents
            start(cache, sha)
            assert int(parent.stdout.readline()) == 0, point
            assert tree(folder) == contents
            if isinstance(point, int):
                assert server.ranges == [None, f"bytes={point * 16384}-"], "went on, did not start again"
        parent.stdin.close()
