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
    activation_of_gates,
    alternating,
    bits_of,
    chunks,
    dropped,
    each_row,
    entering_rows,
    halves,
    keep_only,
    rows_of,
    scale_of,
    states_before,
    step_masks,
)
from .zone import part, zoning

SIGMOIDS = (True, True, False, True)  # which of the gates are


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes the arguments of tanh: sigmoid(x) = (1 + tanh(x/2)) / 2."""
    factor = torch.from_numpy(halves(SIGMOIDS, weights.w_hh))
    bias = weights.bias
    return Weights(weights.w_ih * factor[:, None], weights.w_hh * factor[:, None], None if bias is None else bias * factor)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates."""
    return w_hh


def forward(
    output: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[None]:
    """As :func:`rnn.forward`; `saved` are the gates and the cell states."""
    (gates, cells), (h_0, c_0), ranges, hidden = saved, states, steps.ranges, output.shape[1]
    activate = activation_of_gates(SIGMOIDS, c_0)
    zone, cell_zone = zoning(output, h_0, masks.get("zoneout"), steps), zoning(cells, c_0, masks.get("cell_zoneout"), steps)
    of_cell, of_candidate = scale_of(masks.get("cell")), scale_of(masks.get("candidate"))
    memory, multiply, add, tanh = np.empty_like(c_0.numpy()), np.multiply, np.add, np.tanh
    rows = (rows_of(x.numpy(), ranges) for x in (gates, gates.view(len(gates), 4, hidden), output))
    before = states_before(cells.numpy(), c_0.numpy(), ranges)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "cell", "candidate")]
    for a, apart, h, (c, c_before), m, d, u in zip(*rows, before, *keeps, strict=False):
        x = memory[: len(a)]
        activate(a)
        i, f, g, o = apart.swapaxes(0, 1)
        if u is None:
            multiply(i, g, x)
        else:
            np.bitwise_and(bits_of(g), u, bits_of(x))
            x *= of_candidate
            multiply(i, x, x)
        multiply(f, c_before, c)
        add(c, x, c)
        if d is not None:
            keep_only(c, d)
            c *= of_cell
        tanh(c, x)
        multiply(o, x, h)
        if m is not None:
            keep_only(h, m)
            h *= scale
        if zone is not None:
            next(zone)
        if cell_zone is not None:
            next(cell_zone)
        yield


def backward(collect: Collect, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Array]:
    """The rows of each step of the gates' gradient, in memory that serves again. It is made from those of the step's states in
    the first rows of `grads` (B, H), where what goes to the states before past the gates is left: of c_t all. `collect` takes
    the gradients of the gates of some steps at a time. `steps` stand in the order of the backward pass."""
    (grad_h, grad_c), masks = (grad.numpy() for grad in grads), layer.masks
    made, hidden = np.empty_like(grad_h) if "zoneout" in masks else grad_h, layer.rows.shape[1]
    factors, saved_f = _Factors(layer), layer.saved[0].chunk(4, 1)[1].numpy()
    multiply, memory, of_cell = np.multiply, np.empty_like(grad_c), scale_of(masks.get("cell"))
    kinds = ("hidden", "zoneout", "cell", "cell_zoneout", "candidate")
    keeps = [step_masks(masks.get(kind), steps, grads[0]) for kind in kinds]
    for first, last, ranges, gates in alternating(steps, layer.saved[0]):
        rows = rows_of(gates.numpy(), ranges, first), rows_of(gates.view(len(gates), 4, hidden).numpy(), ranges, first)
        steps_of_piece = zip(*rows, factors.rows(gates, first, ranges), rows_of(saved_f, ranges), strict=True)
        for (a, apart, to_c, f), of_hidden, zone, d, cell_zone, u in zip(steps_of_piece, *keeps, strict=False):
            size = len(a)
            of_made, of_c, x = made[:size], grad_c[:size], memory[:size]
            if zone is not None:
                np.copyto(of_made, grad_h[:size])
                part(bits_of(of_made), bits_of(grad_h), zone)
            if of_hidden is not None:
                keep_only(of_made, of_hidden)
            if cell_zone is not None:
                stays = np.bitwise_and(bits_of(of_c), ~cell_zone).view(of_c.dtype)
                keep_only(of_c, cell_zone)
            of_c += multiply(to_c, of_made, x)
            if d is not None:
                keep_only(of_c, d)
                of_c *= of_cell
            ifg, o = apart[:, :3], apart[:, 3]
            if u is not None:
                keep_only(ifg[:, ::2], u[:, None])
            multiply(ifg, of_c[:, None], ifg)
            multiply(o, of_made, o)
            of_c *= f
            if cell_zone is not None:
                of_c += stays
            yield a
        collect(first, last, gates)


class _Factors:
    """What the gradients of the gates are made of."""

    def __init__(self, layer: Layer) -> None:
        self.saved, self.new = layer.saved[0], _new_cells(layer)
        self.scale, self.of_g = scale_of(layer.masks.get("hidden")), scale_of(layer.masks.get("candidate"))
        self.before = entering_rows(layer.saved[1], layer.states[1], layer.steps)

    def rows(self, gates: Tensor, start: int, ranges: list[Range]) -> Iterator[Array]:
        """Fills `gates`, whose first row is row `start`, with what the gradients are made of: i's, f's and g's times that of
        c', o's times that of m * made; and gives what takes the latter's to c', a step at a time."""
        kept, kept_g = (gates.new_full((), scale) for scale in (self.scale, self.of_g))
        for first, last, chunk in chunks(ranges, gates.shape[1] // 4):
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
            yield from rows_of(to_c.numpy(), chunk, first)


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
