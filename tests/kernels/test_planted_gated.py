"""Mistakes in a GRU or an LSTM, planted: the checks of the real kernels must see each."""

from types import SimpleNamespace

import pytest
import torch

from rnndrop.backends.triton import GATED_RECURRENCES
from rnndrop.cell import CELLS
from rnndrop.kernels.launch import MaskBits
from tests import stream

from . import gated_sequences
from .gated_sequences import Case

EVERY = {
    "LSTM": dict(hidden=16384, recurrent=16384, zoneout=12000, candidate=20000, cell=9000, cell_zoneout=24000),
    "GRU": dict(hidden=16384, recurrent=16384, zoneout=12000, candidate=20000),
}
CASES = {cell: Case(cell, T=3, B=3, H=40, thresholds=thresholds) for cell, thresholds in EVERY.items()}
PACKED = {cell: case._replace(sizes=(3, 3, 2, 1), once=("candidate",)) for cell, case in CASES.items()}
KIND_OF_EACH_CELL = [(cell, kind) for cell, thresholds in EVERY.items() for kind in thresholds]
both_cells = pytest.mark.parametrize("cell", EVERY)
every_strategy = pytest.mark.parametrize("strategy", GATED_RECURRENCES.values(), ids=GATED_RECURRENCES)
where = pytest.mark.parametrize("where", ["forward", "backward"])


# A plain loop as a strategy, right or with a mistake.


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


# The strategies, given something else.


def first_step_always(bits, B):
    """Step 0's mask for all steps (haste)."""
    return bits[:B].repeat(len(bits) // B, 1)


def repeated_over_rows(bits, B):
    """One row's mask for all rows of a step (xformers)."""
    return bits.view(len(bits) // B, B, -1)[:, :1].repeat(1, B, 1).flatten(0, 1)


def with_other_masks(launcher, change):
    """The launcher, given other masks."""

    def launch(*args, **options):
        *tensors, masks = args
        return launcher(*tensors, change(masks), **options)

    return launch


def planted(strategy, where, change):
    parts = {"forward": strategy.forward, "backward": strategy.backward}
    return SimpleNamespace(**parts | {where: with_other_masks(parts[where], change)})


@both_cells
@every_strategy
def test_nothing_is_seen_without_a_mistake(strategy, cell, device):
    for case in (CASES[cell], PACKED[cell]):
        gated_sequences.against_float64(strategy, case, device)


@pytest.mark.parametrize("change", [first_step_always, repeated_over_rows])
@where
@pytest.mark.parametrize("cell, kind", KIND_OF_EACH_CELL)
def test_another_mask_is_seen(cell, kind, where, change, device):
    """By the checks: they are the same for all strategies."""
    strategy, B = GATED_RECURRENCES["stepwise"], CASES[cell].B

    def other(masks):
        return masks | {kind: MaskBits(change(masks[kind].bits, B), masks[kind].scale)}

    with pytest.raises(AssertionError, match="differs by"):
        gated_sequences.against_float64(planted(strategy, where, other), CASES[cell], device)


@where
@pytest.mark.parametrize("cell, kind", KIND_OF_EACH_CELL)
def test_a_mask_accepted_and_ignored_is_seen(cell, kind, where, device):
    """Keras's SimpleRNN once."""
    strategy = GATED_RECURRENCES["stepwise"]
    without = planted(strategy, where, lambda masks: {k: mask for k, mask in masks.items() if k != kind})
    with pytest.raises(AssertionError, match=r"differs by|the .* mask drops"):
        gated_sequences.against_float64(without, CASES[cell], device)


@where
@both_cells
@every_strategy
def test_rows_of_another_step_are_seen(strategy, cell, where, device):
    def broken(launcher):
        return lambda *args, sizes, **options: launcher(*args, sizes=(3, 2, 2, 2), **options)

    parts = {"forward": strategy.forward, "backward": strategy.backward}
    case = PACKED[cell]._replace(thresholds=EVERY["GRU"])
    with pytest.raises(AssertionError, match="differs by"):
        gated_sequences.against_float64(SimpleNamespace(**parts | {where: broken(parts[where])}), case, device)


# What callers have.


@both_cells
@every_strategy
def test_any_strides(strategy, cell, device):
    """Tensors whose axes are exchanged, that are part of wider rows, or off the boundary of vector accesses."""
    case = Case(cell, T=2, B=2, H=33)
    given = gated_sequences.inputs(case)
    expected = gated_sequences.run(strategy, case, given, device)
    for stride in (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.cat([x, x[..., :5]], -1)[..., : x.shape[-1]],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ):
        strided = given._replace(
            input_projection=stride(given.input_projection),
            states=[stride(state) for state in given.states],
            w_hh=stride(given.w_hh),
            grad_output=stride(given.grad_output),
            grad_states=[stride(grad) for grad in given.grad_states],
        )
        found = gated_sequences.run(strategy, case, strided, device)
        for (name, x), (_, y) in zip(found.named(), expected.named(), strict=True):
            gated_sequences.assert_near(case, name, x, y)


@both_cells
@every_strategy
def test_a_gradient_of_one_number(strategy, cell, device):
    """output.sum().backward() hands over one number, expanded."""
    case = Case(cell, T=2, B=2, H=33)
    given = gated_sequences.inputs(case)
    given = given._replace(grad_output=torch.tensor(0.5).expand(case.shape(1)))
    found, expected = gated_sequences.run(strategy, case, given, device), gated_sequences.oracle(case, given)
    for (name, x), (_, y) in zip(found.named(), expected.named(), strict=True):
        gated_sequences.assert_near(case, name, x, y)


def test_every_cell_has_its_mistakes():
    assert BUGS.keys() == EVERY.keys() and all(set(EVERY[cell]) == set(CELLS[cell].kinds) for cell in EVERY)
