"""The plain loop of GRU and LSTM, proved by torch.nn where nothing is dropped, by a second definition with masks everywhere.

The second one has the gates one by one, a sequence and a step at a time, and masks as numbers. Nothing of the package is in it.
"""

import pytest
import torch
from torch import nn

from rnndrop import reference
from rnndrop.cell import CELLS, Weights
from rnndrop.mask import Mask
from rnndrop.steps import Steps
from tests.helpers import BATCH, COLUMNS, GATED, STEPS, assert_near, doubled, gradients, make_layer
from tests.oracle import INSIDE
from tests.tolerances import SEQUENCE

LENGTHS = [None, [5, 3, 1], [5, 5, 2]]
GATES = {"GRU": "rzn", "LSTM": "ifgo"}
SCALES = dict(hidden=1.25, recurrent=2.0, candidate=1.5, cell=1.125, zoneout=1.0, cell_zoneout=1.0)
each_cell = pytest.mark.parametrize("cell", GATED)
directions = pytest.mark.parametrize("reverse", [False, True])


def run(cell, leaves, masks, lengths=None, reverse=False):
    """The loop of the package, packed where there are lengths; the output padded again, and the states at the end."""
    x, *rest = leaves.values()
    states, rest = rest[: len(CELLS[cell].states)], rest[len(CELLS[cell].states) :]
    weights = Weights(*rest, *[None] * (5 - len(rest)))
    if lengths is None:
        output, last = reference.layer(x, states, weights, masks, Steps(STEPS, BATCH, reverse=reverse), CELLS[cell])
        return [output, *last]
    sizes = [sum(length > t for length in lengths) for t in range(STEPS)]
    rows, steps = torch.cat([x[t, :size] for t, size in enumerate(sizes)]), Steps(STEPS, BATCH, torch.tensor(sizes), reverse)
    output, last = reference.layer(rows, states, weights, masks, steps, CELLS[cell])
    padded = [torch.cat([y, y.new_zeros(BATCH - len(y), y.shape[1])]) for y in output.split(sizes)]
    return [torch.stack(padded), *last]


def masks_of(cell, scope, lengths, widths=None, p=0.4):
    """Masks as the package takes them, and as numbers (T, B, H): a factor, or of zoneout 1 where the old state stays."""
    masks, numbers = {}, {}
    for number, kind in enumerate(INSIDE[cell]):
        columns = (widths or {}).get(kind, COLUMNS)
        per_step = scope == "step" or SCALES[kind] == 1
        drawn = torch.rand(STEPS * BATCH if per_step else BATCH, columns, generator=torch.Generator().manual_seed(number))
        over_time = (drawn >= p).view(-1, BATCH, columns).expand(STEPS, BATCH, columns)
        numbers[kind] = 1.0 - over_time.double() if SCALES[kind] == 1 else over_time * SCALES[kind]
        keep = drawn >= p
        if per_step and lengths is not None:
            keep = torch.cat([over_time[t, : sum(length > t for length in lengths)] for t in range(STEPS)])
        masks[kind] = Mask(keep, SCALES[kind])
    return masks, numbers


def gate(leaves, cell, name, x, h):
    """What a gate makes of an input and of a state, each with its bias: two vectors."""
    columns = leaves["w_hh"].shape[0] // len(GATES[cell])
    rows = slice(GATES[cell].index(name) * columns, (GATES[cell].index(name) + 1) * columns)
    b_ih, b_hh = (leaves[b][rows] if b in leaves else 0 for b in ("b_ih", "b_hh"))
    return leaves["w_ih"][rows] @ x + b_ih, leaves["w_hh"][rows] @ h + b_hh


def step_of_gru(leaves, x, h, c, m):
    def sum_of(name):
        return sum(gate(leaves, "GRU", name, x, m["recurrent"] * h))

    r, z = 1 / (1 + torch.exp(-sum_of("r"))), 1 / (1 + torch.exp(-sum_of("z")))
    of_x, of_h = gate(leaves, "GRU", "n", x, m["recurrent"] * h)
    made = (1 - z) * m["candidate"] * torch.tanh(of_x + r * of_h) + z * h
    return m["zoneout"] * h + (1 - m["zoneout"]) * m["hidden"] * made, c


