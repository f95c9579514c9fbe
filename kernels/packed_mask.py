"""A mask as bits: 1/32 of the bytes of one fp32 activation, written once and read by the sequence kernels.

int32 (rows, ceil(columns/32)); bit c % 32 of word c // 32 is 1 where column c is kept; bits past the last column are 0.
A thread makes whole words, two Philox calls each: 9.2 PTX instructions and 1/8 byte written an element (COSTS.md), nothing
read but the seed. Bound by the instructions: from the data sheets about 0.5 us a million elements on an A100, 0.3 us on an
H100. Not timed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import keep_bits


@triton.jit(do_not_specialize=["rows", "threshold", "site"])
def packed_mask_kernel(
    out,                            # (rows, words) int32
    seed,                           # (1,) int64
    rows: tl.int64, columns, threshold: tl.int32, site: tl.int64,
    ROWS: tl.constexpr, WORDS: tl.constexpr,
):
    words = tl.cdiv(columns, 32)
    tiles = tl.cdiv(words, WORDS)
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word = pid % tiles * WORDS + tl.arange(0, WORDS)[None, :]
    key, blocks = tl.load(seed), tl.cdiv(columns, 16)
    bits = keep_bits(key, site, row, word * 2, blocks, threshold)
    bits |= keep_bits(key, site, row, word * 2 + 1, blocks, threshold) << 16
    left = columns - word * 32
    bits &= tl.where(left < 32, (1 << left) - 1, -1)
    tl.store(out + row * words + word, bits, mask=(row < rows) & (word < words))


def packed_mask(seed: Tensor, rows: int, columns: int, threshold: int, site: int, *,
                out: Tensor | None = None) -> Tensor:
    """Write rows 0 ... rows-1 of a site's mask. seed: one int64 on the device; threshold: 0 (keep) ... 65536 (drop)."""
    words = triton.cdiv(columns, 32)
    if out is None:
        out = torch.empty((rows, words), dtype=torch.int32, device=seed.device)
    if out.numel() == 0:
        return out
    WORDS = min(triton.next_power_of_2(words), 128)
    ROWS = 128 // WORDS
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(words, WORDS),)
    packed_mask_kernel[grid](out, seed, rows, columns, threshold, site, ROWS=ROWS, WORDS=WORDS, num_warps=4)
    return out
