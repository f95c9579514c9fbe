"""Keras, where it is installed."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any, cast

from torch import Tensor, nn

from ..cases import Case
from .base import Contender, Model, one_layer, weights


class Keras(Model):
    """keras.layers.SimpleRNN on PyTorch. x becomes batch-first; recurrent_dropout has one mask a sequence."""

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        os.environ["KERAS_BACKEND"] = "torch"
        self.keras: Any = importlib.import_module("keras")
        if self.keras.backend.backend() != "torch":
            raise RuntimeError(f"Keras runs on {self.keras.backend.backend()}")
        w_ih, w_hh, b_ih, b_hh = weights(rnn)[0]
        self.device = {"cpu": "cpu", "cuda": "cuda:0"}[w_ih.device.type]
        p = case.rate("recurrent_dropout") or case.rate("hidden_dropout")
        with self.keras.device(self.device):
            dtype = str(w_ih.dtype).removeprefix("torch.")
            self.layer = self.keras.layers.SimpleRNN(case.H, return_sequences=True, recurrent_dropout=p, dtype=dtype)
            self.layer.build((None, None, case.I))
            for variable, value in zip(self.layer.trainable_variables, [w_ih.t(), w_hh.t(), b_ih + b_hh], strict=True):
                variable.assign(value.contiguous())

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        with self.keras.device(self.device):
            return cast(Tensor, self.layer(x.transpose(0, 1), training=self.training)).transpose(0, 1)

    def gradients(self) -> list[list[Tensor | None]]:
        kernel, recurrent, bias = [variable.value.grad for variable in self.layer.trainable_variables]
        return [[kernel.t(), recurrent.t(), bias, bias]]


def _cannot(case: Case, device: str) -> str:
    return one_layer(case) if find_spec("keras") else "keras is not installed"


SIMPLE_RNN = Contender(
    "Keras SimpleRNN",
    Keras,
    kinds=("recurrent_dropout",),
    instead={"hidden_dropout": "recurrent_dropout"},
    cannot=_cannot,
    slow=True,
)
