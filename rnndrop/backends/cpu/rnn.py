"""What the RNN's cells do in a step: h_t = zone(h_{t-1}, m * f(a_t)), in place of a_t."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ...cell import Cell
from ...mask import Mask
from ...steps import Steps
from ..base import Layer, Masks
from .elements import ACTIVATIONS, Array, bits_of, passing, rows_of, slopes_of, states_before, step_masks


def forward(gates: Tensor, h_0: Tensor, masks: Masks, steps: Steps, cell: Cell, scale: float) -> Iterator[tuple[Tensor, Array]]:
    """The rows of each step of `gates` (N, H), into which the pre-activations are to go, and their bits; asked for the next,
    it makes them the states. `scale` is the hidden mask's where it is not multiplied later, else 1."""
    activate, bitwise_and, ranges = ACTIVATIONS[cell.activation], np.bitwise_and, steps.ranges
    zoneout = masks.get("zoneout")
    zone = None if zoneout is None else _zone(gates, h_0, zoneout, steps)
    rows = steps.split(gates), rows_of(gates.numpy(), ranges), rows_of(bits_of(gates), ranges)
    for tensor, numbers, bits, keep in zip(*rows, step_masks(masks.get("hidden"), steps, gates), strict=False):
        yield tensor, bits
        activate(numbers, numbers)
        if keep is not None:
            bitwise_and(bits, keep, bits)
        if scale != 1:
            numbers *= scale
        if zone is not None:
            next(zone)


def _zone(gates: Tensor, h_0: Tensor, mask: Mask, steps: Steps) -> Iterator[None]:
    """Asked for the next, it puts the states before a step in place of those that zoneout drops, or takes the expectation."""
    if mask.is_expectation:
        for states, before in states_before(gates.numpy(), h_0.numpy(), steps.ranges):
            states *= 1 - mask.scale
            states += mask.scale * before
            yield
        return
    of_bits = states_before(bits_of(gates), bits_of(h_0), steps.ranges)
    for (states, before), keep in zip(of_bits, step_masks(mask, steps, gates), strict=True):
        states ^= before
        states &= keep
        states ^= before
        yield


def backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """The rows of each step of `gates` (N, H); asked for the next, it writes their gradient, from that of the step's states in
    the first rows of `grad_h` (B, H), and leaves there, if there is zoneout, what goes to the states before past the gates.
    `steps` stand in the order of the backward pass."""
    return (_relu_backward if layer.cell.activation == "relu" else _tanh_backward)(gates, grad_h, layer, steps)


def _tanh_backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[Tensor]:
    output, hidden, multiply, bitwise_and = layer.rows, layer.masks.get("hidden"), np.multiply, np.bitwise_and
    slopes = slopes_of(gates, output, steps.ranges, 1.0 if hidden is None else hidden.scale)
    grads, rows = grad_h.numpy(), (steps.split(gates), slopes, rows_of(bits_of(gates), steps.ranges))
    keeps, zones = (step_masks(layer.masks.get(kind), steps, output) for kind in ("hidden", "zoneout"))
    for tensor, slope, bits, keep, zone in zip(*rows, keeps, zones, strict=False):
        yield tensor
        multiply(slope, grads[: len(bits)], slope)
        if keep is not None:
            bitwise_and(bits, keep, bits)
        if zone is not None:
            _part(bits, bits_of(grad_h), zone)


def _relu_backward(gates: Tensor, grad_h: Tensor, layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """An output of 0 stops a gradient by bits, infinite or NaN. What the hidden mask dropped is 0 as well."""
    output, hidden, bitwise_and = layer.rows, layer.masks.get("hidden"), np.bitwise_and
    grads, ranges = bits_of(grad_h), steps.ranges
    rows = steps.split(gates), rows_of(gates.numpy(), ranges), passing(gates, output, ranges)
    for tensor, numbers, bits, zone in zip(*rows, step_masks(layer.masks.get("zoneout"), steps, output), strict=False):
        yield tensor
        bitwise_and(grads[: len(bits)], bits, bits)
        if hidden is not None:
            numbers *= hidden.scale
        if zone is not None:
            _part(bits, grads, zone)


def _part(bits: Array, grads: Array, keep: Array) -> None:
    """Leaves in `bits` the gradients of what zoneout kept, in `grads` those of the others."""
    bits &= keep
    grads[: len(bits)] &= ~keep
