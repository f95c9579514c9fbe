"""The cells' functions, forward and backward, and that each cell is one of all three strategies."""

import pytest
import torch
import triton
import triton.language as tl

from rnndrop import reference
from rnndrop.cell import CELLS
from rnndrop.kernels.cell import cell_backward, cell_forward


@triton.jit
def cell_kernel(gates_ptr, grad_ptr, h_ptr, grad_gates_ptr, scale, inverse_scale, N: tl.constexpr, CELL: tl.constexpr):
    i = tl.arange(0, N)
    h = cell_forward(tl.load(gates_ptr + i), CELL, tl.float32, "exact") * scale
    tl.store(h_ptr + i, h)
    tl.store(grad_gates_ptr + i, cell_backward(tl.load(grad_ptr + i), h, scale, inverse_scale, CELL))


@pytest.mark.parametrize("cell", ["RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize("scale", [1.0, 4 / 3])
def test_forward_and_backward(cell, scale, device):
    inf, nan = float("inf"), float("nan")
    gates = torch.cat([torch.randn(58), torch.tensor([0.0, -0.0, inf, -inf, nan, 1e-30])]).requires_grad_()
    grad = torch.randn(64)
    grad[3] = grad[58] = nan
    expected = reference.ACTIVATIONS[CELLS[cell].activation](gates) * scale
    (expected_grad,) = torch.autograd.grad(expected, gates, grad)
    h, grad_gates = torch.empty(2, 64, device=device)
    cell_kernel[(1,)](gates.detach().to(device), grad.to(device), h, grad_gates, scale, 1 / scale, 64, cell)
    torch.testing.assert_close(h.cpu(), expected.detach(), rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(grad_gates.cpu(), expected_grad, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_relu_passes_its_gradient_at_nan(device):
    """As PyTorch's does: where the output is NaN, its slope is 1."""
    gates, grad = torch.full((16,), float("nan"), device=device), torch.arange(16.0, device=device)
    h, grad_gates = torch.empty(2, 16, device=device)
    cell_kernel[(1,)](gates, grad, h, grad_gates, 2.0, 0.5, 16, "RNN_RELU")
    assert torch.equal(grad_gates, 2 * grad)
