"""Downloads that end in the right file, and archives that end in the right folder, or in one clear error.

`download` goes on from a `.part` file after a kill; `extract` believes nothing that an archive says of itself. Both
hold less than a megabyte of the data in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import time
import unicodedata
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import requests
import urllib3
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

CHUNK = 1 << 18  # bytes read at a time
ATTEMPTS = 5
REDIRECTS = 5
LARGEST = 64 * 10**9  # bytes of a download whose length nobody announced
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class File(NamedTuple):
    """One file to download."""

    name: str
    urls: tuple[str, ...]  # tried in this order
    sha256: str | None = None
    size: int | None = None  # bytes


class _Again(Exception):
    """A fault that another attempt may mend."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
    backoff: float = 1.0,
    progress: bool = True,
) -> Path:
    """Fetch `url` to `path`, going on from `path.part` where an earlier run was cut off.

    A part is continued when the server says that its file is still the same (If-Range), or when the checksum will
    tell; else the download starts again. One process at a time: `caml_core.data.catalogue` holds a lock.

    Args:
        url: https; http from this machine only.
        sha256, size: 64 hexadecimal digits; bytes. None where nobody published them.
        timeout: seconds without a byte after which an attempt is given up.
        backoff: seconds before the second attempt, doubled before each further one.

    Returns:
        `path`, whole and checked. A file that is there already is kept unless its checksum is wrong.

    Raises:
        CamlError: no such file, no network, no space, or not the file that was promised.
    """
    path = Path(path)
    if path.exists() and (sha256 is None or store.sha256(path) == sha256):
        return path
    part = path.with_name(path.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            with disk_errors(part), requests.Session() as session:
                part.parent.mkdir(parents=True, exist_ok=True)
                _attempt(session, url, part, sha256, size, timeout, progress)
            break
        except (_Again, requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
            reason = getattr(error.args[0], "reason", None) if error.args else None
            if attempt == ATTEMPTS - 1 or isinstance(reason, urllib3.exceptions.NameResolutionError):
                raise CamlError(
                    what=f"could not download {url}: {reason or error}",
                    expected="the whole file, within a few attempts",
                    remedy="check the network and repeat the command; it goes on from where it stopped",
                ) from error
            time.sleep(backoff * 2**attempt)
    if sha256 is not None and (found := store.sha256(part)) != sha256:
        _forget(part)
        raise CamlError(
            what=f"wrong checksum of {url}: {found}",
            expected=f"SHA-256 {sha256}",
            remedy="repeat the command; if it stays wrong, the file at this address has changed",
        )
    with disk_errors(path):
        with open(part, "rb") as done:
            os.fsync(done.fileno())
        os.replace(part, path)
        _forget(part)
    return path


def _attempt(
    session: requests.Session,
    url: str,
    part: Path,
    sha256: str | None,
    size: int | None,
    timeout: float,
    progress: bool,
) -> None:
    """Append to `part` until it is whole, or raise."""
    note = _note(part)  # written before the first byte of a part: the validator of the file that it belongs to
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        validator, total = kept["validator"], kept["total"]
    except (OSError, ValueError, LookupError, TypeError):
        validator = total = None
    start = part.stat().st_size if part.exists() and (validator or sha256) else 0
    total = size if size is not None else total
    if start and start == total:
        return
    if total is not None and start > total:
        start = 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "caml_core"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    with _get(session, url, headers, timeout) as answer:
        if start and (whole := _rest(answer, start, validator)) is not None:
            announced: int | None = whole
        elif answer.status_code == 200:
            start, length = 0, answer.headers.get("Content-Length", "")
            announced = int(length) if re.fullmatch(r"\d{1,18}", length) else None
        else:  # not what was asked for; the next attempt asks for the whole file
            _forget(part)
            raise _Again(f"answer {answer.status_code} with Content-Range {answer.headers.get('Content-Range')}")
        if size is not None and announced not in (None, size):
            raise CamlError(
                what=f"{url} has {announced:,} bytes",
                expected=f"{size:,} bytes",
                remedy="the file at this address has changed: fetch it by hand",
            )
        total = size if size is not None else announced
        if total is None and sha256 is None and answer.headers.get("Transfer-Encoding", "").lower() != "chunked":
            raise CamlError(
                what=f"{url} does not say how long it is",
                expected="a length or a known checksum, to tell the whole file from a part",
                remedy="fetch it by hand",
            )
        _check_space(part.parent, (total or 0) - start)
        if not start:
            _forget(part)
            tag = answer.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
            store.write_text(note, json.dumps({"validator": validator, "total": total}))
        if progress:
            length = "length unknown" if total is None else f"{total:,} bytes"
            print(f"{part.stem}: {length} from {urllib.parse.urlsplit(answer.url).hostname}")
        _append(answer, part, start, total, progress)


def _get(session: requests.Session, url: str, headers: dict[str, str], timeout: float) -> requests.Response:
    """Answer 200, 206 or 416 of `url`. Redirects are followed by hand, so that none leaves https."""
    secure = False
    for _ in range(REDIRECTS + 1):
        try:
            target = urllib.parse.urlsplit(url)
            local = target.scheme == "http" and target.hostname in LOOPBACK
            if target.scheme != "https" and (secure or not local):
                raise ValueError("not https")
            secure = not local
            answer = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        except ValueError as error:  # also of a malformed address, here or in a redirect
            raise CamlError(
                what=f"will not fetch {url}: {error}",
                expected="an https address",
                remedy="fetch the file by hand, if you trust it",
            ) from error
        if answer.is_redirect:
            answer.close()
            url = urllib.parse.urljoin(url, answer.headers["Location"])
            continue
        page = answer.headers.get("Content-Type", "").startswith("text/html")
        if answer.status_code in (200, 206, 416) and not page:
            return answer
        answer.close()
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise _Again(f"{answer.status_code} {answer.reason}")
        raise CamlError(
            what=f"{url} answers " + ("a web page" if page else f"{answer.status_code} {answer.reason}"),
            expected="a file",
            remedy="it has moved, or has a quota, or asks for a login: fetch it by hand",
        )
    raise CamlError(what=f"more than {REDIRECTS} redirects, to {url}", expected="a file", remedy="fetch it by hand")


def _rest(answer: requests.Response, start: int, validator: str | None) -> int | None:
    """Length of the whole file when the answer is its rest from byte `start` on, else None."""
    said = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if answer.status_code != 206 or said is None:
        return None
    first, last, whole = map(int, said.groups())
    tag = answer.headers.get("ETag", "")
    changed = tag.startswith('"') and (validator or tag).startswith('"') and tag != (validator or tag)
    return whole if (first, last) == (start, whole - 1) and not changed else None


def _append(answer: requests.Response, part: Path, start: int, total: int | None, progress: bool) -> None:
    most = LARGEST if total is None else total
    with (
        open(part, "ab") as stream,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress) as bar,
    ):
        for chunk in answer.raw.stream(CHUNK, decode_content=False):
            if stream.tell() + len(chunk) > most:
                _forget(part)
                raise CamlError(
                    what=f"{answer.url} goes on after {most:,} bytes",
                    expected="no more than announced",
                    remedy="this is not the file that was promised: fetch it by hand",
                )
            stream.write(chunk)
            bar.update(len(chunk))
        if total is not None and stream.tell() < total:
            raise _Again(f"the answer ended after {stream.tell():,} of {total:,} bytes")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CamlError(
            what=f"{folder} has {free:,} bytes free",
            expected=f"{needed:,} bytes",
            remedy="free some space, or set CAML_CACHE to a folder on a larger disk",
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn faults of the disk into a CamlError; those of the network pass."""
    try:
        yield
    except (requests.RequestException, ConnectionError):  # these are OSErrors too
        raise
    except OSError as error:
        raise CamlError(
            what=f"cannot write {path}: {error.strerror or error}",
            expected="a writable folder with free space",
            remedy="free some space, or set CAML_CACHE to another folder",
        ) from error


class _Refused(Exception):
    """Something in an archive that a dataset has no use for."""


class _Member(NamedTuple):
    name: str
    is_folder: bool
    size: int  # as the archive says
    data: IO[bytes]


def extract(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> Path:
    """Unpack a zip, tar, tar.gz or tar.xz (told by content) into a new `folder`: all of it or nothing.

    Only plain files and folders with relative names are taken; names that would collide on some file system (case,
    Unicode form), encrypted members and damage of any kind are errors.

    Args:
        max_bytes, max_files: limits on what is really written, files and folders counted alike.

    Raises:
        CamlError: the archive is damaged, hostile or too large, or the disk is full. Nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise CamlError(what=f"{folder} exists", expected="a new folder", remedy="delete it, or choose another name")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
        temporary.chmod(0o755)  # mkdtemp makes private folders; a cache may be shared
        _check_space(temporary, archive.stat().st_size)
        _write(_members(archive), temporary, max_bytes, max_files)
        os.rename(temporary, folder)
    except DAMAGE as error:
        raise CamlError(
            what=f"cannot unpack {archive}: {error}",
            expected="a whole archive of plain files, within its limits, and free space",
            remedy="fetch it again; if it stays like this, do not trust its source",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


DAMAGE = (
    *(_Refused, OSError, EOFError, ValueError, RuntimeError, LookupError, OverflowError, struct.error),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, tarfile.TarError),
)


def _write(members: Iterator[_Member], root: Path, max_bytes: int, max_files: int) -> None:
    seen: dict[str, tuple[str, bool]] = {}
    written = 0
    for member in members:
        target = root.joinpath(*_claim(member, seen, max_files))
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        before = written
        with open(target, "xb") as stream:
            while chunk := member.data.read(CHUNK):
                written += len(chunk)
                if written > max_bytes:
                    raise _Refused(f"more than {max_bytes:,} bytes")
                stream.write(chunk)
        if written - before != member.size:
            raise _Refused(f"{member.name!r} has {written - before:,} bytes, not {member.size:,}")
    if not any(not is_folder for _, is_folder in seen.values()):
        raise _Refused("no files in it")


def _claim(member: _Member, seen: dict[str, tuple[str, bool]], max_files: int) -> list[str]:
    """Parts of a member's path below the root, entered in `seen` with its parents; refused if taken or outside."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    outside = name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name)
    encoded = os.fsencode(name)
    too_long = len(encoded) > 1024 or len(parts) > 32 or max(map(len, encoded.split(b"/"))) > 255
    if outside or too_long or "\\" in name or "\0" in name:
        raise _Refused(f"the name {name[:80]!r}")
    if not parts and not member.is_folder:
        raise _Refused("a file without a name")
    for depth in range(1, len(parts) + 1):
        path, is_folder = "/".join(parts[:depth]), depth < len(parts) or member.is_folder
        key = unicodedata.normalize("NFC", path).casefold()
        taken = seen.get(key)
        if taken is not None and (taken != (path, True) or not is_folder):
            raise _Refused(f"{name!r} collides with {taken[0]!r}")
        seen[key] = (path, is_folder)
        if len(seen) > max_files:
            raise _Refused(f"more than {max_files:,} files and folders")
    return parts


def _members(archive: Path) -> Iterator[_Member]:
    with open(archive, "rb") as stream:
        head = stream.read(6)
    if head.startswith(b"PK"):
        return _zip_members(archive)
    if head.startswith(b"\x1f\x8b"):
        return _tar_members(gzip.open(archive))
    return _tar_members(lzma.open(archive) if head == b"\xfd7zXZ\0" else open(archive, "rb"))


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(f"{info.filename!r} is a link or a device")
            with zipped.open(info) as data:  # checks the name in the local header, and the CRC-32 at the end
                yield _Member(info.orig_filename, info.is_dir(), info.file_size, data)


class _Header(tarfile.TarInfo):
    """A header of which a damaged one is an error; `tarfile` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)  # type: ignore[return-value]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut short ({error})") from error


class _Reader:
    """A stream that ends in an error past `limit`: long headers would be read into memory whole."""

    SLACK = 1 << 20  # bytes of headers before a member, or of padding at the end

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.count, self.limit = stream, 0, self.SLACK

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > self.limit:
            raise _Refused("headers or padding of more than a megabyte")
        return data


def _tar_members(stream: Any) -> Iterator[_Member]:
    with stream:
        reader = _Reader(stream)
        with tarfile.open(fileobj=reader, mode="r|", tarinfo=_Header) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # else it keeps them all
                if not (member.isdir() or member.isreg()) or member.issparse():
                    raise _Refused(f"{member.name!r} is a link, a device or sparse")
                reader.limit = reader.count + max(0, member.size) + reader.SLACK
                data = tar.extractfile(member) if member.isreg() else None
                yield _Member(member.name, member.isdir(), member.size, data or stream)
            while rest := tar.fileobj.read(CHUNK):  # to the end, where gzip and xz check what they gave
                if rest.count(0) != len(rest):
                    raise _Refused("data after the end of the archive")
