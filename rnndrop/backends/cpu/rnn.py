"""What the RNN's cells do in a step: h_t = zone(h_{t-1}, m * f(a_t)), in place of a_t."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ...cell import Cell, Weights
from ...steps import Steps
from ..base import Layer, Masks
from .elements import (
    Numbers,
    activation_of,
    bits_of,
    finite,
    library_of,
    numbers_of,
    passing,
    rows_of,
    slopes_of,
    step_masks,
)
from .zone import part, zoning


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes what it activates; `b_ih` is both biases, `b_hh` what W_hh's part has of its own."""
    return weights._replace(b_ih=weights.bias, b_hh=None)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates."""
    return w_hh


def forward(
    gates: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[None]:
    """Asked for the next, it makes the states of a step (N, H) in place of `gates`, its pre-activations. `scale` is the hidden
    mask's where it is not multiplied later, else 1."""
    (h_0,) = states
    activate, bitwise_and, ranges = activation_of(cell.activation, gates), np.bitwise_and, steps.ranges
    zone = zoning(gates, h_0, masks.get("zoneout"), steps)
    rows = rows_of(numbers_of(gates), ranges), rows_of(bits_of(gates), ranges)
    for numbers, bits, keep in zip(*rows, step_masks(masks.get("hidden"), steps, gates), strict=False):
        activate(numbers, numbers)
        if keep is not None:
            bitwise_and(bits, keep, bits)
        if scale != 1:
            numbers *= scale
        if zone is not None:
            next(zone)
        yield


def backward(gates: Tensor, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Numbers]:
    """The rows of each step of `gates` (N, H), their gradient. It is made from that of the step's states in the first rows of
    `grads` (B, H), where is left, if there is zoneout, what goes to the states before past the gates. `steps` stand in the
    order of the backward pass."""
    return (_relu_backward if layer.cell.activation == "relu" else _tanh_backward)(gates, grads[0], layer, steps)


def _tanh_backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[Numbers]:
    output, hidden, multiply, bitwise_and = layer.rows, layer.masks.get("hidden"), library_of(gates).multiply, np.bitwise_and
    slopes = slopes_of(gates, output, steps.ranges, 1.0 if hidden is None else hidden.scale)
    grads, rows = numbers_of(grad_h), (slopes, rows_of(bits_of(gates), steps.ranges))
    keeps, zones = (step_masks(layer.masks.get(kind), steps, output) for kind in ("hidden", "zoneout"))
    for slope, bits, keep, zone in zip(*rows, keeps, zones, strict=False):
        multiply(slope, grads[: len(bits)], out=slope)
        if keep is not None:
            bitwise_and(bits, keep, bits)
        if zone is not None:
            part(bits, bits_of(grad_h), zone)
        yield slope


def _relu_backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[Numbers]:
    """An output of 0 stops a gradient by bits, infinite or NaN. What the hidden mask dropped is 0 as well."""
    output, hidden, bitwise_and = layer.rows, layer.masks.get("hidden"), np.bitwise_and
    scale = 1.0 if hidden is None else output.new_full((), finite(hidden.scale, output)).item()
    grads, ranges = bits_of(grad_h), steps.ranges
    rows = rows_of(numbers_of(gates), ranges), passing(gates, output, ranges)
    for numbers, bits, zone in zip(*rows, step_masks(layer.masks.get("zoneout"), steps, output), strict=False):
        bitwise_and(grads[: len(bits)], bits, bits)
        if hidden is not None:
            numbers *= scale
        if zone is not None:
            part(bits, grads, zone)
        yield numbers
