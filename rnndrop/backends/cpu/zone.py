"""Zoneout: units that keep the state before a step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ...mask import Mask
from ...steps import Steps
from .elements import Array, bits_of, numbers_of, states_before, step_masks


def zoning(states: Tensor, initial: Tensor, mask: Mask | None, steps: Steps) -> Iterator[None] | None:
    """Asked for the next, it puts the states before a step in place of those that zoneout drops, or takes the expectation: of
    states (N, H) from `initial` (B, H). None without a mask."""
    return None if mask is None else _zoning(states, initial, mask, steps)


def _zoning(states: Tensor, initial: Tensor, mask: Mask, steps: Steps) -> Iterator[None]:
    if mask.is_expectation:
        for now, before in states_before(numbers_of(states), numbers_of(initial), steps.ranges):
            now *= 1 - mask.scale
            now += mask.scale * before
            yield
        return
    of_bits = states_before(bits_of(states), bits_of(initial), steps.ranges)
    for (now, before), keep in zip(of_bits, step_masks(mask, steps, states), strict=True):
        now ^= before
        now &= keep
        now ^= before
        yield


def part(made: Array, grads: Array, keep: Array) -> None:
    """Leaves in `made` the gradients (bits) of what zoneout kept, in as many rows of `grads` those of the others."""
    made &= keep
    np.bitwise_and(grads[: len(made)], ~keep, out=grads[: len(made)])