def step_of_lstm(leaves, x, h, c, m):
    i, f, g, o = (sum(gate(leaves, "LSTM", name, x, m["recurrent"] * h)) for name in "ifgo")
    i, f, o = (1 / (1 + torch.exp(-each)) for each in (i, f, o))
    new = m["cell"] * (f * c + i * m["candidate"] * torch.tanh(g))
    made = o * torch.tanh(new)
    if "w_hr" in leaves:
        made = leaves["w_hr"] @ made
    h = m["zoneout"] * h + (1 - m["zoneout"]) * m["hidden"] * made
    return h, m["cell_zoneout"] * c + (1 - m["cell_zoneout"]) * new


def by_hand(cell, leaves, numbers, lengths=None, reverse=False):
    """`numbers`: to multiply by, or of zoneout the old state's share, (T, B, H) or one; nothing is dropped of other kinds."""
    none = {kind: 0.0 if SCALES[kind] == 1 else 1.0 for kind in SCALES}
    step, outputs, states = {"GRU": step_of_gru, "LSTM": step_of_lstm}[cell], [], []
    for b in range(BATCH):
        h, c = leaves["h_0"][b], leaves["c_0"][b] if "c_0" in leaves else None
        length, made = STEPS if lengths is None else lengths[b], [torch.zeros_like(h)] * STEPS
        for t in reversed(range(length)) if reverse else range(length):
            now = none | {kind: value[t, b] if torch.is_tensor(value) else value for kind, value in numbers.items()}
            h, c = step(leaves, leaves["input"][t, b], h, c, now)
            made[t] = h
        outputs.append(torch.stack(made))
        states.append([h] if c is None else [h, c])
    return [torch.stack(outputs, 1), *[torch.stack(state) for state in zip(*states, strict=True)]]


def same(cell, leaves, masks, numbers, lengths=None, reverse=False, bound=None):
    """Outputs, states and every gradient."""
    copies = doubled(leaves)
    outputs = run(cell, leaves, masks, lengths, reverse)
    expected = by_hand(cell, copies, numbers, lengths, reverse)
    assert all(y.dtype == leaves["input"].dtype for y in outputs)
    assert_near(outputs, expected, bound)
    allowed = dict(allow_unused=True, materialize_grads=True)
    assert_near(gradients(outputs, leaves, **allowed), gradients(expected, copies, **allowed), bound)


@each_cell
@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@directions
def test_equals_the_second_definition(cell, scope, lengths, reverse):
    """With each mask alone, all, all but one, and none; with biases and without."""
    masks, numbers = masks_of(cell, scope, lengths)
    chosen = [(), tuple(masks), *((kind,) for kind in masks), *(tuple(masks.keys() - {kind}) for kind in masks)]
    for number, kinds in enumerate(chosen):
        given = [{kind: each[kind] for kind in kinds} for each in (masks, numbers)]
        same(cell, make_layer(cell=cell, bias=number % 3 != 2), *given, lengths, reverse)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(cell, dtype):
    masks, numbers = masks_of(cell, "step", None)
    same(cell, make_layer(cell=cell, dtype=dtype), masks, numbers, bound=SEQUENCE[dtype])


@each_cell
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@directions
def test_the_expectation_of_zoneout(cell, lengths, reverse):
    """A mask without rows: its scale is the old state's share."""
    masks, numbers = masks_of(cell, "step", lengths)
    none = torch.zeros(0, 1, dtype=torch.int8)
    shares = {kind: share for kind, share in (("zoneout", 0.3), ("cell_zoneout", 0.85)) if kind in masks}
    for kinds in ([*shares], ["zoneout"]):
        expected = {kind: Mask(none, shares[kind]) for kind in kinds}
        same(cell, make_layer(cell=cell), expected, {kind: shares[kind] for kind in kinds}, lengths, reverse)
        given = {**masks, **expected}, {**numbers, **{kind: shares[kind] for kind in kinds}}
        same(cell, make_layer(cell=cell), *given, lengths, reverse)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@directions
