"""What no implementation can beat: the matrix products alone, and a device's measured rates of copying and multiplying."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .cases import Case
from .timer import Stopwatch


class Products(nn.Module):
    """The bare matrix products of a case: no activation, no mask, no autograd, outputs preallocated.

    Forward: one for the input, one a step. Backward: one a step, then one each for dW_hh and dW_ih, and dx where needed.
    The states and gradients are random numbers; a product overwrites what the step before left, so that nothing grows.
    """

    def __init__(self, case: Case, rnn: nn.RNN) -> None:
        super().__init__()
        self.train_step = case.direction == "train"
        self.layers = [
            _Layer(case, number, [weight.detach() for weight in group]) for number, group in enumerate(rnn.all_weights)
        ]

    @torch.no_grad()
    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        for layer in self.layers:
            layer.forward(x)
        if self.train_step:
            for layer in reversed(self.layers):
                layer.backward(x)
        return self.layers[-1].a


class _Layer:
    def __init__(self, case: Case, number: int, weights: list[Tensor]) -> None:
        self.w_ih, self.w_hh = weights[:2]
        self.needs_dx = case.input_grad or number >= case.directions
        rows = case.T, case.B
        self.a, self.da = (self.w_ih.new_empty(*rows, case.H) for _ in range(2))
        self.h, self.g = (torch.randn_like(self.a) for _ in range(2))
        self.x = torch.randn(*rows, self.w_ih.shape[1], dtype=self.w_ih.dtype, device=self.w_ih.device)
        self.dx = torch.empty_like(self.x) if self.needs_dx else None
        self.dw_ih, self.dw_hh = torch.empty_like(self.w_ih), torch.empty_like(self.w_hh)

    def forward(self, x: Tensor) -> None:
        x = x if x.shape == self.x.shape else self.x
        torch.mm(x.flatten(0, 1), self.w_ih.t(), out=self.a.flatten(0, 1))
        w = self.w_hh.t()
        for a, h in zip(self.a.unbind(0), self.h.unbind(0), strict=True):
            a.addmm_(h, w)

    def backward(self, x: Tensor) -> None:
        x = x if x.shape == self.x.shape else self.x
        for da, a, g in zip(self.da.unbind(0), self.h.unbind(0), self.g.unbind(0), strict=True):
            torch.addmm(g, a, self.w_hh, out=da)
        da = self.da.flatten(0, 1)
        torch.mm(da.t(), self.h.flatten(0, 1), out=self.dw_hh)
        torch.mm(da.t(), x.flatten(0, 1), out=self.dw_ih)
        if self.dx is not None:
            torch.mm(da, self.w_ih, out=self.dx.flatten(0, 1))


def measured_rates(device: str, watch: Stopwatch) -> dict[str, float]:
    """Bytes a second of a copy (read and write) and operations a second of a square product, by dtype; best of several."""

    def best(run: Callable[[], object], runs: int = 5) -> float:
        return min(watch.time(lambda number: run(), number) for number in range(runs))

    big = device == "cuda"
    source = torch.randn(2**28 if big else 2**24, device=device)
    target = torch.empty_like(source)
    rates = {"copy_bytes_per_s": 2 * source.nbytes / best(partial(target.copy_, source))}
    size = 8192 if big else 1024
    for name in ("fp32", "tf32", "bf16", "fp16") if big else ("fp32",):
        set_precision(name)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        seconds = best(partial(torch.mm, a, b, out=torch.empty_like(a)))
        rates[f"{name}_flops_per_s"] = 2 * size**3 / seconds
    set_precision("fp32")
    return rates


def set_precision(dtype: str) -> None:
    """fp32 products in ieee arithmetic, or in tf32 where the dtype says so."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
