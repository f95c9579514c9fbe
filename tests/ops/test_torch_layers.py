"""PyTorch's own layers as an operator, which the compiler sees as one: outputs and gradients are theirs."""

import itertools

import pytest
import torch
from torch import nn

from rnndrop.ops import torch_layers
from tests.helpers import assert_equal, gradients

OPTIONS = list(itertools.product(["tanh", "relu"], [True, False], [1, 2], [False, True]))


def arguments(theirs, x, hx, sizes=None):
    options = theirs.bias, theirs.num_layers, theirs.training, theirs.bidirectional
    return x, [hx], theirs._flat_weights, sizes, theirs.mode, *options


def run(*given):
    output, (h_n,) = torch.ops.rnndrop.torch_layers(*arguments(*given))
    return output, h_n


def case(activation, bias, layers, both):
    theirs = nn.RNN(4, 7, layers, activation, bias, bidirectional=both, dtype=torch.float64)
    hx = torch.randn(layers * (1 + both), 3, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    return theirs, x, hx


@pytest.mark.parametrize("activation, bias, layers, both", OPTIONS)
def test_it_is_torchs_layer(activation, bias, layers, both):
    for training in (False, True):
        theirs, x, hx = case(activation, bias, layers, both)
        theirs.train(training)
        leaves = {"x": x, "hx": hx, **dict(theirs.named_parameters())}
        outputs, expected = run(theirs, x, hx), theirs(x, hx)
        assert_equal(outputs, expected)
        assert_equal(gradients(outputs, leaves), gradients(expected, leaves))


def test_packed():
    theirs, x, hx = case("tanh", True, 2, True)
    data, sizes, *_ = nn.utils.rnn.pack_padded_sequence(x.detach(), [5, 3, 1])
    data.requires_grad_()
    outputs = run(theirs, data, hx, sizes)
    packed, h_n = theirs(nn.utils.rnn.PackedSequence(data, sizes), hx)
    leaves = {"data": data, "hx": hx, **dict(theirs.named_parameters())}
    assert_equal(outputs, (packed.data, h_n))
    assert_equal(gradients(outputs, leaves), gradients([packed.data, h_n], leaves))


@pytest.mark.parametrize("frozen", ["x", "hx", "weight_hh_l0", "bias_ih_l0"])
def test_some_gradients_alone(frozen):
    theirs, x, hx = case("tanh", True, 1, False)
    leaves = {"x": x, "hx": hx, **dict(theirs.named_parameters())}
    leaves.pop(frozen).requires_grad_(False)
    output, h_n = run(theirs, x, hx)
    assert_equal(gradients([output], leaves), gradients([theirs(x, hx)[0]], leaves))
    assert h_n.requires_grad


@pytest.mark.parametrize("activation, bias, layers, both", [OPTIONS[0], OPTIONS[-1]])
def test_opcheck(activation, bias, layers, both):
    theirs, x, hx = case(activation, bias, layers, both)
    torch.library.opcheck(torch.ops.rnndrop.torch_layers.default, arguments(theirs, x, hx))


@pytest.mark.parametrize("training", [False, True])
def test_eager_mode_calls_torch_itself(training):
    """With derivatives of any order, which the operator has not got."""
    theirs, x, hx = case("tanh", True, 1, False)
    theirs.train(training)
    data, states, weights, sizes, mode, *options = arguments(theirs, x, hx)
    output, (h_n,) = torch_layers.torch_layers(mode, data, states, weights, sizes, *options, False)
    assert_equal((output, h_n), theirs(x, hx))
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), x)[0].isfinite().all()
