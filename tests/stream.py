"""The mask stream as its definition has it, in Python's integers of any size, and masks packed into bits.

Nothing of the package is used, nor NumPy's generator: what is here is what every mask is compared with.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import torch
from torch import Tensor

RANGE = 2**16
WORD = 2**64 - 1
KINDS = {"hidden": 0, "recurrent": 1, "between": 2, "input": 3, "output": 4, "weight": 5, "zoneout": 6}
KINDS |= {"cell": 7, "cell_zoneout": 8, "candidate": 9}


def philox4x64(counter, key):
    """Philox4x64-10: four words of 64 bits."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(b >> 64) ^ c[1] ^ k[0], b & WORD, (a >> 64) ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    return c


def stream_of(kind: str = "hidden", layer: int = 0, direction: int = 0) -> int:
    """The second word of the key."""
    return KINDS[kind] << 32 | layer << 1 | direction


@functools.cache
def words_of_block(seed: int, stream: int, counter: int) -> tuple[int, ...]:
    """The sixteen words of 16 bits that follow from a counter."""
    results = philox4x64((counter, 0, 0, 0), (seed & WORD, stream))
    return tuple(result >> shift & 0xFFFF for result in results for shift in (0, 16, 32, 48))


def words_of_row(seed: int, stream: int, row: int, columns: int) -> list[int]:
    blocks = -(-columns // 16)
    words = [word for block in range(blocks) for word in words_of_block(seed, stream, row * blocks + block + 1)]
    return words[:columns]


def threshold_of(p: float) -> int:
    """p in units of 1/65536, to nearest, ties to even, in exact arithmetic; 0 and 65536 only for p = 0 and 1."""
    nearest = round(Fraction(p) * RANGE)
    return nearest if p in (0, 1) else min(max(nearest, 1), RANGE - 1)


def scale_of(threshold: int) -> float:
    """What is kept is multiplied by this."""
    return RANGE / (RANGE - threshold) if threshold < RANGE else 0.0


def keep(seed: int, rows: int, columns: int, threshold: int, stream: int, row_start: int = 0) -> Tensor:
    """The mask as booleans (rows, columns): true where kept."""
    words = [words_of_row(seed, stream, row_start + row, columns) for row in range(rows)]
    return torch.tensor(words, dtype=torch.int64).reshape(rows, columns) >= threshold


def pack(keep: Tensor) -> Tensor:
    """Booleans (rows, columns) as int32 (rows, ceil(columns/32)): bit c % 32 of word c // 32 is column c."""
    words = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 32)).view(len(keep), -1, 32)
    return (words.long() << torch.arange(32)).sum(2).to(torch.int32)


def unpack(words: Tensor, columns: int) -> Tensor:
    """Booleans (rows, columns) of packed bits; the bits past the last column must be 0."""
    bits = (words.cpu()[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    bits = bits.reshape(len(words), -1).bool()
    assert not bits[:, columns:].any()
    return bits[:, :columns]
