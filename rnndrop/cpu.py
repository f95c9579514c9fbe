"""One layer, one direction on the CPU: in-place matrix products by PyTorch, everything per element by NumPy.

The rows of a sequence lie one step after another in matrices of N rows, N = T*B for a padded batch and the sum of the
batch sizes for a packed one, so that the product with the input and those for the weight gradients are one each. What is
left in the loop is one product a step, the activation and the mask, which NumPy does in a fraction of the time that
PyTorch's operators need for a matrix of this size. A mask is applied by a bitwise and, so that a dropped NaN is 0; its scale
1/(1-p) is folded into the recurrent weight and multiplied into the outputs once, after the loop.

Legend: T steps, B sequences, N rows, I inputs, H hidden units. A span is the first row of a step and the row after its last;
`spans` stand in the order of processing. Between two of them sequences may end (forwards) or begin (backwards in time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mask import Mask, keep_bytes, scale

CHUNK = 1 << 16  # elements widened or differentiated at a time: they stay in the second-level cache
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUMPY = (torch.float32, torch.float64)  # NumPy has no bfloat16, and computes float16 slowly

KEEP = torch.int8  # a mask here: -1, all bits set, where kept and 0 where dropped

Span = tuple[int, int]


def keep(seed: Tensor, rows: int, columns: int, p: float, site: int) -> Tensor:
    """A mask of (rows, columns)."""
    return keep_bytes(int(seed), rows, columns, p, site)


def keep_columns(columns: int) -> int:
    """The width of such a mask."""
    return columns


def unpack(keep: Tensor, columns: int) -> Tensor:
    """A mask as bool, (rows, columns)."""
    return keep != 0


def forward(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    hidden: Mask | None,
    recurrent: Mask | None,
    *,
    spans: list[Span],
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Output (T, B, H) or (N, H) and h_n (B, H) of input (T, B, I) or (N, I), h0 (B, H), weights (H, I), (H, H), bias (H)."""
    result = input.new_empty(*input.shape[:-1], len(w_hh))  # which PyTorch may not take for a view of something else
    output, x = result.view(-1, len(w_hh)), input.reshape(-1, input.shape[-1])
    _ = torch.mm(x, w_ih.t(), out=output) if bias is None else torch.addmm(bias, x, w_ih.t(), out=output)
    from_h0 = _scaled(w_hh.t(), recurrent)
    from_h = _scaled(from_h0, hidden)  # of what has no scale yet
    activate, drop = _activation(nonlinearity, output), _dropper(h0, recurrent)
    h_n, h0_bits, first = torch.empty_like(h0), _bits(h0), spans[0][1] - spans[0][0]
    h, h_bits, weight = h0[:first], h0_bits[:first], from_h0
    rows = _steps(result, spans), _slices(_values(output), spans), _slices(_bits(output), spans)
    masks = _keeps(hidden, spans, output), _keeps(recurrent, spans, output)
    for a, values, bits, keep, r in zip(*rows, *masks, strict=False):
        if len(bits) != len(h_bits):  # some sequences ended, or some begin, from h0
            carried = min(len(bits), len(h_bits))
            h_n[carried : len(h_bits)] = h[carried:]
            begin = slice(carried, len(bits))
            a[begin].addmm_(drop(h0[begin], h0_bits[begin], r, carried), from_h0)
            a[:carried].addmm_(drop(h[:carried], h_bits[:carried], r), weight)
        else:
            a.addmm_(drop(h, h_bits, r), weight)
        activate(values, values)
        if keep is not None:
            np.bitwise_and(bits, keep, out=bits)
        h, h_bits, weight = a, bits, from_h
    h_n[: len(h_bits)] = h
    if hidden is not None:
        output *= hidden.scale
        h_n *= hidden.scale
    return result, h_n


