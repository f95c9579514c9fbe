"""Keras' LSTM, GRU (reset_after) and SimpleRNN with `recurrent_dropout` and the same mask, outputs and gradients.

Keras draws a mask for each gate; here all gates get the one that this library has for a sequence. In float32, as which Keras
computes some of its float64 too.
"""

import importlib
import os

import pytest
import torch

from tests import oracle
from tests.helpers import BATCH, COLUMNS, INPUTS, STEPS, assert_near, inputs_of, make_rnn
from tests.modules.checks import flat

P, SEED = 0.4, 3
# Our gates in Keras' order.
ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}  # i, f, c, o; z, r, h
NAMES = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"}
each_cell = pytest.mark.parametrize("cell", NAMES)


@pytest.fixture(scope="module")
def keras():
    """On PyTorch."""
    os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
    module = importlib.import_module("keras")
    assert module.backend.backend() == "torch"
    with module.device("cpu"):
        yield module


def reordered(cell, rows):
    """Rows (G*H, ...) of one of our weights with the gates in Keras' order."""
    parts = rows.chunk(len(ORDER[cell]))
    return torch.cat([parts[gate] for gate in ORDER[cell]])


def values_of(cell, w_ih, w_hh, b_ih, b_hh):
    """Weights, or their gradients, as Keras has them: a GRU keeps both biases, the others their sum."""
    bias = torch.stack([reordered(cell, b_ih), reordered(cell, b_hh)]) if cell == "GRU" else reordered(cell, b_ih + b_hh)
    return [reordered(cell, w_ih).t(), reordered(cell, w_hh).t(), bias]


def theirs_of(keras, cell, rnn, mask):
    """A layer of Keras with the weights and the mask of `rnn`."""
    extra = dict(reset_after=True) if cell == "GRU" else {}
    options = dict(return_sequences=True, return_state=True, dtype="float32", recurrent_dropout=P, **extra)
    layer = getattr(keras.layers, NAMES[cell])(COLUMNS, **options)
    layer.build((BATCH, STEPS, INPUTS))
    for variable, value in zip(layer.trainable_variables, values_of(cell, *rnn.all_weights[0]), strict=True):
        assert tuple(variable.shape) == tuple(value.shape)
        variable.assign(value.detach())
    gates = len(ORDER[cell])
    layer.cell.get_recurrent_dropout_mask = lambda h: mask if gates == 1 else [mask] * gates
    return layer


def run(keras, cell, training=True, **rates):
    """Results and gradients of both: of x, the states and the weights."""
    rnn = make_rnn(cell, dtype=torch.float32, **rates).train(training)
    x, hx = inputs_of(rnn, STEPS, BATCH)
    mask = oracle.mask(SEED, BATCH, COLUMNS, P, kind="recurrent").float()
    leaves = [v.requires_grad_() for v in (x, *flat(hx))]
    layer = theirs_of(keras, cell, rnn, mask)
    found = flat(rnn(x, hx, seed=SEED))
    output, *states = layer(x.transpose(0, 1), initial_state=[h[0] for h in leaves[1:]], training=training)
    expected = [output.transpose(0, 1), *[state[None] for state in states]]
    grads = [torch.randn(y.shape) for y in found]
    mine = torch.autograd.grad(found, [*leaves, *rnn.parameters()], grads)
    theirs = torch.autograd.grad(expected, [*leaves, *[v.value for v in layer.trainable_variables]], grads)
    count, weights = len(leaves), list(mine[len(leaves) :])
    if cell == "GRU":
        of_weights = values_of(cell, *weights)
    else:  # each of our biases has the gradient of their sum
        assert_near(weights[2], weights[3])
        of_weights = values_of(cell, *weights[:3], torch.zeros_like(weights[3]))
    return (found, [*mine[:count], *of_weights]), (expected, list(theirs))


@each_cell
def test_recurrent_dropout(keras, cell):
    (found, mine), (expected, theirs) = run(keras, cell, recurrent_dropout=P, mask_scope="sequence")
    assert_near(found, expected)
    assert_near(mine, theirs)


@each_cell
def test_evaluation(keras, cell):
    (found, mine), (expected, theirs) = run(keras, cell, training=False, recurrent_dropout=P, mask_scope="sequence")
    assert_near(found, expected)
    assert_near(mine, theirs)


@each_cell
def test_other_masks_are_seen(keras, cell):
    """A mask a step, or that of another kind, is another network."""
    for rates in (dict(recurrent_dropout=P), dict(hidden_dropout=P, mask_scope="sequence"), dict()):
        (found, _), (expected, _) = run(keras, cell, **rates)
        assert not torch.allclose(found[0], expected[0], rtol=1e-3)
