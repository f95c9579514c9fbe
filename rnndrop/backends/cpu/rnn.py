"""What the RNN's cells do in a step: h_t = zone(h_{t-1}, m * f(a_t)), in place of a_t."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ...cell import Cell, Weights
from ...steps import Steps
from ..base import Layer, Masks
from .elements import (
    Array,
    Collect,
    Numbers,
    Range,
    activation_of,
    alternating,
    bits_of,
    finite,
    keep_only,
    library_of,
    numbers_of,
    passing,
    rows_of,
    scale_of,
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


def backward(collect: Collect, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Numbers]:
    """The rows of each step of the gates' gradient, in memory that serves again. It is made from that of the step's states in
    the first rows of `grads` (B, H), where is left, if there is zoneout, what goes to the states before past the gates.
    `collect` takes the gradients of the gates of some steps at a time. `steps` stand in the order of the backward pass."""
    go_back = _relu_backward if layer.cell.activation == "relu" else _tanh_backward
    keeps, zones = (step_masks(layer.masks.get(kind), steps, layer.output) for kind in ("hidden", "zoneout"))
    of_grad_h = bits_of(grads[0])
    for first, last, ranges, gates in alternating(steps, layer.rows):
        rows = go_back(gates, grads[0], layer, ranges, first, keeps)
        for numbers, bits, zone in zip(rows, rows_of(bits_of(gates), ranges, first), zones, strict=False):
            if zone is not None:
                part(bits, of_grad_h, zone)
            yield numbers
        collect(first, last, gates)


def _tanh_backward(
    gates: Tensor, grad_h: Tensor, layer: Layer, ranges: list[Range], start: int, keeps: Iterator[Array | None]
) -> Iterator[Numbers]:
    grads, multiply = numbers_of(grad_h), library_of(gates).multiply
    slopes = slopes_of(gates, layer.rows, ranges, scale_of(layer.masks.get("hidden")), start)
    for slope, keep in zip(slopes, keeps, strict=False):
        multiply(slope, grads[: len(slope)], out=slope)
        if keep is not None:
            keep_only(slope, keep)
        yield slope


def _relu_backward(
    gates: Tensor, grad_h: Tensor, layer: Layer, ranges: list[Range], start: int, keeps: Iterator[Array | None]
) -> Iterator[Numbers]:
    """An output of 0 stops a gradient by bits, infinite or NaN. What the hidden mask dropped is 0 as well."""
    hidden, output, grads = layer.masks.get("hidden"), layer.rows, bits_of(grad_h)
    scale = output.new_full((), finite(scale_of(hidden), output)).item()
    rows = rows_of(numbers_of(gates), ranges, start), passing(gates, output, ranges, start)
    for numbers, bits in zip(*rows, strict=True):
        np.bitwise_and(grads[: len(bits)], bits, bits)
        if hidden is not None:
            numbers *= scale
        yield numbers
