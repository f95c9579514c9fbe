"""What the RNN's cells do in a step: h_t = m * f(a_t), in place of a_t."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ...cell import Cell
from ...steps import Steps
from ..base import Layer, Masks
from .elements import activation_of, bits_of, multiplier, numbers_of, rows_of, slopes_of, step_masks


def forward(gates: Tensor, masks: Masks, steps: Steps, cell: Cell) -> Iterator[None]:
    """Each turn makes the gates of the next step, (N, H), its states, as yet without the hidden mask's scale."""
    activate, ranges = activation_of(cell.activation, gates), steps.ranges
    rows = rows_of(numbers_of(gates), ranges), rows_of(bits_of(gates), ranges)
    for numbers, bits, keep in zip(*rows, step_masks(masks.get("hidden"), steps, gates), strict=False):
        activate(numbers, numbers)
        if keep is not None:
            np.bitwise_and(bits, keep, out=bits)
        yield


def backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[None]:
    """Each turn writes the gradient of the next step's gates, (N, H), from that of its states in `grad_h` (B, H).

    `steps` stand in the order of the backward pass.
    """
    output, hidden, multiply = layer.rows, layer.masks.get("hidden"), multiplier(layer.output)
    slopes = slopes_of(gates, output, steps.ranges, 1.0 if hidden is None else hidden.scale, layer.cell.activation)
    grads, rows = numbers_of(grad_h), rows_of(bits_of(gates), steps.ranges)
    for slope, bits, keep in zip(slopes, rows, step_masks(hidden, steps, output), strict=False):
        multiply(slope, grads[: len(bits)], out=slope)
        if keep is not None:
            np.bitwise_and(bits, keep, out=bits)
        yield
