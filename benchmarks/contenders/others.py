"""Adapters for libraries that may be installed, written from their public interfaces. None is a dependency."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
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


class _Projected(Model):
    """A library's recurrence after the input product of nn.Linear."""

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = weights(rnn)[0]
        self.w_ih, self.w_hh, self.bias = (nn.Parameter(w.clone()) for w in (w_ih, w_hh, b_ih + b_hh))

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        return self.recurrence(nn.functional.linear(x, self.w_ih, self.bias))

    def recurrence(self, projected: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [[self.w_ih, self.w_hh, self.bias, self.bias]]


class FlashRNN(_Projected):
    """flashrnn(Wx (B, T, gates, heads, D), R (gates, heads, D, D), b (gates, heads, D)) -> states (S, B, T, heads, D)."""

    def recurrence(self, projected: Tensor) -> Tensor:
        from flashrnn import flashrnn  # type: ignore[import-not-found]

        H, dtype = len(self.bias), str(projected.dtype).removeprefix("torch.")
        wx, bias = projected.transpose(0, 1)[:, :, None, None, :], torch.zeros_like(self.bias).view(1, 1, H)
        backend = "cuda" if dtype == "float32" else "cuda_fused"
        states, _ = flashrnn(wx, self.w_hh.view(1, 1, H, H), bias, function="elman", backend=backend, dtype=dtype)
        return states[0, :, :, 0].transpose(0, 1)


class Xma(_Projected):
    """rnn(input (B, S, heads, D), weight (heads, D, D)): h_t = tanh(h_{t-1} W + x_t), with one head."""

    def recurrence(self, projected: Tensor) -> Tensor:
        from xma.functional import rnn  # type: ignore[import-not-found]

        output = rnn(input=projected.transpose(0, 1).unsqueeze(2), weight=self.w_hh.t().unsqueeze(0), input_state=None)[0]
        return output.squeeze(2).transpose(0, 1)


def _needs(package: str, cuda: bool = True) -> Callable[[Case, str], str]:
    def cannot(case: Case, device: str) -> str:
        if find_spec(package) is None:
            return f"{package} is not installed"
        return f"{package} needs CUDA" if cuda and device != "cuda" else one_layer(case)

    return cannot


INSTALLABLE = [
    Contender("Keras SimpleRNN", Keras, ("recurrent_dropout",), cannot=_needs("keras", cuda=False), slow=True),
    Contender("FlashRNN", FlashRNN, cannot=_needs("flashrnn"), slow=True),  # it compiles and tunes itself for each shape
    Contender("xma", Xma, cannot=_needs("xma")),
]
