"""Where only kinds outside the recurrence are on, PyTorch's own layers run it, in as few calls as there can be."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnndrop import reference
from rnndrop.backends.cpu import Cpu
from rnndrop.ops import torch_layers
from tests import oracle
from tests.helpers import (
    BATCH,
    COLUMNS,
    EACH_KIND,
    INPUTS,
    INSIDE,
    OUTSIDE,
    STEPS,
    assert_equal,
    assert_near,
    draws_nothing,
    inputs_of,
    make_rnn,
)

SEED = 3
AROUND = {name: p for name, p in OUTSIDE.items() if name != "dropout"}  # nothing between the layers
NAMES = ["dropout", "input_dropout", "output_dropout", "weight_dropout"]


class Calls:
    """Stands in for torch._VF: what PyTorch's layers are called with."""

    def __init__(self):
        self.layers, self.inputs, self.weights = [], [], []

    def rnn_tanh(self, input, *rest):
        packed = isinstance(rest[2], (list, tuple))  # batch sizes come before hx
        self.inputs.append(input)
        self.weights.append(rest[2] if packed else rest[1])
        self.layers.append(rest[4] if packed else rest[3])
        return torch._VF.rnn_tanh(input, *rest)

    def rnn_relu(self, input, *rest):
        self.layers.append(rest[3])
        return torch._VF.rnn_relu(input, *rest)


@pytest.fixture
def calls(monkeypatch):
    """Of PyTorch's layers; any other recurrence raises."""

    def another(*_):
        raise AssertionError("a recurrence that is not PyTorch's")

    monkeypatch.setattr(Cpu, "forward", another)
    monkeypatch.setattr(reference, "layer", another)
    monkeypatch.setitem(reference.STEP, "RNN_TANH", another)
    monkeypatch.setattr(torch_layers, "_VF", Calls())
    return torch_layers._VF


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_torch_runs_all_layers_in_one_call(calls, name, num_layers, bidirectional, lengths):
    """Unless something is dropped between them: then each in one."""
    rnn = make_rnn(num_layers=num_layers, bidirectional=bidirectional, **{name: 0.5})
    x, hx = inputs_of(rnn)
    rnn(x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False), hx, seed=SEED)
    assert calls.layers == ([1] * num_layers if name == "dropout" else [num_layers])


@pytest.mark.parametrize("options", [dict(), dict(nonlinearity="relu"), dict(batch_first=True), dict(bias=False)], ids=str)
def test_several_kinds_and_one_step(calls, options):
    for steps in (1, 5):
        rnn = make_rnn(num_layers=2, **AROUND, **options)
        x, _ = inputs_of(rnn, steps=steps)
        rnn(x.transpose(0, 1) if rnn.batch_first else x)
    assert calls.layers == [2, 2]
    make_rnn(num_layers=2, **{"nonlinearity": "tanh", **options}, **OUTSIDE)(inputs_of(rnn)[0].transpose(0, 1)[:, :BATCH])
    assert calls.layers == [2, 2, 1, 1]


def test_the_cells_weights_go_to_torch_as_they_are(calls):
    """The parameters themselves, in their order, but for a weight of which elements are dropped."""
    rnn = make_rnn(num_layers=2, bidirectional=True, input_dropout=0.5)
    x, hx = inputs_of(rnn)
    rnn(x, hx)
    assert all(mine is p for mine, p in zip(calls.weights[0], rnn.parameters(), strict=True))
    rnn.weight_dropout = 0.5
    rnn(x, hx)
    for (name, p), given in zip(rnn.named_parameters(), calls.weights[1], strict=True):
        assert (given is p) == ("weight_hh" not in name)
        assert (given is p) or (given == 0).double().mean() > 0.3


def test_one_inside_and_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch_layers, "_VF", None)
    for name, p in INSIDE.items():
        make_rnn(num_layers=2, **{**OUTSIDE, name: p})(torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64))


@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True), dict(batch_first=True)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_dropped_is_one_call_of_torch(calls, options, training):
    """In training too, and where what is on cannot drop anything."""
    rates = dict.fromkeys(NAMES, 0.0) if training else {**OUTSIDE, "hidden_dropout": 0.5, "recurrent_dropout": 0.5}
    rnn = make_rnn(**options, **rates).train(training)
    x, hx = inputs_of(rnn)
    x = x.transpose(0, 1) if rnn.batch_first else x
    assert_equal(draws_nothing(lambda: rnn(x, hx)), rnn.to_torch()(x, hx))
    assert calls.layers == [rnn.num_layers] and calls.inputs[0] is x


