"""The loop over time, for every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ...cell import Cell, Weights
from ...mask import Mask
from ...steps import Steps
from ..base import Backend, Gradients, Layer, Masks, Needs, Result
from . import gru, lstm, pointwise, rnn
from .collected import Collected
from .elements import (
    WIDE,
    Array,
    Numbers,
    bits_of,
    computes_in,
    library_of,
    numbers_of,
    pieces,
    rows_of,
    rows_of_steps,
    scale_of,
    step_masks,
)
from .product import product

CELLS: dict[str, ModuleType] = {"RNN_TANH": rnn, "RNN_RELU": rnn, "GRU": gru, "LSTM": lstm}


class Cpu(Backend):
    @np.errstate(all="ignore")  # as silent as PyTorch where infinite numbers meet
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        # Tensors of their own, which PyTorch may not take for views of something else.
        result = input.new_empty(*input.shape[:-1], weights.w_hh.shape[1])
        output = result.view(-1, result.shape[-1])
        saved = [input.new_empty(output.shape[0], k * output.shape[1]) for k in cell.saved]
        if _computes_in(input.dtype, cell) == input.dtype:
            return Result(result, _forward(input, states, weights, masks, steps, cell, output, saved), saved)
        wide = input.float(), [state.float() for state in states], weights.map(Tensor.float)
        made = [torch.empty_like(x, dtype=torch.float32) for x in (output, *saved)]
        last = _forward(*wide, masks, steps, cell, made[0], made[1:], rounded=[output, *saved[1:]])
        if saved:
            saved[0].copy_(made[1])
        return Result(result, [state.to(input.dtype) for state in last], saved)

    @np.errstate(all="ignore")
    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        dtype = layer.input.dtype
        if _computes_in(dtype, layer.cell) == dtype:
            return self._backward(layer, grad_output, grad_states, needs)
        grads = [None if grad is None else grad.float() for grad in (grad_output, *grad_states)]
        found = self._backward(layer.map(Tensor.float), grads[0], grads[1:], needs)
        return found.map(lambda gradient: gradient.to(dtype))

    def _backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        if grad_output is None:
            grad_output = layer.output.new_zeros(()).expand_as(layer.output)
        collected = Collected(layer, needs)
        go_back = partial(CELLS[layer.cell.mode].backward, collected.add)
        return collected.gradients(_go_back(layer, grad_output, grad_states, go_back))

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return pointwise.dropout(x, mask)

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        """dropout(tanh(x)) of x (N, H)."""
        return pointwise.tanh_dropout(x, mask)

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        """The gradient of x, from y = dropout(tanh(x))."""
        return pointwise.tanh_backward(grad_y, y, mask)


def _forward(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Weights,
    masks: Masks,
    steps: Steps,
    cell: Cell,
    output: Tensor,
    saved: Sequence[Tensor],
    rounded: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The states at the end, (B, H), after all of them have been written to `output` (N, H) and `saved`; with `rounded`, rows
    (N, H) of a shorter dtype for each state, what goes on from each step is what was written there."""
    hidden, recurrent, module = masks.get("hidden"), masks.get("recurrent"), CELLS[cell.mode]
    states = [state.resolve_neg().contiguous() for state in states]
    weights, ranges, before = module.prepared(weights), steps.ranges, saved[0] if saved else output
    projecting = _projecting(input, weights, before, steps, at_once=not saved)
    # The hidden mask's scale is folded into the weight, unless a step itself needs what it makes as it is.
    now, later = (hidden, None) if saved or "zoneout" in masks or rounded else (None, hidden)
    weight = _scaled(weights.w_hh.t(), recurrent)
    from_h_0 = from_h = product(weight, steps.batch, 1 if later else steps.count)
    if later is not None:
        from_h = product(weight * later.scale, steps.batch, steps.count)
    drop, h_0 = _dropper(states[0], recurrent), numbers_of(states[0])
    h, multiply = h_0[: steps.runs[-1 if steps.reverse else 0].size], from_h_0
    cell_steps = module.forward(output, saved, states, masks, steps, cell, scale_of(now))
    rounding = _rounding([output, *saved[1:]], rounded, steps) if rounded else repeat(None)
    gates_rows, h_rows = (rows_of(numbers_of(x), ranges) for x in (before[:, : weight.shape[1]], output))
    for gates, made, r, _ in zip(gates_rows, h_rows, step_masks(recurrent, steps, output), projecting, strict=False):
        if len(gates) == len(h):
            multiply(drop(h, r), gates, gates)
        else:  # some sequences ended, or some begin, from h_0
            carried, begin = min(len(gates), len(h)), slice(len(h), len(gates))
            multiply(drop(h[:carried], r), gates[:carried], gates[:carried])
            from_h_0(drop(h_0[begin], r, carried), gates[begin], gates[begin])
        next(cell_steps)
        next(rounding)
        h, multiply = made, from_h
    if later is not None:
        output *= later.scale
    return [steps.last(rows) for rows in (output, *saved[1:])]


def _rounding(states: Sequence[Tensor], rounded: Sequence[Tensor], steps: Steps) -> Iterator[None]:
    """Asked for the next, it rounds what the step made."""
    for pairs in zip(
        *(zip(steps.split(x), steps.split(y), strict=True) for x, y in zip(states, rounded, strict=True)), strict=True
    ):
        for state, narrow in pairs:
            state.copy_(narrow.copy_(state))
        yield


