"""The seed of a call, drawn from PyTorch's generator of a device.

Compiled, it is an operator: the compiler would write a generator of its own, which ``torch.manual_seed`` does not bring to the
same numbers, and a kernel for each call of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import operator


def drawn_seed(device: torch.device) -> Tensor:
    """int64 (1)."""
    if torch.compiler.is_compiling():
        return _operator(torch.empty(0, dtype=torch.int64, device=device))
    return _draw(device)


def _draw(device: torch.device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


_operator = operator(
    "seed", "(Tensor like) -> Tensor", lambda like: _draw(like.device), lambda like: like.new_empty(1), random=True
)