def backward(
    grad_output: Tensor,
    grad_h_n: Tensor | None,
    output: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    hidden: Mask | None,
    recurrent: Mask | None,
    *,
    spans: list[Span],
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of the pre-activations (N, H) and of h0 (B, H). `grad_output` is (N, H) or (T, B, H)."""
    spans = spans[::-1]
    weight = _scaled(w_hh, recurrent)
    grad_a, grad_h0, grad_h = torch.empty_like(output), torch.empty_like(h0), torch.empty_like(h0)
    multiply = np.multiply if output.dtype in NUMPY else torch.multiply
    drop = _dropper(h0, recurrent)

    def to_earlier(later: Tensor, r: np.ndarray | None, first: int = 0) -> Tensor:
        product = later @ weight
        return drop(product, _bits(product), r, first)

    later, later_size, later_r = grad_a[:0], 0, None
    total, total_values = grad_h[:0], _values(grad_h[:0])
    slopes = _slopes(grad_a, output, spans, 1.0 if hidden is None else hidden.scale, nonlinearity)
    rows = _steps(grad_output, spans), _steps(grad_a, spans), slopes, _slices(_bits(grad_a), spans)
    masks = _keeps(hidden, spans, output), _keeps(recurrent, spans, output)
    for g, a, slope, bits, keep, r in zip(*rows, *masks, strict=False):
        size = len(bits)
        if size != len(total_values):
            total, total_values = grad_h[:size], _values(grad_h[:size])
        if size == later_size and recurrent is None:
            torch.addmm(g, later, weight, out=total)
        else:
            if size < later_size:  # these sequences began in the step after this
                grad_h0[size:later_size] = to_earlier(later[size:], later_r, size)
            carried = min(size, later_size)
            if carried:
                torch.add(g[:carried], to_earlier(later[:carried], later_r), out=total[:carried])
            total[carried:] = g[carried:]  # these end here
            if grad_h_n is not None:
                total[carried:] += grad_h_n[carried:size]
        multiply(slope, total_values, out=slope)
        if keep is not None:
            np.bitwise_and(bits, keep, out=bits)
        later, later_size, later_r = a, size, r
    grad_h0[:later_size] = to_earlier(later, later_r)
    return grad_a, grad_h0


def recurrent_input(output: Tensor, h0: Tensor, recurrent: Mask | None, *, spans: list[Span]) -> Tensor:
    """What entered W_hh at each row, (N, H): the state before it, its dropped elements 0, without the mask's scale."""
    entered = torch.empty_like(output)
    h0_bits, previous = _bits(h0), _bits(output)[:0]
    rows = _slices(_bits(entered), spans), _slices(_bits(output), spans), _keeps(recurrent, spans, output)
    for now, then, r in zip(*rows, strict=False):
        carried = min(len(now), len(previous))
        now[:carried] = previous[:carried]
        now[carried:] = h0_bits[carried : len(now)]
        if r is not None:
            np.bitwise_and(now, r, out=now)
        previous = then
    return entered


def dropout_keep_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of the mask that dropout_backward takes."""
    return rows, columns


def dropout_forward(x: Tensor, seed: Tensor, p: float, site: int, *, nonlinearity: str) -> tuple[Tensor, Tensor]:
    """dropout(f(x)) of x (N, H), any strides, and the mask."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
    mask = Mask(keep(seed, len(x), x.shape[1], p, site), scale(p), per_step=True)
    activate, spans = _activation(nonlinearity, x), _blocks(x)
    rows = _slices(_values(y), spans), _slices(_bits(y), spans), _widened(mask.keep, spans, x.element_size())
    for values, bits, kept in zip(*rows, strict=True):
        activate(values, values)
        np.bitwise_and(bits, kept, out=bits)
        values *= mask.scale
    return y, mask.keep


def dropout_backward(
    grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, p: float, site: int, *, nonlinearity: str
) -> Tensor:
    """The gradient of x, from y = dropout(f(x)) and its mask."""
    grad_x = torch.empty_like(y)
    spans = _blocks(y)
    slopes = _slopes(grad_x, y, spans, scale(p), nonlinearity)
    rows = slopes, _slices(_values(grad_y), spans), _slices(_bits(grad_x), spans), _widened(keep, spans, y.element_size())
    for slope, g, bits, kept in zip(*rows, strict=True):
        slope *= g
        np.bitwise_and(bits, kept, out=bits)
    return grad_x


def _blocks(x: Tensor) -> list[Span]:
    """Spans of rows that fit the cache."""
    rows = max(1, CHUNK // max(1, x.shape[1]))
    return [(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def _dropper(like: Tensor, mask: Mask | None) -> Callable[..., Tensor]:
    """A function that zeroes what the mask of a step drops of some rows, in a buffer of its own."""
    if mask is None:
        return lambda x, bits, keep, first=0: x
    buffer = torch.empty_like(like, memory_format=torch.contiguous_format)
    buffer_bits = _bits(buffer)

    def drop(x: Tensor, bits: np.ndarray, keep: np.ndarray, first: int = 0) -> Tensor:
        """`bits` are those of x; `first` is the mask's row of its first."""
        if len(bits):
            np.bitwise_and(bits, keep[first : first + len(bits)], out=buffer_bits[: len(bits)])
        return buffer[: len(bits)]

    return drop


def _scaled(weight: Tensor, mask: Mask | None) -> Tensor:
    return weight if mask is None else weight * mask.scale


def _values(x: Tensor) -> Any:
    """The elements as NumPy sees them, where it is the faster of the two."""
    return x.numpy() if x.dtype in NUMPY else x


def _bits(x: Tensor) -> np.ndarray:
    """The elements as integers of their width."""
    return x.view(INTEGER[x.element_size()]).numpy()


def _slices(x: Any, spans: list[Span]) -> list[Any]:
    return [x[start:stop] for start, stop in spans]


def _steps(x: Tensor, spans: list[Span]) -> list[Tensor]:
    """The rows of each step, in the order of processing."""
    if x.dim() == 2 and _equal(spans):
        x = x.view(len(spans), spans[0][1] - spans[0][0], x.shape[1])
    steps = x.unbind(0) if x.dim() == 3 else x.split([stop - start for start, stop in sorted(spans)])
    return list(steps if spans[0] <= spans[-1] else steps[::-1])


def _equal(spans: list[Span]) -> bool:
    """Whether the steps have one number of rows; in a packed sequence it only falls or only rises."""
    return spans[0][1] - spans[0][0] == spans[-1][1] - spans[-1][0]


def _chunks(spans: list[Span], width: int) -> Iterator[tuple[int, int, list[Span]]]:
    """Runs of neighbouring steps that fit the cache: their first row, the row after their last, their spans."""
    most = max(1, CHUNK // max(1, width * max(stop - start for start, stop in spans)))
    for i in range(0, len(spans), most):
        run = spans[i : i + most]
        yield min(run)[0], max(run)[1], run


def _keeps(mask: Mask | None, spans: list[Span], like: Tensor) -> Iterator[Any]:
    """The mask of each step, as wide as an element of `like`."""
    if mask is None:
        return repeat(None)
    if mask.per_step:
        return _widened(mask.keep, _padded(spans, len(mask.keep) // len(spans)), like.element_size())
    wide = mask.keep.to(INTEGER[like.element_size()]).numpy()
    return iter([wide[: stop - start] for start, stop in spans])


def _padded(spans: list[Span], batch: int) -> list[Span]:
    """Where the rows of each step would be if all sequences were of one length."""
    if _equal(spans):
        return spans
    forwards = spans[0] < spans[-1]
    padded = [(t * batch, t * batch + stop - start) for t, (start, stop) in enumerate(spans if forwards else spans[::-1])]
    return padded if forwards else padded[::-1]


def _widened(keep: Tensor, spans: list[Span], size: int) -> Iterator[np.ndarray]:
    for first, last, run in _chunks(spans, keep.shape[1]):
        wide = keep[first:last].to(INTEGER[size]).numpy()
        yield from [wide[start - first : stop - first] for start, stop in run]


def _activation(nonlinearity: str, like: Tensor) -> Callable[[Any, Any], Any]:
    """f of the first argument, into the second, which is the same."""
    if nonlinearity == "identity":
        return lambda x, y: x
    if like.dtype in NUMPY:
        return np.tanh if nonlinearity == "tanh" else lambda x, y: np.maximum(x, 0, out=y)
    in_place = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
    return lambda x, y: in_place(y)


def _slopes(grad_a: Tensor, output: Tensor, spans: list[Span], scale: float, nonlinearity: str) -> Iterator[Any]:
    """The rows of each step of `grad_a`, filled with scale * f'(a), computed from the output where it was kept."""
    values, kept = _values(grad_a), output.new_full((), scale)
    for first, last, run in _chunks(spans, output.shape[1]):
        y, slope = output[first:last], grad_a[first:last]
        if nonlinearity == "tanh":
            torch.addcmul(kept, y, y, value=-1 / scale if scale else 0.0, out=slope)  # 1 - f**2
        elif nonlinearity == "relu":
            slope.copy_(y <= 0).mul_(-scale).add_(scale)
        else:
            slope.fill_(scale)
        yield from _slices(values, run)
