"""The dropouts of a module: rates, scopes, and the questions that decide what has to run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, Literal

from .mask import check_probability

MaskScope = Literal["step", "sequence"]
MASK_SCOPES: tuple[MaskScope, ...] = ("step", "sequence")
INSIDE = ("hidden_dropout", "recurrent_dropout")  # the recurrence


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
        for field in fields(self):
            if field.name != "mask_scope":
                object.__setattr__(self, field.name, check_probability(field.name, getattr(self, field.name)))
        check_choice("mask_scope", self.mask_scope, MASK_SCOPES)

    def replace(self, name: str, value: Any) -> Dropouts:
        return dataclasses.replace(self, **{name: value})

    @property
    def inside(self) -> bool:
        """Whether anything is dropped inside the recurrence."""
        return any(getattr(self, name) for name in INSIDE)

    def outside(self, num_layers: int) -> bool:
        """Whether anything is dropped outside the recurrence of a module of so many layers."""
        return bool(self.dropout) and num_layers > 1

    def changed(self) -> dict[str, Any]:
        """What is not as by default, for a module's repr."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


def owned(name: str) -> Any:
    """An attribute of a module that its ``_dropouts`` hold: read as given, checked when it is set."""

    def get(module: Any) -> Any:
        return getattr(module._dropouts, name)

    def set(module: Any, value: Any) -> None:
        module._dropouts = module._dropouts.replace(name, value)

    return property(get, set)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
        raise ValueError(f"Unknown {name} {value!r}. Select from {listed}.")
