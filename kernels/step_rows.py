"""Where the rows of each step lie, of the data and of a mask, for the kernels that run a step a launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .launch import Masks, bits_and_scale, bits_and_share, check_can_run, check_zoneout, is_per_step
from .plan import without_kernel


class StepRows(NamedTuple):
    """The rows of a step: its first, and how many."""

    start: int
    size: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


NO_STEP = StepRows(0, 0)


class StepMask(NamedTuple):
    """A mask of all steps as kernels take it; without one nothing is dropped."""

    bits: Tensor | None
    scale: float
    per_step: bool

    def first_row(self, step: StepRows) -> int:
        """The row of the mask that is for a step's first."""
        return step.start if self.per_step else 0


def steps_in_order(strategy: str, data: Tensor, reverse: bool, sizes: Sequence[int] | None) -> list[StepRows]:
    """The steps of data (T, B, ...), or (N, ...) with `sizes`, in the order in which forward takes them.

    Raises:
        ValueError: the strategy cannot run this, and why.
    """
    sizes = [data.shape[1]] * data.shape[0] if sizes is None else sizes
    check_can_run(strategy, len(sizes), sizes[0] if sizes else 0, without_kernel(data.dtype))
    steps, start = [], 0
    for size in sizes:
        steps.append(StepRows(start, size))
        start += size
    return steps[::-1] if reverse else steps


def step_mask(masks: Masks, kind: str, steps: Sequence[StepRows], H: int) -> StepMask:
    """That of a kind. ValueError where it has the rows of neither the data nor the sequences, or another width."""
    rows, B = sum(step.size for step in steps), max(step.size for step in steps)
    return StepMask(*bits_and_scale(masks, kind), is_per_step(masks, kind, rows, B, H))


def zoneout_mask(masks: Masks, kind: str, steps: Sequence[StepRows], H: int) -> tuple[Tensor | None, float | None]:
    """The bits of a kind of zoneout, or of its expectation the old state's share. ValueError as of `step_mask`."""
    check_zoneout(masks, sum(step.size for step in steps), H, kind)
    return bits_and_share(masks, kind)
