"""GRU and LSTM on the CPU backend against the plain loop in float64: every kind, alone and together."""

import itertools

import pytest
import torch

from rnndrop import reference
from rnndrop.backends.base import Layer, Needs
from rnndrop.backends.cpu import Cpu, loop
from rnndrop.backends.cpu import product as products
from rnndrop.backends.cpu.elements import pieces
from rnndrop.backends.reference import Reference
from rnndrop.cell import CELLS, Weights
from rnndrop.kinds import SCOPED, ZONEOUTS
from rnndrop.mask import Mask, keep_bytes, scale, stream, threshold
from rnndrop.ops import layer as layer_operator
from rnndrop.steps import Steps
from tests.helpers import BATCH, COLUMNS, INPUTS, STEPS, assert_equal, assert_near, doubled, gradients

GATED = [CELLS["GRU"], CELLS["LSTM"]]
RATES = dict(hidden=0.3, recurrent=0.4, zoneout=0.35, cell=0.25, cell_zoneout=0.2, candidate=0.45)
SIZES = [None, [3, 3, 2, 2, 1]]
PACKED_ACROSS_PIECES = [24] * 14 + sorted((1 + 7 * i % 24 for i in range(22)), reverse=True)
EVERY = [(cell, kinds) for cell in GATED for kinds in [(), *[(kind,) for kind in cell.kinds], cell.kinds]]
PAIRS = [(cell, kinds) for cell in GATED for kinds in itertools.combinations(cell.kinds, 2)]


def named(case):
    cell, kinds = case
    return f"{cell.mode}-{'+'.join(kinds) or 'none'}"


def make(cell, steps=STEPS, batch=BATCH, inputs=INPUTS, columns=COLUMNS, dtype=torch.float64, bias=True):
    """Leaves of a freshly initialised layer: input, states, weights."""
    rows = cell.gates * columns
    shapes = dict(w_ih=(rows, inputs), w_hh=(rows, columns)) | (dict(b_ih=(rows,), b_hh=(rows,)) if bias else {})
    leaves = dict(input=torch.randn(steps, batch, inputs)) | {f"{s}_0": torch.randn(batch, columns) for s in cell.states}
    leaves |= {name: torch.empty(shape).uniform_(-1, 1) * (3 / columns) ** 0.5 for name, shape in shapes.items()}
    return {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}


def masks_of(kinds, steps, columns=COLUMNS, scope="step", rates=RATES):
    """Bytes of the rows that sequences have."""
    masks = {}
    for kind in kinds:
        rows = steps.batch if scope == "sequence" and kind in SCOPED else steps.rows
        keep = keep_bytes(3, rows, columns, threshold(rates[kind]), stream(kind))
        masks[kind] = Mask(keep, 1.0 if kind in ZONEOUTS else scale(rates[kind]))
    return masks


def steps_of(sizes, reverse=False, count=STEPS, batch=BATCH):
    return Steps(count, batch, None if sizes is None else torch.tensor(sizes), reverse)


def parts_of(leaves, cell):
    x, *rest = leaves.values()
    return x, rest[: len(cell.states)], Weights.of(rest[len(cell.states) :], bias=len(leaves) > 3 + len(cell.states))


def run(leaves, masks, steps, cell, layer=layer_operator.layer, strategy=("cpu",)):
    """The output and the states at the end."""
    x, states, weights = parts_of(leaves, cell)
    rows = x if steps.batch_sizes is None else torch.cat([y[:n] for y, n in zip(x, steps.batch_sizes, strict=True)])
    output, last = layer(rows, states, weights, masks, steps, cell, *strategy)
    return output, *last


def check(leaves, masks, steps, cell):
    """Outputs, states at the end and the gradients of all leaves."""
    outputs, copies = run(leaves, masks, steps, cell), doubled(leaves)
    expected = run(copies, masks, steps, cell, reference.layer, ())
    for actual, exact in zip(outputs, expected, strict=True):
        assert actual.dtype == leaves["input"].dtype
        assert_near(actual, exact)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("case", EVERY, ids=named)
@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_plain_loop(case, scope, dtype):
    cell, kinds = case
    for sizes, reverse in itertools.product(SIZES, [False, True]):
        steps = steps_of(sizes, reverse)
        check(make(cell, dtype=dtype), masks_of(kinds, steps, scope=scope), steps, cell)


@pytest.mark.parametrize("case", PAIRS, ids=named)
def test_two_kinds(case):
    cell, kinds = case
    for scope, (sizes, reverse) in zip(["step", "sequence"], itertools.product(SIZES[1:], [False, True]), strict=True):
        steps = steps_of(sizes, reverse)
        check(make(cell, bias=False), masks_of(kinds, steps, scope=scope), steps, cell)


