"""Which strategy runs a layer: a function of shape, dtype and device that the benchmark report can contradict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton

from . import cooperative, resident

# A program takes its batch tiles one after the other. With more than this many to each multiprocessor the time goes into
# products, which the library does faster than a program that also has a recurrence to keep.
ROUNDS = 8


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    strategy: str
    reason: str
    plan: Any  # tiles and on-chip bytes of a strategy that has any
    rejected: dict[str, str]  # why not the strategies before it


def choose(
    H: int, B: int, dtype: torch.dtype, properties: Mapping[str, int], *, packed: bool = False, tf32: bool = False
) -> Choice:
    """The strategy of a layer of H units and B sequences on a device; `packed`: of different lengths."""
    if dtype not in DTYPES:
        return Choice("reference", f"the kernels compute in float32, which is less than {dtype}: a plain loop", None, {})
    if B == 0:
        return Choice("reference", "there is nothing to compute: a plain loop", None, {})
    plans = {"resident": resident.plan(H, B, dtype, properties), "cooperative": cooperative.plan(H, B, dtype, properties, tf32)}
    tiles, units = triton.cdiv(B, 16), properties["multiprocessor_count"]
    rounds = {
        "resident": triton.cdiv(tiles, units),
        "cooperative": triton.cdiv(tiles, max(1, plans["cooperative"].groups)),
    }
    why = {
        "resident": "W_hh stays on one multiprocessor for all steps, in one launch",
        "cooperative": "W_hh stays on chip, spread over the multiprocessors, in one launch",
    }
    rejected = {}
    for name, plan in plans.items():
        if packed:
            rejected[name] = "the sequences are of different lengths"
        elif plan.reason:
            rejected[name] = plan.reason
        elif rounds[name] > ROUNDS:
            rejected[name] = f"B = {B} is {rounds[name]} batch tiles for each program in turn, more than {ROUNDS}"
        else:
            return Choice(name, why[name], plan, rejected)
    return Choice("stepwise", "one library product and one pointwise kernel a step", None, rejected)
