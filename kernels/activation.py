"""Activations and their slopes as value functions on fp32 tensors: no branches, no library calls."""

import triton
import triton.language as tl


@triton.jit
def activate(x, NONLINEARITY: tl.constexpr, DTYPE: tl.constexpr):
    """f(x) in fp32, as accurate as a result stored as DTYPE needs it."""
    if NONLINEARITY == "identity":
        return x
    elif NONLINEARITY == "relu":
        return tl.where(x < 0, 0.0, x)                      # NaN stays NaN
    elif DTYPE.primitive_bitwidth == 16:
        return tanh_short(x)
    else:
        return tanh(x)


@triton.jit
def slope(y, scale, inverse, NONLINEARITY: tl.constexpr):
    """scale * f'(x), from y = scale * f(x) and inverse = 1 / scale."""
    if NONLINEARITY == "identity":
        return y * 0.0 + scale
    elif NONLINEARITY == "relu":
        return tl.where(y <= 0, 0.0, scale)                 # a gradient passes a NaN, as in PyTorch
    else:
        return scale - y * inverse * y


@triton.jit
def tanh(x):
    """Within 1.5 units in the last place of fp32 for every x; NaN stays NaN.

    That is with an exact exp2 and quotient; a GPU's, each wrong by its most, would make it 3.5 just past |x| = 0.7.
    """
    e = tl.exp2(tl.abs(x) * 2.8853900817779268)             # exp(2 |x|), up to infinity, whose quotient is 0
    outer = 1.0 - 2.0 / (e + 1.0)
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    outer = (outer.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    u = x * x                                               # below, a minimax polynomial of (tanh(x)/x - 1) / u
    p = u * -0.00513865 + 0.02009196
    p = p * u - 0.05355886
    p = p * u + 0.13329111
    p = p * u - 0.3333319
    return tl.where(u < 0.49, p * (x * u) + x, outer)


@triton.jit
def tanh_short(x):
    """Half the instructions; relative error below 2**-14 for every x, a quarter of fp16's half unit."""
    outer = 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)
    return tl.where(tl.abs(x) < 0.01, x, outer)
