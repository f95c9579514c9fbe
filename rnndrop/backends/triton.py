"""One layer on the Triton kernels: masks as bits, and a strategy for the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..cell import Cell, Weights
from ..kernels import apply_mask, cooperative, gated_cooperative, gated_resident, gated_stepwise, resident, stepwise
from ..kernels.launch import MaskBits
from ..kernels.plan import BOTH_DIRECTIONS
from ..mask import Mask
from ..steps import Steps
from .base import GateBackend, Layer, Masks, Result

RECURRENCES: dict[str, ModuleType] = {"resident": resident, "cooperative": cooperative, "stepwise": stepwise}
GATED_RECURRENCES: dict[str, ModuleType] = {
    "resident": gated_resident,
    "cooperative": gated_cooperative,
    "stepwise": gated_stepwise,
}


class Kernels(GateBackend):
    """The backend of one strategy for a plain RNN. It takes tensors of any device: which belong here is decided above.

    tf32: fp32 products may round their operands to tf32.
    """

    def __init__(self, strategy: str, tf32: bool) -> None:
        self.recurrence = RECURRENCES[strategy]
        self.both = strategy in BOTH_DIRECTIONS
        self.tf32 = tf32

    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        projection = _projection(input, weights.w_ih, weights.bias)
        output = self.recurrence.forward(
            self._by_direction(projection, steps, weights),
            self._with_axis(states[0]),
            self._with_axis(weights.w_hh),
            self._bits(masks),
            **self._options(steps, cell),
        ).view(projection.shape)
        ends = [steps.last(output)]
        if weights.directions == 2:
            forwards, backwards = output.chunk(2, 1)
            ends = [torch.stack([steps.last(forwards), steps.backwards().last(backwards)])]
        return Result(output.view(*input.shape[:-1], output.shape[1]), ends, [])

    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        gates, grad_h_0 = self.recurrence.backward(
            self._by_direction(grad_output, layer.steps, layer.weights),
            None if grad_states[0] is None else self._with_axis(grad_states[0]),
            self._by_direction(layer.rows, layer.steps, layer.weights),
            self._with_axis(layer.weights.w_hh),
            self._bits(layer.masks),
            **self._options(layer.steps, layer.cell),
        )
        return gates.view(layer.rows.shape), [grad_h_0.view(layer.states[0].shape)]

    def _by_direction(self, rows: Tensor, steps: Steps, weights: Weights) -> Tensor:
        """Rows (N, D*H), or (T, B, D*H), as the recurrence takes them: (T, B, H), or (N, H) of different lengths, with an axis
        for the directions, before the last, where it has one."""
        rows = _by_step(rows, steps)
        return rows.unflatten(-1, (weights.directions, -1)) if self.both else rows

    def _with_axis(self, x: Tensor) -> Tensor:
        """x, (rows, columns) in one direction, with an axis for the directions where the recurrence has one."""
        return x.unsqueeze(0) if self.both and x.dim() == 2 else x

    def _bits(self, masks: Masks) -> dict[str, MaskBits]:
        return {kind: MaskBits(self._with_axis(keep), scale) for kind, (keep, scale) in masks.items()}

    def dropped_grad_w_hh(self, layer: Layer, gates: Tensor, mask: Mask) -> Tensor:
        before, steps = layer.steps.before(layer.rows, layer.states[0]), layer.steps
        keep = mask.keep if len(steps.runs) == 1 or mask.keep.shape[0] == steps.rows else steps.repeated(mask.keep)
        return gates.t() @ apply_mask.apply_mask(before, MaskBits(keep, 1.0), out=before)

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return apply_mask.apply_mask(x, MaskBits(mask.keep, mask.scale))

    def _options(self, steps: Steps, cell: Cell) -> dict[str, object]:
        """What the recurrence is told beside its tensors."""
        options = {"cell": cell.mode, "reverse": steps.reverse, "tf32": self.tf32}
        if len(steps.runs) > 1:
            options["sizes"] = [size for run in steps.runs for size in [run.size] * run.steps]
        return options


class GatedKernels(Kernels):
    """The backend of one strategy for a GRU or an LSTM, in one direction."""

    def __init__(self, strategy: str, tf32: bool) -> None:
        self.recurrence = GATED_RECURRENCES[strategy]
        self.both = False
        self.tf32 = tf32

    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        bias, b_hn = (weights.bias, None) if cell.columns == cell.gates else weights.biases_of_gru
        projection = _by_step(_projection(input, weights.w_ih, bias), steps)
        options = self._options(steps, cell)
        output, saved = self.recurrence.forward(projection, states, weights.w_hh, self._bits(masks), b_hn=b_hn, **options)
        output, *saved = (x.view(-1, x.shape[-1]) for x in (output, *saved))
        ends = [steps.last(state) for state in (output, *saved[1:])]
        return Result(output.view(*input.shape[:-1], output.shape[1]), ends, saved)

    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        grad_output, output, *saved = (_by_step(x, layer.steps) for x in (grad_output, layer.rows, *layer.saved))
        made, w_hh = (layer.states, output, saved), layer.weights.w_hh
        gates, states = self.recurrence.backward(
            grad_output, grad_states, *made, w_hh, self._bits(layer.masks), **self._options(layer.steps, layer.cell)
        )
        return gates.view(-1, gates.shape[-1]), states


def _projection(input: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """W_ih x and the bias, a row for each row of the sequences."""
    x = input.reshape(-1, input.shape[-1])
    return x @ w_ih.t() if bias is None else torch.addmm(bias, x, w_ih.t())


def _by_step(rows: Tensor, steps: Steps) -> Tensor:
    """Rows as the recurrence takes them: (T, B, ...), or (N, ...) of different lengths."""
    shape = [-1] if len(steps.runs) > 1 else [steps.count, steps.batch]
    return rows.reshape(*shape, rows.shape[-1])
