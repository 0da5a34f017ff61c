"""What a run is: a method with its settings, a dataset, a seed.

Everything is typed once, and a list of runs, the command line and a stored record build what Python builds:

    method, data = build({"method": "caml", "dataset": "birdscapes", "rho": 0.95, "alpha": 0.05})
    record = run(method, data, seed=0)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from caml_core.checked import settings
from caml_core.comparators import ON_FEATURES
from caml_core.dac import dac
from caml_core.data import load, loader
from caml_core.environments import ValGroups
from caml_core.errors import CamlError
from caml_core.groups import Splits
from caml_core.hsfm_settings import PUBLISHED, Settings
from caml_core.round import METHODS, Plan
from caml_core.round import Method as InRounds
from caml_core.training import Erm

Profile = Literal["quick", "full"]  # `QUICK`, the regime of the chapters, or the published one
Protocol = Literal["ours", "authors"]  # what a method's authors do otherwise: see `AUTHORS`
Augment = Literal["none", "shift", "crop"]  # of training images; shift: by up to 3 pixels; `caml_core.loader`
QUICK = {"start": 600, "query": 50, "epochs": 60, "lr": 1e-3, "weight_decay": 1e-4, "alpha": 0.1}  # of rounds
AUTHORS: dict[str, dict[str, Any]] = {
    "hsfm": dict.fromkeys(("raw", "own_head", "late", "any_epoch"), True),
    "rounds": {"augment": "crop", "upscale": 8.0, "any_epoch": True, "short_batches": True},  # 64 x 32 to 512 x 256
}
SPELT = {"steps": "inner_steps"}  # how lists and the command line call a setting of HSFM


@settings
class Method:
    """A method and the network that it starts from."""

    method: str
    backbone: str = "small_resnet"
    from_scratch: bool = False  # do not load pretrained weights
    upscale: PositiveFloat | None = None  # enlarge images first; default: as the backbone wants

    def __reduce__(self) -> tuple[Any, ...]:
        return method_of, (dataclasses.asdict(self),)  # other processes make the class of a function themselves


@settings
class ErmRun(Erm, Method):
    """ERM on images, or on frozen and standardised features (`head_only`)."""

    augment: Augment = "shift"
    head_only: bool = False
    profile: Profile = "quick"


@settings
class Rounds(Plan, Method):
    """Active learning in rounds."""

    method: InRounds
    # File of records (in a list: the run) whose labels of the same seed are bought again; the last round is trained.
    queries_from: str | None = None
    augment: Augment = "shift"
    profile: Profile = "quick"
    protocol: Protocol = "ours"  # "authors": `AUTHORS` and the full profile; their backbone is resnet18
    # Share of a batch in BatchNorm's running statistics; EfficientNet's own, 0.01, is for thousands of steps.
    norm_momentum: PositiveFloat | None = None


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
    protocol: Protocol = "ours"  # "authors": `AUTHORS`, whose settings can be given alone; wants `train_backbone`
    raw: bool = False  # features as the network makes them
    own_head: bool = False  # theta_0 is the network's own last layer
    double: bool = False  # features and all that follows in float64


def made_from(function: Callable[..., Any], base: type) -> Any:
    """The keywords of a function, but for `seed` and `device`, as settings; numbers of a method have their ranges."""
    several = Annotated[Sequence[NonNegativeFloat], Field(min_length=1)]
    ranges = {int: PositiveInt, float: NonNegativeFloat, Sequence[float]: several} if base is Frozen else {}
    body: dict[str, Any] = {"__annotations__": {}}
    for name, given in inspect.signature(function).parameters.items():
        if given.kind is given.KEYWORD_ONLY and name not in ("seed", "device"):
            kind = eval(given.annotation, function.__globals__)
            body["__annotations__"][name] = ranges.get(kind, kind)
            body |= {} if given.default is given.empty else {name: given.default}
    return settings(type(function.__name__, (base,), body))


KINDS: dict[str, type[Method]] = {
    "erm": ErmRun,
    **dict.fromkeys(METHODS, Rounds),
    **{name: made_from(function, Frozen) for name, function in {**ON_FEATURES, "dac": dac}.items()},
    "hsfm": Hsfm,
}


def usual(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on the profile, the protocol or a published name."""
    authors, quick = given.get("protocol") == "authors", given.get("profile", "quick") == "quick"
    if given["method"] == "hsfm":
        published = PUBLISHED.get(given.get("published", "dominoes"), Settings())
        return dataclasses.asdict(published) | (AUTHORS["hsfm"] if authors else {})
    if given["method"] == "erm":
        return {"epochs": 8 if quick else 50}
    if given["method"] in METHODS:
        return AUTHORS["rounds"] if authors else QUICK if quick else {}
    return {}


def method_of(given: Mapping[str, Any]) -> Method:
    """A method by name, with its settings."""
    if given.get("method") not in KINDS:
        raise CamlError(f"method {given.get('method')!r}", "one of " + ", ".join(KINDS), "check the spelling")
    own = {spelt: name for name, spelt in SPELT.items()} if given["method"] == "hsfm" else {}
    return KINDS[given["method"]](**usual(given) | {own.get(key, key): value for key, value in given.items()})


@settings
class Data:
    """A dataset and how it is loaded; `CamlError` on an option that its loader does not have, or of another kind."""

    dataset: str
    rho: float | None = None  # share of majority examples in training, 0.5 to 1
    option: dict[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the dataset's `load`

    @property
    def given(self) -> dict[str, Any]:
        return self.option if self.rho is None else {"rho": self.rho, **self.option}

    def __post_init__(self) -> None:
        made_from(loader(self.dataset, self.given), object)(**self.given)

    def load(self, seed: int) -> Splits:
        """Training, validation and test split."""
        return load(self.dataset, seed=seed, **self.given)


def build(given: Mapping[str, Any]) -> tuple[Method, Data]:
    """Settings and dataset from one flat mapping; `CamlError` on a wrong, unknown or missing one."""
    data = {key: given[key] for key in ("dataset", "rho", "option") if key in given}
    return method_of({key: value for key, value in given.items() if key not in data}), Data(**data)


def config(method: Method, data: Data) -> dict[str, Any]:
    """All settings of a run, flat, as JSON; `build` reads them again."""
    every = {**dataclasses.asdict(method), **dataclasses.asdict(data)}
    return dict(json.loads(json.dumps(every, default=str)))


def words(method: Method, data: Data) -> list[str]:
    """What stands behind `python -m caml_core` to make the run: settings that differ from their defaults."""
    found = ["run", method.method, "--dataset", data.dataset]
    found += [] if data.rho is None else ["--rho", str(data.rho)]
    for name, value in data.option.items():
        found += ["--option", f"{name}={value if isinstance(value, str | Path) else json.dumps(value)}"]
    base = usual(dataclasses.asdict(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name != "method" and value != base.get(field.name, field.default):
            each = value if isinstance(value, list | tuple) else [] if isinstance(value, bool) else [value]
            found += [flag(f"no_{field.name}" if value is False else field.name), *map(str, each)]
    return found


def flag(setting: str) -> str:
    """How the command line calls a setting."""
    return "--" + SPELT.get(setting, setting).replace("_", "-")


def word(text: str) -> Any:
    """What a word of the command line says: JSON (a number, true, false, null, a list), or itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
