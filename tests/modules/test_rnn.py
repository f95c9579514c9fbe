import copy
import io
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnndrop
from rnndrop import RNN
from tests.helpers import assert_near, doubled, error_of, gradients, network_by_hand, quiet

STEPS, BATCH, INPUTS, COLUMNS = 5, 3, 4, 17
INSIDE = dict(hidden_dropout=0.3, recurrent_dropout=0.4)
EVERYWHERE = dict(num_layers=2, dropout=0.25, bidirectional=True, **INSIDE)


def make(**options):
    return quiet(RNN, **{"input_size": INPUTS, "hidden_size": COLUMNS, "dtype": torch.float64, **options})


def data(rnn, steps=STEPS, batch=BATCH):
    """x (T, B, I) and hx."""
    dtype, directions = rnn.weight_ih_l0.dtype, 2 if rnn.bidirectional else 1
    x = torch.randn(steps, batch, rnn.input_size, dtype=dtype)
    return x, torch.randn(rnn.num_layers * directions, batch, rnn.hidden_size, dtype=dtype)


def leaves_of(rnn, x, hx):
    return {"x": x.requires_grad_(), "hx": hx.requires_grad_(), **dict(rnn.named_parameters())}


def check(rnn, outputs, x, hx, seed, lengths=None):
    """Outputs and the gradients of x, hx and all parameters against the network by hand in float64."""
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)
    parameters = {name: copies[name] for name, _ in rnn.named_parameters()}
    expected = network_by_hand(rnn, copies["x"], copies["hx"], seed, lengths, parameters)
    for actual, exact in zip(outputs, expected, strict=True):
        assert_near(actual, exact)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("rates", [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), dict(dropout=0.25), INSIDE,
                                   dict(dropout=0.25, **INSIDE), dict(dropout=1.0), dict(hidden_dropout=1.0)],
                         ids=lambda rates: "+".join(rates))  # fmt: skip
def test_against_the_network_by_hand(mask_scope, bidirectional, num_layers, rates):
    for nonlinearity, bias in [("tanh", True), ("relu", True), ("tanh", False)]:
        rnn = make(num_layers=num_layers, bidirectional=bidirectional, mask_scope=mask_scope, nonlinearity=nonlinearity,
                   bias=bias, **rates)  # fmt: skip
        x, hx = (v.requires_grad_() for v in data(rnn))
        check(rnn, rnn(x, hx, seed=3), x, hx, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [None, [3, 5, 1]])
