"""What autograd and the compiler see: two operators, `layer` and `dropout`, and their gradients.

An operator runs on a backend, `cpu` or the kernels, which holds masks in a form of its own, computes, and goes back to the
gradients of the pre-activations. The products for the weights and the input are the same everywhere and stand here. A
backward pass that is to be differentiated itself goes through the reference.

Eager mode calls an operator as an autograd.Function, whose call costs a third of a torch.library operator's; the compiler
sees the torch.library operator. Both are made of the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import cpu, reference
from .mask import Mask, scale, site

MaybeTensor = Tensor | None


def backend(strategy: str) -> Any:
    """`cpu`, or the kernels under one strategy. Triton is imported only here."""
    if strategy == "torch":
        return cpu
    from .gpu import Kernels

    return Kernels(strategy)


class Layer(NamedTuple):
    """All that a layer is but its tensors. `batch_sizes`: the rows of each step of a packed sequence."""

    batch_sizes: Sequence[int] | None
    nonlinearity: str
    hidden_dropout: float
    recurrent_dropout: float
    mask_scope: str
    layer: int
    direction: int
    strategy: str

    def sizes(self, input: Tensor) -> list[int]:
        return [input.shape[1]] * input.shape[0] if self.batch_sizes is None else list(self.batch_sizes)

    def spans(self, input: Tensor) -> list[cpu.Span]:
        """The first row of each step and the row after its last, in the order of processing."""
        spans, start = [], 0
        for size in self.sizes(input):
            spans.append((start, start + size))
            start += size
        return spans[::-1] if self.direction else spans

    def keep(self, kind: str, p: float, seed: Tensor, input: Tensor, columns: int) -> Tensor:
        """The mask of this layer in the form of its backend, (T*B, ...) or (B, ...); empty where nothing is dropped."""
        masks = backend(self.strategy)
        if p == 0:
            return input.new_empty(0, dtype=masks.KEEP)
        sizes = self.sizes(input)
        rows = len(sizes) * sizes[0] if self.mask_scope == "step" else sizes[0]
        return masks.keep(seed, rows, columns, p, site(kind, self.layer, self.direction)).to(input.device)

    def keeps(self, seed: Tensor, input: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        hidden = self.keep("hidden", self.hidden_dropout, seed, input, columns)
        return hidden, self.keep("recurrent", self.recurrent_dropout, seed, input, columns)

    def masks(self, hidden_keep: Tensor, recurrent_keep: Tensor) -> list[Mask | None]:
        pairs = (hidden_keep, self.hidden_dropout), (recurrent_keep, self.recurrent_dropout)
        return [Mask(keep, scale(p), self.mask_scope == "step") if p else None for keep, p in pairs]


class Dropout(NamedTuple):
    """All that dropout(f(x)) is but its tensors."""

    nonlinearity: str
    p: float
    site: int
    strategy: str


def layer(*args: Any) -> tuple[Tensor, Tensor]:
    """Output and h_n of input (T, B, I) or (N, I), h0 (B, H), w_ih, w_hh, b_ih, b_hh, seed (1) and the fields of a Layer."""
    run = _LayerFunction.apply if _is_plain(args[0]) else _layer_op
    return run(*args)[:2]


def dropout(*args: Any) -> Tensor:
    """dropout(f(x)) of x (N, H), seed (1) and the fields of a Dropout."""
    run = _DropoutFunction.apply if _is_plain(args[0]) else _dropout_op
    return run(*args)[0]


def _is_plain(x: Tensor) -> bool:
    """Whether there are numbers to compute with: no tracing, no fake tensor, no meta device."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not torch.compiler.is_compiling()


def reference_layer(inputs: Sequence[MaybeTensor], layer: Layer, masks: Sequence[Mask | None]) -> tuple[Tensor, Tensor]:
    """`layer` by the reference, on (input, h0, w_ih, w_hh, b_ih, b_hh) and the masks of its backend."""
    input, h0, w_ih, w_hh, b_ih, b_hh = inputs
    assert input is not None and h0 is not None and w_ih is not None and w_hh is not None
    sizes = layer.sizes(input)

    def steps(mask: Mask | None) -> list[Tensor] | None:
        if mask is None:
            return None
        keep = backend(layer.strategy).unpack(mask.keep, len(w_hh))
        return [*keep.view(len(sizes), sizes[0], len(w_hh))] if mask.per_step else [keep] * len(sizes)

    hidden, recurrent = masks
    output, h_n = reference.rnn_layer(
        input.unbind(0) if layer.batch_sizes is None else input.split(sizes),
        h0,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        nonlinearity=layer.nonlinearity,
        hidden_keep=steps(hidden),
        hidden_scale=1.0 if hidden is None else hidden.scale,
        recurrent_keep=steps(recurrent),
        recurrent_scale=1.0 if recurrent is None else recurrent.scale,
        reverse=bool(layer.direction),
    )
    return output.view(*input.shape[:-1], len(w_hh)), h_n


