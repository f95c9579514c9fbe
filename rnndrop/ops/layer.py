"""The operator of one layer in one direction, and that of its gradient.

Both compute on the backend of a strategy. The derivatives of the gradient go through the plain loop, as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch, reference
from ..autocast import suspended
from ..backends.base import Backend, Layer, Masks, Needs, filled
from ..backends.reference import gradients
from ..cell import CELLS, Cell, Weights
from ..kernels import launch
from ..kernels.plan import Extras
from ..mask import Mask, by_element
from ..steps import Steps
from .eager import Function, by_operations, computes_now, number
from .flops import tell_counters
from .operator import operator

MaybeTensor = Tensor | None


class Call(NamedTuple):
    """The arguments of a layer that are not tensors.

    scales: of the masks of the cell's kinds, in their order. strategy: not "auto". tf32: PyTorch's setting, which may change
    before the backward pass.
    """

    scales: Sequence[float]
    steps: Steps
    cell: Cell
    strategy: str
    tf32: bool

    @classmethod
    def of(cls, scales: Sequence[float], steps: Steps, cell: Cell, strategy: str) -> Call:
        return cls(scales, steps, cell, strategy, strategy in dispatch.KERNELS and launch.allows_tf32())

    @property
    def backend(self) -> Backend:
        return dispatch.backend(self.strategy, self.cell.mode, self.tf32)

    def masks(self, keeps: Sequence[MaybeTensor]) -> Masks:
        given = zip(self.cell.kinds, keeps, self.scales, strict=True)
        return {kind: Mask(keep, scale) for kind, keep, scale in given if keep is not None}

    def layer(self, row: Sequence[Any]) -> Layer:
        """A layer that has run, of a row of its tensors: input, weights, states, masks, output, what else was saved."""
        input, w_ih, w_hh, b_ih, b_hh, *rest = row
        states, rest = rest[: len(self.cell.states)], rest[len(self.cell.states) :]
        keeps, (output, *saved) = rest[: len(self.cell.kinds)], rest[len(self.cell.kinds) :]
        weights = Weights(w_ih, w_hh, b_ih, b_hh)
        return Layer(input, states, weights, self.masks(keeps), self.steps, self.cell, output, saved)


def problem(x: Tensor, steps: Steps, hidden_size: int, cell: Cell, drawn: tuple[str, ...]) -> dispatch.Problem:
    """What has to be run on x. drawn: the kinds inside the recurrence that have a mask."""
    extras = Extras(drawn, packed=len(steps.runs) > 1)
    return dispatch.Problem(x.device, x.dtype, steps.count, steps.batch, hidden_size, cell.mode, extras)


def _resolved(strategy: str, x: Tensor, steps: Steps, w_hh: Tensor, cell: Cell, keeps: Sequence[MaybeTensor]) -> str:
    """The strategy that runs, known only when the operator does."""
    given = zip(cell.kinds, keeps, strict=True)
    drawn = tuple(kind for kind, keep in given if keep is not None and not Mask(keep, 1.0).is_expectation)
    return dispatch.choose(strategy, problem(x, steps, w_hh.shape[-1], cell, drawn)).strategy


def layer(
    input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell, strategy: str
) -> tuple[Tensor, Sequence[Tensor]]:
    """The output (T, B, H) or (N, H) and the states at the end (B, H) of input (T, B, I) or (N, I)."""
    if by_operations():
        return reference.layer(input, states, weights, by_element(masks, states), steps, cell)
    keeps = [masks[kind].keep if kind in masks else None for kind in cell.kinds]
    scales: list[Any] = [masks[kind].scale if kind in masks else 1.0 for kind in cell.kinds]
    if computes_now(input):
        output, *rest = _Layer.apply(Call.of(scales, steps, cell, strategy), input, *weights[:4], *states, *keeps)
        return output, rest[: len(cell.states)]
    if not torch.compiler.is_compiling():
        tell_counters()
    if any(isinstance(one, Tensor) for one in scales):
        keeps, scales = [*keeps, *[one if isinstance(one, Tensor) else None for one in scales]], [1.0] * len(scales)
    return _operator(
        input,
        list(states),
        *weights[:4],
        keeps,
        scales,
        steps.count,
        steps.batch,
        steps.batch_sizes,
        steps.reverse,
        cell.mode,
        strategy,
    )[:2]


def _forward(call: Call, input: Tensor, states: Sequence[Tensor], weights: Weights, keeps: Sequence[MaybeTensor]) -> Any:
    with suspended(input):
        return call.backend.forward(input, states, weights, call.masks(keeps), call.steps, call.cell)


def _backward(layer: Layer, call: Call, grads: Sequence[MaybeTensor], flags: Sequence[bool]) -> list[Tensor]:
    """The gradients asked for by `flags`, of input, w_ih, w_hh, b_ih, b_hh and the states."""
    # Of an expectation the output does not tell what was made: the plain loop makes it again.
    expected = any(mask.is_expectation for mask in layer.masks.values())
    backend = dispatch.backend("reference") if expected else call.backend
    with suspended(layer.input):
        found = backend.backward(layer, grads[0], grads[1:], Needs(*flags[:5]))
    every = *found[:5], *found.states
    return [gradient for gradient, needed in zip(every, flags, strict=True) if needed and gradient is not None]


# Eager mode.


class _Layer(Function):
    @staticmethod
    def forward(call: Call, input: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: MaybeTensor, b_hh: MaybeTensor, *rest: Any) -> Any:
        states, keeps = rest[: len(call.cell.states)], rest[len(call.cell.states) :]
        output, last, saved = _forward(call, input, states, Weights(w_ih, w_hh, b_ih, b_hh), keeps)
        return output, *last, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, input, w_ih, w_hh, *biases = inputs[:6]
        ctx.set_materialize_grads(False)
        ctx.call, ctx.biases, ctx.versions = call, biases, [_version(bias) for bias in biases]
        saved = output[1 + len(call.cell.states) :]
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(input, w_ih, w_hh, *inputs[6:], output[0], *saved)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _as_one_batch(info.batch_size, in_dims, *args) or super().vmap(info, in_dims, *args)

    @staticmethod
    def backward(ctx: Any, *grads: MaybeTensor) -> tuple[MaybeTensor, ...]:
        call, given = ctx.call, 6 + len(ctx.call.cell.states)
        input, w_ih, w_hh, *rest = _saved(ctx)
        row, flags = [input, w_ih, w_hh, *ctx.biases, *rest], ctx.needs_input_grad[1:given]
        grads = grads[: 1 + len(call.cell.states)]
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        found: Sequence[Tensor]
        if not computes_now(input):
            found = _backward_operator(*_operands(call, row), list(grads), flags)
        elif (plain := by_operations(*grads)) or torch.is_grad_enabled():
            if [_version(bias) for bias in ctx.biases] != ctx.versions:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: a bias"
                )
            if plain:
                with suspended(input):
                    found = gradients(call.layer(row), grads, flags)
            else:
                found = _LayerBackward.apply(call, flags, *grads, *row)
        else:
            found = _backward(call.layer(row), call, grads, flags)
        return None, *filled([None] * len(flags), flags, found), *[None] * (len(ctx.needs_input_grad) - given)


def _saved(ctx: Any) -> tuple[Any, ...]:
    """The saved tensors; where one was changed in place, PyTorch's error with the cure."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{error}\nIf that is the output of a recurrent layer, which is kept for the backward pass: change a copy of it, "
            "output.clone() (as before nn.Dropout(inplace=True) or relu_)."
        ) from None


