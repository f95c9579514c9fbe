"""Zoneout on the CPU backend against the plain loop."""

import itertools

import pytest
import torch

from rnndrop import reference
from rnndrop.cell import CELLS, Weights, rnn_mode
from rnndrop.mask import Mask, keep_bytes, scale, stream, threshold
from rnndrop.ops import layer as layer_operator
from rnndrop.steps import Steps
from tests.helpers import assert_near, doubled, gradients, make_layer

RATES = {"hidden": 0.3, "recurrent": 0.4, "zoneout": 0.35}
WITH = [("zoneout",), ("hidden", "zoneout"), ("recurrent", "zoneout"), ("hidden", "recurrent", "zoneout")]
SIZES = [None, [3, 3, 3, 2, 2], [3, 2, 1, 1, 1]]


def masks_of(kinds, steps, columns, scope="step", rates=RATES):
    """Bytes of the rows that sequences have."""
    masks = {}
    for kind in kinds:
        rows = steps.batch if scope == "sequence" and kind != "zoneout" else steps.rows
        keep = keep_bytes(3, rows, columns, threshold(rates[kind]), stream(kind))
        masks[kind] = Mask(keep, 1.0 if kind == "zoneout" else scale(rates[kind]))
    return masks


def run(leaves, masks, steps, activation="tanh", layer=layer_operator.layer, strategy=("cpu",)):
    x, h_0, *weights = leaves.values()
    rows = x if steps.batch_sizes is None else torch.cat([y[:n] for y, n in zip(x, steps.batch_sizes, strict=True)])
    output, (h_n,) = layer(rows, [h_0], Weights.of(weights), masks, steps, CELLS[rnn_mode(activation)], *strategy)
    return output, h_n


def steps_of(sizes, reverse=False, count=5, batch=3):
    return Steps(count, batch, None if sizes is None else torch.tensor(sizes), reverse)


def check(leaves, masks, steps, activation="tanh"):
    outputs, copies = run(leaves, masks, steps, activation), doubled(leaves)
    expected = run(copies, masks, steps, activation, reference.layer, ())
    for actual, exact in zip(outputs, expected, strict=True):
        assert actual.dtype == leaves["input"].dtype
        assert_near(actual, exact)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("kinds", WITH, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_equals_the_plain_loop(kinds, dtype, scope):
    for activation, sizes, reverse in itertools.product(["tanh", "relu"], SIZES, [False, True]):
        steps = steps_of(sizes, reverse)
        check(make_layer(dtype=dtype, kink=activation == "tanh"), masks_of(kinds, steps, 17, scope), steps, activation)


@pytest.mark.parametrize("kinds", WITH, ids="+".join)
@pytest.mark.parametrize("sizes", [None, [24, *sorted((1 + 7 * i % 24 for i in range(11)), reverse=True)]])
def test_more_than_a_chunk_of_the_cache(kinds, sizes):
    for reverse in (False, True):
        steps = steps_of(sizes, reverse, 12, 24)
        check(make_layer(12, 24, 2, 300), masks_of(kinds, steps, 300), steps)


@pytest.mark.parametrize("rates", [dict(zoneout=1.0), dict(zoneout=1.0, hidden=1.0), dict(zoneout=0.5, hidden=1.0)], ids=str)
def test_all_is_dropped(rates):
    """Of zoneout: the state stays h_0 to the last bit. Of hidden: it stays until it is renewed, then it is 0."""
    for sizes, reverse in itertools.product(SIZES, [False, True]):
        leaves, steps = make_layer(), steps_of(sizes, reverse)
        masks = masks_of(rates, steps, 17, rates=rates)
        check(leaves, masks, steps)
        if rates["zoneout"] == 1:
            assert torch.equal(run(leaves, masks, steps)[1], leaves["h_0"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_expectation(dtype):
    """Its output does not tell what was made, and its gradient goes through the plain loop."""
    expectation = Mask(torch.empty(0, 17, dtype=torch.int8), 0.35)
    for activation, sizes, reverse in itertools.product(["tanh", "relu"], SIZES, [False, True]):
        steps = steps_of(sizes, reverse)
        check(make_layer(dtype=dtype, kink=activation == "tanh"), {"zoneout": expectation}, steps, activation)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("kinds", WITH, ids="+".join)
def test_what_was_not_made_leaks_nowhere(activation, kinds):
    """A NaN that zoneout leaves out reaches no state, and no gradient of what stays."""
    leaves, steps = make_layer(steps=1), steps_of(None, count=1)
    masks = masks_of(kinds, steps, 17)
    kept = masks["zoneout"].keep != 0
    with torch.no_grad():
        clean = [y.clone() for y in run(leaves, masks, steps, activation)]
        column = (~kept).nonzero()[0, 1]  # dropped in one sequence at least
        leaves["b_ih"][column] = float("nan")
    output, _ = run(leaves, masks, steps, activation)
    made = torch.zeros(3, 17, dtype=torch.bool)
    made[:, column] = kept[:, column]
    if "hidden" in masks:
        made &= masks["hidden"].keep != 0
    assert torch.equal(output[0].isnan(), made) and torch.equal(output[0][~made], clean[0][0][~made])
    grad = torch.autograd.grad(output, leaves["h_0"], torch.where(made, 0.0, 1.0)[None].double())[0]
    assert torch.equal(grad.isnan().any(1), made.any(1) if activation == "tanh" else torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_stays_is_selected(activation, value):
    """NaN and infinity stay, and the gradient of what stays is 1 whatever it is: no slope is taken of it."""
    leaves, steps = make_layer(), steps_of(None)
    mask = Mask(torch.zeros(15, 17, dtype=torch.int8), 1.0)
    with torch.no_grad():
        leaves["h_0"].fill_(value)
    output, h_n = run(leaves, {"zoneout": mask}, steps, activation)
    assert torch.equal(output.isnan(), torch.full_like(output, value).isnan()) and torch.equal(h_n.isnan(), output[0].isnan())
    found = torch.autograd.grad(h_n.sum(), [leaves["h_0"], leaves["b_ih"]])
    assert (found[0] == 1).all() and (found[1] == 0).all()


@pytest.mark.parametrize("kinds", WITH, ids="+".join)
def test_gradcheck(kinds):
    leaves, steps = make_layer(columns=5), steps_of([3, 3, 2, 2, 1])
    masks = masks_of(kinds, steps, 5)

    def layer(*values):
        return run(dict(zip(leaves, values, strict=True)), masks, steps)

    assert torch.autograd.gradcheck(layer, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(layer, tuple(leaves.values()))
