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
        bias = layer.weights.bias
        with torch.enable_grad():
            leaves = [leaf(v) for v in (layer.input, *layer.weights[:2], *layer.states)]
            leaves += [] if bias is None else [leaf(bias)]
            input, w_ih, w_hh, *states = leaves[: 3 + len(layer.states)]
            weights = Weights(w_ih, w_hh, None, None if bias is None else leaves[-1])
            masks = as_bool(layer.masks, states[0].shape[1])
            output, last = reference.layer(input, states, weights, masks, layer.steps, layer.cell)
        outputs = {y: g for y, g in zip((output, *last), (grad_output, *grad_states), strict=True) if g is not None}
        grads = torch.autograd.grad(list(outputs), leaves, list(outputs.values()))
        return Gradients(*grads[:3], None if bias is None else grads[-1], list(grads[3 : 3 + len(states)]))

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, Mask(unpacked(mask.keep, x.shape[1]), mask.scale))

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return reference.dropout(x, Mask(unpacked(mask.keep, x.shape[1]), mask.scale), "tanh")

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        return reference.tanh_dropout_gradient(grad_y, y, Mask(unpacked(mask.keep, y.shape[1]), mask.scale))


def as_bool(masks: Masks, columns: int) -> Masks:
    """The masks as the loop takes them."""
    return {kind: Mask(unpacked(mask.keep, columns), mask.scale) for kind, mask in masks.items()}


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
