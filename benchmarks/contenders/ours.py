"""rnndrop: its module, and its layer by the name of each strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import rnndrop
from rnndrop import dispatch, functional

from ..cases import Case
from .base import OURS, Contender, Model, Wrapped, one_layer, weights


class Layer(Model):
    """rnndrop's layer by the name of a strategy."""

    def __init__(self, case: Case, rnn: nn.RNN, strategy: Any) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(weight.clone() for weight in weights(rnn)[0])
        self.H, self.dropouts, self.strategy = case.H, case.options, strategy

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        h0 = x.new_zeros(x.shape[1], self.H)
        options = self.dropouts if self.training else {}
        return functional.rnn_layer(x, h0, *self.parameters_, seed=seed, strategy=self.strategy, **options)[0]

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(self.parameters_)]


def _module(case: Case, rnn: nn.RNN) -> Model:
    return Wrapped(rnndrop.RNN.from_torch(rnn, **case.options))


def _strategy(name: str) -> Contender:
    kernel = name in dispatch.KERNELS

    def cannot(case: Case, device: str) -> str:
        return "a CUDA strategy" if kernel and device == "cpu" else one_layer(case)

    def build(case: Case, rnn: nn.RNN) -> Model:
        return Layer(case, rnn, name)

    return Contender(f"{OURS} {name}", build, seeded=True, cannot=cannot, slow=not kernel)


MODULE = Contender(OURS, _module, seeded=True)
STRATEGIES = [_strategy(name) for name in dispatch.STRATEGIES if name != "auto"]


def chosen(model: nn.Module, x: Tensor) -> str:
    """The strategy that "auto" runs for this input, or "" of another model."""
    rnn = model.rnn if isinstance(model, Wrapped) else None
    return rnndrop.explain(rnn, x).strategy if isinstance(rnn, rnndrop.RNN) else ""