def _as_one_batch(count: int, in_dims: tuple[Any, ...], call: Call, input: Tensor, *tensors: MaybeTensor) -> Any:
    """What vmap of `count` inputs or states gives, of one call with as many times the sequences. None where the weights or the
    masks are mapped too, for packed data, and for kernels, which the larger batch may not suit."""
    (_, of_input, *dims), steps, states = in_dims, call.steps, len(call.cell.states)
    own = dims[4 : 4 + states]
    if any(dim is not None for dim in (*dims[:4], *dims[4 + states :])) or steps.batch_sizes is not None:
        return None
    if call.strategy in dispatch.KERNELS:
        return None

    def along(x: Tensor, dim: int | None, to: int) -> Tensor:
        x = x.unsqueeze(to).expand(*x.shape[:to], count, *x.shape[to:]) if dim is None else x.movedim(dim, to)
        return x.flatten(to, to + 1)

    def repeated(keep: MaybeTensor) -> MaybeTensor:
        if keep is None or not keep.shape[0]:  # an expectation has no rows
            return keep
        return along(keep.unflatten(0, (-1, steps.batch)), None, 1).flatten(0, 1)

    weights, begin, keeps = tensors[:4], tensors[4 : 4 + states], tensors[4 + states :]
    given = [along(state, dim, 0) for state, dim in zip(begin, own, strict=True) if state is not None]
    whole = call._replace(steps=Steps(steps.count, count * steps.batch, None, steps.reverse))
    output, *made = _Layer.apply(whole, along(input, of_input, 1), *weights, *given, *map(repeated, keeps))
    last = [state.unflatten(0, (count, -1)) for state in made[:states]]
    saved = [x.unflatten(0, (steps.count, count, -1)).transpose(0, 1).flatten(1, 2) for x in made[states:]]
    results = output.unflatten(1, (count, -1)).movedim(1, 0), *last, *saved
    return results, (0,) * len(results)


