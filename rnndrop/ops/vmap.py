"""torch.func.vmap of an operator that has no batched form: one call after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def one_by_one(function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """The result, or each of several, stacked along a new first dimension, and where that is."""
    results = []
    for i in range(info.batch_size):
        one = [
            x.select(dim, i) if dim is not None and isinstance(x, Tensor) else x for x, dim in zip(args, in_dims, strict=True)
        ]
        results.append(function.apply(*one))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(values) for values in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