def test_dtypes(dtype, lengths):
    rnn = make(dtype=dtype, **EVERYWHERE)
    x, hx = (v.requires_grad_() for v in data(rnn))
    if lengths is None:
        return check(rnn, rnn(x, hx, seed=3), x, hx, 3)
    order = sorted(range(BATCH), key=lambda b: -lengths[b])
    output, h_n = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), hx, seed=3)
    found = torch.autograd.grad(output.data.float().sum() + h_n.float().sum(), [x, hx])
    copies = [v.detach().double().requires_grad_() for v in (x, hx)]
    expected = network_by_hand(
        rnn, copies[0][:, order], copies[1][:, order], 3, [lengths[b] for b in order],
        {name: p.detach().double() for name, p in rnn.named_parameters()},
    )  # fmt: skip
    inverse = [order.index(b) for b in range(BATCH)]
    assert_near(pad_packed_sequence(output)[0], expected[0][:, inverse])
    assert_near(h_n, expected[1][:, inverse])
    for actual, exact in zip(found, torch.autograd.grad(expected[0].sum() + expected[1].sum(), copies), strict=True):
        assert_near(actual, exact)


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 1], [4, 2, 2]])
@pytest.mark.parametrize("rates", [dict(dropout=0.25), INSIDE, dict(dropout=0.25, **INSIDE)], ids=lambda r: "+".join(r))
def test_packed(mask_scope, bidirectional, lengths, rates):
    rnn = make(num_layers=2, bidirectional=bidirectional, mask_scope=mask_scope, **rates)
    x, hx = (v.requires_grad_() for v in data(rnn, steps=lengths[0]))
    output, h_n = rnn(pack_padded_sequence(x, lengths), hx, seed=3)
    check(rnn, (pad_packed_sequence(output)[0], h_n), x, hx, 3, lengths)


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_in_any_order_is_what_it_is_in_order(with_hx, enforce_sorted):
    """Sorting by length, running and undoing the sort; what is packed comes back as nn.RNN gives it."""
    rnn, order = make(**EVERYWHERE), [1, 2, 0]
    x, hx = data(rnn)
    lengths = torch.tensor([5, 3, 2] if enforce_sorted else [2, 5, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    output, h_n = rnn(packed, hx if with_hx else None, seed=3)
    assert isinstance(output, PackedSequence)
    for mine, theirs in zip(output[1:], packed[1:], strict=True):
        assert mine is theirs
    order = list(range(3)) if enforce_sorted else order
    zeros = torch.zeros_like(hx)
    expected = rnn(pack_padded_sequence(x[:, order], lengths[order]), (hx if with_hx else zeros)[:, order], seed=3)
    assert torch.equal(output.data, expected[0].data)
    assert torch.equal(h_n[:, order], expected[1])


def test_full_length_packed_is_padded():
    rnn = make(**EVERYWHERE)
    x, hx = data(rnn)
    output, h_n = rnn(x, hx, seed=3)
    packed, packed_h_n = rnn(pack_padded_sequence(x, [STEPS] * BATCH), hx, seed=3)
    assert torch.equal(pad_packed_sequence(packed)[0], output) and torch.equal(packed_h_n, h_n)


@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_layouts_share_their_masks(scope):
    """batch_first, unbatched, strided and packed inputs, and every dtype: the same units are dropped."""
    rnn = make(bias=True, hidden_dropout=0.5, mask_scope=scope)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(3)  # nothing is 0 by itself
    x, _ = data(rnn)
    dropped = rnn(x, seed=3)[0] == 0
    rows = (STEPS if scope == "step" else 1) * BATCH
    assert torch.equal(dropped, (rnndrop.dropout_mask(3, rows, COLUMNS, 0.5) == 0).view(-1, BATCH, COLUMNS).expand_as(dropped))
    assert torch.equal(rnn(pack_padded_sequence(x, [STEPS] * BATCH), seed=3)[0].data.view(dropped.shape) == 0, dropped)
    strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous() and torch.equal(rnn(strided, seed=3)[0] == 0, dropped)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(copy.deepcopy(rnn).to(dtype)(x.to(dtype), seed=3)[0] == 0, dropped)
    rnn.batch_first = True
    assert torch.equal((rnn(x.transpose(0, 1), seed=3)[0] == 0).transpose(0, 1), dropped)


@pytest.mark.parametrize("rates", [dict(), EVERYWHERE], ids=["none", "everywhere"])
@pytest.mark.parametrize("training", [True, False])
def test_unbatched_and_batch_first(rates, training):
    rnn = make(**rates).train(training)
    first = copy.deepcopy(rnn)
    first.batch_first = True
    x, hx = data(rnn)
    output, h_n = rnn(x, hx, seed=3)
    transposed, same_h_n = first(x.transpose(0, 1), hx, seed=3)
    assert torch.equal(transposed.transpose(0, 1), output) and torch.equal(same_h_n, h_n)
    one = rnn(x[:, :1], hx[:, :1], seed=3)
    for module in (rnn, first):
        output, h_n = module(x[:, 0], hx[:, 0], seed=3)
        assert torch.equal(output, one[0][:, 0]) and torch.equal(h_n, one[1][:, 0])


# Without dropout it is nn.RNN, bit for bit.


def like_torch(rnn, x, hx=None):
    """Outputs and gradients are those of nn.RNN, and nothing is drawn."""
    theirs = rnn.to_torch()
    state = torch.get_rng_state()
    outputs, expected = rnn(x, hx), theirs(x, hx)
    assert torch.equal(torch.get_rng_state(), state)
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
        rnn = make(nonlinearity=nonlinearity, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype, **rates)
        rnn.train(mode != "evaluation")
        x, hx = data(rnn)
        like_torch(rnn, x, hx)
        like_torch(rnn, x)
        like_torch(rnn, x[:, 0], hx[:, 0])
        like_torch(rnn, pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False), hx)
        with torch.no_grad():
            like_torch(rnn, x, hx)


def test_one_layer_with_dropout_between_layers_drops_nothing():
    like_torch(*(lambda rnn: (rnn, data(rnn)[0]))(make(dropout=0.5)))


def test_changing_a_rate_and_back():
    """The attributes are public: a schedule may change them."""
    rnn = make(**INSIDE)
    x, _ = data(rnn)
    before = rnn(x, seed=1)[0]
    rnn.hidden_dropout = rnn.recurrent_dropout = 0.0
    like_torch(rnn, x)
    rnn.hidden_dropout, rnn.recurrent_dropout = INSIDE.values()
    assert torch.equal(rnn(x, seed=1)[0], before)
    rnn.mask_scope = "sequence"
    assert not torch.equal(rnn(x, seed=1)[0], before)


def test_evaluation_and_back():
    rnn = make(**EVERYWHERE)
    x, hx = data(rnn)
    before = rnn(x, hx, seed=1)[0]
    assert not torch.equal(rnn.eval()(x, hx, seed=1)[0], before)
    assert torch.equal(rnn.train()(x, hx, seed=1)[0], before)


def test_dropout_alone_takes_the_masks_between_layers():
    rnn = make(num_layers=3, dropout=0.5)
    x, hx = data(rnn)
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


# A module of torch.nn.

CONFIGURATIONS = [
    dict(), dict(nonlinearity="relu"), dict(bias=False), dict(bidirectional=True), dict(num_layers=3, bidirectional=True),
    dict(num_layers=2, dropout=0.5, batch_first=True),
]  # fmt: skip


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
    assert repr(quiet(RNN, 3, 6, **options)) == repr(theirs)


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
    with pytest.warns(UserWarning) as mine:
        RNN(3, 5, dropout=0.5)
    with pytest.warns(UserWarning) as theirs:
        nn.RNN(3, 5, dropout=0.5)
    assert str(mine[0].message) == str(theirs[0].message) and mine[0].filename == __file__


def test_it_is_no_torch_rnn():
    assert not isinstance(RNN(3, 5), nn.RNNBase)  # torch.compile refuses those


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


@pytest.mark.parametrize("wrong", [nn.LSTM(3, 5), nn.RNNCell(3, 5), None])
def test_from_torch_of_something_else(wrong):
    with pytest.raises(TypeError, match=f"rnn should be a torch.nn.RNN, got {type(wrong).__name__}"):
        RNN.from_torch(wrong)
    with pytest.raises(TypeError):
        RNN.from_torch(nn.RNN(3, 5), zoneout=0.5)


def saved_and_loaded(rnn):
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, copy.copy, lambda rnn: pickle.loads(pickle.dumps(rnn)), saved_and_loaded],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)  # fmt: skip
def test_copies(through):
    rnn = make(**EVERYWHERE)
    x, hx = data(rnn)
    twin = through(rnn)
    assert repr(twin) == repr(rnn)
    assert torch.equal(twin(x, hx, seed=1)[0], rnn(x, hx, seed=1)[0])
    twin.eval(), rnn.eval()
    assert torch.equal(twin(x, hx)[0], rnn(x, hx)[0])
    if through is not copy.copy:
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert not torch.equal(twin(x, hx)[0], rnn(x, hx)[0])


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
    rnn = make(num_layers=2, input_size=COLUMNS, hidden_dropout=0.3)
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    assert len(list(rnn.parameters())) == 7
    x, hx = (v.requires_grad_() for v in data(rnn))
    parameters = dict(rnn.named_parameters())
    copies = doubled({"x": x, "hx": hx, **parameters})
    by_hand = {name: copies[name] for name in parameters} | {"weight_hh_l1": copies["weight_hh_l0"]}
    expected = network_by_hand(rnn, copies["x"], copies["hx"], 1, parameters=by_hand)
    assert_near(gradients(rnn(x, hx, seed=1), {"x": x, "hx": hx, **parameters}), gradients(expected, copies))
    rnn.weight_ih_l0 = nn.Parameter(torch.zeros_like(rnn.weight_ih_l0))
    with torch.no_grad():
        like_torch(rnn.eval(), x)


