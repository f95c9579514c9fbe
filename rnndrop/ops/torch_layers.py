"""PyTorch's own recurrent layers, without dropout: cuDNN's on CUDA.

Compiled, they are one operator: PyTorch's compiler would unroll them step by step. In training on a CPU, where that operator
would run them again in the backward pass, an LSTM's are oneDNN's, and in place of the others our own layers run. Exported,
they stay what they are, since ONNX has an operator for them; but with a number of steps that is not fixed, which PyTorch's
cannot be exported with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import _VF, Tensor

from ..autocast import cast
from . import onednn_lstm
from .eager import is_exporting
from .operator import operator

MaybeTensor = Tensor | None


def torch_layers(
    mode: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: MaybeTensor,
    bias: bool,
    num_layers: int,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The output and the states at the end of input (T, B, I), or (B, T, I) `batch_first`, or packed (N, I), and states
    (L*D, B, units)."""
    options = bias, num_layers, training, bidirectional
    if not torch.compiler.is_compiling() or (is_exporting() and not _lacks_length(input.shape[batch_first])):
        return _run(input, states, weights, batch_sizes, mode, *options, batch_first)
    # The compiled graph runs without autocast, and an operator has one layout.
    input, states, weights = cast(input), [cast(state) for state in states], [cast(weight) for weight in weights]
    x = input.transpose(0, 1) if batch_first else input
    if training and _differentiated_on_cpu(x) and onednn_lstm.takes(mode, x, states, batch_sizes):
        output, ends = onednn_lstm.layers(x, states, weights, bias, num_layers, bidirectional)
    else:
        output, ends = _operator(x, states, weights, batch_sizes, mode, *options)
    return output.transpose(0, 1) if batch_first else output, ends


def _lacks_length(steps: Any) -> bool:
    """Whether an export is to take any number of steps, for which PyTorch's tracing of its own layers asks; ONNX's has none."""
    return isinstance(steps, torch.SymInt) and not torch.onnx.is_in_onnx_export()


def runs_again(mode: str, input: Tensor, states: Sequence[Tensor], batch_sizes: MaybeTensor) -> bool:
    """Whether a graph compiled for a CPU would run PyTorch's layers twice, in its backward pass too, which ours need not."""
    return _differentiated_on_cpu(input) and not onednn_lstm.takes(mode, input, states, batch_sizes)


def _differentiated_on_cpu(x: Tensor) -> bool:
    compiling = torch.compiler.is_compiling() and not is_exporting()
    return compiling and torch.is_grad_enabled() and x.device.type == "cpu"


def compacting(x: Tensor) -> AbstractContextManager[object]:
    """Where cuDNN is given weights that do not lie in one block, and may copy them together without a warning at each call."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return nullcontext()
    return _without_warning()


@contextmanager
def _without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
        yield


def _run(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: MaybeTensor,
    mode: str,
    bias: bool,
    num_layers: int,
    training: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    run: Any = getattr(_VF, mode.lower())
    hx, options = states if mode == "LSTM" else states[0], (weights, bias, num_layers, 0.0, training, bidirectional)
    if batch_sizes is None:
        output, *ends = run(input, hx, *options, batch_first)
    else:
        output, *ends = run(input, batch_sizes, hx, *options)
    return output, ends


def _backward(
    grads: Sequence[MaybeTensor],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: MaybeTensor,
    flags: Sequence[bool],
    mode: str,
    bias: bool,
    num_layers: int,
    training: bool,
    bidirectional: bool,
) -> list[Tensor]:
    """The gradients asked for, of input, states and weights. It runs the layers again: an operator keeps no graph."""
    leaves = [x.detach().requires_grad_(flag) for x, flag in zip((input, *states, *weights), flags, strict=True)]
    first = 1 + len(states)  # of the weights
    # Inside an operator autograd records nothing unless it is let in; torch.func, which is, refuses batch sizes.
    guard, key = torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey
    with torch.enable_grad(), guard(key.AutogradFunctionality, False), guard(key.ADInplaceOrView, False):
        options = mode, bias, num_layers, training, bidirectional
        output, ends = _run(leaves[0], leaves[1:first], leaves[first:], batch_sizes, *options)
    pairs = [(y, g) for y, g in zip((output, *ends), grads, strict=True) if g is not None]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs])
    return [g.clone(memory_format=torch.contiguous_format) for g in found]  # cuDNN's are views of one buffer


def _fake(
    input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], batch_sizes: MaybeTensor, mode: str, *options: Any
) -> tuple[Tensor, list[Tensor]]:
    bidirectional = options[3]
    dtype = weights[0].dtype
    output = input.new_empty((*input.shape[:-1], states[0].shape[-1] * (2 if bidirectional else 1)), dtype=dtype)
    return output, [state.new_empty(state.shape, dtype=dtype) for state in states]


def _backward_fake(
    grads: Sequence[MaybeTensor],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: MaybeTensor,
    flags: Sequence[bool],
    *options: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, flag in zip((input, *states, *weights), flags, strict=True) if flag]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    input, states, weights, batch_sizes, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.states = len(states)
    ctx.save_for_backward(batch_sizes, input, *states, *weights)


def _gradients(ctx: Any, grad_output: MaybeTensor, grad_states: Any) -> tuple[Any, ...]:
    batch_sizes, input, *rest = ctx.saved_tensors
    states, weights = rest[: ctx.states], rest[ctx.states :]
    needs = ctx.needs_input_grad
    flags = [needs[0], *needs[1], *needs[2]]
    grads = [grad_output, *(grad_states or [None] * ctx.states)]
    found = iter(_backward_operator(grads, input, states, weights, batch_sizes, flags, *ctx.options))
    of_input, *rest = [next(found) if flag else None for flag in flags]
    return of_input, rest[: ctx.states], rest[ctx.states :], *[None] * (1 + len(ctx.options))


_TENSORS = "Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes"
_OPTIONS = "str mode, bool bias, int num_layers, bool training, bool bidirectional"
_SCHEMA = f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor[])"
_BACKWARD_SCHEMA = f"(Tensor?[] grads, {_TENSORS}, bool[] flags, {_OPTIONS}) -> Tensor[]"
_operator = operator("torch_layers", _SCHEMA, _run, _fake, _gradients, _save)
_backward_operator = operator("torch_layers_backward", _BACKWARD_SCHEMA, _backward, _backward_fake)