def test_a_projection(lengths, reverse):
    """Masks of h are as wide as it is projected, those of c as wide as the cell."""
    widths = dict.fromkeys(["hidden", "recurrent", "zoneout"], 6)
    masks, numbers = masks_of("LSTM", "step", lengths, widths)
    for kinds in (masks, [], ["hidden"], ["zoneout", "cell"]):
        leaves = make_layer(cell="LSTM")
        narrow = dict(w_hh=leaves["w_hh"][:, :6], h_0=leaves["h_0"][:, :6], w_hr=torch.randn(6, COLUMNS).double() / 4)
        leaves |= {name: leaf.detach().clone().requires_grad_() for name, leaf in narrow.items()}
        given = [{kind: each[kind] for kind in kinds} for each in (masks, numbers)]
        same("LSTM", leaves, *given, lengths, reverse)


@each_cell
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_without_dropout_it_is_torch(cell, bias, lengths):
    """Both directions of nn.GRU and nn.LSTM, padded and packed, every gradient; so is the second definition."""
    theirs = getattr(nn, cell)(4, COLUMNS, bias=bias, bidirectional=True, dtype=torch.float64)
    of_one = [make_layer(cell=cell, bias=bias) for _ in range(2)]
    x, states = of_one[0]["input"], [name for name in of_one[0] if name.endswith("_0")]
    hx = tuple(torch.stack([leaves[name].detach() for leaves in of_one]).requires_grad_() for name in states)
    given = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, lengths)
    output, ends = theirs(given, hx if len(hx) > 1 else hx[0])
    output = output if lengths is None else nn.utils.rnn.pad_packed_sequence(output)[0]
    for direction, weights in enumerate(theirs.all_weights):
        its_states = [state[direction] for state in hx]
        values = dict(zip(of_one[0], [x, *its_states, *weights], strict=True))
        its_ends = [end[direction] for end in (ends if len(hx) > 1 else [ends])]
        expected = [output.chunk(2, -1)[direction], *its_ends]
        for found in (run(cell, values, {}, lengths, bool(direction)), by_hand(cell, values, {}, lengths, bool(direction))):
            assert_near(found, expected)
            leaves = dict(x=x, **dict(zip(states, hx, strict=True)), **{str(n): w for n, w in enumerate(weights)})
            assert_near(gradients(found, leaves), gradients(expected, leaves, retain_graph=True))


NAN = float("nan")


def with_nan(name, row):
    """A GRU or LSTM in which an element of a parameter is NaN."""
    cell = "GRU" if name.startswith("GRU") else "LSTM"
    leaves = {key: leaf.detach().clone() for key, leaf in make_layer(cell=cell).items()}
    leaves[name.removeprefix("GRU ")][row] = NAN
    return cell, leaves


@pytest.mark.parametrize(
    "kind, name, row",
    [
        ("recurrent", "h_0", (slice(None), 3)),
        ("candidate", "b_ih", 2 * COLUMNS + 3),
        ("candidate", "GRU b_ih", 2 * COLUMNS + 3),
        ("cell", "b_ih", COLUMNS + 3),
        ("hidden", "b_hh", 3 * COLUMNS + 3),
        ("hidden", "GRU b_hh", COLUMNS + 3),
        ("zoneout", "b_hh", 3 * COLUMNS + 3),
        ("zoneout", "GRU b_ih", 3),
    ],
)
def test_what_a_mask_drops_may_be_nan(kind, name, row):
    """It is 0, or the old state, as far as the mask acts on it; where the mask keeps it, it is seen."""
    cell, leaves = with_nan(name, row)
    for dropped in (True, False):
        keep = torch.ones(BATCH, COLUMNS, dtype=torch.bool).index_fill(1, torch.tensor([3]), not dropped)
        rows = keep.repeat(STEPS, 1) if kind == "zoneout" else keep
        outputs = run(cell, leaves, {kind: Mask(rows, SCALES[kind])})
        assert all(y.isfinite().all() for y in outputs) == dropped


def test_a_dropped_nan_that_a_gru_carries():
    """The recurrent mask keeps it from the gates of the others; z * h carries it in its own unit."""
    cell, leaves = with_nan("GRU h_0", (slice(None), 3))
    keep = torch.ones(BATCH, COLUMNS, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)
    output, _ = run(cell, leaves, {"recurrent": Mask(keep, 2.0)})
    bad = output.isnan()
    assert bad[..., 3].all() and not bad[..., :3].any() and not bad[..., 4:].any()
