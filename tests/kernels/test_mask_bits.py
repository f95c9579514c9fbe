"""The readers of packed masks against the booleans that were packed, none past the end of a row."""

import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels import mask_bits
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
    row, column = tl.arange(0, 16), tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    real = row < rows
    keep = mask_bits.slice_kept(bits_ptr, tl.cast(first_row, tl.int64), real, H, SLICE)
    tl.store(out_ptr + row[:, None] * H + column[None, :], keep.to(tl.float32), mask=real[:, None] & (column < H)[None, :])


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
    """Slices of 64 with H % 64 in 1 ... 32: bytes that are not there."""
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


def test_a_row_that_is_not_real_is_dropped(device):
    """Cooperative stores what it makes of such a row nowhere, but relies on the 0."""
    bits = torch.full((16, 1), -1, dtype=torch.int32, device=device)
    out = torch.full((16, 32), -1.0, device=device)
    unreal_kernel[(1,)](bits, out)
    assert (out[:5] == 1).all() and (out[5:] == 0).all()


@triton.jit
def unreal_kernel(bits_ptr, out_ptr):
    row, column = tl.arange(0, 16), tl.arange(0, 32)
    first = tl.cast(tl.program_id(0), tl.int64)
    keep = mask_bits.slice_kept(bits_ptr, first, row < 5, 32, 32)
    tl.store(out_ptr + row[:, None] * 32 + column[None, :], keep.to(tl.float32))
