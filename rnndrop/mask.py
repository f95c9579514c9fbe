"""The mask stream: every dropout mask as a pure function of (seed, site, row, column).

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key (seed, site).
A row of H columns takes ``ceil(H/16)`` counters, a counter gives 16 words of 16 bits, and a word is kept where it is at
least ``threshold(p)``. No device, dtype, stride, tiling or number of threads enters, so every backend drops the same units.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

KINDS = {"hidden": 0, "recurrent": 1, "between": 2}
WORDS = 16  # 16-bit words a counter yields
RANGE = 65536  # values of a word
CHUNK = 1 << 17  # words drawn at a time: they stay in the second-level cache
SHARE = 1 << 18  # words that repay a second thread


class Mask(NamedTuple):
    """A mask as a backend holds it. `keep` has a row for each step and sequence, (T*B, ...), where every step has a mask of its
    own (`per_step`), and else one for each sequence, (B, ...). What is kept is multiplied by `scale`."""

    keep: Tensor
    scale: float
    per_step: bool


def check_probability(name: str, p: Any) -> float:
    """`p` as a float. Raises ValueError, naming the argument, unless it is a number in [0, 1]."""
    if isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, float, np.integer, np.floating)) or not 0 <= p <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, got {p!r}"
        )
    return float(p)


def check_seed(seed: Any) -> int | Tensor:
    """The seed as an int or an int64 tensor of one element. Raises TypeError or ValueError where it is neither."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed should be an int or an int64 tensor, got a tensor of {seed.dtype}")
        if seed.numel() != 1:
            raise ValueError(f"seed should be a tensor of one element, got a tensor of shape {tuple(seed.shape)}")
        return seed
    if isinstance(seed, np.integer):
        return int(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed should be an int or an int64 tensor, got {type(seed).__name__}")
    return seed


def threshold(p: float) -> int:
    """Words below this are dropped: p in units of 1/65536, to nearest, and 0 or 65536 only for p = 0 or 1."""
    if p in (0, 1):
        return int(p) * RANGE
    return min(max(round(p * RANGE), 1), RANGE - 1)


def scale(p: float) -> float:
    """What a kept element is multiplied by, so that the expectation is exact; 0 where p = 1 keeps none."""
    kept = RANGE - threshold(p)
    return RANGE / kept if kept else 0.0


def site(kind: str, layer: int = 0, direction: int = 0) -> int:
    """The second word of the key: which mask of the network this is."""
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}. Select from {', '.join(map(repr, KINDS))}")
    if not 0 <= layer < 2**31 or direction not in (0, 1):
        raise ValueError(f"layer should be at least 0 and direction 0 or 1, got layer={layer!r}, direction={direction!r}")
    return KINDS[kind] << 32 | layer << 1 | direction


def keep_bytes(seed: int, rows: int, columns: int, p: float, where: int) -> Tensor:
    """The mask of `rows` rows as an int8 tensor of shape (rows, columns): -1 (all bits set) where kept, 0 where dropped.

    `where` is a :func:`site`. Negative seeds wrap modulo 2**64.
    """
    keep = np.empty((rows, columns), np.int8) if p < 1 else np.zeros((rows, columns), np.int8)
    if p < 1:
        workers = min(torch.get_num_threads(), rows * columns // SHARE)
        if workers > 1:
            cuts = [rows * i // workers for i in range(workers + 1)]
            list(_pool(os.getpid()).map(lambda part: _fill(keep, part[0], part[1], seed, where, threshold(p)), pairwise(cuts)))
        else:
            _fill(keep, 0, rows, seed, where, threshold(p))
    return torch.from_numpy(keep)


def dropout_mask(
    seed: int | Tensor,
    rows: int,
    columns: int,
    p: float,
    *,
    layer: int = 0,
    direction: int = 0,
    kind: str = "hidden",
) -> Tensor:
    """The mask that a layer with this seed multiplies by, for tests, for plots, for the curious.

    Args:
        seed: an int (modulo 2**64) or an int64 tensor of one element.
        rows: number of rows; row ``t * B + b`` of a mask per step, row ``b`` of a mask per sequence.
        columns: the hidden size H.
        p: probability of an element to be zeroed, in units of 1/65536.
        layer: number of the layer, from 0.
        direction: 0 forward, 1 reverse.
        kind: ``"hidden"``, ``"recurrent"`` or ``"between"`` (layers).

    Returns:
        A tensor of shape (rows, columns) in PyTorch's default dtype: 0 where dropped, ``1/(1-p)`` where kept.

    Raises:
        ValueError: `p` outside [0, 1], an unknown `kind`, a negative size, `layer` or `direction`.
        TypeError: a seed that is neither an int nor an int64 tensor.
    """
    p = check_probability("p", p)
    if rows < 0 or columns < 0:
        raise ValueError(f"rows and columns should not be negative, got rows={rows!r}, columns={columns!r}")
    keep = keep_bytes(int(check_seed(seed)), rows, columns, p, site(kind, layer, direction))
    return (keep != 0).to(torch.get_default_dtype()) * scale(p)


def _fill(keep: np.ndarray, start: int, stop: int, seed: int, where: int, threshold: int) -> None:
    """Writes rows [start, stop) of the mask, a cache-sized chunk at a time."""
    columns = keep.shape[1]
    blocks = -(-columns // WORDS)
    philox = _thread.philox
    # NumPy advances the counter before it draws: this start makes the first counter start*blocks + 1.
    philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": _words(start * blocks, 0, 0, 0), "key": _words(seed % 2**64, where)},
        "buffer": _words(0, 0, 0, 0),
        "buffer_pos": 4,  # nothing left in the buffer
        "has_uint32": 0,
        "uinteger": 0,
    }
    rows = max(1, CHUNK // max(1, blocks * WORDS))
    for first in range(start, stop, rows):
        part = keep[first : min(first + rows, stop)]
        words = philox.random_raw(len(part) * blocks * 4).astype("<u8", copy=False).view("<u2")
        np.greater_equal(words.reshape(len(part), blocks * WORDS)[:, :columns], threshold, out=part.view(np.bool_))
        np.negative(part, out=part)


def _words(*words: int) -> np.ndarray:
    return np.array(words, np.uint64)


class _Thread(threading.local):
    """A generator for each thread: to make one takes ten times as long as to set its state."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)


_thread = _Thread()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads that draw masks; one pool a process, since threads do not survive a fork."""
    return ThreadPoolExecutor(thread_name_prefix="rnndrop-mask")
