"""The mask stream, written twice without Triton: with NumPy's generator and in Python's integers."""

import numpy as np
import torch

WORD = 2**64 - 1


def keep(seed: int, rows: int, columns: int, threshold: int, stream: int, row_start: int = 0) -> torch.Tensor:
    """The mask as booleans (rows, columns), from numpy.random.Philox."""
    blocks = -(-columns // 16)
    key = np.array([seed & WORD, stream], np.uint64)
    raw = np.random.Philox(key=key, counter=row_start * blocks).random_raw(rows * blocks * 4)
    words = raw.astype("<u8").view("<u2").reshape(rows, blocks * 16)
    return torch.from_numpy(words[:, :columns] >= threshold)


def keep_one(seed: int, row: int, column: int, columns: int, threshold: int, stream: int) -> bool:
    """One element of the same mask, in integers of any size."""
    c = [row * -(-columns // 16) + column // 16 + 1, 0, 0, 0]
    k = [seed & WORD, stream]
    for _ in range(10):
        a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(b >> 64) ^ c[1] ^ k[0], b & WORD, (a >> 64) ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    i = column % 16
    return (c[i // 4] >> (i % 4 * 16)) % 65536 >= threshold


def pack(keep: torch.Tensor) -> torch.Tensor:
    """Booleans (rows, columns) as bits, int32 (rows, ceil(columns/32))."""
    words = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 32)).view(len(keep), -1, 32)
    return (words.long() << torch.arange(32)).sum(2).to(torch.int32)


def unpack(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Booleans (rows, columns) from packed bits; the bits past the last column must be 0."""
    bits = (words.cpu()[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    bits = bits.reshape(len(words), -1).bool()
    assert not bits[:, columns:].any()
    return bits[:, :columns]


def scale(threshold: int) -> float:
    return 65536 / (65536 - threshold) if threshold < 65536 else 0.0
