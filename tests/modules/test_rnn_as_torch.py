"""RNN as a module of torch.nn: without dropout it is nn.RNN bit for bit, and it has its parameters, names and options."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnndrop
from rnndrop import RNN
from tests import oracle
from tests.helpers import (
    BATCH,
    BOTH,
    COLUMNS,
    INPUTS,
    STEPS,
    assert_near,
    doubled,
    draws_nothing,
    gradients,
    inputs_of,
    make_rnn,
)

INSIDE = BOTH
EVERYWHERE = dict(num_layers=2, dropout=0.25, bidirectional=True, **INSIDE)


def like_torch(rnn, x, hx=None):
    """Outputs and gradients are those of nn.RNN, and nothing is drawn."""
    theirs = rnn.to_torch()
    outputs, expected = draws_nothing(lambda: rnn(x, hx)), theirs(x, hx)
    for mine, exact in zip(outputs, expected, strict=True):
        mine, exact = (y.data if isinstance(y, PackedSequence) else y for y in (mine, exact))
        assert torch.equal(mine, exact) and mine.dtype == exact.dtype and mine.stride() == exact.stride()
    if torch.is_grad_enabled():
        data = [outputs[0].data if isinstance(outputs[0], PackedSequence) else outputs[0], outputs[1]]
        exact = [expected[0].data if isinstance(expected[0], PackedSequence) else expected[0], expected[1]]
        names = [name for name, p in theirs.named_parameters() if p.requires_grad]
        mine, other = (
            gradients(y, {name: getattr(module, name) for name in names}) for y, module in ((data, rnn), (exact, theirs))
        )
        assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("mode", ["evaluation", "training without dropout"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_dropout_it_is_torch(mode, nonlinearity, num_layers, bidirectional):
    rates = dict(dropout=0.25, **INSIDE) if mode == "evaluation" else {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rnn = make_rnn(nonlinearity=nonlinearity, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype, **rates)
        rnn.train(mode != "evaluation")
        x, hx = inputs_of(rnn)
        like_torch(rnn, x, hx)
        like_torch(rnn, x)
        like_torch(rnn, x[:, 0], hx[:, 0])
        like_torch(rnn, pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False), hx)
        with torch.no_grad():
            like_torch(rnn, x, hx)


def test_one_layer_with_dropout_between_layers_drops_nothing():
    like_torch(*(lambda rnn: (rnn, inputs_of(rnn)[0]))(make_rnn(dropout=0.5)))


def test_changing_a_rate_and_back():
    """The attributes are public: a schedule may change them."""
    rnn = make_rnn(**INSIDE)
    x, _ = inputs_of(rnn)
    before = rnn(x, seed=1)[0]
    rnn.hidden_dropout = rnn.recurrent_dropout = 0.0
    like_torch(rnn, x)
    rnn.hidden_dropout, rnn.recurrent_dropout = INSIDE.values()
    assert torch.equal(rnn(x, seed=1)[0], before)
    rnn.mask_scope = "sequence"
    assert not torch.equal(rnn(x, seed=1)[0], before)


def test_evaluation_and_back():
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    before = rnn(x, hx, seed=1)[0]
    assert not torch.equal(rnn.eval()(x, hx, seed=1)[0], before)
    assert torch.equal(rnn.train()(x, hx, seed=1)[0], before)


@pytest.mark.parametrize("rates", [dict(), INSIDE], ids=["none", "inside"])
def test_a_bad_seed_is_refused_where_it_would_be_ignored(rates):
    rnn = make_rnn(**rates).eval()
    x, hx = inputs_of(rnn)
    for seed, error in [(1.5, TypeError), ("1", TypeError), (True, TypeError), (torch.tensor([1, 2]), ValueError)]:
        with pytest.raises(error, match=r"^seed should be"):
            draws_nothing(lambda seed=seed: rnn(x, hx, seed=seed))
    assert torch.equal(draws_nothing(lambda: rnn(x, hx, seed=1))[0], rnn(x, hx)[0])


def test_dropout_alone_takes_the_masks_between_layers():
    rnn = make_rnn(num_layers=3, dropout=0.5)
    x, hx = inputs_of(rnn)
    layers = [nn.RNN(size, COLUMNS, dtype=torch.float64) for size in (INPUTS, COLUMNS, COLUMNS)]
    y, states = x, []
    for number, layer in enumerate(layers):
        layer.load_state_dict({name: getattr(rnn, name[:-1] + str(number)) for name in layer.state_dict()})
        y, h_n = layer(y, hx[number : number + 1])
        states.append(h_n)
        if number < 2:
            mask = rnndrop.dropout_mask(3, STEPS * BATCH, COLUMNS, 0.5, kind="between", layer=number)
            y = y * mask.view(y.shape).double()
    output, h_n = rnn(x, hx, seed=3)
    assert_near(output, y)
    assert_near(h_n, torch.cat(states))


CONFIGURATIONS = [
    dict(),
    dict(nonlinearity="relu"),
    dict(bias=False),
    dict(bidirectional=True),
    dict(num_layers=3, bidirectional=True),
    dict(num_layers=2, dropout=0.5, batch_first=True),
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_parameters_and_state_dict_are_those_of_torch(options):
    torch.manual_seed(5)
    mine = RNN(3, 6, **options, hidden_dropout=0.1)
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    theirs = nn.RNN(3, 6, **options)
    assert torch.equal(torch.get_rng_state(), drawn)
    for a, b in [
        (mine.named_parameters(), theirs.named_parameters()),
        (mine.state_dict().items(), theirs.state_dict().items()),
    ]:
        a, b = list(a), list(b)
        assert [name for name, _ in a] == [name for name, _ in b]
        assert all(torch.equal(p, q) for (_, p), (_, q) in zip(a, b, strict=True))
    other = RNN(3, 6, **options)
    assert str(other.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert str(nn.RNN(3, 6, **options).load_state_dict(mine.state_dict())) == "<All keys matched successfully>"
    assert [[name.shape for name in names] for names in mine.all_weights] == [
        [w.shape for w in ws] for ws in theirs.all_weights
    ]
    assert repr(make_rnn(input_size=3, hidden_size=6, dtype=None, **options)) == repr(theirs)


def test_positional_arguments_are_those_of_torch():
    arguments = (3, 5, 2, "relu", False, True, 0.5, True)
    mine, theirs = RNN(*arguments, "cpu", torch.float64), nn.RNN(*arguments)
    names = ["input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional"]
    assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]
    assert mine.weight_ih_l0.dtype == torch.float64
    with pytest.raises(TypeError):
        RNN(*arguments, "cpu", torch.float64, 0.5)  # the dropouts are given by name


def test_repr():
    rnn = RNN(3, 5, 2, dropout=0.1, hidden_dropout=0.2, recurrent_dropout=0.3, mask_scope="sequence")
    assert repr(rnn) == "RNN(3, 5, num_layers=2, dropout=0.1, hidden_dropout=0.2, recurrent_dropout=0.3, mask_scope=sequence)"


def test_the_warning_of_torch():
    """Of dropout in a single layer, where the module is made; in several layers, and by from_torch, there is none."""
    with pytest.warns(UserWarning) as mine:
        RNN(3, 5, dropout=0.5)
    with pytest.warns(UserWarning) as theirs:
        nn.RNN(3, 5, dropout=0.5)
    assert str(mine[0].message) == str(theirs[0].message) and mine[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RNN(3, 5, 2, dropout=0.5, hidden_dropout=0.5)
        RNN(3, 5, hidden_dropout=0.5, recurrent_dropout=0.5)


def test_it_is_no_torch_rnn():
    assert not isinstance(RNN(3, 5), nn.RNNBase)  # torch.compile refuses those


def test_the_nonlinearity_may_change():
    """It is the mode, under the name that nn.RNN's argument has."""
    rnn = make_rnn(**INSIDE)
    assert (rnn.mode, rnn.nonlinearity) == ("RNN_TANH", "tanh")
    x, hx = inputs_of(rnn)
    rnn.nonlinearity = "relu"
    assert (rnn.mode, rnn.nonlinearity) == ("RNN_RELU", "relu")
    other = make_rnn(nonlinearity="relu", **INSIDE)
    other.load_state_dict(rnn.state_dict())
    assert torch.equal(rnn(x, hx, seed=1)[0], other(x, hx, seed=1)[0])
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'sigmoid'. Select from 'tanh' or 'relu'"):
        rnn.nonlinearity = "sigmoid"
    assert rnn.mode == "RNN_RELU"


