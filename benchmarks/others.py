"""Adapters for libraries that may be installed, written from their public interfaces. None is a dependency."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from .cases import Case
from .providers import Model, Provider, Unfit, weights


def adapters() -> list[Provider]:
    return [
        Provider(
            "Keras SimpleRNN",
            Keras,
            "recurrent",
            "keras.layers.SimpleRNN(recurrent_dropout), PyTorch backend; one mask a sequence",
            _one_layer_of("keras"),
            slow=True,
        ),
        Provider(
            "FlashRNN",
            FlashRNN,
            "none",
            "flashrnn, function 'elman', no dropout; it compiles and tunes itself for each shape",
            _one_layer_of("flashrnn", cuda=True),
            slow=True,
        ),
        Provider(
            "haste IndRNN",
            Haste,
            "none",
            "haste_pytorch has no Elman layer: IndRNN, whose recurrent matrix is diagonal; no dropout",
            _one_layer_of("haste_pytorch", cuda=True),
        ),
        Provider("xma", Xma, "none", "xma.functional.rnn with one head, no dropout", _one_layer_of("xma", cuda=True)),
    ]


def _one_layer_of(package: str, cuda: bool = False) -> Unfit:
    def unfit(case: Case, device: str) -> str:
        if find_spec(package) is None:
            return f"{package} is not installed"
        if cuda and device != "cuda":
            return f"{package} needs CUDA"
        return "" if case.layers == 1 and not case.bidirectional else "the adapter runs one layer in one direction"

    return unfit


class Keras(Model):
    """x becomes batch-first. Keras has dropout of the recurrent input, one mask a sequence: it gets the case's rate."""

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        os.environ["KERAS_BACKEND"] = "torch"
        keras: Any = importlib.import_module("keras")
        if keras.backend.backend() != "torch":
            raise RuntimeError(f"Keras runs on {keras.backend.backend()}")
        w_ih, w_hh, b_ih, b_hh = weights(rnn)[0]
        self.device = w_ih.device.type
        self.keras = keras
        p = case.recurrent_dropout or case.hidden_dropout
        with keras.device(self._device()):
            dtype = str(w_ih.dtype).removeprefix("torch.")
            self.layer = keras.layers.SimpleRNN(case.H, return_sequences=True, recurrent_dropout=p, dtype=dtype)
            self.layer.build((None, None, case.I))
            found = [w_ih.t(), w_hh.t(), b_ih + b_hh]
            for variable, value in zip(self.layer.trainable_variables, found, strict=True):
                variable.assign(value.contiguous())

    def _device(self) -> str:
        return {"cpu": "cpu", "cuda": "cuda:0"}[self.device]

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        with self.keras.device(self._device()):
            return cast(Tensor, self.layer(x.transpose(0, 1), training=self.training)).transpose(0, 1)

    def gradients(self) -> list[list[Tensor | None]]:
        kernel, recurrent, bias = [variable.value.grad for variable in self.layer.trainable_variables]
        return [[kernel.t(), recurrent.t(), bias, bias]]


class _Projected(Model):
    """A library's recurrence after the input product of nn.Linear."""

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = weights(rnn)[0]
        self.w_ih, self.w_hh = nn.Parameter(w_ih.clone()), nn.Parameter(w_hh.clone())
        self.bias = nn.Parameter(b_ih + b_hh)
        self.case = case

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        return self.recurrence(nn.functional.linear(x, self.w_ih, self.bias))

    def recurrence(self, xw: Tensor) -> Tensor:
        raise NotImplementedError

    def gradients(self) -> list[list[Tensor | None]]:
        return [[self.w_ih.grad, self.w_hh.grad, self.bias.grad, self.bias.grad]]


class FlashRNN(_Projected):
    """flashrnn(Wx (B, T, gates, heads, D), R (gates, heads, D, D), b (gates, heads, D)) -> states (S, B, T, heads, D)."""

    def recurrence(self, xw: Tensor) -> Tensor:
        from flashrnn import flashrnn  # type: ignore[import-not-found]

        H, name = self.case.H, str(xw.dtype).removeprefix("torch.")
        wx = xw.transpose(0, 1)[:, :, None, None, :]
        backend = "cuda_fused" if xw.dtype != torch.float32 else "cuda"
        states, _ = flashrnn(
            wx,
            self.w_hh.view(1, 1, H, H),
            torch.zeros_like(self.bias).view(1, 1, H),
            function="elman",
            backend=backend,
            dtype=name,
        )
        return states[0, :, :, 0].transpose(0, 1)


class Xma(_Projected):
    """rnn(input (B, S, heads, D), weight (heads, D, D)): h_t = tanh(h_{t-1} W + x_t), with one head."""

    def recurrence(self, xw: Tensor) -> Tensor:
        from xma.functional import rnn  # type: ignore[import-not-found]

        output = rnn(input=xw.transpose(0, 1).unsqueeze(2), weight=self.w_hh.t().unsqueeze(0), input_state=None)[0]
        return output.squeeze(2).transpose(0, 1)


class Haste(Model):
    """haste_pytorch.IndRNN with the diagonal of w_hh; equal to nn.RNN only where w_hh is diagonal."""

    diagonal = True

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        haste = importlib.import_module("haste_pytorch")
        w_ih, w_hh, b_ih, b_hh = weights(rnn)[0]
        self.rnn = haste.IndRNN(case.I, case.H).to(w_ih.device, w_ih.dtype)
        with torch.no_grad():
            self.rnn.kernel.copy_(w_ih.t())
            self.rnn.recurrent_scale.copy_(w_hh.diagonal())
            self.rnn.bias.copy_(b_ih + b_hh)

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        return self.rnn(x)[0]

    def gradients(self) -> list[list[Tensor | None]]:
        bias = self.rnn.bias.grad
        return [[self.rnn.kernel.grad.t(), torch.diag(self.rnn.recurrent_scale.grad), bias, bias]]
