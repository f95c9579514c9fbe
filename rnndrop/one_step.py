"""One step of a cell in a few of PyTorch's operations: what RNNCell runs, and a layer of one step.

Here a mask is a factor, 0 or its scale, as nn.Dropout's is: fewer operations than the plain loop's, which are its measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn.functional import linear

from .cell import Weights
from .mask import Mask
from .reference import zone

States = tuple[Tensor, ...]
Factors = Mapping[str, Tensor]  # by kind, of `factor_dtype`
Zoneouts = Mapping[str, Mask]


def rnn_step(x: Tensor, states: States, weights: Weights, factors: Factors, zoneouts: Zoneouts, mode: str) -> States:
    """h_t = zone(h_{t-1}, m * f(W_ih x_t + b_ih + W_hh (r * h_{t-1}) + b_hh)) of x (B, I)."""
    run: Any = _VF.rnn_tanh_cell if mode == "RNN_TANH" else _VF.rnn_relu_cell
    (h,) = states
    made = _times(run(x, _times(h, factors.get("recurrent")), *weights[:4]), factors.get("hidden"))
    return (zone(h, made, zoneouts.get("zoneout")),)


def gru_step(x: Tensor, states: States, weights: Weights, factors: Factors, zoneouts: Zoneouts, mode: str) -> States:
    """As :func:`reference.gru_step`."""
    (h,) = states
    if "candidate" not in factors and "recurrent" not in factors:
        made = _VF.gru_cell(x, h, *weights[:4])
    else:
        of_x = linear(x, weights.w_ih, weights.b_ih).chunk(3, 1)
        of_h = linear(_times(h, factors.get("recurrent")), weights.w_hh, weights.b_hh).chunk(3, 1)
        r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        candidate = _times(torch.tanh(of_x[2] + r * of_h[2]), factors.get("candidate"))
        made = candidate + z * (h - candidate)
    return (zone(h, _times(made, factors.get("hidden")), zoneouts.get("zoneout")),)


def lstm_step(x: Tensor, states: States, weights: Weights, factors: Factors, zoneouts: Zoneouts, mode: str) -> States:
    """As :func:`reference.lstm_step`."""
    h, c = states
    entering = _times(h, factors.get("recurrent"))
    if "candidate" not in factors and "cell" not in factors and weights.w_hr is None:
        made, new = _VF.lstm_cell(x, (entering, c), *weights[:4])
    else:
        i, f, g, o = (linear(x, weights.w_ih, weights.b_ih) + linear(entering, weights.w_hh, weights.b_hh)).chunk(4, 1)
        candidate = _times(torch.tanh(g), factors.get("candidate"))
        new = _times(torch.sigmoid(f) * c + torch.sigmoid(i) * candidate, factors.get("cell"))
        made = torch.sigmoid(o) * torch.tanh(new)
        if weights.w_hr is not None:
            made = linear(made, weights.w_hr)
    h = zone(h, _times(made, factors.get("hidden")), zoneouts.get("zoneout"))
    return h, zone(c, new, zoneouts.get("cell_zoneout"))


STEP: dict[str, Callable[..., States]] = {
    "RNN_TANH": rnn_step,
    "RNN_RELU": rnn_step,
    "GRU": gru_step,
    "LSTM": lstm_step,
}


def factor_dtype(x: Tensor) -> torch.dtype:
    """That of the factors of x: a scale is no number of 16 bits."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return x
    return x * factor if x.dtype == factor.dtype else (x * factor).to(x.dtype)