@pytest.mark.parametrize("case", EVERY, ids=named)
@pytest.mark.parametrize("sizes", [None, PACKED_ACROSS_PIECES], ids=["padded", "packed"])
def test_more_than_a_piece(case, sizes):
    cell, kinds = case
    for reverse in (False, True):
        steps = steps_of(sizes, reverse, count=36, batch=24)
        assert len(pieces(steps.ranges, 4 * 150)) > 1
        check(make(cell, 36, 24, 2, 150), masks_of(kinds, steps, 150), steps, cell)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 1, 2, 16), (40, 1, 1, 5), (3, 2, 1, 33)], ids=str)
def test_every_shape(cell, shape):
    steps = steps_of(None, count=shape[0], batch=shape[1])
    check(make(cell, *shape), masks_of(cell.kinds, steps, shape[3]), steps, cell)


@pytest.mark.parametrize("case", EVERY, ids=named)
@pytest.mark.parametrize("p", [0.0, 1.0, 1 - 2**-16])
def test_none_all_and_next_to_all(case, p):
    cell, kinds = case
    for sizes, reverse in itertools.product(SIZES, [False, True]):
        steps = steps_of(sizes, reverse)
        check(make(cell), masks_of(kinds, steps, rates=dict.fromkeys(RATES, p)), steps, cell)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
@pytest.mark.parametrize("kinds", [("zoneout",), ("cell_zoneout",), ZONEOUTS], ids="+".join)
def test_the_expectation_of_zoneout(cell, kinds):
    kinds = [kind for kind in kinds if kind in cell.kinds]
    expected = {kind: Mask(torch.empty(0, 1, dtype=torch.int8), RATES[kind]) for kind in kinds}
    for sizes, reverse in itertools.product(SIZES, [False, True]):
        steps = steps_of(sizes, reverse)
        check(make(cell), expected | masks_of(("hidden", "candidate"), steps), steps, cell)


@pytest.mark.parametrize("case", [case for case in EVERY if case[1]], ids=named)
@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_a_dropped_nan_is_0(case, scope):
    """Where a mask drops a NaN, nothing of it is seen, as in the plain loop; where none does, all of it is."""
    cell, kinds = case
    steps, leaves = steps_of(None), make(cell)
    with torch.no_grad():
        leaves["input"][1, 0] = float("nan")
        leaves["input"][2, 1, 0] = float("inf")
    masks = masks_of(kinds, steps, scope=scope)
    expected = run(leaves, masks, steps, cell, reference.layer, ())
    for actual, exact in zip(run(leaves, masks, steps, cell), expected, strict=True):
        assert torch.equal(actual.isnan(), exact.isnan())
        assert_near(actual.nan_to_num(), exact.nan_to_num())


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
def test_a_unit_that_hidden_dropout_drops_shows_no_nan(cell):
    """The plain loop is not asked."""
    steps, leaves = steps_of(None, count=2), make(cell, steps=2)
    with torch.no_grad():
        leaves["input"][1] = float("nan")
    masks = masks_of(("hidden",), steps)
    output, *_ = run(leaves, masks, steps, cell)
    dropped = masks["hidden"].keep.view(2, BATCH, COLUMNS) == 0
    assert (output[dropped] == 0).all() and output[1][~dropped[1]].isnan().all() and dropped[1].any()


def of_step(cell, x, before, weights, masks, t):
    """Gates and states of step t of a padded batch, as `Cell.saved` has them, by the equations."""
    (of_x, of_h), keep = (
        (
            torch.nn.functional.linear(y, w, b).chunk(cell.gates, 1)
            for y, w, b in zip((x, reference.dropout(before[0], masks(t, "recurrent"))), weights[:2], weights[2:4], strict=True)
        ),
        lambda kind: masks(t, kind),
    )
    if cell.mode == "GRU":
        r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        return [torch.cat([of_h[2], r, z, torch.tanh(of_x[2] + r * of_h[2])], 1)]
    i, f, g, o = (a + b for a, b in zip(of_x, of_h, strict=True))
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new = reference.dropout(f * before[1] + i * reference.dropout(g, keep("candidate")), keep("cell"))
    return [torch.cat([i, f, g, o], 1), reference.zone(before[1], new, keep("cell_zoneout"))]


@pytest.mark.parametrize("case", EVERY, ids=named)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_saved(case, dtype):
    """What the cell table says, of the output's dtype."""
    cell, kinds = case
    steps, leaves = steps_of(None), {name: leaf.detach() for name, leaf in make(cell, dtype=dtype).items()}
    given = masks_of(kinds, steps)
    x, states, weights = parts_of(leaves, cell)
    output, _, saved = Cpu().forward(x, states, weights, given, steps, cell)
    assert [tuple(y.shape) for y in saved] == [(steps.rows, k * COLUMNS) for k in cell.saved]
    assert all(y.dtype == dtype and y.is_contiguous() for y in saved)

    def masks(t, kind):
        mask = given.get(kind)
        return mask and Mask(mask.keep[t * BATCH : (t + 1) * BATCH], mask.scale)

    exact = weights.map(torch.Tensor.double)
    cells = [] if cell.mode == "GRU" else [saved[1].view(STEPS, BATCH, COLUMNS)]
    for t in range(STEPS):
        before = [y.double() for y in (states if t == 0 else [rows[t - 1] for rows in (output, *cells)])]
        expected = of_step(cell, x[t].double(), before, exact, masks, t)
        for actual, made in zip(saved, expected, strict=True):
            assert_near(actual.view(STEPS, BATCH, -1)[t], made)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
