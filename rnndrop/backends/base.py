"""What every backend does, and the products that are the same on all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cell import Cell, Weights
from ..mask import Mask
from ..steps import Steps

Masks = Mapping[str, Mask]  # by kind; what is not dropped is not there


class Result(NamedTuple):
    """Of a forward pass: the output (T, B, H) or (N, H), the states at the end (B, H), and what else backward needs, as
    `Cell.saved` says: (N, ...) each, of the output's dtype."""

    output: Tensor
    states: list[Tensor]
    saved: list[Tensor]


class Layer(NamedTuple):
    """A layer that has run: its input (T, B, I) or (N, I), the states it began with (B, H), what made it, what came of it."""

    input: Tensor
    states: Sequence[Tensor]
    weights: Weights
    masks: Masks
    steps: Steps
    cell: Cell
    output: Tensor
    saved: Sequence[Tensor]

    def of_direction(self, direction: int) -> Layer:
        """One direction of a layer of both."""
        return self._replace(
            states=[state[direction] for state in self.states],
            weights=self.weights.of_direction(direction),
            masks={kind: Mask(mask.keep[direction], mask.scale) for kind, mask in self.masks.items()},
            steps=self.steps.backwards() if direction else self.steps,
            output=self.output.chunk(2, -1)[direction],
        )

    @property
    def rows(self) -> Tensor:
        """The output as (N, H)."""
        return self.output.reshape(-1, self.output.shape[-1])

    def map(self, function: Callable[[Tensor], Tensor]) -> Layer:
        """The function applied to each tensor but the masks."""
        return self._replace(
            input=function(self.input),
            states=[function(state) for state in self.states],
            weights=self.weights.map(function),
            output=function(self.output),
            saved=[function(x) for x in self.saved],
        )


class Needs(NamedTuple):
    """Which gradients are asked for."""

    input: bool
    w_ih: bool
    w_hh: bool
    b_ih: bool
    b_hh: bool


class Gradients(NamedTuple):
    """``None`` where not asked for. No two share memory."""

    input: Tensor | None
    w_ih: Tensor | None
    w_hh: Tensor | None
    b_ih: Tensor | None
    b_hh: Tensor | None
    states: list[Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> Gradients:
        input, w_ih, w_hh, b_ih, b_hh = (None if gradient is None else function(gradient) for gradient in self[:5])
        return Gradients(input, w_ih, w_hh, b_ih, b_hh, [function(state) for state in self.states])


class Backend(ABC):
    """One layer in one direction, forward and backward, and dropout alone. Tensors come as they are: any strides.

    One that can may be given both directions at once (`plan.takes_both_directions`): the weights tell (`cell.Weights`), states
    and masks are (2, B, H) and (2, N, ...), the output has twice the columns, and `steps` are those of the first.
    """

    @abstractmethod
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        """Run a layer on its input (T, B, I) or (N, I)."""

    @abstractmethod
    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        """The gradients of what a layer was run on."""

    @abstractmethod
    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        """x (N, H) times the mask's scale where it keeps, 0 elsewhere, NaN or not."""


class GateBackend(Backend):
    """One that goes back to the gates' pre-activations in a loop; the rest is one product each, the same for all."""

    @abstractmethod
    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the gates' pre-activations, (N, C*H) in the cell's `columns`, and of the states at the beginning
        (B, H)."""

    @abstractmethod
    def dropped_grad_w_hh(self, layer: Layer, gates: Tensor, mask: Mask) -> Tensor:
        """The gradient of W_hh from that of its gates (N, G*H) where the mask drops what enters it, without its scale."""

    def backward(
        self, layer: Layer, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], needs: Needs
    ) -> Gradients:
        if grad_output is None:
            grad_output = layer.output.new_zeros(()).expand_as(layer.output)
        gates, states = self.gate_gradients(layer, grad_output, grad_states)
        x, columns = layer.input.reshape(-1, layer.input.shape[-1]), layer.output.shape[-1]
        apart = layer.cell.columns > layer.cell.gates
        of_w_ih, of_w_hh = (gates[:, columns:], gates[:, :-columns]) if apart else (gates, gates)
        w_hh = self._grad_w_hh(layer, of_w_hh) if needs.w_hh else None
        b_ih = of_w_ih.sum(0) if needs.b_ih else None
        b_hh = None
        if needs.b_hh:
            b_hh = of_w_hh.sum(0) if apart or b_ih is None else b_ih.clone()
        w_hh, b_hh = (None if gradient is None else in_order(gradient, layer) for gradient in (w_hh, b_hh))
        return Gradients(
            (of_w_ih @ layer.weights.w_ih).view(layer.input.shape) if needs.input else None,
            of_w_ih.t() @ x if needs.w_ih else None,
            w_hh,
            b_ih,
            b_hh,
            states,
        )

    def _grad_w_hh(self, layer: Layer, gates: Tensor) -> Tensor:
        if layer.weights.directions == 2:
            parts = enumerate(gates.chunk(2, 1))
            return torch.stack([self._grad_w_hh(layer.of_direction(direction), part) for direction, part in parts])
        recurrent = layer.masks.get("recurrent")
        if recurrent is not None:
            return self.dropped_grad_w_hh(layer, gates, recurrent).mul_(recurrent.scale)
        if len(layer.steps.runs) > 1:
            return gates.t() @ layer.steps.before(layer.rows, layer.states[0])
        (later, earlier), (first, initial) = ((gates[rows], entered) for rows, entered in entering(layer))
        return (later.t() @ earlier).addmm_(first.t(), initial)


def in_order(x: Tensor, layer: Layer) -> Tensor:
    """x, a row for each of W_hh's in the order of gates, in that of W_hh itself."""
    return x.roll(-layer.weights.w_hh.shape[-1], 0) if layer.cell.columns > layer.cell.gates else x


def filled(values: Sequence[Any], flags: Sequence[bool], new: Sequence[Tensor]) -> list[Any]:
    """The values, the flagged ones replaced by the new ones."""
    replaced = iter(new)
    return [next(replaced) if flag else value for value, flag in zip(values, flags, strict=True)]


def entering(layer: Layer) -> list[tuple[slice, Tensor]]:
    """The rows of a padded batch, and the states that entered W_hh there, without a copy of them."""
    steps, output = layer.steps, layer.rows
    batch, inner = steps.batch, steps.rows - steps.batch  # the last row of each sequence enters nothing
    if steps.reverse:
        return [(slice(inner), output[batch:]), (slice(inner, None), layer.states[0])]
    return [(slice(batch, None), output[:inner]), (slice(batch), layer.states[0])]
