"""The three ways in which the sequence kernels read packed masks, int32 (rows, ceil(H/32)): bit c % 32 of word c // 32 of a
row is 1 where column c is kept.

    resident        tile_words and tile_kept: one word for a lane's four columns of each row, loaded a step ahead
    cooperative     slice_words and words_keep: one word for a lane's two columns of each row, loaded before it waits
    stepwise        kept: a word for each element, which neighbouring lanes share. Of a GRU or an LSTM `cooperative` loads the
                    same words before it waits

None reads past a row, whose last word may have columns that are not there.
"""

import triton
import triton.language as tl

from .slice_layout import slice_rows


@triton.jit
def tile_words(row, H: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """Offsets of the words of a tile of tile_layout, (1, REPEATS, 2, WARPS, 8, 4), in the rows given (int64)."""
    WORDS: tl.constexpr = (H + 31) // 32
    repeat = tl.arange(0, REPEATS)[None, :, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, None, None, :, None, None]
    word = row * WORDS + tl.minimum((repeat * WARPS + warp) // 2, WORDS - 1)
    return tl.broadcast_to(word, (1, REPEATS, 2, WARPS, 8, 4))


@triton.jit
def tile_kept(words):
    """Booleans (4, REPEATS, 2, WARPS, 8, 4) of the words of a tile."""
    column = tl.arange(0, 4)[:, None, None, None, None, None]
    warp = tl.arange(0, words.shape[3])[None, None, None, :, None, None]
    lane = tl.arange(0, 4)[None, None, None, None, None, :]
    return words >> (warp % 2 * 16 + lane * 4) >> column & 1 != 0


@triton.jit
def drop_from_tile(x, words):
    """x (4, REPEATS, 2, WARPS, 8, 4) where its words keep it, 0 elsewhere, NaN or not."""
    return tl.where(tile_kept(words), x, 0.0)


@triton.jit
def slice_words(bits_ptr, first_row, there, pair, H: tl.constexpr):
    """The words of slice_layout's pairs of columns, (1, REPEATS, 2, WARPS, 8, 4), in the rows from first_row (int64). 0 where
    a row is not there."""
    WORDS: tl.constexpr = (H + 31) // 32
    word = pair // 32
    return tl.load(bits_ptr + first_row * WORDS + (slice_rows() * WORDS + word), mask=there & (word < WORDS), other=0)


@triton.jit
def words_keep(words, column):
    """Whether the words keep the columns given."""
    return (words >> (column % 32)) & 1 != 0


@triton.jit
def words(bits_ptr, row, column, H, inside):
    """The word of each element of the shape of `inside`, for rows (int64) and columns that broadcast to it. 0 where not
    inside."""
    return tl.load(bits_ptr + row * tl.cdiv(H, 32) + column // 32, mask=inside, other=0)


@triton.jit
def kept(bits_ptr, row, column, H, inside):
    """Booleans of the shape of `inside`, for rows (int64) and columns that broadcast to it. False where not inside."""
    return words_keep(words(bits_ptr, row, column, H, inside), column)
