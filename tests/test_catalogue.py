"""Where datasets are found and fetched to, and what the command line says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from test_fetch import TREE, Server, pack, toy, tree
from test_fetch import server as server  # a fixture

from caml_core.__main__ import main
from caml_core.data import find as catalogue
from caml_core.data.find import CATALOGUE, MADE, fetch, locate
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
    monkeypatch.setenv("CAML_DATA", str(tmp_path))
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
    assert str(tmp_path) in caught.value.what
    assert "celebA/data" in caught.value.what
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
            assert file.name.endswith((".zip", ".tar.gz")) or file.sha256, "a plain file says nothing of its own damage"


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of the dataset `toy`, of which no checksum was published."""
    server.payload = pack("tar.gz")
    monkeypatch.setitem(CATALOGUE, "toy", toy("tar.gz", server.url))
    return server


def test_fetched_once_and_found_ever_after(served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "toy"]) == 0
    folder = tmp_path / "cache" / "datasets" / "toy" / "toy"
    said = capsys.readouterr()
    assert said.out == f"{folder}\n"
    assert "toy.tar.gz" in said.err
    assert tree(folder.parent) == TREE
    assert sorted(p.name for p in folder.parents[1].iterdir()) == [".toy.lock", "toy"]
    served.plan = ["e500"]
    assert locate("toy") == fetch("toy") == folder
    assert served.asked == 1


def test_several_files_make_one_folder(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CelebA: an archive, and tables beside what it holds."""
    table = served.payload
    beside = catalogue.File("table.txt", (served.url + "/table",), hashlib.sha256(table).hexdigest(), len(table))
    files = (*CATALOGUE["toy"].files, beside)
    monkeypatch.setitem(CATALOGUE, "toy", CATALOGUE["toy"]._replace(files=files, layouts=(("toy/metadata.csv",),)))
    folder = fetch("toy", progress=False)
    assert tree(folder) == {**TREE, "table.txt": table}


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


def test_the_list_does_not_wait_for_pytorch() -> None:
    code = "import sys; from caml_core.data import find; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "mine", LAYOUTS["madlibs"][0])
    assert main(["data", "list", "--data", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*CATALOGUE, *MADE]
    assert [line for line in lines if str(root) in line] == [line for line in lines if line.startswith("madlibs")]
    assert "not here" in lines[0]
    for line, dataset in zip(lines, CATALOGUE.values()):
        assert dataset.licence in line
        assert dataset.page in line
    assert "mnist and cifar10" in lines[len(CATALOGUE) + 1]
    for bad, message in (
        (["fetch"], "without a name"),
        (["fetch", "birds"], "unknown dataset"),
        (["fetch", "metashift"], "Google Drive"),
    ):
        assert main(["data", *bad]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["data", "burn"]) == 2
