"""Files are whole or absent, and never loaded for something they were not made for."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from caml_core import store
from caml_core.errors import CamlError


def test_npz_round_trip_and_mismatch(tmp_path: Path) -> None:
    file = tmp_path / "a" / "x.npz"
    store.save_npz(file, {"z": np.arange(6).reshape(2, 3)}, {"seed": 1, "names": ("a", "b")})
    assert (store.load_npz(file, {"names": ["a", "b"], "seed": 1})["z"] == np.arange(6).reshape(2, 3)).all()
    with pytest.raises(CamlError, match="made for something else"):
        store.load_npz(file, {"seed": 2, "names": ("a", "b")})
    with pytest.raises(CamlError, match="missing or broken"):
        store.load_npz(tmp_path / "none.npz", {})


def test_a_damaged_npz_is_never_a_wrong_result(tmp_path: Path) -> None:
    """Cut at any length, or with any one byte changed, a cache file raises our error or gives the right numbers."""
    file = tmp_path / "x.npz"
    wanted = np.random.default_rng(0).standard_normal(20)
    store.save_npz(file, {"z": wanted}, {"k": 1})
    whole = file.read_bytes()
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [
        whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :] for i in range(len(whole)) for mask in (0x01, 0x41, 0xFF)
    ]
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            found = store.load_npz(file, {"k": 1})
        except CamlError:
            refused += 1
        else:
            assert (found["z"] == wanted).all()
    assert refused > len(whole)  # every cut, and most changes


def test_atomic_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with pytest.raises(RuntimeError), store.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    store.write_text(target, "whole")
    assert target.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """Writing to /dev/full fails with ENOSPC, as a full disk does."""

    def full() -> None:
        with store.atomic(tmp_path / "out.bin"), builtins.open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    with pytest.raises(CamlError, match="No space left") as caught:
        full()
    assert "CAML_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(CamlError, match="No space left"):
        store.save_npz(tmp_path / "x.npz", {"z": np.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_round_trip_and_damage(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    tensors = {"w": torch.randn(3, 4), "n": torch.tensor(7)}
    store.save_checkpoint(file, tensors, {"epoch": 2})
    loaded, meta = store.load_checkpoint(file)
    assert meta == {"epoch": 2}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CamlError, match="missing or broken"):
        store.load_checkpoint(file)


def test_hash_state_sees_every_change() -> None:
    state = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    base = store.hash_state(state)
    assert store.hash_state({"b": torch.zeros(2), "w": torch.zeros(2, 2)}) == base
    assert store.hash_state({**state, "w": torch.zeros(4)}) != base
    assert store.hash_state({**state, "b": torch.tensor([0.0, 1e-30])}) != base
