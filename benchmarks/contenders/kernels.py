"""The CUDA kernels of others, where they are installed: haste and FlashRNN.

Both were checked with the plain PyTorch loops that these packages also have; on a GPU neither has run here yet. haste has
DropConnect, which stands in for hidden dropout, and zoneout; FlashRNN has no dropout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..cases import Case
from .base import Contender, Model, lacks, one_layer, weights


class Haste(Model):
    """haste_pytorch's LSTM or GRU."""

    def __init__(self, case: Case, rnn: nn.RNNBase) -> None:
        super().__init__()
        dropouts = {"dropout": case.rate("weight_dropout") or case.rate("hidden_dropout"), "zoneout": case.rate("zoneout")}
        self.layer = getattr(importlib.import_module("haste_pytorch"), case.cell)(case.I, case.H, **dropouts)
        self.layer.from_native_weights(*weights(rnn)[0])
        self.halves = 2 if case.cell == "LSTM" else 1  # that it makes of its one bias

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        return self.layer(x)[0]

    def gradients(self) -> list[list[Tensor | None]]:
        values = {name: parameter.detach().clone() for name, parameter in self.layer.named_parameters()}
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(parameter.grad)
            w_ih, w_hh, b_ih, b_hh = self.layer.to_native_weights()
            self.layer.load_state_dict(values)
        return [[w_ih, w_hh, b_ih * self.halves, b_hh * self.halves]]


class FlashRNN(Model):
    """flashrnn of one head; the product with the input is PyTorch's. The weights are put in its order at each call."""

    def __init__(self, case: Case, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.parameters_, self.case = nn.ParameterList(weight.clone() for weight in weights(rnn)[0]), case
        self.function = importlib.import_module("flashrnn").flashrnn

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = self.parameters_
        gated, shape = b_ih + b_hh, (-1, 1, self.case.H)
        if self.case.cell == "GRU":  # W_hn h + b_hn, r, z, and what the input adds to n
            (b_r, b_z, _), b_in, b_hn = gated.chunk(3), b_ih.chunk(3)[2], b_hh.chunk(3)[2]
            w_hh, gated = w_hh.roll(self.case.H, 0), torch.cat([b_hn, b_r, b_z, b_in])
        of_x = nn.functional.linear(x, w_ih).unflatten(-1, shape).transpose(0, 1)
        backend = "cuda" if x.dtype == torch.float32 else "cuda_fused"
        options = {"function": self.case.cell.lower(), "backend": backend, "dtype": str(x.dtype).removeprefix("torch.")}
        states, _ = self.function(of_x, w_hh.view(*shape, self.case.H), gated.view(shape), **options)
        return states[0].squeeze(2).transpose(0, 1)

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(self.parameters_)]


def _cannot(package: str, kinds: Sequence[str]) -> Callable[[Case, str], str]:
    def cannot(case: Case, device: str) -> str:
        if device != "cuda" or not find_spec(package):
            return f"{package} is not installed" if device == "cuda" else "it needs CUDA"
        if case.cell == "RNN" or case.pass_ == "inference":
            return "only its LSTM and GRU are timed, in training"
        return one_layer(case) or lacks(case, kinds)

    return cannot


HASTE = Contender(
    "haste",
    Haste,
    kinds=("weight_dropout", "zoneout"),
    instead={"hidden_dropout": "weight_dropout"},
    cannot=_cannot("haste_pytorch", ("hidden_dropout", "weight_dropout", "zoneout")),
)
FLASH_RNN = Contender("FlashRNN, no dropout", FlashRNN, cannot=_cannot("flashrnn", ("hidden_dropout",)))
