"""Dropout of rows by a mask that is given. It is linear, and its own gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from ..kernels import plan
from ..mask import Mask, unpacked
from .eager import Function, by_operations, computes_now, number, operands
from .operator import operator


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """x (N, H) times the scale where the mask (N, ...) keeps, 0 elsewhere."""
    if by_operations(x):
        return reference.dropout(x, unpacked(mask, x.shape[1]))
    return (_Function.apply if computes_now(x) else _operator)(x, mask.keep, *operands(mask.scale))


def _forward(x: Tensor, keep: Tensor, scale: float, open_scale: Tensor | None) -> Tensor:
    return _backend(x, keep).dropout(x, Mask(keep, number(scale, open_scale)))


def _backend(x: Tensor, keep: Tensor) -> Any:
    if keep.dtype == torch.int32 and x.dtype in plan.DTYPES and not dispatch.kernels_unavailable():
        return dispatch.backend("stepwise")
    return dispatch.backend("cpu" if x.device.type == "cpu" and keep.dtype == torch.int8 else "reference")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, keep, ctx.scale, open_scale = inputs
    ctx.save_for_backward(keep, open_scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    keep, open_scale = ctx.saved_tensors
    return dropout(grad, Mask(keep, ctx.scale if open_scale is None else open_scale)), None, None, None


class _Function(Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


_SCHEMA = "(Tensor x, Tensor keep, float scale, Tensor? open_scale) -> Tensor"
_operator = operator("dropout", _SCHEMA, _forward, _fake, _backward, _save)
