"""One step of a cell in a few of PyTorch's operations: what RNNCell runs, and a layer of one step.

Here a mask is a factor, 0 or its scale, as nn.Dropout's is: fewer operations than the plain loop's, which are its measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import _VF, Tensor

from .cell import Weights
from .mask import Mask
from .reference import zone

States = tuple[Tensor, ...]
Factors = Mapping[str, Tensor]  # by kind, of `factor_dtype`


def rnn_step(x: Tensor, states: States, weights: Weights, factors: Factors, zoneout: Mask | None, mode: str) -> States:
    """h_t = zone(h_{t-1}, m * f(W_ih x_t + b_ih + W_hh (r * h_{t-1}) + b_hh)) of x (B, I)."""
    run: Any = _VF.rnn_tanh_cell if mode == "RNN_TANH" else _VF.rnn_relu_cell
    (h,) = states
    made = _times(run(x, _times(h, factors.get("recurrent")), *weights), factors.get("hidden"))
    return (zone(h, made, zoneout),)


STEP: dict[str, Callable[..., States]] = {"RNN_TANH": rnn_step, "RNN_RELU": rnn_step}


def factor_dtype(x: Tensor) -> torch.dtype:
    """That of the factors of x: a scale is no number of 16 bits."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return x
    return x * factor if x.dtype == factor.dtype else (x * factor).to(x.dtype)
