"""Rows as NumPy sees them, and masks as wide as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...mask import Mask
from ...steps import Steps

CHUNK = 1 << 16  # elements widened or differentiated at a time: they stay in the L2 cache
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
WIDE = (torch.float32, torch.float64)  # NumPy has no bfloat16, and computes float16 slowly
UNITS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}  # that multiply a dtype

Array = np.ndarray
Numbers = Any  # a NumPy array, or a tensor where NumPy does not compute in the dtype
Range = tuple[int, int]  # a first row, and the row after the last
Collect = Callable[[int, int, Tensor], None]  # takes the rows [first, last) of something, and these


@cache
def computes_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself, or float32 where the processor has no units for it: then products take many times as long."""
    if dtype in WIDE:
        return dtype
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return dtype if any(found.get(unit) for unit in UNITS[dtype]) else torch.float32


def library_of(x: Tensor) -> Any:
    """What computes on the elements of x, NumPy where it is the faster of the two."""
    return np if x.dtype in WIDE else torch


def numbers_of(x: Tensor) -> Numbers:
    """The elements as that library takes them."""
    return x.numpy() if x.dtype in WIDE else x


def bits_of(x: Numbers) -> Array:
    """The elements as integers of their width."""
    return x.view(f"i{x.itemsize}") if isinstance(x, Array) else x.view(INTEGER[x.element_size()]).numpy()


def keep_only(x: Numbers, keep: Array) -> None:
    """Zeroes what the mask drops."""
    of_x = bits_of(x)
    np.bitwise_and(of_x, keep, of_x)


def activation_of(name: str, like: Tensor) -> Callable[[Numbers, Numbers], Any]:
    """f of the first argument, into the second, which is the same."""
    if like.dtype in WIDE:
        return np.tanh if name == "tanh" else lambda x, y: np.maximum(x, 0, out=y)
    in_place = torch.tanh_ if name == "tanh" else torch.relu_
    return lambda x, y: in_place(y)


def finite(scale: float, like: Tensor) -> float:
    """The scale, or the largest number of the dtype: for one p, 1 - 2**-16, it is no float16."""
    return min(scale, torch.finfo(like.dtype).max)


def rows_of(x: Numbers, ranges: list[Range], first: int = 0) -> list[Numbers]:
    """The rows of neighbouring ranges, of x (n, H), whose first row is `first`."""
    (start, stop), (other, end) = ranges[0], ranges[-1]
    if stop - start != end - other:
        return [x[start - first : stop - first] for start, stop in ranges]
    # Sizes never increase in time: all are equal, and NumPy takes them apart at once.
    rows = list(x[min(start, other) - first : max(stop, end) - first].reshape(len(ranges), stop - start, *x.shape[1:]))
    return rows[::-1] if start > other else rows


def halves(which: Sequence[bool], like: Tensor) -> Array:
    """What the arguments of gates (G*H), G times as wide as `like`, are multiplied by before tanh, and tanh after it, for those
    `which` are sigmoids to come of it: sigmoid(x) = (1 + tanh(x/2)) / 2."""
    return np.repeat(np.array([0.5 if one else 1.0 for one in which], like.numpy().dtype), like.shape[1])


def activation_of_gates(which: Sequence[bool], like: Tensor) -> Callable[[Array], None]:
    """A function that activates in place the gates of as many rows as `like` (B, H), or fewer, whose weights took `halves`."""
    scale = np.tile(halves(which, like), (len(like), 1))
    shift = 1 - scale

    def activate(gates: Array) -> None:
        size = len(gates)
        np.tanh(gates, gates)
        np.multiply(gates, scale[:size], gates)
        np.add(gates, shift[:size], gates)

    return activate


def rows_of_steps(x: Tensor, steps: Steps) -> list[Numbers]:
    """The rows of each step of x (N, H) or (T, B, H), of any strides."""
    numbers = numbers_of(x.resolve_neg())
    if x.dim() == 2:
        return rows_of(numbers, steps.ranges)
    return list(numbers)[::-1] if steps.reverse else list(numbers)


def states_before(states: Numbers, initial: Numbers, ranges: list[Range]) -> Iterator[tuple[Numbers, Numbers]]:
    """The rows of each step and of that before it; `initial` (B, H) is before a sequence's first."""
    every = rows_of(states, ranges)
    if every[0].shape == every[-1].shape == initial.shape:
        yield from zip(every, [initial, *every[:-1]], strict=True)
        return
    join, before = np.concatenate if isinstance(initial, Array) else torch.cat, initial[:0]
    for now in every:
        if len(now) > len(before):
            before = join([before, initial[len(before) : len(now)]])
        yield now, before[: len(now)]
        before = now


def slopes_of(gates: Tensor, output: Tensor, ranges: list[Range], scale: float, start: int = 0) -> Iterator[Numbers]:
    """The rows of each range of `gates`, whose first row is row `start`, filled with scale * tanh'(a), computed from the output
    where it was kept."""
    rows, scale = numbers_of(gates), finite(scale, output)
    kept = output.new_full((), scale)
    for first, last, chunk in chunks(ranges, output.shape[1]):
        y, slope = output[first:last], gates[first - start : last - start]
        torch.addcmul(kept, y, y, value=-1 / scale if scale else 0.0, out=slope)  # 1 - f**2
        yield from rows_of(rows, chunk, start)


