"""What must hold of a pointwise forward and backward; the tests give it the real ones and broken ones."""

import torch

from tests import stream
from tests.helpers import seed_tensor
from tests.tolerances import EPSILON, POINTWISE, POINTWISE_GRADIENT
from tests.triton_driver import backend as backend_name

SEED, STREAM = -42, 1 << 32 | 6


def inputs(rows, columns, dtype, device):
    """x and a gradient, with 0, NaN and infinities among them."""
    g = torch.Generator().manual_seed(rows * 1000 + columns)
    x, grad = torch.randn((2, rows, columns), generator=g).to(dtype).to(device)
    for i, value in enumerate([0.0, float("nan"), float("inf"), float("-inf")]):
        x.view(-1)[i::9] = value
    grad.view(-1)[5::17] = float("nan")
    return x, grad


def against_float64(
    forward,
    backward,
    device,
    *,
    rows=12,
    columns=40,
    dtype=torch.float32,
    nonlinearity="tanh",
    threshold=24000,
    row_start=3,
    stride=lambda x: x,
):
    """Output and gradient of every element; exact zeros where the mask drops, whatever is there."""
    x, grad = (stride(v) for v in inputs(rows, columns, dtype, device))
    scale, seed = stream.scale_of(threshold), seed_tensor(SEED, device)
    y = forward(x, seed, threshold, scale, STREAM, nonlinearity=nonlinearity, row_start=row_start)
    dx = backward(grad, y, seed, threshold, scale, STREAM, nonlinearity=nonlinearity, row_start=row_start)

    keep = stream.keep(SEED, rows, columns, threshold, STREAM, row_start)
    exact = x.cpu().double().requires_grad_()
    expected = torch.where(keep, getattr(torch, nonlinearity)(exact) * scale, 0.0)
    (slope,) = torch.autograd.grad(expected, exact, torch.ones_like(expected))
    expected_dx = torch.where(keep, grad.cpu().double() * slope, 0.0)
    if nonlinearity == "relu":  # its slope 0 stops a NaN too
        expected_dx = torch.where(exact <= 0, 0.0, expected_dx)

    assert y.dtype == dx.dtype == dtype
    assert (y.cpu()[~keep] == 0).all() and (dx.cpu()[~keep] == 0).all()
    tiny = torch.finfo(dtype).smallest_normal * EPSILON[dtype]
    cut = 2 if dtype == torch.bfloat16 and backend_name() == "interpreter" else 1  # it truncates to bf16
    torch.testing.assert_close(y.cpu().double(), expected.detach(), rtol=cut * POINTWISE[dtype], atol=tiny, equal_nan=True)
    size = scale * grad.nan_to_num().abs().max().item()
    torch.testing.assert_close(
        dx.cpu().double(),
        expected_dx.detach(),
        rtol=EPSILON[dtype],
        atol=cut * POINTWISE_GRADIENT[dtype] * size + tiny,
        equal_nan=True,
    )


def steps_are_rows(forward, backward, device, *, steps=4, batch=3, columns=33):
    """Step after step gives what one call on all rows gives, and no two steps share a mask."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.rand((steps * batch, columns), generator=generator).to(device) + 0.1 for _ in range(2))
    rest = (seed_tensor(SEED, device), 32768, 2.0, STREAM)
    keep = stream.keep(SEED, steps * batch, columns, 32768, STREAM).to(device)
    for t in range(steps):
        rows = slice(t * batch, (t + 1) * batch)
        y = forward(x[rows], *rest, row_start=t * batch)
        assert torch.equal(y != 0, keep[rows]), "the output's mask is not that of the step"
        dx = backward(grad[rows], y, *rest, row_start=t * batch)
        assert torch.equal(dx != 0, keep[rows]), "the gradient's mask is not that of the step"
