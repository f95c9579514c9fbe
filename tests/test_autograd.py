import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import rnndrop
from rnndrop import functional
from rnndrop.mask import site
from tests.helpers import STRATEGIES, assert_near, doubled, layer_by_hand, make_layer, mask_over_time

RATES = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), dict(hidden_dropout=0.3, recurrent_dropout=0.4)]
SEED = 3


def layer(strategy, leaves, **options):
    """rnn_layer as a function of its leaves."""
    names = list(leaves)
    return lambda *values: functional.rnn_layer(*[dict(zip(names, values, strict=True)).get(name) for name in
                                                  ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")],
                                                seed=SEED, strategy=strategy, **options)  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("options", [dict(), dict(direction=1, mask_scope="sequence"), dict(nonlinearity="relu")], ids=str)
def test_gradcheck(strategy, rates, options):
    leaves = make_layer(3, 2, 2, 3, kink=options.get("nonlinearity") != "relu")
    run = layer(strategy, leaves, **rates, **options)
    assert gradcheck(run, tuple(leaves.values()))
    assert gradgradcheck(run, tuple(leaves.values()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("direction", [0, 1])
def test_gradcheck_of_packed_data(strategy, direction):
    leaves = make_layer(4, 3, 2, 3)
    leaves["x"] = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    run = layer(strategy, leaves, batch_sizes=[3, 2, 1, 1], direction=direction, **RATES[2])
    assert gradcheck(run, tuple(leaves.values()))
    assert gradgradcheck(run, tuple(leaves.values()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradcheck_of_tanh_dropout(strategy):
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    run = lambda x: functional.tanh_dropout(x, 0.4, seed=SEED, strategy=strategy)  # noqa: E731
    assert gradcheck(run, x) and gradgradcheck(run, x)


def test_gradcheck_of_a_module():
    rnn = rnndrop.RNN(2, 3, 2, bidirectional=True, dropout=0.3, dtype=torch.float64, **RATES[2])
    leaves = [torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    run = lambda x, hx, *_: rnn(x, hx, seed=SEED)  # noqa: E731
    assert gradcheck(run, (*leaves, *rnn.parameters()))
    assert gradgradcheck(lambda x, hx: rnn(x, hx, seed=SEED), leaves)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_penalty(strategy, rates, dtype):
    """Gradients of the norm of the gradient of the input, against the layer by hand."""
    leaves = make_layer(dtype=dtype)
    copies = doubled(leaves)
    masks = [mask_over_time(SEED, 5, 3, 17, rates.get(kind + "_dropout", 0), kind=kind) for kind in ("hidden", "recurrent")]

    def penalty(leaves, outputs):
        loss = outputs[0].square().sum() + outputs[1].sum()
        grads = torch.autograd.grad(loss, [leaves["x"], leaves["w_hh"]], create_graph=True)
        norm = sum(g.square().sum() for g in grads)
        return dict(zip(leaves, torch.autograd.grad(norm, list(leaves.values())), strict=True))

    actual = penalty(leaves, layer(strategy, leaves, **rates)(*leaves.values()))
    expected = penalty(copies, layer_by_hand(*copies.values(), hidden=masks[0], recurrent=masks[1]))
    assert_near(actual, expected)


def test_the_graph_can_be_kept_and_is_freed():
    leaves = make_layer()
    output, _ = layer("auto", leaves, **RATES[2])(*leaves.values())
    first = torch.autograd.grad(output.sum(), leaves["x"], retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(output.sum(), leaves["x"])[0], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output.sum(), leaves["x"])


# The operators that the compiler sees.


def options_of(batch_sizes=None, nonlinearity="tanh", hidden=0.3, recurrent=0.4, scope="step", layer=0, direction=0):
    return batch_sizes, nonlinearity, hidden, recurrent, scope, layer, direction, "torch"


@pytest.mark.parametrize(
    "options",
    [dict(), dict(hidden=0.0), dict(recurrent=0.0), dict(scope="sequence", direction=1), dict(nonlinearity="relu"),
     dict(batch_sizes=[3, 2]), dict(batch_sizes=[3, 2], scope="sequence", direction=1)],
    ids=str,
)  # fmt: skip
def test_opcheck_of_the_layer(options):
    leaves = make_layer(2, 3, 2, 5, dtype=torch.float32, kink=options.get("nonlinearity") != "relu")
    if "batch_sizes" in options:
        leaves["x"] = torch.randn(5, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.rnndrop.layer.default, (*leaves.values(), torch.tensor([3]), *options_of(**options)))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "identity"])
def test_opcheck_of_dropout(nonlinearity):
    x = torch.randn(4, 33, requires_grad=True)
    arguments = (x, torch.tensor([3]), nonlinearity, 0.4, site("hidden"), "torch")
    torch.library.opcheck(torch.ops.rnndrop.dropout.default, arguments)
    y = torch.ops.rnndrop.dropout(*arguments)[0]
    assert (y[rnndrop.dropout_mask(3, 4, 33, 0.4) == 0] == 0).all()


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize(
    "options",
    [dict(hidden_dropout=0.3), dict(RATES[2], mask_scope="sequence"),
     dict(RATES[2], num_layers=2, dropout=0.2, bidirectional=True), dict(num_layers=2, dropout=0.2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("seed", [3, None])
def test_compile_of_a_module(options, seed):
    """In one graph, forward and backward are what they are in eager mode, seeds that are drawn among them."""
    rnn = rnndrop.RNN(4, 17, **options)
    x = torch.randn(5, 3, 4, requires_grad=True)

    def step(run):
        torch.manual_seed(5)
        output, h_n = run(x, seed=seed)
        loss = output.square().sum() + h_n.sum()
        return [output, h_n, *torch.autograd.grad(loss, [x, *rnn.parameters()])]

    assert all(map(torch.allclose, step(compiled(rnn)), step(rnn)))
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(step(compiled(rnn))[:2], step(rnn)[:2], strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_compile_of_the_rest(training):
    cell = rnndrop.RNNCell(4, 17, hidden_dropout=0.3, recurrent_dropout=0.4).train(training)
    x = torch.randn(3, 4, requires_grad=True)
    for function in (lambda x: cell(x, seed=3), lambda x: functional.tanh_dropout(x, 0.3, training, seed=3)):
        expected, actual = function(x), compiled(function)(x)
        assert torch.allclose(actual, expected) and torch.equal(actual == 0, expected == 0)
        pair = [torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)]
        assert torch.allclose(*pair)


def test_compile_once_for_every_length_and_batch():
    rnn = rnndrop.RNN(4, 17, hidden_dropout=0.3)
    run = compiled(rnn, dynamic=True)
    for shape in [(5, 3, 4), (7, 3, 4), (9, 6, 4)]:
        x = torch.randn(shape)
        assert torch.allclose(run(x, seed=3)[0], rnn(x, seed=3)[0])
