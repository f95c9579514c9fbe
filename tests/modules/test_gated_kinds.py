"""Every kind of dropout in GRU and LSTM, alone and with the others, against the oracle: outputs, states, every gradient."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

from rnndrop import functional
from tests import oracle
from tests.helpers import (
    GATED,
    OUTSIDE,
    assert_equal,
    assert_near,
    doubled,
    each_kind,
    every_kind,
    gradients,
    inputs_of,
    inside,
    make_layer,
    make_rnn,
)
from tests.modules.checks import SEED, changed, check, checked, exact, flat, leaves_of, run_packed

LAYER = {"GRU": functional.gru_layer, "LSTM": functional.lstm_layer}
SEEDS = [7, -3, 2**63 - 1]
MAPPING = {"input": "sequence", "recurrent": "sequence", "candidate": "sequence"}
OTHERWISE = {"hidden": "sequence", "between": "sequence", "output": "sequence", "candidate": "step"}
each_cell = pytest.mark.parametrize("cell", GATED)


def cases(cell):
    groups = {"outside": OUTSIDE, "inside": inside(cell), "every": every_kind(cell)}
    return each_kind(cell) | groups


each_case = pytest.mark.parametrize("cell, case", [(cell, case) for cell in GATED for case in cases(cell)])
each_alone = pytest.mark.parametrize("cell, kind", [(cell, kind) for cell in GATED for kind in each_kind(cell)])


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_against_the_oracle(cell, case, mask_scope, bidirectional):
    """Packed in the order of their lengths, in another, and padded."""
    for lengths in (None, [5, 3, 1], [2, 5, 5]):
        checked(lengths, cell=cell, bidirectional=bidirectional, mask_scope=mask_scope, **cases(cell)[case])


@each_cell
@pytest.mark.parametrize("mask_scope", [MAPPING, OTHERWISE], ids=str)
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_a_word_for_each_kind(cell, mask_scope, lengths):
    mask_scope = mask_scope | (dict(cell=mask_scope["candidate"]) if cell == "LSTM" else {})
    checked(lengths, cell=cell, bidirectional=True, mask_scope=mask_scope, **every_kind(cell))
    for kind in mask_scope:
        checked(lengths, cell=cell, mask_scope=mask_scope, **each_kind(cell)[kind])


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_one_layer_one_step_and_no_bias(cell, case, mask_scope):
    """A step alone is other code than a loop of them."""
    for options in (dict(num_layers=1), dict(bias=False), dict(steps=1), dict(steps=1, bias=False), dict(steps=1, seed=SEEDS)):
        checked(cell=cell, bidirectional=True, mask_scope=mask_scope, **cases(cell)[case], **options)
    checked([1, 1, 1], cell=cell, mask_scope=mask_scope, **cases(cell)[case])


@each_alone
@pytest.mark.parametrize("others", ["alone", "with all others"])
def test_all_or_none_is_dropped(cell, kind, others):
    (name,) = each_kind(cell)[kind]
    for p in (0.0, 1.0):
        for lengths, scope in ((None, "step"), ([2, 5, 3], "sequence")):
            rates = (every_kind(cell) if others != "alone" else {}) | {name: p}
            checked(lengths, cell=cell, bidirectional=True, mask_scope=scope, **rates)
        checked(cell=cell, steps=1, **rates)


@each_alone
def test_rates_that_round_to_all_or_none(cell, kind):
    """They take the nearest threshold that is neither."""
    (name,) = each_kind(cell)[kind]
    for p in (1e-9, 1 / 65536):
        checked(cell=cell, **{name: p})


@each_cell
@pytest.mark.parametrize("case", ["inside", "every"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cell, case, dtype):
    for lengths, steps in ((None, 5), ([3, 5, 1], 5), (None, 1)):
        checked(lengths, steps, cell=cell, dtype=dtype, mask_scope={"output": "sequence"}, **cases(cell)[case])


@each_alone
def test_the_dtypes_of_each_kind(cell, kind):
    for dtype in (torch.float32, torch.bfloat16):
        checked(cell=cell, bidirectional=True, dtype=dtype, **each_kind(cell)[kind])


@each_cell
@pytest.mark.parametrize("steps, batch, inputs, columns", [(1, 1, 1, 1), (4, 1, 2, 16), (3, 2, 1, 1), (2, 2, 40, 33)])
def test_small_shapes(cell, steps, batch, inputs, columns):
    rnn = make_rnn(cell, input_size=inputs, hidden_size=columns, num_layers=2, bidirectional=True, **every_kind(cell))
    x, hx = inputs_of(rnn, steps, batch)
    leaves_of(rnn, x, hx)
    check(rnn, rnn(x, hx, seed=SEED), x, hx, SEED)


# A seed for each sequence.


@each_case
@pytest.mark.parametrize("lengths, mask_scope", [(None, "step"), ([2, 5, 3], "step"), ([5, 3, 1], "sequence")], ids=str)
def test_a_seed_for_each_sequence(cell, case, lengths, mask_scope):
    checked(lengths, seed=SEEDS, cell=cell, bidirectional=True, mask_scope=mask_scope, **cases(cell)[case])


@each_cell
@pytest.mark.parametrize("mask_scope", ["step", "sequence", MAPPING], ids=str)
def test_a_sequence_alone(cell, mask_scope):
    """It is that of a batch of one with its seed as an int; no oracle is asked. A weight's mask is of the first seed."""
    rates = every_kind(cell) | {"weight_dropout": 0.0}
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, mask_scope=mask_scope, **rates)
    x, hx = inputs_of(rnn)
    for lengths in (None, [2, 5, 3]):
        output, *ends = flat(run_packed(rnn, x, hx, lengths, torch.tensor(SEEDS)))
        for b, seed in enumerate(SEEDS):
            length = len(x) if lengths is None else lengths[b]
            alone, *last = flat(rnn(x[:length, b], changed(hx, lambda h: h[:, b]), seed=seed))  # noqa: B023
            assert_near([output[:length, b], *[end[:, b] for end in ends]], [alone, *last])


