"""What a run is: a method with its settings, a dataset, a seed.

Everything is typed once. A list of runs (`caml_core.runs.lists`), the command line (`caml_core.__main__`) and a record
that is read again build the objects that Python builds:

    settings, data = build({"method": "caml", "dataset": "birdscapes", "rho": 0.95, "alpha": 0.05})
    record = run(settings, data, seed=0)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from caml_core.checked import settings
from caml_core.comparators import ON_FEATURES
from caml_core.dac import dac
from caml_core.data import load, loader
from caml_core.environments import ValGroups
from caml_core.errors import CamlError
from caml_core.groups import GroupDataset
from caml_core.hsfm_settings import PUBLISHED, Settings
from caml_core.metrics import Rule
from caml_core.round import METHODS, Plan
from caml_core.round import Method as InRounds
from caml_core.training import Erm

Profile = Literal["quick", "full"]
Augment = Literal["none", "shift"]  # of training images; shift: by up to 3 pixels
SPELT = {"steps": "inner_steps"}  # how a list and the command line call a setting of HSFM
ERM: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 8, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-4, "select": "average"},
    "full": {"epochs": 50, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-4, "select": "average"},
}
ROUNDS: dict[str, dict[str, Any]] = {  # "full" is published, "quick" is the regime that the chapters explain
    "quick": {"start": 600, "query": 50, "epochs": 60, "lr": 1e-3, "weight_decay": 1e-4, "alpha": 0.1},
    "full": {},
}


@settings
class Method:
    """A method and the network that it starts from."""

    method: tyro.conf.Suppress[str]
    backbone: str = "small_resnet"
    from_scratch: bool = False  # do not load pretrained weights


@settings
class ErmRun(Erm, Method):
    """ERM on images, or on frozen and standardised features (`head_only`)."""

    augment: Augment = "shift"
    head_only: bool = False
    profile: Profile = "quick"


@settings
class Rounds(Plan, Method):
    """Active learning in rounds."""

    method: tyro.conf.Suppress[InRounds]
    augment: Augment = "shift"
    profile: Profile = "quick"


@settings
class Frozen(Method):
    """A linear head on frozen, standardised features."""

    val_labels: PositiveInt | None = None  # keep only so many of the validation examples
    val_groups: ValGroups | None = None  # in place of their labelled groups (`caml_core.environments`)
    train_backbone: PositiveInt | None = None  # epochs of ERM of the whole network, before it is frozen


@settings
class Hsfm(Settings, Frozen):
    """HSFM with the settings published for one dataset, in their place those that are given."""

    published: Literal["celeba", "waterbirds", "metashift", "dominoes"] = "dominoes"
    scaled: bool = False  # adapt them to features of another width
    steps: Annotated[PositiveInt, tyro.conf.arg(name="inner-steps")] = 10


RANGES: dict[str, Any] = {
    "epochs": PositiveInt, "first_epochs": PositiveInt, "batch_size": PositiveInt, "subsets": PositiveInt,
    "lr": PositiveFloat, "weight_decay": NonNegativeFloat, "rate": NonNegativeFloat, "select": Rule,
    **dict.fromkeys(("upweights", "gammas", "pulls", "alphas"), Annotated[Sequence[NonNegativeFloat], MinLen(1)]),
    **dict.fromkeys(("c_grid", "quantiles"), Annotated[Sequence[PositiveFloat], MinLen(1)]),
}  # fmt: skip


def _of(function: Callable[..., Any]) -> type[Frozen]:
    """Settings of a method that is one function: its keyword arguments."""
    known = inspect.signature(function, eval_str=True).parameters.values()
    own = [p for p in known if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "device")]
    kinds = {p.name: RANGES.get(p.name, p.annotation) for p in own}
    name = function.__name__.title().replace("_", "")
    body = {"__module__": __name__, "__annotations__": kinds, **{p.name: p.default for p in own}}
    globals()[name] = settings(type(name, (Frozen,), body))  # where pickle looks for it
    return globals()[name]


KINDS: dict[str, type[Method]] = {
    "erm": ErmRun,
    **dict.fromkeys(METHODS, Rounds),
    **{name: _of(function) for name, function in {**ON_FEATURES, "dac": dac}.items()},
    "hsfm": Hsfm,
}


def kind_of(method: Any) -> type[Method]:
    """The class of a method's settings."""
    if method not in KINDS:
        raise CamlError(f"method {method!r}", "one of " + ", ".join(KINDS), "check the spelling")
    return KINDS[method]


