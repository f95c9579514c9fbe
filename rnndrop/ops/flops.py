"""What a layer costs, for torch.utils.flop_counter: the products of the plain loop, a multiplication and an addition each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def layer_flops(input: Tensor, states: Any, w_ih: Tensor, w_hh: Tensor, *rest: Any, out_val: Any = None) -> int:
    return 2 * math.prod(input.shape[:-1]) * (w_ih.numel() + w_hh.numel())


def layer_backward_flops(*operands: Any, out_val: Any = None) -> int:
    """Back through time, the products of W_hh of all rows but those of the step that is processed first, unless of the states
    before it too."""
    input, _, w_ih, w_hh, *_, batch, batch_sizes, reverse, _, _, _, _, flags = operands
    of_input, of_w_ih, of_w_hh, _, _, of_state, *_ = flags
    rows, first = math.prod(input.shape[:-1]), int(batch_sizes[-1]) if reverse and batch_sizes is not None else batch
    through_time = rows if of_state else rows - first
    return 2 * (rows * (of_input + of_w_ih) * w_ih.numel() + (rows * of_w_hh + through_time) * w_hh.numel())


def tell_counters() -> None:
    """Gives these formulas to the counters that are at work: to register them would import Triton wherever rnndrop is."""
    for mode in _get_current_dispatch_mode_stack():
        known = getattr(getattr(mode, "counter", None), "flop_registry", {})
        known[torch.ops.rnndrop.layer] = layer_flops
        known[torch.ops.rnndrop.layer_backward] = layer_backward_flops
