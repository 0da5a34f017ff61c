"""Images as people have them: every one that is listed is loaded once, under its label, or the error names it."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from caml_core import store
from caml_core.active import run_active
from caml_core.data import load, sources
from caml_core.data.images import packed
from caml_core.errors import CamlError
from caml_core.features import standardise
from caml_core.groups import GroupDataset, group_table
from caml_core.networks import Backbone
from caml_core.round import Plan
from caml_core.training import Erm, train_erm

pytestmark = pytest.mark.usefixtures("cache")
FORMS: list[Literal["NFC", "NFD"]] = ["NFC", "NFD"]
Row = tuple[int, str, str]  # number of a picture, label, attribute


def paint(file: Path, number: int) -> Path:
    """A picture of one colour, which tells its number whatever the size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 12), (number % 250, number // 250, 77)).save(file, "PNG")
    return file


def read(path: Path, **options: Any) -> tuple[GroupDataset, ...]:
    return load("folder", path=path, size=8, progress=False, **options)


def loaded(splits: tuple[GroupDataset, ...]) -> Counter[Row]:
    """What came out, by the colours."""
    rows: Counter[Row] = Counter()
    for split in splits:
        for x, y, a in zip(split.x, split.y, split.a):
            red, green, blue = x.flatten(1).unique(dim=1).flatten().tolist()  # of one colour
            assert blue == 77
            rows[red + 250 * green, split.class_names[y], split.attribute_names[a]] += 1
    return rows


def rows_of(labels: list[str], attributes: list[str], each: int = 5) -> list[Row]:
    groups = itertools.product(labels, attributes)
    return [(each * g + k, y, a) for g, (y, a) in enumerate(groups) for k in range(each)]


# ---- what a picture holds ------------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def pixels(image: Image.Image, name: str, tmp_path: Path, **options: Any) -> np.ndarray:
    """The picture as it is loaded: int (32, 32, 3)."""
    image.save(tmp_path / name, **options)
    return packed([tmp_path / name], 32, upright=True, progress=False)[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((RAMP * 255).astype(np.uint8), "8.png"),
        ((RAMP * 65535).astype(np.uint16), "16.png"),
        ((RAMP * 65535).astype(np.uint16), "16.tif"),
        ((RAMP * 65535).astype(">u2"), "big_endian.tif"),
        ((RAMP * 65535).astype(np.int32), "32.tif"),
        (RAMP.astype(np.float32), "float.tif"),
    ],
)
def test_the_whole_range_of_values_is_kept(values: np.ndarray, name: str, tmp_path: Path) -> None:
    x = pixels(Image.fromarray(values), name, tmp_path)
    assert (x.min(), x.max()) == (16, 232), "the ramp without its margins, from 0 to 255"
    assert (np.diff(x[0, :, 0]) > 0).all()
    assert (x[..., :1] == x).all(), "grey"


NAN = np.where(RAMP > 0.9, np.nan, RAMP)


@pytest.mark.parametrize(
    "values",
    [
        *((RAMP * (2**bits - 1)).astype(np.uint16) for bits in (10, 12, 14)),
        *((RAMP * most).astype(np.int32) for most in (255, 10**6, -99)),
        *(scale.astype(np.float32) for scale in (RAMP * 255, RAMP - 0.5, NAN)),
    ],
)
def test_values_of_unknown_scale_are_named(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CamlError, match=r"scan\.tif cannot be used: values .* scale all images alike"):
        pixels(Image.fromarray(values), "scan.tif", tmp_path)


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_whole_or_named(kind: int, channels: int, tmp_path: Path) -> None:
    """Pillow keeps the upper 8 bits of each, which are none when 12 are used."""

    def png(most: int) -> np.ndarray:
        rows = np.repeat((RAMP * most)[..., None], channels, axis=2).astype(">u2")
        if kind > 3:
            rows[..., -1] = 65535  # nothing is transparent
        content = {
            b"IHDR": struct.pack(">IIBBBBB", 64, 64, 16, kind, 0, 0, 0),
            b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
            b"IEND": b"",
        }
        chunks = [(struct.pack(">I", len(data)), name + data) for name, data in content.items()]
        file = b"\x89PNG\r\n\x1a\n" + b"".join(n + data + struct.pack(">I", zlib.crc32(data)) for n, data in chunks)
        (tmp_path / "deep.png").write_bytes(file)
        return packed([tmp_path / "deep.png"], 32, upright=True, progress=False)[0].numpy()

    x = png(65535)
    assert x.min() == 16
    assert x.max() in (232, 233)
    with pytest.raises(CamlError, match=r"deep\.png cannot be used: values .* scale all images alike"):
        png(4095)


