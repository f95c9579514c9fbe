"""To and from torch.nn, and copies of a module."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from rnndrop import RNN, RNNCell, functional
from tests.helpers import BATCH, BOTH, COLUMNS, EVERY_KIND, INPUTS, STEPS, inputs_of, make_rnn
from tests.modules.test_rnn_as_torch import CONFIGURATIONS, like_torch

INSIDE = BOTH
EVERYWHERE = dict(num_layers=2, bidirectional=True, mask_scope={"input": "sequence"}, **EVERY_KIND)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_from_torch_and_to_torch(options):
    theirs = nn.RNN(INPUTS, COLUMNS, **options, dtype=torch.float64).eval()
    theirs.weight_hh_l0.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = RNN.from_torch(theirs, hidden_dropout=0.2, mask_scope="sequence")
    assert not mine.training and (mine.hidden_dropout, mine.recurrent_dropout, mine.mask_scope) == (0.2, 0.0, "sequence")
    back = mine.to_torch()
    assert type(back) is nn.RNN and repr(back) == repr(theirs) and not back.training
    for name, p in theirs.named_parameters():
        for other in (mine, back):
            q = other.get_parameter(name)
            assert torch.equal(p, q) and p.requires_grad == q.requires_grad and p.dtype == q.dtype
            assert p.data_ptr() != q.data_ptr()
    assert RNN.from_torch(theirs).dropout == theirs.dropout and RNN.from_torch(theirs, dropout=0.125).dropout == 0.125
    like_torch(mine, torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64))


MAPPING = {"input": "sequence", "output": "step"}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_each_dropout_is_an_argument_of_from_torch(name):
    """No other is on, and torch.nn has none of them but its own."""
    theirs = nn.RNN(INPUTS, COLUMNS, 2)
    mine = RNN.from_torch(theirs, **{name: 0.25}, mask_scope=MAPPING)
    assert [other for other in EVERY_KIND if getattr(mine, other)] == [name] and getattr(mine, name) == 0.25
    assert mine.mask_scope == MAPPING
    assert repr(mine.to_torch()) == repr(nn.RNN(INPUTS, COLUMNS, 2, dropout=0.25 if name == "dropout" else 0.0))
    for wrong, error in ((1.5, ValueError), (None, ValueError)):
        with pytest.raises(error, match=f"^{name} should be a number"):
            RNN.from_torch(theirs, **{name: wrong})
    if name in ("hidden_dropout", "recurrent_dropout", "zoneout"):
        cell = RNNCell.from_torch(nn.RNNCell(3, 5), **{name: 0.25})
        assert getattr(cell, name) == 0.25 and repr(cell.to_torch()) == "RNNCell(3, 5)"


def test_repr():
    """What is not as by default, in one order."""
    assert repr(RNN(3, 5)) == "RNN(3, 5)"
    rnn = RNN(3, 5, 2, mask_scope=MAPPING, **dict(reversed(EVERY_KIND.items())))
    assert repr(rnn) == (
        "RNN(3, 5, num_layers=2, dropout=0.25, input_dropout=0.2, hidden_dropout=0.3, recurrent_dropout=0.4, "
        "output_dropout=0.35, weight_dropout=0.45, zoneout=0.15, mask_scope={'input': 'sequence', 'output': 'step'})"
    )
    rnn.mask_scope, rnn.dropout, rnn.zoneout, rnn.input_dropout = "step", 0, 0.0, 1
    assert repr(rnn) == (
        "RNN(3, 5, num_layers=2, input_dropout=1.0, hidden_dropout=0.3, recurrent_dropout=0.4, output_dropout=0.35, "
        "weight_dropout=0.45)"
    )
    assert eval(repr(rnn), {"RNN": RNN}).extra_repr() == rnn.extra_repr()


@pytest.mark.parametrize("name", ["cell_dropout", "hidden_drop", "p", "scope"])
def test_arguments_that_do_not_exist(name):
    words = rf"^RNN\.__init__\(\) got an unexpected keyword argument '{name}'$"
    for make in (lambda **options: RNN(3, 5, **options), lambda **options: RNN.from_torch(nn.RNN(3, 5), **options)):
        with pytest.raises(TypeError, match=words):
            make(**{name: 0.5})
    with pytest.raises(TypeError, match=rf"^rnn_layer\(\) got an unexpected keyword argument '{name}'$"):
        functional.rnn_layer(*[torch.zeros(1)] * 4, **{name: 0.5})


def test_the_dropouts_are_given_by_name():
    with pytest.raises(TypeError):
        RNN(3, 5, 1, "tanh", True, False, 0.0, False, None, None, 0.5)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'dropout'"):
        functional.rnn_layer(*[torch.zeros(1)] * 4, dropout=0.5)  # between layers, of which it has one


def test_from_torch_repeats_no_warning():
    """Of dropout in a single layer the original has warned."""
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        theirs = nn.RNN(3, 5, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RNN.from_torch(theirs).to_torch().dropout == 0.5


@pytest.mark.parametrize("wrong", [nn.LSTM(3, 5), nn.RNNCell(3, 5), None])
def test_from_torch_of_something_else(wrong):
    with pytest.raises(TypeError, match=f"module should be a torch.nn.RNN, got {type(wrong).__name__}"):
        RNN.from_torch(wrong)
    with pytest.raises(TypeError):
        RNN.from_torch(nn.RNN(3, 5), cell_dropout=0.5)


@pytest.mark.parametrize("options", [dict(), dict(bias=False), dict(nonlinearity="relu")], ids=str)
def test_cells(options):
    theirs = nn.RNNCell(3, 5, **options, dtype=torch.float64).eval()
    theirs.weight_hh.requires_grad_(False)
    mine = RNNCell.from_torch(theirs, hidden_dropout=0.25)
    assert (mine.hidden_dropout, mine.recurrent_dropout, mine.training) == (0.25, 0.0, False)
    back = mine.to_torch()
    assert type(back) is nn.RNNCell and repr(back) == repr(theirs) and not back.training
    for name, p in theirs.named_parameters():
        for other in (mine, back):
            q = other.get_parameter(name)
            assert torch.equal(p, q) and p.requires_grad == q.requires_grad and p.dtype == q.dtype
            assert p.data_ptr() != q.data_ptr()
    for wrong in (nn.RNN(3, 5), nn.LSTMCell(3, 5), None):
        with pytest.raises(TypeError, match=f"module should be a torch.nn.RNNCell, got {type(wrong).__name__}"):
            RNNCell.from_torch(wrong)
    with pytest.raises(TypeError):
        RNNCell.from_torch(theirs, dropout=0.5)


def saved_and_loaded(module, **options):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
    "torch.save, whole": lambda module: saved_and_loaded(module, weights_only=False),
}


@pytest.mark.parametrize("through", COPIES.values(), ids=COPIES)
def test_copies(through):
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    twin = through(rnn)
    assert repr(twin) == repr(rnn)
    assert torch.equal(twin(x, hx, seed=1)[0], rnn(x, hx, seed=1)[0])
    twin.eval(), rnn.eval()
    assert torch.equal(twin(x, hx)[0], rnn(x, hx)[0])
    if through is not copy.copy:
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert not torch.equal(twin(x, hx)[0], rnn(x, hx)[0])


@pytest.mark.parametrize("through", COPIES.values(), ids=COPIES)
def test_copies_of_a_cell(through):
    cell = RNNCell(4, 17, zoneout=0.2, **INSIDE)
    x = torch.randn(3, 4)
    assert repr(through(cell)) == repr(cell)
    assert torch.equal(through(cell)(x, seed=1), cell(x, seed=1))
