"""What autocast makes of a layer: its tensors are cast once, before it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for this kind of device; the meta device has none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of x for nn.RNN's products."""
    if not x.is_floating_point() or x.dtype == torch.float64 or not autocasts(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def cast(x: Tensor) -> Tensor:
    return x.to(compute_dtype(x))


def dtype_beside(state: Tensor) -> torch.dtype:
    """That of a sum of a state and what autocast's products make, as a GRU's new state is: on the CPU autocast leaves states
    alone."""
    dtype = compute_dtype(state)
    return torch.promote_types(dtype, state.dtype) if state.device.type == "cpu" else dtype


def suspended(x: Tensor) -> AbstractContextManager[object]:
    """Where tensors have the dtypes that they should have: nothing is cast again. Backward may run inside another autocast."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x.device.type) else nullcontext()
