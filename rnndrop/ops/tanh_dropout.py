"""dropout(tanh(x)) in one pass: on CUDA the kernel makes the mask in registers, and in backward again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from ..kernels import plan
from ..mask import Mask, scale, threshold, unpacked
from ..steps import Steps
from .eager import Function, by_operations, computes_now
from .mask import draw, sequence_mask
from .operator import operator


def tanh_dropout(x: Tensor, seed: Tensor, p: float, stream: int, strategy: str) -> Tensor:
    """dropout(tanh(x)) of x (N, H), seed int64 (1). `strategy`: "auto", "cpu", "reference" or "triton"."""
    if by_operations():
        keep = sequence_mask(seed, x.shape[1], p, stream, "bytes", "step", Steps(x.shape[0], 1), None, x.shape[0])
        return reference.dropout(x, unpacked(Mask(keep, scale(p)), x.shape[1]), "tanh")
    return (_Function.apply if computes_now(x) else _operator)(x, seed, p, stream, strategy)[0]


def _fused(x: Tensor, strategy: str) -> bool:
    """Whether the kernel runs, which keeps no mask."""
    automatic = strategy == "auto" and x.device.type == "cuda" and x.dtype in plan.DTYPES
    return (strategy == "triton" or automatic) and not dispatch.kernels_unavailable()


def _backend(x: Tensor, strategy: str) -> Any:
    automatic = "cpu" if x.device.type == "cpu" else "reference"
    return dispatch.backend(automatic if strategy == "auto" else strategy)


def _forward(x: Tensor, seed: Tensor, p: float, stream: int, strategy: str) -> tuple[Tensor, Tensor]:
    """y, and the mask, of no rows where it is made again."""
    if _fused(x, strategy):
        from ..kernels import activation_dropout

        y = x.new_empty(x.shape)
        activation_dropout.forward(x, seed, threshold(p), scale(p), stream, out=y)
        return y, x.new_empty((0, x.shape[1]), dtype=torch.int8)
    keep = draw(seed, x.shape[0], x.shape[1], p, stream, "bytes")
    return _backend(x, strategy).tanh_dropout(x, Mask(keep, scale(p))), keep


def _backward(grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, p: float, stream: int, strategy: str) -> Tensor:
    if _fused(y, strategy):
        from ..kernels import activation_dropout

        return activation_dropout.backward(grad_y, y, seed, threshold(p), scale(p), stream)
    return _backend(y, strategy).tanh_dropout_backward(grad_y, y, Mask(keep, scale(p)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, seed, *ctx.options = inputs
    ctx.save_for_backward(*output, seed)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor, None, None, None, None]:
    y, keep, seed = ctx.saved_tensors
    if torch.is_grad_enabled():
        kept = _backward_mask(keep, seed, y, *ctx.options)
        return reference.tanh_dropout_gradient(grad_y, y, kept), None, None, None, None
    run = _backward if computes_now(y) else _backward_operator
    return run(grad_y, y, keep, seed, *ctx.options), None, None, None, None


def _backward_mask(keep: Tensor, seed: Tensor, y: Tensor, p: float, stream: int, strategy: str) -> Mask:
    """As bool, made again where it was not kept."""
    if _fused(y, strategy):
        keep = draw(seed, y.shape[0], y.shape[1], p, stream, "bits")
    return unpacked(Mask(keep, scale(p)), y.shape[1])


class _Function(Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_gradient)


def _operator_forward(x: Tensor, seed: Tensor, p: float, stream: int, strategy: str) -> tuple[Tensor, Tensor]:
    dispatch.check_pointwise(strategy, x)
    return _forward(x, seed, p, stream, strategy)


def _fake(x: Tensor, seed: Tensor, p: float, stream: int, strategy: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((0 if _fused(x, strategy) else x.shape[0], x.shape[1]), dtype=torch.int8)


def _backward_fake(grad_y: Tensor, y: Tensor, *rest: Any) -> Tensor:
    return y.new_empty(y.shape)


_OPTIONS = "float p, int stream, str strategy"
_SCHEMA = f"(Tensor x, Tensor seed, {_OPTIONS}) -> (Tensor, Tensor)"
_BACKWARD_SCHEMA = f"(Tensor grad_y, Tensor y, Tensor keep, Tensor seed, {_OPTIONS}) -> Tensor"
_operator = operator("tanh_dropout", _SCHEMA, _operator_forward, _fake, _gradient, _save)
_backward_operator = operator("tanh_dropout_backward", _BACKWARD_SCHEMA, _backward, _backward_fake)
