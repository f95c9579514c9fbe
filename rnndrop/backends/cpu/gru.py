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
    Collect,
    Range,
    alternating,
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
from .library import Library, Rows, library_for
from .zone import part, zoning

SIGMOIDS = (True, True, False)  # which of the gates are


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes the arguments of tanh: sigmoid(x) = (1 + tanh(x/2)) / 2; W_hh's rows stand in the order
    n, r, z, and in place of b_hh is what of it is n's."""
    hidden = weights.w_hh.shape[1]
    factor, _ = sigmoids(SIGMOIDS, hidden, weights.w_hh)
    w_hh = transposed(recurrent_rows(weights.w_hh), factor.roll(hidden))
    bias, b_hn = weights.biases_of_gru
    if b_hn is None:
        b_hn = weights.w_hh.new_zeros(hidden)
    return Weights(weights.w_ih * factor[:, None], w_hh, None if bias is None else bias * factor, b_hn)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates."""
    return w_hh.roll(w_hh.shape[1], 0)


def forward(
    output: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[tuple[Tensor, Tensor, Array]]:
    """As :func:`rnn.forward`; `saved` are the gates."""
    (gates,), (h_0,), ranges, hidden = saved, states, steps.ranges, output.shape[1]
    candidate, scratch, library = masks.get("candidate"), torch.empty_like(h_0), library_for(h_0)
    of_candidate, zone = scale_of(candidate), zoning(output, h_0, masks.get("zoneout"), steps)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "candidate")]
    of_h = states_before(library.of(output), library.of(h_0), ranges)
    by, plus = (library.repeated(row, len(h_0)) for row in sigmoids(SIGMOIDS[:2], hidden, gates))
    both = gates[:, hidden : 3 * hidden]
    rows = (
        steps.split(gates[:, : 3 * hidden]),
        *[rows_of(library.of(gate), ranges) for gate in gates.chunk(4, 1)],
        rows_of(both.numpy(), ranges),
        rows_of(library.of(both), ranges),
        firsts(by, ranges),
        firsts(plus, ranges),
        rows_of(gates[:, 3 * hidden :].numpy(), ranges),
        rows_of(bits_of(gates)[:, 3 * hidden :], ranges),
        steps.split(output),
        rows_of(output.numpy(), ranges),
        rows_of(bits_of(output), ranges),
        *[firsts(row, ranges) for row in (library.of(scratch), scratch.numpy(), bits_of(scratch))],
    )
    for (
        tensor,
        hn,
        r,
        z,
        n,
        rz_numbers,
        rz,
        scale_,
        shift,
        n_numbers,
        n_bits,
        h_tensor,
        h_numbers,
        h_bits,
        x,
        x_numbers,
        x_bits,
        m,
        u,
    ) in zip(*rows, *keeps, strict=False):
        yield tensor, h_tensor, h_bits
        h, before = next(of_h)
        np.tanh(rz_numbers, rz_numbers)
        library.scale_and_shift(rz, scale_, shift)
        library.add_product(n, r, hn, n)
        np.tanh(n_numbers, n_numbers)
        if u is not None:
            np.bitwise_and(n_bits, u, x_bits)
            x_numbers *= of_candidate
        library.mix(z, before, n if u is None else x, h)
        if m is not None:
            h_bits &= m
            h_numbers *= scale
        if zone is not None:
            next(zone)


def backward(collect: Collect, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Tensor]:
    """As :func:`lstm.backward`; of h_t part goes past the gates."""
    (grad_h,), library, hidden = grads, library_for(grads[0]), layer.rows.shape[1]
    made, of_grad_h, factors = (
        torch.empty_like(grad_h) if "zoneout" in layer.masks else grad_h,
        bits_of(grad_h),
        _Factors(layer),
    )
    keeps = [step_masks(layer.masks.get(kind), steps, grad_h) for kind in ("hidden", "zoneout")]
    for first, last, ranges, gates in alternating(steps, layer.saved[0]):
        rows = (
            rows_of(gates[:, : 3 * hidden], ranges, first),
            factors.rows(gates, first, ranges, library),
            rows_of(library.of(gates.view(len(gates), 4, hidden)), ranges, first),
            *[firsts(row, ranges) for row in (library.of(grad_h), grad_h.numpy())],
            *[firsts(row, ranges) for row in (library.of(made.unsqueeze(1)), library.of(made), made.numpy(), bits_of(made))],
        )
        for tensor, past, a, gh, gh_numbers, m_each, m, m_numbers, m_bits, keep, zone in zip(*rows, *keeps, strict=False):
            yield tensor
            if zone is not None:
                np.copyto(m_numbers, gh_numbers)
                part(m_bits, of_grad_h, zone)
            if keep is not None:
                m_bits &= keep
            library.multiply(a, m_each, out=a)
            if zone is None:
                library.multiply(gh, past, out=gh)
            else:
                library.add_product(gh, m, past, gh)
        collect(first, last, gates)


class _Factors:
    """What the gradients of the gates are made of."""

    def __init__(self, layer: Layer) -> None:
        u = layer.masks.get("candidate")
        self.saved, self.h, self.scale = layer.saved[0], layer.rows, scale_of(layer.masks.get("hidden"))
        self.of_n, self.keep = scale_of(u), None if u is None else each_row(u.keep, layer.steps)

    def rows(self, gates: Tensor, start: int, ranges: list[Range], library: Library) -> Iterator[Rows]:
        """Fills `gates`, whose first row is row `start`, with what the gradient of m * made is multiplied by to be theirs, and
        gives what takes it to h_{t-1} past them, a step at a time."""
        scale = self.scale * self.of_n
        full = gates.new_full((), scale)
        for first, last, chunk in chunks(ranges, gates.shape[1] // 4):
            saved, made = self.saved[first:last], gates[first - start : last - start]
            (hn, r, z, n), (of_hn, of_r, of_z, of_candidate) = saved.chunk(4, 1), made.chunk(4, 1)
            rest = 1 - z
            torch.addcmul(full, n, n, value=-scale, out=of_candidate)
            of_candidate *= rest
            if self.keep is not None:
                kept = self.keep[first:last]
                of_candidate.copy_(dropped(of_candidate, kept))
                n = dropped(n, kept).mul_(self.of_n)
            torch.sub(self.h[first:last], n, alpha=self.scale, out=of_z)  # z * (h_{t-1} - n), where that is not dropped
            of_z *= rest
            torch.mul(of_candidate, r, out=of_hn)
            torch.addcmul(hn, hn, r, value=-1, out=of_r)
            of_r *= of_hn
            yield from rows_of(library.of(z * self.scale), chunk, first)
