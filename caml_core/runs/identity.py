"""What makes two runs the same: their settings, their data, the labels they buy, and what the code does.

What the code does has a number, its revision, set by hand: it is raised when a method or a dataset comes to give other
numbers, which the tests notice on tiny runs of every method. So code can move without a run being made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caml_core.data import DATASETS

if TYPE_CHECKING:
    from caml_core.groups import GroupDataset

METHODS = (
    "erm", "append", "upweight", "mldg", "caml", "balanced", "jtt", "groupdro", "erm_all",
    "erm-head", "dfr", "balanced-head", "jtt-head", "gdro-head", "afr", "dac", "hsfm",
    "reweight", "crt", "leia", "self", "evals", "neurontune",
)  # fmt: skip
REVISION = dict.fromkeys((*METHODS, *DATASETS), 1)  # | {"name of a method or a dataset": 2}, once its numbers move
OWN = ("folder",)  # data of your own can change behind its path: what counts is their content
PLACE = ("data_dir", "progress")  # options that say where data are, or what is shown
NAMES = ("profile", "published")  # of defaults: the values themselves are among the settings


def identity(settings: Mapping[str, Any], content: str | None, seed: int, seller: str | None = None) -> str:
    """Sixteen hexadecimal digits that two runs share only if they would find the same.

    Args:
        settings: of method, network and dataset (`method`, `dataset`, `option`, ...), defaults included. None and False
            say nothing, so that a new setting, off by default, leaves older runs what they are.
        content: of data of your own, see `own_content`.
        seller: identity of the run whose labels this one buys.
    """
    hidden = {*PLACE, *(("path",) if content else ())}  # data of your own may have been moved
    option = {key: value for key, value in settings["option"].items() if key not in hidden}
    said = {key: value for key, value in settings.items() if key not in NAMES}
    said |= {"option": option, "seed": seed, "seller": seller, "content": content}
    text = json.dumps([_plain(said), REVISION[settings["method"]], REVISION[settings["dataset"]]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(splits: Sequence[GroupDataset]) -> str:
    """Sixteen hexadecimal digits that stand for examples, labels, attributes, their order and their names."""
    parts = [[s.content_hash(), s.class_names, s.attribute_names, s.majority.tolist()] for s in splits]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def own_content(dataset: str, option: Mapping[str, Any], seed: int) -> str | None:
    """Content of your own data as it is now; None for the datasets of the book."""
    return read_content(dataset, json.dumps(option, sort_keys=True, default=str), seed) if dataset in OWN else None


@functools.cache  # a list with many runs reads its data once; `expand` empties it
def read_content(dataset: str, option: str, seed: int) -> str:
    """The same, options as JSON."""
    from caml_core.data import load

    return content_hash(load(dataset, seed=seed, **json.loads(option)))


def _plain(value: Any) -> Any:
    """Settings as JSON that does not tell 5 from 5.0, or a tuple from a list."""
    if isinstance(value, Mapping):
        said = {key: part for key, part in value.items() if part is not None and part is not False}
        return {key: _plain(part) for key, part in said.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return str(value) if isinstance(value, Path) else value
