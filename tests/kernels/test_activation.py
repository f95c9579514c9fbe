import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels import activation


@triton.jit
def apply_kernel(x, y, n, NONLINEARITY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, activation.activate(tl.load(x + i, mask=i < n), NONLINEARITY, DTYPE), mask=i < n)


def activate(x, nonlinearity, dtype, device):
    x = x.to(device)
    y = torch.empty_like(x)
    apply_kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), nonlinearity, dtype, BLOCK=4096)
    return y.cpu()


def every_size():
    """fp32 values of both signs: every exponent, denormals included, and densely where tanh bends."""
    bits = np.arange(0, 0x7F800000, 0x7F800000 // 40000, dtype=np.int64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(0.2, 10, 20000, dtype=np.float32),
                        np.nextafter(np.float32(0.7), np.float32([0, 1])), np.float32([3.4e38, 1e-45])])
    return torch.from_numpy(np.concatenate([x, -x]))


def test_tanh_within_two_units_everywhere(device):
    x = every_size()
    y = activate(x, "tanh", tl.float32, device).numpy()
    exact = np.tanh(x.numpy().astype(np.float64))
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    error = np.abs(y - exact) / unit
    assert error.max() <= 2, (x[error.argmax()], error.max())
    assert np.abs(y).max() <= 1
    assert (np.sign(y) == np.sign(x.numpy())).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_tanh(dtype, device):
    x = every_size()
    y = activate(x, "tanh", getattr(tl, dtype), device).numpy().astype(np.float64)
    exact = np.tanh(x.numpy().astype(np.float64))
    error = np.abs(y - exact) / np.maximum(np.abs(exact), 2.0**-149)
    assert error.max() <= 2**-14, (x[error.argmax()], error.max())
    assert np.abs(y).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_special_values(nonlinearity, dtype, device):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0, -0.0, -45.0, 45.0, 1e-6, -1e-6, 88.8, -88.8])
    y = activate(x, nonlinearity, getattr(tl, dtype), device)
    expected = getattr(torch, nonlinearity)(x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0, equal_nan=True)
