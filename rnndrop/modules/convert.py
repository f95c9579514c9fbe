"""Modules to and from torch.nn's."""

from __future__ import annotations

import warnings
from typing import Any, Generic, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Self = TypeVar("Self", bound="Convertible[Any]")
NAMES = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional")


class Convertible(Generic[Module]):
    """What has a counterpart in torch.nn, of the same weights."""

    _counterpart: type[Module]

    @classmethod
    def from_torch(cls: type[Self], module: Module, **dropouts: Any) -> Self:
        """A copy of a module of ``torch.nn``, its weights, device, dtype and mode, with this module's dropouts.

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
        return _copied(module, cls, **dropouts)

    def to_torch(self) -> Module:
        """A copy as the module of ``torch.nn``: the same function in evaluation, zoneout apart; in training it has `dropout`
        only."""
        return _copied(self, self._counterpart)


def _copied(source: Any, kind: Any, **dropouts: Any) -> Any:
    """A `kind` with the configuration, weights and mode of `source`."""
    options = {name: getattr(source, name) for name in NAMES if hasattr(source, name)}
    if getattr(source, "proj_size", 0):  # which only an LSTM takes
        options["proj_size"] = source.proj_size
    weight = next(source.parameters())
    with warnings.catch_warnings():  # about dropout of a single layer: the original has given it
        warnings.simplefilter("ignore")
        copy = kind(**options | dropouts, device=weight.device, dtype=weight.dtype)
    for name, mine in copy.named_parameters():  # by name: theirs may be shared or parametrised
        theirs = getattr(source, name)
        mine.data.copy_(theirs.detach())
        mine.requires_grad_(theirs.requires_grad)
    return copy.train(source.training)