@pytest.mark.parametrize("training", [True, False])
def test_functional_call(training):
    rnn = make(**EVERYWHERE).train(training)
    x, hx = data(rnn)
    zeros = {name: torch.zeros_like(p) for name, p in rnn.named_parameters()}
    output, h_n = torch.func.functional_call(rnn, zeros, (x, hx), {"seed": 1})
    assert (output == 0).all() and (h_n == 0).all()
    assert (rnn(x, hx, seed=1)[0] != 0).any()


@pytest.mark.parametrize("training", [True, False])
def test_weight_norm_on_a_weight(training):
    plain = make(hidden_dropout=0.3)
    rnn = parametrizations.weight_norm(copy.deepcopy(plain), "weight_hh_l0")
    rnn.train(training), plain.train(training)
    x, hx = data(rnn)
    assert_near(rnn(x, hx, seed=1)[0], plain(x, hx, seed=1)[0])
    rnn(x, hx, seed=1)[0].sum().backward()
    assert all(p.grad is not None for p in rnn.parameters())
    with torch.no_grad():
        rnn.parametrizations.weight_hh_l0.original0.zero_()
        plain.weight_hh_l0.zero_()
    assert_near(rnn(x, hx, seed=1)[0], plain(x, hx, seed=1)[0])


@pytest.mark.parametrize("frozen", [["weight_hh_l0"], ["weight_ih_l0", "bias_ih_l0"], ["bias_hh_l0"], ["x"], ["hx"],
                                    ["x", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]], ids=str)  # fmt: skip
