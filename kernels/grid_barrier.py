"""What every cooperative launch has: the barrier at which its programs meet, the rows of its steps, and the launch itself.

A counter of the barrier only grows and lives for one launch, so that nothing is left over for the next, nor for the replay of a
CUDA graph. It counts in 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .plan import CooperativePlan


@triton.jit
def grid_barrier_arrive(barrier_ptr):
    """Say that this program has stored what the others wait for."""
    tl.debug_barrier()  # all threads have stored before one of them releases
    tl.atomic_add(barrier_ptr, 1, sem="release", scope="gpu")


@triton.jit
def grid_barrier_wait(barrier_ptr, arrivals):
    """Wait for so many arrivals: what was stored before them is then visible here."""
    while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < arrivals:
        pass


@triton.jit
def rows_of_step(offsets_ptr, t, T, B):
    """The first row of step t and the number of its rows: none before the first step and after the last."""
    exists = (t >= 0) & (t < T)
    if offsets_ptr is None:
        start, stop = t * B, t * B + tl.where(exists, B, 0)
    else:
        start, stop = tl.load(offsets_ptr + t, mask=exists, other=0), tl.load(offsets_ptr + t + 1, mask=exists, other=0)
    return start, stop - start


class Shape(NamedTuple):
    T: int
    B: int
    offsets: Tensor | None  # the first row of each step of packed data


def launch_phases(
    kernel: Any,
    arguments: Mapping[str, Any],
    shape: Shape,
    phases: range,
    plan: CooperativePlan,
    device: torch.device,
) -> None:
    """One launch for all phases, of the kernel's arguments by name. Triton's interpreter runs program after program, so there
    each phase is a launch."""
    barrier = torch.zeros(plan.groups, 16, dtype=torch.int64, device=device)  # 128 bytes a counter, a cache line
    of_shape = {"offsets_ptr": shape.offsets, "barrier_ptr": barrier, "T": shape.T, "B": shape.B}
    interpreted = launch.device_of(device).backend == "interpreter"
    launches = [(p, p + 1) for p in phases] if interpreted else [(phases.start, phases.stop)]
    for begin, end in launches:
        kernel[plan.slices, plan.groups](**arguments, **of_shape, begin=begin, end=end)
