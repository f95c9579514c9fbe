"""tanh and dropout in one pass: y = keep * scale * tanh(x), the mask made in registers and never stored.

Forward reads x and writes y; backward reads y and its gradient and writes the gradient of x: tanh(x) is y / scale where the
remade mask keeps it.

By counts and data sheets fp32 is bound by memory; 16 bit by memory on an A100, barely, and by the instructions on an H100,
of which Philox is a third. Not timed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import tanh_backward, tanh_for_dtype
from .launch import on_device
from .register_mask import keep, tile, tiles

PROGRAM = 128  # blocks: each thread of four warps calls Philox once


@triton.jit(do_not_specialize=["rows", "threshold", "scale", "stream"])
def forward_kernel(
    x_ptr,  # (rows, columns), of any strides
    x_row,
    x_column,
    y_ptr,  # (rows, columns), of any strides
    y_row,
    y_column,
    seed_ptr,  # (1,) int64
    rows: tl.int64,
    columns,
    threshold: tl.int32,
    scale: tl.float32,
    stream: tl.int64,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row, column, inside = tile(rows, columns, ROWS, BLOCKS, VECTOR)
    a = tl.load(x_ptr + row * x_row + column * x_column, mask=inside, other=0.0).to(tl.float32)
    kept = keep(seed_ptr, stream, columns, threshold, ROWS, BLOCKS, VECTOR)
    h = tl.where(kept, tanh_for_dtype(a, y_ptr.dtype.element_ty, "exact") * scale, 0.0)
    tl.store(y_ptr + row * y_row + column * y_column, h.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "threshold", "scale", "stream"])
def backward_kernel(
    grad_ptr,  # (rows, columns), of any strides: the gradient of y
    grad_row,
    grad_column,
    y_ptr,  # (rows, columns), of any strides: what forward wrote
    y_row,
    y_column,
    out_ptr,  # (rows, columns), of any strides: the gradient of x
    out_row,
    out_column,
    seed_ptr,  # (1,) int64
    rows: tl.int64,
    columns,
    threshold: tl.int32,
    scale: tl.float32,
    stream: tl.int64,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row, column, inside = tile(rows, columns, ROWS, BLOCKS, VECTOR)
    g = tl.load(grad_ptr + row * grad_row + column * grad_column, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(y_ptr + row * y_row + column * y_column, mask=inside, other=0.0).to(tl.float32)
    inverse_scale = (65536 - threshold).to(tl.float32) * (1 / 65536)
    a = tanh_backward(g, h, scale, inverse_scale)
    kept = keep(seed_ptr, stream, columns, threshold, ROWS, BLOCKS, VECTOR)  # h = 0 tells nothing: tanh is 0 at 0 too
    a = tl.where(kept, a, 0.0)
    tl.store(out_ptr + row * out_row + column * out_column, a.to(out_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor, seed: Tensor, threshold: int, scale: float, stream: int, *, out: Tensor | None = None) -> Tensor:
    """y = keep * scale * tanh(x).

    Args:
        x: (rows, columns), of any strides; its row i takes row i of the mask.
        seed: one int64, (1,), on the device.
        threshold: 0 (keep all) ... 65536 (drop all).
        scale: 65536 / (65536 - threshold), or 0.
        stream: the number of the mask among those of one seed.
        out: where to write; may be x.

    Returns:
        (rows, columns).
    """
    y = torch.empty_like(x) if out is None else out
    if x.numel():
        grid, options = tiles(y, PROGRAM)
        with on_device(x):
            forward_kernel[grid](x, *x.stride(), y, *y.stride(), seed, *x.shape, threshold, scale, stream, **options)
    return y


def backward(grad: Tensor, y: Tensor, seed: Tensor, threshold: int, scale: float, stream: int) -> Tensor:
    """The gradient of x.

    Args:
        grad: (rows, columns), of any strides, the gradient of y.
        y: (rows, columns), what forward(x, ...) returned. The rest is what forward was given.

    Returns:
        (rows, columns).
    """
    dx = torch.empty_like(y)
    if y.numel():
        grid, options = tiles(dx, PROGRAM)
        tensors = grad, *grad.stride(), y, *y.stride(), dx, *dx.stride()
        with on_device(y):
            backward_kernel[grid](*tensors, seed, *y.shape, threshold, scale, stream, **options)
    return dx
