"""What an LSTM does in a step: the gates i, f, g, o in place of their pre-activations, and
c' = d * (f * c_{t-1} + i * (u * g)), h_t = zone(h_{t-1}, m * (o * tanh(c'))), c_t = zone_c(c_{t-1}, c')."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...cell import Cell, Weights
from ...mask import Mask
from ...steps import Steps
from ..base import Layer, Masks
from .elements import (
    Array,
    Collect,
    Range,
    alternating,
    bits_of,
    chunks,
    dropped,
    each_row,
    entering_rows,
    firsts,
    rows_of,
    scale_of,
    sigmoids,
    states_before,
    step_masks,
    transposed,
)
from .library import Library, Rows, library_for
from .zone import part, zoning

SIGMOIDS = (True, True, False, True)  # which of the gates are


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes the arguments of tanh: sigmoid(x) = (1 + tanh(x/2)) / 2."""
    factor, _ = sigmoids(SIGMOIDS, weights.w_hh.shape[1], weights.w_hh)
    bias = weights.bias
    w_ih, w_hh = weights.w_ih * factor[:, None], weights.w_hh * factor[:, None]
    return Weights(w_ih, transposed(w_hh), None if bias is None else bias * factor)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates."""
    return w_hh


def forward(
    output: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[tuple[Tensor, Tensor, Array]]:
    """As :func:`rnn.forward`; `saved` are the gates and the cell states."""
    (gates, cells), (h_0, c_0), ranges, library = saved, states, steps.ranges, library_for(states[1])
    candidate, cell_mask, scratch = masks.get("candidate"), masks.get("cell"), torch.empty_like(c_0)
    of_candidate, of_cell, multiply, add_product = (
        scale_of(candidate),
        scale_of(cell_mask),
        library.multiply,
        library.add_product,
    )
    sigmoid = [library.repeated(row, len(c_0)) for row in sigmoids(SIGMOIDS, c_0.shape[1], gates)]
    zone, cell_zone = zoning(output, h_0, masks.get("zoneout"), steps), zoning(cells, c_0, masks.get("cell_zoneout"), steps)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "cell", "candidate")]
    of_c = states_before(library.of(cells), library.of(c_0), ranges)
    rows = (
        steps.split(gates),
        rows_of(gates.numpy(), ranges),
        rows_of(library.of(gates), ranges),
        *[rows_of(library.of(gate), ranges) for gate in gates.chunk(4, 1)],
        rows_of(np.split(bits_of(gates), 4, 1)[2], ranges),
        steps.split(output),
        rows_of(library.of(output), ranges),
        rows_of(output.numpy(), ranges),
        rows_of(bits_of(output), ranges),
        rows_of(cells.numpy(), ranges),
        rows_of(bits_of(cells), ranges),
        *[firsts(row, ranges) for row in (library.of(scratch), scratch.numpy(), bits_of(scratch), *sigmoid)],
    )
    for (
        tensor,
        a,
        gate,
        i,
        f,
        g,
        o,
        g_bits,
        h_tensor,
        h,
        h_numbers,
        h_bits,
        c_numbers,
        c_bits,
        x,
        x_numbers,
        x_bits,
        by,
        plus,
        *keep,
    ) in zip(*rows, *keeps, strict=False):
        yield tensor, h_tensor, h_bits
        (c, before), (m, d, u) = next(of_c), keep
        np.tanh(a, a)
        library.scale_and_shift(gate, by, plus)
        if u is None:
            multiply(i, g, out=x)
        else:
            np.bitwise_and(g_bits, u, x_bits)
            x_numbers *= of_candidate
            multiply(i, x, out=x)
        add_product(x, f, before, c)
        if d is not None:
            c_bits &= d
            c_numbers *= of_cell
        np.tanh(c_numbers, x_numbers)
        multiply(o, x, out=h)
        if m is not None:
            h_bits &= m
            if scale != 1:
                h_numbers *= scale
        if zone is not None:
            next(zone)
        if cell_zone is not None:
            next(cell_zone)


def backward(collect: Collect, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """The rows of each step of the gates, in memory that serves again; asked for the next, it writes their gradient, from those
    of the step's states in the first rows of `grads` (B, H), and leaves there what goes to the states before past the gates: of
    c_t all. `collect` takes the gradients of the gates of some steps at a time. `steps` stand in the order of the backward
    pass."""
    (grad_h, grad_c), library, masks = grads, library_for(grads[1]), layer.masks
    made, carried = torch.empty_like(grad_h) if "zoneout" in masks else grad_h, torch.empty_like(grad_c)
    multiply, add_product, of_grad_h, of_cell = (
        library.multiply,
        library.add_product,
        bits_of(grad_h),
        scale_of(masks.get("cell")),
    )
    kinds = ("hidden", "zoneout", "cell", "cell_zoneout", "candidate")
    keeps = [step_masks(masks.get(kind), steps, grad_h) for kind in kinds]
    factors = _Factors(layer, library)
    saved_f = library.of(layer.saved[0].chunk(4, 1)[1])
    for first, last, ranges, gates in alternating(steps, layer.saved[0]):
        apart = gates.view(len(gates), 4, -1)
        rows = (
            rows_of(gates, ranges, first),
            factors.rows(gates, first, ranges),
            rows_of(library.of(apart[:, :3]), ranges, first),
            rows_of(library.of(apart[:, 3]), ranges, first),
            rows_of(bits_of(apart)[:, :3:2], ranges, first),
            rows_of(saved_f, ranges),
            *[
                firsts(row, ranges)
                for row in (library.of(grad_c.unsqueeze(1)), library.of(grad_c), grad_c.numpy(), bits_of(grad_c))
            ],
            *[firsts(row, ranges) for row in (library.of(made), made.numpy(), bits_of(made), grad_h.numpy())],
            *[firsts(row, ranges) for row in (carried.numpy(), bits_of(carried))],
        )
        for (
            tensor,
            to_c,
            ifg,
            o,
            ig_bits,
            f,
            gc_each,
            gc,
            gc_numbers,
            gc_bits,
            m,
            m_numbers,
            m_bits,
            gh,
            x,
            x_bits,
            *keep,
        ) in zip(*rows, *keeps, strict=False):
            yield tensor
            of_hidden, zone, d, cell_zone, u = keep
            if zone is not None:
                np.copyto(m_numbers, gh)
                part(m_bits, of_grad_h, zone)
            if of_hidden is not None:
                m_bits &= of_hidden
            if cell_zone is not None:
                np.bitwise_and(gc_bits, ~cell_zone, x_bits)
                gc_bits &= cell_zone
            add_product(gc, to_c, m, gc)
            if d is not None:
                gc_bits &= d
                gc_numbers *= of_cell
            if u is not None:
                np.bitwise_and(ig_bits, u[:, None], ig_bits)
            multiply(ifg, gc_each, out=ifg)
            multiply(o, m, out=o)
            multiply(gc, f, out=gc)
            if cell_zone is not None:
                gc_numbers += x
        collect(first, last, gates)


class _Factors:
    """What the gradients of the gates are made of."""

    def __init__(self, layer: Layer, library: Library) -> None:
        self.saved, self.library, self.new = layer.saved[0], library, _new_cells(layer)
        self.scale, self.of_g = scale_of(layer.masks.get("hidden")), scale_of(layer.masks.get("candidate"))
        self.before = entering_rows(layer.saved[1], layer.states[1], layer.steps)

    def rows(self, gates: Tensor, start: int, ranges: list[Range]) -> Iterator[Rows]:
        """Fills `gates`, whose first row is row `start`, with what the gradients are made of: i's, f's and g's times that of c',
        o's times that of m * made; and gives what takes the latter's to c', a step at a time."""
        kept, kept_g = (gates.new_full((), scale) for scale in (self.scale, self.of_g))
        for first, last, chunk in chunks(ranges, gates.shape[1]):
            saved, made = self.saved[first:last], gates[first - start : last - start]
            (i, _, g, o), (of_i, of_f, of_candidate, of_o) = saved.chunk(4, 1), made.chunk(4, 1)
            squashed = torch.from_numpy(np.tanh(self.new[first:last].numpy()))
            torch.addcmul(saved, saved, saved, value=-1, out=made)  # the slope of a sigmoid
            of_i *= g
            if self.of_g != 1:
                of_i *= self.of_g
            for begin, end, before in self.before(first, last):
                of_f[begin - first : end - first] *= before
            torch.addcmul(kept_g, g, g, value=-self.of_g, out=of_candidate)
            of_candidate *= i
            of_o *= squashed
            if self.scale != 1:
                of_o *= self.scale
            to_c = torch.addcmul(kept, squashed, squashed, value=-self.scale).mul_(o)
            yield from rows_of(self.library.of(to_c), chunk, first)


def _new_cells(layer: Layer) -> Tensor:
    """c' of all steps (N, H): made again where zoneout put c_{t-1} in its place."""
    gates, cells = layer.saved
    if "cell_zoneout" not in layer.masks:
        return cells
    i, f, g, _ = gates.chunk(4, 1)
    new = f * layer.steps.before(cells, layer.states[1]) + i * _drop(g, layer.masks.get("candidate"), layer.steps)
    return _drop(new, layer.masks.get("cell"), layer.steps)


def _drop(x: Tensor, mask: Mask | None, steps: Steps) -> Tensor:
    return x if mask is None else dropped(x, each_row(mask.keep, steps)).mul_(mask.scale)
