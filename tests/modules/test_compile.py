"""Compiled in one graph, modules give what they give in eager mode, forward and backward. aot_eager: the graphs, uncompiled."""

import pytest
import torch

import rnndrop
from rnndrop import functional
from tests.helpers import BOTH, RATES


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize(
    "options",
    [
        *RATES,
        dict(BOTH, mask_scope="sequence"),
        dict(BOTH, num_layers=2, dropout=0.2, bidirectional=True),
        dict(num_layers=2, dropout=0.2),
        dict(),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [3, None])
def test_modules(options, seed):
    """Seeds that are drawn among them."""
    rnn = rnndrop.RNN(4, 17, **options)
    x = torch.randn(5, 3, 4, requires_grad=True)

    def step(run):
        torch.manual_seed(5)
        output, h_n = run(x, seed=seed)
        loss = output.square().sum() + h_n.sum()
        return [output, h_n, *torch.autograd.grad(loss, [x, *rnn.parameters()])]

    found, expected = step(compiled(rnn)), step(rnn)
    assert all(map(torch.allclose, found, expected))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(found[:2], expected[:2], strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_cells_and_functions(training):
    cell = rnndrop.RNNCell(4, 17, **BOTH).train(training)
    x = torch.randn(3, 4, requires_grad=True)
    for function in (lambda x: cell(x, seed=3), lambda x: functional.tanh_dropout(x, 0.3, training, seed=3)):
        expected, actual = function(x), compiled(function)(x)
        assert torch.allclose(actual, expected) and torch.equal(actual == 0, expected == 0)
        pair = [torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)]
        assert torch.allclose(*pair)


def test_once_for_every_length_and_batch():
    rnn = rnndrop.RNN(4, 17, hidden_dropout=0.3)
    run = compiled(rnn, dynamic=True)
    for shape in [(5, 3, 4), (7, 3, 4), (9, 6, 4)]:
        x = torch.randn(shape)
        assert torch.allclose(run(x, seed=3)[0], rnn(x, seed=3)[0])
