"""What must hold of a strategy's forward and backward over a sequence; tests give it the real ones and broken ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

from . import stream


class Case(NamedTuple):
    """One layer and direction. Two thresholds, of 65536: hidden and recurrent; None is no mask."""

    T: int = 3
    B: int = 3
    H: int = 384
    dtype: torch.dtype = torch.float32
    hidden: int | None = 16384
    recurrent: int | None = None
    nonlinearity: str = "tanh"
    mask_scope: str = "step"
    reverse: bool = False
    tf32: bool = False
    batch_sizes: tuple[int, ...] | None = None

    @property
    def options(self) -> dict:
        named = {name: getattr(self, name) for name in ("nonlinearity", "mask_scope", "reverse", "tf32")}
        return named | ({} if self.batch_sizes is None else {"batch_sizes": self.batch_sizes})

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.batch_sizes or (self.B,) * self.T

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.T, self.B, self.H) if self.batch_sizes is None else (sum(self.batch_sizes), self.H)

    @property
    def scales(self) -> tuple[float, float]:
        return tuple(1.0 if threshold is None else stream.scale(threshold) for threshold in (self.hidden, self.recurrent))


class Inputs(NamedTuple):
    xw: Tensor
    h0: Tensor
    w_hh: Tensor
    grad_output: Tensor
    grad_h_n: Tensor
    keeps: list  # booleans (rows, H) or None: hidden, recurrent


def inputs(case: Case) -> Inputs:
    """Of the case's dtype, on the CPU. W_hh contracts, dropout's scales included, so that errors do not grow with T."""
    generator = torch.Generator().manual_seed(case.B * 1000 + case.H)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * size).to(case.dtype)

    B, H = case.sizes[0], case.H
    size = 0.7 / H**0.5 / max(1.0, *case.scales)
    rows = B * len(case.sizes) if case.mask_scope == "step" else B
    keeps = [
        None if threshold is None else stream.keep(-7, rows, H, threshold, kind << 32)
        for kind, threshold in enumerate((case.hidden, case.recurrent))
    ]
    return Inputs(normal(*case.shape), normal(B, H), normal(H, H, size=size), normal(*case.shape), normal(B, H), keeps)


def pack(keep: Tensor | None) -> Tensor | None:
    if keep is None:
        return None
    words = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 32)).view(len(keep), -1, 32)
    return (words.long() << torch.arange(32)).sum(2).to(torch.int32)


def oracle(case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """output, grad_a and grad_h0 by the obvious loop, in float64."""
    xw, h0, w = (v.double() for v in given[:3])
    xw, h0 = xw.requires_grad_(), h0.requires_grad_()
    steps = list(zip(range(len(case.sizes)), xw.view(-1, case.H).split(case.sizes), strict=True))
    outputs, h, (hidden_scale, recurrent_scale) = [h0] * len(steps), h0, case.scales
    hidden, recurrent = given.keeps
    for t, x in steps[::-1] if case.reverse else steps:
        n, first = len(x), t * len(h0) if case.mask_scope == "step" else 0
        r = h[:n] if recurrent is None else torch.where(recurrent[first:first + n], h[:n] * recurrent_scale, 0.0)
        y = getattr(torch, case.nonlinearity)(x + r @ w.t())
        y = y if hidden is None else torch.where(hidden[first:first + n], y * hidden_scale, 0.0)
        outputs[t], h = y, torch.cat([y, h[n:]])
    output = torch.cat(outputs).view(case.shape)
    grads = torch.autograd.grad([output, h], [xw, h0], [given.grad_output.double(), given.grad_h_n.double()])
    return output.detach(), *grads


def run(strategy, case: Case, given: Inputs, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """output, grad_a and grad_h0 of the strategy, on the CPU."""
    xw, h0, w, grad_output, grad_h_n = (v.to(device) for v in given[:5])
    bits = [None if keep is None else pack(keep).to(device) for keep in given.keeps]
    output = strategy.forward(xw, h0, w, *bits, *case.scales, **case.options)
    grad_a, grad_h0 = strategy.backward(grad_output, grad_h_n, output, w, *bits, *case.scales, **case.options)
    assert output.shape == grad_a.shape == xw.shape and grad_h0.shape == h0.shape
    assert output.dtype == grad_a.dtype == grad_h0.dtype == case.dtype
    return output.cpu(), grad_a.cpu(), grad_h0.cpu()


def against_float64(strategy, case: Case, device: str) -> None:
    """Output and gradients near the oracle's, and exact zeros where the hidden mask drops."""
    given = inputs(case)
    got, expected = run(strategy, case, given, device), oracle(case, given)
    cut = 2 if case.dtype == torch.bfloat16 and backend() == "interpreter" else 1  # it truncates to bf16
    bound = cut * SEQUENCE["tf32" if case.tf32 else case.dtype]
    for name, a, b in zip(("output", "grad_a", "grad_h0"), got, expected, strict=True):
        largest = b.abs().max().item()
        worst = (a.double() - b).abs().max().item()  # NaN is not below anything
        assert worst <= bound * max(1.0, largest), f"{name} differs by {worst:.3g}, largest element {largest:.3g}"
    if given.keeps[0] is not None:
        dropped = ~rows_of(case, given.keeps[0])
        assert (got[0].view(-1, case.H)[dropped] == 0).all() and (got[1].view(-1, case.H)[dropped] == 0).all()


