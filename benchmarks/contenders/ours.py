"""rnndrop: its module, its layer by the name of each strategy, and a loop over its cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import rnndrop
from rnndrop import dispatch, functional

from ..cases import Case
from .base import CELLS, OURS, Contender, Model, Wrapped, lacks, one_layer, weights
from .loops import STATE_KINDS, Loop, loaded


class Layer(Model):
    """rnndrop's layer by the name of a strategy."""

    def __init__(self, case: Case, rnn: nn.RNN, strategy: Any) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(weight.clone() for weight in weights(rnn)[0])
        self.case, self.strategy = case, strategy

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        h0 = x.new_zeros(self.case.B, self.case.H)
        dropouts = self.case.options if self.training else {}
        options = {"seed": seed, "strategy": self.strategy, "batch_sizes": self.case.batch_sizes}
        return functional.rnn_layer(x, h0, *self.parameters_, **options, **dropouts)[0]

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(self.parameters_)]


def _module(case: Case, rnn: nn.RNN) -> Model:
    return Wrapped(case, rnndrop.RNN.from_torch(rnn, **case.options))


class _Cell(nn.Module):
    """The step of a loop."""

    def __init__(self, case: Case, of: list[Tensor]) -> None:
        super().__init__()
        rates = {name: case.rate(name) for name in STATE_KINDS}
        self.cell = loaded(rnndrop.RNNCell(of[0].shape[1], case.H, device=of[0].device, dtype=of[0].dtype, **rates), of)

    def begin(self, h: Tensor) -> None:
        """A cell has no mask for a whole sequence."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h)


def _cells(case: Case, rnn: nn.RNN) -> Model:
    return Loop(case, rnn, step=_Cell)


def _no_cells(case: Case, device: str) -> str:
    if case.T > 50:
        return "a loop of rnndrop.RNNCell is timed up to 50 steps"
    return lacks(case, STATE_KINDS) or ("" if case.mask_scope == "step" else "a cell draws a mask at each call")


def _strategy(name: str) -> Contender:
    kernel = name in dispatch.KERNELS

    def cannot(case: Case, device: str) -> str:
        if case.pass_ == "inference" and case.rate("zoneout"):
            return "rnn_layer has no evaluation"
        return "a CUDA strategy" if kernel and device == "cpu" else one_layer(case)

    def build(case: Case, rnn: nn.RNN) -> Model:
        return Layer(case, rnn, name)

    return Contender(f"{OURS} {name}", build, seeded=True, packs=True, cannot=cannot, slow=not kernel)


MODULE = Contender(OURS, _module, seeded=True, packs=True)
LOOP_OF_CELLS = Contender(CELLS, _cells, STATE_KINDS, cannot=_no_cells)
STRATEGIES = [_strategy(name) for name in dispatch.STRATEGIES if name != "auto"]


def chosen(model: nn.Module, x: Tensor) -> str:
    """The strategy that "auto" runs for this input, or "" of another model."""
    if not isinstance(model, Wrapped) or not isinstance(model.rnn, rnndrop.RNN):
        return ""
    return rnndrop.explain(model.rnn, model.input(x)).strategy
