"""Activation and dropout in one pass: y = keep * scale * f(x), the mask made in registers and never stored.

A program owns ROWS rows of BLOCKS blocks of sixteen columns and calls Philox once a block. Memory is read and written
sixteen bytes a thread, so a block belongs to several threads, which gather its sixteen bits. Forward reads x and writes
y; backward reads y and its gradient and writes the gradient of x: f(x) is y / scale where the remade mask keeps it.

An element costs, in fp32, 8 bytes forward and 12 backward, and 40 and 26 PTX instructions (COSTS.md), about 50 and 34 of
an sm_80; in 16 bit 4 and 6 bytes, 31 and 29 PTX, about 41 and 37. No byte stays on chip. From the data sheets a million
elements forward take in fp32 5.4 us on an A100 and 2.5 us on an H100, bound by memory; in 16 bit 2.7 us, by memory, barely,
and 1.5 us, by the instructions, of which Philox is about 13. Not timed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, through
from .philox import keep_bits


@triton.jit(do_not_specialize=["rows", "row_start", "threshold", "scale", "site"])
def forward_kernel(
    x, x_row, x_column,             # (rows, columns) and its strides
    y, y_row, y_column,             # (rows, columns)
    seed,                           # (1,) int64
    rows: tl.int64, columns, row_start: tl.int64, threshold: tl.int32, scale: tl.float32, site: tl.int64,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr,
):
    row, column, inside = _tile(rows, columns, ROWS, BLOCKS, VECTOR)
    a = tl.load(x + row * x_row + column * x_column, mask=inside, other=0.0).to(tl.float32)
    keep = _keep(seed, site, row_start, columns, threshold, ROWS, BLOCKS, VECTOR)
    h = tl.where(keep, activate(a, NONLINEARITY, y.dtype.element_ty) * scale, 0.0)
    tl.store(y + row * y_row + column * y_column, h.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "row_start", "threshold", "scale", "site"])
def backward_kernel(
    grad, grad_row, grad_column,    # (rows, columns), the gradient of y
    more, more_row, more_column,    # None, or (rows, columns): added to grad
    y, y_row, y_column,             # (rows, columns), what forward wrote
    out, out_row, out_column,       # (rows, columns), the gradient of x
    seed,                           # (1,) int64
    rows: tl.int64, columns, row_start: tl.int64, threshold: tl.int32, scale: tl.float32, site: tl.int64,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr,
):
    row, column, inside = _tile(rows, columns, ROWS, BLOCKS, VECTOR)
    g = tl.load(grad + row * grad_row + column * grad_column, mask=inside, other=0.0).to(tl.float32)
    if more is not None:
        g += tl.load(more + row * more_row + column * more_column, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(y + row * y_row + column * y_column, mask=inside, other=0.0).to(tl.float32)
    inverse = (65536 - threshold).to(tl.float32) * (1 / 65536)
    a = through(g, h, scale, inverse, NONLINEARITY)
    if NONLINEARITY != "relu":      # a dropped unit is 0: relu passes nothing there, but tanh is 0 at 0 too
        a = tl.where(_keep(seed, site, row_start, columns, threshold, ROWS, BLOCKS, VECTOR), a, 0.0)
    tl.store(out + row * out_row + column * out_column, a.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _origin(columns, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """This program's first row and block; the columns of a row go to neighbouring programs."""
    tiles = tl.cdiv(tl.cdiv(columns, 16), BLOCKS)
    pid = tl.program_id(0)
    return (pid // tiles).to(tl.int64) * ROWS, pid % tiles * BLOCKS


@triton.jit
def _tile(rows, columns, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr):
    """Row (ROWS, 1, 1) and column (1, 16*BLOCKS/VECTOR, VECTOR), int64, and which of them exist."""
    first_row, first_block = _origin(columns, ROWS, BLOCKS)
    row = first_row + tl.arange(0, ROWS)[:, None, None]
    vector = tl.arange(0, BLOCKS * 16 // VECTOR)[None, :, None]
    column = first_block * 16 + vector * VECTOR + tl.arange(0, VECTOR)[None, None, :]
    return row, column.to(tl.int64), (row < rows) & (column < columns)


@triton.jit
def _keep(seed, site, row_start, columns, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr):
    """The tile's mask as booleans, (ROWS, 16*BLOCKS/VECTOR, VECTOR)."""
    first_row, first_block = _origin(columns, ROWS, BLOCKS)
    row = row_start + first_row + tl.arange(0, ROWS)[:, None]
    block = first_block + tl.arange(0, BLOCKS)[None, :]
    bits = keep_bits(tl.load(seed), site, row, block, tl.cdiv(columns, 16), threshold)
    # a plain broadcast lets the compiler call Philox once a thread instead of once a block
    PARTS: tl.constexpr = 16 // VECTOR
    vector = tl.arange(0, BLOCKS * PARTS)[None, :]
    bits = tl.gather(bits, tl.broadcast_to(vector // PARTS, (ROWS, BLOCKS * PARTS)), 1) >> (vector % PARTS * VECTOR)
    return (bits[:, :, None] & (1 << tl.arange(0, VECTOR))[None, None, :]) != 0


def forward(x: Tensor, seed: Tensor, threshold: int, scale: float, site: int, *, nonlinearity: str = "tanh",
            row_start: int = 0, out: Tensor | None = None) -> Tensor:
    """y = keep * scale * f(x) of a (rows, columns) tensor of any strides; its row i takes row row_start+i of the mask.

    seed: one int64 on the device; threshold: 0 (keep) ... 65536 (drop); scale: 65536 / (65536 - threshold), or 0.
    """
    y = torch.empty_like(x) if out is None else out
    if x.numel():
        grid, tile = _launch(y)
        forward_kernel[grid](x, *x.stride(), y, *y.stride(), seed, *x.shape, row_start, threshold, scale, site,
                             NONLINEARITY=nonlinearity, **tile)
    return y


def backward(grad: Tensor, y: Tensor, seed: Tensor, threshold: int, scale: float, site: int, *,
             nonlinearity: str = "tanh", row_start: int = 0, more: Tensor | None = None,
             out: Tensor | None = None) -> Tensor:
    """The gradient of x from y = forward(x, ...) and the gradient of y, which is grad + more."""
    dx = torch.empty_like(y) if out is None else out
    if y.numel():
        grid, tile = _launch(dx)
        more_strides = (0, 0) if more is None else more.stride()
        backward_kernel[grid](grad, *grad.stride(), more, *more_strides, y, *y.stride(), dx, *dx.stride(), seed,
                              *y.shape, row_start, threshold, scale, site, NONLINEARITY=nonlinearity, **tile)
    return dx


def _launch(out: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the tile: 128 blocks, so that each thread of four warps calls Philox once."""
    rows, columns = out.shape
    blocks = triton.cdiv(columns, 16)
    BLOCKS = min(triton.next_power_of_2(blocks), 32)
    ROWS = 128 // BLOCKS
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(blocks, BLOCKS),)
    tile = {"ROWS": ROWS, "BLOCKS": BLOCKS, "VECTOR": 16 // out.element_size()}
    return grid, tile | {"num_warps": 4, "enable_fp_fusion": True}
