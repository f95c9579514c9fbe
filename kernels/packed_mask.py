"""A mask as bits: 1/32 of the bytes of one fp32 activation, written once and read by the sequence kernels.

A thread makes whole words, two Philox calls each, and reads nothing but the seed. Bound by the instructions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device
from .philox import keep_bits


@triton.jit(do_not_specialize=["rows", "seeds", "threshold", "stream"])
def packed_mask_kernel(
    out_ptr,  # (rows, words) int32
    seed_ptr,  # (seeds) int64
    rows: tl.int64,
    seeds: tl.int64,
    columns,
    threshold: tl.int32,
    stream: tl.int64,
    SEVERAL: tl.constexpr,  # seeds > 1
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    words = tl.cdiv(columns, 32)
    tiles = tl.cdiv(words, WORDS)
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word = pid % tiles * WORDS + tl.arange(0, WORDS)[None, :]
    blocks = tl.cdiv(columns, 16)
    seed, row_of_seed = (tl.load(seed_ptr + row % seeds), row // seeds) if SEVERAL else (tl.load(seed_ptr), row)
    bits = keep_bits(seed, stream, row_of_seed, word * 2, blocks, threshold)
    bits |= keep_bits(seed, stream, row_of_seed, word * 2 + 1, blocks, threshold) << 16
    left = columns - word * 32
    bits &= tl.where(left < 32, (1 << left) - 1, -1)
    tl.store(out_ptr + row * words + word, bits, mask=(row < rows) & (word < words))


def packed_mask(seed: Tensor, rows: int, columns: int, threshold: int, stream: int) -> Tensor:
    """Rows 0 ... rows-1 of a mask as bits.

    Args:
        seed: int64 (S), on the device. Row r is row r // S of the mask of seed r % S.
        threshold: 0 (keep all) ... 65536 (drop all).
        stream: the number of the mask among those of one seed.

    Returns:
        int32 (rows, ceil(columns/32)): bit c % 32 of word c // 32 is 1 where column c is kept; past the last column 0.
    """
    words, seeds = triton.cdiv(columns, 32), seed.shape[0]
    out = torch.empty((rows, words), dtype=torch.int32, device=seed.device)
    if out.numel() == 0:
        return out
    WORDS = min(triton.next_power_of_2(words), 128)
    ROWS = 128 // WORDS
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(words, WORDS),)
    with on_device(out):
        packed_mask_kernel[grid](
            out, seed, rows, seeds, columns, threshold, stream, SEVERAL=seeds > 1, ROWS=ROWS, WORDS=WORDS, num_warps=4
        )
    return out
