"""The plain loop as a backend, where there is no other: for any device, and inside an operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..cell import Cell, Weights
from ..mask import Mask, unpacked
from ..steps import Steps
from .base import Backend, Gradients, Layer, Masks, Needs, Result


class Reference(Backend):
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        output, last = reference.layer(input, states, weights, as_bool(masks, states[0].shape[1]), steps, cell)
        return Result(output, [state.clone() for state in last], [])

    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        """Runs the loop again: it has saved nothing but its output."""
        given, grads = layer.weights, (grad_output, *grad_states)
        biases = [] if given.bias is None else [given.bias]
        masks, count = as_bool(layer.masks, layer.output.shape[-1]), len(layer.states)

        def run(input: Tensor, w_ih: Tensor, w_hh: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            weights = Weights(w_ih, w_hh, None, *(rest[count:] or [None]))
            output, last = reference.layer(input, rest[:count], weights, masks, layer.steps, layer.cell)
            return tuple(y for y, g in zip((output, *last), grads, strict=True) if g is not None)

        # Inside an operator torch.autograd records nothing.
        pull = torch.func.vjp(run, layer.input, given.w_ih, given.w_hh, *layer.states, *biases)[1]
        found = pull(tuple(g for g in grads if g is not None))
        input, w_ih, w_hh, *rest = found
        return Gradients(input, w_ih, w_hh, rest[count] if biases else None, rest[:count])

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, Mask(unpacked(mask.keep, x.shape[1]), mask.scale))

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, Mask(unpacked(mask.keep, x.shape[1]), mask.scale), "tanh")

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        return reference.tanh_dropout_gradient(grad_y, y, Mask(unpacked(mask.keep, y.shape[1]), mask.scale))


def as_bool(masks: Masks, columns: int) -> Masks:
    """The masks as the loop takes them."""
    return {kind: Mask(unpacked(mask.keep, columns), mask.scale) for kind, mask in masks.items()}
