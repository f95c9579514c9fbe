"""The loop over time, for every cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ...cell import Cell, Weights
from ...mask import Mask
from ...steps import Steps
from ..base import GateBackend, Layer, Masks, Result
from . import pointwise, rnn
from .elements import bits_of, rows_of, step_masks

CELLS: dict[str, ModuleType] = {"RNN_TANH": rnn, "RNN_RELU": rnn}


class Cpu(GateBackend):
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        h_0, w_hh, ranges = states[0].resolve_neg(), weights.w_hh, steps.ranges
        hidden, recurrent, zoneout = masks.get("hidden"), masks.get("recurrent"), masks.get("zoneout")
        result = input.new_empty(*input.shape[:-1], w_hh.shape[1])  # which PyTorch may not take for a view of something else
        output = result.view(-1, w_hh.shape[1])
        _project(input, weights, out=output)
        from_h_0 = _scaled(w_hh.t(), recurrent)
        unscaled = hidden if zoneout is None else None  # with zoneout, new states and old have the scale
        from_h = _scaled(from_h_0, unscaled)
        drop = _dropper(h_0, recurrent)
        h_n, h_0_bits, first = h_0.new_empty(h_0.shape), bits_of(h_0), ranges[0][1] - ranges[0][0]
        h, h_bits, weight = h_0[:first], h_0_bits[:first], from_h_0
        cell_steps = CELLS[cell.mode].forward(output, h_0, masks, steps, cell)
        for (gates, bits), r in zip(cell_steps, step_masks(recurrent, steps, output), strict=False):
            if len(bits) != len(h_bits):  # some sequences ended, or some begin, from h_0
                carried = min(len(bits), len(h_bits))
                h_n[carried : len(h_bits)] = h[carried:]
                begin = slice(carried, len(bits))
                gates[begin].addmm_(drop(h_0[begin], h_0_bits[begin], r, carried), from_h_0)
                gates[:carried].addmm_(drop(h[:carried], h_bits[:carried], r), weight)
            else:
                gates.addmm_(drop(h, h_bits, r), weight)
            h, h_bits, weight = gates, bits, from_h
        h_n[: len(h_bits)] = h
        if unscaled is not None:
            output *= unscaled.scale
            h_n *= unscaled.scale
        return Result(result, [h_n], [])

    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        output, h_0, steps = layer.rows, layer.states[0], layer.steps.backwards()
        recurrent, zoneout, grad_h_n = layer.masks.get("recurrent"), layer.masks.get("zoneout"), grad_states[0]
        weight, drop = _scaled(layer.weights.w_hh, recurrent), _dropper(h_0, recurrent)
        gates, grad_h_0, grad_h = torch.empty_like(output), h_0.new_empty(h_0.shape), h_0.new_empty(h_0.shape)
        cell_steps = CELLS[layer.cell.mode].backward(gates, grad_h, layer, steps)

        def to_earlier(later: Tensor, r: np.ndarray | None, first: int = 0) -> Tensor:
            product = later @ weight
            earlier = drop(product, bits_of(product), r, first)
            return earlier if zoneout is None else earlier + grad_h[first : first + len(later)]

        later, later_size, later_r = gates[:0], 0, None
        total, size = grad_h[:0], 0
        keeps = step_masks(recurrent, steps, output)
        for a, g, r in zip(cell_steps, steps.split(grad_output), keeps, strict=False):
            if size != len(a):
                size = len(a)
                total = grad_h[:size]
            if size == later_size and recurrent is None and zoneout is None:
                torch.addmm(g, later, weight, out=total)
            else:
                if size < later_size:  # these sequences began in the step after this
                    grad_h_0[size:later_size] = to_earlier(later[size:], later_r, size)
                carried = min(size, later_size)
                if carried:
                    torch.add(g[:carried], to_earlier(later[:carried], later_r), out=total[:carried])
                total[carried:] = g[carried:]  # these end here
                if grad_h_n is not None:
                    total[carried:] += grad_h_n[carried:size]
            later, later_size, later_r = a, size, r
        grad_h_0[:later_size] = to_earlier(later, later_r)
        return gates, [grad_h_0]

    def dropped_before(self, layer: Layer, mask: Mask) -> Tensor:
        before = layer.steps.before(layer.rows, layer.states[0])
        rows = rows_of(bits_of(before), layer.steps.ranges), step_masks(mask, layer.steps, before)
        for bits, keep in zip(*rows, strict=False):
            np.bitwise_and(bits, keep, out=bits)
        return before

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return pointwise.forward(x, mask, "identity")

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        """dropout(tanh(x)) of x (N, H)."""
        return pointwise.forward(x, mask, "tanh")

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        """The gradient of x, from y = dropout(tanh(x))."""
        return pointwise.tanh_backward(grad_y, y, mask)


def _project(input: Tensor, weights: Weights, out: Tensor) -> None:
    """What goes into the gates (N, G*H) from the input and the biases."""
    x, bias = input.reshape(-1, input.shape[-1]), weights.bias
    if bias is None:
        torch.mm(x, weights.w_ih.t(), out=out)
    else:
        torch.addmm(bias, x, weights.w_ih.t(), out=out)


def _dropper(like: Tensor, mask: Mask | None) -> Callable[..., Tensor]:
    """A function that zeroes what the mask of a step drops of some rows, in a buffer of its own."""
    if mask is None:
        return lambda x, bits, keep, first=0: x
    buffer = torch.empty_like(like, memory_format=torch.contiguous_format)
    buffer_bits = bits_of(buffer)

    def drop(x: Tensor, bits: np.ndarray, keep: np.ndarray, first: int = 0) -> Tensor:
        """`bits` are those of x; `first` is the mask's row of its first."""
        if len(bits):
            np.bitwise_and(bits, keep[first : first + len(bits)], out=buffer_bits[: len(bits)])
        return buffer[: len(bits)]

    return drop


def _scaled(weight: Tensor, mask: Mask | None) -> Tensor:
    return weight if mask is None else weight * mask.scale