def test_dropout_between_the_layers_of_one_is_nothing():
    rnn = make_rnn(dropout=0.5)
    x, hx = inputs_of(rnn)
    assert_equal(draws_nothing(lambda: rnn(x, hx)), rnn.to_torch()(x, hx))
    rnn.input_dropout = 0.25
    assert_near(rnn(x, hx, seed=SEED), oracle.network(rnn, x, hx, SEED))


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_each_is_torchs_layer_between_masks(mask_scope):
    """Against nn.RNN itself, with the masks that dropout_mask tells; not our loop."""
    rnn = make_rnn(num_layers=2, bidirectional=True, mask_scope=mask_scope, **OUTSIDE)
    theirs, (x, hx) = rnn.to_torch(), inputs_of(rnn)
    rows, repeats = (STEPS, 1) if mask_scope == "step" else (1, STEPS)

    def mask(p, columns, **where):
        drawn = oracle.mask(SEED, rows * BATCH, columns, p, **where).view(rows, BATCH, columns)
        return drawn.repeat(repeats, 1, 1)

    def both(p, **where):
        return torch.cat([mask(p, COLUMNS, direction=direction, **where) for direction in (0, 1)], -1)

    with torch.no_grad():
        for layer in range(2):
            for direction, end in enumerate(("", "_reverse")):
                weight = getattr(theirs, f"weight_hh_l{layer}{end}")
                where = dict(kind="weight", layer=layer, direction=direction)
                weight *= oracle.mask(SEED, COLUMNS, COLUMNS, rnn.weight_dropout, **where)
    first, second = (nn.RNN(size, COLUMNS, bidirectional=True, dtype=torch.float64) for size in (INPUTS, 2 * COLUMNS))
    for name, p in theirs.state_dict().items():
        (first if "l0" in name else second).get_parameter(name.replace("l1", "l0")).data.copy_(p)
    y, h_0 = first(x * mask(rnn.input_dropout, INPUTS, kind="input"), hx[:2])
    y, h_1 = second(y * both(rnn.dropout, kind="between", layer=0), hx[2:])
    expected = y * both(rnn.output_dropout, kind="output", layer=1), torch.cat([h_0, h_1])
    assert_near(rnn(x, hx, seed=SEED), expected)


@pytest.mark.parametrize("kind", EACH_KIND)
@pytest.mark.parametrize("layers", [1, 2])
def test_h_n_shares_no_memory_with_the_output(kind, layers):
    for steps in (1, 3):
        rnn = make_rnn(num_layers=layers, **EACH_KIND[kind])
        output, h_n = rnn(inputs_of(rnn, steps=steps)[0], seed=SEED)
        before = h_n.clone()
        with torch.no_grad():
            output.fill_(7)
        assert torch.equal(h_n, before)


@pytest.mark.parametrize("kind", EACH_KIND)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_strides_are_those_of_torch(kind, bidirectional):
    for batch_first in (False, True):
        rnn = make_rnn(bidirectional=bidirectional, batch_first=batch_first, **EACH_KIND[kind])
        x, hx = inputs_of(rnn)
        x = x.transpose(0, 1).contiguous() if batch_first else x
        for mine, theirs in zip(rnn(x, hx), rnn.to_torch()(x, hx), strict=True):
            assert mine.shape == theirs.shape and mine.stride() == theirs.stride()


@pytest.mark.parametrize("kind", EACH_KIND)
def test_inputs_and_weights_stay_as_they_are(kind):
    rnn = make_rnn(num_layers=2, bidirectional=True, **EACH_KIND[kind])
    x, hx = inputs_of(rnn)
    before = [v.clone() for v in (x, hx, *rnn.parameters())]
    output, h_n = rnn(x.requires_grad_(), hx.requires_grad_(), seed=SEED)
    (output.sum() + h_n.sum()).backward()
    assert all(map(torch.equal, before, (x, hx, *rnn.parameters())))
    data = pack_padded_sequence(x.detach(), [5, 3, 1])
    packed = data.data.clone()
    rnn(PackedSequence(data.data, data.batch_sizes), seed=SEED)
    assert torch.equal(data.data, packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_dropped_is_zero_whatever_it_was(value):
    """Of an input or a weight; its gradient too."""
    rnn = make_rnn(input_dropout=0.5, weight_dropout=0.5)
    x, hx = inputs_of(rnn)
    expected = rnn(x, hx, seed=SEED)
    dropped = oracle.mask(SEED, STEPS * BATCH, INPUTS, 0.5, kind="input").view(x.shape) == 0
    x = x.masked_fill(dropped, value).requires_grad_()
    weight = oracle.mask(SEED, COLUMNS, COLUMNS, 0.5, kind="weight") == 0
    rnn.weight_hh_l0.data.masked_fill_(weight, value)
    outputs = rnn(x, hx, seed=SEED)
    assert_equal(outputs, expected)
    outputs[0].sum().backward()
    for grad, gone in ((x.grad, dropped), (rnn.weight_hh_l0.grad, weight)):
        assert (grad[gone] == 0).all() and grad.isfinite().all() and (grad[~gone] != 0).any()
