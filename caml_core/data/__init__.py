"""Datasets with a spurious attribute: `load(name, ...) -> train, val, test`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from caml_core.errors import CamlError

if TYPE_CHECKING:
    from caml_core.groups import Splits

DATASETS = ("birdscapes", "celeba", "civilcomments", "dominoes", "folder", "madlibs", "metashift", "spuco_animals",
            "spuco_mnist", "waterbirds")  # fmt: skip


def load(name: str, **options: Any) -> Splits:
    """Load a dataset by name: the training, validation and test splits.

    Args:
        name: one of `DATASETS`.
        options: keyword arguments of that dataset's own `load`; all take `seed`.

    Raises:
        CamlError: unknown name or option, or whatever the dataset finds wrong.
    """
    splits: Splits = loader(name, options)(**options)
    return splits


def loader(name: str, options: Iterable[str]) -> Callable[..., Any]:
    """The `load` of a dataset, which has these options.

    Raises:
        CamlError: unknown name or option.
    """
    if name not in DATASETS:
        remedy = "check the spelling; your own images: load('folder', path=...)"
        raise CamlError(f"unknown dataset {name!r}", "one of " + ", ".join(DATASETS), remedy)
    load_it: Callable[..., Any] = importlib.import_module(f"caml_core.data.{name}").load
    known = inspect.signature(load_it).parameters
    if unknown := sorted(set(options) - set(known)):
        what, expected = f"dataset {name!r} has no option {', '.join(unknown)}", "one of " + ", ".join(known)
        raise CamlError(what, expected, "check the spelling of the option")
    return load_it
