"""Activations and their derivatives as value functions on fp32 tensors: no branches, no library calls."""

import torch
import triton
import triton.language as tl


@triton.jit
def tanh_for_dtype(x, DTYPE: tl.constexpr, TANH: tl.constexpr):
    """tanh(x) in fp32, as accurate as a result stored as DTYPE needs it. TANH: "exact", or "hardware", one instruction of
    NVIDIA's GPUs."""
    if TANH == "hardware":
        return tanh_hardware(x)
    elif DTYPE.primitive_bitwidth == 16:
        return tanh_short(x)
    else:
        return tanh(x)


@triton.jit
def sigmoid_for_dtype(x, DTYPE: tl.constexpr, TANH: tl.constexpr):
    """sigmoid(x) in fp32, as accurate as a result stored as DTYPE needs it; one for all, but for TANH "hardware"."""
    if TANH == "hardware":
        return tanh_hardware(x * 0.5) * 0.5 + 0.5
    else:
        return sigmoid(x)


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)  # NaN stays NaN


@triton.jit
def relu_backward(grad, y, scale):
    return tl.where(y <= 0, 0.0, grad * scale)  # 0 stops a NaN, a NaN stops nothing, as in PyTorch


@triton.jit
def tanh_backward(grad, y, scale, inverse_scale):
    return grad * (scale - y * inverse_scale * y)


@triton.jit
def sigmoid_backward(grad, y):
    return grad * (y - y * y)


@triton.jit
def sigmoid(x):
    """Relative error within 2**-22, and 2**-23 more for each unit that x is below 0, where exp2's argument is rounded; on a GPU
    exp2 and the quotient add theirs (2**-22.5 and 2 units). NaN stays NaN, and neither end overflows to it."""
    return 1.0 / (tl.exp2(x * -1.4426950408889634) + 1.0)  # exp(-x), up to infinity, whose quotient is 0


@triton.jit
def tanh(x):
    """Within 2 units in the last place of fp32 for every x, 1.6 with an exact exp2 and quotient: beyond |x| = 1.16 their
    errors on a GPU (2**-22.5 and 2 units) count little. NaN stays NaN, and -0.0 keeps its sign."""
    a = tl.abs(x)
    outer = 1.0 - 2.0 / (tl.exp2(a * 2.8853900817779268) + 1.0)  # exp(2 a), up to infinity, whose quotient is 0
    u = a * a  # below, a minimax polynomial of (tanh(a)/a - 1) / u
    p = u * -0.00023624525 + 0.0018440139
    p = p * u - 0.0072752535
    p = p * u + 0.021001846
    p = p * u - 0.053702585
    p = p * u + 0.13329369
    p = p * u - 0.3333313
    y = tl.where(u < 1.35, p * (a * u) + a, outer)
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    return (y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def tanh_short(x):
    """Half the instructions; relative error below 2**-14 for every x: 1/8 of fp16's half unit, 1/64 of bf16's."""
    outer = 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)
    return tl.where(tl.abs(x) < 0.01, x, outer)


@triton.jit
def tanh_hardware(x):
    """Relative error 2**-11 everywhere; rounding to bf16 costs up to 2**-8."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)


def way_of_tanh(dtype: torch.dtype, backend: str) -> str:
    """The TANH of a backend: by the instruction of NVIDIA's GPUs, where bf16's rounding hides its error."""
    return "hardware" if dtype == torch.bfloat16 and backend == "cuda" else "exact"
