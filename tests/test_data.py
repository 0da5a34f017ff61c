"""Loaders: exact counts, determinism, every kind of bad input."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, require, toy_split, write_source

from caml_core.data import load, sources
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset, assign_attributes, check_rho, group_table
from caml_core.networks import backbone

DOMINOES = {"n_train": 80, "n_val": 20, "n_test": 20}


def test_dataset_groups_and_batches() -> None:
    split = toy_split(64)
    assert torch.equal(split.group, split.y * 2 + split.a)
    assert split.group_names == ("dark, low", "dark, high", "bright, low", "bright, high")
    assert int(split.group_counts.sum()) == 64
    assert torch.equal(split.is_minority, split.y != split.a)
    one, many = split[3], split[[3, 5]]
    assert one.x.shape == (3, 16, 16)
    assert many.x.shape == (2, 3, 16, 16)
    assert torch.equal(many.x[0], one.x)
    assert many.index.tolist() == [3, 5]
    part = split.subset([9, 2])
    assert part.index.tolist() == [9, 2]
    assert torch.equal(part.y, split.y[[9, 2]])
    assert part.content_hash() != split.subset([2, 9]).content_hash()
    assert len(split.subset([])) == 0
    mask = torch.zeros(len(split), dtype=torch.bool)
    mask[[2, 9]] = True
    assert torch.equal(split[mask].index, torch.tensor([2, 9]))  # type: ignore[index]
    assert torch.equal(split.subset(mask).index, torch.tensor([2, 9]))


def test_dataset_refuses_what_does_not_fit() -> None:
    x = torch.zeros(3, 4)
    names: dict[str, Any] = {"class_names": "ab", "attribute_names": "cd"}
    with pytest.raises(CamlError, match="shape"):
        GroupDataset(x, torch.zeros(2), torch.zeros(3), **names)
    with pytest.raises(CamlError, match=r"column 'y' .* values 0\.\.2"):
        GroupDataset(x, torch.tensor([0, 1, 2]), torch.zeros(3), **names)


def test_arrays_and_lists_are_taken_as_they_are_meant() -> None:
    names: dict[str, Any] = {"class_names": "ab", "attribute_names": "cd"}
    x, y = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 1, 1, 0])
    split = GroupDataset(x, y, [0, 0, 1, 1], majority=[[0, 1], [1, 0]], **names)
    assert torch.equal(split.x, torch.from_numpy(x))
    assert backbone("mlp", 2, n_inputs=3)(split.x).dtype == torch.float32
    assert split.group.tolist() == [0, 2, 3, 1]
    assert split.is_minority.tolist() == [True, False, True, False]
    assert GroupDataset(x, y.astype(float), y == 1, **names).group.tolist() == [0, 3, 3, 0]
    wrongs: list[list[Any]] = [[0, 1, 0.5, 1], [0, 1, float("nan"), 1], [0, 1, -1, 1]]
    for wrong in wrongs:
        with pytest.raises(CamlError, match="column 'a'"):
            GroupDataset(x, y, wrong, **names)
    with pytest.raises(CamlError, match=r"majority of shape \(2, 3\)"):
        GroupDataset(x, y, y, majority=[[0, 1, 1], [1, 0, 0]], **names)


def test_group_table_marks_minorities() -> None:
    text = group_table(train=toy_split(100))
    assert text.count("(minority)") == 2
    assert text.splitlines()[0] == "| group | train |"


@pytest.mark.parametrize(("classes", "rho"), [(2, 0.9), (5, 0.95), (10, 0.5)])
def test_assign_attributes_exactly(classes: int, rho: float) -> None:
    y = np.repeat(np.arange(classes), 200)
    a = assign_attributes(y, classes, rho, np.random.default_rng(0))
    for label in range(classes):
        counts = np.bincount(a[y == label], minlength=classes)
        assert counts[label] == round(200 * rho)
        others = np.delete(counts, label)
        assert others.max() - others.min() <= 1


def test_assign_attributes_by_shuffling_keeps_the_attributes() -> None:
    y = np.repeat(np.arange(10), 400)
    a = assign_attributes(y, 10, 0.9, np.random.default_rng(0), "shuffle")
    assert (np.bincount(a) == 400).all()
    assert 0.90 < (a == y).mean() < 0.93  # a tenth of the moved ones meet their own label again


@pytest.mark.parametrize("rho", [0.49, 1.01, float("nan")])
def test_rho_out_of_range(rho: float, small_sources: Path) -> None:
    with pytest.raises(CamlError, match="rho"):
        check_rho(rho)
    with pytest.raises(CamlError, match="rho"):
        load("dominoes", rho=rho, **DOMINOES)


def test_unknown_names() -> None:
    with pytest.raises(CamlError, match="unknown dataset 'dominos'"):
        load("dominos")
    with pytest.raises(CamlError, match="no option colour"):
        load("dominoes", colour=1)


def test_dominoes_counts_and_determinism(small_sources: Path) -> None:
    train, val, test = load("dominoes", rho=0.9, seed=3, **DOMINOES)
    assert train.group_counts.tolist() == [36, 4, 4, 36]
    assert val.group_counts.tolist() == test.group_counts.tolist() == [5, 5, 5, 5]
    assert train.x.shape == (80, 3, 64, 32)
    assert train.x.dtype == torch.uint8
    assert train.class_names == ("automobile", "truck")
    again = load("dominoes", rho=0.9, seed=3, **DOMINOES)
    assert [s.content_hash() for s in again] == [s.content_hash() for s in (train, val, test)]
    other, *_ = load("dominoes", rho=0.9, seed=4, **DOMINOES)
    assert other.content_hash() != train.content_hash()


def test_dominoes_halves_say_what_the_labels_say(small_sources: Path) -> None:
    """In the look-alikes, class k has a bright stripe at rows 2k..2k+3: read y and a back from the pixels."""
    train, *_ = load("dominoes", classes=(1, 9), top_classes=(2, 7), **DOMINOES)
    top = train.x[:, 0, 2:30].float().mean(dim=2)  # rows of the padded 28-pixel image
    bottom = train.x[:, 0, 32:].float().mean(dim=2)
    stripe = lambda rows, k: rows[:, 2 * k : 2 * k + 4].mean(dim=1)  # noqa: E731
    assert torch.equal((stripe(top, 7) > stripe(top, 2)).long(), train.a)
    assert torch.equal((stripe(bottom, 9) > stripe(bottom, 1)).long(), train.y)
    assert int(train.x[:, :, :2].max()) == 0  # padding


def test_dominoes_splits_share_no_image(small_sources: Path) -> None:
    train, val, _ = load("dominoes", **DOMINOES)
    for half in (slice(0, 32), slice(32, 64)):
        keys = [{image.numpy().tobytes() for image in split.x[:, :, half]} for split in (train, val)]
        assert not keys[0] & keys[1]


def test_dominoes_ten_classes_and_other_sources(small_sources: Path) -> None:
    train, val, test = load("dominoes", protocol="caml", rho=0.9, n_train=400, n_val=100, n_test=200)
    assert train.n_groups == 100
    assert 0.9 <= float((train.y == train.a).double().mean()) < 0.95
    assert (val.group_counts == 1).all()
    assert (test.group_counts == 2).all()
    fashion, *_ = load("dominoes", bottom="fashion_mnist", classes=(3, 5), **DOMINOES)
    assert fashion.class_names == ("dress", "sandal")
    upside_down, *_ = load("dominoes", bottom="mnist", top="cifar10", **DOMINOES)
    assert upside_down.class_names == ("1", "9")


def test_row_order_of_the_file_does_not_matter(tmp_path: Path, small_sources: Path) -> None:
    import pyarrow.parquet as pq

    before, *_ = load("dominoes", **DOMINOES)
    for file in small_sources.rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.take(np.random.default_rng(1).permutation(len(table))), file)
    after, *_ = load("dominoes", **DOMINOES)
    assert after.content_hash() == before.content_hash()


def test_spuco_mnist(small_sources: Path) -> None:
    train, val, test = load("spuco_mnist", rho=0.9, n_train=400, n_val=100, n_test=100)
    assert (train.y == train.a).double().mean() == pytest.approx(0.9)
    assert (val.group_counts == 4).all()
    assert (test.group_counts == 4).all()
    corner = train.x[:, :, -1, -1].float() / 255  # background: the darkest ink is still below 60 of 255
    strongest = corner.argmax(dim=1)
    assert set(strongest[train.a == 0].tolist()) == {0}  # red
    with pytest.raises(CamlError, match="too few digits"):
        load("spuco_mnist", n_train=10**5)
    for wrong in ({"classes": 3}, {"digits": "roman"}, {"magnitude": 0.0}):
        with pytest.raises(CamlError, match="correct the option"):
            load("spuco_mnist", **wrong)


def test_ten_drawn_digits_need_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn by the program, the same each time, one colour a digit on the asked share of the background."""
    monkeypatch.delenv("CAML_DATA", raising=False)
    options = {"classes": 10, "digits": "drawn", "magnitude": 0.25, "n_train": 500, "n_val": 100, "n_test": 100}
    (train, val, test), (again, *_) = (load("spuco_mnist", rho=0.8, **options) for _ in range(2))
    assert train.content_hash() == again.content_hash()
    assert (train.y == train.a).double().mean() == pytest.approx(0.8)
    assert (val.group_counts == 1).all()
    assert test.class_names == tuple("0123456789")
    background = train.x[train.a == 0][:, 0, 0]  # first row of red images, where no digit reaches
    assert 0.2 < float((background == 255).double().mean()) < 0.3
    assert len(torch.unique(train.x.amax(1).float().mean((1, 2)))) > 400  # no two digits alike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (1, 2, 3), "top_classes": (0, 1)}, "as many"),
        ({"classes": (1, 11)}, "classes"),
        ({"classes": (1, 1)}, "classes"),
        ({"classes": (4,)}, "classes"),
        ({"bottom": "cifar100"}, "cifar100"),
        ({"protocol": "x"}, "protocol"),
        ({"n_train": 10**6}, "too few images of automobile, truck"),
    ],
)
def test_dominoes_bad_options(small_sources: Path, options: dict, message: str) -> None:
    with pytest.raises(CamlError, match=message):
        load("dominoes", **{**DOMINOES, **options})


