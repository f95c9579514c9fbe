"""The plain loop, proved by another one: nn.RNNCell, one sequence and one step at a time, the masks written out.

Everything else is compared with the plain loop (oracle.py), and this is compared with nothing of the package.
"""

import itertools

import pytest
import torch
from torch import nn

from rnndrop import reference
from rnndrop.cell import CELLS, Weights, rnn_mode
from rnndrop.mask import Mask
from rnndrop.steps import Steps
from tests.helpers import BATCH, COLUMNS, INPUTS, STEPS, assert_near, doubled, gradients, make_layer
from tests.tolerances import SEQUENCE

LENGTHS = [None, [5, 5, 5], [5, 3, 1], [5, 5, 2]]


def random_keep(rows, seed, p=0.4):
    return torch.rand(rows, COLUMNS, generator=torch.Generator().manual_seed(seed)) >= p


def run(leaves, masks, activation, lengths, reverse):
    """The loop of the package, packed where there are lengths; the output padded again, (T, B, H)."""
    x, h_0, *weights = leaves.values()
    cell, weights = CELLS[rnn_mode(activation)], Weights(*weights, *[None] * (4 - len(weights)))
    if lengths is None:
        output, (h_n,) = reference.layer(x, [h_0], weights, masks, Steps(STEPS, BATCH, reverse=reverse), cell)
        return output, h_n
    sizes = [sum(length > t for length in lengths) for t in range(STEPS)]
    rows = torch.cat([x[t, :size] for t, size in enumerate(sizes)])
    output, (h_n,) = reference.layer(rows, [h_0], weights, masks, Steps(STEPS, BATCH, torch.tensor(sizes), reverse), cell)
    padded = [torch.cat([y, y.new_zeros(BATCH - len(y), COLUMNS)]) for y in output.split(sizes)]
    return torch.stack(padded), h_n


def by_cells(leaves, hidden, recurrent, activation, lengths, reverse):
    """`hidden` and `recurrent`: numbers to multiply by, (T, B, H)."""
    x, h_0, *weights = leaves.values()
    cell = nn.RNNCell(INPUTS, COLUMNS, bias=len(weights) == 4, nonlinearity=activation, dtype=torch.float64)
    parameters = dict(zip([name for name, _ in cell.named_parameters()], weights, strict=True))
    outputs, states = [], []
    for b in range(BATCH):
        h, length = h_0[b], STEPS if lengths is None else lengths[b]
        steps = [torch.zeros_like(h)] * STEPS
        for t in range(length - 1, -1, -1) if reverse else range(length):
            h = hidden[t, b] * torch.func.functional_call(cell, parameters, (x[t, b], recurrent[t, b] * h))
            steps[t] = h
        outputs.append(torch.stack(steps))
        states.append(h)
    return torch.stack(outputs, 1), torch.stack(states)


def masks_of(scope, lengths):
    """Masks as the package takes them, and as numbers (T, B, H), of hidden and recurrent."""
    masks, numbers = {}, []
    for seed, (kind, scale) in enumerate({"hidden": 1.25, "recurrent": 2.0}.items()):
        keep = random_keep(STEPS * BATCH if scope == "step" else BATCH, seed)
        over_time = keep.view(-1, BATCH, COLUMNS).expand(STEPS, BATCH, COLUMNS)
        numbers.append(over_time * scale)
        if scope == "step" and lengths is not None:
            keep = torch.cat([over_time[t, : sum(length > t for length in lengths)] for t in range(STEPS)])
        masks[kind] = Mask(keep, scale)
    return masks, numbers


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_cells_and_masks(scope, lengths, reverse):
    """Outputs, states and every gradient, with both masks, one and none, both activations, with biases and without."""
    masks, numbers = masks_of(scope, lengths)
    for activation, bias, kinds in itertools.product(["tanh", "relu"], [True, False], [(), ("hidden",), ("recurrent",), masks]):
        leaves = make_layer(bias=bias)
        copies = doubled(leaves)
        given = {kind: masks[kind] for kind in kinds}
        ones = torch.ones(STEPS, BATCH, COLUMNS, dtype=torch.float64)
        m, r = (number if kind in kinds else ones for kind, number in zip(masks, numbers, strict=True))
        outputs = run(leaves, given, activation, lengths, reverse)
        expected = by_cells(copies, m, r, activation, lengths, reverse)
        for actual, exact in zip(outputs, expected, strict=True):
            assert_near(actual, exact)
        assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype):
    masks, numbers = masks_of("step", None)
    leaves = make_layer(dtype=dtype)
    outputs, expected = run(leaves, masks, "tanh", None, False), by_cells(doubled(leaves), *numbers, "tanh", None, False)
    for actual, exact in zip(outputs, expected, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, exact, SEQUENCE[dtype])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_without_dropout_it_is_torch(activation, lengths):
    """Both directions of nn.RNN, padded and packed."""
    rnn = nn.RNN(INPUTS, COLUMNS, nonlinearity=activation, bidirectional=True, dtype=torch.float64)
    x, h_0 = make_layer()["input"], torch.randn(2, BATCH, COLUMNS, dtype=torch.float64)
    given = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, lengths)
    theirs, states = rnn(given, h_0)
    theirs = theirs if lengths is None else nn.utils.rnn.pad_packed_sequence(theirs)[0]
    for direction, (weights, expected) in enumerate(zip(rnn.all_weights, theirs.chunk(2, -1), strict=True)):
        names = ["input", "h_0", "w_ih", "w_hh", "b_ih", "b_hh"]
        leaves = dict(zip(names, [x, h_0[direction], *weights], strict=True))
        output, h_n = run(leaves, {}, activation, lengths, bool(direction))
        assert_near(output, expected)
        assert_near(h_n, states[direction])


def test_one_bias_alone():
    """nn.RNNCell has both or none; one of two is the other at 0."""
    leaves = make_layer()
    x, h_0, w_ih, w_hh, bias, _ = leaves.values()
    steps, cell = Steps(STEPS, BATCH), CELLS["RNN_TANH"]
    zero = torch.zeros_like(bias)
    expected, _ = reference.layer(x, [h_0], Weights(w_ih, w_hh, bias, zero), {}, steps, cell)
    for weights in (Weights(w_ih, w_hh, bias, None), Weights(w_ih, w_hh, None, bias)):
        assert_near(reference.layer(x, [h_0], weights, {}, steps, cell)[0], expected)


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_dropped_is_zero_whatever_is_there(activation):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, float("nan")], requires_grad=True)
    keep = torch.tensor([False, False, False, True, True])
    y = reference.dropout(x, Mask(keep, 2.0), activation)
    (grad,) = torch.autograd.grad(y, x, torch.ones(5))
    assert (y[:3] == 0).all() and (grad[:3] == 0).all()
    assert y[3] == reference.ACTIVATIONS[activation](x[3]) * 2 and y[4].isnan()


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.0])
def test_the_gradient_of_tanh_dropout_is_that_of_autograd(scale):
    """From the output alone, and itself differentiable; scale 0 is that of p = 1."""
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    mask = Mask(torch.rand(6, 5) < 0.6 if scale else torch.zeros(6, 5, dtype=torch.bool), scale)
    y, grad = reference.dropout(x, mask, "tanh"), torch.randn(6, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, grad, create_graph=True)
    found = reference.tanh_dropout_gradient(grad, y, mask)
    assert_near(found, expected)
    (second,) = torch.autograd.grad(found.sum(), x, retain_graph=True)
    (exact,) = torch.autograd.grad(expected.sum(), x)
    assert_near(second, exact)
