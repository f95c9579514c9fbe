"""autocast on the CPU: where backward runs does not matter, and the layer runs in autocast's dtype or in its own."""

import contextlib

import pytest
import torch

import rnndrop

DROPOUTS = [
    dict(hidden_dropout=0.5),
    dict(recurrent_dropout=0.5),
    dict(zoneout=0.5),
    dict(hidden_dropout=0.5, recurrent_dropout=0.5),
]


def inside():
    return torch.autocast("cpu", torch.bfloat16)


def outside():
    return torch.autocast("cpu", enabled=False)


@pytest.fixture(params=DROPOUTS, ids=" and ".join)
def dropouts(request):
    return request.param


@pytest.fixture(params=["RNN", "RNNCell"])
def run(request, dropouts):
    """The loss of a module as a function of nothing, its leaves, and how near gradients are, relative to the largest: a layer's
    to the bit; a cell is PyTorch's operations, as nn.RNNCell is, which an autocast around backward runs in bfloat16."""
    if request.param == "RNN":
        module, x = rnndrop.RNN(4, 8, 2, bidirectional=True, **dropouts), torch.randn(5, 3, 4, requires_grad=True)
        return lambda: module(x, seed=1)[0].float().square().sum(), [x, *module.parameters()], 0
    cell, x = rnndrop.RNNCell(4, 8, **dropouts), torch.randn(3, 4, requires_grad=True)
    return lambda: cell(x, cell(x, seed=2), seed=1).float().square().sum(), [x, *cell.parameters()], 2**-5


def assert_near(found, expected, bound):
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == other.dtype and mine.isfinite().all() and other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=0, atol=bound * other.abs().max().item())


def test_backward_inside_of_a_forward_outside(run):
    loss, leaves, bound = run
    expected = torch.autograd.grad(loss(), leaves)
    value = loss()
    with inside():
        found = torch.autograd.grad(value, leaves)
    assert_near(found, expected, bound)


def test_a_layer_that_autocast_leaves_alone(run):
    """Nested, as one does for a layer that needs its precision; backward is in the outer autocast."""
    loss, leaves, bound = run
    expected = torch.autograd.grad(loss(), leaves)
    with inside():
        with outside():
            value = loss()
        found = torch.autograd.grad(value, leaves)
    assert_near(found, expected, bound)


def test_backward_outside_of_a_forward_inside(run):
    """Gradients are of the parameters' dtype, wherever backward runs."""
    loss, leaves, _ = run
    with inside():
        value, again = loss(), loss()
        within = torch.autograd.grad(again, leaves)
    found = torch.autograd.grad(value, leaves)
    for mine, other, leaf in zip(found, within, leaves, strict=True):
        assert torch.equal(mine, other) and mine.dtype == leaf.dtype and mine.isfinite().all()


@pytest.mark.parametrize("where", [inside, contextlib.nullcontext])
def test_double_backward(run, where):
    loss, leaves, bound = run
    gradients = torch.autograd.grad(loss(), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    value = loss()
    with where():
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        # The squares' own backward is not what is tested.
        with outside():
            penalty = sum(g.square().sum() for g in gradients)
        found = torch.autograd.grad(penalty, leaves)
    assert_near(found, expected, max(bound, 1e-5))


def test_tanh_dropout_inside_and_out():
    x = torch.randn(5, 3, requires_grad=True)
    expected = torch.autograd.grad(rnndrop.functional.tanh_dropout(x, 0.5, seed=1).sum(), x)
    value = rnndrop.functional.tanh_dropout(x, 0.5, seed=1).sum()
    with inside():
        found = torch.autograd.grad(value, x)
    assert torch.equal(found[0], expected[0])


def test_float64_stays(dropouts):
    """Autocast casts no float64."""
    module, x = rnndrop.RNN(4, 8, dtype=torch.float64, **dropouts), torch.randn(5, 3, 4, dtype=torch.float64)
    expected = module(x, seed=1)[0]
    with inside():
        found = module(x, seed=1)[0]
    assert found.dtype == torch.float64 and torch.equal(found, expected)


def test_what_autocast_makes_of_a_layer(dropouts):
    """The same as of one whose tensors were cast by hand."""
    module, x = rnndrop.RNN(4, 8, **dropouts), torch.randn(5, 3, 4)
    by_hand = rnndrop.RNN.from_torch(module.to_torch().bfloat16(), **dropouts)
    with inside():
        output, h_n = module(x, seed=1)
    assert output.dtype == h_n.dtype == torch.bfloat16
    assert torch.equal(output, by_hand(x.bfloat16(), seed=1)[0])