def _projecting(input: Tensor, weights: Weights, gates: Tensor, steps: Steps, at_once: bool) -> Iterator[None]:
    """Before each step, what its gates (N, C*H) have from the input and the biases is there, W_ih's in the last columns."""
    x, columns = input.reshape(-1, input.shape[-1]), weights.w_ih.shape[0]
    every = [(0, steps.rows, steps.ranges)] if at_once else pieces(steps.ranges, gates.shape[1])
    for first, last, ranges in every:
        out = gates[first:last, -columns:]
        if weights.b_hh is not None:
            gates[first:last, : len(weights.b_hh)] = weights.b_hh
        if weights.b_ih is None:
            torch.mm(x[first:last], weights.w_ih.t(), out=out)
        else:
            torch.addmm(weights.b_ih, x[first:last], weights.w_ih.t(), out=out)
        yield from repeat(None, len(ranges))


def _go_back(
    layer: Layer,
    grad_output: Tensor,
    grad_states: Sequence[Tensor | None],
    cell_backward: Callable[[Sequence[Tensor], Layer, Steps], Iterator[Numbers]],
) -> list[Tensor]:
    """The gradients of the states at the beginning (B, H), after `cell_backward` has had those of the states of each step."""
    h_0, steps, recurrent = layer.states[0], layer.steps.backwards(), layer.masks.get("recurrent")
    passes_by = _passes_by(layer.masks, layer.cell)
    weight = _scaled(CELLS[layer.cell.mode].recurrent_rows(layer.weights.w_hh), recurrent)
    multiply, drop_bits = product(weight, steps.batch, steps.count), np.bitwise_and
    grad_h_0, grad_h, entered = (h_0.new_empty(h_0.shape) for _ in range(3))
    after_h = [_copy(grad, state) for grad, state in zip(grad_states[1:], layer.states[1:], strict=True)]
    of_h_0, of_h, to_earlier, to_earlier_bits = *map(numbers_of, (grad_h_0, grad_h, entered)), bits_of(entered)
    of_h_n, add = None if grad_states[0] is None else numbers_of(grad_states[0].resolve_neg()), library_of(h_0).add

    def go_back(later: Numbers, size: int, r: Array | None) -> None:
        """From the gates of a step to the states before it, `to_earlier`."""
        to_earlier[:size] = 0
        multiply(later, to_earlier[:size], to_earlier[:size])
        if r is not None:
            drop_bits(to_earlier_bits[:size], r, to_earlier_bits[:size])
        if passes_by:
            to_earlier[:size] += of_h[:size]

    later, later_r, now = numbers_of(weight.new_empty(0, len(weight))), None, of_h[:0]
    cell_steps, grads = cell_backward([grad_h, *after_h], layer, steps), rows_of_steps(grad_output, steps)
    for g, r in zip(grads, step_masks(recurrent, steps, h_0), strict=False):
        size, later_size = len(g), len(later)
        if size != later_size:
            go_back(later, later_size, later_r)
            of_h_0[size:later_size] = to_earlier[size:later_size]  # these sequences began in the step after this
            carried = min(size, later_size)
            add(g[:carried], to_earlier[:carried], out=of_h[:carried])
            of_h[carried:size] = g[carried:]  # these end here
            if of_h_n is not None:
                of_h[carried:size] += of_h_n[carried:size]
            now = of_h[:size]
        elif recurrent is not None:
            go_back(later, size, later_r)
            add(g, to_earlier[:size], out=now)
        elif passes_by:
            add(now, g, out=now)
            multiply(later, now, now)
        else:
            multiply(later, g, now)
        later, later_r = next(cell_steps), r
    go_back(later, len(later), later_r)
    of_h_0[: len(later)] = to_earlier[: len(later)]
    next(cell_steps, None)  # what is left to do with the gates of the last steps
    return [grad_h_0, *after_h]


def _passes_by(masks: Masks, cell: Cell) -> bool:
    """Whether part of a state goes to the next past the gates."""
    return "zoneout" in masks or cell.mode == "GRU"


def _dropper(like: Tensor, mask: Mask | None) -> Callable[..., Numbers]:
    """A function that zeroes what the mask of a step drops of some rows, in a buffer of its own."""
    if mask is None:
        return lambda x, keep, first=0: x
    buffer = torch.empty_like(like)
    numbers, of_bits = numbers_of(buffer), bits_of(buffer)

    def drop(x: Numbers, keep: Array, first: int = 0) -> Numbers:
        """`first` is the mask's row of x's first."""
        size = len(x)
        np.bitwise_and(bits_of(x), keep[first : first + size], of_bits[:size])
        return numbers[:size]

    return drop


def _scaled(weight: Tensor, mask: Mask | None) -> Tensor:
    return weight if mask is None else weight * mask.scale


def _copy(grad: Tensor | None, state: Tensor) -> Tensor:
    """A gradient of a state, to be added to."""
    return torch.zeros_like(state, memory_format=torch.contiguous_format).add_(0 if grad is None else grad)


def _computes_in(dtype: torch.dtype, cell: Cell) -> torch.dtype:
    """A gated cell makes in a step from many numbers one: it rounds only that."""
    return computes_in(dtype) if cell.columns == 1 or dtype in WIDE else torch.float32
