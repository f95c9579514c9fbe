"""The mask stream: every dropout mask as a pure function of (seed, stream, row, column).

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key (seed, stream).
A row of H columns takes ``ceil(H/16)`` counters, a counter gives 16 words of 16 bits, and a word is kept where it is at
least ``threshold(p)``. No device, dtype, stride, tiling or number of threads enters, so every backend drops the same units.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kinds import KINDS

WORDS = 16  # 16-bit words a counter yields
RANGE = 65536  # values of a word
CHUNK = 1 << 17  # words drawn at a time: they stay in the L2 cache
SHARE = 1 << 18  # words that repay a second thread


class Mask(NamedTuple):
    """A mask: what is kept, in the form of the code that takes it, and what is multiplied by `scale` then.

    It has a row for each row of the sequences, (N, ...), or one for each sequence, (B, ...), which serves at all of its steps.
    Zoneout's has the scale 1; in evaluation it has no rows and is the expectation: `scale` is the old state's share. In a graph
    that is compiled `scale` may be a tensor.
    """

    keep: Tensor
    scale: float

    @property
    def is_expectation(self) -> bool:
        return self.keep.shape[-2] == 0


def check_probability(name: str, p: Any) -> float:
    """`p` as a float. Raises ValueError, naming the argument, unless it is a number in [0, 1]."""
    if isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, float, np.integer, np.floating)) or not 0 <= p <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, got {p!r}"
        )
    return float(p)


def check_seed(seed: Any, batch: int = 1) -> int | Tensor:
    """The seed as an int or an int64 tensor of one element, or of shape (`batch`), one for each sequence.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed should be an int or an int64 tensor, got a tensor of {seed.dtype}")
        if seed.numel() != 1 and seed.shape != (batch,):
            shapes = "one element" if batch == 1 else f"one element or of shape ({batch},), one for each sequence"
            raise ValueError(f"seed should be a tensor of {shapes}, got a tensor of shape {tuple(seed.shape)}")
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


def stream(kind: str, layer: int = 0, direction: int = 0) -> int:
    """The second word of the key: which mask of the network this is."""
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}. Select from {', '.join(map(repr, KINDS))}")
    if not 0 <= layer < 2**31 or direction not in (0, 1):
        raise ValueError(f"layer should be at least 0 and direction 0 or 1, got layer={layer!r}, direction={direction!r}")
    return KINDS[kind].number << 32 | layer << 1 | direction


