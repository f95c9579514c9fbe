"""The tile's axes, and the fragments that the tensor cores define: element by element, and there and back."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels.tile_layout import from_result, load_right, tile_columns, tile_rows, to_left, to_result

SHAPES = [(1, 1), (1, 4), (2, 8)]  # repeats and warps


@triton.jit
def load_kernel(x_ptr, result_ptr, left_ptr, back_ptr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """Rows of x as a tile; its fragments as matrices; the tile that comes back, stored where a tile belongs."""
    COLUMNS: tl.constexpr = REPEATS * WARPS * 16
    at = tile_rows() * COLUMNS + tile_columns(REPEATS, WARPS)
    tile = tl.load(x_ptr + at)
    matrix = tl.arange(0, 16)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(result_ptr + matrix, to_result(tile))
    tl.store(left_ptr + matrix, to_left(tile))
    tl.store(back_ptr + at, from_result(to_result(tile), REPEATS))


@triton.jit
def right_kernel(w_ptr, out_ptr, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr, TRANSPOSED: tl.constexpr):
    COLUMNS: tl.constexpr = REPEATS * WARPS * 16
    matrix = tl.arange(0, COLUMNS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + matrix, load_right(w_ptr, WIDTH, REPEATS, WARPS, TRANSPOSED))


def result_columns(repeats, warps):
    """Column of memory at each column of a result. An mma of 8 columns gives lane % 4 = q its columns 2 q and 2 q + 1; the
    warps' mmas lie side by side, twice in a repeat."""
    order = []
    for repeat, half, warp, q, pair in itertools.product(range(repeats), range(2), range(warps), range(4), range(2)):
        order.append(16 * (warps * repeat + warp) + 4 * q + 2 * pair + half)
    return order


def left_columns(repeats, warps, dtype):
    """Column of memory at each column of a left operand. Of 16 columns, lane % 4 = q holds 2 q, 2 q + 1, 2 q + 8, 2 q + 9 in
    16 bit; of 8 in fp32 q and q + 4. Its columns of memory are four neighbours."""
    order = []
    for tile in range(repeats * warps):
        held = {}
        for q in range(4):
            places = [2 * q, 2 * q + 1, 2 * q + 8, 2 * q + 9] if dtype.itemsize == 2 else [q, q + 4, q + 8, q + 12]
            held |= {place: 16 * tile + 4 * q + c for c, place in enumerate(places)}
        order += [held[place] for place in range(16)]
    return order


@pytest.mark.parametrize("repeats, warps", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_element_is_in_its_place_and_comes_back(repeats, warps, dtype, device):
    columns = repeats * warps * 16
    x = torch.randn(16, columns).to(dtype).to(device)
    result, left, back = (torch.zeros_like(x) for _ in range(3))
    load_kernel[(1,)](x, result, left, back, repeats, warps, num_warps=warps)
    assert torch.equal(result, x[:, result_columns(repeats, warps)])
    assert torch.equal(left, x[:, left_columns(repeats, warps, dtype)])
    assert torch.equal(back, x)


@pytest.mark.parametrize("width", [16, 12, 64, 52])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_weight_in_the_same_order(width, dtype, transposed, device):
    repeats, warps = 1, max(1, triton.next_power_of_2(width) // 16)
    columns = repeats * warps * 16
    w = torch.randn(width, width).to(dtype).to(device)
    out = torch.zeros(columns, columns, dtype=dtype, device=device)
    right_kernel[(1,)](w, out, width, repeats, warps, transposed, num_warps=warps)
    full = torch.zeros_like(out)
    full[:width, :width] = w if transposed else w.t()
    assert torch.equal(out, full[left_columns(repeats, warps, dtype)][:, result_columns(repeats, warps)])


def test_the_tile_as_it_is_drawn(device):
    """The docstring's picture: lane 4 r + q of a warp has rows r and r + 8, columns 4 q ... 4 q + 3."""
    from rnndrop.kernels import tile_layout

    lines = [line.split() for line in tile_layout.__doc__.splitlines()]
    drawn = [[int(n) for n in line[1:17]] for line in lines if len(line) > 16 and line[0].isdigit()]
    assert drawn == [[row % 8 * 4 + column // 4 for column in range(16)] for row in range(16)]
