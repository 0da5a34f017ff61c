"""Settings typed once: the same dataclass is built by Python, by a list of runs (TOML) and by the command line."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, dataclass_transform

import pydantic

from caml_core.errors import CamlError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass with keyword arguments whose types and ranges are checked (pydantic).

    A wrong or unknown setting raises `CamlError`; every wrong one is named.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        try:
            init(self, *args, **given)
        except pydantic.ValidationError as error:
            wrong = [(".".join(map(str, e["loc"])), e) for e in error.errors()]
            raise CamlError(
                what=", ".join(n + (" is missing" if e["type"] == "missing" else f"={e['input']!r}") for n, e in wrong),
                expected="; ".join(f"{name}: {e['msg'][:1].lower()}{e['msg'][1:]}" for name, e in wrong),
                remedy="correct the setting",
            ) from None

    made.__init__ = checked
    return made
