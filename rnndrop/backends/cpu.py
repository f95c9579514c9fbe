"""One layer, one direction on the CPU: in-place matrix products by PyTorch, everything per element by NumPy.

The rows of a sequence lie one step after another in matrices of N rows, N = T*B for a padded batch and the sum of the
batch sizes for a packed one, so that the product with the input and those for the weight gradients are one each. What is
left in the loop is one product a step, the activation and the mask, which NumPy does in a fraction of the time that
PyTorch's operators need for a matrix of this size. A mask is a byte an element, -1 where kept and 0 where dropped; it is
applied by a bitwise and, so that a dropped NaN is 0; its scale 1/(1-p) is folded into the recurrent weight and multiplied
into the outputs once, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cell import Cell, Weights
from ..mask import Mask
from ..steps import Steps
from .base import GateBackend, Layer, Masks, Result

CHUNK = 1 << 16  # elements widened or differentiated at a time: they stay in the L2 cache
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUMPY = (torch.float32, torch.float64)  # NumPy has no bfloat16, and computes float16 slowly

Range = tuple[int, int]  # a first row, and the row after the last
Drop = Callable[..., Tensor]
Activate = Callable[[Any, Any], Any]


class Cpu(GateBackend):
    def forward(
        self, input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
    ) -> Result:
        h_0, w_hh, ranges = states[0].resolve_neg(), weights.w_hh, steps.ranges
        hidden, recurrent = masks.get("hidden"), masks.get("recurrent")
        result = input.new_empty(*input.shape[:-1], w_hh.shape[1])  # which PyTorch may not take for a view of something else
        output = result.view(-1, w_hh.shape[1])
        _project(input, weights, out=output)
        from_h_0 = _scaled(w_hh.t(), recurrent)
        from_h = _scaled(from_h_0, hidden)  # of what has no scale yet
        activate, drop = _activation(cell.activation, output), _dropper(h_0, recurrent)
        h_n, h_0_bits, first = torch.empty_like(h_0), _bits(h_0), ranges[0][1] - ranges[0][0]
        h, h_bits, weight = h_0[:first], h_0_bits[:first], from_h_0
        rows = steps.split(result), _slices(_values(output), ranges), _slices(_bits(output), ranges)
        keeps = _keeps(hidden, steps, output), _keeps(recurrent, steps, output)
        for gates, values, bits, keep, r in zip(*rows, *keeps, strict=False):
            if len(bits) != len(h_bits):  # some sequences ended, or some begin, from h_0
                carried = min(len(bits), len(h_bits))
                h_n[carried : len(h_bits)] = h[carried:]
                begin = slice(carried, len(bits))
                gates[begin].addmm_(drop(h_0[begin], h_0_bits[begin], r, carried), from_h_0)
                gates[:carried].addmm_(drop(h[:carried], h_bits[:carried], r), weight)
            else:
                gates.addmm_(drop(h, h_bits, r), weight)
            activate(values, values)
            if keep is not None:
                np.bitwise_and(bits, keep, out=bits)
            h, h_bits, weight = gates, bits, from_h
        h_n[: len(h_bits)] = h
        if hidden is not None:
            output *= hidden.scale
            h_n *= hidden.scale
        return Result(result, [h_n], [])

    def gate_gradients(
        self, layer: Layer, grad_output: Tensor, grad_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        output, h_0, steps = layer.rows, layer.states[0], layer.steps.backwards()
        hidden, recurrent = layer.masks.get("hidden"), layer.masks.get("recurrent")
        grad_h_n = grad_states[0]
        weight = _scaled(layer.weights.w_hh, recurrent)
        gates, grad_h_0, grad_h = torch.empty_like(output), torch.empty_like(h_0), torch.empty_like(h_0)
        multiply = np.multiply if output.dtype in NUMPY else torch.multiply
        drop = _dropper(h_0, recurrent)

        def to_earlier(later: Tensor, r: np.ndarray | None, first: int = 0) -> Tensor:
            product = later @ weight
            return drop(product, _bits(product), r, first)

        later, later_size, later_r = gates[:0], 0, None
        total, total_values = grad_h[:0], _values(grad_h[:0])
        slopes = _slopes(gates, output, steps.ranges, 1.0 if hidden is None else hidden.scale, layer.cell.activation)
        rows = steps.split(grad_output), steps.split(gates), slopes, _slices(_bits(gates), steps.ranges)
        keeps = _keeps(hidden, steps, output), _keeps(recurrent, steps, output)
        for g, a, slope, bits, keep, r in zip(*rows, *keeps, strict=False):
            size = len(bits)
            if size != len(total_values):
                total, total_values = grad_h[:size], _values(grad_h[:size])
            if size == later_size and recurrent is None:
                torch.addmm(g, later, weight, out=total)
            else:
                if size < later_size:  # these sequences began in the step after this
                    grad_h_0[size:later_size] = to_earlier(later[size:], later_r, size)
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
        grad_h_0[:later_size] = to_earlier(later, later_r)
        return gates, [grad_h_0]

    def dropped_before(self, layer: Layer, mask: Mask) -> Tensor:
        before = layer.steps.before(layer.rows, layer.states[0])
        bits, ranges = _bits(before), layer.steps.ranges
        for now, keep in zip(_slices(bits, ranges), _keeps(mask, layer.steps, before), strict=False):
            np.bitwise_and(now, keep, out=now)
        return before

    def dropout(self, x: Tensor, mask: Mask) -> Tensor:
        return self._pointwise(x, mask, _activation("identity", x))

    def tanh_dropout(self, x: Tensor, mask: Mask) -> Tensor:
        """dropout(tanh(x)) of x (N, H)."""
        return self._pointwise(x, mask, _activation("tanh", x))

    def _pointwise(self, x: Tensor, mask: Mask, activate: Activate) -> Tensor:
        y, ranges = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x), _blocks(x)
        rows = _slices(_values(y), ranges), _slices(_bits(y), ranges), _widened(mask.keep, ranges, x.element_size())
        for values, bits, keep in zip(*rows, strict=True):
            activate(values, values)
            np.bitwise_and(bits, keep, out=bits)
            values *= mask.scale
        return y

    def tanh_dropout_backward(self, grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
        """The gradient of x, from y = dropout(tanh(x))."""
        grad_x, ranges = torch.empty_like(y), _blocks(y)
        slopes = _slopes(grad_x, y, ranges, mask.scale, "tanh")
        grads, keeps = _slices(_values(grad_y.resolve_neg()), ranges), _widened(mask.keep, ranges, y.element_size())
        for slope, g, bits, keep in zip(slopes, grads, _slices(_bits(grad_x), ranges), keeps, strict=True):
            slope *= g
            np.bitwise_and(bits, keep, out=bits)
        return grad_x


def _project(input: Tensor, weights: Weights, out: Tensor) -> None:
    """What goes into the gates (N, G*H) from the input and the biases."""
    x, bias = input.reshape(-1, input.shape[-1]), weights.bias
    if bias is None:
        torch.mm(x, weights.w_ih.t(), out=out)
    else:
        torch.addmm(bias, x, weights.w_ih.t(), out=out)


def _blocks(x: Tensor) -> list[Range]:
    """Ranges of rows that fit the cache."""
    rows = max(1, CHUNK // max(1, x.shape[1]))
    return [(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def _dropper(like: Tensor, mask: Mask | None) -> Drop:
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


def _slices(x: Any, ranges: list[Range]) -> list[Any]:
    return [x[start:stop] for start, stop in ranges]


def _chunks(ranges: list[Range], width: int) -> Iterator[tuple[int, int, list[Range]]]:
    """Neighbouring ranges that fit the cache together: their first row, the row after their last, and they."""
    most = max(1, CHUNK // max(1, width * max(stop - start for start, stop in ranges)))
    for i in range(0, len(ranges), most):
        chunk = ranges[i : i + most]
        yield min(chunk)[0], max(chunk)[1], chunk


def _keeps(mask: Mask | None, steps: Steps, like: Tensor) -> Iterator[Any]:
    """The mask of each step, as wide as an element of `like`."""
    if mask is None:
        return repeat(None)
    if mask.keep.shape[0] == steps.rows:
        return _widened(mask.keep, steps.ranges, like.element_size())
    wide = mask.keep.to(INTEGER[like.element_size()]).numpy()
    return iter([wide[: stop - start] for start, stop in steps.ranges])


def _widened(keep: Tensor, ranges: list[Range], size: int) -> Iterator[np.ndarray]:
    for first, last, chunk in _chunks(ranges, keep.shape[1]):
        wide = keep[first:last].to(INTEGER[size]).numpy()
        yield from [wide[start - first : stop - first] for start, stop in chunk]


def _activation(name: str, like: Tensor) -> Activate:
    """f of the first argument, into the second, which is the same."""
    if name == "identity":
        return lambda x, y: x
    if like.dtype in NUMPY:
        return np.tanh if name == "tanh" else lambda x, y: np.maximum(x, 0, out=y)
    in_place = torch.tanh_ if name == "tanh" else torch.relu_
    return lambda x, y: in_place(y)


def _slopes(gates: Tensor, output: Tensor, ranges: list[Range], scale: float, activation: str) -> Iterator[Any]:
    """The rows of each range of `gates`, filled with scale * f'(a), computed from the output where it was kept."""
    scale = min(scale, torch.finfo(output.dtype).max)  # of one p, 1 - 2**-16, in float16
    values, kept = _values(gates), output.new_full((), scale)
    for first, last, chunk in _chunks(ranges, output.shape[1]):
        y, slope = output[first:last], gates[first:last]
        if activation == "tanh":
            torch.addcmul(kept, y, y, value=-1 / scale if scale else 0.0, out=slope)  # 1 - f**2
        else:
            slope.copy_(y <= 0).mul_(-scale).add_(scale)
        yield from _slices(values, chunk)
