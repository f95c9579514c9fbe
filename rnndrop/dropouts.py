"""The dropouts of a module: rates, scopes, and the questions that decide what has to run.

A new one is a field of :class:`Dropouts`, its place in RATES, an option and an attribute here; its number in mask.py; for one
inside the recurrence its kind in cell.py; then a line where it acts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from .mask import check_probability

MaskScope = Literal["step", "sequence"]
MASK_SCOPES: tuple[MaskScope, ...] = ("step", "sequence")
RATES = {"between": "dropout", "hidden": "hidden_dropout", "recurrent": "recurrent_dropout"}  # by kind of mask
INSIDE = ("hidden", "recurrent")  # the recurrence


@dataclass(frozen=True)
class Dropouts:
    """Every rate is a probability in [0, 1] of an element to be zeroed; none drops by default.

    Raises:
        ValueError: a rate that is none, or an unknown scope.
    """

    dropout: float = 0.0
    hidden_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    mask_scope: MaskScope = "step"

    def __post_init__(self) -> None:
        for name in RATES.values():
            object.__setattr__(self, name, check_probability(name, getattr(self, name)))
        check_choice("mask_scope", self.mask_scope, MASK_SCOPES)

    def rate(self, kind: str) -> float:
        return getattr(self, RATES[kind])

    def per_step(self, kind: str) -> bool:
        """Whether each step of a sequence has a mask of its own."""
        return kind == "between" or self.mask_scope == "step"

    @property
    def inside(self) -> bool:
        """Whether anything is dropped inside the recurrence."""
        return any(self.rate(kind) for kind in INSIDE)

    def outside(self, num_layers: int) -> bool:
        """Whether anything is dropped outside the recurrence of a module of so many layers."""
        return bool(self.dropout) and num_layers > 1

    def replace(self, name: str, value: Any) -> Dropouts:
        return dataclasses.replace(self, **{name: value})

    def changed(self) -> dict[str, Any]:
        """What is not as by default, for a module's repr."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


class StateOptions(TypedDict, total=False):
    """The arguments of a cell, whose dropouts act on states."""

    hidden_dropout: float
    recurrent_dropout: float


class RecurrenceOptions(StateOptions, total=False):
    """The arguments of a layer, with the dropouts inside its recurrence."""

    mask_scope: MaskScope


def checked_options(function: str, options: Any, allowed: Any) -> Dropouts:
    """Those of a call's keyword arguments. TypeError, naming the function, where one is not among the `allowed` options."""
    for name in options.keys() - allowed.__optional_keys__:
        raise TypeError(f"{function} got an unexpected keyword argument {name!r}")
    return Dropouts(**options)


def dropout_property(name: str) -> Any:
    """An attribute of a module that its ``_dropouts`` hold: read as given, checked when it is set."""

    def get(module: Any) -> Any:
        return getattr(module._dropouts, name)

    def set(module: Any, value: Any) -> None:
        module._dropouts = module._dropouts.replace(name, value)

    return property(get, set)


class StateAttributes:
    """What a cell shows of its dropouts."""

    _dropouts: Dropouts
    hidden_dropout = dropout_property("hidden_dropout")
    recurrent_dropout = dropout_property("recurrent_dropout")


class Attributes(StateAttributes):
    """What a module of layers shows of its dropouts."""

    dropout = dropout_property("dropout")
    mask_scope = dropout_property("mask_scope")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
        raise ValueError(f"Unknown {name} {value!r}. Select from {listed}.")
