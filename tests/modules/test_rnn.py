"""RNN against the oracle, in every layout of its input."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnndrop
from tests import oracle
from tests.helpers import BATCH, BOTH, COLUMNS, STEPS, assert_equal, assert_near, gradients, inputs_of, make_rnn
from tests.modules.checks import check, leaves_of, run_packed

INSIDE = BOTH
EVERYWHERE = dict(num_layers=2, dropout=0.25, bidirectional=True, **INSIDE)


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 1], [4, 2, 2], [2, 5, 3], [1, 4, 4]], ids=str)
@pytest.mark.parametrize("rates", [dict(dropout=0.25), INSIDE, dict(dropout=0.25, **INSIDE)], ids=lambda r: "+".join(r))
def test_packed(mask_scope, bidirectional, lengths, rates):
    """Sequence b has the masks of row b of the batch as the user gave it, whatever packing sorts."""
    rnn = make_rnn(num_layers=2, bidirectional=bidirectional, mask_scope=mask_scope, **rates)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn, steps=max(lengths)))
    check(rnn, run_packed(rnn, x, hx, lengths), x, hx, 3, lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [None, [3, 5, 1]])
def test_dtypes(dtype, lengths):
    rnn = make_rnn(dtype=dtype, **EVERYWHERE)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn))
    check(rnn, run_packed(rnn, x, hx, lengths), x, hx, 3, lengths)


KINDS = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), dict(dropout=0.25), dict(dropout=0.25, **INSIDE)]


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("rates", KINDS, ids=lambda rates: "+".join(rates))
@pytest.mark.parametrize("lengths", [[2, 5, 3], [5, 1, 5]], ids=str)
def test_packing_does_not_matter(mask_scope, rates, lengths):
    """A sequence packed in any order is what it is in the padded batch, as far as it goes."""
    rnn = make_rnn(num_layers=2, mask_scope=mask_scope, **rates)
    x, hx = inputs_of(rnn)
    padded, _ = rnn(x, hx, seed=3)
    packed, h_n = run_packed(rnn, x, hx, lengths)
    for b, length in enumerate(lengths):
        assert_near(packed[:length, b], padded[:length, b])
        assert torch.equal(packed[:length, b] == 0, padded[:length, b] == 0)
        assert_near(h_n[-1, b], padded[length - 1, b])


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("rates", KINDS, ids=lambda rates: "+".join(rates))
@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]], ids=str)
def test_packing_does_not_matter_in_both_directions(mask_scope, rates, order):
    """Sequences of one length, which packing may put in any order."""
    rnn = make_rnn(num_layers=2, bidirectional=True, mask_scope=mask_scope, **rates)
    x, hx = inputs_of(rnn)
    order = torch.tensor(order)
    packed = PackedSequence(x[:, order].flatten(0, 1), torch.tensor([BATCH] * STEPS), order, order.argsort())
    output, h_n = rnn(packed, hx, seed=3)
    padded, last = rnn(x, hx, seed=3)
    assert_near(pad_packed_sequence(output)[0], padded)
    assert torch.equal(pad_packed_sequence(output)[0] == 0, padded == 0)
    assert_near(h_n, last)


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_comes_back_packed(with_hx, enforce_sorted):
    """As nn.RNN gives it; without hx, it is zeros."""
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    packed = pack_padded_sequence(x, [5, 3, 2] if enforce_sorted else [2, 5, 3], enforce_sorted=enforce_sorted)
    output, h_n = rnn(packed, hx if with_hx else None, seed=3)
    assert isinstance(output, PackedSequence)
    for mine, theirs in zip(output[1:], packed[1:], strict=True):
        assert mine is theirs
    if not with_hx:
        expected = rnn(packed, torch.zeros_like(hx), seed=3)
        assert torch.equal(output.data, expected[0].data) and torch.equal(h_n, expected[1])


def test_full_length_packed_is_padded():
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    output, h_n = rnn(x, hx, seed=3)
    packed, packed_h_n = rnn(pack_padded_sequence(x, [STEPS] * BATCH), hx, seed=3)
    assert torch.equal(pad_packed_sequence(packed)[0], output) and torch.equal(packed_h_n, h_n)


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize(
    "rates",
    [
        dict(hidden_dropout=0.3),
        dict(recurrent_dropout=0.4),
        dict(dropout=0.25),
        INSIDE,
        dict(dropout=0.25, **INSIDE),
        dict(dropout=1.0),
        dict(hidden_dropout=1.0),
    ],
    ids=lambda rates: "+".join(rates),
)
def test_against_the_oracle(mask_scope, bidirectional, num_layers, rates):
    for nonlinearity, bias in [("tanh", True), ("relu", True), ("tanh", False)]:
        rnn = make_rnn(
            num_layers=num_layers,
            bidirectional=bidirectional,
            mask_scope=mask_scope,
            nonlinearity=nonlinearity,
            bias=bias,
            **rates,
        )
        x, hx = (v.requires_grad_() for v in inputs_of(rnn))
        check(rnn, rnn(x, hx, seed=3), x, hx, 3)


@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_layouts_share_their_masks(scope):
    """batch_first, unbatched, strided and packed inputs, and every dtype: the same units are dropped."""
    rnn = make_rnn(bias=True, hidden_dropout=0.5, mask_scope=scope)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(3)  # nothing is 0 by itself
    x, _ = inputs_of(rnn)
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
    rnn = make_rnn(**rates).train(training)
    first = copy.deepcopy(rnn)
    first.batch_first = True
    x, hx = inputs_of(rnn)
    output, h_n = rnn(x, hx, seed=3)
    transposed, same_h_n = first(x.transpose(0, 1), hx, seed=3)
    assert torch.equal(transposed.transpose(0, 1), output) and torch.equal(same_h_n, h_n)
    one = rnn(x[:, :1], hx[:, :1], seed=3)
    for module in (rnn, first):
        output, h_n = module(x[:, 0], hx[:, 0], seed=3)
        assert torch.equal(output, one[0][:, 0]) and torch.equal(h_n, one[1][:, 0])


@pytest.mark.parametrize(
    "steps, batch, inputs, columns", [(1, 1, 1, 1), (1, 3, 2, 17), (4, 1, 2, 16), (3, 2, 1, 1), (2, 2, 40, 33)]
)
def test_small_shapes(steps, batch, inputs, columns):
    rnn = make_rnn(input_size=inputs, hidden_size=columns, **EVERYWHERE)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn, steps, batch))
    check(rnn, rnn(x, hx, seed=3), x, hx, 3)


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5)], ids=["none", "inside", "between"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_strides_are_those_of_torch(rates, bidirectional, batch_first, training):
    rnn = make_rnn(bidirectional=bidirectional, batch_first=batch_first, **rates).train(training)
    x, hx = inputs_of(rnn)
    x = x.transpose(0, 1).contiguous() if batch_first else x
    for mine, theirs in zip(rnn(x, hx), rnn.to_torch()(x, hx), strict=True):
        assert mine.shape == theirs.shape and mine.stride() == theirs.stride()


@pytest.mark.parametrize("rates", [dict(), dict(hidden_dropout=0.3), dict(num_layers=2, dropout=0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_autocast(rates, dtype, training, with_hx):
    rnn = make_rnn(dtype=torch.float32, **rates).train(training)
    x, hx = inputs_of(rnn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = rnn(x.to(dtype), hx if with_hx else None, seed=1)
        expected = rnn.to_torch()(x.to(dtype), hx if with_hx else None)
    assert output.dtype == expected[0].dtype and h_n.dtype == expected[1].dtype
    if training and rates:
        hx = hx if with_hx else torch.zeros_like(hx)
        parameters = {name: p.double() for name, p in rnn.named_parameters()}
        exact = oracle.network(rnn, x.to(dtype).double(), hx.double(), 1, parameters=parameters)
        assert_near(output.to(torch.bfloat16), exact[0])
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5)], ids=["none", "inside", "between"])
def test_float64_under_autocast(rates):
    """Autocast leaves float64 as it is."""
    rnn = make_rnn(**rates)
    leaves = leaves_of(rnn, *inputs_of(rnn))
    outputs = rnn(leaves["x"], leaves["hx"], seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rnn(leaves["x"], leaves["hx"], seed=1)
    assert_equal(inside, outputs)
    assert_equal(gradients(inside, leaves), gradients(outputs, leaves))
