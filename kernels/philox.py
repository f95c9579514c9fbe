"""The mask stream on a device: Philox4x64-10 with key (seed, stream), sixteen mask elements a call.

Columns 16*b ... 16*b+15 of row r come from counter (r*blocks + b + 1, 0, 0, 0), where blocks = ceil(columns/16).
Its four 64-bit results are sixteen 16-bit words, little-endian; column 16*b+i is kept where word i >= threshold.
"""

import triton
import triton.language as tl


@triton.jit
def keep_bits(seed, stream, row, block, blocks, threshold):
    """Sixteen mask elements an entry, int32: bit i is 1 where column 16*block+i of the row is kept.

    seed, stream: 64-bit scalars. row, block: any integers that broadcast to the result's shape. threshold: 0 ... 65536.
    """
    counter = (row.to(tl.int64) * blocks + block + 1).to(tl.uint64)
    zero = tl.zeros_like(counter)
    w0, w1, w2, w3 = tl.random.philox_impl(counter, zero, zero, zero, seed.to(tl.uint64), stream.to(tl.uint64))
    return _at_least(w0, w1, w2, w3, threshold)


@triton.jit
def _at_least(w0, w1, w2, w3, threshold):
    """Compare the sixteen 16-bit lanes of four 64-bit words with the threshold; lane i of the sixteen gives bit i.

    With t <= 2**15, x >= t is bit 15 of ((x | 2**15) - t) | x, and no lane borrows from the next.
    A larger threshold is the same question about the complements: x >= t is not (~x >= 2**16 - t).
    """
    large = threshold > 32768
    flip = tl.where(large, -1, 0).to(tl.int64).to(tl.uint64, bitcast=True)
    t = tl.where(large, 65536 - threshold, threshold).to(tl.uint64) * 0x0001000100010001
    bits = _top_bits(w0 ^ flip, t) >> 15
    bits |= _top_bits(w1 ^ flip, t) >> 11
    bits |= _top_bits(w2 ^ flip, t) >> 7
    bits |= _top_bits(w3 ^ flip, t) >> 3
    # lane j of word w is now bit 16*j + 4*w; the product moves it to 48 + 4*w + j and everything else below or out
    return (((bits * 0x0001000200040008) ^ flip) >> 48).to(tl.int32)


@triton.jit
def _top_bits(x, t):
    return (((x | 0x8000800080008000) - t) | x) & 0x8000800080008000