def _layer_forward(
    input: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: MaybeTensor, b_hh: MaybeTensor, seed: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, h_n and the two masks."""
    layer = Layer(*options)
    hidden_keep, recurrent_keep = layer.keeps(seed, input, len(w_hh))
    output, h_n = backend(layer.strategy).forward(
        input,
        h0,
        w_ih,
        w_hh,
        b_hh if b_ih is None else b_ih if b_hh is None else b_ih + b_hh,
        *layer.masks(hidden_keep, recurrent_keep),
        spans=layer.spans(input),
        nonlinearity=layer.nonlinearity,
    )
    return output, h_n, hidden_keep, recurrent_keep


def _layer_backward(
    grad_output: MaybeTensor,
    grad_h_n: MaybeTensor,
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    output: Tensor,
    hidden_keep: Tensor,
    recurrent_keep: Tensor,
    needs: Sequence[bool],
    *options: Any,
) -> list[Tensor]:
    """The gradients of input, h0, w_ih, w_hh and a bias, empty where not among `needs`."""
    layer = Layer(*options)
    spans = layer.spans(input)
    hidden, recurrent = layer.masks(hidden_keep, recurrent_keep)
    x, y = input.reshape(-1, input.shape[-1]), output.reshape(-1, output.shape[-1])
    if grad_output is None:
        grad_output = output.new_zeros(()).expand_as(output)
    grad_a, grad_h0 = backend(layer.strategy).backward(
        grad_output, grad_h_n, y, h0, w_hh, hidden, recurrent, spans=spans, nonlinearity=layer.nonlinearity
    )
    gradients: list[Callable[[], Tensor]] = [
        lambda: (grad_a @ w_ih).view(input.shape),
        lambda: grad_h0,
        lambda: grad_a.t() @ x,
        lambda: _grad_w_hh(layer, grad_a, y, h0, recurrent, spans),
        lambda: grad_a.sum(0),
    ]
    return [gradient() if need else x.new_empty(0) for gradient, need in zip(gradients, needs, strict=True)]


def _grad_w_hh(
    layer: Layer, grad_a: Tensor, output: Tensor, h0: Tensor, recurrent: Mask | None, spans: list[cpu.Span]
) -> Tensor:
    batch, rows = len(h0), len(output)
    if recurrent is not None:
        entered = backend(layer.strategy).recurrent_input(output, h0, recurrent, spans=spans)
        return (grad_a.t() @ entered).mul_(recurrent.scale)
    if len(spans) * batch != rows:
        return grad_a.t() @ backend(layer.strategy).recurrent_input(output, h0, None, spans=spans)
    # No copy of the states: the last row of each sequence enters nothing, and h0 enters the first.
    states, next_a, first_a = output[: rows - batch], grad_a[batch:], grad_a[:batch]
    if layer.direction:
        states, next_a, first_a = output[batch:], grad_a[: rows - batch], grad_a[rows - batch :]
    return (next_a.t() @ states).addmm_(first_a.t(), h0)


def _dropout_forward(x: Tensor, seed: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """dropout(f(x)), and the mask, empty where the backend makes it again."""
    dropout = Dropout(*options)
    return backend(dropout.strategy).dropout_forward(x, seed, dropout.p, dropout.site, nonlinearity=dropout.nonlinearity)


def _dropout_backward(grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, *options: Any) -> Tensor:
    dropout = Dropout(*options)
    return backend(dropout.strategy).dropout_backward(
        grad_y, y, keep, seed, dropout.p, dropout.site, nonlinearity=dropout.nonlinearity
    )


def _setup_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    y, _, hidden_keep, recurrent_keep = output
    ctx.save_for_backward(*inputs[:6], y, hidden_keep, recurrent_keep)
    ctx.options = inputs[7:]


def _layer_gradients(backward: Callable[..., list[Tensor]], ctx: Any, *grads: MaybeTensor) -> tuple[MaybeTensor, ...]:
    *inputs, output, hidden_keep, recurrent_keep = ctx.saved_tensors
    needs = ctx.needs_input_grad
    found: list[MaybeTensor]
    if torch.is_grad_enabled():
        layer = Layer(*ctx.options)
        outputs = reference_layer(inputs, layer, layer.masks(hidden_keep, recurrent_keep))
        found = _with_graph(outputs, grads, inputs, needs)
    else:
        asked = [*needs[:4], any(needs[4:6])]
        *gradients, bias = backward(*grads[:2], *inputs[:4], output, hidden_keep, recurrent_keep, asked, *ctx.options)
        found = [*gradients, bias, bias.clone() if all(needs[4:6]) else bias]
    kept = [g if need else None for g, need in zip(found, needs, strict=False)]
    return *kept, *[None] * (len(needs) - len(kept))


def _with_graph(
    outputs: Sequence[Tensor], grads: Sequence[MaybeTensor], inputs: Sequence[MaybeTensor], needs: Sequence[bool]
) -> list[MaybeTensor]:
    """Gradients of the inputs that have a graph of their own."""
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=False) if g is not None]
    leaves = [x for x, need in zip(inputs, needs, strict=False) if need and x is not None]
    found = iter(torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs], create_graph=True))
    return [next(found) if need else None for _, need in zip(inputs, needs, strict=False)]


def _setup_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, seed, *ctx.options = inputs
    ctx.save_for_backward(*output, seed)


def _dropout_gradients(backward: Callable[..., Tensor], ctx: Any, grad_y: Tensor, _: Any) -> tuple[MaybeTensor, ...]:
    y, keep, seed = ctx.saved_tensors
    run = _dropout_graph_gradient if torch.is_grad_enabled() else backward
    return run(grad_y, y, keep, seed, *ctx.options), *[None] * (1 + len(ctx.options))


def _dropout_graph_gradient(grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, *options: Any) -> Tensor:
    """The gradient of x with a graph of its own: y, which f' is computed from, leads to x."""
    dropout = Dropout(*options)
    masks, kept = backend(dropout.strategy), scale(dropout.p)
    slope: Tensor | float = kept
    if dropout.nonlinearity == "tanh":
        slope = kept - y * y / (kept or 1)
    elif dropout.nonlinearity == "relu":
        slope = kept * ~(y <= 0)
    if keep.numel() == 0:
        keep = masks.keep(seed, *y.shape, dropout.p, dropout.site)
    return (grad_y * slope).masked_fill(~masks.unpack(keep, y.shape[1]), 0)


# autograd asks for the signature at every call; to work it out takes longer than to run a small step.
_layer_forward.__signature__ = signature(_layer_forward)  # type: ignore[attr-defined]
_dropout_forward.__signature__ = signature(_dropout_forward)  # type: ignore[attr-defined]


class _LayerFunction(torch.autograd.Function):
    forward = staticmethod(_layer_forward)
    setup_context = staticmethod(_setup_layer)
    backward = staticmethod(partial(_layer_gradients, _layer_backward))


class _DropoutFunction(torch.autograd.Function):
    forward = staticmethod(_dropout_forward)
    setup_context = staticmethod(_setup_dropout)
    backward = staticmethod(partial(_dropout_gradients, _dropout_backward))


_LAYER = (
    "SymInt[]? batch_sizes, str nonlinearity, float hidden_dropout, float recurrent_dropout, str mask_scope, int layer, "
    "int direction, str strategy"
)
_DROPOUT = "str nonlinearity, float p, int site, str strategy"

_layer_op = torch.library.custom_op(
    "rnndrop::layer",
    _layer_forward,
    mutates_args=(),
    schema=f"(Tensor input, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor seed, {_LAYER})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_layer_backward_op = torch.library.custom_op(
    "rnndrop::layer_backward",
    _layer_backward,
    mutates_args=(),
    schema="(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor output, "
    f"Tensor hidden_keep, Tensor recurrent_keep, bool[] needs, {_LAYER}) -> Tensor[]",
)
_dropout_op = torch.library.custom_op(
    "rnndrop::dropout",
    _dropout_forward,
    mutates_args=(),
    schema=f"(Tensor x, Tensor seed, {_DROPOUT}) -> (Tensor, Tensor)",
)
_dropout_backward_op = torch.library.custom_op(
    "rnndrop::dropout_backward",
    _dropout_backward,
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor y, Tensor keep, Tensor seed, {_DROPOUT}) -> Tensor",
)
_layer_op.register_autograd(partial(_layer_gradients, _layer_backward_op), setup_context=_setup_layer)
_dropout_op.register_autograd(partial(_dropout_gradients, _dropout_backward_op), setup_context=_setup_dropout)