def _files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_parquet(small_sources: Path, cache: Path, keep: float) -> None:
    file = next((small_sources / "ylecun").rglob("train*.parquet"))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CamlError, match="not a readable parquet"):
        load("spuco_mnist", n_train=50, n_val=10, n_test=10)
    assert not [name for name in _files(cache) if "train" in name]


def test_parquet_with_wrong_columns_or_broken_images(small_sources: Path, cache: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = next((small_sources / "ylecun").rglob("train*.parquet"))
    pq.write_table(pa.table({"pixels": [1, 2]}), file)
    with pytest.raises(CamlError, match="not a readable parquet"):
        load("spuco_mnist")
    pq.write_table(pa.table({"image": [{"bytes": b"not a picture", "path": None}], "label": [0]}), file)
    with pytest.raises(CamlError, match="not a readable parquet"):
        load("spuco_mnist")
    assert _files(cache) == []


def test_wrong_checksum(small_sources: Path) -> None:
    file = next((small_sources / "ylecun").rglob("train*.parquet"))
    name = file.relative_to(small_sources).as_posix()
    (small_sources / "SHA256SUMS").write_text(f"{'0' * 64}  ./{name}\n")
    with pytest.raises(CamlError, match="wrong checksum"):
        load("spuco_mnist")


def test_missing_everywhere_names_all_places(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.store, "hub_is_reachable", lambda: False)
    monkeypatch.delenv("CAML_DATA", raising=False)
    with pytest.raises(CamlError) as caught:
        sources.images("fashion_mnist", "train")
    for place in ("CAML_DATA (not set)", "Hugging Face Hub", "no network"):
        assert place in caught.value.what
    assert not sources.available("fashion_mnist")
    monkeypatch.setenv("CAML_DATA", str(tmp_path / "nothing"))
    with pytest.raises(CamlError, match="not a readable folder"):
        sources.images("mnist", "train")


def test_unreadable_file(small_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read anything, so the refusal is simulated where the file is opened."""
    file = next((small_sources / "ylecun").rglob("train*.parquet"))
    real = open

    def refuse(path: object, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        if str(path) == str(file):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CamlError, match="Permission denied"):
        load("spuco_mnist")


def test_hub_download_is_checked(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache names a blob by its SHA-256; a blob that does not match its name is refused and removed."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    write_source(tmp_path / "hub", "mnist", {"train": 12, "test": 12})
    file = tmp_path / "hub/ylecun/mnist/mnist/train-00000-of-00001.parquet"
    blob = file.rename(tmp_path / ("0" * 64))
    file.symlink_to(blob)

    def fake(repository: str, repo_type: str, allow_patterns: str, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(file.parents[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(sources.store, "hub_is_reachable", lambda: True)
    monkeypatch.delenv("CAML_DATA", raising=False)
    content = blob.read_bytes()
    with pytest.raises(CamlError, match="wrong checksum"):
        sources.images("mnist", "train")
    assert not blob.exists()

    blob = tmp_path / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    file.unlink()
    file.symlink_to(blob)
    found = sources.images("mnist", "train")
    assert len(found.labels) == 120
    assert "Hub" in found.origin


def test_decoded_cache_is_used_and_refused_when_broken(small_sources: Path, cache: Path) -> None:
    first = sources.images("mnist", "train")
    (file,) = (cache / "decoded").glob("mnist-train-*.npz")
    second = sources.images("mnist", "train")
    assert (first.pixels == second.pixels).all()
    file.write_bytes(file.read_bytes()[: os.path.getsize(file) // 2])
    with pytest.warns(UserWarning, match="decoding mnist again"):
        third = sources.images("mnist", "train")
    assert (first.pixels == third.pixels).all()


def test_real_sources_are_whole() -> None:
    require(REAL_DATA, "real MNIST and CIFAR-10 are needed (CAML_DATA)")
    for name in ("mnist", "cifar10"):
        train, test = (sources.images(name, split) for split in ("train", "test"))
        assert (len(train.labels), len(test.labels)) == ((60000 if name == "mnist" else 50000), 10000)
    assert (np.bincount(test.labels) == 1000).all()


def test_real_dominoes_counts() -> None:
    require(REAL_DATA, "real MNIST and CIFAR-10 are needed (CAML_DATA)")
    train, val, test = load("dominoes")
    assert train.group_counts.tolist() == [3600, 400, 400, 3600]
    assert val.group_counts.tolist() == test.group_counts.tolist() == [500] * 4
    train, val, test = load("dominoes", protocol="caml")
    assert (len(train), len(val), len(test)) == (44000, 1000, 2000)
    assert (torch.bincount(train.y) == 4400).all()


def test_columns_and_tables_as_readers_have_them() -> None:
    """Arrays, lists, floats, True and False: the same dataset; what would be cut to another number is refused."""
    names: dict[str, Any] = {"class_names": ("p", "q"), "attribute_names": ("u", "v", "w")}
    x, y, a = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 2])
    table = torch.tensor([[True, False, True], [False, True, False]])
    plain = GroupDataset(x, y, a, majority=table, **names)
    for majority in (table.numpy(), table.int().tolist(), table.float().numpy()):
        made = GroupDataset(x.numpy(), y.tolist(), a.double().numpy(), majority=majority, index=[4, 5, 6, 7], **names)
        assert made.content_hash() == plain.content_hash()
        assert torch.equal(made.is_minority, plain.is_minority)
        assert made[[1, 2]].index.tolist() == [5, 6]
        assert torch.equal(made.subset(np.array([2.0, 0.0])).y, y[[2, 0]])
    assert GroupDataset(x, y == 1, a, **names).y.dtype == torch.int64
    for change in ({"y": [0.5, 1, 1, 0]}, {"a": [np.nan, 0, 1, 2]}, {"majority": table.T}, {"majority": 0.3 * table}):
        with pytest.raises(CamlError, match=r"fractions|shape"):
            GroupDataset(**{"x": x, "y": y, "a": a, **names, **change})
    with pytest.raises(CamlError, match="fractions"):
        plain.subset([0.5])  # type: ignore[list-item]
