"""Rows as NumPy sees them, and masks as wide as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...mask import Mask
from ...steps import Steps

CHUNK = 1 << 16  # elements widened or differentiated at a time: they stay in the L2 cache
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUMPY = (torch.float32, torch.float64)  # NumPy has no bfloat16, and computes float16 slowly

Range = tuple[int, int]  # a first row, and the row after the last


def numbers_of(x: Tensor) -> Any:
    """The elements as NumPy sees them, where it is the faster of the two."""
    return x.numpy() if x.dtype in NUMPY else x


def bits_of(x: Tensor) -> np.ndarray:
    """The elements as integers of their width."""
    return x.view(INTEGER[x.element_size()]).numpy()


def rows_of(x: Any, ranges: list[Range]) -> list[Any]:
    return [x[start:stop] for start, stop in ranges]


def states_before(states: Any, initial: Any, ranges: list[Range]) -> Iterator[tuple[Any, Any]]:
    """The rows of each step and of that before it; `initial` (B, H) is before a sequence's first."""
    join, before = np.concatenate if isinstance(initial, np.ndarray) else torch.cat, initial[:0]
    for now in rows_of(states, ranges):
        if len(now) > len(before):
            before = join([before, initial[len(before) : len(now)]])
        yield now, before[: len(now)]
        before = now


def multiplier(like: Tensor) -> Callable[..., Any]:
    return np.multiply if like.dtype in NUMPY else torch.multiply


def activation_of(name: str, like: Tensor) -> Callable[[Any, Any], Any]:
    """f of the first argument, into the second, which is the same."""
    if name == "identity":
        return lambda x, y: x
    if like.dtype in NUMPY:
        return np.tanh if name == "tanh" else lambda x, y: np.maximum(x, 0, out=y)
    in_place = torch.tanh_ if name == "tanh" else torch.relu_
    return lambda x, y: in_place(y)


def finite(scale: float, like: Tensor) -> float:
    """The scale, or the largest number of the dtype: for one p, 1 - 2**-16, it is no float16."""
    return min(scale, torch.finfo(like.dtype).max)


def slopes_of(gates: Tensor, output: Tensor, ranges: list[Range], scale: float) -> Iterator[Any]:
    """The rows of each range of `gates`, filled with scale * tanh'(a), computed from the output where it was kept."""
    rows, scale = numbers_of(gates), finite(scale, output)
    kept = output.new_full((), scale)
    for first, last, chunk in _chunks(ranges, output.shape[1]):
        y, slope = output[first:last], gates[first:last]
        torch.addcmul(kept, y, y, value=-1 / scale if scale else 0.0, out=slope)  # 1 - f**2
        yield from rows_of(rows, chunk)


def passing(gates: Tensor, output: Tensor, ranges: list[Range]) -> Iterator[np.ndarray]:
    """The bits of each range of `gates`: all set where relu lets a gradient pass, none where its output is 0."""
    integers = gates.view(INTEGER[gates.element_size()])
    bits = integers.numpy()
    for first, last, chunk in _chunks(ranges, output.shape[1]):
        integers[first:last].copy_(output[first:last] <= 0).sub_(1)
        yield from rows_of(bits, chunk)


def step_masks(mask: Mask | None, steps: Steps, like: Tensor) -> Iterator[Any]:
    """The mask of each step, as wide as an element of `like`; None without end where nothing is dropped."""
    if mask is None:
        return repeat(None)
    if mask.keep.shape[0] == steps.rows:
        return widened(mask.keep, steps.ranges, like.element_size())
    wide = mask.keep.to(INTEGER[like.element_size()]).numpy()
    return iter([wide[: stop - start] for start, stop in steps.ranges])


def widened(keep: Tensor, ranges: list[Range], size: int) -> Iterator[np.ndarray]:
    """The mask of each range, `size` bytes an element."""
    for first, last, chunk in _chunks(ranges, keep.shape[1]):
        wide = keep[first:last].to(INTEGER[size]).numpy()
        yield from [wide[start - first : stop - first] for start, stop in chunk]


def _chunks(ranges: list[Range], width: int) -> Iterator[tuple[int, int, list[Range]]]:
    """Neighbouring ranges that fit the cache together: their first row, the row after their last, and the ranges."""
    most = max(1, CHUNK // max(1, width * max((stop - start for start, stop in ranges), default=0)))
    for i in range(0, len(ranges), most):
        chunk = ranges[i : i + most]
        yield min(chunk)[0], max(chunk)[1], chunk
