"""What must hold of a strategy's forward and backward over a sequence; tests give it the real ones and broken ones."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from rnndrop import reference
from rnndrop.cell import CELLS, Weights
from rnndrop.kernels import resident as both_directions
from rnndrop.kernels.launch import MaskBits
from rnndrop.mask import Mask
from rnndrop.steps import Steps
from tests import stream
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

STEP, ONCE = "step", "sequence"  # scopes of a mask
KINDS = "hidden", "recurrent", "zoneout"


class Case(NamedTuple):
    """One layer and direction. Thresholds, of 65536, of the masks; None is no mask. Scopes of the hidden and the recurrent."""

    T: int = 3
    B: int = 3
    H: int = 384
    dtype: torch.dtype = torch.float32
    hidden: int | None = 16384
    recurrent: int | None = None
    zoneout: int | None = None
    cell: str = "RNN_TANH"
    scopes: tuple[str, str] = (STEP, STEP)
    reverse: bool = False
    tf32: bool = False
    sizes: tuple[int, ...] | None = None  # of packed data

    @property
    def options(self) -> dict:
        named = {"cell": self.cell, "reverse": self.reverse, "tf32": self.tf32}
        return named if self.sizes is None else named | {"sizes": self.sizes}

    @property
    def step_sizes(self) -> tuple[int, ...]:
        return self.sizes or (self.B,) * self.T

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.T, self.B, self.H) if self.sizes is None else (sum(self.sizes), self.H)

    @property
    def thresholds(self) -> dict[str, int]:
        """By kind of mask."""
        return {kind: value for kind in KINDS if (value := getattr(self, kind)) is not None}

    @property
    def scales(self) -> dict[str, float]:
        return {k: 1.0 if k == "zoneout" else stream.scale_of(threshold) for k, threshold in self.thresholds.items()}

    def scope(self, kind: str) -> str:
        return dict(zip(KINDS, (*self.scopes, STEP), strict=True))[kind]


def _forward(x: Tensor, h_0: Tensor, w: Tensor, masks: dict, **options) -> Tensor:
    bits = {kind: MaskBits(mask.bits.unsqueeze(0), mask.scale) for kind, mask in masks.items()}
    return both_directions.forward(x.unsqueeze(-2), h_0.unsqueeze(0), w.unsqueeze(0), bits, **options).squeeze(-2)


def _backward(grad: Tensor, grad_h_n: Tensor | None, y: Tensor, w: Tensor, masks: dict, **options) -> tuple[Tensor, Tensor]:
    bits = {kind: MaskBits(mask.bits.unsqueeze(0), mask.scale) for kind, mask in masks.items()}
    grad_h_n = None if grad_h_n is None else grad_h_n.unsqueeze(0)
    gates, grad_h_0 = both_directions.backward(grad.unsqueeze(-2), grad_h_n, y.unsqueeze(-2), w.unsqueeze(0), bits, **options)
    return gates.squeeze(-2), grad_h_0.squeeze(0)


# `resident` takes both directions at once; this is one, as the other strategies take it.
resident = SimpleNamespace(
    forward=_forward,
    backward=_backward,
    forward_kernel=both_directions.forward_kernel,
    backward_kernel=both_directions.backward_kernel,
)


class Inputs(NamedTuple):
    input_projection: Tensor
    h_0: Tensor
    w_hh: Tensor
    grad_output: Tensor
    grad_h_n: Tensor
    keeps: dict  # booleans (rows, H), by kind


def inputs(case: Case) -> Inputs:
    """Of the case's dtype, on the CPU. W_hh contracts, dropout's scales included, so that errors do not grow with T."""
    generator = torch.Generator().manual_seed(case.B * 1000 + case.H)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * size).to(case.dtype)

    B, H = case.step_sizes[0], case.H
    size = 0.7 / H**0.5 / max([1.0, *case.scales.values()])
    rows = {STEP: sum(case.step_sizes), ONCE: B}
    keeps = {
        kind: stream.keep(-7, rows[case.scope(kind)], H, threshold, stream.stream_of(kind))
        for kind, threshold in case.thresholds.items()
    }
    return Inputs(normal(*case.shape), normal(B, H), normal(H, H, size=size), normal(*case.shape), normal(B, H), keeps)


def masks(case: Case, keeps: dict, device: str) -> dict[str, MaskBits]:
    """As the launchers take them."""
    return {kind: MaskBits(stream.pack(keep).to(device), case.scales[kind]) for kind, keep in keeps.items()}


def oracle(case: Case, given: Inputs, others: dict[str, Mask] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """output, grad_gates and grad_h_0 by the plain loop in float64: what has been projected already, W_ih leaves as it is.
    `others` are masks besides the case's."""
    x, h_0 = (v.double().requires_grad_() for v in given[:2])
    weights = Weights(torch.eye(case.H, dtype=torch.float64), given.w_hh.double(), None, None)
    masks = {kind: Mask(keep, case.scales[kind]) for kind, keep in given.keeps.items()} | (others or {})
    sizes = None if case.sizes is None else torch.tensor(case.sizes)
    steps = Steps(len(case.step_sizes), case.step_sizes[0], sizes, case.reverse)
    output, (h_n,) = reference.layer(x, [h_0], weights, masks, steps, CELLS[case.cell])
    grads = torch.autograd.grad([output, h_n], [x, h_0], [given.grad_output.double(), given.grad_h_n.double()])
    return output.detach(), *grads


