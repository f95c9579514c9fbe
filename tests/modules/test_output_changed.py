"""What is done in place to the output: by nn.Dropout(inplace=True), relu_ and others."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnndrop
from tests.helpers import GATED, OUTSIDE, assert_equal, inputs_of, inside, make_rnn
from tests.modules.checks import flat

CHANGES = {"relu_": torch.relu_, "dropout": nn.Dropout(0.5, inplace=True), "mul_": lambda y: y.mul_(2)}
CURE = r"modified by an inplace operation[\s\S]*change a copy of it, output\.clone\(\)"


def run(module, change, *given, copied=False, **options):
    """The gradients of the parameters where a change was made in the first result, or in a copy of it."""
    module.zero_grad()
    output = flat(module(*given, seed=1, **options))[0]
    torch.manual_seed(3)
    change(output.clone() if copied else output).square().sum().backward()
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", ["RNN", *GATED])
def test_the_error_names_the_cure(cell, num_layers, change):
    """And the cure works, in eager mode and in a second derivative."""
    rnn = make_rnn(cell, num_layers=num_layers, **inside(cell))
    x, hx = inputs_of(rnn)
    with pytest.raises(RuntimeError, match=CURE):
        run(rnn, change, x, hx)
    expected = run(rnn, lambda y: y * 2, x, hx)
    assert_equal(run(rnn, CHANGES["mul_"], x, hx, copied=True), expected)
    x.requires_grad_()
    output = flat(rnn(x, hx, seed=1))[0]
    change(output)
    with pytest.raises(RuntimeError, match=CURE):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.parametrize("options", [dict(bidirectional=True), dict(output_dropout=0.5)], ids=str)
@pytest.mark.parametrize("cell", ["RNN", *GATED])
def test_where_the_output_is_not_what_was_kept(cell, options):
    rnn = make_rnn(cell, num_layers=2, **inside(cell), **options)
    x, hx = inputs_of(rnn)
    assert_equal(run(rnn, CHANGES["mul_"], x, hx), run(rnn, lambda y: y * 2, x, hx))


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
@pytest.mark.parametrize("rates", [{}, OUTSIDE], ids=["none", "outside"])
def test_where_torchs_layers_run(cell, rates):
    """Of which the LSTM alone keeps its output on the CPU."""
    rnn = make_rnn(cell, num_layers=2, **rates)
    x, hx = inputs_of(rnn)
    assert_equal(run(rnn, CHANGES["mul_"], x, hx), run(rnn, lambda y: y * 2, x, hx))


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("rates", [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4, zoneout=0.2)], ids=str)
def test_cells(cell, rates):
    """Keep nothing that they return, but an nn.RNNCell's tanh where nothing comes after it."""
    module = getattr(rnndrop, cell)(4, 17, **rates)
    x = torch.randn(3, 4)
    assert_equal(run(module, CHANGES["mul_"], x), run(module, lambda y: y * 2, x))


def test_a_packed_output():
    rnn = make_rnn(hidden_dropout=0.3)
    packed = pack_sequence([torch.randn(n, 4, dtype=torch.float64) for n in (5, 3)])
    output = rnn(packed)[0]
    assert isinstance(output, PackedSequence)
    with pytest.raises(RuntimeError, match=CURE):
        output.data.relu_().sum().backward()


def test_other_errors_are_left_as_they_are():
    rnn = make_rnn(hidden_dropout=0.3)
    output = rnn(inputs_of(rnn)[0])[0]
    output.sum().backward()
    with pytest.raises(RuntimeError, match="a second time") as error:
        output.sum().backward()
    assert "clone" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
def test_a_compiled_change():
    """Of an output inside of the graph."""
    rnn = make_rnn(hidden_dropout=0.3)
    compiled = torch.compile(lambda x: torch.relu_(rnn(x, seed=1)[0]).sum(), backend="aot_eager")
    with pytest.raises(RuntimeError, match=CURE):
        compiled(inputs_of(rnn)[0])
