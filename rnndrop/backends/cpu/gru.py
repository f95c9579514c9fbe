"""What a GRU does in a step: W_hn h' + b_hn, and r, z and n in place of their pre-activations, and
h_t = zone(h_{t-1}, m * ((1 - z) * (u * n) + z * h_{t-1}))."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...cell import Cell, Weights
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

SIGMOIDS = (True, True, False)  # which of the gates are


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes the arguments of tanh: sigmoid(x) = (1 + tanh(x/2)) / 2; W_hh's rows stand in the order
    n, r, z, and in place of b_hh is what of it is n's."""
    hidden = weights.w_hh.shape[1]
    factor, _ = sigmoids(SIGMOIDS, hidden, weights.w_hh)
    w_ih, w_hh = weights.w_ih * factor[:, None], recurrent_rows(weights.w_hh * factor[:, None])
    b_ih, b_hh = weights.b_ih, weights.w_hh.new_zeros(hidden)
    if weights.b_hh is not None:
        of_others, b_hh = weights.b_hh[: 2 * hidden], weights.b_hh[2 * hidden :]
        others = torch.cat([of_others, torch.zeros_like(b_hh)])
        b_ih = others if b_ih is None else b_ih + others
    return Weights(w_ih, transposed(w_hh), None if b_ih is None else b_ih * factor, b_hh)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates."""
    return w_hh.roll(w_hh.shape[1], 0)


def forward(
    output: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[tuple[Tensor, Tensor, Array]]:
    """As :func:`rnn.forward`; `saved` are the gates."""
    (gates,), (h_0,), ranges, hidden = saved, states, steps.ranges, output.shape[1]
    candidate, scratch = masks.get("candidate"), torch.empty_like(h_0)
    of_candidate, zone = scale_of(candidate), zoning(output, h_0, masks.get("zoneout"), steps)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "candidate")]
    numbers, half = gates.numpy(), gates.new_full((), 0.5).numpy()
    of_h = states_before(output.numpy(), h_0.numpy(), ranges)
    rows = (
        steps.split(gates[:, : 3 * hidden]),
        *[rows_of(gate, ranges) for gate in np.split(numbers, 4, 1)],
        rows_of(numbers[:, hidden : 3 * hidden], ranges),
        rows_of(bits_of(gates[:, 3 * hidden :]), ranges),
        steps.split(output),
        rows_of(bits_of(output), ranges),
        firsts(scratch.numpy(), ranges),
        firsts(bits_of(scratch), ranges),
    )
    for tensor, hn, r, z, n, both, n_bits, h_tensor, h_bits, x, x_bits, keep, u in zip(*rows, *keeps, strict=False):
        yield tensor, h_tensor, h_bits
        h, before = next(of_h)
        np.tanh(both, both)
        both *= half
        both += half
        np.multiply(r, hn, x)
        n += x
        np.tanh(n, n)
        if u is not None:
            np.bitwise_and(n_bits, u, x_bits)
            x *= of_candidate
            n = x
        np.subtract(before, n, h)
        h *= z
        h += n
        if keep is not None:
            h_bits &= keep
            h *= scale
        if zone is not None:
            next(zone)


def backward(gates: Tensor, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """As :func:`rnn.backward`; what goes past the gates is there without zoneout as well."""
    (grad_h,), ranges, hidden, like = grads, steps.ranges, layer.rows.shape[1], layer.rows
    zoneout, scratch = layer.masks.get("zoneout"), torch.empty_like(grad_h)
    made = scratch if zoneout is not None else grad_h
    of_grad_h = bits_of(grad_h)
    keeps = [step_masks(layer.masks.get(kind), steps, like) for kind in ("hidden", "zoneout")]
    rows = (
        steps.split(gates[:, : 3 * hidden]),
        _factors(gates, layer, steps),
        rows_of(gates.numpy().reshape(len(gates), 4, hidden), ranges),
        firsts(grad_h.numpy(), ranges),
        firsts(made.numpy(), ranges),
        firsts(bits_of(made), ranges),
    )
    for tensor, past, a, gh, m, m_bits, keep, zone in zip(*rows, *keeps, strict=False):
        yield tensor
        if zone is not None:
            m[...] = gh
            part(m_bits, of_grad_h, zone)
        if keep is not None:
            m_bits &= keep
        a *= m[:, None]
        if zone is None:
            gh *= past
        else:
            m *= past
            gh += m


def _factors(gates: Tensor, layer: Layer, steps: Steps) -> Iterator[Array]:
    """Fills the rows of a step of `gates` with what that of m * made is multiplied by to be the gradients of the gates, and
    gives what takes it to h_{t-1} past them."""
    scale, u, saved, h = scale_of(layer.masks.get("hidden")), layer.masks.get("candidate"), layer.saved[0], layer.rows
    of_n = gates.new_full((), scale * scale_of(u))
    keep = None if u is None else each_row(u.keep, layer.steps)
    for first, last, chunk in chunks(steps.ranges, gates.shape[1]):
        (hn, r, z, n), (of_hn, of_r, of_z, of_candidate) = saved[first:last].chunk(4, 1), gates[first:last].chunk(4, 1)
        rest = 1 - z
        torch.addcmul(of_n, n, n, value=-of_n.item(), out=of_candidate)
        of_candidate *= rest
        if keep is not None:
            kept = keep[first:last]
            of_candidate.copy_(dropped(of_candidate, kept))
            n = dropped(n, kept).mul_(scale_of(u))
        torch.sub(h[first:last], n, alpha=scale, out=of_z)  # z * (h_{t-1} - n), where that is not dropped
        of_z *= rest
        torch.mul(of_candidate, r, out=of_hn)
        torch.addcmul(hn, hn, r, value=-1, out=of_r)
        of_r *= of_hn
        yield from rows_of((z * scale).numpy(), chunk, first)
