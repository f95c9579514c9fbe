"""The readers of packed masks against the booleans that were packed, none past the end of a row."""

import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels import mask_bits
from rnndrop.kernels.slice_layout import both_columns, slice_pairs, slice_rows
from rnndrop.kernels.tile_layout import tile_columns, tile_rows
from tests import stream


@triton.jit
def tile_kernel(bits_ptr, out_ptr, rows, H: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    row = tile_rows()
    words = tl.load(bits_ptr + mask_bits.tile_words(row, H, REPEATS, WARPS), mask=row < rows, other=0)
    column = tile_columns(REPEATS, WARPS)
    ones = tl.full([4, REPEATS, 2, WARPS, 8, 4], 1.0, tl.float32)
    tl.store(out_ptr + row * H + column, mask_bits.drop_from_tile(ones, words), mask=(row < rows) & (column < H))


@triton.jit
def slice_kernel(bits_ptr, out_ptr, first_row, rows, H: tl.constexpr, SLICE: tl.constexpr):
    row, pair = slice_rows(), slice_pairs(SLICE)
    column = both_columns(pair)
    words = mask_bits.slice_words(bits_ptr, tl.cast(first_row, tl.int64), row < rows, pair, H)
    keep = mask_bits.words_keep(words, column)
    tl.store(out_ptr + row * H + column, keep.to(tl.float32), mask=(row < rows) & (column < H))


@triton.jit
def words_kernel(bits_ptr, out_ptr, rows, H, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None].to(tl.int64), tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < H)
    keep = mask_bits.kept(bits_ptr, row, column, H, inside)
    tl.store(out_ptr + row * H + column, keep.to(tl.float32), mask=inside)


def a_mask(rows, H, device):
    """Booleans, and their bits at the end of what was allocated: a reader that goes on past them leaves the tensor."""
    keep = stream.keep(11, rows, H, 30000, 0)
    return keep, stream.pack(keep).to(device)


SIZES = [1, 16, 31, 32, 33, 64, 65, 80, 96, 100, 128]


@pytest.mark.parametrize("H", [*SIZES, 129, 160, 192, 193, 224, 250, 256])
def test_resident(H, device):
    """H in 65 ... 96 and 129 ... 224: the tile has columns whose word is not there."""
    keep, bits = a_mask(7, H, device)
    columns = max(16, triton.next_power_of_2(H))
    warps = min(columns // 16, 8)
    out = torch.full((7, H), -1.0, device=device)
    tile_kernel[(1,)](bits, out, 7, H, columns // 16 // warps, warps, num_warps=warps)
    assert torch.equal(out.cpu() != 0, keep) and (out >= 0).all()


@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("SLICE", [16, 32, 64])
def test_cooperative(H, SLICE, device):
    """Slices of 64 with H % 64 in 1 ... 32: words that are not there."""
    keep, bits = a_mask(9, H, device)
    out = torch.full((7, H), -1.0, device=device)
    slice_kernel[(triton.cdiv(H, SLICE),)](bits, out, 2, 7, H, SLICE)
    assert torch.equal(out.cpu() != 0, keep[2:]) and (out >= 0).all()


@pytest.mark.parametrize("H", SIZES)
def test_stepwise(H, device):
    keep, bits = a_mask(7, H, device)
    out = torch.full((7, H), -1.0, device=device)
    words_kernel[(1,)](bits, out, 7, H, 8, triton.next_power_of_2(H))
    assert torch.equal(out.cpu() != 0, keep) and (out >= 0).all()