def usual(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on the method, its profile or a published name."""
    if given["method"] == "hsfm":
        base = PUBLISHED.get(given.get("published", "dominoes"))
        return dataclasses.asdict(base) if base else {}
    table = ERM if given["method"] == "erm" else ROUNDS if given["method"] in METHODS else {}
    return table.get(given.get("profile", "quick"), {})


@settings
class Data:
    """A dataset and how it is loaded. Options that are text are read as what the loader takes, lists with commas."""

    dataset: str
    rho: float | None = None  # share of majority examples in training, 0.5 to 1
    option: dict[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the dataset's `load`

    def __post_init__(self) -> None:
        """Raises `CamlError`: an option that the loader does not have, or of another kind, or one that is missing."""
        given = self.option if self.rho is None else {"rho": self.rho, **self.option}
        function = loader(self.dataset, given)
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in given:
                if parameter.default is parameter.empty:
                    raise CamlError(
                        what=f"dataset {self.dataset!r} without {name}",
                        expected=f"option {name}={parameter.annotation}",
                        remedy=f"add it: --option {name}=...",
                    )
            elif name in self.option:
                kind = eval(str(parameter.annotation), function.__globals__)
                self.option[name] = _read(name, given[name], kind, str(parameter.annotation).removesuffix(" | None"))

    def load(self, seed: int, data_dir: Path | None = None) -> tuple[GroupDataset, GroupDataset, GroupDataset]:
        """Training, validation and test split."""
        more = {"rho": self.rho, "data_dir": data_dir}
        return load(self.dataset, **{"seed": seed, **self.option, **{k: v for k, v in more.items() if v is not None}})


def _read(name: str, given: Any, kind: Any, words: str) -> Any:
    adapter = pydantic.TypeAdapter(kind)
    parts = [part for part in given.split(",") if part] if isinstance(given, str) else []
    for value in (given, *([_word(given)] if parts else []), tuple(map(_word, parts))):
        try:
            return adapter.validate_python(value, strict=True)
        except pydantic.ValidationError:
            continue
    raise CamlError(
        what=f"--option {name}={given}",
        expected=f"{name} of kind {words}" + (", for example 3,5" if "Sequence" in words else ""),
        remedy="correct the option",
    )


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def build(given: Mapping[str, Any]) -> tuple[Method, Data]:
    """Settings and dataset from one flat mapping, which a list, the command line or a record gives.

    Raises:
        CamlError: a method that does not exist, settings that it does not take or that are out of range.
    """
    rest = dict(given)
    data = {key: rest.pop(key) for key in ("dataset", "rho", "option") if key in rest}
    kind = kind_of(rest.get("method"))
    if "dataset" not in data:
        raise CamlError("a run without dataset", "a method and a dataset", "add it")
    if kind is Hsfm:
        rest = {next((own for own, spelt in SPELT.items() if spelt == key), key): v for key, v in rest.items()}
    return kind(**{**usual(rest), **rest}), Data(**data)


def config(method: Method, data: Data) -> dict[str, Any]:
    """All settings of a run, flat, for its record; `of_record` reads them again."""
    return {**dataclasses.asdict(method), **dataclasses.asdict(data)}


def of_record(record: Mapping[str, Any]) -> tuple[Method, Data]:
    """The settings that made a record. Older ones also say what their method does not have."""
    said = {key: value for key, value in record["config"].items() if value is not None and value is not False}
    said.pop("queries_from", None)
    return build({"method": record["method"], "dataset": record["dataset"], **said})


def words(method: Method, data: Data) -> list[str]:
    """What stands behind `python -m caml_core` to make the run: settings that differ from their defaults."""
    base = usual(dataclasses.asdict(method))
    found = ["run", method.method, "--dataset", data.dataset]
    found += [] if data.rho is None else ["--rho", str(data.rho)]
    for key, value in data.option.items():
        text = ",".join(map(str, value)) + "," if isinstance(value, list | tuple) else json.dumps(value)
        found += ["--option", f"{key}={value if isinstance(value, str | Path) else text}"]
    for field in dataclasses.fields(method):
        value, default = getattr(method, field.name), base.get(field.name, field.default)
        flag = "--" + (SPELT if isinstance(method, Hsfm) else {}).get(field.name, field.name).replace("_", "-")
        if field.name != "method" and value != default:
            each = value if isinstance(value, list | tuple) else [] if value is True else [value]
            found += [flag, *map(str, each)]
    return found
