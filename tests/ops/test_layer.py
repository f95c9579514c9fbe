"""The operator of a layer: its derivatives of any order, and what autograd keeps."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import rnndrop
from rnndrop import functional
from rnndrop.cell import CELLS
from rnndrop.kinds import KINDS, ZONEOUTS
from rnndrop.mask import scale
from tests import oracle
from tests.helpers import (
    BOTH,
    GATED,
    RATES,
    STRATEGIES,
    assert_equal,
    assert_near,
    doubled,
    gradients,
    inputs_of,
    inside,
    keep,
    make_layer,
    make_rnn,
)

SEED = 3
PACKED = dict(batch_sizes=[3, 2, 1, 1])


def layer(strategy, leaves, **options):
    """rnn_layer as a function of its leaves."""
    return lambda *values: functional.rnn_layer(
        **dict(zip(leaves, values, strict=True)), seed=SEED, strategy=strategy, **options
    )


def packed_layer(**options):
    leaves = make_layer(4, 3, 2, 3, **options)
    return leaves | {"input": torch.randn(7, 2, dtype=leaves["input"].dtype, requires_grad=True)}


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
    leaves = packed_layer()
    run = layer(strategy, leaves, direction=direction, **PACKED, **BOTH)
    assert gradcheck(run, tuple(leaves.values()))
    assert gradgradcheck(run, tuple(leaves.values()))


def test_gradcheck_of_a_module():
    rnn = rnndrop.RNN(2, 3, 2, bidirectional=True, dropout=0.3, dtype=torch.float64, **BOTH)
    leaves = [torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    run = lambda x, hx, *_: rnn(x, hx, seed=SEED)  # noqa: E731
    assert gradcheck(run, (*leaves, *rnn.parameters()))
    assert gradgradcheck(lambda x, hx: rnn(x, hx, seed=SEED), leaves)


# gradgradcheck compares a gradient with itself. That the gradient to be differentiated again is the plain one is shown here.


def same_with_a_graph(outputs, leaves):
    """The gradients are the same to the last bit with create_graph=True, which the layers answer by other code."""
    plain = gradients(outputs, leaves, retain_graph=True)
    twice = gradients(outputs, leaves, create_graph=True)
    assert all(g.requires_grad for g in twice.values())
    assert_equal({name: g.detach() for name, g in twice.items()}, plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_under_create_graph_is_the_plain_one(strategy, rates, dtype):
    for activation, scope, direction in [("tanh", "step", 0), ("tanh", "sequence", 1), ("relu", "step", 1)]:
        options = dict(nonlinearity=activation, mask_scope=scope, direction=direction)
        leaves = make_layer(dtype=dtype)
        same_with_a_graph(layer(strategy, leaves, **rates, **options)(*leaves.values()), leaves)
        leaves = packed_layer(dtype=dtype)
        same_with_a_graph(layer(strategy, leaves, **PACKED, **rates, **options)(*leaves.values()), leaves)


@pytest.mark.parametrize("options", [BOTH, dict(BOTH, num_layers=2, dropout=0.25, bidirectional=True)], ids=["one", "many"])
def test_the_gradient_of_a_module_under_create_graph_is_the_plain_one(options):
    rnn = make_rnn(**options)
    leaves = dict(zip(("x", "hx"), (v.requires_grad_() for v in inputs_of(rnn)), strict=True)) | dict(rnn.named_parameters())
    same_with_a_graph(rnn(leaves["x"], leaves["hx"], seed=SEED), leaves)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_penalty(strategy, rates, dtype):
    """Gradients of the norm of the gradient of the input, against the oracle."""
    leaves = make_layer(dtype=dtype)
    copies = doubled(leaves)

    def penalty(leaves, outputs):
        loss = outputs[0].square().sum() + outputs[1].sum()
        grads = torch.autograd.grad(loss, [leaves["input"], leaves["w_hh"]], create_graph=True)
        norm = sum(g.square().sum() for g in grads)
        return dict(zip(leaves, torch.autograd.grad(norm, list(leaves.values())), strict=True))

    actual = penalty(leaves, layer(strategy, leaves, **rates)(*leaves.values()))
    assert_near(actual, penalty(copies, oracle.layer(*copies.values(), seed=SEED, **rates)))


@pytest.mark.parametrize("asked", ["input", "h_0", "w_ih", "w_hh", "b_ih", "b_hh"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_gradient_alone_is_that_of_all(strategy, asked):
    leaves = make_layer()
    run = layer(strategy, leaves, **BOTH)
    expected = gradients(run(*leaves.values()), leaves)[f"grad {asked}"]
    alone = {name: leaf if name == asked else leaf.detach() for name, leaf in leaves.items()}
    outputs = run(*alone.values())
    assert_equal(gradients(outputs, {asked: leaves[asked]}, retain_graph=True)[f"grad {asked}"], expected)
    again = gradients(outputs, {asked: leaves[asked]}, create_graph=True)[f"grad {asked}"]
    assert_equal(again.detach(), expected)
    again.square().sum().backward()
    assert leaves[asked].grad.isfinite().all()


def test_the_graph_can_be_kept_and_is_freed():
    leaves = make_layer()
    output, _ = layer("auto", leaves, **BOTH)(*leaves.values())
    first = torch.autograd.grad(output.sum(), leaves["input"], retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(output.sum(), leaves["input"])[0], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output.sum(), leaves["input"])


# The operators that the compiler sees.


def arguments(leaves, *, steps=2, batch=3, rates=BOTH, scope="step", reverse=False, cell="RNN_TANH", sizes=None):
    """Of rnndrop::layer."""
    of_cell = CELLS[cell]
    input, *others = leaves.values()
    states, weights = others[: len(of_cell.states)], others[len(of_cell.states) :]
    rows = (steps * batch if sizes is None else sum(sizes)) if scope == "step" else batch
    keeps, scales = [], []
    for kind in of_cell.kinds:
        p = rates.get(KINDS[kind].argument, 0.0)
        keeps.append(-keep(SEED, rows, states[0].shape[1], p, kind=kind).to(torch.int8) if p else None)
        scales.append(scale(p) if p and kind not in ZONEOUTS else 1.0)
    sizes = None if sizes is None else torch.tensor(sizes)
    return input, states, *weights, keeps, scales, steps, batch, sizes, reverse, cell, "cpu"


GATED_OPTIONS = {
    cell: [dict(rates=inside(cell)), dict(rates={}, reverse=True), dict(sizes=[3, 2], rates=inside(cell))] for cell in GATED
}


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(rates=RATES[1]),
        dict(rates=RATES[0]),
        dict(rates={}),
        dict(scope="sequence", reverse=True),
        dict(cell="RNN_RELU"),
        *[dict(cell=cell, **options) for cell in GATED for options in GATED_OPTIONS[cell]],
        dict(sizes=[3, 2]),
        dict(sizes=[3, 2], scope="sequence", reverse=True),
    ],
    ids=str,
)
def test_opcheck(options):
    cell = options.get("cell", "RNN_TANH")
    leaves = make_layer(2, 3, 2, 5, cell=CELLS[cell].name, dtype=torch.float32, kink=cell != "RNN_RELU")
    if "sizes" in options:
        leaves["input"] = torch.randn(5, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.rnndrop.layer.default, arguments(leaves, **options))


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_the_operator_is_the_layer(rates):
    """What the compiler calls gives what eager mode gives, its gradients too, to the last bit."""
    leaves = make_layer(2, 3, 2, 5)
    outputs = layer("cpu", leaves, **rates)(*leaves.values())
    output, states, _ = torch.ops.rnndrop.layer(*arguments(leaves, rates=rates))
    assert_equal([output, states[0]], list(outputs))
    assert_equal(gradients([output, states[0]], leaves), gradients(outputs, leaves))