def rows_of(case: Case, keep: Tensor) -> Tensor:
    """The mask's rows as the data has them, (rows of data, H)."""
    B, step = case.sizes[0], case.mask_scope == "step"
    return torch.cat([keep[t * B * step:][:n] for t, n in enumerate(case.sizes)])


def gradient_has_the_mask_of_the_output(strategy, case: Case, device: str) -> None:
    """Every kept unit of every step passes its gradient, and no other."""
    given = inputs(case)
    given.grad_output.fill_(8.0)  # grad_h_n cannot undo it
    given.xw.mul_(0.3)  # no tanh rounds to 1, whose slope is 0
    output, grad_a, _ = run(strategy, case, given, device)
    keep = rows_of(case, given.keeps[0])
    assert torch.equal(output.view(-1, case.H) != 0, keep), "the output's mask is not the given one"
    assert torch.equal(grad_a.view(-1, case.H) != 0, keep), "the gradient's mask is not the given one"


def not_a_number(strategy, case: Case, device: str) -> None:
    """NaN stays in its row, stays NaN where kept, is 0 where dropped, forward and backward; tanh = 0 passes a gradient."""
    given = inputs(case)
    given.xw[1, 0] = float("nan")
    given.xw[0, 1], given.h0[1] = 0.0, 0.0
    given.grad_output[-1, 2] = float("nan")
    output, grad_a, _ = run(strategy, case, given, device)
    keep = given.keeps[0].view(case.T, case.B, case.H)
    assert (output[~keep] == 0).all() and (grad_a[~keep] == 0).all()
    assert torch.equal(output[1, 0].isnan(), keep[1, 0]) and not output[:, 1:].isnan().any()
    assert grad_a[1, 0][keep[1, 0]].isnan().all() and not grad_a[:, 1].isnan().any()
    assert torch.equal(grad_a[-1, 2].isnan(), keep[-1, 2])
    assert (output[0, 1] == 0).all() and torch.equal(grad_a[0, 1] != 0, keep[0, 1])


def relu_stops_not_a_number(strategy, case: Case, device: str) -> None:
    """A unit that relu made 0, dropped or not, has gradient 0 whatever comes in, as in PyTorch; no other has."""
    case = case._replace(nonlinearity="relu")
    given = inputs(case)
    given.grad_output[-1] = float("nan")
    output, grad_a, _ = run(strategy, case, given, device)
    assert torch.equal(grad_a[-1].isnan(), output[-1] > 0)
    assert (grad_a[-1][output[-1] == 0] == 0).all()
