"""The gradients that are one product of those of the gates, which come some steps at a time and are not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Gradients, Layer, Needs, in_order
from .elements import dropped, each_row, entering_rows


class Collected:
    """Of the input, the weights and the biases of a layer."""

    def __init__(self, layer: Layer, needs: Needs) -> None:
        weights = layer.weights
        self.layer, self.needs, self.x = layer, needs, layer.input.reshape(-1, layer.input.shape[-1])
        self.of_input = torch.empty_like(self.x, memory_format=torch.contiguous_format) if needs.input else None
        self.of_w_ih = weights.w_ih.new_zeros(weights.w_ih.shape) if needs.w_ih else None
        self.of_w_hh = weights.w_hh.new_zeros(weights.w_hh.shape) if needs.w_hh else None
        self.of_biases = self.x.new_zeros(layer.cell.columns * weights.w_hh.shape[1]) if needs.b_ih or needs.b_hh else None
        self.entering = entering_rows(layer.rows, layer.states[0], layer.steps)
        self.recurrent = layer.masks.get("recurrent")
        self.keep = None if self.recurrent is None else each_row(self.recurrent.keep, layer.steps)

    def add(self, first: int, last: int, gates: Tensor) -> None:
        """Those of the gates' pre-activations in the rows [first, last), of whole steps."""
        rows = self.layer.weights.w_ih.shape[0]
        of_x, of_h = gates[:, -rows:], gates[:, :rows]
        if self.of_input is not None:
            torch.mm(of_x, self.layer.weights.w_ih, out=self.of_input[first:last])
        if self.of_w_ih is not None:
            self.of_w_ih.addmm_(of_x.t(), self.x[first:last])
        if self.of_w_hh is not None:
            for start, stop, entered in self.entering(first, last):
                h = entered if self.keep is None else dropped(entered, self.keep[start:stop])
                self.of_w_hh.addmm_(of_h[start - first : stop - first].t(), h)
        if self.of_biases is not None:
            self.of_biases += gates.sum(0)

    def gradients(self, states: list[Tensor]) -> Gradients:
        """All that were asked for, and those of the states at the beginning."""
        rows, of_w_hh, of_biases = self.layer.weights.w_ih.shape[0], self.of_w_hh, self.of_biases
        if of_w_hh is not None and self.recurrent is not None:
            of_w_hh *= self.recurrent.scale
        return Gradients(
            None if self.of_input is None else self.of_input.view(self.layer.input.shape),
            self.of_w_ih,
            None if of_w_hh is None else in_order(of_w_hh, self.layer),
            of_biases[-rows:].clone() if of_biases is not None and self.needs.b_ih else None,
            in_order(of_biases[:rows], self.layer).clone() if of_biases is not None and self.needs.b_hh else None,
            states,
        )