def keep_bytes(seed: int, rows: int, columns: int, threshold: int, stream: int) -> Tensor:
    """The mask of `rows` rows as an int8 tensor of shape (rows, columns): -1 (all bits set) where kept, 0 where dropped.

    Negative seeds wrap modulo 2**64.
    """
    if threshold == RANGE:
        return torch.zeros((rows, columns), dtype=torch.int8)
    keep = np.empty((rows, columns), np.int8)
    workers = min(torch.get_num_threads(), rows * columns // SHARE) if rows * columns >= 2 * SHARE else 1
    if workers == 1 or not _fill_by_threads(keep, workers, seed, stream, threshold):
        _fill(keep, 0, rows, seed, stream, threshold)
    return torch.from_numpy(keep)


def factor(seed: int, rows: int, columns: int, p: float, stream: int, dtype: torch.dtype) -> Tensor:
    """The mask as float32 or float64 (rows, columns), with its scale: of a few rows, in as little time as can be."""
    blocks, least = -(-columns // WORDS), threshold(p)
    words = _thread.at(seed, stream, 0).random_raw(rows * blocks * 4).astype("<u8", copy=False).view("<u2")
    keep = words.reshape(rows, blocks * WORDS)[:, :columns] >= least
    return torch.from_numpy(np.multiply(keep, scale(p), dtype=np.float64 if dtype == torch.float64 else np.float32))


def share(p: float) -> float:
    """The part of the old state in the expectation of zoneout."""
    return threshold(p) / RANGE


def packed(keep: Tensor) -> Tensor:
    """A mask of bytes (rows, columns) as bits, int32 (rows, ceil(columns/32)): bit c % 32 of word c // 32 is column c."""
    rows, columns = keep.shape
    bits = np.zeros((rows, -(-columns // 32) * 4), np.uint8)
    bits[:, : -(-columns // 8)] = np.packbits(keep.numpy() != 0, axis=1, bitorder="little")
    return torch.from_numpy(bits.view("<i4").astype(np.int32, copy=False))


def unpacked(mask: Mask, columns: int) -> Mask:
    """A mask of bytes as it is, one of bits as bool, (rows, columns)."""
    if mask.is_expectation or mask.keep.dtype != torch.int32:
        return mask
    bit = torch.arange(32, dtype=torch.int32, device=mask.keep.device)
    return Mask((mask.keep.unsqueeze(-1) >> bit & 1).bool().flatten(-2).narrow(-1, 0, columns), mask.scale)


def columns_of(kind: str, states: Sequence[Tensor]) -> int:
    """The width of a mask inside the recurrence of these states."""
    state = KINDS[kind].state
    assert state is not None
    return states[state].shape[-1]


def by_element(masks: Mapping[str, Mask], states: Sequence[Tensor]) -> dict[str, Mask]:
    """The masks of all kinds as the plain loop of these states takes them, an element each."""
    return {kind: unpacked(mask, columns_of(kind, states)) for kind, mask in masks.items()}


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
        rows: number of rows; row ``t * B + b`` of a mask per step, row ``b`` of a mask per sequence. With a seed for each
            sequence, each is alone: row ``t``, or row 0, of its own seed. Of ``"weight"`` the rows are those of W_hh.
        columns: the hidden size H; of ``"input"`` the input size.
        p: probability of an element to be dropped, in units of 1/65536.
        layer: number of the layer, from 0; of ``"input"`` 0.
        direction: 0 forward, 1 reverse; of ``"input"`` 0, since both share it.
        kind: ``"hidden"``, ``"recurrent"``, ``"between"`` (layers, the number of the one below), ``"input"``, ``"output"`` (the
            number of the last layer), ``"weight"``, ``"zoneout"``, ``"cell"``, ``"cell_zoneout"`` or ``"candidate"``.

    Returns:
        A tensor of shape (rows, columns) in PyTorch's default dtype: 0 where dropped, ``1/(1-p)`` where kept. Zoneout
        takes the old state where it is 0 and the new one elsewhere, without the scale.

    Raises:
        ValueError: `p` outside [0, 1], an unknown `kind`, a negative size, `layer` or `direction`.
        TypeError: a seed that is neither an int nor an int64 tensor.
    """
    p = check_probability("p", p)
    if rows < 0 or columns < 0:
        raise ValueError(f"rows and columns should not be negative, got rows={rows!r}, columns={columns!r}")
    keep = keep_bytes(int(check_seed(seed)), rows, columns, threshold(p), stream(kind, layer, direction))
    return (keep != 0).to(torch.get_default_dtype()) * scale(p)


def _fill_by_threads(keep: np.ndarray, workers: int, seed: int, stream: int, threshold: int) -> bool:
    """Whether threads wrote the mask: they take no work once the interpreter has begun to shut down."""
    cuts = [len(keep) * i // workers for i in range(workers + 1)]
    try:
        parts = [_pool(os.getpid()).submit(_fill, keep, *part, seed, stream, threshold) for part in pairwise(cuts)]
    except RuntimeError:
        return False
    for part in parts:
        part.result()
    return True


def _fill(keep: np.ndarray, start: int, stop: int, seed: int, stream: int, threshold: int) -> None:
    """Writes rows [start, stop) of the mask, a cache-sized chunk at a time."""
    columns = keep.shape[1]
    blocks = -(-columns // WORDS)
    philox = _thread.at(seed, stream, start * blocks)
    rows = max(1, CHUNK // max(1, blocks * WORDS))
    for first in range(start, stop, rows):
        part = keep[first : min(first + rows, stop)]
        words = philox.random_raw(len(part) * blocks * 4).astype("<u8", copy=False).view("<u2")
        np.greater_equal(words.reshape(len(part), blocks * WORDS)[:, :columns], threshold, out=part.view(np.bool_))
        np.negative(part, out=part)


class _Thread(threading.local):
    """A generator for each thread: to make one takes ten times as long as to set its state."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.state = self.philox.state
        self.state["buffer_pos"] = 4  # nothing is left in the buffer
        self.counter, self.key = self.state["state"]["counter"], self.state["state"]["key"]
        self.counter[:] = 0

    def at(self, seed: int, stream: int, counter: int) -> np.random.Philox:
        """The generator before a block of a stream. NumPy advances the counter before it draws: the first is one more."""
        self.counter[0] = counter
        self.key[0] = seed % 2**64
        self.key[1] = stream
        self.philox.state = self.state
        return self.philox


_thread = _Thread()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads that draw masks; one pool a process, since threads do not survive a fork."""
    return ThreadPoolExecutor(thread_name_prefix="rnndrop-mask")
