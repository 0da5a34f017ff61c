"""Downloads that end in the right file, and archives that end in the right folder, or in one clear error.

pooch tries again, checks and renames what was downloaded. Archives go through the standard library, which checks their
sums, and hold nothing but plain files below their own folder.
"""

from __future__ import annotations

import errno
import functools
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pooch
import requests
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

CHUNK = 1 << 18  # bytes read at a time
GROWTH = 4  # an archive may unpack to so many times its size: images hardly shrink
RETRIES, TIMEOUT = 2, 30.0  # further attempts at an address; seconds without a byte
pooch.get_logger().setLevel("WARNING")


class File(NamedTuple):
    """One file to download."""

    name: str
    urls: Sequence[str]  # tried in this order
    sha256: str | None = None
    size: int | None = None  # bytes


def download(file: File, folder: Path, progress: bool = True) -> Path:
    """Fetch a file into `folder` from the first of its addresses that serves it, whole and with the right checksum.

    Raises:
        CamlError: what was wrong with each address, or with the disk.
    """
    faults, stream = [], functools.partial(_stream, label=file.name, progress=progress)
    for url in file.urls:
        registry: dict[str, Any] = {file.name: file.sha256}
        source = pooch.create(folder, url, registry=registry, urls={file.name: url}, retry_if_failed=RETRIES)
        with store.writing(folder / file.name):
            try:
                return Path(source.fetch(file.name, downloader=stream))
            except (requests.RequestException, ValueError) as error:  # pooch's ValueError of a wrong checksum
                faults.append(f"could not download {url}: {error}")
    expected = f"the whole {file.name}, SHA-256 {file.sha256 or 'not published'}"
    raise CamlError("; ".join(faults), expected, "repeat the command; if it stays like this, get the file by hand")


def _stream(url: str, output: str, _: Any, *, label: str, progress: bool) -> None:
    """pooch's own downloader would unpack a tar.gz of which Apache says that it is encoded as x-gzip."""
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        answer.raw.headers.pop("Content-Encoding", None)
        total = int(answer.headers.get("Content-Length", 0)) or None
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=not progress)
        with open(output, "wb") as stream, bar:
            for chunk in answer.iter_content(CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar.gz into `folder`; one that is damaged is deleted, so that the next attempt fetches it anew.

    Raises:
        CamlError: it is cut or damaged, holds links, devices or names that lead elsewhere, would be far larger than it
            is itself, or the disk is full.
    """
    left = [GROWTH * archive.stat().st_size + 2**20]

    def check(name: str, size: int, is_plain: bool) -> None:
        left[0] -= size
        if left[0] < 0:
            raise ValueError(f"{name[:80]!r} makes it {GROWTH} times larger unpacked")
        if not is_plain or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name[:80]!r} is a link or a device, or leads elsewhere")

    def plain(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        check(member.name, member.size, member.isreg() or member.isdir())
        return tarfile.data_filter(member, path)

    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                for info in zipped.infolist():
                    check(info.orig_filename, info.file_size, info.external_attr >> 28 in (0, 4, 8))  # 4 folder, 8 file
                zipped.extractall(folder)
        else:
            with gzip.open(archive) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
                tar.extractall(folder, filter=plain)
                while raw.read(CHUNK):  # a damaged header passes for the end; the sum at the real end tells
                    pass
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC:
            archive.unlink()
        expected = "a whole archive of plain files, and free space"
        raise CamlError(f"cannot unpack {archive.name}: {error}", expected, "repeat the command") from error
