"""Modules to and from torch.nn's."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
NAMES = "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "bidirectional"


def copied(source: Any, kind: type[Module], **dropouts: Any) -> Module:
    """A `kind` with the configuration, weights and mode of `source`."""
    options = {name: getattr(source, name) for name in NAMES if hasattr(source, name)}
    weight = next(source.parameters())
    with warnings.catch_warnings():  # about dropout of a single layer: the original has given it
        warnings.simplefilter("ignore")
        copy = kind(**options, device=weight.device, dtype=weight.dtype, **dropouts)
    for name, mine in copy.named_parameters():  # by name: theirs may be shared or parametrised
        theirs = getattr(source, name)
        mine.data.copy_(theirs.detach())
        mine.requires_grad_(theirs.requires_grad)
    return copy.train(source.training)
