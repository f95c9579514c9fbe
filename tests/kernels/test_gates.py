"""The functions of a GRU's and an LSTM's gates, forward and backward, against autograd through the plain step in float64."""

import pytest
import torch
import triton
import triton.language as tl

from rnndrop import reference
from rnndrop.cell import Weights
from rnndrop.kernels.gates import gru_backward, gru_forward, lstm_backward, lstm_forward
from rnndrop.mask import Mask

N = 64


@triton.jit
def lstm_kernel(x_ptr, y_ptr, candidate_ptr, cell_ptr, scale, N: tl.constexpr):
    """x: i, f, g, o, c_before, grad_made, grad_c. y: i, f, g, o, c', made; their gradients and that of c_before."""
    at = tl.arange(0, N)
    candidate = None if candidate_ptr is None else tl.load(candidate_ptr + at) != 0
    cell = None if cell_ptr is None else tl.load(cell_ptr + at) != 0
    i, f, g, o = tl.load(x_ptr + at), tl.load(x_ptr + N + at), tl.load(x_ptr + 2 * N + at), tl.load(x_ptr + 3 * N + at)
    before, grad_made, grad_c = tl.load(x_ptr + 4 * N + at), tl.load(x_ptr + 5 * N + at), tl.load(x_ptr + 6 * N + at)
    i, f, g, o, c, made = lstm_forward(i, f, g, o, before, candidate, scale, cell, scale, tl.float32, "exact")
    grads = lstm_backward(grad_made, grad_c, i, f, g, o, before, c, candidate, scale, cell, scale, tl.float32, "exact")
    for k in tl.static_range(6):
        tl.store(y_ptr + k * N + at, (i, f, g, o, c, made)[k])
    for k in tl.static_range(5):
        tl.store(y_ptr + (6 + k) * N + at, grads[k])


@triton.jit
def gru_kernel(x_ptr, y_ptr, candidate_ptr, cell_ptr, scale, N: tl.constexpr):
    """x: r, z, x_n, hn, h_before, grad_made. y: r, z, n, made; the gradients of hn, r, z, n and h_before."""
    at = tl.arange(0, N)
    candidate = None if candidate_ptr is None else tl.load(candidate_ptr + at) != 0
    r, z, x_n, hn = tl.load(x_ptr + at), tl.load(x_ptr + N + at), tl.load(x_ptr + 2 * N + at), tl.load(x_ptr + 3 * N + at)
    before, grad_made = tl.load(x_ptr + 4 * N + at), tl.load(x_ptr + 5 * N + at)
    r, z, n, made = gru_forward(r, z, x_n, hn, before, candidate, scale, tl.float32, "exact")
    grads = gru_backward(grad_made, hn, r, z, n, before, candidate, scale)
    for k in tl.static_range(4):
        tl.store(y_ptr + k * N + at, (r, z, n, made)[k])
    for k in tl.static_range(5):
        tl.store(y_ptr + (4 + k) * N + at, grads[k])


def step_weights(gates: int) -> Weights:
    """Which let x be the gates, of x alone."""
    eye = torch.eye(gates * N, dtype=torch.float64)
    return Weights(eye, torch.zeros(gates * N, N, dtype=torch.float64))


@pytest.mark.parametrize("kinds", [(), ("candidate",), ("cell",), ("candidate", "cell")], ids=str)
def test_lstm(kinds, device):
    x = torch.randn(7, N, dtype=torch.float32)
    x[:, 0], x[:5, 1], x[:5, 2] = 0.0, 90.0, -90.0
    keeps, scale = torch.rand(2, N) > 0.3, 4 / 3
    given = dict(zip(("candidate", "cell"), keeps, strict=True))
    masks = {kind: Mask(given[kind], scale) for kind in kinds}
    leaves = x[:5].double().requires_grad_()
    gates, c_before = leaves[:4].view(1, -1), leaves[4:]
    (h, c) = reference.lstm_step(gates, (torch.zeros(1, N).double(), c_before), step_weights(4), masks, "tanh")
    (grads,) = torch.autograd.grad([h, c], leaves, [x[5:6].double(), x[6:].double()])
    expected = [*torch.sigmoid(leaves[:2]), torch.tanh(leaves[2]), torch.sigmoid(leaves[3]), c[0], h[0], *grads]
    bits = [given[kind].to(torch.int32).to(device) if kind in kinds else None for kind in given]
    y = torch.full((11, N), float("nan"), device=device)
    lstm_kernel[(1,)](x.to(device), y, *bits, scale, N)
    torch.testing.assert_close(y.cpu().double(), torch.stack([e.detach() for e in expected]), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dropping", [False, True])
def test_gru(dropping, device):
    x = torch.randn(6, N, dtype=torch.float32)
    x[:, 0], x[:5, 1], x[:5, 2] = 0.0, 90.0, -90.0
    keep, scale = torch.rand(N) > 0.3, 4 / 3
    masks = {"candidate": Mask(keep, scale)} if dropping else {}
    leaves = x[:5].double().requires_grad_()
    zeros = torch.zeros(2 * N, dtype=torch.float64)
    weights = step_weights(3)._replace(b_hh=torch.cat([zeros, leaves[3]]))
    (h,) = reference.gru_step(leaves[:3].reshape(1, -1), (leaves[4:],), weights, masks, "tanh")
    (grads,) = torch.autograd.grad(h, leaves, x[5:].double())
    r, z = torch.sigmoid(leaves[:2])
    expected = [r, z, torch.tanh(leaves[2] + r * leaves[3]), h[0], *grads[[3, 0, 1, 2, 4]]]
    y = torch.full((9, N), float("nan"), device=device)
    gru_kernel[(1,)](x.to(device), y, keep.to(torch.int32).to(device) if dropping else None, None, scale, N)
    torch.testing.assert_close(y.cpu().double(), torch.stack([e.detach() for e in expected]), rtol=2e-6, atol=1e-6)
