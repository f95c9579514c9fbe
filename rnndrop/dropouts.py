"""The dropouts of a module: rates, scopes, and the questions that decide what has to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from .kinds import INSIDE, KINDS, SCOPED, ZONEOUTS
from .mask import check_probability, scale, share

MaskScope = Literal["step", "sequence"]
MASK_SCOPES: tuple[MaskScope, ...] = ("step", "sequence")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
        raise ValueError(f"Unknown {name} {value!r}. Select from {listed}.")


@dataclass(frozen=True)
class Dropouts:
    """Every rate is a probability in [0, 1] of an element to be dropped; none drops by default.

    Raises:
        ValueError: a rate that is none, an unknown scope, or one of a kind that has none to choose.
    """

    dropout: float = 0.0
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: float = 0.0
    cell_dropout: float = 0.0
    cell_zoneout: float = 0.0
    candidate_dropout: float = 0.0
    mask_scope: MaskScope | Mapping[str, MaskScope] = "step"
    scoped: tuple[str, ...] = field(default=SCOPED, repr=False, compare=False)  # the kinds that `mask_scope` may name
    on: tuple[str, ...] = field(init=False, repr=False, compare=False)  # the kinds that drop anything
    inside: tuple[str, ...] = field(init=False, repr=False, compare=False)  # those of them inside the recurrence
    tensors: dict[str, Tensor] = field(init=False, repr=False, compare=False)  # the amounts, for the compiler
    evaluation: Dropouts | None = field(init=False, repr=False, compare=False)  # what is left of others than zoneouts

    def __post_init__(self) -> None:
        for kind in KINDS.values():
            object.__setattr__(self, kind.argument, check_probability(kind.argument, getattr(self, kind.argument)))
        object.__setattr__(self, "on", tuple(kind for kind in KINDS if self.rate(kind)))
        object.__setattr__(self, "inside", tuple(kind for kind in INSIDE if kind in self.on))
        object.__setattr__(self, "tensors", {} if torch.compiler.is_compiling() else self._as_tensors())
        object.__setattr__(self, "evaluation", self._evaluation())
        if not isinstance(self.mask_scope, Mapping):
            check_choice("mask_scope", self.mask_scope, MASK_SCOPES)
            return
        object.__setattr__(self, "mask_scope", dict(self.mask_scope))
        for name, scope in self.mask_scope.items():
            check_choice("kind in mask_scope", name, self.scoped)
            check_choice(f"mask_scope of {name!r}", scope, MASK_SCOPES)

    def rate(self, kind: str) -> float:
        return getattr(self, KINDS[kind].argument)

    def amounts(self, kind: str) -> tuple[float, float]:
        """The rate of a kind, and the scale of its masks or, of zoneout, the old state's share in the expectation."""
        p = self.rate(kind)
        return p, share(p) if kind in ZONEOUTS else scale(p)

    def _as_tensors(self) -> dict[str, Tensor]:
        """The amounts of what drops, which a compiled graph takes as inputs: it is the same for all rates.

        Two together, since the compiler takes a scalar for a number.
        """
        with torch.inference_mode(False):
            return {kind: torch.tensor(self.amounts(kind), dtype=torch.float64, device="cpu") for kind in self.on}

    def per_step(self, kind: str) -> bool:
        """Whether each step of a sequence has a mask of its own."""
        if not KINDS[kind].scoped:
            return kind in ZONEOUTS
        scope = self.mask_scope
        return (scope if isinstance(scope, str) else scope.get(kind, "step")) == "step"

    def any(self, num_layers: int) -> bool:
        """Whether anything is dropped in a module of so many layers."""
        return any(kind != "between" or num_layers > 1 for kind in self.on)

    def in_evaluation(self) -> Dropouts:
        """What is left of them: zoneout, as its expectation."""
        return self if self.evaluation is None else self.evaluation

    def _evaluation(self) -> Dropouts | None:
        if all(kind in ZONEOUTS for kind in self.on):
            return None
        return Dropouts(zoneout=self.zoneout, cell_zoneout=self.cell_zoneout)

    def replace(self, name: str, value: Any) -> Dropouts:
        return dataclasses.replace(self, **{name: value})

    def changed(self) -> dict[str, Any]:
        """What is not as by default, for a module's repr."""
        given = [each for each in fields(self) if each.compare]
        return {each.name: value for each in given if (value := getattr(self, each.name)) != each.default}


class RNNCellOptions(TypedDict, total=False):
    """The arguments of a cell, whose dropouts act on what its recurrence makes."""

    hidden_dropout: float
    recurrent_dropout: float
    zoneout: float


class GRUCellOptions(RNNCellOptions, total=False):
    candidate_dropout: float


class LSTMCellOptions(GRUCellOptions, total=False):
    cell_dropout: float
    cell_zoneout: float


class AroundOptions(TypedDict, total=False):
    """What every layer has besides."""

    input_dropout: float
    output_dropout: float
    weight_dropout: float
    mask_scope: MaskScope | Mapping[str, MaskScope]


class RNNOptions(RNNCellOptions, AroundOptions, total=False):
    """The arguments of a layer."""


class GRUOptions(GRUCellOptions, AroundOptions, total=False):
    pass


class LSTMOptions(LSTMCellOptions, AroundOptions, total=False):
    pass


class ModelOptions(LSTMOptions, total=False):
    """Those of any module."""

    dropout: float


def checked_options(function: str, options: Any, allowed: Any, **others: Any) -> Dropouts:
    """Those of a call's keyword arguments, and `others` that it has. TypeError, naming the function, where one is not among the
    `allowed` options."""
    for name in options.keys() - allowed.__optional_keys__:
        raise TypeError(f"{function} got an unexpected keyword argument {name!r}")
    arguments = allowed.__optional_keys__ | others.keys()
    return Dropouts(**options, **others, scoped=tuple(kind for kind in SCOPED if KINDS[kind].argument in arguments))


def dropout_property(name: str) -> Any:
    """An attribute of a module that its ``_dropouts`` hold: read as given, checked when it is set."""

    def get(module: Any) -> Any:
        value = getattr(module._dropouts, name)
        return dict(value) if isinstance(value, dict) else value  # what is changed in it would not be checked

    def set(module: Any, value: Any) -> None:
        module._dropouts = module._dropouts.replace(name, value)

    return property(get, set)


class CellAttributes:
    """What every cell shows of its dropouts."""

    _dropouts: Dropouts
    hidden_dropout = dropout_property("hidden_dropout")
    recurrent_dropout = dropout_property("recurrent_dropout")
    zoneout = dropout_property("zoneout")


class LayerAttributes(CellAttributes):
    """What every module of layers shows of its dropouts."""

    dropout = dropout_property("dropout")
    input_dropout = dropout_property("input_dropout")
    output_dropout = dropout_property("output_dropout")
    weight_dropout = dropout_property("weight_dropout")
    mask_scope = dropout_property("mask_scope")


class GRUAttributes:
    """What a GRU, and its cell, shows besides."""

    candidate_dropout = dropout_property("candidate_dropout")


class LSTMAttributes(GRUAttributes):
    """What an LSTM, and its cell, shows besides."""

    cell_dropout = dropout_property("cell_dropout")
    cell_zoneout = dropout_property("cell_zoneout")
