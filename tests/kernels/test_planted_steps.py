"""Mistakes in a step of a GRU or an LSTM, planted into a plain loop: the checks of the kernels must see each."""

from types import SimpleNamespace

import pytest
import torch

from tests import stream

from . import gated_sequences
from .gated_sequences import Case, every_kind

CASES = {cell: Case(cell, T=3, B=3, H=40, thresholds=every_kind(cell)) for cell in ("LSTM", "GRU")}
PACKED = {cell: case._replace(sizes=(3, 3, 2, 1), once=("candidate",)) for cell, case in CASES.items()}
both_cells = pytest.mark.parametrize("cell", CASES)


def lstm_step(gates, states, drop, zone, bug):
    """The new states, and the gates after their activations."""
    h, c = states
    i, f, g, o = gates.chunk(4, 1) if bug != "gates in Keras's other order" else gates.chunk(4, 1)[::-1]
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    before = c.detach() if bug == "no gradient from cell state to cell state" else c
    candidate = drop("candidate", g)
    if bug == "candidate dropped twice":
        candidate = drop("candidate", candidate)
    new = drop("cell", f * before + i * candidate)
    if bug == "cell state dropped twice":
        new = drop("cell", new)
    if bug == "only the candidate part of the cell state dropped":
        new = f * before + drop("cell", i * candidate)
    shown = zone("cell_zoneout", c, new)
    made = o * torch.tanh(shown if bug == "h of the zoned cell state" else new)
    if bug == "zoneout of h where c has it":
        return (zone("cell_zoneout", h, drop("hidden", made)), shown), (i, f, g, o)
    if bug == "zoneout before dropout":
        return (drop("hidden", zone("zoneout", h, made)), shown), (i, f, g, o)
    return (zone("zoneout", h, drop("hidden", made)), shown), (i, f, g, o)


def gru_step(gates, states, drop, zone, bug):
    """`gates`: hn, and r, z and n of both, n without hn."""
    (h,), (hn, r, z, n) = states, gates.chunk(4, 1)
    r, z = (z, r) if bug == "gates in Keras's other order" else (r, z)
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    n = torch.tanh(n + r * hn)
    candidate = drop("candidate", n)
    if bug == "candidate dropped twice":
        candidate = drop("candidate", candidate)
    old = {"no carry": h.detach(), "carry of the state that enters W_hh": drop("recurrent", h)}.get(bug, h)
    made = z * candidate + (1 - z) * old if bug == "z and 1 - z exchanged" else (1 - z) * candidate + z * old
    if bug == "carry not dropped":
        new = drop("hidden", (1 - z) * candidate) + z * old
    else:
        new = drop("hidden", made)
    return (zone("zoneout", h, new),), (hn, r, z, n)


def looped(bug=""):
    """The loop as a strategy. Backward is autograd's, through what is added to the gates in the layout of their gradients."""

    def run(x, states, w_hh, masks, added, *, cell, b_hn, reverse, tf32, sizes=None):
        gru, H = cell == "GRU", w_hh.shape[1]
        sizes = [x.shape[1]] * x.shape[0] if sizes is None else sizes
        rows, B, outputs = x.reshape(-1, x.shape[-1]), sizes[0], {}
        keeps = {kind: stream.unpack(mask.bits, H).to(x.device) for kind, mask in masks.items()}
        starts = [sum(sizes[:t]) for t in range(len(sizes))]
        for start, size in list(zip(starts, sizes, strict=True))[:: -1 if reverse else 1]:

            def kept(kind, start=start, size=size):
                first = 0 if keeps[kind].shape[0] == B and len(rows) > B else start
                return keeps[kind][first : first + size]

            def drop(kind, value, kept=kept):
                return torch.where(kept(kind), value * masks[kind].scale, 0.0) if kind in masks else value

            def zone(kind, old, new, kept=kept):
                return torch.where(kept(kind), new, old) if kind in masks else new

            old = [state[:size] for state in states]
            of_x, of_h = rows[start : start + size], drop("recurrent", old[0]) @ w_hh.t()
            if gru:
                hn = of_h[:, 2 * H :] + (0 if b_hn is None else b_hn)
                of_n = of_x[:, 2 * H :]
                if bug == "b_hn outside of r" and b_hn is not None:
                    hn, of_n = hn - b_hn, of_n + b_hn
                gates = torch.cat([hn, of_x[:, : 2 * H] + of_h[:, : 2 * H], of_n], 1)
            else:
                gates = of_x + of_h
            step = gru_step if gru else lstm_step
            new, made = step(gates + added[start : start + size], old, drop, zone, bug)
            outputs[start] = new[0], torch.cat(made, 1), *new[1:]
            states = [torch.cat([after, state[size:]]) for after, state in zip(new, states, strict=True)]
        output, *saved = (torch.cat(parts) for parts in zip(*(outputs[start] for start in starts), strict=True))
        return output, saved, states

    given = {}  # to forward, which backward is not given

    def forward(x, states, w_hh, masks, **options):
        given.update(x=x, b_hn=options["b_hn"])
        output, saved, _ = run(x, states, w_hh, masks, x.new_zeros(x.shape[:-1].numel(), 4 * w_hh.shape[1]), **options)
        output, *saved = (y.view(*x.shape[:-1], -1) for y in (output, *saved))
        return output, saved

    def backward(grad_output, grad_states, states, output, saved, w_hh, masks, **options):
        added = output.new_zeros(output.shape[:-1].numel(), 4 * w_hh.shape[1]).requires_grad_()
        states = [state.clone().requires_grad_() for state in states]
        found, _, ends = run(given["x"], states, w_hh, masks, added, b_hn=given["b_hn"], **options)
        grads = [grad_output.reshape(found.shape), *grad_states]
        grad_gates, *grad_states = torch.autograd.grad([found, *ends], [added, *states], grads)
        return grad_gates.view(*output.shape[:-1], -1), [grad.contiguous() for grad in grad_states]

    return SimpleNamespace(forward=forward, backward=backward)


BUGS = {
    "LSTM": [
        "gates in Keras's other order",
        "candidate dropped twice",
        "cell state dropped twice",
        "only the candidate part of the cell state dropped",
        "h of the zoned cell state",
        "zoneout of h where c has it",
        "zoneout before dropout",
        "no gradient from cell state to cell state",
    ],
    "GRU": [
        "gates in Keras's other order",
        "b_hn outside of r",
        "candidate dropped twice",
        "z and 1 - z exchanged",
        "no carry",
        "carry of the state that enters W_hh",
        "carry not dropped",
    ],
}


@both_cells
def test_the_loop_without_a_mistake_is_right(cell, device):
    for case in (CASES[cell], PACKED[cell], PACKED[cell]._replace(reverse=True)):
        gated_sequences.against_float64(looped(), case, device)


@pytest.mark.parametrize("cell, bug", [(cell, bug) for cell, bugs in BUGS.items() for bug in bugs])
def test_a_mistake_is_seen(cell, bug, device):
    with pytest.raises(AssertionError, match="differs by"):
        gated_sequences.against_float64(looped(bug), CASES[cell], device)
