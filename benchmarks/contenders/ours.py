"""rnndrop: its modules, its layers by the name of each strategy, and a loop over its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import rnndrop
from rnndrop import dispatch, functional
from rnndrop.kinds import INSIDE, KINDS
from rnndrop.modules.base import RNNBase

from ..cases import CELLS, Case
from .base import OUR_CELLS, OURS, Contender, Model, Wrapped, lacks, one_layer, weights
from .loops import Loop, States, loaded


class Layer(Model):
    """rnndrop's layer by the name of a strategy."""

    def __init__(self, case: Case, rnn: nn.RNNBase, strategy: Any) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(weight.clone() for weight in weights(rnn)[0])
        self.case, self.strategy, self.layer = case, strategy, getattr(functional, f"{case.cell.lower()}_layer")

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        states = [x.new_zeros(self.case.B, self.case.H)] * self.case.states
        dropouts = self.case.options if self.training else {}
        options = {"seed": seed, "strategy": self.strategy, "batch_sizes": self.case.batch_sizes}
        return self.layer(x, *states, *self.parameters_, **options, **dropouts)[0]

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(self.parameters_)]


def _module(case: Case, rnn: nn.RNNBase) -> Model:
    return Wrapped(case, getattr(rnndrop, case.cell).from_torch(rnn, **case.options))


class _Cell(nn.Module):
    """The step of a loop."""

    def __init__(self, case: Case, of: list[Tensor]) -> None:
        super().__init__()
        kind, options = getattr(rnndrop, f"{case.cell}Cell"), {"device": of[0].device, "dtype": of[0].dtype}
        self.cell = loaded(kind(of[0].shape[1], case.H, **options, **case.dropouts), of)

    def begin(self, h: Tensor) -> None:
        """A cell has no mask for a whole sequence."""

    def forward(self, x: Tensor, states: States) -> States:
        return self.cell(x, states) if len(states) > 1 else (self.cell(x, states[0]),)


def _cells(case: Case, rnn: nn.RNNBase) -> Model:
    return Loop(case, rnn, step=_Cell)


def _no_cells(case: Case, device: str) -> str:
    if case.T > 50:
        return f"a {OUR_CELLS} is timed up to 50 steps"
    inside = [KINDS[kind].argument for kind in CELLS[case.cell].kinds]
    return lacks(case, inside) or ("" if case.mask_scope == "step" else "a cell draws a mask at each call")


def _strategy(name: str) -> Contender:
    kernel = name in dispatch.KERNELS

    def cannot(case: Case, device: str) -> str:
        if case.pass_ == "inference" and (case.rate("zoneout") or case.rate("cell_zoneout")):
            return "a layer as a function has no evaluation"
        return "a CUDA strategy" if kernel and device == "cpu" else one_layer(case)

    def build(case: Case, rnn: nn.RNNBase) -> Model:
        return Layer(case, rnn, name)

    return Contender(f"{OURS} {name}", build, seeded=True, packs=True, cannot=cannot, slow=not kernel)


MODULE = Contender(OURS, _module, seeded=True, packs=True)
LOOP_OF_CELLS = Contender(OUR_CELLS, _cells, tuple(KINDS[kind].argument for kind in INSIDE), cannot=_no_cells)
STRATEGIES = [_strategy(name) for name in dispatch.STRATEGIES if name != "auto"]


def chosen(model: nn.Module, x: Tensor) -> str:
    """The strategy that "auto" runs for this input, or "" of another model."""
    if not isinstance(model, Wrapped) or not isinstance(model.rnn, RNNBase):
        return ""
    return rnndrop.explain(model.rnn, model.input(x)).strategy
