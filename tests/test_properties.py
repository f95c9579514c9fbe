"""Any shape, any options, any bad argument. The examples are the same in every run."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rnndrop
from rnndrop import functional
from rnndrop.kinds import KINDS, SCOPED
from tests import oracle, stream
from tests.helpers import assert_near, doubled, gradients, make_rnn
from tests.stream import threshold_of

sizes = st.integers(1, 20)
seeds = st.integers(-(2**70), 2**70)
rates = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
scopes = st.sampled_from(["step", "sequence"])
modules = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 2),
        "nonlinearity": st.just("tanh"),  # relu's gradient jumps where rounding decides
        "bias": st.booleans(),
        "dropout": rates,
        "bidirectional": st.booleans(),
        "hidden_dropout": st.floats(0, 0.9) | st.just(1.0),
        "recurrent_dropout": st.floats(0, 0.9) | st.just(1.0),
        "zoneout": st.floats(0, 0.9) | st.just(1.0),
        "input_dropout": rates,
        "output_dropout": rates,
        "weight_dropout": st.floats(0, 0.9) | st.just(1.0),
        "mask_scope": scopes | st.dictionaries(st.sampled_from(SCOPED), scopes),
    }
)


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


@settings(max_examples=50)
@given(options=modules, seed=seeds, inputs=st.integers(1, 5), columns=sizes, data=st.data())
def test_network(options, seed, inputs, columns, data):
    """Outputs and gradients of any module on sequences of any lengths."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rnn = make_rnn(input_size=inputs, hidden_size=columns, **options)
    generator = torch.Generator().manual_seed(0)
    shapes = (max(lengths), len(lengths), inputs), (rnn.num_layers * (1 + rnn.bidirectional), len(lengths), columns)
    x, hx = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    if data.draw(st.booleans()):
        seed = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(lengths), max_size=len(lengths)))
    output, h_n = rnn(packed, hx, seed=torch.tensor(seed) if isinstance(seed, list) else seed)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output)

    leaves = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
    copies = doubled(leaves)
    parameters = {name: copies[name] for name, _ in rnn.named_parameters()}
    expected = oracle.network(rnn, copies["x"], copies["hx"], seed, lengths, parameters)
    assert_near(padded, expected[0])
    assert_near(h_n, expected[1])
    # Where few are kept the scale is up to 65536 times 65536, and so is what a gradient is a difference of.
    mine, exact_gradients = gradients([padded, h_n], leaves), gradients(expected, copies)
    largest = max(g.abs().max().item() for g in exact_gradients.values())
    for name, exact in exact_gradients.items():
        torch.testing.assert_close(mine[name], exact, rtol=0, atol=1e-12 * max(largest, 1.0))


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
        "zoneout": lambda: rnndrop.RNNCell(2, 3, zoneout=p),
        "weight_dropout": lambda: rnndrop.RNN(2, 3, weight_dropout=p),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value).startswith(f"{name} should be a number in range [0, 1]")
        assert str(raised.value).endswith(f"got {p!r}")


@settings(max_examples=60)
@given(
    dims=st.lists(st.integers(1, 4), max_size=4),
    hidden=st.none() | st.lists(st.integers(1, 4), max_size=4),
    batch_first=st.booleans(),
    training=st.booleans(),
)
def test_inputs_of_any_shape_are_taken_or_refused_as_by_torch(dims, hidden, batch_first, training):
    rnn = rnndrop.RNN(3, 2, batch_first=batch_first, hidden_dropout=0.5).train(training)
    arguments = [torch.zeros(dims), None if hidden is None else torch.zeros(hidden)]
    outcomes = []
    for module in (rnn, rnn.to_torch()):
        try:
            outcomes.append([tuple(y.shape) for y in module(*arguments)])
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
