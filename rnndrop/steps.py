"""Where the rows of a sequence lie in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Run(NamedTuple):
    """Consecutive steps with the same number of rows."""

    start: int  # their first row
    steps: int
    size: int  # rows of each step

    @property
    def stop(self) -> int:
        return self.start + self.steps * self.size


class Steps:
    """The steps of a sequence as rows of a matrix, one step under another: N rows, of T steps and at most B sequences.

    A padded batch has B rows in each step. A packed one has ``batch_sizes[t]`` in step t, which never increase: sequence b
    is row b of every step that it reaches. Whatever this returns step by step stands in the order of processing.

    Args:
        count: T, the number of steps.
        batch: B, the number of sequences.
        batch_sizes: int64 tensor (T) on the CPU of a packed batch, ``None`` of a padded one.
        reverse: from the last step to the first.
    """

    def __init__(self, count: int, batch: int, batch_sizes: Tensor | None = None, reverse: bool = False) -> None:
        self.count = count
        self.batch = batch
        self.batch_sizes = batch_sizes
        self.reverse = reverse
        self._runs: tuple[Run, ...] | None = None  # no functools.cached_property, whose lock the compiler refuses
        self._ranges: list[tuple[int, int]] | None = None

    @classmethod
    def of(cls, input: Tensor, batch: int, batch_sizes: Tensor | None = None, reverse: bool = False) -> Steps:
        """Those of an input (T, B, I), or (N, I) with `batch_sizes`."""
        return cls(input.shape[0] if batch_sizes is None else batch_sizes.shape[0], batch, batch_sizes, reverse)

    def backwards(self) -> Steps:
        """The same rows, processed from the other end."""
        steps = Steps(self.count, self.batch, self.batch_sizes, not self.reverse)
        steps._runs = self._runs
        return steps

    @property
    def runs(self) -> tuple[Run, ...]:
        """The whole sequence, in time."""
        if self._runs is None:
            self._runs = self._found_runs()
        return self._runs

    def _found_runs(self) -> tuple[Run, ...]:
        if self.batch_sizes is None:
            return (Run(0, self.count, self.batch),)
        sizes = numbers(self.batch_sizes)
        first = np.flatnonzero(np.diff(sizes, prepend=-1))  # the first step of each run
        start = np.concatenate(([0], np.cumsum(sizes)))[first]
        steps = np.diff(first, append=len(sizes))
        return tuple(map(Run, start.tolist(), steps.tolist(), sizes[first].tolist()))

    @property
    def rows(self) -> int:
        return self.runs[-1].stop

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first row of each step and the row after its last."""
        if self._ranges is None:
            self._ranges = self._found_ranges()
        return self._ranges

    def _found_ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for start, steps, size in self.runs:
            starts = range(start, start + steps * size, size) if size else [start] * steps
            ranges += zip(starts, [*starts[1:], start + steps * size], strict=True)
        return ranges[::-1] if self.reverse else ranges

    def split(self, x: Tensor) -> list[Tensor]:
        """The rows of each step of x (N, H) or (T, B, H)."""
        if self.batch_sizes is None:
            steps = (x if x.dim() == 3 else x.view(self.count, self.batch, *x.shape[1:])).unbind(0)
        else:
            steps = x.split([stop - start for start, stop in sorted(self.ranges)])
        return list(steps[::-1] if self.reverse else steps)

    def last(self, output: Tensor) -> Tensor:
        """A copy (B, H) of the row of output (N, H) in which each sequence was processed last."""
        if self.reverse:
            return output[: self.batch].clone()
        parts, ended = [], 0
        for run in self.runs[::-1]:  # the last step of a run ends the sequences that the next run lacks
            parts.append(output[run.stop - run.size + ended : run.stop])
            ended = run.size
        return torch.cat(parts)

    def before(self, output: Tensor, initial: Tensor) -> Tensor:
        """For each row of output (N, H) that of the step processed before it; before a sequence's first is `initial` (B, H)."""
        parts, previous = [], initial
        after = [*[run.size for run in self.runs[1:]], 0]  # the rows of the step after each run
        for run, size in zip(self.runs, after, strict=True):
            inner = output[run.start : run.stop]
            if self.reverse:
                parts += [inner[run.size :], output[run.stop : run.stop + size], initial[size : run.size]]
            else:
                parts += [previous[: run.size], inner[: inner.shape[0] - run.size]]
                previous = inner[inner.shape[0] - run.size :]
        return torch.cat(parts)

    def without_padding(self, x: Tensor) -> Tensor:
        """The N rows that sequences have, of the T*B rows (T*B, ...) of a padded batch."""
        if len(self.runs) == 1:
            return x
        padded, step = x.view(self.count, self.batch, *x.shape[1:]), 0
        parts = []
        for run in self.runs:
            parts.append(padded[step : step + run.steps, : run.size].flatten(0, 1))
            step += run.steps
        return torch.cat(parts)

    def repeated(self, x: Tensor) -> Tensor:
        """x (B, ...), one row a sequence, as a row for each row of the sequences, (N, ...)."""
        return self.without_padding(x.repeat(self.count, *[1] * (x.dim() - 1)))


def numbers(x: Tensor) -> np.ndarray[Any, Any]:
    """What a tensor on the CPU holds; torch.func.grad and jvp refuse to show it as an array, but not as a list."""
    return np.asarray(x.tolist()) if torch._C._are_functorch_transforms_active() else x.numpy()


def check_order(order: Tensor, batch: int) -> None:
    """RuntimeError where the sorted indices of packed data are not those of `batch` sequences. What a GPU holds is not read."""
    if order.shape != (batch,):
        raise RuntimeError(f"Expected sorted_indices size {(batch,)}, got {list(order.shape)}")
    known = numbers(order) if order.device.type == "cpu" else np.arange(0)
    if ((known < 0) | (known >= batch)).any():
        raise RuntimeError(f"sorted_indices should be from 0 to {batch - 1}, got {order.tolist()}")


def checked_batch_sizes(batch_sizes: Iterable[int] | Tensor, rows: int) -> Tensor:
    """The batch sizes of packed data of that many rows, as an int64 tensor on the CPU. RuntimeError where they cannot be."""
    sizes = torch.as_tensor(batch_sizes, dtype=torch.int64, device="cpu")
    known = numbers(sizes)
    if known.size == 0 or known[-1] < 1 or (np.diff(known) > 0).any() or known.sum() != rows:
        raise RuntimeError(
            f"batch_sizes should be positive, never increase and add up to the {rows} rows of input, got {sizes.tolist()}"
        )
    return sizes
