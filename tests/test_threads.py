"""Threads that wait: small networks train on one, and all others give way where a core is taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import caml_core
from caml_core.networks import backbone
from caml_core.store import hash_state
from caml_core.threads import ONE_THREAD_UP_TO, multiply_adds, threads_for


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pictures(size: int) -> torch.Tensor:
    return torch.zeros(4, 3, size, size, dtype=torch.uint8)


def test_multiply_adds_of_layers_by_hand() -> None:
    assert multiply_adds(nn.Linear(7, 5), torch.zeros(3, 7)) == 3 * 7 * 5
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 5, groups=2))
    counted = multiply_adds(convolutions, torch.zeros(2, 3, 10, 10))
    assert counted == 2 * (10 * 10 * 8 * 3 * 9 + 6 * 6 * 4 * 4 * 25)


def test_small_networks_train_on_one_thread_and_large_ones_on_all() -> None:
    for name, size, batch, threads in (("small_cnn", 28, 32, 1), ("small_cnn", 48, 64, 2), ("small_resnet", 48, 32, 2)):
        network = backbone(name, 2)
        assert (batch * multiply_adds(network, pictures(size)[:1]) <= ONE_THREAD_UP_TO) == (threads == 1)
        with threads_for(network, pictures(size), batch):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), threads_for(nn.Linear(2, 2), torch.zeros(1, 2), 8):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_the_trial_leaves_network_and_random_numbers_alone() -> None:
    network = nn.Sequential(backbone("small_cnn", 2), nn.Dropout(0.5)).train()
    network[1].eval()
    state, numbers = hash_state(network.state_dict()), torch.get_rng_state()
    with threads_for(network, pictures(28), 8):
        assert [module.training for module in network] == [True, False]
    assert hash_state(network.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), numbers)


def spin_count(program: str, **environment: str) -> str:
    """GOMP_SPINCOUNT after a program's imports."""
    kept = {name: value for name, value in os.environ.items() if name not in (*caml_core.SPIN, "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", f"import os; {program}; print(os.environ.get('GOMP_SPINCOUNT'))"]
    env = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_the_spin_count_is_set_before_pytorch_is_loaded_and_never_against_the_user() -> None:
    ours = caml_core.SPIN["GOMP_SPINCOUNT"]
    assert spin_count("import caml_core, sys; assert 'torch' not in sys.modules") == ours
    assert spin_count("import torch, caml_core") == "None"
    assert spin_count("import caml_core", GOMP_SPINCOUNT="7") == "7"
    assert spin_count("import caml_core", OMP_WAIT_POLICY="ACTIVE") == "None"
    lines = (Path(__file__).parent.parent / "Makefile").read_text("utf-8")
    assert dict(re.findall(r"^export (\w+) \?= (\w+)$", lines, re.MULTILINE)) == caml_core.SPIN
