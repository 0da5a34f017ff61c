"""The bundle of the explorables: ``python book/bundles.py`` makes it from the modules in ``book/live``.

It is one classic script with all that they need, so that a page opened from the disk can load it, and, with one line
added, a module that anywidget takes (``caml_core.pictures.explore``). It is committed, because an installed package has
no tools; these come from npm, pinned by version and hash in ``package-lock.json``. A test makes the bundle again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, Python looks only beside this file
    sys.path.insert(0, str(ROOT))

from caml_core.errors import CamlError  # noqa: E402
from caml_core.pictures.explore import BUNDLE  # noqa: E402

SOURCES = ROOT / "book" / "live"
WORK = ROOT / "_build" / "live"
BIN = WORK / "node_modules" / ".bin"
SHARED = {"math.js", "parts.js", "tiles.js", "birds.js", "drawing.js", "engine.js", "eslint.config.js"}
_ENTRY = """\
{imports}
import {{ mount }} from "./parts.js";
globalThis.bookExplorables = {{ {names} }};
if (document.currentScript) for (const [name, it] of Object.entries(globalThis.bookExplorables)) mount(name, it);
"""
_BANNER = "/* Made by book/bundles.py from book/live, with d3 (ISC License, (c) Mike Bostock). */"


def names() -> list[str]:
    """The explorables: every module of the folder that the others do not share."""
    return sorted(file.stem for file in SOURCES.glob("*.js") if file.name not in SHARED)


def tools() -> None:
    """Lay a copy of the sources beside the pinned tools, in ``_build/live``.

    Raises:
        CamlError: npm is missing, or could not install what the lock names.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    installed, lock = WORK / "installed.json", SOURCES / "package-lock.json"
    for old in WORK.glob("*.js"):
        old.unlink()
    for file in SOURCES.iterdir():
        shutil.copy(file, WORK)
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        run([shutil.which("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
        shutil.copy(lock, installed)


def bundle(explorables: Sequence[str]) -> str:
    """One script with the named explorables; call `tools` first."""
    imports = "\n".join(f'import {name} from "./{name}.js";' for name in explorables)
    options = ["--bundle", "--minify", "--format=iife", "--target=es2022", f"--banner:js={_BANNER}"]
    return run([str(BIN / "esbuild"), *options], _ENTRY.format(imports=imports, names=", ".join(explorables)))


def check() -> None:
    """Types and style of the working copy.

    Raises:
        CamlError: there is a fault.
    """
    run([str(BIN / "tsc"), "--project", "."])
    run([str(BIN / "eslint"), "--max-warnings", "0", "."])


def run(command: Sequence[str], stdin: str = "") -> str:
    """What a tool prints.

    Raises:
        CamlError: it is missing, or finds a fault.
    """
    try:
        done = subprocess.run(command, cwd=WORK, input=stdin, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CamlError(f"{command[0]} is missing", "Node.js with npm", "install them") from error
    if done.returncode:
        raise CamlError(
            what=f"{Path(command[0]).name} failed:\n{(done.stdout + done.stderr).strip()}",
            expected="the tools that package-lock.json names, and sources without a fault",
            remedy="mend what it says",
        )
    return done.stdout


def main() -> None:
    tools()
    check()
    for name in names():
        print(f"{name}: {len(bundle([name]).encode()) / 1000:.0f} kB alone")
    BUNDLE.write_text(bundle(names()), "utf-8")
    print(f"{BUNDLE.relative_to(ROOT)}: {BUNDLE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
