"""Any shape, any options, any bad argument. The examples are the same in every run."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rnndrop
from rnndrop import functional
from rnndrop.kinds import KINDS
from tests import stream
from tests.helpers import GATED, OUTSIDE, assert_near, doubled, each_kind, every_kind, gradients, inputs_of, make_rnn
from tests.modules.checks import exact, flat, leaves_of, run_packed
from tests.stream import threshold_of

sizes = st.integers(1, 20)
seeds = st.integers(-(2**70), 2**70)
rates = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
scopes = st.sampled_from(["step", "sequence"])
each_cell = pytest.mark.parametrize("cell", ["RNN", *GATED])
inside = st.floats(0, 0.9) | st.just(1.0)


def options_of(cell):
    """Those of a module; an RNN's nonlinearity is tanh: relu's gradient jumps where rounding decides."""
    flags = {"num_layers": st.integers(1, 2), "bias": st.booleans(), "bidirectional": st.booleans()}
    dropouts = {name: rates if name in OUTSIDE and name != "weight_dropout" else inside for name in every_kind(cell)}
    scoped = [kind for kind in each_kind(cell) if KINDS[kind].scoped]
    mask_scope = {"mask_scope": scopes | st.dictionaries(st.sampled_from(scoped), scopes)}
    return st.fixed_dictionaries({"cell": st.just(cell)} | flags | dropouts | mask_scope)


@settings(max_examples=60)
@given(
    seed=seeds,
    rows=st.integers(0, 5),
    columns=st.integers(0, 40),
    p=rates,
    layer=st.integers(0, 2**31 - 1),
    direction=st.integers(0, 1),
    kind=st.sampled_from(list(KINDS)),
)
def test_mask(seed, rows, columns, p, layer, direction, kind):
    number = stream.stream_of(kind, layer, direction)
    mask = rnndrop.dropout_mask(seed, rows, columns, p, layer=layer, direction=direction, kind=kind)
    assert torch.equal(mask != 0, stream.keep(seed, rows, columns, threshold_of(p), number))
    assert all(value in (0, 1) for value in (mask * (65536 - threshold_of(p)) / 65536).round(decimals=6).unique().tolist())


@each_cell
@settings(max_examples=40)
@given(data=st.data(), seed=seeds, inputs=st.integers(1, 5), columns=sizes)
def test_network(cell, data, seed, inputs, columns):
    """Outputs and gradients of any module on sequences of any lengths."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rnn = make_rnn(input_size=inputs, hidden_size=columns, **data.draw(options_of(cell)))
    x, hx = inputs_of(rnn, max(lengths), len(lengths))
    leaves = leaves_of(rnn, x, hx)
    if data.draw(st.booleans()):
        seed = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(lengths), max_size=len(lengths)))
    outputs = flat(run_packed(rnn, x, hx, lengths, torch.tensor(seed) if isinstance(seed, list) else seed))

    copies = doubled(leaves)
    expected = exact(rnn, copies, seed, lengths)
    assert_near(outputs, expected)
    # Where few are kept the scale is up to 65536 times 65536, and so is what a gradient is a difference of.
    mine, theirs = gradients(outputs, leaves), gradients(expected, copies)
    largest = max(g.abs().max().item() for g in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=0, atol=1e-12 * max(largest, 1.0))


@settings(max_examples=60)
@given(shape=st.lists(st.integers(0, 7), max_size=4), p=rates, seed=seeds, strategy=st.sampled_from(["cpu", "reference"]))
def test_tanh_dropout(shape, p, seed, strategy):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = functional.tanh_dropout(x, p, seed=seed, strategy=strategy)
    columns = shape[-1] if shape else 1
    mask = stream.keep(seed, math.prod(shape) // columns if columns else 0, columns, threshold_of(p), 0).view(shape)
    kept = 65536 - threshold_of(p)
    assert_near(y, torch.tanh(x) * mask * (65536 / kept if kept else 0))


bad_rates = st.one_of(
    st.floats(max_value=0, exclude_max=True),
    st.floats(min_value=1, exclude_min=True),
    st.just(math.nan),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.lists(st.floats(0, 1), max_size=2),
    st.complex_numbers(),
    st.binary(max_size=2),
)


@settings(max_examples=60)
@given(p=bad_rates)
def test_bad_rates(p):
    calls = {
        "p": lambda: rnndrop.dropout_mask(1, 2, 3, p),
        "dropout": lambda: rnndrop.RNN(2, 3, 2, dropout=p),
        "hidden_dropout": lambda: rnndrop.RNN(2, 3, hidden_dropout=p),
        "recurrent_dropout": lambda: rnndrop.RNNCell(2, 3, recurrent_dropout=p),
        "zoneout": lambda: rnndrop.GRUCell(2, 3, zoneout=p),
        "weight_dropout": lambda: rnndrop.GRU(2, 3, weight_dropout=p),
        "candidate_dropout": lambda: rnndrop.GRUCell(2, 3, candidate_dropout=p),
        "cell_dropout": lambda: rnndrop.LSTM(2, 3, cell_dropout=p),
        "cell_zoneout": lambda: rnndrop.LSTMCell(2, 3, cell_zoneout=p),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value).startswith(f"{name} should be a number in range [0, 1]")
        assert str(raised.value).endswith(f"got {p!r}")


@each_cell
@settings(max_examples=40)
@given(
    dims=st.lists(st.integers(1, 4), max_size=4),
    hidden=st.none() | st.lists(st.integers(1, 4), max_size=4),
    batch_first=st.booleans(),
    training=st.booleans(),
)
def test_inputs_of_any_shape_are_taken_or_refused_as_by_torch(cell, dims, hidden, batch_first, training):
    rnn = getattr(rnndrop, cell)(3, 2, batch_first=batch_first, hidden_dropout=0.5).train(training)
    hx = None if hidden is None else torch.zeros(hidden)
    arguments, outcomes = [torch.zeros(dims), hx if hx is None or cell != "LSTM" else (hx, hx)], []
    for module in (rnn, rnn.to_torch()):
        try:
            outcomes.append([tuple(y.shape) for y in flat(module(*arguments))])
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
