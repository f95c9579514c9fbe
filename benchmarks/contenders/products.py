"""What no implementation can beat that calls the same library: the matrix products of a layer alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cases import Case
from .base import LIMIT, Contender, Model, weights


class Products(Model):
    """The bare matrix products of a case: no activation, no mask, no autograd, outputs preallocated.

    Forward: one for the input, one a step. Backward: one a step, then one each for dW_hh and dW_ih, and dx where needed.
    The states and gradients are random numbers, and every product overwrites what the call before left: nothing grows.
    """

    def __init__(self, case: Case, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.has_backward = case.pass_ == "train"
        self.layers = [_Layer(case, number, group) for number, group in enumerate(weights(rnn))]

    @torch.no_grad()
    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        for layer in self.layers:
            layer.forward(x)
        if self.has_backward:
            for layer in reversed(self.layers):
                layer.backward(x)
        return self.layers[-1].a


class _Layer:
    """a: the pre-activations (T, B, G*H) of G gates; h: the states; g, d and dh: gradients of the output, of a and of h."""

    def __init__(self, case: Case, number: int, weights: Sequence[Tensor]) -> None:
        self.w_ih, self.w_hh = weights[:2]
        gates, inputs = self.w_ih.shape
        self.a, self.d = (self._random(case, gates) for _ in range(2))
        self.h, self.g, self.dh = (self._random(case, case.H) for _ in range(3))
        self.x = self._random(case, inputs)
        self.dx = torch.empty_like(self.x) if case.input_grad or number >= case.directions else None
        self.dw_ih, self.dw_hh = torch.empty_like(self.w_ih), torch.empty_like(self.w_hh)

    def _random(self, case: Case, columns: int) -> Tensor:
        return torch.randn(case.T, case.B, columns, dtype=self.w_ih.dtype, device=self.w_ih.device)

    def forward(self, x: Tensor) -> None:
        x = x if x.shape == self.x.shape else self.x
        torch.mm(x.flatten(0, 1), self.w_ih.t(), out=self.a.flatten(0, 1))
        w = self.w_hh.t()
        for a, h in zip(self.a.unbind(0), self.h.unbind(0), strict=True):
            a.addmm_(h, w)

    def backward(self, x: Tensor) -> None:
        x = x if x.shape == self.x.shape else self.x
        for dh, d, g in zip(self.dh.unbind(0), self.d.unbind(0), self.g.unbind(0), strict=True):
            torch.addmm(g, d, self.w_hh, out=dh)
        d = self.d.flatten(0, 1)
        torch.mm(d.t(), self.h.flatten(0, 1), out=self.dw_hh)
        torch.mm(d.t(), x.flatten(0, 1), out=self.dw_ih)
        if self.dx is not None:
            torch.mm(d, self.w_ih, out=self.dx.flatten(0, 1))


PRODUCTS = Contender(LIMIT, Products)
