"""Downloads that end in the right file, and archives that end in the right folder, or in one clear error.

pooch tries again, checks and renames what was downloaded. Archives go through the standard library.
"""

from __future__ import annotations

import errno
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pooch
import requests
from tqdm.auto import tqdm

from caml_core import store
from caml_core.errors import CamlError

CHUNK = 1 << 18  # bytes read at a time
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
    faults, how = [], {"timeout": TIMEOUT, "headers": {"Accept-Encoding": "identity"}}
    bar = progress and tqdm(total=1, unit="B", unit_scale=True, desc=file.name)
    stream = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, **how)
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


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar.gz below `folder`; one that is damaged is deleted, so that the next attempt fetches it anew.

    Raises:
        CamlError: it is cut or damaged, a tar leads elsewhere, or the disk is full.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
                while tar.fileobj and tar.fileobj.read(CHUNK):  # a damaged header passes for the end; the sum tells
                    pass
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC:
            archive.unlink()
        expected = "a whole archive, and free space"
        raise CamlError(f"cannot unpack {archive.name}: {error}", expected, "repeat the command") from error
