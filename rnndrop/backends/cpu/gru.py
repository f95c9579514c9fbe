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
    activation_of_gates,
    alternating,
    bits_of,
    chunks,
    dropped,
    each_row,
    halves,
    keep_only,
    rows_of,
    scale_of,
    states_before,
    step_masks,
)
from .zone import part, zoning

SIGMOIDS = (True, True, False)  # which of the gates are


def prepared(weights: Weights) -> Weights:
    """The weights by which a step makes the arguments of tanh: sigmoid(x) = (1 + tanh(x/2)) / 2; W_hh's rows stand in the order
    n, r, z, and in place of b_hh is what of it is n's."""
    hidden = weights.w_hh.shape[1]
    factor = torch.from_numpy(halves(SIGMOIDS, weights.w_hh))
    bias, b_hn = weights.biases_of_gru
    if b_hn is None:
        b_hn = weights.w_hh.new_zeros(hidden)
    w_hh = recurrent_rows(weights.w_hh).mul_(factor.roll(hidden)[:, None])
    return Weights(weights.w_ih * factor[:, None], w_hh, None if bias is None else bias * factor, b_hn)


def recurrent_rows(w_hh: Tensor) -> Tensor:
    """The rows of W_hh in the order of the columns of gates, a copy."""
    return w_hh.roll(w_hh.shape[1], 0)


def forward(
    output: Tensor, saved: Sequence[Tensor], states: Sequence[Tensor], masks: Masks, steps: Steps, cell: Cell, scale: float
) -> Iterator[None]:
    """As :func:`rnn.forward`; `saved` are the gates."""
    (gates,), (h_0,), ranges, hidden = saved, states, steps.ranges, output.shape[1]
    activate = activation_of_gates(SIGMOIDS[:2], h_0)
    zone, of_candidate = zoning(output, h_0, masks.get("zoneout"), steps), scale_of(masks.get("candidate"))
    memory, multiply, add, tanh = np.empty_like(h_0.numpy()), np.multiply, np.add, np.tanh
    rows = (rows_of(x.numpy(), ranges) for x in (gates[:, hidden : 3 * hidden], gates.view(len(gates), 4, hidden)))
    before = states_before(output.numpy(), h_0.numpy(), ranges)
    keeps = [step_masks(masks.get(kind), steps, gates) for kind in ("hidden", "candidate")]
    for rz, apart, (h, h_before), m, u in zip(*rows, before, *keeps, strict=False):
        x = memory[: len(h)]
        activate(rz)
        hn, r, z, n = apart.swapaxes(0, 1)
        multiply(r, hn, x)
        add(n, x, n)
        tanh(n, n)
        kept = n
        if u is not None:
            kept = x
            np.bitwise_and(bits_of(n), u, bits_of(x))
            x *= of_candidate
        np.subtract(h_before, kept, h)  # z * h_{t-1} + (1 - z) * n
        multiply(h, z, h)
        add(h, kept, h)
        if m is not None:
            keep_only(h, m)
            h *= scale
        if zone is not None:
            next(zone)
        yield


def backward(collect: Collect, grads: Sequence[Tensor], layer: Layer, steps: Steps) -> Iterator[Array]:
    """As :func:`lstm.backward`; of h_t part goes past the gates."""
    grad_h, factors, hidden = grads[0].numpy(), _Factors(layer), layer.rows.shape[1]
    made = np.empty_like(grad_h) if "zoneout" in layer.masks else grad_h
    memory, multiply = np.empty_like(grad_h), np.multiply
    keeps = [step_masks(layer.masks.get(kind), steps, grads[0]) for kind in ("hidden", "zoneout")]
    for first, last, ranges, gates in alternating(steps, layer.saved[0]):
        numbers = gates[:, : 3 * hidden].numpy(), gates.view(len(gates), 4, hidden).numpy()
        rows = (rows_of(x, ranges, first) for x in numbers)
        for a, apart, past, keep, zone in zip(*rows, factors.rows(gates, first, ranges), *keeps, strict=False):
            size = len(a)
            of_h, of_made = grad_h[:size], made[:size]
            if zone is not None:
                np.copyto(of_made, of_h)
                part(bits_of(of_made), bits_of(grad_h), zone)
            if keep is not None:
                keep_only(of_made, keep)
            multiply(apart, of_made[:, None], apart)
            if zone is None:
                of_h *= past
            else:
                of_h += multiply(of_made, past, memory[:size])
            yield a
        collect(first, last, gates)


class _Factors:
    """What the gradients of the gates are made of."""

    def __init__(self, layer: Layer) -> None:
        u = layer.masks.get("candidate")
        self.saved, self.h, self.scale = layer.saved[0], layer.rows, scale_of(layer.masks.get("hidden"))
        self.of_n, self.keep = scale_of(u), None if u is None else each_row(u.keep, layer.steps)

    def rows(self, gates: Tensor, start: int, ranges: list[Range]) -> Iterator[Array]:
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
            yield from rows_of((z * self.scale).numpy(), chunk, first)