@_layer_op.register_fake
def _layer_fake(
    input: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: MaybeTensor, b_hh: MaybeTensor, seed: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer = Layer(*options)
    masks = backend(layer.strategy)
    columns = w_hh.shape[0]
    steps = input.shape[0] if layer.batch_sizes is None else len(layer.batch_sizes)
    rows = steps * h0.shape[0] if layer.mask_scope == "step" else h0.shape[0]

    def keep(p: float) -> Tensor:
        return input.new_empty((rows, masks.keep_columns(columns)) if p else 0, dtype=masks.KEEP)

    output = input.new_empty(*input.shape[:-1], columns)
    return output, h0.new_empty(h0.shape), keep(layer.hidden_dropout), keep(layer.recurrent_dropout)


@_layer_backward_op.register_fake
def _layer_backward_fake(
    grad_output: MaybeTensor,
    grad_h_n: MaybeTensor,
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    output: Tensor,
    hidden_keep: Tensor,
    recurrent_keep: Tensor,
    needs: Sequence[bool],
    *options: Any,
) -> list[Tensor]:
    like = input, h0, w_ih, w_hh, w_hh[0]
    return [input.new_empty(x.shape if need else 0) for x, need in zip(like, needs, strict=True)]


@_dropout_op.register_fake
def _dropout_fake(x: Tensor, seed: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    masks = backend(Dropout(*options).strategy)
    return x.new_empty(x.shape), x.new_empty(masks.dropout_keep_shape(*x.shape), dtype=masks.KEEP)


@_dropout_backward_op.register_fake
def _dropout_backward_fake(grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, *options: Any) -> Tensor:
    return y.new_empty(y.shape)
