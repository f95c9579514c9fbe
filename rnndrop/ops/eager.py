"""When an operator may compute at once."""

from __future__ import annotations

import torch
from torch import Tensor


def computes_now(x: Tensor) -> bool:
    """Whether there are numbers to compute with: no tracing, no fake tensor, no meta device."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not torch.compiler.is_compiling()
