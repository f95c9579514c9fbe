"""One layer, one direction on the Triton kernels: masks as bits, and a strategy for the recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..cell import Cell, Weights
from ..kernels import apply_mask, cooperative, resident, stepwise
from ..kernels.launch import MaskBits
from ..mask import Mask
from ..steps import Steps
from .base import GateBackend, Layer, Masks, Result


class OneDirection:
    """A recurrence that takes both directions at once, as the others are called: for one."""

    def __init__(self, recurrence: ModuleType) -> None:
        self.recurrence = recurrence

    def forward(
        self, projection: Tensor, h_0: Tensor, w_hh: Tensor, masks: Mapping[str, MaskBits], **options: object
    ) -> Tensor:
        bits = self._bits(masks)
        output = self.recurrence.forward(projection.unsqueeze(-2), h_0.unsqueeze(0), w_hh.unsqueeze(0), bits, **options)
        return output.squeeze(-2)

    def backward(
        self,
        grad_output: Tensor,
        grad_h_n: Tensor | None,
        output: Tensor,
        w_hh: Tensor,
        masks: Mapping[str, MaskBits],
        **options: object,
    ) -> tuple[Tensor, Tensor]:
        gates, grad_h_0 = self.recurrence.backward(
            grad_output.unsqueeze(-2),
            None if grad_h_n is None else grad_h_n.unsqueeze(0),
            output.unsqueeze(-2),
            w_hh.unsqueeze(0),
            self._bits(masks),
            **options,
        )
        return gates.squeeze(-2), grad_h_0.squeeze(0)

    def _bits(self, masks: Mapping[str, MaskBits]) -> dict[str, MaskBits]:
        return {kind: MaskBits(mask.bits.unsqueeze(0), mask.scale) for kind, mask in masks.items()}


RECURRENCES: dict[str, ModuleType | OneDirection] = {
    "resident": OneDirection(resident),
    "cooperative": cooperative,
    "stepwise": stepwise,
}


class Kernels(GateBackend):
    """The backend of one strategy. It takes tensors of any device: which of them belong here is decided above.

    tf32: fp32 products may round their operands to tf32.
    """

    def __init__(self, strategy: str, tf32: bool) -> None:
        self.recurrence = RECURRENCES[strategy]
        self.tf32 = tf32

    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        x, bias = input.reshape(-1, input.shape[-1]), weights.bias
        projection = x @ weights.w_ih.t() if bias is None else torch.addmm(bias, x, weights.w_ih.t())
        output = self.recurrence.forward(
            projection.view(_shape(steps, projection)),
            states[0],
            weights.w_hh,
            _bits(masks),
            **self._options(steps, cell),
        )
        rows = output.view(projection.shape)
        return Result(output if output.dim() == input.dim() else rows, [steps.last(rows)], [])

    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        shape = _shape(layer.steps, layer.rows)
        gates, grad_h_0 = self.recurrence.backward(
            grad_output.reshape(shape),
            grad_states[0],
            layer.output.view(shape),
            layer.weights.w_hh,
            _bits(layer.masks),
            **self._options(layer.steps, layer.cell),
        )
        return gates.view(layer.rows.shape), [grad_h_0]

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


def _shape(steps: Steps, rows: Tensor) -> tuple[int, ...]:
    """(T, B, ...) where all sequences are of one length, (N, ...) elsewhere."""
    return tuple(rows.shape) if len(steps.runs) > 1 else (steps.count, steps.batch, rows.shape[1])


def _bits(masks: Masks) -> dict[str, MaskBits]:
    return {kind: MaskBits(*mask) for kind, mask in masks.items()}