# Layouts.


@each_cell
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_the_same_units_in_every_layout(cell, mask_scope):
    """batch_first, unbatched, strided and packed inputs."""
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, mask_scope=mask_scope, **every_kind(cell))
    x, hx = inputs_of(rnn)
    output, *ends = flat(rnn(x, hx, seed=SEED))
    strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    states = changed(hx, lambda h: h.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    assert_near(flat(rnn(strided, states, seed=SEED)), [output, *ends])
    packed, *same = flat(rnn(pack_padded_sequence(x, [5, 5, 5]), hx, seed=SEED))
    assert_equal([packed.view(output.shape), *same], [output, *ends])
    one = flat(rnn(x[:, :1], changed(hx, lambda h: h[:, :1]), seed=SEED))
    first = changed(hx, lambda h: h[:, 0])
    assert_equal(flat(rnn(x[:, 0], first, seed=SEED)), [y[:, 0] for y in one])
    rnn.batch_first = True
    transposed, *same = flat(rnn(x.transpose(0, 1), hx, seed=SEED))
    assert_equal([transposed.transpose(0, 1), *same], [output, *ends])
    assert_equal(flat(rnn(x[:, 0], first, seed=SEED)), [y[:, 0] for y in one])


@each_case
def test_packed_is_padded(cell, case):
    """As far as a sequence goes, in any order."""
    rnn = make_rnn(cell, num_layers=2, **cases(cell)[case])
    x, hx = inputs_of(rnn)
    padded = rnn(x, hx, seed=SEED)[0]
    for lengths in ([5, 3, 2], [3, 2, 5]):
        output, *ends = flat(run_packed(rnn, x, hx, lengths))
        for b, length in enumerate(lengths):
            assert_near(output[:length, b], padded[:length, b])
            cut = flat(rnn(x[:length], hx, seed=SEED))[1:]
            assert_near([end[:, b] for end in ends], [end[:, b] for end in cut])


# Derivatives.


def run_small(cell, lengths, **options):
    """A module of few elements as a function of all its leaves, and those."""
    rnn = make_rnn(cell, input_size=1, hidden_size=2, **options)
    x, hx = inputs_of(rnn, 3, 2)
    leaves = leaves_of(rnn, x, hx)
    return lambda *_: tuple(flat(run_packed(rnn, x, hx, lengths))), tuple(leaves.values())


@each_cell
@pytest.mark.parametrize("case", ["inside", "every"])
def test_gradcheck(cell, case):
    assert gradcheck(*run_small(cell, None, num_layers=2, **cases(cell)[case]))


@each_cell
def test_gradcheck_of_packed_data(cell):
    assert gradcheck(*run_small(cell, [1, 3], bidirectional=True, mask_scope="sequence", **every_kind(cell)))


@each_cell
def test_gradgradcheck(cell):
    run, leaves = run_small(cell, [1, 3], **inside(cell))
    assert gradgradcheck(run, leaves)


@each_case
@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_penalty(cell, case, steps):
    """Gradients of the norm of the gradients, against the oracle; the gradients under create_graph are the plain ones."""
    rnn = make_rnn(cell, num_layers=2, **cases(cell)[case])
    x, hx = inputs_of(rnn, steps)
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)

    def penalty(leaves, outputs):
        loss = outputs[0].square().sum() + sum(y.sum() for y in outputs[1:])
        grads = torch.autograd.grad(loss, [leaves["x"], leaves["hx"], leaves["weight_hh_l0"]], create_graph=True)
        norm = sum(g.square().sum() for g in grads)
        return dict(zip(leaves, torch.autograd.grad(norm, list(leaves.values()), materialize_grads=True), strict=True))

    assert_near(penalty(leaves, flat(rnn(x, hx, seed=SEED))), penalty(copies, exact(rnn, copies)))
    outputs = flat(rnn(x, hx, seed=SEED))
    plain = gradients(outputs, leaves, retain_graph=True)
    assert_equal({name: g.detach() for name, g in gradients(outputs, leaves, create_graph=True).items()}, plain)


