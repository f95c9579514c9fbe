"""Compiled in one graph, modules give what they give in eager mode, forward and backward. aot_eager: the graphs, uncompiled."""

import pytest
import torch

import rnndrop
from rnndrop import functional
from tests.helpers import BOTH, EACH_KIND, EVERY_KIND, RATES

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize(
    "options",
    [
        *RATES,
        dict(BOTH, mask_scope="sequence"),
        dict(BOTH, num_layers=2, dropout=0.2, bidirectional=True),
        dict(num_layers=2, dropout=0.2),
        dict(EVERY_KIND, num_layers=2, mask_scope={"input": "sequence", "hidden": "sequence"}),
        dict(),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [3, None])
def test_modules(options, seed):
    """Seeds that are drawn among them."""
    same_compiled(rnndrop.RNN(4, 17, **options), seed)


def same_compiled(rnn, seed=None):
    rnn, x = rnn.double(), torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)

    def step(run):
        torch.manual_seed(5)
        output, h_n = run(x, seed=seed)
        loss = output.square().sum() + h_n.sum()
        return [output, h_n, *torch.autograd.grad(loss, [x, *rnn.parameters()])]

    found, expected = step(compiled(rnn)), step(rnn)
    assert all(map(torch.allclose, found, expected))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(found[:2], expected[:2], strict=True))


@pytest.mark.parametrize("kind", ["input", "output", "weight", "zoneout", "every"])
def test_kinds_with_a_seed_for_each_sequence(kind):
    options = dict(EVERY_KIND, bidirectional=True, mask_scope="sequence") if kind == "every" else EACH_KIND[kind]
    same_compiled(rnndrop.RNN(4, 17, 2 if kind == "every" else 1, **options), torch.tensor([3, -4, 2**63 - 1]))


def test_zoneout_in_evaluation():
    same_compiled(rnndrop.RNN(4, 17, 2, bidirectional=True, mask_scope={"input": "sequence"}, **EVERY_KIND).eval())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [3, torch.tensor([3, -4, 5])], ids=["int", "each"])
def test_cells_and_functions(training, seed):
    cell, zoned = (rnndrop.RNNCell(4, 17, **rates).train(training) for rates in (BOTH, dict(zoneout=0.3)))
    x, hx = torch.randn(3, 4, requires_grad=True), torch.ones(3, 17)
    functions = [lambda x: cell(x, seed=seed), lambda x: zoned(x, hx, seed=seed)]
    for function in (*functions, lambda x: functional.tanh_dropout(x, 0.3, training, seed=3)):
        expected, actual = function(x), compiled(function)(x)
        assert torch.allclose(actual, expected) and torch.equal(actual == 0, expected == 0)
        pair = [torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)]
        assert torch.allclose(*pair)


@pytest.mark.parametrize("each", [False, True])
def test_once_for_every_length_and_batch(each):
    rnn = rnndrop.RNN(4, 17, 2, **EVERY_KIND)
    run = compiled(rnn, dynamic=True)
    for shape in [(5, 3, 4), (7, 3, 4), (9, 6, 4)]:
        x, seed = torch.randn(shape), torch.arange(shape[1]) if each else 3
        assert torch.allclose(run(x, seed=seed)[0], rnn(x, seed=seed)[0])
