"""Lists of runs: one plain file (TOML) for a whole table, with the options of `python -m caml_core run`.

Those at the top are for all runs, each `[[runs]]` adds its own, and a list stands for one run an entry (several lists:
all combinations):

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
import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import NonNegativeInt, StringConstraints

from caml_core.checked import settings
from caml_core.errors import CamlError
from caml_core.runs.identity import OWN, content_hash, identity
from caml_core.runs.run import POOL, pool
from caml_core.runs.settings import Data, Method, Rounds, build, config

Name = Annotated[str, StringConstraints(pattern=r'^[^./\\:*?"<>|][^/\\:*?"<>|]*$')]  # of files on every system


@settings
class Run:
    """One run of a list."""

    name: Name  # one for all seeds
    seed: NonNegativeInt
    method: Method
    data: Data
    identity: str = ""
    seller: str | None = None  # identity of the run whose labels it buys

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def buys(self) -> str | None:
        """Label of the run whose labels it buys."""
        file = getattr(self.method, "queries_from", None)
        return file and file.removesuffix(".json")

    def known(self, content: str, seller: str | None = None) -> Run:
        """The same with its identity."""
        its = identity(config(self.method, self.data), self.seed, content, seller)
        return dataclasses.replace(self, identity=its, seller=seller)

    def content(self) -> str:
        """Of data of your own, as they are now."""
        return content_hash(self.data.load(self.seed)) if self.data.dataset in OWN else ""


def expand(file: Path) -> list[Run]:
    """The runs that a file lists, each after the run whose labels it buys.

    Raises:
        CamlError: the file is no TOML, a wrong setting, a run listed twice, or labels that cannot be bought.
    """
    try:
        table = tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
        entries = [{"seed": 0, "name": "{method}", **table, **entry} for entry in table.pop("runs")]
    except (LookupError, TypeError, ValueError) as error:
        raise _wrong(file, f"cannot be read: {error!r}", "a TOML file with at least one [[runs]]") from error
    runs: dict[str, Run] = {}
    for entry in entries:
        lists = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
        if empty := [key for key, values in lists.items() if not values]:
            raise _wrong(file, f"has an empty list: {', '.join(empty)}", "at least one value")
        for values in itertools.product(*lists.values()):
            run = _run(file, dict(zip(lists, values)))
            if run.label in runs:
                raise _wrong(file, f"lists {run.label!r} twice", "another name for each run, see `name`")
            runs[run.label] = run
    known: dict[str, Run] = {}
    contents: dict[str, str] = {}  # of data of your own, which are read once
    for run in sorted(runs.values(), key=lambda run: run.buys is not None):
        seller = known.get(run.buys or "")
        if run.buys and (seller is None or seller.buys or not isinstance(seller.method, Rounds)):
            raise _wrong(file, f"{run.label!r} buys from {run.buys!r}", "a run in rounds that buys its own labels")
        if seller and pool(run.method, run.data) != pool(seller.method, seller.data):
            raise _wrong(file, f"{run.label!r} cannot buy from {run.buys!r}", f"two runs with the same {POOL}")
        data = repr((run.data, run.seed))
        contents[data] = contents.get(data) or run.content()
        known[run.label] = run.known(contents[data], seller.identity if seller else None)
    return list(known.values())


def _run(file: Path, cell: Mapping[str, Any]) -> Run:
    """One combination of settings."""
    given = {key.replace("-", "_"): value for key, value in cell.items()}
    try:
        name, seed = given.pop("name").format(**cell), given.pop("seed")
        if "queries_from" in given:
            given["queries_from"] = f"{given['queries_from'].format(**cell)}-{seed}.json"
        method, data = build(given)
        return Run(name=name, seed=seed, method=method, data=data)
    except (LookupError, ValueError, AttributeError) as error:
        raise _wrong(file, f"has a name that cannot be filled in: {error}", "{key} for keys of that run") from error
    except CamlError as error:
        raise _wrong(file, f"run {name!r}: {error.what}", error.expected) from error


def _wrong(file: Path, what: str, expected: str) -> CamlError:
    return CamlError(f"{file} {what}", expected, "correct the file; nothing was run")
