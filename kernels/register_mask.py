"""A tile of rows, and its mask made in registers and never stored.

A program owns ROWS rows of BLOCKS blocks of sixteen columns and calls Philox once a block. Memory is read and written
sixteen bytes a thread, so a block belongs to several threads, which gather its sixteen bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .philox import keep_bits


@triton.jit
def origin(columns, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """This program's first row and block; the columns of a row go to neighbouring programs."""
    tiles = tl.cdiv(tl.cdiv(columns, 16), BLOCKS)
    pid = tl.program_id(0)
    return (pid // tiles).to(tl.int64) * ROWS, pid % tiles * BLOCKS


@triton.jit
def tile(rows, columns, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr):
    """Row (ROWS, 1, 1) and column (1, 16*BLOCKS/VECTOR, VECTOR), int64, and which of them exist."""
    first_row, first_block = origin(columns, ROWS, BLOCKS)
    row = first_row + tl.arange(0, ROWS)[:, None, None]
    vector = tl.arange(0, BLOCKS * 16 // VECTOR)[None, :, None]
    column = first_block * 16 + vector * VECTOR + tl.arange(0, VECTOR)[None, None, :]
    return row, column.to(tl.int64), (row < rows) & (column < columns)


@triton.jit
def keep(seed_ptr, stream, columns, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr):
    """The tile's mask as booleans, (ROWS, 16*BLOCKS/VECTOR, VECTOR)."""
    first_row, first_block = origin(columns, ROWS, BLOCKS)
    row = first_row + tl.arange(0, ROWS)[:, None]
    block = first_block + tl.arange(0, BLOCKS)[None, :]
    bits = keep_bits(tl.load(seed_ptr), stream, row, block, tl.cdiv(columns, 16), threshold)
    # a plain broadcast lets the compiler call Philox once a thread instead of once a block
    PARTS: tl.constexpr = 16 // VECTOR
    vector = tl.arange(0, BLOCKS * PARTS)[None, :]
    bits = tl.gather(bits, tl.broadcast_to(vector // PARTS, (ROWS, BLOCKS * PARTS)), 1) >> (vector % PARTS * VECTOR)
    return (bits[:, :, None] & (1 << tl.arange(0, VECTOR))[None, None, :]) != 0


def tiles(out: Tensor, blocks: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the tile of so many blocks, a power of two of at least 32, for rows like those of `out`."""
    rows, columns = out.shape
    of_row = triton.cdiv(columns, 16)
    BLOCKS = min(triton.next_power_of_2(of_row), 32)
    ROWS = blocks // BLOCKS
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(of_row, BLOCKS),)
    options = {"ROWS": ROWS, "BLOCKS": BLOCKS, "VECTOR": 16 // out.element_size()}
    return grid, options | {"num_warps": 4, "enable_fp_fusion": True}