def test_frozen_leaves(frozen):
    """The gradients of the others are what they were; the frozen have none."""
    rnn = make(**INSIDE)
    x, hx = (v.requires_grad_() for v in data(rnn))
    leaves = leaves_of(rnn, x, hx)
    rnn(x, hx, seed=1)[0].square().sum().backward()
    whole = {name: leaf.grad for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen).grad = None
    rnn(x, hx, seed=1)[0].square().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None if name in frozen else torch.equal(leaf.grad, whole[name])


def test_no_grad_and_nothing_to_learn():
    rnn = make(**EVERYWHERE)
    x, hx = data(rnn)
    expected = rnn(x, hx, seed=1)
    with torch.no_grad():
        output, h_n = rnn(x, hx, seed=1)
    assert not output.requires_grad and torch.equal(output, expected[0]) and torch.equal(h_n, expected[1])
    with torch.inference_mode():
        assert torch.equal(rnn(x, hx, seed=1)[0], expected[0])
    assert not rnn.requires_grad_(False)(x, hx, seed=1)[0].requires_grad


# Tensors come and go as nn.RNN's do.


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5)], ids=["none", "inside", "between"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_h_n_shares_no_memory_with_the_output(rates, training, steps):
    rnn = make(**rates).train(training)
    output, h_n = rnn(data(rnn, steps=steps)[0], seed=1)
    assert torch.equal(output[-1], h_n[-1])
    before = h_n.clone()
    with torch.no_grad():
        output.fill_(7)
    assert torch.equal(h_n, before)


@pytest.mark.parametrize("change", [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.add_(y.detach())])
def test_backward_after_the_output_was_changed_in_place(change):
    """As with nn.RNN: the right gradient or an error, never a wrong gradient."""
    rnn = make(hidden_dropout=0.3)
    x, _ = data(rnn)
    x.requires_grad_()
    expected = rnn(x, seed=1)[0].clone()
    change(expected)
    (exact,) = torch.autograd.grad(expected.square().sum(), x)
    output = rnn(x, seed=1)[0]
    change(output)
    try:
        (actual,) = torch.autograd.grad(output.square().sum(), x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_near(actual, exact)


def test_inputs_stay_as_they_are():
    rnn = make(**EVERYWHERE)
    x, hx = data(rnn)
    before = [v.clone() for v in (x, hx, *rnn.parameters())]
    x.requires_grad_(), hx.requires_grad_()
    output, h_n = rnn(x, hx, seed=1)
    (output.sum() + h_n.sum()).backward()
    assert all(map(torch.equal, before, (x, hx, *rnn.parameters())))


def test_gradients_accumulate():
    rnn = make(**EVERYWHERE)
    x, _ = data(rnn)
    rnn(x, seed=1)[0].sum().backward()
    once = [p.grad.clone() for p in rnn.parameters()]
    rnn(x, seed=1)[0].sum().backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(rnn.parameters(), once, strict=True))


@pytest.mark.parametrize(
    "steps, batch, inputs, columns", [(1, 1, 1, 1), (1, 3, 2, 17), (4, 1, 2, 16), (3, 2, 1, 1), (2, 2, 40, 33)]
)
def test_small_shapes(steps, batch, inputs, columns):
    rnn = make(input_size=inputs, hidden_size=columns, **EVERYWHERE)
    x, hx = (v.requires_grad_() for v in data(rnn, steps, batch))
    check(rnn, rnn(x, hx, seed=3), x, hx, 3)


# With autocast the output has nn.RNN's dtype.


@pytest.mark.parametrize("rates", [dict(), dict(hidden_dropout=0.3), dict(num_layers=2, dropout=0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_autocast(rates, dtype, training, with_hx):
    rnn = make(dtype=torch.float32, **rates).train(training)
    x, hx = data(rnn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = rnn(x.to(dtype), hx if with_hx else None, seed=1)
        expected = rnn.to_torch()(x.to(dtype), hx if with_hx else None)
    assert output.dtype == expected[0].dtype and h_n.dtype == expected[1].dtype
    if training and rates:
        hx = hx if with_hx else torch.zeros_like(hx)
        parameters = {name: p.double() for name, p in rnn.named_parameters()}
        exact = network_by_hand(rnn, x.to(dtype).double(), hx.double(), 1, parameters=parameters)
        assert_near(output.to(torch.bfloat16), exact[0])
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())


# What nn.RNN refuses is refused, with its type of exception and its words.


def message(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), re.sub(r"'|\.$", "", str(error).split(", got")[0] if "probability" in str(error) else str(error))
    return None


@pytest.mark.parametrize(
    "options",
    [dict(hidden_size=0), dict(hidden_size=-3), dict(input_size=0), dict(num_layers=0), dict(num_layers=-1),
     dict(input_size=3.0), dict(input_size="3"), dict(hidden_size=5.0), dict(hidden_size=None), dict(num_layers="2"),
     dict(bias=1), dict(bias=None), dict(batch_first="yes"), dict(nonlinearity="sigmoid"), dict(nonlinearity=None),
     dict(dropout=-0.1), dict(dropout=1.5), dict(dropout=True), dict(dropout=float("nan")), dict(proj_size=2), dict(unknown=1)],
    ids=str,
)  # fmt: skip
def test_bad_constructor_arguments(options):
    options = {"input_size": 3, "hidden_size": 5, **options}
    mine, theirs = message(RNN, **options), message(nn.RNN, **options)
    assert mine is not None and theirs is not None
    if not {"proj_size", "unknown"} & options.keys():  # an argument that this module has not got is a TypeError
        assert mine == theirs


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "0.5", None, [0.5], 1j])
@pytest.mark.parametrize("name", ["dropout", "hidden_dropout", "recurrent_dropout"])
def test_bad_rates(name, value):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{name} should be a number in range") as raised:
        RNN(3, 5, 2, **{name: value})
    assert repr(value) in str(raised.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", ["batch", None, 1])
def test_bad_scope(value):
    with pytest.raises(ValueError, match=f"^Unknown mask_scope {value!r}. Select from 'step' or 'sequence'"):
        RNN(3, 5, mask_scope=value)


def z(*shape, dtype=torch.float64, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


BAD_INPUTS = [
    ((z(4),), "1-D"), ((z(2, 2, 2, 4),), "4-D"), ((z(5, 3, 7),), "input size"), ((z(5, 7),), "input size, unbatched"),
    ((z(5, 3, 4, dtype=torch.float32),), "dtype"), ((z(5, 3, 4, dtype=torch.int64),), "integers"),
    ((z(0, 3, 4),), "no steps"), ((z(0, 4),), "no steps, unbatched"),
    ((z(5, 3, 4), z(1, 4, 17)), "hx batch"), ((z(5, 3, 4), z(2, 3, 17)), "hx layers"), ((z(5, 3, 4), z(1, 3, 16)), "hx size"),
    ((z(5, 3, 4), z(3, 17)), "hx 2-D"), ((z(5, 4), z(1, 1, 17)), "hx 3-D"), ((z(5, 4), z(1, 16)), "hx size, unbatched"),
    ((z(5, 3, 4), z(1, 3, 17, dtype=torch.float32)), "hx dtype"),
    ((pack_padded_sequence(z(5, 3, 7), [5, 3, 1]),), "packed input size"),
    ((pack_padded_sequence(z(5, 3, 4), [5, 3, 1]), z(1, 4, 17)), "packed hx batch"),
    ((pack_padded_sequence(z(5, 3, 4, dtype=torch.float32), [5, 3, 1]),), "packed dtype"),
    (("x",), "a string"), ((None,), "None"), (([1, 2],), "a list"), ((z(5, 3, 4), "h"), "hx a string"), ((), "nothing"),
]  # fmt: skip


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(hidden_dropout=0.3)], ids=["none", "both", "hidden"])
@pytest.mark.parametrize("args", [args for args, _ in BAD_INPUTS], ids=[name for _, name in BAD_INPUTS])
def test_bad_inputs(rates, args):
    rnn = make(**rates)
    mine, theirs = message(rnn, *args), message(rnn.to_torch(), *args)
    assert theirs is not None
    assert mine[0] is theirs[0], (mine, theirs)
    if mine[0] in (RuntimeError, ValueError):  # the same words, or words about the same thing
        assert mine[1] == theirs[1] or {"size", "dtype", "sequence"} & set(re.findall("[a-z]+", mine[1])), (mine, theirs)
    state, before = torch.get_rng_state(), [p.clone() for p in rnn.parameters()]
    assert error_of(rnn, *args) is theirs[0]
    assert torch.equal(torch.get_rng_state(), state), "a seed was drawn before the arguments were checked"
    assert all(map(torch.equal, before, rnn.parameters()))


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5)], ids=["none", "inside", "between"])
@pytest.mark.parametrize("shape", [(5, 0, 4)], ids=str)
def test_a_batch_of_no_sequences_is_as_in_torch(rates, shape):
    rnn = make(**rates)
    x = z(*shape)
    expected = error_of(rnn.to_torch(), x)
    if expected is not None:
        assert error_of(rnn, x) is expected
    else:
        for mine, theirs in zip(rnn(x), rnn.to_torch()(x), strict=True):
            assert mine.shape == theirs.shape


