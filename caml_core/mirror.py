"""Checkpoints at a URL (s3://, gs://, sftp://, file:// ... with fsspec), for machines that share no disk.

While a task computes, every file of its folder that changes is copied there, in the order in which they changed.
Whoever takes the task up fetches them first. What a lost machine had not copied yet is computed again, to the same end.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from caml_core.errors import CamlError
from caml_core.records import read_records
from caml_core.store import atomic, load_checkpoint

LOOK = 1.0  # seconds between two looks at the folder
READ: dict[str, Callable[[Path], Any]] = {".safetensors": load_checkpoint, ".json": read_records}  # what is copied


def check_url(url: str) -> str:
    """The URL in full, once a file could be written there and removed again.

    Raises:
        CamlError: nothing can be written there.
    """
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url)
        files.makedirs(root, exist_ok=True)
        files.pipe_file(probe := f"{root}/{uuid.uuid4().hex}.part", b"")
        files.rm_file(probe)
        return files.unstrip_protocol(root).rstrip("/")
    except Exception as error:  # every kind of storage has its own
        raise CamlError(
            what=f"nothing can be written to {url}: {type(error).__name__}: {error}",
            expected="a folder for checkpoints: a path, or a URL that fsspec understands, such as s3://bucket/folder",
            remedy="check the address and the credentials; s3:// needs pip install s3fs, gs:// needs gcsfs",
        ) from error


@contextlib.contextmanager
def mirrored(folder: Path, url: str) -> Iterator[None]:
    """Fetch what lies at `url` into `folder`, keep it up to date during the block, remove it when that ends well.

    A file gets its name there when it is whole; what is broken nevertheless is as good as none.
    """
    from fsspec.core import url_to_fs

    files, root = url_to_fs(url)
    files.invalidate_cache()  # others write there
    copied: dict[Path, int] = {}  # when each was changed
    for path in files.find(root) if files.exists(root) else []:
        local = folder / path.removeprefix(root).lstrip("/")
        if local.suffix in READ:
            with contextlib.suppress(CamlError), atomic(local) as temporary:
                files.get_file(path, str(temporary))
                READ[local.suffix](temporary)
            copied |= {local: local.stat().st_mtime_ns} if local.exists() else {}

    def copy() -> None:
        try:
            whole = [path for path in folder.rglob("*") if path.suffix in READ]
            for changed, path in sorted((path.stat().st_mtime_ns, path) for path in whole):
                if copied.get(path) != changed:
                    there = f"{root}/{path.relative_to(folder).as_posix()}"
                    files.makedirs(there.rpartition("/")[0], exist_ok=True)
                    files.put_file(str(path), part := f"{there}.{uuid.uuid4().hex}.part")
                    files.mv(part, there)
                    copied[path] = changed
        except Exception as error:  # the network may be back at the next look
            print(f"not copied to {url}: {type(error).__name__}: {error}", flush=True)

    def keep_copying() -> None:
        while not done.wait(LOOK):
            copy()

    done, thread = threading.Event(), threading.Thread(target=keep_copying, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        copy()
    with contextlib.suppress(FileNotFoundError):  # it was too short to be copied
        files.rm(root, recursive=True)
