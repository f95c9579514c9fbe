"""The operator that makes a mask for the rows of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..mask import keep_bytes, packed, threshold
from ..steps import Steps
from .eager import Function, computes_now, in_transform, number, operands
from .operator import operator


def sequence_mask(
    seed: Tensor, columns: int, p: float, stream: int, form: str, scope: str, steps: Steps, order: Tensor | None, rows: int
) -> Tensor:
    """The mask of a sequence of N = `rows` rows, "bytes" or "bits" wide.

    `scope`: "step", a mask for each step, (N, ...); "sequence", one for all, (B, ...); "repeated", that as (N, ...).
    `seed`: int64 (1), or (B) for sequences that have masks of their own. `order`: which sequence of the user's batch is the
    b-th of packed data; None if they are the same.
    """
    where = stream, form, scope, steps.count, steps.batch, rows, steps.batch_sizes, order
    if not computes_now(seed):
        return _operator(seed, columns, *operands(p), *where)
    arguments = seed, columns, p, *where
    return _Function.apply(*arguments) if in_transform() else _draw(*arguments)


def _draw(
    seed: Tensor,
    columns: int,
    p: float,
    stream: int,
    form: str,
    scope: str,
    count: int,
    batch: int,
    rows: int,
    batch_sizes: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    if order is not None and seed.shape[0] > 1:
        seed, order = seed.index_select(0, order), None
    keep = draw(seed, count * batch if scope == "step" else batch, columns, p, stream, form)
    if order is not None:
        keep = keep.view(-1, batch, keep.shape[1]).index_select(1, order).flatten(0, 1)
    if scope == "repeated":
        keep = keep.repeat(count, 1)
    return keep if scope == "sequence" or batch_sizes is None else Steps(count, batch, batch_sizes).without_padding(keep)


def draw(seed: Tensor, rows: int, columns: int, p: float, stream: int, form: str) -> Tensor:
    """The first rows of a mask on the seed's device; of S seeds, row r is row r // S of the mask of seed r % S."""
    if form == "bits" and not dispatch.kernels_unavailable():
        from ..kernels.packed_mask import packed_mask

        return packed_mask(seed, rows, columns, threshold(p), stream)
    seeds = seed.tolist()
    every = [keep_bytes(one, rows // len(seeds), columns, threshold(p), stream) for one in seeds]
    keep = every[0] if len(every) == 1 else torch.stack(every, 1).flatten(0, 1)
    return (packed(keep) if form == "bits" else keep).to(seed.device)


class _Function(Function):
    """In torch.func, whose tensors have no numbers of their own."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _draw(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)


def _operator_draw(seed: Tensor, columns: int, p: float, rate: Tensor | None, *where: Any) -> Tensor:
    return _draw(seed, columns, number(p, rate), *where)


def _fake(
    seed: Tensor,
    columns: int,
    p: float,
    rate: Tensor | None,
    stream: int,
    form: str,
    scope: str,
    count: int,
    batch: int,
    rows: int,
    batch_sizes: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    height = batch if scope == "sequence" else count * batch if batch_sizes is None else rows
    if form == "bits":
        return seed.new_empty((height, -(-columns // 32)), dtype=torch.int32)
    return seed.new_empty((height, columns), dtype=torch.int8)


_SCHEMA = (
    "(Tensor seed, SymInt columns, float p, Tensor? rate, int stream, str form, str scope, SymInt count, SymInt batch, "
    "SymInt rows, Tensor? batch_sizes, Tensor? order) -> Tensor"
)
_operator = operator("mask", _SCHEMA, _operator_draw, _fake)
