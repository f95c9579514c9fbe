"""Keras, where it is installed."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..cases import Case
from .base import Contender, Model, one_layer, weights

LAYERS = {"RNN": "SimpleRNN", "LSTM": "LSTM", "GRU": "GRU"}
ORDER = {"RNN": [0], "LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2]}  # of torch.nn's gates in Keras' weights, and the other way round


class Keras(Model):
    """keras.layers' SimpleRNN, LSTM or GRU on PyTorch.

    x becomes batch-first. recurrent_dropout has one mask a sequence, that of an LSTM or GRU one for each gate.
    """

    def __init__(self, case: Case, rnn: nn.RNNBase) -> None:
        super().__init__()
        os.environ["KERAS_BACKEND"] = "torch"
        self.keras: Any = importlib.import_module("keras")
        if self.keras.backend.backend() != "torch":
            raise RuntimeError(f"Keras runs on {self.keras.backend.backend()}")
        self.case, group = case, weights(rnn)[0]
        self.device = {"cpu": "cpu", "cuda": "cuda:0"}[group[0].device.type]
        p = case.rate("recurrent_dropout") or case.rate("hidden_dropout")
        options = {"return_sequences": True, "recurrent_dropout": p, "dtype": str(group[0].dtype).removeprefix("torch.")}
        with self.keras.device(self.device):
            self.layer = getattr(self.keras.layers, LAYERS[case.cell])(case.H, **options)
            self.layer.build((None, None, case.I))
            w_ih, w_hh, b_ih, b_hh = map(self._reordered, group)
            bias = torch.stack([b_ih, b_hh]) if case.cell == "GRU" else b_ih + b_hh
            for variable, value in zip(self.layer.trainable_variables, [w_ih.t(), w_hh.t(), bias], strict=True):
                variable.assign(value.contiguous())

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        with self.keras.device(self.device):
            return cast(Tensor, self.layer(x.transpose(0, 1), training=self.training)).transpose(0, 1)

    def gradients(self) -> list[list[Tensor | None]]:
        kernel, recurrent, bias = [variable.value.grad for variable in self.layer.trainable_variables]
        biases = bias if bias.dim() == 2 else [bias, bias]
        return [[self._reordered(gradient) for gradient in (kernel.t(), recurrent.t(), *biases)]]

    def _reordered(self, rows: Tensor) -> Tensor:
        gates = rows.chunk(self.case.gates)
        return torch.cat([gates[gate] for gate in ORDER[self.case.cell]])


def _cannot(case: Case, device: str) -> str:
    return one_layer(case) if find_spec("keras") else "keras is not installed"


KERAS = Contender(
    "Keras",
    Keras,
    kinds=("recurrent_dropout",),
    instead={"hidden_dropout": "recurrent_dropout"},
    cannot=_cannot,
    slow=True,
)
