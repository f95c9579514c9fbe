"""oneDNN's LSTM layer as an operator: PyTorch's own outputs and gradients, run once forward and once back."""

import itertools

import pytest
import torch
from torch import nn

import rnndrop
from rnndrop.ops import onednn_lstm
from tests.helpers import assert_equal, gradients
from tests.ops.test_compile import Backend

OPTIONS = list(itertools.product([True, False], [1, 2], [False, True]))


def case(bias=True, layers=1, both=False, **options):
    theirs = nn.LSTM(4, 7, layers, bias, bidirectional=both, **options)
    states = [torch.randn(layers * (1 + both), 3, 7, requires_grad=True) for _ in "hc"]
    return theirs, torch.randn(5, 3, 4, requires_grad=True), states


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("bias, layers, both", OPTIONS)
def test_it_is_torchs_layer(bias, layers, both):
    theirs, x, states = case(bias, layers, both)
    leaves = {"x": x, "h": states[0], "c": states[1], **dict(theirs.named_parameters())}
    output, ends = onednn_lstm.layers(x, states, theirs._flat_weights, bias, layers, both)
    expected, last = theirs(x, tuple(states))
    assert_equal((output, *ends), (expected, *last))
    assert_equal(gradients((output, *ends), leaves), gradients((expected, *last), leaves))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_gradients_of_one_result_alone(used):
    theirs, x, states = case()
    output, ends = onednn_lstm.layers(x, states, theirs._flat_weights, True, 1, False)
    expected, last = theirs(x, tuple(states))
    pair = ((output, *ends)[used], (expected, *last)[used])
    leaves = [x, *states, *theirs.parameters()]
    assert_equal(*(torch.autograd.grad(y.square().sum(), leaves) for y in pair))


def test_tensors_of_any_layout():
    theirs, _, states = case()
    x = torch.randn(3, 4, 5).permute(2, 0, 1).requires_grad_()
    weights = [w.detach().t().clone().t().requires_grad_() for w in theirs.parameters()]
    turned = [state.detach().transpose(1, 2).clone().transpose(1, 2).requires_grad_() for state in states]
    named = dict(zip(dict(theirs.named_parameters()), weights, strict=True))
    output, _ = onednn_lstm.layers(x, turned, weights, True, 1, False)
    expected, _ = torch.func.functional_call(theirs, named, (x, tuple(turned)))
    leaves = [x, *turned, *weights]
    for loss in (lambda y: y.transpose(0, 2).sin().sum(), torch.sum):  # the gradient of a sum is one number in memory
        assert_equal(*([y, *torch.autograd.grad(loss(y), leaves, retain_graph=True)] for y in (output, expected)))


def test_operator():
    theirs, x, states = case()
    arguments = x, *theirs._flat_weights, *(state[0] for state in states), True
    torch.library.opcheck(
        torch.ops.rnndrop.onednn_lstm.default, arguments, test_utils=("test_schema", "test_autograd_registration")
    )


@pytest.mark.parametrize(
    "options", [{}, dict(weight_dropout=0.5), dict(num_layers=2, bidirectional=True, input_dropout=0.5)], ids=str
)
def test_a_compiled_training_step_takes_it(options):
    module, backend = rnndrop.LSTM(4, 8, **options), Backend()
    x = torch.randn(5, 3, 4, requires_grad=True)
    run = torch.compile(module, fullgraph=True, backend=backend)
    found, expected = (torch.autograd.grad(each(x, seed=3)[0].sin().sum(), [x, *module.parameters()]) for each in (run, module))
    assert_equal(found, expected)
    (graph,) = backend.graphs
    count = module.num_layers * module.num_directions
    assert [name for name, _ in graph if "lstm" in name or "layer" in name] == ["rnndrop.onednn_lstm.default"] * count


@pytest.mark.parametrize(
    "options, batch, name",
    [(dict(proj_size=3), 3, "torch_layers"), (dict(dtype=torch.float64), 3, "layer"), ({}, 0, "layer")],
    ids=str,
)
def test_where_pytorchs_own_is_another(options, batch, name):
    module, backend = rnndrop.LSTM(4, 8, **options), Backend()
    x = torch.randn(5, batch, 4, dtype=options.get("dtype"))
    output, _ = torch.compile(module, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(output, module(x)[0])
    (graph,) = backend.graphs
    assert [each for each, _ in graph if "lstm" in each or "layer" in each] == [f"rnndrop.{name}.default"]


@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_trained_is_one_operator(training):
    """Evaluation, also where gradients could be asked for, and training without them."""
    module, backend = rnndrop.LSTM(4, 8, 2).train(training), Backend()
    with torch.set_grad_enabled(not training):
        torch.compile(module, fullgraph=True, backend=backend)(torch.randn(5, 3, 4))
    assert [name for name, _ in backend.graphs[0] if "rnndrop" in name] == ["rnndrop.torch_layers.default"]