class _LayerBackward(Function):
    """The gradients that are asked for, to be differentiated again."""

    @staticmethod
    def forward(call: Call, flags: Sequence[bool], *tensors: Any) -> tuple[Tensor, ...]:
        states = 1 + len(call.cell.states)
        return tuple(_backward(call.layer(tensors[states:]), call, tensors[:states], flags))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.flags, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[MaybeTensor, ...]:
        call, tensors, states = ctx.call, ctx.saved_tensors, 1 + len(ctx.call.cell.states)
        asked = [needed and i < states + 4 + states for i, needed in enumerate(ctx.needs_input_grad[2:])]

        def found_before(*needed: Tensor) -> tuple[Tensor, ...]:
            every = filled(tensors, asked, needed)
            return gradients(call.layer(every[states:]), every[:states], ctx.flags)

        with suspended(tensors[states]):
            pull = torch.func.vjp(found_before, *[x for x, needed in zip(tensors, asked, strict=True) if needed])[1]
            found = pull(grads)
        return None, None, *filled([None] * len(tensors), asked, found)


def _version(x: MaybeTensor) -> int:
    """Counts the changes in place. A bias is saved for its second derivative alone, and may change before the first."""
    return -1 if x is None or x.is_inference() else x._version


# For the compiler.


def _operands(call: Call, row: Sequence[Any]) -> list[Any]:
    """The operands of the operator, and the tensors that the forward pass made."""
    states, kinds, steps = len(call.cell.states), len(call.cell.kinds), call.steps
    input, w_ih, w_hh, b_ih, b_hh, *rest = row
    made = rest[states + kinds :]
    options = steps.count, steps.batch, steps.batch_sizes, steps.reverse, call.cell.mode, call.strategy
    return [input, rest[:states], w_ih, w_hh, b_ih, b_hh, rest[states : states + kinds], list(call.scales), *options, made]


def _numbers(
    cell: Cell, keeps: Sequence[MaybeTensor], scales: Sequence[float]
) -> tuple[Sequence[MaybeTensor], Sequence[float]]:
    """The masks, and their scales as numbers: those that are tensors stand behind the masks."""
    kinds = len(cell.kinds)
    if len(keeps) == kinds:
        return keeps, scales
    return keeps[:kinds], [number(*both) for both in zip(scales, keeps[kinds:], strict=True)]


