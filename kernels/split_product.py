"""The product of 16 rows with the weight slice of a program, its long axis shared out among the program's warps.

A multiprocessor reads its slice of the weight and the 16 rows from shared memory at every step, and that takes most of a
product's time. Where each warp makes a few columns of the result, each reads all of the rows; here each warp takes a part of
the axis that the product sums over, so that both operands are read once, and as many instructions run side by side. Then one
exchange through shared memory brings the warps' sums of an element to one thread, which adds them. After it a thread has one
row and one column of the slice, with all gates of that column.
"""

import triton
import triton.language as tl

from .product import multiply

# Of 8 (fp32) or 16 places of the axis, those that one mma instruction takes, lane q of each four holds NEAR neighbours, 1 or 2,
# in either half. In memory the MINE elements that a lane holds of two instructions are side by side, so that a lane loads them
# by one access, and where it needs them. A tile's axes, as it is loaded: blocks, row // 8, warp, row % 8, lane, MINE.


@triton.jit
def tile_of_rows(i, ROWS: tl.constexpr, PART: tl.constexpr, WARPS: tl.constexpr, NEAR: tl.constexpr):
    """Rows of chunk i of a tile, and places on the axis."""
    MINE: tl.constexpr = min(4 * NEAR, PART // 4)
    BLOCKS: tl.constexpr = PART // (4 * MINE)
    row = tl.arange(0, ROWS // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    block, lane = tl.arange(0, BLOCKS)[:, None, None, None], tl.arange(0, 4)[None, None, :, None]
    warp = tl.arange(0, WARPS)[None, :, None, None]
    k = (i * WARPS + warp) * PART + (block * 4 + lane) * MINE + tl.arange(0, MINE)[None, None, None, :]
    return row[None, :, None, :, None, None], k[:, None, :, None, :, :]


@triton.jit
def as_operand(x, NEAR: tl.constexpr):
    """A tile as (WARPS, ROWS, PART)."""
    BLOCKS: tl.constexpr = x.shape[0]
    ROWS: tl.constexpr = x.shape[1] * 8
    WARPS: tl.constexpr = x.shape[2]
    MINE: tl.constexpr = x.shape[5]
    x = tl.reshape(x, (BLOCKS, ROWS // 8, WARPS, 8, 4, MINE // (2 * NEAR), 2, NEAR))
    return tl.reshape(tl.permute(x, (2, 1, 3, 0, 5, 6, 4, 7)), (WARPS, ROWS, BLOCKS * 4 * MINE))


@triton.jit
def load_rows(source_ptr, rows, i, LENGTH: tl.constexpr, STRIDE: tl.constexpr, PART: tl.constexpr, WARPS: tl.constexpr):
    """Chunk i of the first so many of 16 rows of LENGTH elements, (WARPS, 16, PART). Other programs wrote them: .cg reads
    from the L2 cache."""
    NEAR: tl.constexpr = 32 // source_ptr.dtype.element_ty.primitive_bitwidth
    row, k = tile_of_rows(i, 16, PART, WARPS, NEAR)
    x = tl.load(source_ptr + row * STRIDE + k, mask=(row < rows) & (k < LENGTH), other=0.0, cache_modifier=".cg")
    return as_operand(x, NEAR)


@triton.jit
def times_slice(source_ptr, rows, w, LENGTH: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr):
    """The warps' sums, (WARPS, 16, N), of the first so many of 16 rows with w, a tuple of chunks (WARPS, PART, N)."""
    WARPS: tl.constexpr = w[0].shape[0]
    PART: tl.constexpr = w[0].shape[1]
    total = tl.zeros([WARPS, 16, w[0].shape[2]], tl.float32)
    for i in tl.static_range(len(w)):
        total = multiply(load_rows(source_ptr, rows, i, LENGTH, STRIDE, PART, WARPS), w[i], total, PRECISION)
    return total


@triton.jit
def sum_of_last(x):
    """The sum over the last axis, a power of 2. A split asks for it to be in one thread."""
    N: tl.constexpr = x.shape[-1]
    if N == 2:
        a, b = tl.split(x)
        return a + b
    else:
        a, b = tl.split(tl.reshape(x, x.shape[:-1] + [N // 2, 2]))
        return sum_of_last(a + b)


@triton.jit
def of_state(total):
    """The sum (16, SLICE) of what `times_slice` gives, (WARPS, 16, SLICE)."""
    return sum_of_last(tl.permute(total, (1, 2, 0)))


@triton.jit
def of_four_gates(total):
    """The sums (16, SLICE) of what `times_slice` gives of four gates side by side, (WARPS, 16, 4 SLICE)."""
    SLICE: tl.constexpr = total.shape[2] // 4
    gates = tl.reshape(total, (total.shape[0], 16, 2, 2, SLICE))
    even, odd = tl.split(sum_of_last(tl.permute(gates, (1, 4, 2, 3, 0))))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth
