"""Images listed as people list them: a csv as spreadsheets write it, or a tree of folders as it lies on a disk.

Nothing is left out silently: what cannot be used is an error that names the line or the file, and what is not read is
counted and named in a warning.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from caml_core.errors import CamlError

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2",
          ".pgm", ".ppm", ".tga")  # fmt: skip
SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # never meant as images, and hidden files neither
MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "null")
SPLIT_WORDS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
LINE = "\n"  # the column of line numbers; no header can be called so

Columns = dict[str, list[str]]


def same(text: str) -> str:
    """Text whose accents are composed: macOS takes letters apart in the names of files, others do not."""
    return unicodedata.normalize("NFC", text)


def read_csv(file: Path, needed: Sequence[str]) -> Columns:
    """Columns of a csv with a header, as text, and `LINE`: in which line of the file each row ends.

    UTF-8, UTF-16 with its mark, or else Windows-1252; commas, semicolons or tabs; blank lines do not count.

    Raises:
        CamlError: no such file, no rows, a row that does not fit the header, one of `needed` absent or empty.
    """
    try:
        data = file.read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            text = data.decode("utf-16" if marked else "utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("utf-16" if marked else "cp1252")
            warnings.warn(f"{file} is not in UTF-8; it is read as Windows-1252, look at its names", stacklevel=4)
        comma = max(",;\t", key=text.lstrip().partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CamlError(f"cannot read {file}: {error}", "a csv", "check the path and the quotes in it") from error
    header = rows.pop(0)[1] if rows else []
    header = [name.lower() if name.lower() in (*needed, "split") else name for name in header]
    needed = [*needed, *{"split"}.intersection(header).difference(needed)]
    faults = [f" has {header.count(name)} columns {name}" for name in needed if header.count(name) != 1]
    faults += [] if rows else [" has no rows"]
    for line, row in rows if not faults else []:
        empty = [name for name, cell in zip(header, row) if name in needed and cell.casefold() in MISSING]
        if row == header:
            faults.append(f", line {line}: the header again")
        elif len(row) != len(header) or "\n" in "".join(row):
            faults.append(f", line {line} does not fit the header: {','.join(row)[:80]!r}")
        elif empty:
            faults.append(f", line {line}: {empty[0]} is {row[header.index(empty[0])]!r}")
    if faults:
        expected = f"columns {', '.join(needed)} (found {', '.join(header) or 'nothing'}) and a value in each row"
        raise CamlError(f"{file}{faults[0]}", expected, "correct the file, or fetch it again")
    columns = {name: [row[i] for _, row in rows] for i, name in enumerate(header)}
    return columns | {LINE: [str(line) for line, _ in rows]}


def codes(columns: Columns, name: str, known: Mapping[str, int], file: Path) -> np.ndarray:
    """Numbers that stand for the values of a column: int64 (N,); a value not known is an error with its line."""
    for line, value in zip(columns[LINE], columns[name]):
        if value not in known:
            what = f"{file}, line {line}: {name} is {value!r}" if line else f"{file}: {name} is {value!r}"
            raise CamlError(what, "one of " + ", ".join(known), "correct it, or fetch it again")
    return np.array([known[value] for value in columns[name]], dtype=np.int64)


def split_codes(columns: Columns, file: Path) -> np.ndarray:
    """Splits given as words or as 0, 1, 2: int64 (N,)."""
    lower = {**columns, "split": [value.lower() for value in columns["split"]]}
    return codes(lower, "split", SPLIT_WORDS | {"0": 0, "1": 1, "2": 2}, file)


def find_files(columns: Columns, table: Path) -> list[Path]:
    """The files of the column `path`, relative to the folder of the csv; none may be absent, or listed twice.

    Backslashes, and accents composed otherwise than on the disk, lead to the same file.
    """
    there: dict[str, Path] = {}  # by composed name, once a name is not found as it stands
    lines: dict[Path, str] = {}
    for name, line in zip(columns["path"], columns[LINE]):
        file = table.parent / name
        if not file.exists():
            there = there or {same(f.relative_to(table.parent).as_posix()): f for f in table.parent.rglob("*")}
            file = there.get(same(os.path.normpath(name.replace("\\", "/"))), file)
        file = Path(os.path.normpath(file))
        if file in lines or not file.is_file():
            fault = f"{name} is listed in line {lines[file]}, too" if file in lines else f"there is no file {file}"
            raise CamlError(f"{table}, line {line}: {fault}", "every image once", "correct the line, or add the file")
        lines[file] = line
    return list(lines)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below, by name, at least one; other files, unless hidden, are named in a warning."""

    def is_meant(name: str) -> bool:
        return name not in SYSTEM and not name.startswith(".")

    def leads_back(link: Path) -> bool:
        return link.parent.resolve().is_relative_to(link.resolve())

    found: list[Path] = []
    others: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if is_meant(name) and not leads_back(Path(place, name))]
        for name in filter(is_meant, files):
            (found if Path(name).suffix.lower() in IMAGES else others).append(Path(place, name))
    if others:
        what = f"{len(others)} files in {folder} are not read, as their names are not those of images"
        warnings.warn(f"{what}, such as {min(others)}", stacklevel=5)
    if not found:
        what = f"no images in {folder}" if folder.is_dir() else f"no folder {folder}"
        remedy = "check that everything was extracted and where the images lie, or write a csv"
        raise CamlError(what, f"a folder of {', '.join(IMAGES)} files", remedy)
    return sorted(found)


def walk(top: Path, known: bool = True) -> tuple[Columns, list[Path]]:
    """Columns y, a (and split) of a tree of folders, and its images; each must lie in a folder of an attribute, but
    where the attribute need not be `known` and none does.

    The folders at the top are splits if two of train, val and test are among them; else they are labels, and a class
    may be called train. What lies deeper than an attribute belongs to it.
    """
    files = image_files(top)
    parts = [[same(part) for part in file.relative_to(top).parts] for file in files]
    splits = {SPLIT_WORDS[part[0].lower()] for part in parts if len(part) > 1 and part[0].lower() in SPLIT_WORDS}
    names = ["split", "y", "a"] if len(splits) > 1 else ["y", "a"]
    if not known and all(len(part) == len(names) for part in parts):
        names = names[:-1]
    if astray := [file for file, part in zip(files, parts) if len(part) <= len(names)]:
        what = f"{len(astray)} images are in no folder of {'/'.join(names)}, such as {astray[0]}"
        raise CamlError(what, f"folders {'/'.join(names)} with the images in them", "move them, or write a csv")
    return {**dict(zip(names, map(list, zip(*parts)))), LINE: [""] * len(files)}, files
