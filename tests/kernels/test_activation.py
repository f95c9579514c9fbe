import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels.activation import relu, sigmoid_backward, sigmoid_for_dtype, tanh_for_dtype, tanh_hardware
from tests.tolerances import EPSILON
from tests.triton_driver import backend


@triton.jit
def apply_kernel(x, y, n, NONLINEARITY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n)
    tl.store(y + i, relu(a) if NONLINEARITY == "relu" else tanh_for_dtype(a, DTYPE, "exact"), mask=i < n)


@triton.jit
def sigmoid_kernel(x, y, slope, n, DTYPE: tl.constexpr, HOW: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    made = sigmoid_for_dtype(tl.load(x + i, mask=i < n), DTYPE, HOW)
    tl.store(y + i, made, mask=i < n)
    tl.store(slope + i, sigmoid_backward(1.0, made), mask=i < n)


@triton.jit
def hardware_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tanh_hardware(tl.load(x + i, mask=i < n)), mask=i < n)


def activate(x, nonlinearity, dtype, device):
    x = x.to(device)
    y = torch.empty_like(x)
    apply_kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), nonlinearity, dtype, BLOCK=4096)
    return y.cpu()


def every_size():
    """fp32 values of both signs: every exponent, denormals included, and densely where tanh bends."""
    bits = np.arange(0, 0x7F800000, 0x7F800000 // 40000, dtype=np.int64).astype(np.uint32)
    x = np.concatenate(
        [
            bits.view(np.float32),
            np.linspace(0.2, 10, 20000, dtype=np.float32),
            np.nextafter(np.float32(0.7), np.float32([0, 1])),
            np.float32([3.4e38, 1e-45]),
        ]
    )
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


def sigmoid(x, how, device):
    """It and its slope, in float64."""
    x = x.to(device)
    y, slope = torch.empty_like(x), torch.empty_like(x)
    sigmoid_kernel[(triton.cdiv(len(x), 4096),)](x, y, slope, len(x), tl.float32, how, BLOCK=4096)
    return y.double().cpu(), slope.double().cpu()


def test_sigmoid(device):
    """The relative error is within 2**-22, and 2**-23 more for each unit that x is below 0."""
    x = every_size()
    y, slope = sigmoid(x, "exact", device)
    exact = torch.sigmoid(x.double())
    number = exact > 2.0**-126  # below, results have fewer bits, and then none
    error = ((y - exact).abs() / exact / (2 + x.double().clamp(max=0).neg()))[number]
    assert error.max() <= 2**-23, (x[number][error.argmax()], error.max())
    assert (y[~number] <= 2.0**-125).all() and y.max() <= 1 and y.min() >= 0
    assert ((slope - exact * (1 - exact)).abs() <= 2.0**-23).all()


def test_sigmoid_at_the_ends(device):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 3e38, -3e38])
    y, _ = sigmoid(x, "exact", device)
    torch.testing.assert_close(y, torch.sigmoid(x.double()), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(backend() == "interpreter", reason="an instruction of NVIDIA's GPUs")
def test_sigmoid_in_one_instruction(device):
    """Its error is absolute: half of tanh's."""
    x = every_size()
    y, _ = sigmoid(x, "hardware", device)
    assert (y - torch.sigmoid(x.double())).abs().max() <= 2**-11.9 and y.min() >= 0 and y.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_tanh(dtype, device):
    """Before and after the rounding to its dtype, whose half unit it must not pass by much."""
    x = every_size()
    y = activate(x, "tanh", getattr(tl, str(dtype)[6:]), device).double()
    exact = torch.tanh(x.double())
    error = (y - exact).abs() / exact.abs().clamp(min=2.0**-149)
    assert error.max() <= 2**-14, (x[error.argmax()], error.max())
    assert y.abs().max() <= 1
    rounded = (y.to(dtype).double() - exact).abs()
    smallest = torch.finfo(dtype).smallest_normal
    assert (rounded <= 0.63 * EPSILON[dtype] * exact.abs().clamp(min=smallest)).all()


@pytest.mark.skipif(backend() == "interpreter", reason="an instruction of NVIDIA's GPUs")
def test_tanh_in_one_instruction(device):
    """What `resident` takes in bf16."""
    x = every_size().to(device)
    y = torch.empty_like(x)
    hardware_kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), BLOCK=4096)
    exact = torch.tanh(x.cpu().double())
    error = (y.cpu().double() - exact).abs() / exact.abs().clamp(min=2.0**-126)
    assert error.max() <= 2**-10.9 and y.abs().max() <= 1
    rounded = (y.cpu().bfloat16().double() - exact).abs()
    assert (rounded <= 0.63 * EPSILON[torch.bfloat16] * exact.abs().clamp(min=2.0**-126)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_special_values(nonlinearity, dtype, device):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0, -0.0, -45.0, 45.0, 1e-6, -1e-6, 88.8, -88.8])
    y = activate(x, nonlinearity, getattr(tl, dtype), device)
    expected = getattr(torch, nonlinearity)(x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0, equal_nan=True)
    if nonlinearity == "tanh":
        number = ~x.isnan()
        assert torch.equal(y.signbit()[number], x.signbit()[number])
