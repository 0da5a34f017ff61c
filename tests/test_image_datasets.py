"""Image datasets in the layouts that their authors ship: what is read, trained on and refused, and the packed cache."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import caml_core.data
from caml_core.active import run_active
from caml_core.data import celeba, folder, metashift, spuco_animals, waterbirds
from caml_core.data import images as packed
from caml_core.data.folder import SPLITS, Table, majority_of
from caml_core.errors import CamlError
from caml_core.features import extract_features, standardise
from caml_core.groups import Splits
from caml_core.hsfm import hsfm
from caml_core.hsfm_settings import Settings
from caml_core.last_layer import erm_head
from caml_core.networks import backbone
from caml_core.round import Plan
from caml_core.training import Erm, train_erm

CPU = torch.device("cpu")
SIZE = 32
SMALL = {"train": (14, 4, 4, 14), "val": (6, 6, 6, 6), "test": (7, 5, 5, 7)}  # of two labels and two attributes
pytestmark = pytest.mark.usefixtures("cache")
Counts = Mapping[str, Sequence[int]]


# ---- folders in the official layouts -------------------------------------------------------------------------------


def draw(file: Path, y: int, a: int, seed: int) -> Path:
    """An image of 60 x 48 pixels whose lower half says y and whose upper half says a."""
    pixels = np.random.default_rng(seed).integers(0, 40, (48, 60, 3))
    pixels[24:] += 50 * y
    pixels[:24] += 50 * a
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


def rows(counts: Counts = SMALL) -> Iterator[tuple[int, int, int, int]]:
    """(number, split code, y, a) of every image, splits mixed as in the official lists."""
    flat = [
        (code, *divmod(g, 2))
        for code, split in enumerate(SPLITS)
        for g, count in enumerate(counts[split])
        for _ in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(flat))
    for number, i in enumerate(order, 1):
        yield number, *flat[i]


def write_csv(file: Path, header: str, lines: list[list[Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([header.split(","), *lines])


def write_waterbirds(root: Path, name: str = "waterbird_complete95_forest2water2") -> Path:
    lines = []
    for i, split, y, a in rows():
        image = f"{i:03}.Some_Bird/Some_Bird_{i:04}.jpg"
        draw(root / name / image, y, a, i)
        lines.append([i, image, y, split, a, f"/{'lo'[a]}/lake/{i:08}.jpg"])
    write_csv(root / name / "metadata.csv", "img_id,img_filename,y,split,place,place_filename", lines)
    return root / name


def write_waterbirds_wilds(root: Path) -> Path:
    at = write_waterbirds(root, "waterbirds_v1.0")
    (at / "RELEASE_v1.0.txt").touch()
    return at


ATTRIBUTES = ["5_o_Clock_Shadow", "Blond_Hair", "Male", "Young"]  # four of the forty, in their order


def celeba_rows(images: Path) -> Iterator[tuple[str, list[int], int]]:
    """(image, attributes of -1 and 1, split code), and the image drawn."""
    for i, split, y, a in rows():
        name = f"{i:06}.jpg"
        draw(images / name, y, a, i)
        yield name, [-1, 2 * y - 1, 2 * a - 1, 1], split


def write_celeba(root: Path, images: str = "img_align_celeba", labels: str = "", splits: str = "") -> Path:
    at = root / "celeba"
    listed = list(celeba_rows(at / images))
    attributes = "\n".join(f"{name} " + " ".join(f"{v:2}" for v in values) for name, values, _ in listed)
    for folder_name, file, text in (
        (labels, "list_attr_celeba.txt", f"{len(listed)}\n{' '.join(ATTRIBUTES)} \n{attributes}\n"),
        (splits, "list_eval_partition.txt", "\n".join(f"{name} {split}" for name, _, split in listed)),
    ):
        (at / folder_name).mkdir(parents=True, exist_ok=True)
        (at / folder_name / file).write_text(text)
    return at


def write_celeba_folders(root: Path) -> Path:
    return write_celeba(root, "Img/img_align_celeba", "Anno", "Eval")


def write_celeba_kaggle(root: Path, images: str = "img_align_celeba/img_align_celeba", name: str = "celeba") -> Path:
    listed = list(celeba_rows(root / name / images))
    header = ",".join(["image_id", *ATTRIBUTES])
    write_csv(root / name / "list_attr_celeba.csv", header, [[name, *values] for name, values, _ in listed])
    shuffled = sorted(listed, key=lambda row: row[0][::-1])  # a join by name does not mind
    write_csv(
        root / name / "list_eval_partition.csv", "image_id,partition", [[name, split] for name, _, split in shuffled]
    )
    return root / name


def write_celeba_wilds(root: Path) -> Path:
    return write_celeba_kaggle(root, "img_align_celeba", "celebA_v1.0")


def write_celeba_merged(root: Path) -> Path:
    listed = celeba_rows(root / "celeba" / "img_align_celeba")
    header = ",".join(["image_id", *ATTRIBUTES, "partition"])
    write_csv(
        root / "celeba" / "list_attr_celeba.csv", header, [[name, *values, split] for name, values, split in listed]
    )
    return root / "celeba"


def write_celeba_dfr(root: Path) -> Path:
    lines = [
        [i, name, (values[1] + 1) // 2, split, (values[2] + 1) // 2]
        for i, (name, values, split) in enumerate(celeba_rows(root / "celeba" / "img_align_celeba"))
    ]
    write_csv(root / "celeba" / "celeba_metadata.csv", ",img_filename,y,split,place", lines)
    return root / "celeba"


def write_metashift(root: Path) -> Path:
    at = root / "metashift"
    for split, contexts in metashift.FOLDERS.items():
        for y, animal in enumerate(metashift.CLASSES):
            for a, context in enumerate(contexts[y]):
                for i in range(10 if split == "train" else 60):
                    draw(at / split / animal / f"{animal}({context})" / f"{2300000 + i}.jpg", y, a, i)
    return at


def write_spuco(root: Path) -> Path:
    at = root / "spuco_animals"
    for name, labels, backgrounds in spuco_animals.PARTS:
        for split, count, rare in (("train", 20, 2), ("val", 6, 3), ("test", 8, 8)):
            for (y, label), (a, background) in itertools.product(enumerate(labels), enumerate(backgrounds)):
                for i in range(count if y == a else rare):
                    draw(at / name / split / label / background / f"n0{i:07}.JPEG", y, a, i)
    return at


def write_labels(root: Path, split: bool = True) -> Path:
    lines = []
    for i, code, y, a in rows():
        draw(root / "mine" / "photos" / f"{i}.png", y, a, i)
        lines.append([f"photos/{i}.png", "cd"[y], a, *([SPLITS[code]] if split else [])])
    write_csv(root / "mine" / "labels.csv", "path,y,a" + ",split" * split, lines)
    return root / "mine" / "labels.csv"


def write_tree(root: Path, split: bool = True) -> Path:
    for i, code, y, a in rows():
        draw(root / "tree" / (SPLITS[code] if split else "") / ("cat", "dog")[y] / f"{a}" / f"{i}.png", y, a, i)
    return root / "tree"


def read(module: str, at: Path, **options: Any) -> Splits:
    """Load by name, whatever the dataset calls its folder."""
    where: dict[str, Any] = {"path": at} if module == "folder" else {"data_dir": at}
    if module in ("waterbirds", "celeba", "spuco_animals"):
        where["check_counts"] = False
    return caml_core.data.load(module, size=SIZE, progress=False, **(where | options))


DRAWN = {"train": (17, 9, 9, 17), "val": (5, 3, 3, 5), "test": (5, 3, 3, 5)}  # of SMALL, by 60, 20 and 20%
LAYOUTS: dict[str, tuple[str, Callable[..., Path], Counts]] = {
    "waterbirds": ("waterbirds", write_waterbirds, SMALL),
    "waterbirds in WILDS": ("waterbirds", write_waterbirds_wilds, SMALL),
    "celeba": ("celeba", write_celeba, SMALL),
    "celeba in its folders": ("celeba", write_celeba_folders, SMALL),
    "celeba on Kaggle": ("celeba", write_celeba_kaggle, SMALL),
    "celeba in WILDS": ("celeba", write_celeba_wilds, SMALL),
    "celeba merged": ("celeba", write_celeba_merged, SMALL),
    "celeba of DFR": ("celeba", write_celeba_dfr, SMALL),
    "metashift": (
        "metashift",
        write_metashift,
        {
            "train": (10, 10, 0, 0, 0, 0, 0, 10, 10, 0),
            "val": (0, 0, 0, 0, 9, 0, 0, 0, 0, 9),
            "test": (0, 0, 0, 0, 51, 0, 0, 0, 0, 51),
        },
    ),
    "spuco_animals": (
        "spuco_animals",
        write_spuco,
        {
            "train": spuco_animals.groups(20, 2),
            "val": spuco_animals.groups(6, 3),
            "test": spuco_animals.groups(8, 8),
        },
    ),
    "csv": ("folder", write_labels, SMALL),
    "csv without splits": ("folder", lambda root: write_labels(root, split=False), DRAWN),
    "tree": ("folder", write_tree, SMALL),
    "tree without splits": ("folder", lambda root: write_tree(root, split=False), DRAWN),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(layout: str, tmp_path: Path) -> None:
    module, write, expected = LAYOUTS[layout]
    at = write(tmp_path)
    splits = read(module, at)
    assert {name: tuple(split.group_counts.tolist()) for name, split in zip(SPLITS, splits)} == expected
    assert len({split.group_names for split in splits}) == 1
    for split in splits:
        assert split.x.shape == (len(split), 3, SIZE, SIZE)
        assert split.x.dtype == torch.uint8
        lower, upper = split.x[:, :, 20:].float().mean((1, 2, 3)), split.x[:, :, :12].float().mean((1, 2, 3))
        assert torch.equal(split.y % 2, (lower > 45).long())
        if module != "metashift":
            assert torch.equal(split.a % 2, (upper > 45).long())
    assert [split.content_hash() for split in splits] == [split.content_hash() for split in read(module, at)]


@pytest.mark.parametrize("layout", ["waterbirds", "celeba on Kaggle", "metashift", "spuco_animals", "csv"])
def test_methods_run_on_it(layout: str, tmp_path: Path) -> None:
    """An epoch of ERM, a round of CAML and HSFM on features; the folder is found by the catalogue."""
    module, write, _ = LAYOUTS[layout]
    at = write(tmp_path)
    train, val, test = read(module, at if module == "folder" else tmp_path)
    classes = len(train.class_names)
    network = backbone("small_resnet", classes)
    run = train_erm(network, train, val, Erm(epochs=1, batch_size=16), progress=False)
    assert 0 <= run.history[0]["val"]["worst_group"]["value"] <= 100

    plan = Plan(start=len(train) - 8, query=4, rounds=1, epochs=1, batch_size=16, select="average")
    records = run_active(lambda: backbone("small_cnn", classes), train, val, test, plan, progress=False)
    assert [record["labels"] for record in records] == [len(train) - 8, len(train) - 4]

    z = standardise(*(extract_features(network, split, CPU, cache=False) for split in (train, val)))
    head = erm_head(*z, epochs=2)
    settings = Settings(support=4, steps=2, edits=1, hard=4, epochs=1, alpha=1e-3, eta=0.1)
    edits = hsfm(z[0], z[1], head.weight, head.bias, settings)
    assert edits.accuracy.shape == (2, 1, train.n_groups)
    assert not torch.equal(edits.before, edits.after) or int(edits.epoch) == 0


# ---- counts and groups ---------------------------------------------------------------------------------------------


def test_published_counts_are_asserted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = write_waterbirds(tmp_path)
    with pytest.raises(CamlError, match="other group counts than published") as caught:
        waterbirds.load(data_dir=at, size=SIZE, progress=False)
    assert f"val {list(SMALL['val'])}, published [467, 466, 133, 133]; test" in caught.value.what
    monkeypatch.setattr(waterbirds, "PUBLISHED", SMALL)
    train, _, _ = waterbirds.load(data_dir=at, size=SIZE, progress=False)
    assert tuple(train.group_counts.tolist()) == SMALL["train"]
    for name, write in (("celeba", write_celeba), ("spuco_animals", write_spuco)):
        with pytest.raises(CamlError, match="published"):
            importlib.import_module(f"caml_core.data.{name}").load(data_dir=write(tmp_path), progress=False)


def test_published_counts_add_up() -> None:
    """To the sizes of the splits that the papers give."""
    sizes = {"waterbirds": (4795, 1199, 5794), "celeba": (162770, 19867, 19962), "spuco_animals": (42000, 2100, 4000)}
    for name, expected in sizes.items():
        published = importlib.import_module(f"caml_core.data.{name}").PUBLISHED
        assert tuple(sum(published[split]) for split in SPLITS) == expected


def test_one_rule_names_the_minorities_of_the_papers(tmp_path: Path) -> None:
    def by_rule(counts: tuple[int, ...], n_classes: int) -> list[list[bool]]:
        return majority_of(np.array(counts).reshape(n_classes, -1)).tolist()

    birds = read("waterbirds", write_waterbirds(tmp_path))[0]
    assert by_rule(waterbirds.PUBLISHED["train"], 2) == birds.majority.tolist() == [[True, False], [False, True]]
    faces = read("celeba", write_celeba(tmp_path))[0]
    assert by_rule(celeba.PUBLISHED["train"], 2) == faces.majority.tolist() == [[True, True], [True, False]]
    animals = read("spuco_animals", write_spuco(tmp_path))[0]
    assert by_rule(spuco_animals.PUBLISHED["train"], 4) == animals.majority.tolist() == np.eye(4, dtype=bool).tolist()
    mine = read("folder", write_labels(tmp_path))[0]
    assert mine.majority.tolist() == [[True, False], [False, True]]
    assert by_rule((5, 5, 5, 5), 2) == [[True, True], [True, True]]


def test_protocol_of_caml_for_spuco() -> None:
    """At full size: 4,500 of each majority group, rho, and balanced sets from the official test split."""
    pairs = list(itertools.product(range(4), repeat=2))
    flat = [
        (*pair, k)
        for k, split in enumerate(SPLITS)
        for pair, count in zip(pairs, spuco_animals.PUBLISHED[split])
        for _ in range(count)
    ]
    y, a, split = np.array(flat).T
    table = Table([Path(str(i)) for i in range(len(y))], y, a, split)
    drawn = spuco_animals.draw(table, 0.95, np.random.default_rng(0))
    counts = folder.group_counts(drawn, spuco_animals.CLASSES, spuco_animals.ATTRIBUTES)
    assert tuple(counts[0].ravel()) == spuco_animals.groups(4500, 236)
    assert counts.sum(axis=(1, 2)).tolist() == [4 * 4736, 1000, 2000]
    assert len(set(drawn.files)) == len(drawn.files)
    assert all(split[int(file.name)] == (0 if k == 0 else 2) for file, k in zip(drawn.files, drawn.split))
    with pytest.raises(CamlError, match="minority images"):
        spuco_animals.draw(table, 0.8, np.random.default_rng(0))


def test_protocol_of_caml_on_disk(tmp_path: Path) -> None:
    at = write_spuco(tmp_path)
    splits = read("spuco_animals", at, protocol="caml", rho=0.9)
    assert [len(split) for split in splits] == [4 * (9 + 1), 16, 32]
    other = read("spuco_animals", at, protocol="caml", rho=0.9, seed=1)
    assert splits[0].content_hash() != other[0].content_hash()
    with pytest.raises(CamlError, match="unknown SpuCoAnimals protocol"):
        read("spuco_animals", at, protocol="exact")


@pytest.mark.parametrize("layout", ["metashift", "csv without splits"])
def test_the_seed_draws_the_splits(layout: str, tmp_path: Path) -> None:
    module, write, expected = LAYOUTS[layout]
    at = write(tmp_path)
    first, second = read(module, at), read(module, at, seed=1)
    assert tuple(second[1].group_counts.tolist()) == tuple(expected["val"])
    assert first[1].content_hash() != second[1].content_hash()


# ---- bad inputs ----------------------------------------------------------------------------------------------------


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no column": ("waterbirds", lambda at: replace(at / "metadata.csv", "place,", "site,"), "0 columns place"),
    "no rows": ("waterbirds", lambda at: (at / "metadata.csv").write_text("img_filename,y,split,place\n"), "no rows"),
    "empty file": ("waterbirds", lambda at: (at / "metadata.csv").write_text(""), "0 columns"),
    "cut row": ("waterbirds", lambda at: replace(at / "metadata.csv", ".jpg,", ".jpg"), "line 2 does not fit"),
    "not text": ("waterbirds", lambda at: (at / "metadata.csv").write_bytes(b"\xff\xfe\x00"), "cannot read"),
    "unknown split": ("waterbirds", lambda at: replace(at / "metadata.csv", ",0,0,/", ",3,0,/"), "split is '3'"),
    "label out of range": ("waterbirds", lambda at: replace(at / "metadata.csv", ".jpg,0", ".jpg,2"), "y is '2'"),
    "image missing": ("waterbirds", lambda at: next(at.glob("005*/*.jpg")).unlink(), "cannot read the image .*005"),
    "attribute out of range": ("celeba", lambda at: replace(at / "list_attr_celeba.txt", " 1 ", " 2 "), "'2'"),
    "count of the first line": ("celeba", lambda at: replace(at / "list_attr_celeba.txt", "84", "85"), "has 84 rows"),
    "no split list": ("celeba", lambda at: (at / "list_eval_partition.txt").unlink(), "cannot read .*partition"),
    "image without split": (
        "celeba",
        lambda at: replace(at / "list_eval_partition.txt", "000007.jpg", "900007.jpg"),
        "line 9: split is 'missing'",
    ),
    "no images": ("celeba", lambda at: (at / "img_align_celeba").rename(at / "images"), "no image 000001.jpg"),
    "empty group": (
        "metashift",
        lambda at: empty(at / "train/cat/cat(bed)"),
        r"no images in .*cat\(bed\)",
    ),
    "no group": ("metashift", lambda at: (at / "test/dog/dog(shelf)").rename(at / "x"), r"no folder .*dog\(shelf\)"),
    "empty group of dogs": (
        "spuco_animals",
        lambda at: empty(at / "spuco_dogs/val/big_dogs/indoor"),
        "no images in .*indoor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_folder_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, damage, message = BAD[case]
    monkeypatch.setattr(f"caml_core.data.{module}.locate", lambda name, data_dir: data_dir)  # whatever it lacks
    at = LAYOUTS[module][1](tmp_path)
    damage(at)
    with pytest.raises(CamlError, match=message) as caught:
        read(module, at)
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, row: [row[0], "02"[row[1] == "d"], *row[2:]], "y takes the values 0, 2"),
        (lambda i, row: [row[0], "c", *row[2:]], "y is always c"),
        (lambda i, row: [*row[:2], row[2] if i else "", row[3]], "line 2: a is ''"),
        (lambda i, row: [*row[:3], row[3] if i else "dev"], "line 2: split is 'dev'"),
        (lambda i, row: [*row[:3], "train" if row[1] == "c" else row[3]], "no val image of c"),
        (lambda i, row: [*row[:3], "train" if row[3] == "test" else row[3]], "no test image of c, d"),
    ],
)
def test_a_bad_csv_is_refused(change: Callable[[int, list[str]], list[str]], message: str, tmp_path: Path) -> None:
    file = write_labels(tmp_path)
    header, *lines = csv.reader(file.read_text().splitlines())
    write_csv(file, ",".join(header), [change(i, line) for i, line in enumerate(lines)])
    with pytest.raises(CamlError, match=message):
        read("folder", file)


def test_a_group_too_small_to_split_is_refused(tmp_path: Path) -> None:
    file = write_labels(tmp_path, split=False)
    small = [line for line in file.read_text().splitlines() if line.endswith("c,1")]
    file.write_text("\n".join(line for line in file.read_text().splitlines() if line not in small[2:]))
    with pytest.raises(CamlError, match="group 'c, 1' has 2 images"):
        read("folder", file)
    with pytest.raises(CamlError, match=r"cannot read .*absent\.csv"):
        read("folder", tmp_path / "absent.csv")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CamlError, match=r"no images in .*nothing"):
        read("folder", tmp_path / "nothing")


# ---- the packed cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [draw(tmp_path / "photos" / f"{i}.jpg", i % 2, i // 2 % 2, i) for i in range(10)]


def pack(files: list[Path]) -> torch.Tensor:
    return packed.packed(files, SIZE, progress=False)


def packed_file() -> Path:
    (file,) = (packed.store.cache_dir() / "packed").glob("*.npy")
    return file


@pytest.mark.parametrize("size", [224, 32, 45])
def test_pixels_are_those_of_the_protocol(size: int, photos: list[Path]) -> None:
    """Both sides to 256 whatever the shape, then the middle 224: to the bit; other sizes, to two rounding errors."""
    from torchvision.transforms import v2

    edge = round(size * 256 / 224)
    protocol = v2.Compose([v2.Resize((edge, edge)), v2.CenterCrop(size)])
    Image.open(photos[1]).rotate(90, expand=True).save(photos[1])
    Image.open(photos[2]).convert("L").resize((411, 297)).save(photos[2])
    for row, file in zip(packed.packed(photos, size, progress=False), photos):
        expected = np.asarray(protocol(Image.open(file).convert("RGB"))).astype(int)
        assert np.abs(row.permute(1, 2, 0).numpy() - expected).max() <= (0 if size == 224 else 2)


def test_the_second_time_nothing_is_decoded(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(photos)
    monkeypatch.setattr(packed, "_decode", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others torch's, of arrays that cannot be written to
        assert torch.equal(pack(photos), first)
        moved = [file.rename(file.with_suffix(".moved")) for file in photos]
        for file in moved:
            os.utime(file, (1, 1))
        assert torch.equal(pack(moved), first)


def test_a_changed_image_is_never_served_stale(photos: list[Path]) -> None:
    """Not even one of the same name, length and time, which an archive can bring."""
    before = pack(photos)
    status, content = photos[3].stat(), photos[4].read_bytes()
    photos[3].write_bytes(content.ljust(status.st_size, b"\0")[: max(status.st_size, len(content))])
    os.utime(photos[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = pack(photos)
    assert torch.equal(after[3], before[4])
    assert not torch.equal(after[3], before[3])


def test_the_map_is_private_and_batches_are_copies(photos: list[Path]) -> None:
    x = pack(photos)
    kept = x.clone()
    batch = x[torch.tensor([7, 2])]
    assert batch.untyped_storage().nbytes() == batch.nbytes
    assert x[2:5].data_ptr() == x.data_ptr() + 2 * x[0].nbytes  # a slice is a view
    x[0] = 0
    assert torch.equal(pack(photos), kept)


def test_more_than_the_memory_can_be_mapped(tmp_path: Path) -> None:
    """A sparse file of twice the memory: a private map of it is refused unless nothing is reserved for it."""
    n = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (3 * 224 * 224)
    file, shape = tmp_path / "large", (n, 3, 224, 224)
    with open(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.truncate(stream.tell() + n * 3 * 224 * 224)
    x = packed._map(file, shape)
    assert x[torch.tensor([n - 1, 0])].max() == 0


def test_a_cut_or_foreign_file_is_packed_again(photos: list[Path]) -> None:
    kept = pack(photos).clone()
    whole = packed_file().read_bytes()
    header = len(whole) - kept.numel()
    damages = [b"", whole[:5], whole[:header], whole[:-1], whole[: len(whole) // 2], b"\0" * len(whole)]
    damages += [whole.replace(b"(10, 3, 32, 32)", shape) for shape in (b"(5, 6, 32, 32) ", b"(10, 3, 32, 31)")]
    damages += [whole.replace(b"|u1", b"|i1")]
    for damaged in damages:
        packed_file().write_bytes(damaged)
        with pytest.warns(UserWarning, match="again: .* is broken"):
            assert torch.equal(pack(photos), kept)
        assert packed_file().read_bytes() == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from caml_core.data import images as packed
decode, done = packed._decode, []
def die(*arguments, **options):
    done.append(decode(*arguments, **options))
    if len(done) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return done[-1]
packed._decode = die
packed.packed([Path(name) for name in sys.argv[1:]], 32, progress=False)
"""


