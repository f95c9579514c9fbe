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
    bits_of,
    chunks,
    dropped,
    each_row,
    firsts,
    rows_of,
    scale_of,
    sigmoids,
    states_before,
    step_masks,
    transposed,
)
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
    (gates, cells), (h_0, c_0), ranges = saved, states, steps.ranges
    candidate, cell_mask, scratch = masks.get("candidate"), masks.get("cell"), torch.empty_like(c_0)
    (factor, shift), of_candidate, of_cell = sigmoids(SIGMOIDS, c_0.shape[1], gates), scale_of(candidate), scale_of(cell_mask)
    zone, cell_zone = zoning(output, h_0, masks.get("zoneout"), steps), zoning(cells, c_0, masks.get("cell_zoneout"), steps)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "cell", "candidate")]
    of_c = states_before(cells.numpy(), c_0.numpy(), ranges)
    rows = (
        steps.split(gates),
        rows_of(gates.numpy(), ranges),
        *[rows_of(gate, ranges) for gate in np.split(gates.numpy(), 4, 1)],
        rows_of(np.split(bits_of(gates), 4, 1)[2], ranges),
        steps.split(output),
        rows_of(output.numpy(), ranges),
        rows_of(bits_of(output), ranges),
        rows_of(bits_of(cells), ranges),
        firsts(scratch.numpy(), ranges),
        firsts(bits_of(scratch), ranges),
    )
    for tensor, a, i, f, g, o, g_bits, h_tensor, h, h_bits, c_bits, x, x_bits, keep, d, u in zip(*rows, *keeps, strict=False):
        yield tensor, h_tensor, h_bits
        c, before = next(of_c)
        np.tanh(a, a)
        torch.addcmul(shift, tensor, factor, out=tensor)
        if u is None:
            np.multiply(i, g, x)
        else:
            np.bitwise_and(g_bits, u, x_bits)
            x *= of_candidate
            x *= i
        np.multiply(f, before, c)
        c += x
        if d is not None:
            c_bits &= d
            c *= of_cell
        np.tanh(c, x)
        np.multiply(o, x, h)
        if keep is not None:
            h_bits &= keep
            h *= scale
        if zone is not None:
            next(zone)
        if cell_zone is not None:
            next(cell_zone)


def backward(gates: Tensor, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """As :func:`rnn.backward`; the second of `grads` is that of the cell state, from that of the last step to that of c_0."""
    (grad_h, grad_c), ranges, like = grads, steps.ranges, layer.rows
    zoneout, of_cell = layer.masks.get("zoneout"), scale_of(layer.masks.get("cell"))
    made, carried = torch.empty_like(grad_h) if zoneout is not None else grad_h, torch.empty_like(grad_c)
    kinds = ("hidden", "zoneout", "cell", "cell_zoneout", "candidate")
    keeps = [step_masks(layer.masks.get(kind), steps, like) for kind in kinds]
    befores = [before for _, before in states_before(layer.saved[1].numpy(), layer.states[1].numpy(), layer.steps.ranges)]
    rows = (
        steps.split(gates),
        _factors(gates, layer, steps),
        rows_of(_apart(gates.numpy()), ranges),
        rows_of(_apart(bits_of(gates)), ranges),
        rows_of(_apart(layer.saved[0].numpy())[:, 1], ranges),
        befores[::-1],
        firsts(grad_h.numpy(), ranges),
        firsts(made.numpy(), ranges),
        firsts(bits_of(made), ranges),
        firsts(grad_c.numpy(), ranges),
        firsts(bits_of(grad_c), ranges),
        firsts(carried.numpy(), ranges),
        firsts(bits_of(carried), ranges),
    )
    of_grad_h = bits_of(grad_h)
    for tensor, to_c, a, a_bits, f, before, gh, m, m_bits, gc, gc_bits, x, x_bits, keep, zone, d, cell_zone, u in zip(
        *rows, *keeps, strict=False
    ):
        yield tensor
        if zone is not None:
            m[...] = gh
            part(m_bits, of_grad_h, zone)
        if keep is not None:
            m_bits &= keep
        if cell_zone is not None:
            np.bitwise_and(gc_bits, ~cell_zone, x_bits)
            gc_bits &= cell_zone
        to_c *= m
        gc += to_c
        if d is not None:
            gc_bits &= d
            gc *= of_cell
        if u is not None:
            a_bits[:, :3:2] &= u[:, None]
        a[:, 1] *= before
        a[:, :3] *= gc[:, None]
        a[:, 3] *= m
        gc *= f
        if cell_zone is not None:
            gc += x


def _apart(gates: Array) -> Array:
    """Gates (N, 4*H) as (N, 4, H)."""
    return gates.reshape(len(gates), 4, gates.shape[1] // 4)


def _factors(gates: Tensor, layer: Layer, steps: Steps) -> Iterator[Array]:
    """Fills the rows of a step of `gates` with what the gradients of the gates are made of: i's, f's (but for the state before)
    and g's times that of c', o's times that of m * made; and gives what takes the latter's to c'."""
    scale, u = scale_of(layer.masks.get("hidden")), layer.masks.get("candidate")
    new, of_new, of_g = _new_cells(layer), gates.new_full((), scale), gates.new_full((), scale_of(u))
    for first, last, chunk in chunks(steps.ranges, gates.shape[1]):
        saved, made = layer.saved[0][first:last], gates[first:last]
        (i, _, g, o), (of_i, _, of_candidate, of_o) = saved.chunk(4, 1), made.chunk(4, 1)
        squashed = new[first:last].tanh()
        torch.addcmul(saved, saved, saved, value=-1, out=made)  # the slope of a sigmoid
        of_i *= g
        if u is not None:
            of_i *= u.scale
        torch.addcmul(of_g, g, g, value=-of_g.item(), out=of_candidate)
        of_candidate *= i
        of_o *= squashed
        if scale != 1:
            of_o *= scale
        to_c = torch.addcmul(of_new, squashed, squashed, value=-scale).mul_(o)
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