def test_black_pictures_of_many_bits_are_black(tmp_path: Path) -> None:
    assert pixels(Image.new("I;16", (9, 9)), "black.png", tmp_path).max() == 0


def test_transparency_is_white_and_palettes_and_inks_are_colours(tmp_path: Path) -> None:
    red = Image.new("RGBA", (40, 40), (255, 0, 0, 255))
    red.paste((0, 255, 0, 0), (0, 0, 40, 20))  # an invisible green upper half
    x = pixels(red, "rgba.png", tmp_path)
    assert x[2, 2].tolist() == [255, 255, 255]
    assert x[-2, 2].tolist() == [255, 0, 0]
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert pixels(palette, "palette.png", tmp_path)[5, 5].tolist() == [200, 100, 50]
    palette.paste(0, (0, 0, 40, 20))
    x = pixels(palette, "clear.png", tmp_path, transparency=0)
    assert (x[2, 2].tolist(), x[-2, 2].tolist()) == ([255, 255, 255], [200, 100, 50])
    grey = pixels(Image.new("LA", (40, 40), (10, 128)), "la.png", tmp_path)
    assert 130 <= grey[5, 5, 0] <= 134, "half transparent on white"
    cmyk = pixels(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "cmyk.tif", tmp_path)
    assert cmyk[5, 5].tolist() == [255, 0, 0]
    assert pixels(Image.new("1", (40, 40), 1), "bit.png", tmp_path).min() == 255


