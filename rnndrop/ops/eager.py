"""When an operator may compute at once."""

from __future__ import annotations

import torch
from torch import Tensor


def computes_now(x: Tensor) -> bool:
    """Whether there are numbers to compute with: no tracing, no fake tensor, no meta device.

    Raises:
        RuntimeError: in ``torch.jit.trace``, which would keep the masks of this call, and cannot record these operators.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError("torch.jit.trace cannot record dropout inside a layer: trace in evaluation, or use torch.export")
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not torch.compiler.is_compiling()
