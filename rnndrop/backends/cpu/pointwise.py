"""Dropout, and tanh with dropout, of rows that no recurrence connects: a range of them at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...mask import Mask
from .elements import INTEGER, WIDE, bits_of, row_ranges, rows_of, slopes_of, widened

SHARED = 1 << 19  # elements that PyTorch's threads take at a time


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """x (N, H) where the mask keeps, times its scale, by as many threads as PyTorch has."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    integer = INTEGER[x.element_size()]
    bits, bits_of_y = x.resolve_neg().view(integer), y.view(integer)
    for start, stop in row_ranges(x, SHARED):
        torch.bitwise_and(bits[start:stop], mask.keep[start:stop].to(integer), out=bits_of_y[start:stop])
        y[start:stop].mul_(mask.scale)
    return y


def tanh_dropout(x: Tensor, mask: Mask) -> Tensor:
    """dropout(tanh(x)) of x (N, H)."""
    if x.dtype not in WIDE:
        return tanh_dropout(x.float(), mask).to(x.dtype)
    y, ranges = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x), row_ranges(x)
    rows = rows_of(y.numpy(), ranges), rows_of(bits_of(y), ranges), widened(mask.keep, ranges, x.element_size())
    for numbers, bits, keep in zip(*rows, strict=True):
        np.tanh(numbers, numbers)
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
