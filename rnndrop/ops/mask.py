"""The operator that makes a mask for the rows of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch
from ..mask import keep_bytes, packed, threshold
from ..steps import Steps
from .eager import computes_now


def sequence_mask(
    seed: Tensor, columns: int, p: float, stream: int, form: str, per_step: bool, steps: Steps, order: Tensor | None, rows: int
) -> Tensor:
    """The mask of a sequence of N = `rows` rows: (N, ...) `per_step`, else (B, ...); "bytes" or "bits" wide.

    `order`: which sequence of the user's batch is the b-th of packed data; None if they are the same.
    """
    run = _draw if computes_now(seed) else _operator
    return run(seed, columns, p, stream, form, per_step, steps.count, steps.batch, rows, steps.batch_sizes, order)


def _draw(
    seed: Tensor,
    columns: int,
    p: float,
    stream: int,
    form: str,
    per_step: bool,
    count: int,
    batch: int,
    rows: int,
    batch_sizes: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    keep = draw(seed, count * batch if per_step else batch, columns, p, stream, form)
    if order is not None:
        keep = keep.view(-1, batch, keep.shape[1]).index_select(1, order).flatten(0, 1)
    return Steps(count, batch, batch_sizes).without_padding(keep) if per_step and batch_sizes is not None else keep


def draw(seed: Tensor, rows: int, columns: int, p: float, stream: int, form: str) -> Tensor:
    """The first rows of a mask on the seed's device."""
    if form == "bits" and not dispatch.kernels_unavailable():
        from ..kernels.packed_mask import packed_mask

        return packed_mask(seed, rows, columns, threshold(p), stream)
    keep = keep_bytes(int(seed), rows, columns, threshold(p), stream)
    return (packed(keep) if form == "bits" else keep).to(seed.device)


_operator = torch.library.custom_op(
    "rnndrop::mask",
    _draw,
    mutates_args=(),
    schema="(Tensor seed, SymInt columns, float p, int stream, str form, bool per_step, SymInt count, SymInt batch, "
    "SymInt rows, Tensor? batch_sizes, Tensor? order) -> Tensor",
)


@_operator.register_fake
def _fake(
    seed: Tensor,
    columns: int,
    p: float,
    stream: int,
    form: str,
    per_step: bool,
    count: int,
    batch: int,
    rows: int,
    batch_sizes: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    height = (count * batch if batch_sizes is None else rows) if per_step else batch
    if form == "bits":
        return seed.new_empty((height, -(-columns // 32)), dtype=torch.int32)
    return seed.new_empty((height, columns), dtype=torch.int8)