def test_a_kill_leaves_nothing_and_the_next_run_starts_afresh(photos: list[Path], cache: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(packed.__file__).parents[2])}
    died = subprocess.run([sys.executable, "-c", KILLED, *map(str, photos)], env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    (left,) = (cache / "packed").iterdir()
    assert left.suffix == ".part"
    first = pack(photos)
    assert left.exists()  # it may still be somebody's
    long_ago = time.time() - 2 * packed.store.ABANDONED
    os.utime(left, (long_ago, long_ago))
    packed_file().unlink()
    assert torch.equal(pack(photos), first)
    assert list((cache / "packed").iterdir()) == [packed_file()]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_corrupt_image_is_named(format: str, photos: list[Path], cache: Path) -> None:
    """Whatever the damage: pixels, or an error that names the file, and no cache."""
    stream = io.BytesIO()
    Image.open(photos[0]).save(stream, format)
    whole, rng = stream.getvalue(), np.random.default_rng(0)
    cases = [b"", b"<html>quota exceeded</html>", whole[:10], whole[: len(whole) // 2]]
    for _ in range(12):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 400), 4):
            damaged[at] = rng.integers(256)
        cases.append(bytes(damaged))
    refused = 0
    for k, content in enumerate(cases):
        photos[5].write_bytes(content)
        with warnings.catch_warnings(), contextlib.suppress(CamlError):
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata
            pack(photos[4:7])
            assert k > 2, "accepted what is no image"
            packed_file().unlink()
            continue
        with pytest.raises(CamlError, match=rf"{re.escape(str(photos[5]))} cannot be used"):
            pack(photos[4:7])
        refused += 1
        assert not list((cache / "packed").iterdir())
    assert refused >= 4


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python, in order, beside a folder as the page describes it."""
    page = Path(__file__).parent.parent / "book" / "bring_your_own_data.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    listed = re.findall(r"^(photos/\S+),(\w+),(\w+)$", page.read_text(), re.MULTILINE)
    assert listed, "the page shows rows of its csv"
    labels, attributes = (sorted({row[k] for row in listed}) for k in (1, 2))
    lines = []
    for i, _, y, a in rows({name: tuple(2 * n for n in counts) for name, counts in SMALL.items()}):
        draw(tmp_path / "birds" / "photos" / f"{i}.jpg", y, a, i)
        lines.append([f"photos/{i}.jpg", labels[y], attributes[a]])
    write_csv(tmp_path / "birds" / "labels.csv", "path,y,a", lines)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
