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
    threshold=24000,
    stride=lambda x: x,
):
    """Output and gradient of every element; exact zeros where the mask drops, whatever is there."""
    x, grad = (stride(v) for v in inputs(rows, columns, dtype, device))
    scale, seed = stream.scale_of(threshold), seed_tensor(SEED, device)
    y = forward(x, seed, threshold, scale, STREAM)
    dx = backward(grad, y, seed, threshold, scale, STREAM)

    keep = stream.keep(SEED, rows, columns, threshold, STREAM)
    exact = x.cpu().double().requires_grad_()
    expected = torch.where(keep, torch.tanh(exact) * scale, 0.0)
    (slope,) = torch.autograd.grad(expected, exact, torch.ones_like(expected))
    expected_dx = torch.where(keep, grad.cpu().double() * slope, 0.0)

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


def same_mask_in_both(forward, backward, device, *, rows=12, columns=33):
    """Row for row, the mask seen in the output and the one seen in the gradient are the definition's."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.rand((rows, columns), generator=generator).to(device) + 0.1 for _ in range(2))
    rest = (seed_tensor(SEED, device), 32768, 2.0, STREAM)
    keep = stream.keep(SEED, rows, columns, 32768, STREAM).to(device)
    y = forward(x, *rest)
    assert torch.equal(y != 0, keep), "the output's mask is another"
    dx = backward(grad, y, *rest)
    assert torch.equal(dx != 0, keep), "the gradient's mask is another"
