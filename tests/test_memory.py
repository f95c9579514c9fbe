"""Bytes kept for the backward pass.

Counted: what a forward pass hands to autograd, as torch.autograd.graph.saved_tensors_hooks sees it, each storage once
and whole, in two ways: everything, and without the storages of the input and the parameters, which live anyway. A
function could keep tensors that the hooks do not see, so the attributes of the graph's node are looked at too.
"""

import pytest
import torch
from torch import nn

import rnndrop
from benchmarks.measure.memory import saved_bytes
from tests.helpers import GATED

SHAPES = [(35, 20, 200, 200), (100, 32, 64, 128), (50, 1, 32, 64), (20, 8, 4, 1), (30, 5, 1, 100)]  # T, B, I, H
each_gated = pytest.mark.parametrize("name", GATED)


def loop(x, cell, drop):
    h, steps = None, []
    for x_t in x:
        h = drop(cell(x_t, h))
        steps.append(h)
    return torch.stack(steps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rates", [dict(hidden_dropout=0.2), dict(hidden_dropout=0.2, mask_scope="sequence")], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_at_most_half_of_a_loop(shape, rates, nonlinearity):
    steps, batch, inputs, columns = shape
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    rnn = rnndrop.RNN(inputs, columns, nonlinearity=nonlinearity, **rates)
    cell, drop = nn.RNNCell(inputs, columns, nonlinearity=nonlinearity), nn.Dropout(0.2)
    mine, theirs = (lambda: rnn(x)[0]), (lambda: loop(x, cell, drop))
    # As the issue has it, on what the layer adds; and with the input and the weights, the same on both sides, counted too.
    leaves = [x, *rnn.parameters(), *cell.parameters()]
    assert 0 < saved_bytes(mine, leaves) <= 0.5 * saved_bytes(theirs, leaves)
    shared = sum(leaf.numel() * 4 for leaf in (x, *rnn.parameters()))
    assert saved_bytes(mine, []) <= 0.5 * (saved_bytes(theirs, []) - shared) + shared


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_it_is_the_outputs_and_a_byte_a_mask(shape):
    """To the byte: outputs, h0, one byte for each mask element; nothing more, in any of the hidden places of a graph."""
    steps, batch, inputs, columns = shape
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    rnn = rnndrop.RNN(inputs, columns, hidden_dropout=0.2, recurrent_dropout=0.2)
    rows = steps * batch
    saved = saved_bytes(lambda: rnn(x)[0], [x, *rnn.parameters()])
    assert rows * columns * (4 + 1 + 1) <= saved <= rows * columns * (4 + 1 + 1) + 2 * batch * columns * 4


@each_gated
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_at_most_torchs_own_without_dropout(name, shape, scope):
    steps, batch, inputs, columns = shape
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    rnn = getattr(rnndrop, name)(inputs, columns, hidden_dropout=0.2, mask_scope=scope)
    theirs = rnn.to_torch()
    leaves = [x, *rnn.parameters(), *theirs.parameters()]
    for known in (leaves, []):
        assert 0 < saved_bytes(lambda: rnn(x)[0], known) <= saved_bytes(lambda: theirs(x)[0], known)


@each_gated
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_it_is_the_outputs_the_gates_and_a_byte_a_mask(name, shape):
    """An LSTM's four gates and its cell state, a GRU's three and W_hn h + b_hn: to the byte, but for a few rows of a step."""
    steps, batch, inputs, columns = shape
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    rnn = getattr(rnndrop, name)(inputs, columns, hidden_dropout=0.2, recurrent_dropout=0.2)
    saved = saved_bytes(lambda: rnn(x)[0], [x, *rnn.parameters()])
    kept = (4 * (1 + sum(rnn.cell.saved)) + 2) * columns * batch
    assert steps * kept <= saved <= steps * kept + 4 * columns * batch * 4


@pytest.mark.parametrize("name", ["RNN", *GATED])
def test_no_tensor_hides_in_the_graph(name):
    rnn = getattr(rnndrop, name)(4, 17, hidden_dropout=0.2, recurrent_dropout=0.2)
    node = rnn(torch.randn(5, 3, 4))[0].grad_fn
    while node is not None and not hasattr(node, "call"):
        node = node.next_functions[0][0] if node.next_functions else None
    assert node is not None, "the layer's node is not in the graph"
    hidden = [value for value in torch.utils._pytree.tree_leaves(vars(node)) if isinstance(value, torch.Tensor)]
    assert all(any(value is p for p in rnn.parameters()) for value in hidden)


@pytest.mark.parametrize("name", ["RNN", *GATED])
def test_nothing_is_saved_without_a_gradient(name):
    rnn, saved = getattr(rnndrop, name)(4, 17, hidden_dropout=0.2), []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        rnn(torch.randn(5, 3, 4))
    assert saved == []


@pytest.mark.parametrize("name", ["RNN", *GATED])
def test_nothing_is_freed_late(name):
    """Reference counting alone frees what a step kept: no cycles."""
    import gc
    import weakref

    rnn = getattr(rnndrop, name)(4, 17, hidden_dropout=0.2, recurrent_dropout=0.2)
    gc.disable()
    try:
        output, _ = rnn(torch.randn(5, 3, 4))
        output.sum().backward()
        seen = weakref.ref(output)
        del output
        assert seen() is None
    finally:
        gc.enable()
