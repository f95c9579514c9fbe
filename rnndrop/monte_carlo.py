"""Dropout in evaluation, for Monte-Carlo estimates of uncertainty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .modules.base import RNNBase
from .modules.cells import CellBase

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def monte_carlo(module: Module, *, nn_dropout: bool = False) -> Iterator[Module]:
    """A context in which the dropouts of this library act while the module is otherwise in evaluation.

    Each call inside is a sample of the network; the spread of many tells how uncertain it is (Gal and Ghahramani 2016, "Dropout
    as a Bayesian Approximation"). On leaving, also by an exception, every submodule is in the mode in which it was.

    Args:
        module: any module, with ``rnndrop`` modules in it or itself one.
        nn_dropout: whether ``torch.nn``'s dropout modules act too. Default: ``False``

    Yields:
        The module.

    Raises:
        TypeError: `module` is no ``nn.Module``.

    Examples::

        >>> with rnndrop.monte_carlo(model), torch.no_grad():
        ...     samples = torch.stack([model(x) for _ in range(20)])
        >>> mean, deviation = samples.mean(0), samples.std(0)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module should be a torch.nn.Module, got {type(module).__name__}")
    dropping = (RNNBase, CellBase, _DropoutNd) if nn_dropout else (RNNBase, CellBase)
    modes = {each: each.training for each in module.modules()}
    try:
        for each in modes:
            each.training = isinstance(each, dropping)
        yield module
    finally:
        for each, mode in modes.items():
            each.training = mode
