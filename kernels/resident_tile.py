"""What the resident kernels of every cell load of memory, most of it a step ahead."""

import triton
import triton.language as tl

from .mask_bits import tile_words
from .tile_layout import tile_columns


@triton.jit
def load_tile(pointers, there, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """A tile, 0 where `there` denies its rows and in the columns past a row in memory."""
    padded: tl.constexpr = WIDTH < REPEATS * WARPS * 16
    return tl.load(pointers, mask=there & (tile_columns(REPEATS, WARPS) < WIDTH) if padded else there, other=0.0)


@triton.jit
def clear_padding(x, REAL: tl.constexpr):
    """0 in the columns that are not real, where an infinite or NaN h has met the zeros of W_hh."""
    REPEATS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    return tl.where(tile_columns(REPEATS, WARPS) < REAL, x, 0.0) if REAL < REPEATS * WARPS * 16 else x


@triton.jit
def first_words(
    bits_ptr,  # or None
    start,  # the step's first row in a mask per step
    sequences,  # the first row in a mask per sequence
    row,
    real,  # rows that the step has
    there,  # rows that are sequences
    PER_STEP: tl.constexpr,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """A mask's words of the first step; 0 where there is no mask."""
    if bits_ptr is None:
        return tl.cast(0, tl.int32)
    elif PER_STEP:
        return tl.load(bits_ptr + tile_words(start + row, H, REPEATS, WARPS), mask=real, other=0)
    else:
        return tl.load(bits_ptr + tile_words(sequences + row, H, REPEATS, WARPS), mask=there, other=0)


@triton.jit
def next_words(bits_ptr, word, real, words, PER_STEP: tl.constexpr):
    """A mask's words of the next step; those at hand, `words`, of a mask that has none."""
    if PER_STEP:
        return tl.load(bits_ptr + word, mask=real, other=0)
    else:
        return words


@triton.jit
def size_of_step(offsets_ptr, t, T):
    """The rows of step t of packed data; 0 where there is no such step."""
    there = (t >= 0) & (t < T)
    start = tl.load(offsets_ptr + t, mask=there, other=0)
    return (tl.load(offsets_ptr + t + 1, mask=there, other=0) - start).to(tl.int32)