def test_own_photographs_stand_upright_published_ones_as_published(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 40))
    photo.paste((255, 255, 255), (0, 0, 40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # hold the camera another way: turn by 90 degrees
    turned = pixels(photo, "photo.png", tmp_path, exif=exif)
    as_is = packed([tmp_path / "photo.png"], 32, progress=False)[0].permute(1, 2, 0).numpy()
    assert turned[:, 2].max() < 10 < 245 < turned[:, -3].min(), "what was above is on the right"
    assert as_is[2].min() > 245


# ---- trees ---------------------------------------------------------------------------------------------------------


def tree(top: Path, rows: list[Row]) -> Path:
    for number, y, a in rows:
        paint(top / y / a / f"{number}.png", number)
    return top


def test_rarer_suffixes_and_deeper_folders_are_read(tmp_path: Path) -> None:
    rows = rows_of(["finch", "gull"], ["forest", "shore"])
    top = tree(tmp_path / "t", rows)
    for number, suffix in ((0, ".jfif"), (1, ".JPG"), (2, ".tga"), (3, ".Tiff")):
        (top / "finch" / "forest" / f"{number}.png").rename(top / "finch" / "forest" / f"{number}{suffix}")
    paint(top / "gull" / "shore" / "day2" / "morning" / "99.png", 99)
    assert loaded(read(top)) == Counter([*rows, (99, "gull", "shore")])


def test_what_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    rows = rows_of(["finch", "gull"], ["forest", "shore"])
    top = tree(tmp_path / "t", rows)
    for name in ("notes.txt", "docs/readme.md", "finch/forest/scan.dng"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text("x")
    for name in (
        ".DS_Store",
        "finch/Thumbs.db",
        "__MACOSX/finch/forest/._1.png",
        ".git/a/b/c.png",
        "gull/shore/.h.png",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("x")
    with pytest.warns(UserWarning, match=r"3 files in .* are not read, .* such as .*docs.readme\.md"):
        splits = read(top)
    assert loaded(splits) == Counter(rows)
    assert splits[0].class_names == ("finch", "gull"), "docs is no class"


def test_pictures_outside_the_folders_are_named(tmp_path: Path) -> None:
    top = tree(tmp_path / "t", rows_of(["finch", "gull"], ["forest", "shore"]))
    for number in (90, 91):
        paint(top / "finch" / f"{number}.png", number)
    with pytest.raises(CamlError, match=r"2 images are in no folder of y/a, such as .*finch.90\.png"):
        read(top)


@pytest.mark.parametrize(
    ("labels", "attributes"),
    [(["bus", "train"], ["city", "field"]), (["0", "1"], ["0", "1"]), (["train", "tram"], ["test", "val"])],
)
def test_a_class_may_be_called_train(labels: list[str], attributes: list[str], tmp_path: Path) -> None:
    rows = rows_of(labels, attributes)
    assert loaded(read(tree(tmp_path / "t", rows))) == Counter(rows)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "valid", "TEST"), ("train", "validation", "test")]
)
def test_splits_are_told_by_two_of_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    rows = rows_of(["finch", "gull"], ["forest", "shore"], 3)
    for number, y, a in rows:
        paint(tmp_path / "t" / names[number % 3] / y / a / f"{number}.png", number)
    splits = read(tmp_path / "t")
    assert loaded(splits) == Counter(rows)
    assert all(number % 3 == k for k, split in enumerate(splits) for number, _, _ in loaded((split,)))
    shutil.rmtree(tmp_path / "t" / names[1])
    with pytest.raises(CamlError, match="no val image of finch, gull"):
        read(tmp_path / "t")
    paint(tmp_path / "t" / "more" / "finch" / "forest" / "77.png", 77)
    with pytest.raises(CamlError, match="split is 'more'"):
        read(tmp_path / "t")


def test_names_are_the_same_however_their_letters_are_composed(tmp_path: Path) -> None:
    one, two = unicodedata.normalize("NFC", "Dünen"), unicodedata.normalize("NFD", "Dünen")
    rows = [(k, y, one if k % 2 else two) for k, y, _ in rows_of(["a", "b"], ["x"], 8)]
    rows += rows_of(["a", "b"], ["shore"], 4)[:0] + [(50 + k, "ab"[k % 2], "shore") for k in range(8)]
    expected = Counter((k, y, unicodedata.normalize("NFC", a)) for k, y, a in rows)
    assert loaded(read(tree(tmp_path / "t", rows))) == expected
    lines = ["path,y,a"]
    for number, y, a in rows:
        file = paint(tmp_path / "c" / a / f"Möwe {number}.png", number)
        form = FORMS[number // 2 % 2]
        lines.append(f"{unicodedata.normalize(form, file.relative_to(tmp_path / 'c').as_posix())},{y},{a}")
    (tmp_path / "c" / "labels.csv").write_text("\n".join(lines), "utf-8")
    assert loaded(read(tmp_path / "c" / "labels.csv")) == expected


# ---- tables --------------------------------------------------------------------------------------------------------

ROWS = rows_of(["finch", "gull"], ["Düne", "shore"], 6)


def table(folder: Path, change: Callable[[list[list[str]]], Any] = lambda lines: None, **how: Any) -> Path:
    """A csv of `ROWS`, after a change to its cells (the first line is the header)."""
    lines = [["path", "y", "a"], *([f"{paint(folder / f'{k}.png', k).name}", y, a] for k, y, a in ROWS)]
    change(lines)
    text = how.get("newline", "\n").join(how.get("comma", ",").join(line) for line in lines) + "\n"
    text = how.get("start", "") + text
    (folder / "labels.csv").write_bytes(text.encode(how.get("encoding", "utf-8")))
    return folder / "labels.csv"


@pytest.mark.parametrize(
    "how",
    [
        {"comma": ", "},
        {"comma": ";"},
        {"comma": "\t"},
        {"comma": " ; "},
        {"newline": "\r\n"},
        {"newline": "\n\n"},
        {"start": "\n\n", "comma": ";"},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"encoding": "cp1252"},
    ],
)
def test_what_spreadsheets_write_is_read(how: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert loaded(read(table(tmp_path, **how))) == Counter(ROWS)
    assert [str(w.message) for w in said if "Windows-1252" in str(w.message)][0:] == (
        [f"{tmp_path / 'labels.csv'} is not in UTF-8; it is read as Windows-1252, look at its names"]
        if how.get("encoding") == "cp1252"
        else []
    )


def cell(line: int, column: int, value: str) -> Callable[[list[list[str]]], Any]:
    return lambda lines: lines[line - 1].__setitem__(column, value)


def rewrite(lines: list[list[str]], new: list[list[str]]) -> None:
    lines[:] = new


SPLIT = {0: "split", 20: "trian"}
FAULTS: dict[str, tuple[Callable[[list[list[str]]], Any], str]] = {
    "nan": (cell(5, 2, "nan"), "line 5: a is 'nan'"),
    "NA": (cell(6, 1, "NA"), "line 6: y is 'NA'"),
    "empty": (cell(7, 1, "  "), "line 7: y is ''"),
    "no path": (cell(8, 0, ""), "line 8: path is ''"),
    "no file": (cell(9, 0, "gone.png"), r"line 9: there is no file .*gone\.png"),
    "a folder": (cell(9, 0, "."), "line 9: there is no file"),
    "twice": (cell(10, 0, "./3.png"), r"line 10: \./3\.png is listed in line 5, too"),
    "every row twice": (lambda lines: lines.extend(lines[1:]), r"line 26: 0\.png is listed in line 2, too"),
    "header again": (lambda lines: lines.insert(7, lines[0]), "line 8: the header again"),
    "short": (lambda lines: lines[10].pop(), "line 11 does not fit the header"),
    "long": (lambda lines: lines[10].append("x"), "line 11 does not fit the header"),
    "torn quotes": (lambda lines: (cell(3, 1, '"finch')(lines), cell(6, 1, 'finch"')(lines)), "line 6 does not fit"),
    "open quotes": (cell(24, 1, '"gull'), "line 25 does not fit"),
    "column twice": (lambda lines: rewrite(lines, [[*row, row[1]] for row in lines]), "2 columns y"),
    "column absent": (cell(1, 2, "attribute"), "0 columns a"),
    "wrong split": (
        lambda lines: rewrite(lines, [[*row, SPLIT.get(k, "train")] for k, row in enumerate(lines)]),
        "line 21: split is 'trian'",
    ),
    "split twice": (lambda lines: rewrite(lines, [[*row, "split", "split"] for row in lines]), "2 columns"),
    "no split": (
        lambda lines: rewrite(lines, [[*row, {0: "split", 9: ""}.get(k, "0")] for k, row in enumerate(lines)]),
        "line 10: split is ''",
    ),
    "not from 0": (lambda lines: [cell(k, 1, "12"[k % 2])(lines) for k in range(2, 26)], "y takes the values 1, 2"),
    "one label": (lambda lines: [cell(k, 1, "gull")(lines) for k in range(2, 26)], "y is always gull"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_line(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(CamlError, match=message) as caught:
        read(table(tmp_path, change))
    assert str(tmp_path / "labels.csv") in caught.value.what
    assert caught.value.remedy


def test_odd_things_are_loaded_with_a_warning(tmp_path: Path) -> None:
    for odd in ("Finch", "fin ch", "finch\u200b"):
        change = [cell(k, 1, odd) for k in (2, 3, 4, 8, 9, 10)]
        with pytest.warns(UserWarning, match=f"some values of y differ in capital letters or blanks only: .*{odd}"):
            read(table(tmp_path / odd, lambda lines, change=change: [one(lines) for one in change]))  # type: ignore[misc]
    with pytest.warns(UserWarning, match="some values of a are numbers, others not: --1, 1"):
        read(table(tmp_path / "b", lambda lines: [cell(k, 2, ("1", "--1")[k % 2])(lines) for k in range(2, 26)]))


@pytest.mark.parametrize("header", ["Path,Y,A,Split", "PATH,y,a,SPLIT", " path , y , a , split "])
def test_the_columns_may_be_called_in_capitals(header: str, tmp_path: Path) -> None:
    """A column Split that goes unread would give other splits than those it says."""
    splits = [("train", "Val", "TEST")[k % 3] for k in range(len(ROWS))]

    def change(lines: list[list[str]]) -> None:
        lines[0] = header.split(",")
        for line, split in zip(lines[1:], splits):
            line.append(split)

    parts = read(table(tmp_path, change))
    assert loaded(parts) == Counter(ROWS)
    assert all(number % 3 == k for k, part in enumerate(parts) for number, _, _ in loaded((part,)))


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    rows = rows_of(["finch", "gull"], ["forest", "shore"])
    top = tree(tmp_path / "t", rows)
    shutil.move(top / "gull" / "shore", tmp_path / "elsewhere")
    (top / "gull" / "shore").symlink_to(tmp_path / "elsewhere")
    (top / "finch" / "round").symlink_to(top)
    (top / "finch" / "forest" / "here").symlink_to(".")
    assert loaded(read(top)) == Counter(rows)


def test_a_picture_in_two_splits_is_named(tmp_path: Path) -> None:
    """By its content: copies under other names are the same picture."""
    top = tree(tmp_path / "t", rows_of(["finch", "gull"], ["forest", "shore"], 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(top)
    for file in sorted((top / "finch" / "forest").iterdir()):
        shutil.copy(file, file.with_stem(f"copy of {file.stem}"))
    with pytest.warns(UserWarning, match=r"t: \d+ images are in two splits, .* such as .*\.png and .*\.png"):
        assert sum(map(len, read(top))) == 45


# ---- drawn folders and tables --------------------------------------------------------------------------------------

WORDS = [
    "finch",
    "gull",
    "Düne",
    "train",
    "test",
    "été",
    "wading bird",
    "7 spots",
    "none",
    "Größe",
    "val",
    "O'Hara",
    "x",
]
SUFFIXES = [".png", ".jpg", ".JPG", ".jpeg", ".jfif", ".PNG", ".tif", ".webp", ".bmp", ".gif"]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[list[Row], bool]:
    """Rows as they should come out, and whether splits are given; a group may be empty."""
    kinds = st.one_of(st.lists(st.sampled_from(WORDS), min_size=2, max_size=3, unique=True), st.just(["0", "1", "2"]))
    labels, attributes = draw(kinds), draw(kinds)[:2]
    empty = draw(st.booleans())
    rows: list[Row] = []
    for y, a in itertools.product(labels, attributes):
        if not (empty and (y, a) == (labels[0], attributes[0])):
            rows += [(len(rows) + k, y, a) for k in range(draw(st.integers(3, 4)))]
    return rows, draw(st.booleans())


@st.composite
def folders(draw: st.DrawFn, fault: str) -> tuple[list[tuple[str, int]], list[Row], bool]:
    """A tree: files (and their numbers, -1 for what is no picture), rows, whether there are splits."""
    rows, split = draw(pictures())
    split |= fault == "twin"
    files = []
    for number, y, a in rows:
        y, a = (unicodedata.normalize(draw(st.sampled_from(FORMS)), text) for text in (y, a))
        deeper = draw(st.sampled_from(["", "", "", "day 2/", "a/b/"]))
        name = f"{deeper}{draw(st.sampled_from(['', 'IMG_', 'Möwe ']))}{number}{draw(st.sampled_from(SUFFIXES))}"
        files.append((("train/", "val/", "test/")[number % 3] * split + f"{y}/{a}/{name}", number))
    for name in draw(st.lists(st.sampled_from([".DS_Store", "__MACOSX/a/b/c.png", "Thumbs.db", ".x/y/z/1.png"]))):
        files.append((draw(st.sampled_from(["", files[0][0].rpartition("/")[0] + "/"])) + name, -1))
    if fault == "twin":  # the first picture, which is in training
        files.append((f"test/{rows[0][1]}/{rows[0][2]}/twin.png", 0))
    if fault == "other":
        files.append(("labels/old/notes.txt", -1))
    if fault == "astray":
        files.append((draw(st.sampled_from(["logo.png", f"{rows[0][1]}/cover.jpg"])), len(rows)))
    return files, rows, split


@st.composite
def tables(draw: st.DrawFn, fault: str) -> tuple[str, str, list[tuple[str, int]], list[Row], bool, int]:
    """A csv: text, encoding, files, rows, whether there are splits, the line of the fault."""
    rows, split = draw(pictures())
    split |= fault == "split"
    order = draw(st.permutations(["path", "y", "a", *["split"] * split, *draw(st.sampled_from([[], ["", "comment"]]))]))
    comma, newline = draw(st.sampled_from([",", ", ", ";", "\t"])), draw(st.sampled_from(["\n", "\r\n"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    forms = st.sampled_from(FORMS if encoding != "cp1252" else FORMS[:1])
    lines, files = [comma.join(order)], []
    wrong, at = draw(st.integers(0, len(rows) - 1)), 0
    for k, (number, y, a) in enumerate(draw(st.permutations(rows))):
        folder = draw(st.sampled_from(["", "photos/", "Möwen/", "a b/c/"]))
        name = f"{folder}{number}{draw(st.sampled_from(SUFFIXES))}"
        files.append((unicodedata.normalize(draw(st.sampled_from(FORMS)), name), number))
        listed = unicodedata.normalize(draw(forms), name)
        listed = listed.replace("/", "\\") if draw(st.booleans()) else listed
        words = {"path": listed, "y": unicodedata.normalize(draw(forms), y), "a": unicodedata.normalize(draw(forms), a)}
        words |= {"split": (draw(st.sampled_from(["train", "Train", "0"])), "valid", "2")[number % 3]}
        if k == wrong:
            words[draw(st.sampled_from(["y", "a"]))] = "nan" if fault == "missing" else words["y"]
            words = {**words, "y": y, "a": a} if fault != "missing" else words
            words["path"] = "no such.png" if fault == "gone" else words["path"]
            words["split"] = "trian" if fault == "split" else words["split"]
        quote = '"' if draw(st.booleans()) else ""
        line = comma.join(f"{quote}{words.get(name, '')}{quote}" for name in order)
        lines += [""] * draw(st.sampled_from([0, 0, 0, 1]))
        lines.append(line.rpartition(comma.strip() or comma)[0] if fault == "torn" and k == wrong else line)
        at = len(lines) if k == wrong else at
        if k == wrong and fault in ("twice", "header"):
            lines.append(line if fault == "twice" else lines[0])
            at = len(lines)
    return newline.join(lines) + newline, encoding, files, rows, split, at


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A new folder for each drawn case."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here, and the disk is slow
    count = itertools.count()

    def make() -> Path:
        shutil.rmtree(tmp_path / "drawn", ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return tmp_path / "drawn" / str(next(count))

    return make


def many(count: int) -> settings:
    how = settings(max_examples=count, derandomize=True, database=None, deadline=None)
    return settings(how, suppress_health_check=list(HealthCheck))


def check(splits: tuple[GroupDataset, ...], rows: list[Row], split: bool) -> None:
    assert loaded(splits) == Counter(rows)
    if split:
        assert all(number % 3 == k for k, part in enumerate(splits) for number, _, _ in loaded((part,)))


@pytest.mark.parametrize(
    ("fault", "count"), [("none", 90), ("other", 20), ("astray", 20), ("broken", 20), ("twin", 20)]
)
def test_drawn_trees(fault: str, count: int, fresh: Callable[[], Path]) -> None:
    @many(count)
    @given(folders(fault))
    def run(case: tuple[list[tuple[str, int]], list[Row], bool]) -> None:
        files, rows, split = case
        top = fresh()
        for name, number in files:
            if number < 0:
                (top / name).parent.mkdir(parents=True, exist_ok=True)
                (top / name).write_text("x")
            else:
                paint(top / name, number)
        if fault == "broken":
            (top / files[0][0]).write_bytes(b"\x89PNG no more")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            are_splits = not split and {"train", "test"} <= {y for _, y, _ in rows}  # by the rule; then all is refused
            if fault in ("astray", "broken"):
                with pytest.raises(CamlError) as caught:
                    read(top)
                blamed = files[-1][0] if fault == "astray" else files[0][0]
                assert Path(blamed).name in str(caught.value) or are_splits
            elif are_splits:
                with pytest.raises(CamlError, match=r"no folder of split/y/a|split is"):
                    read(top)
            elif fault == "twin":
                assert loaded(read(top)) == Counter([*rows, rows[0]])
            else:
                check(read(top), rows, split)
        assert any("notes.txt" in str(w.message) for w in said) == (fault == "other")
        assert any("in two splits" in str(w.message) for w in said) == (fault == "twin")

    run()


FAULTY = ("twice", "missing", "gone", "header", "torn", "split")


@pytest.mark.parametrize(("fault", "count"), [("none", 100), *((fault, 14) for fault in FAULTY)])
def test_drawn_tables(fault: str, count: int, fresh: Callable[[], Path]) -> None:
    @many(count)
    @given(tables(fault))
    def run(case: tuple[str, str, list[tuple[str, int]], list[Row], bool, int]) -> None:
        text, encoding, files, rows, split, at = case
        top = fresh()
        for name, number in files:
            paint(top / name, number)
        (top / "labels.csv").write_bytes(text.encode(encoding))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fault == "none":
                check(read(top / "labels.csv"), rows, split)
            else:
                with pytest.raises(CamlError, match=rf"labels\.csv, line {at}\b"):
                    read(top / "labels.csv")

    run()


# ---- where things lie ----------------------------------------------------------------------------------------------


def in_child(code: str, environment: dict[str, str | None], folder: Path) -> str:
    """What a program prints in another folder and environment; None unsets a variable."""
    known = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    known["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], env=known, cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_cache_is_in_one_place(tmp_path: Path) -> None:
    code = "from caml_core.store import cache_dir; print(cache_dir())"
    unset: dict[str, str | None] = {"CAML_CACHE": None, "XDG_CACHE_HOME": None, "HOME": str(tmp_path)}
    home = f"{tmp_path}/.cache/caml_core\n"
    assert in_child(code, unset, tmp_path) == home
    for not_set in ("", "relative/folder"):
        assert in_child(code, {**unset, "XDG_CACHE_HOME": not_set}, tmp_path) == home
    assert in_child(code, {**unset, "XDG_CACHE_HOME": "/xdg"}, tmp_path) == "/xdg/caml_core\n"
    assert in_child(code, {**unset, "CAML_CACHE": "mine"}, tmp_path) == f"{tmp_path}/mine\n"
    assert in_child(code, {**unset, "CAML_CACHE": "~/mine"}, tmp_path) == f"{tmp_path}/mine\n"


def test_nobodys_home_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CAML_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    with pytest.raises(CamlError, match="CAML_CACHE"):
        store.cache_dir()


def test_a_relative_data_folder_is_named_by_what_it_was_taken_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "datasets").mkdir()
    monkeypatch.setenv("CAML_DATA", "datasets")
    monkeypatch.chdir(tmp_path)
    assert sources.data_root() == tmp_path / "datasets"
    monkeypatch.chdir(tmp_path / "notebooks")
    for ask in (lambda: sources.available("mnist"), lambda: load("waterbirds")):
        with pytest.raises(CamlError) as caught:
            ask()
        assert f"{tmp_path / 'notebooks' / 'datasets'} ('datasets')" in caught.value.what


def test_a_chapter_sees_the_folders_that_the_builder_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from book.execute import kernel_environment

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CAML_DATA", "datasets")
    monkeypatch.setenv("CAML_CACHE", "~/cache")
    seen = kernel_environment("1")
    assert (seen["CAML_DATA"], seen["CAML_CACHE"]) == (f"{tmp_path}/datasets", f"{tmp_path}/cache")
    monkeypatch.delenv("CAML_DATA")
    assert "CAML_DATA" not in kernel_environment("1")


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from caml_core import store
from caml_core.errors import CamlError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a file cannot grow further, as on a full disk
writes = {
    "a.txt": lambda path: store.write_text(path, "x" * 10**6),
    "a.npz": lambda path: store.save_npz(path, {"x": np.zeros(10**6)}, {}),
    "a.safetensors": lambda path: store.save_checkpoint(path, {"w": torch.zeros(10**6)}, {}),
}
for name, write in writes.items():
    try:
        write(Path(name))
    except CamlError as error:
        print(error.what)
"""


def test_a_full_disk_is_one_error_for_whatever_is_written(tmp_path: Path) -> None:
    said = in_child(FULL, {}, tmp_path).splitlines()
    assert [line.partition(":")[0] for line in said] == [
        f"cannot write {name}" for name in ("a.txt", "a.npz", "a.safetensors")
    ]
    assert all("File too large" in line for line in said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["class_names", "attribute_names"])
def test_splits_that_number_their_names_otherwise_are_refused(which: str) -> None:
    def split(**other: tuple[str, ...]) -> GroupDataset:
        names: dict[str, Any] = {"class_names": ("finch", "gull"), "attribute_names": ("forest", "shore"), **other}
        return GroupDataset(torch.randn(8, 3), torch.arange(8) % 2, torch.arange(8) // 2 % 2, **names)

    train, val = split(), split(**{which: tuple(reversed(getattr(split(), which)))})
    linear, plan = Backbone(nn.Identity(), 3, 2), Plan(method="append", start=4, query=1, rounds=1, epochs=1)
    for use in (
        lambda: standardise(train, val),
        lambda: train_erm(linear, train, val, Erm(epochs=1), progress=False),
        lambda: run_active(lambda: linear, train, train, val, plan, progress=False),
        lambda: group_table(train=train, val=val),
    ):
        with pytest.raises(CamlError, match="the same names in the same order"):
            use()
    assert len(standardise(train, split())) == 2
