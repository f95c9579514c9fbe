"""The sixteen bits of a row whose number needs more than 32 bits; the kernels' own tests see the rest."""

import pytest
import torch
import triton
import triton.language as tl

from rnndrop.kernels.philox import keep_bits
from tests import stream
from tests.helpers import seed_tensor


@triton.jit
def keep_bits_kernel(
    out_ptr, seed_ptr, key: tl.int64, first_row: tl.int64, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    row, block = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCKS)[None, :]
    bits = keep_bits(tl.load(seed_ptr), key, first_row + row.to(tl.int64), block, BLOCKS, threshold)
    tl.store(out_ptr + row * BLOCKS + block, bits)


@pytest.mark.parametrize("first_row", [0, 2**31 - 2, 2**40])
def test_row_numbers_past_32_bits(first_row, device):
    bits = torch.empty(8, 4, dtype=torch.int32, device=device)
    keep_bits_kernel[(1,)](bits, seed_tensor(-42, device), 1 << 32 | 6, first_row, 24000, ROWS=8, BLOCKS=4)
    keep = (bits.cpu()[:, :, None] >> torch.arange(16)) & 1
    assert torch.equal(keep.view(8, 64).bool(), stream.keep(-42, 8, 64, 24000, 1 << 32 | 6, first_row))
