"""DTensors that are whole on every device: a layer runs on what they hold, on each device alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_distributed(x: Tensor) -> bool:
    """Whether x is a DTensor, whose class is not imported for this: that takes as long as all of PyTorch."""
    return type(x) is not Tensor and not torch.compiler.is_compiling() and hasattr(x, "placements")


def local(x: Any) -> Tensor:
    """What a DTensor holds; another tensor as it is. RuntimeError where that is a part only."""
    if not hasattr(x, "placements"):
        return x
    if not all(placement.is_replicate() for placement in x.placements):
        raise RuntimeError(f"dropout in a recurrent layer takes a DTensor that is replicated, got {x.placements}")
    return x.to_local()


def distributed(x: Tensor, like: Any) -> Tensor:
    """A DTensor that holds x."""
    return like.from_local(x, like.device_mesh, like.placements, run_check=False)