def run(strategy, case: Case, given: Inputs, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """output, grad_gates and grad_h_0 of the strategy, on the CPU."""
    x, h_0, w, grad_output, grad_h_n = (v.to(device) for v in given[:5])
    made = masks(case, given.keeps, device)
    output = strategy.forward(x, h_0, w, made, **case.options)
    grad_gates, grad_h_0 = strategy.backward(grad_output, grad_h_n, output, w, made, **case.options)
    assert output.shape == grad_gates.shape == x.shape and grad_h_0.shape == h_0.shape
    assert output.dtype == grad_gates.dtype == grad_h_0.dtype == case.dtype
    assert output.is_contiguous() and grad_gates.is_contiguous() and grad_h_0.is_contiguous()
    return output.cpu(), grad_gates.cpu(), grad_h_0.cpu()


def against_float64(strategy, case: Case, device: str) -> None:
    """Output and gradients near the oracle's, and exact zeros where the hidden mask drops."""
    given = inputs(case)
    got, expected = run(strategy, case, given, device), oracle(case, given)
    cut = 2 if case.dtype == torch.bfloat16 and backend() == "interpreter" else 1  # it truncates to bf16
    bound = cut * SEQUENCE["tf32" if case.tf32 else case.dtype]
    for name, a, b in zip(("output", "grad_gates", "grad_h_0"), got, expected, strict=True):
        largest = b.abs().max().item()
        worst = (a.double() - b).abs().max().item()  # NaN is not below anything
        assert worst <= bound * max(1.0, largest), f"{name} differs by {worst:.3g}, largest element {largest:.3g}"
    if "hidden" in given.keeps:
        dropped = ~rows_of(case, given.keeps["hidden"])
        assert (got[1].view(-1, case.H)[dropped] == 0).all()
        assert "zoneout" in given.keeps or (got[0].view(-1, case.H)[dropped] == 0).all()


def rows_of(case: Case, keep: Tensor) -> Tensor:
    """The hidden mask's rows as the data has them, (rows of data, H)."""
    return keep if case.scopes[0] == STEP else torch.cat([keep[:n] for n in case.step_sizes])


def gradient_has_the_mask_of_the_output(strategy, case: Case, device: str) -> None:
    """Every kept unit of every step passes its gradient, and no other."""
    given = inputs(case)
    given.grad_output.fill_(8.0)  # grad_h_n cannot undo it
    given.input_projection.mul_(0.3)  # no tanh rounds to 1, whose slope is 0
    output, grad_gates, _ = run(strategy, case, given, device)
    keep = rows_of(case, given.keeps["hidden"])
    assert torch.equal(output.view(-1, case.H) != 0, keep), "the output's mask is not the given one"
    assert torch.equal(grad_gates.view(-1, case.H) != 0, keep), "the gradient's mask is not the given one"


def not_a_number(strategy, case: Case, device: str) -> None:
    """NaN stays in its row, stays NaN where kept, is 0 where dropped, forward and backward; tanh = 0 passes a gradient."""
    given = inputs(case)
    given.input_projection[1, 0] = float("nan")
    given.input_projection[0, 1], given.h_0[1] = 0.0, 0.0
    given.grad_output[-1, 2] = float("nan")
    output, grad_gates, _ = run(strategy, case, given, device)
    keep = given.keeps["hidden"].view(case.T, case.B, case.H)
    assert (output[~keep] == 0).all() and (grad_gates[~keep] == 0).all()
    assert torch.equal(output[1, 0].isnan(), keep[1, 0]) and not output[:, 1:].isnan().any()
    assert grad_gates[1, 0][keep[1, 0]].isnan().all() and not grad_gates[:, 1].isnan().any()
    assert torch.equal(grad_gates[-1, 2].isnan(), keep[-1, 2])
    assert (output[0, 1] == 0).all() and torch.equal(grad_gates[0, 1] != 0, keep[0, 1])


def relu_stops_not_a_number(strategy, case: Case, device: str) -> None:
    """A unit that relu made 0, dropped or not, has gradient 0 whatever comes in, as in PyTorch; no other has."""
    case = case._replace(cell="RNN_RELU")
    given = inputs(case)
    given.grad_output[-1] = float("nan")
    output, grad_gates, _ = run(strategy, case, given, device)
    assert torch.equal(grad_gates[-1].isnan(), output[-1] > 0)
    assert (grad_gates[-1][output[-1] == 0] == 0).all()


def expectation_of_zoneout(strategy, case: Case, device: str) -> None:
    """The output in evaluation, of a share that no mask has; with the masks that a case has besides."""
    given, old_share = inputs(case), 0.3125
    x, h_0, w = (v.to(device) for v in given[:3])
    made = masks(case, given.keeps, device) | {"zoneout": MaskBits(torch.empty(0, 0, dtype=torch.int32), old_share)}
    output = strategy.forward(x, h_0, w, made, **case.options).cpu()
    expected = oracle(case, given, {"zoneout": Mask(torch.empty(0, case.H), old_share)})[0]
    cut = 2 if case.dtype == torch.bfloat16 and backend() == "interpreter" else 1  # it truncates to bf16
    assert (output.double() - expected).abs().max() <= cut * SEQUENCE[case.dtype] * max(1.0, expected.abs().max().item())


def zoneout_chooses(strategy, case: Case, device: str) -> None:
    """A NaN of the state that is not taken goes nowhere, forward and backward; nothing goes through W_hh here."""
    case = case._replace(hidden=None, recurrent=65536)
    given = inputs(case)
    given.input_projection[0, :, ::2] = float("nan")
    given.h_0[:, 1::2] = float("nan")
    given.grad_output[0] = float("nan")
    new = given.keeps["zoneout"][: case.B]
    output, grad_gates, grad_h_0 = run(strategy, case, given, device)
    assert torch.equal(output[0].isnan(), torch.where(torch.arange(case.H) % 2 == 0, new, ~new))
    assert torch.equal(grad_gates[0].isnan(), new) and (grad_gates[0][~new] == 0).all()
    assert torch.equal(grad_h_0.isnan(), ~new) and (grad_h_0[new] == 0).all()
