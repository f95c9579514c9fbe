"""Modules to and from torch.nn's: one, which is copied, or every one in a model, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from typing_extensions import Unpack

from ..dropouts import ModelOptions, checked_options
from ..kinds import KINDS

Module = TypeVar("Module", bound=nn.Module)
Self = TypeVar("Self", bound="Convertible[Any]")
Kinds = dict[type, type]  # what is to become what
NAMES = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional")
HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
OURS: Kinds = {}


class Convertible(Generic[Module]):
    """What has a counterpart in torch.nn, of the same weights. PyTorch's tools that go by the classes of torch.nn, which
    would pass it over or fail in other words, say so."""

    _counterpart: type[Module]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_counterpart" in vars(cls):
            OURS[cls._counterpart] = cls

    @classmethod
    def from_torch(cls: type[Self], module: Module, **dropouts: Any) -> Self:
        """A copy of a module of ``torch.nn``, its weights, device, dtype and mode, with this module's dropouts.
        :func:`rnndrop.from_torch` converts a whole model and keeps its parameters.

        Args:
            module: the one of the same name in ``torch.nn``.
            dropouts: those of this module's constructor; of a module of layers ``dropout`` (by default that of `module`) and
                ``mask_scope`` included.

        Raises:
            TypeError: `module` is another, or an argument is unknown.
        """
        theirs = cls._counterpart
        if not isinstance(module, theirs):
            raise TypeError(f"module should be a torch.nn.{theirs.__name__}, got {type(module).__name__}")
        return _converted(module, cls, _copied, **dropouts)

    def to_torch(self) -> Module:
        """A copy as the module of ``torch.nn``: the same function in evaluation, zoneout apart; in training it has `dropout`
        only. :func:`rnndrop.to_torch` converts a whole model and keeps its parameters."""
        return _converted(self, self._counterpart, _copied)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":  # set by torch.ao.quantization in every module of a model
            warnings.warn(
                f"torch.ao.quantization does not know rnndrop.{type(self).__name__}, which stays in floating point: "
                "quantize rnndrop.to_torch(model)",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script asks for."""
        raise RuntimeError(f"torch.jit.script does not know rnndrop.{type(self).__name__}: script rnndrop.to_torch(model)")


def from_torch(model: nn.Module, **dropouts: Unpack[ModelOptions]) -> Any:
    """Convert every ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and cell in a model, in place, to a module with dropout inside.

    The parameters stay the same tensors: an optimizer that has them goes on, and so do tied weights. Modes and hooks stay too,
    and a module that is used in two places stays one. Subclasses of the modules of ``torch.nn`` are left as they are. For a
    model apart, ``from_torch(copy.deepcopy(model))``.

    Args:
        model: any module, with recurrent modules at any depth or itself one.
        dropouts: the kinds of dropout and ``mask_scope``, as of the constructors. Each module takes those that it has: a GRU
            leaves ``cell_dropout`` to the LSTMs, a cell ``dropout`` to the layers. Of layers, ``dropout`` is by default what
            it was.

    Returns:
        `model`, or in its place the new module if it was itself a recurrent one.

    Raises:
        TypeError: `model` is no ``nn.Module``, or an argument is unknown.
        ValueError: a rate or scope is none, or no module of the model has it; or a weight is not a parameter but computed, by
            a parametrization, pruning or weight norm, which is to be removed before and made anew. Nothing is changed then.

    Examples::

        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.LSTM(10, 20))
        >>> model = rnndrop.from_torch(model, hidden_dropout=0.2)
    """
    checked_options("from_torch()", dropouts, ModelOptions)
    found = {type_before_parametrizations(module) for module in _modules(model).values()}
    kinds = {theirs: ours for theirs, ours in OURS.items() if theirs in found}
    scopes = dropouts.get("mask_scope")
    scoped = [KINDS[kind].argument for kind in scopes] if isinstance(scopes, Mapping) else []
    for name in [*dropouts, *scoped]:
        if not any(hasattr(kind, name) for kind in kinds.values()):
            raise ValueError(f"no recurrent module of the model has {name}")
    return _replaced(model, kinds, dropouts)


def to_torch(model: nn.Module) -> Any:
    """Convert every recurrent module of this library in a model, in place, to that of ``torch.nn``: for ``torch.jit.script``,
    quantization, and wherever the model is to run without this library.

    In evaluation the model computes what it did, zoneout apart; in training it has `dropout` only. As with :func:`from_torch`
    the parameters stay the same tensors. To go on training with dropout, ``to_torch(copy.deepcopy(model))``.

    Args:
        model: any module, with recurrent modules of this library at any depth or itself one.

    Returns:
        `model`, or in its place the new module if it was itself a recurrent one.

    Raises:
        TypeError: `model` is no ``nn.Module``.
        ValueError: a weight is not a parameter but computed. Nothing is changed then.

    Examples::

        >>> import copy
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), rnndrop.LSTM(10, 20, hidden_dropout=0.2))
        >>> scripted = torch.jit.script(rnndrop.to_torch(copy.deepcopy(model)).eval())
    """
    return _replaced(model, {ours: theirs for theirs, ours in OURS.items()}, {})


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """By their paths, each once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    return dict(model.named_modules())


def _replaced(model: nn.Module, kinds: Kinds, dropouts: Any) -> nn.Module:
    """The model with each module of a class among `kinds` replaced by one of the class that it is to be."""
    modules, new = _modules(model), {}
    for path, module in modules.items():
        kind = kinds.get(type_before_parametrizations(module))
        if kind is not None:
            new[module] = _converted(module, kind, partial(_same, path), **_taken(kind, dropouts))
            vars(new[module]).update({name: vars(module)[name] for name in HOOKS})
    for module in modules.values():
        module._modules.update({name: new[child] for name, child in module._modules.items() if child in new})
    return new.get(model, model)


def _taken(kind: Any, dropouts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the dropouts that a class has, and of the scopes."""
    taken = {name: value for name, value in dropouts.items() if hasattr(kind, name)}
    if isinstance(scopes := taken.get("mask_scope"), Mapping):
        taken["mask_scope"] = {name: scope for name, scope in scopes.items() if hasattr(kind, KINDS[name].argument)}
    return taken


def _converted(source: Any, kind: Any, take: Callable[[str, Tensor], nn.Parameter], **dropouts: Any) -> Any:
    """A `kind` with the configuration and mode of `source`, and what `take` makes of its weights."""
    options = {name: getattr(source, name) for name in NAMES if hasattr(source, name)}
    if getattr(source, "proj_size", 0):  # which only an LSTM takes
        options["proj_size"] = source.proj_size
    with warnings.catch_warnings():  # about dropout of a single layer: the original has given it
        warnings.simplefilter("ignore")
        made = kind(**options | dropouts, device="meta")
    for name in [name for name, _ in made.named_parameters()]:
        setattr(made, name, take(name, getattr(source, name)))
    if hasattr(made, "flatten_parameters"):
        made.flatten_parameters()
    return made.train(source.training)


def _copied(name: str, weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), weight.requires_grad)


def _same(path: str, name: str, weight: Tensor) -> nn.Parameter:
    if not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"{name} of {path or 'the model'} is computed, not a parameter: remove its parametrization, pruning or weight norm"
        )
    return weight
