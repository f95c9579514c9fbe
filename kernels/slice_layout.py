"""The 16 rows of a slice's columns in `cooperative`, in the order in which mma instructions give a result.

Of 16 rows and 8 columns that a warp makes, lane 4 r + q of its 32 holds columns 2 q and 2 q + 1 of the rows r and r + 8. The
tensor that says so has the shape (2, REPEATS, 2, WARPS, 8, 4). Its axes:

    column      of the lane's two                           together column = 8 (WARPS repeat + warp)
    repeat      of the warps' columns side by side                            + 2 (lane % 4) + column
    half        of the rows
    warp        which of the eight columns of a repeat      together row = 8 half + lane // 4
    lane // 4   row of the half
    lane % 4    which two columns

What is loaded and stored in this order needs no way through shared memory, and no barrier, to meet the product.
"""

import triton
import triton.language as tl


@triton.jit
def slice_rows():
    """The rows of a batch tile, (1, 1, 2, 1, 8, 1)."""
    half = tl.arange(0, 2)[None, None, :, None, None, None]
    return half * 8 + tl.arange(0, 8)[None, None, None, None, :, None]


@triton.jit
def slice_pairs(SLICE: tl.constexpr):
    """The first column of each pair of this program's slice, (1, REPEATS, 1, WARPS, 1, 4)."""
    WARPS: tl.constexpr = SLICE // 8 if SLICE < 32 else 4
    repeat = tl.arange(0, SLICE // (8 * WARPS))[None, :, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, None, :, None, None]
    lane = tl.arange(0, 4)[None, None, None, None, None, :]
    return tl.program_id(0) * SLICE + (repeat * WARPS + warp) * 8 + lane * 2


@triton.jit
def both_columns(pair):
    """The columns of pairs, (2, REPEATS, 1, WARPS, 1, 4)."""
    return pair + tl.arange(0, 2)[:, None, None, None, None, None]


@triton.jit
def from_result(x):
    """A result (16, SLICE) in the order above."""
    SLICE: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = SLICE // 8 if SLICE < 32 else 4
    return tl.permute(tl.reshape(x, (2, 8, SLICE // (8 * WARPS), WARPS, 4, 2)), (5, 2, 0, 3, 1, 4))
