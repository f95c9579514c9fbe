"""Dropout, and tanh with dropout, of rows that no recurrence connects: a cache-sized range of them at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...mask import Mask
from .elements import WIDE, activation_of, bits_of, row_ranges, rows_of, slopes_of, widened


def forward(x: Tensor, mask: Mask, activation: str) -> Tensor:
    """dropout(f(x)) of x (N, H), f "tanh" or the "identity"."""
    if x.dtype not in WIDE:
        return forward(x.float(), mask, activation).to(x.dtype)
    y, ranges, activate = (
        torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x),
        row_ranges(x),
        activation_of(activation, x),
    )
    rows = rows_of(y.numpy(), ranges), rows_of(bits_of(y), ranges), widened(mask.keep, ranges, x.element_size())
    for numbers, bits, keep in zip(*rows, strict=True):
        activate(numbers, numbers)
        np.bitwise_and(bits, keep, bits)
        numbers *= mask.scale
    return y


def tanh_backward(grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
    """The gradient of x, from y = dropout(tanh(x))."""
    if y.dtype not in WIDE:
        return tanh_backward(grad_y.float(), y.float(), mask).to(y.dtype)
    grad_x, ranges = torch.empty_like(y), row_ranges(y)
    slopes = slopes_of(grad_x, y, ranges, mask.scale)
    grads, keeps = rows_of(grad_y.resolve_neg().numpy(), ranges), widened(mask.keep, ranges, y.element_size())
    for slope, g, bits, keep in zip(slopes, grads, rows_of(bits_of(grad_x), ranges), keeps, strict=True):
        slope *= g
        np.bitwise_and(bits, keep, bits)
    return grad_x