def test_device_and_dtype():
    rnn = RNN(3, 5, 2, device="meta", dtype=torch.float16, hidden_dropout=0.5)
    assert {(p.device.type, p.dtype) for p in rnn.parameters()} == {("meta", torch.float16)}
    real = rnn.to_empty(device="cpu")
    assert real is rnn and all(p.device.type == "cpu" for p in real.parameters())
    real.reset_parameters()
    assert all(p.abs().max() <= 5**-0.5 for p in real.double().parameters())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert real(x, seed=1)[0].dtype == torch.float64
    like_torch(real.eval(), x)


def test_shared_and_replaced_parameters():
    rnn = make_rnn(num_layers=2, input_size=COLUMNS, hidden_dropout=0.3)
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    assert len(list(rnn.parameters())) == 7
    x, hx = (v.requires_grad_() for v in inputs_of(rnn))
    parameters = dict(rnn.named_parameters())
    copies = doubled({"x": x, "hx": hx, **parameters})
    by_hand = {name: copies[name] for name in parameters} | {"weight_hh_l1": copies["weight_hh_l0"]}
    expected = oracle.network(rnn, copies["x"], copies["hx"], 1, parameters=by_hand)
    assert_near(gradients(rnn(x, hx, seed=1), {"x": x, "hx": hx, **parameters}), gradients(expected, copies))
    rnn.weight_ih_l0 = nn.Parameter(torch.zeros_like(rnn.weight_ih_l0))
    with torch.no_grad():
        like_torch(rnn.eval(), x)


@pytest.mark.parametrize("training", [True, False])
def test_functional_call(training):
    rnn = make_rnn(**EVERYWHERE).train(training)
    x, hx = inputs_of(rnn)
    zeros = {name: torch.zeros_like(p) for name, p in rnn.named_parameters()}
    output, h_n = torch.func.functional_call(rnn, zeros, (x, hx), {"seed": 1})
    assert (output == 0).all() and (h_n == 0).all()
    assert (rnn(x, hx, seed=1)[0] != 0).any()


@pytest.mark.parametrize("training", [True, False])
def test_weight_norm_on_a_weight(training):
    plain = make_rnn(hidden_dropout=0.3)
    rnn = parametrizations.weight_norm(copy.deepcopy(plain), "weight_hh_l0")
    rnn.train(training), plain.train(training)
    x, hx = inputs_of(rnn)
    assert_near(rnn(x, hx, seed=1)[0], plain(x, hx, seed=1)[0])
    rnn(x, hx, seed=1)[0].sum().backward()
    assert all(p.grad is not None for p in rnn.parameters())
    with torch.no_grad():
        rnn.parametrizations.weight_hh_l0.original0.zero_()
        plain.weight_hh_l0.zero_()
    assert_near(rnn(x, hx, seed=1)[0], plain(x, hx, seed=1)[0])