def _operator_forward(
    input: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: MaybeTensor,
    b_hh: MaybeTensor,
    keeps: Sequence[MaybeTensor],
    scales: Sequence[float],
    count: int,
    batch: int,
    batch_sizes: MaybeTensor,
    reverse: bool,
    cell: str,
    strategy: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    steps = Steps(count, batch, batch_sizes, reverse)
    keeps, scales = _numbers(CELLS[cell], keeps, scales)
    runs = _resolved(strategy, input, steps, w_hh, CELLS[cell], keeps)
    call = Call.of(scales, steps, CELLS[cell], runs)
    output, last, saved = _forward(call, input, states, Weights(w_ih, w_hh, b_ih, b_hh), keeps)
    return output, last, saved


def _operator_backward(
    input: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: MaybeTensor,
    b_hh: MaybeTensor,
    keeps: Sequence[MaybeTensor],
    scales: Sequence[float],
    count: int,
    batch: int,
    batch_sizes: MaybeTensor,
    reverse: bool,
    cell: str,
    strategy: str,
    made: Sequence[Tensor],
    grads: Sequence[MaybeTensor],
    flags: Sequence[bool],
) -> list[Tensor]:
    steps = Steps(count, batch, batch_sizes, reverse)
    keeps, scales = _numbers(CELLS[cell], keeps, scales)
    runs = _resolved(strategy, input, steps, w_hh, CELLS[cell], keeps)
    call = Call.of(scales, steps, CELLS[cell], runs)
    row = [input, w_ih, w_hh, b_ih, b_hh, *states, *keeps, *made]
    return _backward(call.layer(row), call, grads, flags)


def _fake(input: Tensor, states: Sequence[Tensor], *rest: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    shape, columns, cell = input.shape[:-1], states[0].shape[1], CELLS[rest[-2]]
    saved = [input.new_empty(math.prod(shape), k * columns) for k in cell.saved]
    return input.new_empty(*shape, columns), [state.new_empty(state.shape) for state in states], saved


def _backward_fake(
    input: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: MaybeTensor,
    b_hh: MaybeTensor,
    *rest: Any,
) -> list[Tensor]:
    like = input, w_ih, w_hh, b_ih, b_hh, *states
    return [x.new_empty(x.shape) for x, needed in zip(like, rest[-1], strict=True) if needed and x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], list[Tensor]]) -> None:
    ctx.set_materialize_grads(False)
    input, states, w_ih, w_hh, b_ih, b_hh, keeps, *ctx.options = inputs
    ctx.sizes = len(states), len(keeps)
    batch_sizes, ctx.options[3] = ctx.options[3], None
    ctx.save_for_backward(batch_sizes, input, w_ih, w_hh, b_ih, b_hh, *states, *keeps, output[0], *output[2])


def _gradients(ctx: Any, grad_output: MaybeTensor, grad_states: Any, _: Any) -> tuple[Any, ...]:
    (states, keeps), (batch_sizes, *row) = ctx.sizes, _saved(ctx)
    input, w_ih, w_hh, b_ih, b_hh, *rest = row
    options = [*ctx.options[:3], batch_sizes, *ctx.options[4:]]
    needs = ctx.needs_input_grad
    flags = [needs[0], *needs[2:6], *needs[1]]
    grads = [grad_output, *(grad_states or [None] * states)]
    given = rest[states : states + keeps]
    found = _backward_operator(
        input,
        rest[:states],
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        given,
        *options,
        rest[states + keeps :],
        grads,
        flags,
    )
    of_input, of_w_ih, of_w_hh, of_b_ih, of_b_hh, *of_states = filled([None] * len(flags), flags, found)
    # torch.library takes a list with a None in it for one argument.
    of_keeps = None if any(keep is None for keep in given) else [None] * keeps
    return of_input, of_states, of_w_ih, of_w_hh, of_b_ih, of_b_hh, of_keeps, *[None] * len(options)


_OPERANDS = (
    "Tensor input, Tensor[] states, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor?[] keeps, float[] scales, "
    "SymInt count, SymInt batch, Tensor? batch_sizes, bool reverse, str cell, str strategy"
)
_SCHEMA = f"({_OPERANDS}) -> (Tensor, Tensor[], Tensor[])"
_BACKWARD_SCHEMA = f"({_OPERANDS}, Tensor[] made, Tensor?[] grads, bool[] flags) -> Tensor[]"
_operator = operator("layer", _SCHEMA, _operator_forward, _fake, _gradients, _save)
_backward_operator = operator("layer_backward", _BACKWARD_SCHEMA, _operator_backward, _backward_fake)
