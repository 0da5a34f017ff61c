"""Where datasets are found, what a fetch remembers of them, and what the command line says."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import REAL_DATA, require
from test_fetch import TREE, Server, pack, toy, tree
from test_fetch import server as server  # a fixture

from caml_core.__main__ import main
from caml_core.data import catalogue
from caml_core.data.catalogue import CATALOGUE, GROWTH, MADE, PACKED, fetch, locate, verify
from caml_core.errors import CamlError

LAYOUTS = {  # dataset: a small folder in each layout that it is shipped in
    "waterbirds": [{"metadata.csv": "img_id,img_filename,y,split,place,place_filename\n"}],
    "celeba": [
        {"list_attr_celeba.txt": "0\n", "list_eval_partition.txt": "", "img_align_celeba/000001.jpg": ""},
        {"list_attr_celeba.csv": "", "list_eval_partition.csv": "", "img_align_celeba/img_align_celeba/1.jpg": ""},
        {"Anno/list_attr_celeba.txt": "", "Eval/list_eval_partition.txt": "", "Img/img_align_celeba/000001.jpg": ""},
        {"celeba_metadata.csv": "img_id,img_filename,y,split,place\n", "img_align_celeba/000001.jpg": ""},
        {"metadata.csv": 'img_id,img_filename,y,split,"place"\n', "img_align_celeba/000001.jpg": ""},
    ],
    "metashift": [{f"{path}/1.jpg": "" for path in (
        "train/cat/cat(sofa)", "train/dog/dog(bench)", "test/cat/cat(shelf)", "test/dog/dog(shelf)",
    )}],
    "spuco_animals": [{"spuco_birds/train/landbirds/land/1.jpg": "", "spuco_dogs/train/big_dogs/indoor/1.jpg": ""}],
    "civilcomments": [{"all_data_with_identities.csv": "id,comment_text,split,toxicity\n"}],
    "madlibs": [{"bias_madlibs_77k.csv": "Text,Label,Template\n"}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAML_DATA", raising=False)


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_layout_is_found_under_every_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, files in enumerate(LAYOUTS[name]):
        for folder in ("", *CATALOGUE[name].folders):
            root = tmp_path / f"{number}-{folder.replace('/', '-')}"
            made = make(root / folder, files)
            assert locate(name, root, download=False) == made
            assert locate(name, str(root), download=False) == made
    monkeypatch.setenv("CAML_DATA", str(root))
    assert locate(name, download=False) == made
    monkeypatch.setenv("CAML_DATA", str(tmp_path / "nothing"))
    cached = make(tmp_path / "cache" / "datasets" / name, files)
    assert locate(name, download=False) == cached
    assert locate(name, root, download=False) == made, "the reader's folder goes first"


@pytest.mark.parametrize("name", CATALOGUE)
def test_one_dataset_is_not_taken_for_another(name: str, tmp_path: Path) -> None:
    for other in set(CATALOGUE) - {name}:
        for number, files in enumerate(LAYOUTS[other]):
            make(tmp_path / f"{other}{number}", files)
            with pytest.raises(CamlError, match="not found"):
                locate(name, tmp_path / f"{other}{number}", download=False)


def test_the_error_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CamlError, match="python -m caml_core data fetch celeba") as caught:
        locate("celeba", tmp_path, download=False)
    assert str(tmp_path / "celebA" / "data") in caught.value.what
    assert str(tmp_path / "cache" / "datasets" / "celeba") in caught.value.what
    assert "kaggle" in caught.value.remedy
    with pytest.raises(CamlError, match="Google Drive") as caught:
        locate("metashift", tmp_path)
    assert "data fetch" not in caught.value.remedy
    with pytest.raises(CamlError, match="CAML_DATA is not set"):
        locate("waterbirds", download=False)
    with pytest.raises(CamlError, match="unknown dataset 'birds'"):
        locate("birds")
    with pytest.raises(CamlError, match="drawn by the program"):
        locate("birdscapes")


def test_entries_are_well_formed() -> None:
    assert not set(CATALOGUE) & set(MADE)
    for dataset in CATALOGUE.values():
        assert all((dataset.title, dataset.licence, dataset.citation, dataset.by_hand))
        assert dataset.page.startswith("https://")
        for file in dataset.files:
            assert file.urls
            assert all(url.startswith("https://") for url in file.urls)
            assert file.sha256 is None or len(file.sha256) == 64
            assert file.name.endswith(PACKED) or file.sha256, "a plain file says nothing of its own damage"


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of the dataset `toy`, of which no checksum was published."""
    server.payload = pack("tar.gz")
    monkeypatch.setitem(CATALOGUE, "toy", toy("tar.gz", server.url, server.payload, sha=False, size=False))
    return server


def test_fetched_once_and_found_ever_after(served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "toy"]) == 0
    folder = tmp_path / "cache" / "datasets" / "toy" / "toy"
    out = capsys.readouterr().out
    assert f"toy.tar.gz: {len(served.payload):,} bytes from 127.0.0.1" in out
    assert out.endswith(f"{folder}\n")
    assert tree(folder.parent) == TREE
    assert sorted(p.name for p in folder.parents[1].iterdir()) == [".toy.lock", "toy", "toy.sha256"]
    served.plan = ["e500"]
    assert locate("toy") == fetch("toy") == folder
    assert len(served.ranges) == 1


