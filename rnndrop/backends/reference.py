"""The plain loop as a backend, where there is no other: for any device, and inside an operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..cell import Cell, Weights
from ..mask import Mask, by_element, unpacked
from ..steps import Steps
from .base import Backend, Gradients, Layer, Masks, Needs, Result, filled


class Reference(Backend):
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        output, last = reference.layer(input, states, weights, by_element(masks, states), steps, cell)
        rows, columns = output.shape[:-1].numel(), states[0].shape[-1]
        return Result(output, [state.clone() for state in last], [output.new_empty(rows, k * columns) for k in cell.saved])

    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        """Runs the loop again: it has saved nothing but its output."""
        given = layer.input, *layer.weights[:4]
        flags = [needed and x is not None for needed, x in zip(needs, given, strict=True)] + [True] * len(layer.states)
        found = filled([None] * len(flags), flags, [x.clone() for x in gradients(layer, [grad_output, *grad_states], flags)])
        input, w_ih, w_hh, b_ih, b_hh, *states = found
        return Gradients(input, w_ih, w_hh, b_ih, b_hh, states)

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, unpacked(mask, x.shape[1]))

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, unpacked(mask, x.shape[1]), "tanh")

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        return reference.tanh_dropout_gradient(grad_y, y, unpacked(mask, y.shape[1]))


def gradients(layer: Layer, grads: Sequence[Tensor | None], flags: Sequence[bool]) -> tuple[Tensor, ...]:
    """Those that the flags ask for, of input, w_ih, w_hh, b_ih, b_hh and the states, from those of the output and of the states
    at the end, by the plain loop, to be differentiated as often as one likes."""
    leaves = [layer.input, *layer.weights[:4], *layer.states]
    masks = by_element(layer.masks, layer.states)

    def run(*needed: Tensor) -> tuple[Tensor, ...]:
        input, w_ih, w_hh, b_ih, b_hh, *states = filled(leaves, flags, needed)
        weights = Weights(w_ih, w_hh, b_ih, b_hh)
        output, last = reference.layer(input, states, weights, masks, layer.steps, layer.cell)
        return tuple(y for y, g in zip((output, *last), grads, strict=True) if g is not None)

    # Autograd is off inside an operator, torch.func is not.
    pull = torch.func.vjp(run, *[leaf for leaf, needed in zip(leaves, flags, strict=True) if needed])[1]
    return pull(tuple(g for g in grads if g is not None))