def passing(gates: Tensor, output: Tensor, ranges: list[Range], start: int) -> Iterator[Array]:
    """The bits of each range of `gates`: all set where relu lets a gradient pass, none where its output is 0."""
    integers = gates.view(INTEGER[gates.element_size()])
    for first, last, chunk in chunks(ranges, output.shape[1]):
        integers[first - start : last - start].copy_(output[first:last] <= 0).sub_(1)
        yield from rows_of(integers.numpy(), chunk, start)


def step_masks(mask: Mask | None, steps: Steps, like: Tensor) -> Iterator[Any]:
    """The mask of each step, as wide as an element of `like`; None without end where nothing is dropped."""
    if mask is None:
        return repeat(None)
    if mask.keep.shape[0] == steps.rows:
        return widened(mask.keep, steps.ranges, like.element_size())
    wide = mask.keep.to(INTEGER[like.element_size()]).numpy()
    return iter([wide[: stop - start] for start, stop in steps.ranges])


def widened(keep: Tensor, ranges: list[Range], size: int) -> Iterator[Array]:
    """The mask of each range, `size` bytes an element."""
    numbers = keep.numpy()
    for first, last, chunk in chunks(ranges, keep.shape[1]):
        yield from rows_of(numbers[first:last].astype(f"i{size}"), chunk, first)


def each_row(keep: Tensor, steps: Steps) -> Tensor:
    """A mask of the sequences (B, H) as one of all rows (N, H), which it may be."""
    return keep if keep.shape[0] == steps.rows else steps.repeated(keep)


def scale_of(mask: Mask | None) -> float:
    return 1.0 if mask is None else mask.scale


def dropped(x: Tensor, keep: Tensor) -> Tensor:
    """A copy of x (n, H), 0 where the mask drops."""
    integer = INTEGER[x.element_size()]
    return keep.to(integer).bitwise_and_(x.contiguous().view(integer)).view(x.dtype)


def row_ranges(x: Tensor, elements: int = CHUNK, least: int = 1) -> list[Range]:
    """The rows of x (N, H), of about so many elements at a time, but at least so many rows."""
    rows = max(least, elements // max(1, x.shape[1]))
    return [(start, min(start + rows, x.shape[0])) for start in range(0, x.shape[0], rows)]


def chunks(ranges: list[Range], width: int) -> Iterator[tuple[int, int, list[Range]]]:
    """Neighbouring ranges that fit the cache together: their first row, the row after their last, and the ranges."""
    return _together(ranges, CHUNK // max(1, width))


def pieces(ranges: list[Range], width: int) -> list[tuple[int, int, list[Range]]]:
    """Likewise, of enough rows for a product of them to take the time that it takes as a part of a longer one."""
    return list(_together(ranges, max(512, 4 * CHUNK // max(1, width))))


def alternating(steps: Steps, like: Tensor) -> Iterator[tuple[int, int, list[Range], Tensor]]:
    """Pieces of a matrix like `like` (N, C), and memory for each; that of the one before is used for the one after. A sum over
    pieces in 16 bits would be rounded at each: there is one then."""
    every = pieces(steps.ranges, like.shape[1]) if like.dtype in WIDE else [(0, steps.rows, steps.ranges)]
    most = max((last - first for first, last, _ in every), default=0)
    memory = [like.new_empty(most, like.shape[1]) for _ in every[:2]]
    for i, (first, last, ranges) in enumerate(every):
        yield first, last, ranges, memory[i % 2][: last - first]


def _together(ranges: list[Range], rows: int) -> Iterator[tuple[int, int, list[Range]]]:
    most = max(1, rows // max(1, *(stop - start for start, stop in (ranges[0], ranges[-1])))) if ranges else 1
    for i in range(0, len(ranges), most):
        chunk = ranges[i : i + most]
        yield min(chunk[0], chunk[-1])[0], max(chunk[0], chunk[-1])[1], chunk


def entering_rows(states: Tensor, initial: Tensor, steps: Steps) -> Callable[[int, int], list[tuple[int, int, Tensor]]]:
    """A function of the rows [first, last), of whole steps, to the states before them: of some of these rows after another."""
    if len(steps.runs) > 1:
        before = steps.before(states, initial)
        return lambda first, last: [(first, last, before[first:last])]
    batch, inner = steps.batch, steps.rows - steps.batch
    offset, of_initial = (batch, inner) if steps.reverse else (-batch, 0)

    def entering(first: int, last: int) -> list[tuple[int, int, Tensor]]:
        start, stop = max(first, 0 if steps.reverse else batch), min(last, inner if steps.reverse else last)
        parts = [(start, stop, states[start + offset : stop + offset])] if start < stop else []
        return [*parts, (of_initial, of_initial + batch, initial)] if first <= of_initial < last else parts

    return entering