# Threads.


def test_two_threads_give_what_one_gives():
    rnn = make(input_size=8, hidden_size=200, **INSIDE)
    x, hx = data(rnn, 50, 30)

    def step(seed):
        output, h_n = rnn(x, hx, seed=seed)
        return [output, h_n, *torch.autograd.grad(output.square().sum(), list(rnn.parameters()))]

    serial = [step(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(step, range(4)))
    for alone, beside in zip(serial, together, strict=True):
        assert all(map(torch.equal, alone, beside))


def test_the_number_of_threads_drops_the_same_units():
    rnn = make(input_size=8, hidden_size=200, hidden_dropout=0.4)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(3)
    x, _ = data(rnn, 50, 30)
    outputs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs.append(rnn(x, seed=1)[0])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(outputs[0] == 0, outputs[1] == 0)
    assert_near(outputs[0], outputs[1])


@pytest.mark.parametrize("name", ["dropout", "hidden_dropout", "recurrent_dropout"])
def test_a_probability_set_later_is_checked_before_anything_is_drawn(name):
    rnn = make(num_layers=2, hidden_dropout=0.5)
    setattr(rnn, name, 3.0)
    x, _ = data(rnn)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{name} should be a number in range.*got 3.0"):
        rnn(x)
    assert torch.equal(torch.get_rng_state(), state)
