"""Browser libraries of the book, assembled at build time so that its pages need no network.

They come from npm packages whose version and sha512 stand in ``assets.lock.json``; nothing of it is committed.
Plotly's is the bundle of flat figures, a third of the whole. Without npm, or when it reaches no registry, the build
goes on with the whole plotly of the Python package and links to public copies of the rest; a file with the wrong
checksum stops it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from caml_core import store
from caml_core.errors import CamlError
from caml_core.pictures.explore import BUNDLE, STILLS, WEIGHTS

LOCK = Path(__file__).with_name("assets.lock.json")

# Runs in the head of each page, before the figures: says where the library is, relative to itself.
_VENDOR_JS = 'window.BOOK_PLOTLY_URL = new URL("plotly.min.js", document.currentScript.src).href;\n'


@dataclass(frozen=True)
class Assets:
    """A folder to lay over the built pages, and whether it holds everything they need."""

    site: Path
    offline: bool

    def sphinx_config(self) -> dict[str, Any]:
        """The Sphinx settings that make pages use these files."""
        config: dict[str, Any] = {
            "html_extra_path": [str(self.site)],
            "html_js_files": [["vendor/vendor.js", {"priority": 100}]],
        }
        if self.offline:
            config["mathjax_path"] = "vendor/tex-svg.js"
            config["nb_ipywidgets_js"] = {"vendor/embed.js": {}}
        return config


def assemble(kept: Path, site: Path, lock: Path = LOCK) -> Assets:
    """Fill the new folder ``site``; downloaded packages stay in ``kept``, and are checked each time."""
    vendor = site / "_static" / "vendor"
    vendor.mkdir(parents=True)
    (vendor / "vendor.js").write_text(_VENDOR_JS, "utf-8")
    (vendor / "plotly.min.js").write_text(get_plotlyjs(), "utf-8")
    shutil.copy(BUNDLE, vendor.parent)
    shutil.copytree(STILLS, vendor.parent / "stills")
    reason = fetch(lock, kept / "packages", site)
    engines = vendor.parent / "engines"
    engines.mkdir(exist_ok=True)
    for file in WEIGHTS.glob("*.page.safetensors"):
        shutil.copy(file, engines / file.name.removesuffix(".page.safetensors"))
    for file in list(engines.iterdir()):
        carry(file, kept / "packed")
    if reason:
        print(f"assets: {reason}; math and widgets of the pages will load from public copies (CDN)")
    return Assets(site.resolve(), offline=not reason)


def fetch(lock: Path, packages: Path, site: Path) -> str:
    """Put the files that a lock names below ``site``, all or none; returns why there are none, or an empty string."""
    tarballs: dict[Path, dict[str, str]] = {}
    for package in locked(lock):
        tarball = packages / f"{package['name'].replace('/', '-').lstrip('@')}-{package['version']}.tgz"
        if not tarball.exists() and (reason := _download(f"{package['name']}@{package['version']}", tarball)):
            return reason
        verify(tarball, package["integrity"])
        tarballs[tarball] = package["files"]
    for tarball, files in tarballs.items():
        extract(tarball, files, site)
    return ""


def carry(file: Path, packed: Path) -> None:
    """Replace a file by a script that carries it: a page opened from the disk can load nothing else.

    What it takes seconds to pack is kept in the folder `packed`.
    """
    data = file.read_bytes()
    known = packed / f"{file.name}-{hashlib.sha256(data).hexdigest()[:16]}.js"
    if not known.exists():
        text = base64.b64encode(gzip.compress(data, mtime=0)).decode()
        script = f"(globalThis.bookEngines ??= {{}})[{json.dumps(file.name)}] = {json.dumps(text)};\n"
        store.write_text(known, script)
    shutil.copy(known, file.with_name(f"{file.name}.js"))
    file.unlink()


def locked(lock: Path = LOCK) -> list[dict[str, Any]]:
    """The packages of a lock: name, version, integrity, and files as {place below the site: member}."""
    return list(json.loads(lock.read_text("utf-8")))


def verify(file: Path, integrity: str) -> None:
    """Compare a file with its ``sha512-<base64>`` of the lock."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if found != integrity:
        raise CamlError(
            what=f"{file} has the wrong checksum: {found}",
            expected=integrity,
            remedy="delete the file and build again; if that does not help, compare assets.lock.json with "
            "the published package before trusting either",
        )


def extract(tarball: Path, files: dict[str, str], site: Path) -> None:
    """Write the named members of a package, and nothing else of it, to their places below ``site``."""
    with tarfile.open(tarball) as archive:
        for target, member in files.items():
            path = site / target
            if not path.resolve().is_relative_to(site.resolve()):
                raise CamlError(
                    what=f"{target!r} lies outside the book",
                    expected="a path below the book's root",
                    remedy="correct assets.lock.json",
                )
            try:
                source = archive.extractfile(member)
            except KeyError:
                source = None
            if source is None:
                raise CamlError(
                    what=f"{tarball.name} holds no file {member!r}",
                    expected="every file that assets.lock.json names",
                    remedy="correct the path in assets.lock.json",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read())


def _download(package: str, tarball: Path) -> str:
    """Fetch one package with npm; returns why that could not be done, or an empty string."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    print(f"assets: fetching {package}")
    tarball.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tarball.parent) as work:
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error", "--pack-destination", work]
        done = subprocess.run(
            [*command, "--fetch-retries=1", "--fetch-retry-mintimeout=1000"],
            cwd=work,
            capture_output=True,
            text=True,
        )
        packed = list(Path(work).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            errors = [line for line in done.stderr.splitlines() if "code" in line] or ["no file came"]
            return f"npm could not fetch {package} ({errors[0].strip()})"
        os.replace(packed[0], tarball)
    return ""