def test_the_second_of_two_addresses_is_tried(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CATALOGUE["toy"].files[0]
    files = (file._replace(urls=(served.url + "/gone", *file.urls)),)
    monkeypatch.setitem(CATALOGUE, "toy", CATALOGUE["toy"]._replace(files=files))
    served.plan = ["e404", "whole"]
    assert tree(fetch("toy", progress=False).parent) == TREE
    assert len(served.ranges) == 2


def test_several_files_make_one_folder(served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CelebA: an archive, and tables beside what it holds."""
    table = served.payload
    beside = catalogue.File("table.txt", (served.url + "/table",), hashlib.sha256(table).hexdigest(), len(table))
    both = (*CATALOGUE["toy"].files, beside)
    monkeypatch.setitem(CATALOGUE, "toy", CATALOGUE["toy"]._replace(files=both))
    folder = fetch("toy", progress=False)
    assert tree(folder.parent) == {**TREE, "table.txt": table}
    assert "all 4 known" in verify("toy"), "of the folder that the loader reads"
    twice = (both[0], both[0]._replace(name="again.tar.gz"))
    monkeypatch.setitem(CATALOGUE, "toy", CATALOGUE["toy"]._replace(files=twice))
    monkeypatch.setenv("CAML_CACHE", str(tmp_path / "other"))
    with pytest.raises(CamlError, match="two sources hold toy"):
        fetch("toy", progress=False)


def test_what_the_first_fetch_saw_is_remembered(served: Server, tmp_path: Path) -> None:
    folder = fetch("toy", progress=False)
    sums = tmp_path / "cache" / "datasets" / "toy.sha256"
    for line in sums.read_text().splitlines():
        digest, path = line.split("  ")
        assert digest == hashlib.sha256(TREE[path]).hexdigest()
    assert verify("toy") == f"toy in {folder}: all 4 known checksums are right"
    (folder / "train" / "a.jpg").write_bytes(b"other")
    (folder / "train" / "b.jpg").unlink()
    with pytest.raises(CamlError, match="2 of 4 files of toy differ or are missing"):
        verify("toy")
    first = served.payload
    shutil.rmtree(folder.parent)
    served.payload = pack("zip")  # packed anew, with the same files
    assert fetch("toy", progress=False) == folder
    assert served.payload != first
    sums.unlink()
    assert verify("toy") == f"toy in {folder}: no checksum is known"


def test_a_changed_source_is_not_trusted(served: Server, tmp_path: Path) -> None:
    sums = tmp_path / "cache" / "datasets" / "toy.sha256"
    sums.parent.mkdir(parents=True)
    sums.write_text("0" * 64 + "  toy/metadata.csv\n")
    with pytest.raises(CamlError, match=r"4 files .* first fetch, such as toy/empty\.txt") as caught:
        fetch("toy", progress=False)
    assert str(sums) in caught.value.remedy
    assert [p.name for p in sums.parent.iterdir() if p.name != ".toy.lock"] == ["toy.sha256"]
    sums.unlink()
    assert tree(fetch("toy", progress=False).parent) == TREE


def test_another_archive_or_folder_is_refused(served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "toy", CATALOGUE["toy"]._replace(layouts=(("labels.csv",),)))
    with pytest.raises(CamlError, match="what was fetched is not toy: toy"):
        fetch("toy", progress=False)
    datasets = tmp_path / "cache" / "datasets"
    assert [p.name for p in datasets.iterdir()] == [".toy.lock"]
    make(datasets / "toy", {"mine.txt": ""})
    with pytest.raises(CamlError, match="is not toy"):
        fetch("toy", progress=False)
    assert (datasets / "toy" / "mine.txt").exists()


def test_a_bomb_is_told_by_its_growth(served: Server) -> None:
    served.payload = pack("tar.gz", "bomb")
    assert len(served.payload) * GROWTH + 2**20 < 3_000_000
    with pytest.raises(CamlError, match="more than"):
        fetch("toy", progress=False)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "mine", LAYOUTS["madlibs"][0])
    assert main(["data", "list", "--data", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*CATALOGUE, *MADE]
    assert [line for line in lines if str(root) in line] == [line for line in lines if line.startswith("madlibs")]
    assert "not here" in lines[0]
    for name in CATALOGUE:
        assert main(["data", "info", name]) == 0
        said = capsys.readouterr().out
        assert CATALOGUE[name].licence in said
        assert all(url in said for file in CATALOGUE[name].files for url in file.urls)
    assert main(["data", "info", "dominoes"]) == 0
    assert "mnist and cifar10" in capsys.readouterr().out
    for bad, message in (
        (["verify"], "without a name"),
        (["info", "birds"], "unknown dataset"),
        (["verify", "celeba"], "not found"),
        (["verify", "madlibs", "--data", str(root)], "1 of 1 files of madlibs differ"),
        (["fetch", "metashift"], "Google Drive"),
    ):
        assert main(["data", *bad]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["data", "burn"])


def test_the_real_madlibs_are_the_published_file() -> None:
    require(REAL_DATA, "the sentences of CAML_DATA are needed")
    assert "known checksums are right" in verify("madlibs", REAL_DATA)
