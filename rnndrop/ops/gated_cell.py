"""A step of a GRU or an LSTM from its gates: on CUDA one kernel, which makes the masks in registers, and one in backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from ..kernels import plan
from ..mask import Mask, scale, stream, threshold, unpacked
from ..steps import Steps
from .eager import Function, computes_now
from .mask import sequence_mask
from .operator import operator

KINDS = "hidden", "cell", "candidate"  # in the order of `rates`
Rates = Sequence[float]
Masks = Mapping[str, Mask]


def gated_cell(
    of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, rates: Rates, cell: str, strategy: str
) -> Sequence[Tensor]:
    """The states (B, H) after a step, of gates as x and as h made them (B, G*H), and c of an LSTM or h of a GRU before it.

    `seed`: int64 (1), or None where all rates are 0. `strategy`: "auto", "reference" or "triton".
    """
    if not _by_kernel(of_x, strategy):
        return _by_operations(of_x, of_h, before, seed, rates, cell)
    run = _Function.apply if computes_now(of_x) else _operator
    *states, _ = run(of_x, of_h, before, seed, rates, cell)
    return states


def _by_kernel(x: Tensor, strategy: str) -> bool:
    if strategy != "auto":
        return strategy == "triton"
    known = not torch.compiler.is_compiling()  # the compiler, which has kernels of its own, cannot ask
    return x.device.type == "cuda" and x.dtype in plan.DTYPES and not (known and dispatch.kernels_unavailable())


def _by_operations(
    of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, rates: Rates, cell: str
) -> Sequence[Tensor]:
    masks = _masks(seed, before, rates, "bytes")
    if cell == "GRU":
        return [reference.dropout(reference.gru_of_gates(of_x, of_h, before, masks), masks.get("hidden"))]
    made, c = reference.lstm_of_gates(of_x, of_h, before, masks)
    return [reference.dropout(made, masks.get("hidden")), c]


def _forward(of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, rates: Rates, cell: str) -> tuple[Tensor, ...]:
    """The states, and the gates after their activations."""
    from ..kernels import gated_cell

    states, gates = gated_cell.forward(of_x, of_h, before, seed, _drawn(rates), cell=cell)
    return *states, gates


def _drawn(rates: Rates) -> dict[str, Any]:
    """The masks as the kernels draw them."""
    from ..kernels.gated_cell import DrawnMask

    given = zip(KINDS, rates, strict=True)
    return {kind: DrawnMask(threshold(p), scale(p), stream(kind)) for kind, p in given if p}


def _backward(
    grad_states: Sequence[Tensor | None],
    gates: Tensor,
    before: Tensor,
    c: Tensor | None,
    seed: Tensor | None,
    rates: Rates,
    cell: str,
) -> tuple[Tensor, ...]:
    """The gradients of the gates of x and of the old state; of a GRU, whose gates of h have others, of these besides."""
    from ..kernels import gated_cell

    of_x, of_h, of_before = gated_cell.backward(grad_states, gates, before, c, seed, _drawn(rates), cell=cell)
    return (of_x, of_before) if cell == "LSTM" else (of_x, of_before, of_h)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    _, _, before, seed, ctx.rates, ctx.cell = inputs
    ctx.save_for_backward(before, seed, *output[1:])


def _gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    before, seed, *cs, gates = ctx.saved_tensors
    if all(grad is None for grad in grads):
        return (None,) * 6
    if torch.is_grad_enabled() or grads[-1] is not None:  # that of the gates comes of a second derivative
        given = [_wide(x, like) for x, like in zip(grads, (before, *cs, gates), strict=True)]
        states, masks = [_wide(x, x) for x in (before, *cs)], _masks(seed, before, ctx.rates, "bits")
        formula = _lstm_gradient if ctx.cell == "LSTM" else _gru_gradient
        found = tuple(x.to(before.dtype) for x in formula(given, _wide(gates, gates), states, masks))
    else:
        run = _backward if computes_now(gates) else _backward_operator
        found = run(grads[:-1], gates, before, cs[0] if cs else None, seed, ctx.rates, ctx.cell)
    of_x, of_before, of_h = (*found, found[0])[:3]
    return of_x, of_h, of_before, None, None, None


def _masks(seed: Tensor | None, state: Tensor, rates: Rates, form: str) -> Masks:
    """Those of a step, an element each."""
    (rows, columns), masks = state.shape, {}
    for kind, p in zip(KINDS, rates, strict=True):
        if p and seed is not None:
            keep = sequence_mask(seed, columns, p, stream(kind), form, "step", Steps(1, rows), None, rows)
            masks[kind] = unpacked(Mask(keep, scale(p)), columns)
    return masks


def _wide(x: Tensor | None, like: Tensor) -> Tensor:
    """x in at least 32 bits, as 0 where it is None."""
    return (torch.zeros_like(like) if x is None else x).to(torch.promote_types(like.dtype, torch.float32))


def _lstm_gradient(grads: Sequence[Tensor], gates: Tensor, states: Sequence[Tensor], masks: Masks) -> tuple[Tensor, ...]:
    """The gradients of the gates' pre-activations and of the old cell state, from those of h, c and the gates after their
    activations. All leads to the pre-activations, where this is to be differentiated itself. `states`: c before and after."""
    (grad_h, grad_c, grad_gates), (before, c) = grads, states
    i, f, g, o = gates.chunk(4, 1)
    candidate, tanh_c = masks.get("candidate"), torch.tanh(c)
    made = reference.dropout(grad_h, masks.get("hidden"))
    new = reference.dropout(grad_c + made * o * (1 - tanh_c * tanh_c), masks.get("cell"))
    of_gates = [new * reference.dropout(g, candidate), new * before, reference.dropout(new * i, candidate), made * tanh_c]
    slopes = [i - i * i, f - f * f, 1 - g * g, o - o * o]
    return (torch.cat(of_gates, 1) + grad_gates) * torch.cat(slopes, 1), new * f


def _gru_gradient(grads: Sequence[Tensor], gates: Tensor, states: Sequence[Tensor], masks: Masks) -> tuple[Tensor, ...]:
    """Likewise of the gates of x, of the old state, and of the gates of h. The third gate of h is the first of `gates`."""
    (grad_h, grad_gates), (before,) = grads, states
    hn, r, z, n = gates.chunk(4, 1)
    of_hn, of_r, of_z, of_n = grad_gates.chunk(4, 1)
    candidate, made = masks.get("candidate"), reference.dropout(grad_h, masks.get("hidden"))
    of_n = (of_n + reference.dropout(made * (1 - z), candidate)) * (1 - n * n)
    of_z = (of_z + made * (before - reference.dropout(n, candidate))) * (z - z * z)
    of_r = (of_r + of_n * hn) * (r - r * r)
    return torch.cat([of_r, of_z, of_n], 1), made * z, torch.cat([of_r, of_z, of_hn + of_n * r], 1)


class _Function(Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_gradient)


# For the compiler.


def _operator_forward(of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, rates: Rates, cell: str) -> list[Tensor]:
    dispatch.check_pointwise("triton", of_x)
    return [*_forward(of_x, of_h, before, seed, rates, cell)]


def _operator_backward(
    grad_states: Sequence[Tensor | None],
    gates: Tensor,
    before: Tensor,
    c: Tensor | None,
    seed: Tensor | None,
    rates: Rates,
    cell: str,
) -> list[Tensor]:
    return [*_backward(grad_states, gates, before, c, seed, rates, cell)]


def _fake(of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, rates: Rates, cell: str) -> list[Tensor]:
    rows, columns = before.shape
    states = [before.new_empty(rows, columns) for _ in range(2 if cell == "LSTM" else 1)]
    return [*states, before.new_empty(rows, 4 * columns)]


def _backward_fake(grad_states: Sequence[Tensor | None], gates: Tensor, before: Tensor, *rest: Any) -> list[Tensor]:
    rows, columns = before.shape
    if rest[-1] == "LSTM":
        return [before.new_empty(rows, 4 * columns), before.new_empty(rows, columns)]
    return [before.new_empty(rows, k * columns) for k in (3, 1, 3)]


_OPTIONS = "Tensor? seed, float[] rates, str cell"
_SCHEMA = f"(Tensor of_x, Tensor of_h, Tensor before, {_OPTIONS}) -> Tensor[]"
_BACKWARD_SCHEMA = f"(Tensor?[] grad_states, Tensor gates, Tensor before, Tensor? c, {_OPTIONS}) -> Tensor[]"
_operator = operator("gated_cell", _SCHEMA, _operator_forward, _fake, lambda ctx, grads: _gradient(ctx, *grads), _save)
_backward_operator = operator("gated_cell_backward", _BACKWARD_SCHEMA, _operator_backward, _backward_fake)
