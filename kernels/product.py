"""The matrix product of the kernels that keep W_hh on chip."""

import torch
import triton
import triton.language as tl


@triton.jit
def multiply(left, right, start, PRECISION: tl.constexpr):
    """start + left @ right in fp32. PRECISION "wide" is for Triton's interpreter, which multiplies the bits of bf16."""
    if PRECISION == "wide":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), start, input_precision="ieee")
    else:
        return tl.dot(left, right, start, input_precision=PRECISION)


@triton.jit
def clear_padding(x, column, H: tl.constexpr, WIDTH: tl.constexpr):
    """0 in the columns past H, where an infinite or NaN h has met the zeros of W_hh."""
    return tl.where(column < H, x, 0.0) if H < WIDTH else x


def precision(dtype: torch.dtype, tf32: bool, backend: str) -> str:
    """The PRECISION of a backend. Exact fp32 on NVIDIA's tensor cores is three products of tf32."""
    if backend == "interpreter":
        return "wide"
    if dtype != torch.float32 or backend == "hip":
        return "ieee"
    return "tf32" if tf32 else "tf32x3"
