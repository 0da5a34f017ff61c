"""What makes two runs the same: their settings, their data, the labels they buy, and what the code does.

What the code does has a number, its revision. It is raised by hand when a method or a dataset comes to give other
numbers, which the tests notice on tiny runs of every method. So code can move without a run being made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
NAMES = ("profile", "published", "protocol", "queries_from")  # what they stand for is hashed itself


def identity(config: Mapping[str, Any], seed: int, content: str = "", seller: str | None = None) -> str:
    """Sixteen hexadecimal digits that two runs share only if they would find the same.

    Args:
        config: see `caml_core.runs.settings.config`. None and False say nothing: a new setting, off by default, leaves
            older runs what they are.
        content: see `content_hash`; counts for data of your own.
        seller: identity of the run whose labels this one buys.
    """
    own = config["dataset"] in OWN
    hidden = {*PLACE, "path"} if own else PLACE
    said = {key: value for key, value in config.items() if key not in NAMES}
    said["option"] = {key: value for key, value in config["option"].items() if key not in hidden}
    said |= {"seed": seed, "seller": seller, "content": content if own else None}
    text = json.dumps([_plain(said), REVISION[config["method"]], REVISION[config["dataset"]]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(splits: Sequence[GroupDataset]) -> str:
    """Sixteen hexadecimal digits that stand for examples, labels, attributes, their order and their names."""
    parts = [[s.content_hash(), s.class_names, s.attribute_names, s.majority.tolist()] for s in splits]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Settings without what says nothing, and 5 as 5.0."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None and part is not False}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
