"""The tile of 16 rows that `resident` keeps in registers, and its ways to the tensor cores and back.

The product h @ W_hh.T is made of mma instructions. Each takes *mma fragments*: which elements of an operand or a result each
of a warp's 32 *lanes* holds is fixed. Lane 4 r + q holds of a result's 16 rows the rows r and r + 8, and of its 16 columns
four. Which columns of memory these are is ours to say, by the order in which W_hh's rows and columns are loaded: here, four
neighbours. So a lane reads and writes its four columns by one access, four lanes fill whole sectors, and
a result becomes the next product's left operand by renaming registers.

The lanes of a 16x16 tile, the part that one warp has of one repeat:

       row   column 0 ... 3   4 ... 7      8 ... 11     12 ... 15
         0    0  0  0  0   1  1  1  1   2  2  2  2   3  3  3  3     half 0
         1    4  4  4  4   5  5  5  5   6  6  6  6   7  7  7  7
         2    8  8  8  8   9  9  9  9  10 10 10 10  11 11 11 11
         3   12 12 12 12  13 13 13 13  14 14 14 14  15 15 15 15
         4   16 16 16 16  17 17 17 17  18 18 18 18  19 19 19 19
         5   20 20 20 20  21 21 21 21  22 22 22 22  23 23 23 23
         6   24 24 24 24  25 25 25 25  26 26 26 26  27 27 27 27
         7   28 28 28 28  29 29 29 29  30 30 30 30  31 31 31 31
         8    0  0  0  0   1  1  1  1   2  2  2  2   3  3  3  3     half 1
         9    4  4  4  4   5  5  5  5   6  6  6  6   7  7  7  7
        10    8  8  8  8   9  9  9  9  10 10 10 10  11 11 11 11
        11   12 12 12 12  13 13 13 13  14 14 14 14  15 15 15 15
        12   16 16 16 16  17 17 17 17  18 18 18 18  19 19 19 19
        13   20 20 20 20  21 21 21 21  22 22 22 22  23 23 23 23
        14   24 24 24 24  25 25 25 25  26 26 26 26  27 27 27 27
        15   28 28 28 28  29 29 29 29  30 30 30 30  31 31 31 31

The tensor that holds it has the shape (4, REPEATS, 2, WARPS, 8, 4). Its axes:

    column      of the lane's four                              together column = 16 (WARPS repeat + warp)
    repeat      of the warps' tiles side by side                                  + 4 (lane % 4) + column
    half        of the tile's rows
    warp        which of the tiles of a repeat                  together row = 8 half + lane // 4
    lane // 4   row of the half
    lane % 4    which four columns

W_hh, the right operand, has the same order in its own rows and columns.
"""

import triton
import triton.language as tl


@triton.jit
def tile_rows():
    """Rows of the batch that this program owns, int64, (1, 1, 2, 1, 8, 1)."""
    half = tl.arange(0, 2)[None, None, :, None, None, None]
    row = tl.arange(0, 8)[None, None, None, None, :, None]
    return tl.program_id(0).to(tl.int64) * 16 + half * 8 + row


@triton.jit
def tile_columns(REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """The tile's columns, (4, REPEATS, 1, WARPS, 1, 4)."""
    column = tl.arange(0, 4)[:, None, None, None, None, None]
    repeat = tl.arange(0, REPEATS)[None, :, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, None, :, None, None]
    lane = tl.arange(0, 4)[None, None, None, None, None, :]
    return (repeat * WARPS + warp) * 16 + lane * 4 + column


@triton.jit
def to_result(x):
    """A tile as the fragment of a result (16, columns): an mma gives a lane two neighbours of eight columns, so its columns
    are in the order (repeat, column % 2, warp, lane % 4, column // 2)."""
    REPEATS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    x = tl.permute(tl.reshape(x, (2, 2, REPEATS, 2, WARPS, 8, 4)), (3, 5, 2, 1, 4, 6, 0))
    return tl.reshape(x, (16, REPEATS * WARPS * 16))


@triton.jit
def from_result(x, REPEATS: tl.constexpr):
    """The inverse of to_result."""
    WARPS: tl.constexpr = x.shape[1] // (REPEATS * 16)
    x = tl.permute(tl.reshape(x, (2, 8, REPEATS, 2, WARPS, 4, 2)), (6, 3, 2, 0, 4, 1, 5))
    return tl.reshape(x, (4, REPEATS, 2, WARPS, 8, 4))


@triton.jit
def to_left(x):
    """A tile as the fragment of a left operand (16, columns). Of 16-bit numbers a lane holds pairs, eight columns apart:
    columns in the order (repeat, warp, column // 2, lane % 4, column % 2). Of fp32 it holds single ones, four apart:
    (repeat, warp, column, lane % 4)."""
    REPEATS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    if x.dtype.primitive_bitwidth == 16:
        x = tl.permute(tl.reshape(x, (2, 2, REPEATS, 2, WARPS, 8, 4)), (3, 5, 2, 4, 0, 6, 1))
    else:
        x = tl.permute(x, (2, 4, 1, 3, 0, 5))
    return tl.reshape(x, (16, REPEATS * WARPS * 16))


@triton.jit
def load_right(w_hh_ptr, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The right operand (columns, columns): W_hh.T, or W_hh if TRANSPOSED, of (WIDTH, WIDTH) and 0 past that. Its rows k are in
    the order of to_left, its columns n in that of to_result: a lane of the fragment holds two neighbours, by its lane // 4."""
    TILES: tl.constexpr = REPEATS * WARPS
    column = tl.arange(0, 4)[:, None, None, None, None, None, None]
    tile = tl.arange(0, TILES)[None, :, None, None, None, None, None]
    neighbour = tl.arange(0, 2)[None, None, :, None, None, None, None]
    repeat = tl.arange(0, REPEATS)[None, None, None, :, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, None, None, :, None, None]
    high = tl.arange(0, 8)[None, None, None, None, None, :, None]  # lane // 4
    low = tl.arange(0, 4)[None, None, None, None, None, None, :]  # lane % 4
    k = tile * 16 + low * 4 + column
    n = (repeat * WARPS + warp) * 16 + high * 2 + neighbour
    w_hh_ptr += k * WIDTH + n if TRANSPOSED else n * WIDTH + k
    x = tl.load(w_hh_ptr, mask=(n < WIDTH) & (k < WIDTH), other=0.0) if WIDTH < TILES * 16 else tl.load(w_hh_ptr)
    if x.dtype.primitive_bitwidth == 16:
        x = tl.permute(tl.reshape(x, (2, 2, TILES, 2, REPEATS, WARPS, 8, 4)), (2, 0, 7, 1, 4, 3, 5, 6))
    else:
        x = tl.permute(x, (1, 0, 6, 3, 2, 4, 5))
    return tl.reshape(x, (TILES * 16, TILES * 16))