@each_cell
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_the_gradient_of_one_result_alone(cell, which, lengths):
    """Of the output, or of one of the states at the end."""
    rnn = make_rnn(cell, bidirectional=True, **inside(cell))
    x, hx = inputs_of(rnn)
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)
    outputs, expected = flat(run_packed(rnn, x, hx, lengths)), exact(rnn, copies, lengths=lengths)
    if which < len(outputs):
        assert_near(gradients([outputs[which]], leaves), gradients([expected[which]], copies))


# The functions.


@each_cell
@pytest.mark.parametrize("strategy", ["auto", "reference"])
@pytest.mark.parametrize("case", ["inside", "every", "weight", "none"])
@pytest.mark.parametrize("mask_scope", ["step", "sequence", MAPPING], ids=str)
def test_the_function(cell, strategy, case, mask_scope):
    """Of any layer and direction, padded and packed, with one seed and with many; all gradients."""
    rates = {name: p for name, p in cases(cell).get(case, {}).items() if name != "dropout"}
    for layer, direction, sizes in ((0, 0, None), (3, 1, None), (1, 0, [3, 3, 2, 1, 1]), (2, 1, [3, 3, 2, 1, 1])):
        leaves = make_layer(cell=cell, bias=layer != 3)
        copies = doubled(leaves)
        options = dict(mask_scope=mask_scope, layer=layer, direction=direction, **rates)
        lengths = None if sizes is None else [5, 3, 2]
        given = leaves if sizes is None else leaves | {"input": pack_padded_sequence(leaves["input"], lengths).data}
        for seed in (SEED, SEEDS) if layer else (SEED,):
            drawn = seed if seed is SEED else torch.tensor(seed)
            outputs = flat(LAYER[cell](**given, strategy=strategy, seed=drawn, batch_sizes=sizes, **options))
            expected = list(oracle.layer(*copies.values(), cell=cell, lengths=lengths, seed=seed, **options))
            if sizes is not None:
                expected[0] = pack_padded_sequence(expected[0], lengths).data
            assert_near(outputs, expected)
            allowed = dict(retain_graph=True)
            assert_near(gradients(outputs, leaves, **allowed), gradients(expected, copies))


# Attributes.


@each_alone
@pytest.mark.parametrize("others", ["alone", "with those inside"])
def test_a_rate_is_set_between_calls(cell, kind, others):
    """And what it was does not linger."""
    (name,) = each_kind(cell)[kind]
    rnn = make_rnn(cell, num_layers=2, **(inside(cell) if others != "alone" else {}))
    x, hx = inputs_of(rnn)
    before, usual = flat(rnn(x, hx, seed=SEED)), getattr(rnn, name)
    setattr(rnn, name, 0.5)
    outputs = flat(rnn(x, hx, seed=SEED))
    assert not torch.equal(outputs[0], before[0])
    assert_near(outputs, oracle.network(rnn, x, hx, SEED))
    setattr(rnn, name, usual)
    assert_equal(flat(rnn(x, hx, seed=SEED)), before)


@each_cell
def test_a_scope_is_set_between_calls(cell):
    """Each kind obeys the word for it and no other."""
    scoped = [kind for kind in each_kind(cell) if kind not in ("weight", "zoneout", "cell_zoneout")]
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, **every_kind(cell))
    x, hx = inputs_of(rnn)
    before = flat(rnn(x, hx, seed=SEED))
    for kind in scoped:
        rnn.mask_scope = {kind: "sequence"}
        outputs = flat(rnn(x, hx, seed=SEED))
        assert not torch.equal(outputs[0], before[0])
        assert_near(outputs, oracle.network(rnn, x, hx, SEED))
    rnn.mask_scope = dict.fromkeys(scoped, "step")
    assert_equal(flat(rnn(x, hx, seed=SEED)), before)
