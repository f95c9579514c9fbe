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


@triton.jit
def axis_of_chunk(i, CHUNK: tl.constexpr, WARPS: tl.constexpr):
    """What chunk i of the axis holds, a part for each warp, (WARPS, CHUNK / WARPS)."""
    PART: tl.constexpr = CHUNK // WARPS
    return i * CHUNK + tl.arange(0, WARPS)[:, None] * PART + tl.arange(0, PART)[None, :]


@triton.jit
def load_rows(source_ptr, rows, i, LENGTH: tl.constexpr, STRIDE: tl.constexpr, CHUNK: tl.constexpr, WARPS: tl.constexpr):
    """Chunk i of the first so many of 16 rows of LENGTH elements. Other programs wrote them: .cg reads from the L2 cache."""
    row, k = tl.arange(0, 16)[None, :, None], axis_of_chunk(i, CHUNK, WARPS)[:, None, :]
    return tl.load(source_ptr + row * STRIDE + k, mask=(row < rows) & (k < LENGTH), other=0.0, cache_modifier=".cg")


@triton.jit
def times_slice(
    source_ptr,
    rows,
    w,  # a tuple of (WARPS, CHUNK / WARPS, N)
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,  # chunks whose rows are asked for before they are multiplied
    PRECISION: tl.constexpr,
):
    """The warps' sums, (WARPS, 16, N)."""
    WARPS: tl.constexpr = w[0].shape[0]
    total = tl.zeros([WARPS, 16, w[0].shape[2]], tl.float32)
    asked = ()
    for i in tl.static_range(min(AHEAD, len(w))):
        asked += (load_rows(source_ptr, rows, i, LENGTH, STRIDE, CHUNK, WARPS),)
    for i in tl.static_range(len(w)):
        if i + AHEAD < len(w):
            asked += (load_rows(source_ptr, rows, i + AHEAD, LENGTH, STRIDE, CHUNK, WARPS),)
        total = multiply(asked[i], w[i], total, PRECISION)
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
