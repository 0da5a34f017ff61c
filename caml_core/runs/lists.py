"""Lists of runs: one plain file for a whole table.

A file of runs (TOML) holds options of `python -m caml_core run`, spelt as on the command line. Those at the top are
for all runs, each `[[runs]]` adds its own, and a list stands for one run an entry (several lists: all combinations):

    dataset = "birdscapes"
    seed = [0, 1, 2]

    [[runs]]
    method = "append"

    [[runs]]
    name = "{method}, {epochs} epochs"    # default: "{method}"
    method = ["upweight", "caml"]
    epochs = [20, 60]
    queries-from = "append"               # buys the labels that the run of this name and the same seed bought
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caml_core.errors import CamlError
from caml_core.runs.identity import identity, own_content, read_content
from caml_core.runs.run import pool
from caml_core.runs.settings import Data, Method, Rounds, build, config


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a list."""

    name: str  # the same for all seeds
    seed: int
    method: Method
    data: Data
    buys: str | None = None  # label of the run whose labels it buys again, and
    seller: str | None = None  # its identity

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"

    @functools.cached_property
    def identity(self) -> str:
        return identity(config(self.method, self.data), self.content, self.seed, self.seller)

    @functools.cached_property
    def content(self) -> str | None:
        """Of data of your own, as they were when this was asked first."""
        return own_content(self.data.dataset, self.data.option, self.seed)


def expand(file: Path) -> list[Run]:
    """The runs that a file lists, each after the run whose labels it buys.

    Raises:
        CamlError: the file is missing or no TOML, an unknown key, a setting that the method refuses, a run listed
            twice, or labels bought from a run that does not buy its own.
    """
    read_content.cache_clear()
    try:
        table = tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _wrong(file, f"cannot be read: {error}", "a TOML file of runs") from error
    entries = table.pop("runs", None)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(file, "lists no runs", "at least one [[runs]]")
    runs: dict[str, Run] = {}
    for entry in entries:
        lists = {"seed": 0, "name": "{method}", **table, **entry}
        lists = {key: value if isinstance(value, list) else [value] for key, value in lists.items()}
        if empty := [key for key, values in lists.items() if not values]:
            raise _wrong(file, f"has an empty list: {', '.join(empty)}", "at least one value")
        for values in itertools.product(*lists.values()):
            run = _run(file, dict(zip(lists, values)))
            if run.label in runs:
                raise _wrong(file, f"lists {run.label!r} twice", "another name for each run, see `name`")
            runs[run.label] = run
    sold = [_sold(file, run, runs) for run in sorted(runs.values(), key=lambda run: run.buys is not None)]
    first = {run.identity: run.label for run in reversed(sold)}
    for run in sold:
        if first[run.identity] != run.label:
            raise _wrong(file, f"{first[run.identity]!r} and {run.label!r} are the same run", "each run once")
    return sold


def _run(file: Path, cell: Mapping[str, Any]) -> Run:
    """One combination of settings."""
    given = {key.replace("-", "_"): value for key, value in cell.items()}
    seed = given.pop("seed")
    try:
        name, buys = (text and text.format(**cell) for text in (given.pop("name"), given.pop("queries_from", None)))
    except (LookupError, ValueError, AttributeError) as error:
        raise _wrong(file, f"has a name that cannot be filled in: {error}", "{key} for keys of that run") from error
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise _wrong(file, f"has a run called {name!r}", "names that can be names of files")
    if type(seed) is not int or seed < 0:
        raise _wrong(file, f"has seed {seed!r}", "whole numbers from 0")
    try:
        return Run(name, seed, *build(given), buys=buys and f"{buys}-{seed}")
    except CamlError as error:
        raise _wrong(file, f"run {name!r}: {error.what}", error.expected) from error


def _sold(file: Path, run: Run, runs: Mapping[str, Run]) -> Run:
    """The run with the identity of its seller, once they fit."""
    if run.buys is None:
        return run
    seller = runs.get(run.buys)
    if seller is None or seller.buys or not trades(seller.method):
        raise _wrong(file, f"{run.label!r} buys from {run.buys!r}", "a run in rounds that buys its own labels")
    if not trades(run.method) or pool(run.method, run.data) != pool(seller.method, seller.data):
        same = "two runs in rounds with the same dataset, rho, option, start, query and rounds"
        raise _wrong(file, f"{run.label!r} cannot buy from {run.buys!r}", same)
    return dataclasses.replace(run, seller=seller.identity)


def trades(method: Method) -> bool:
    """Whether it buys labels, so that another can buy them again."""
    return isinstance(method, Rounds) and method.method != "erm_all"


def _wrong(file: Path, what: str, expected: str) -> CamlError:
    return CamlError(what=f"{file} {what}", expected=expected, remedy="correct the file; nothing was run")