@pytest.mark.parametrize("sizes", SIZES, ids=["padded", "packed"])
def test_gradcheck(cell, sizes):
    steps = steps_of(sizes)
    leaves = make(cell, columns=3)
    masks, names = masks_of(cell.kinds, steps, 3), list(leaves)
    function = lambda *values: run(dict(zip(names, values, strict=True)), masks, steps, cell)  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=False)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
@pytest.mark.parametrize("needs", [Needs(*flags) for flags in itertools.product([False, True], repeat=5)][::3], ids=str)
def test_the_gradients_that_are_asked_for(cell, needs):
    steps = steps_of(None)
    leaves = {name: leaf.detach() for name, leaf in make(cell).items()}
    x, states, weights = parts_of(leaves, cell)
    masks = masks_of(cell.kinds, steps)
    output, last, saved = Cpu().forward(x, states, weights, masks, steps, cell)
    layer = Layer(x, states, weights, masks, steps, cell, output, saved)
    none = [None] * len(states)
    for asked in ((torch.ones_like(output), none), (None, last), (None, [*none[1:], last[-1]])):
        found, expected = (backend.backward(layer, *asked, needs) for backend in (Cpu(), Reference()))
        assert [g is None for g in found[:5]] == [not need for need in needs]
        for one, other in zip((*found[:5], *found.states), (*expected[:5], *expected.states), strict=True):
            assert one is other is None or assert_near(one, other) is None
        addresses = [g.untyped_storage().data_ptr() for g in (*found[:5], *found.states) if g is not None]
        assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
def test_arguments_of_any_strides_and_unchanged(cell):
    steps, leaves = steps_of(None), make(cell)
    strided = {name: leaf.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for name, leaf in leaves.items()}
    assert not any(leaf.is_contiguous() for leaf in strided.values())
    masks, before = masks_of(cell.kinds, steps), {name: leaf.detach().clone() for name, leaf in strided.items()}
    outputs, expected = (run(given, masks, steps, cell) for given in (strided, leaves))
    grads = [torch.randn(y.shape[::-1], dtype=y.dtype).permute(*range(y.dim())[::-1]) for y in outputs]
    found = torch.autograd.grad(outputs, list(strided.values()), grads, retain_graph=True)
    assert_near(found, torch.autograd.grad(expected, list(leaves.values()), [g.contiguous() for g in grads]))
    for name, leaf in strided.items():
        assert torch.equal(leaf, before[name])
    for again, once in zip(torch.autograd.grad(outputs, list(strided.values()), grads), found, strict=True):
        assert_equal(again, once)


@pytest.mark.parametrize("cell", GATED, ids=lambda cell: cell.mode)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sequence_in_two_parts_is_the_whole(cell, dtype):
    """To the last bit: what goes on from a step is what it shows."""
    leaves = make(cell, dtype=dtype)
    masks = {kind: mask for kind, mask in masks_of(cell.kinds, steps_of(None), scope="sequence").items() if kind in SCOPED}
    output, *last = run(leaves, masks, steps_of(None), cell)
    names = [f"{state}_0" for state in cell.states]
    first, *middle = run(leaves | dict(input=leaves["input"][:3]), masks, steps_of(None, count=3), cell)
    rest = leaves | dict(input=leaves["input"][3:]) | dict(zip(names, middle, strict=True))
    second, *end = run(rest, masks, steps_of(None, count=2), cell)
    assert torch.equal(torch.cat([first, second]), output)
    for one, other in zip(end, last, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(last[0], output[-1])


def test_every_cell_of_the_table_has_a_step():
    assert loop.CELLS.keys() == CELLS.keys()


@pytest.mark.parametrize("case", [(cell, kinds) for cell in CELLS.values() for kinds in ((), cell.kinds)], ids=named)
@pytest.mark.parametrize("sizes", SIZES, ids=["padded", "packed"])
@pytest.mark.parametrize("library", ["_of_numpy", "_of_torch", "_of_onednn"])
def test_whichever_library_multiplies(case, sizes, library, monkeypatch):
    if library == "_of_onednn" and not products._has_onednn():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(products, "SMALL", 1 << 60 if library == "_of_numpy" else 0)
    monkeypatch.setattr(products, "LARGE", 0 if library == "_of_onednn" else 1 << 60)
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    cell, kinds = case
    steps = steps_of(sizes)
    check(make(cell, dtype=torch.float32), masks_of(kinds, steps), steps, cell)
