"""Dropout in evaluation, on purpose."""

import copy

import pytest
import torch
from torch import nn

import rnndrop
from rnndrop import monte_carlo
from tests.helpers import EACH_KIND, EVERY_KIND, assert_equal, make_rnn

STATES = {name: EVERY_KIND[name] for name in ("hidden_dropout", "recurrent_dropout", "zoneout")}


class Network(nn.Module):
    """With everything that has two modes, two of which are in another than the rest."""

    def __init__(self, **rates):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.alpha = nn.AlphaDropout(0.5)
        self.rnn = rnndrop.RNN(4, 17, 2, **(rates or EVERY_KIND))
        self.cells = nn.ModuleList([rnndrop.RNNCell(17, 17, **STATES)])
        self.theirs = nn.RNN(17, 5, 2, dropout=0.5)

    def forward(self, x, seed=None):
        x = self.norm(x.flatten(0, 1)).view_as(x)
        y, _ = self.rnn(x, seed=seed)
        y = torch.stack([self.cells[0](one, seed=seed) for one in y])
        return self.theirs(self.drop(y))[0]


X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
DROPPING, TORCHS = ["rnn", "cells.0"], ["drop", "alpha"]


def modes(network):
    return {name: each.training for name, each in network.named_modules()}


@pytest.fixture
def network():
    """In evaluation, but for two of its parts."""
    found = Network().eval()
    found.norm.train()
    found.cells.training = True
    return found


@pytest.mark.parametrize("nn_dropout", [False, True])
def test_what_acts_and_what_does_not(network, nn_dropout):
    before = modes(network)
    with monte_carlo(network, nn_dropout=nn_dropout) as given:
        assert given is network
        acting = [name for name, training in modes(network).items() if training]
        assert acting == (["drop", "alpha", "rnn", "cells.0"] if nn_dropout else ["rnn", "cells.0"])
    assert modes(network) == before and before["norm"] and not before["rnn"]


def test_a_module_in_training_is_in_evaluation_inside(network):
    network.train()
    with monte_carlo(network):
        assert [name for name, training in modes(network).items() if training] == DROPPING
    assert all(modes(network).values())


def test_it_is_restored_after_an_exception(network):
    before = modes(network)
    with pytest.raises(KeyError, match="told"), monte_carlo(network, nn_dropout=True):
        raise KeyError("told")
    assert modes(network) == before


def test_nested(network):
    """The inner one leaves the outer one as it was, also by an exception, and of a part too."""
    before = modes(network)
    with monte_carlo(network):
        outer = modes(network)
        with pytest.raises(KeyError), monte_carlo(network, nn_dropout=True):
            assert modes(network) != outer
            raise KeyError
        assert modes(network) == outer
        with monte_carlo(network.rnn):
            assert modes(network) == outer
        assert modes(network) == outer
    assert modes(network) == before


def test_samples_differ_and_seeds_repeat_them(network):
    network.eval()
    with monte_carlo(network), torch.no_grad():
        samples = torch.stack([network(X) for _ in range(5)])
        assert (samples.std(0) > 0).all()
        assert_equal(network(X, seed=3), network(X, seed=3))
        torch.manual_seed(5)
        first = network(X)
        torch.manual_seed(5)
        assert_equal(network(X), first)
    assert_equal(network(X), network(X))


def test_each_sequence_with_a_seed_of_its_own():
    """An input again and again in one batch: a sample each, those that each has alone."""
    rnn = rnndrop.RNN(4, 17, 2, **{name: p for name, p in EVERY_KIND.items() if name != "weight_dropout"}).eval()
    with monte_carlo(rnn), torch.no_grad():
        samples = rnn(X[:, :1].expand(-1, 20, -1), seed=torch.arange(20))[0]
        assert (samples.std(1) > 0).any(1).all()
        for seed in (0, 7, 19):
            torch.testing.assert_close(samples[:, seed], rnn(X[:, 0], seed=seed)[0])


@pytest.mark.parametrize("kind", EACH_KIND)
def test_each_kind_acts_as_in_training(kind):
    for rnn in (make_rnn(num_layers=2, **EACH_KIND[kind]), rnndrop.RNNCell(4, 17, **STATES).double()):
        x = torch.randn(5, 3, 4, dtype=torch.float64)[0 if isinstance(rnn, rnndrop.RNNCell) else slice(None)]
        expected = rnn(x, seed=3)
        rnn.eval()
        quiet = rnn(x, seed=3)
        with monte_carlo(rnn):
            assert_equal(rnn(x, seed=3), expected)
        assert_equal(rnn(x, seed=3), quiet)
        assert not torch.equal(quiet[0], expected[0])


def test_batch_norm_is_left_alone(network):
    """Its running mean is used and not changed, and was in training before."""
    before = copy.deepcopy(network.state_dict())
    with monte_carlo(network, nn_dropout=True):
        for _ in range(3):
            network(X)
        normed = network.norm(X.flatten(0, 1))
    assert_equal(dict(network.state_dict()), dict(before))
    assert_equal(normed, copy.deepcopy(network.norm).eval()(X.flatten(0, 1)))


def test_torchs_dropout_alone():
    """Where nothing of this library is in the module, the argument decides."""
    module = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)).eval()
    with monte_carlo(module):
        assert torch.equal(module(X), module(X))
    with monte_carlo(module, nn_dropout=True):
        assert not torch.equal(module(X), module(X))
    assert torch.equal(module(X), module(X))


def test_a_module_that_is_used_twice(network):
    """And one that changes its own mode inside."""
    network.again = network.rnn
    with monte_carlo(network):
        network.rnn.eval()
    assert not network.rnn.training
    network.rnn.train()
    with monte_carlo(network):
        network.rnn.eval()
    assert network.rnn.training


def test_inside_the_gradient_flows():
    rnn = make_rnn(num_layers=2, **EVERY_KIND).eval()
    with monte_carlo(rnn):
        rnn(X.double(), seed=3)[0].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in rnn.parameters())


def test_compiled():
    """The mode is seen by what was compiled before."""
    torch._dynamo.reset()
    rnn = rnndrop.RNN(4, 8, hidden_dropout=0.5).eval()
    compiled = torch.compile(rnn, backend="aot_eager")
    quiet = compiled(X)[0]
    with monte_carlo(compiled), torch.no_grad():
        torch.testing.assert_close(compiled(X, seed=3)[0], rnn(X, seed=3)[0])
        assert not torch.equal(compiled(X)[0], compiled(X)[0])
    assert torch.equal(compiled(X)[0], quiet) and not compiled.training
    torch._dynamo.reset()


@pytest.mark.parametrize("wrong", [None, lambda x: x, [nn.Linear(2, 3)], nn.RNN])
def test_what_is_no_module(wrong):
    with (
        pytest.raises(TypeError, match=rf"^module should be a torch\.nn\.Module, got {type(wrong).__name__}$"),
        monte_carlo(wrong),
    ):
        pass
