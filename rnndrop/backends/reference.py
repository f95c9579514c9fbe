"""The plain loop as a backend, where there is no other: for any device, and inside an operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..cell import Cell, Weights
from ..mask import Mask, by_element, unpacked
from ..steps import Steps
from .base import Backend, Gradients, Layer, Masks, Needs, Result


class Reference(Backend):
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        output, last = reference.layer(input, states, weights, by_element(masks, states[0].shape[-1]), steps, cell)
        return Result(output, [state.clone() for state in last], [])

    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        """Runs the loop again: it has saved nothing but its output."""
        bias = layer.weights.bias
        leaves = [layer.input, *layer.weights[:2], *layer.states, *([] if bias is None else [bias])]
        masks, last = by_element(layer.masks, layer.states[0].shape[-1]), 3 + len(layer.states)

        def run(*leaves: Tensor) -> list[Tensor]:
            input, w_ih, w_hh, *states = leaves[:last]
            weights = Weights(w_ih, w_hh, None, None if bias is None else leaves[last])
            output, states_n = reference.layer(input, states, weights, masks, layer.steps, layer.cell)
            return [y for y, g in zip((output, *states_n), (grad_output, *grad_states), strict=True) if g is not None]

        # Autograd is off inside an operator, torch.func is not.
        pull = torch.func.vjp(run, *leaves)[1]
        grads = [gradient.clone() for gradient in pull([g for g in (grad_output, *grad_states) if g is not None])]
        return Gradients(grads[0], grads[1], grads[2], None if bias is None else grads[last], grads[3:last])

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, unpacked(mask, x.shape[1]))

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, unpacked(mask, x.shape[1]), "tanh")

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        return reference.tanh_dropout_gradient(grad_y, y, unpacked(mask, y.shape[1]))
