"""Every kind of dropout, alone and with the others, against the oracle: outputs, last states, every gradient."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnndrop import functional
from tests import oracle
from tests.helpers import (
    EACH_KIND,
    EVERY_KIND,
    INSIDE,
    OUTSIDE,
    STRATEGIES,
    assert_equal,
    assert_near,
    doubled,
    gradients,
    inputs_of,
    make_layer,
    make_rnn,
)
from tests.modules.checks import SEED, checked, leaves_of, run_packed

CASES = {**EACH_KIND, "outside": OUTSIDE, "inside": INSIDE, "every": EVERY_KIND}
MAPPINGS = [{"input": "sequence", "recurrent": "sequence"}, {"hidden": "sequence", "between": "sequence", "output": "step"}]
each_kind = pytest.mark.parametrize("kind", EACH_KIND)
each_case = pytest.mark.parametrize("case", CASES)


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence", *MAPPINGS], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_against_the_oracle(case, mask_scope, bidirectional):
    """Packed in the order of their lengths, in another, and padded."""
    for lengths in (None, [5, 3, 1], [2, 5, 5]):
        checked(lengths, bidirectional=bidirectional, mask_scope=mask_scope, **CASES[case])


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_one_layer_one_step_relu_and_no_bias(case, mask_scope):
    for options in (dict(num_layers=1), dict(bias=False), dict(num_layers=3, nonlinearity="relu"), dict(steps=1)):
        checked(bidirectional=True, mask_scope=mask_scope, **CASES[case], **options)


@each_kind
@pytest.mark.parametrize("others", [{}, EVERY_KIND], ids=["alone", "with all others"])
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_all_or_none_is_dropped(kind, others, lengths):
    (name,) = EACH_KIND[kind]
    for p in (0.0, 1.0):
        for mask_scope in ("step", "sequence"):
            checked(lengths, bidirectional=True, mask_scope=mask_scope, **{**others, name: p})


@each_kind
def test_rates_that_round_to_all_or_none(kind):
    """They take the nearest threshold that is neither."""
    (name,) = EACH_KIND[kind]
    for p in (1e-9, 1 / 65536):
        checked(bidirectional=True, **{name: p})


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(case, dtype):
    for lengths in (None, [3, 5, 1]):
        checked(lengths, bidirectional=True, dtype=dtype, mask_scope={"output": "sequence"}, **CASES[case])


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_the_same_units_in_every_layout(case, mask_scope):
    """batch_first, unbatched and strided inputs."""
    rnn = make_rnn(num_layers=2, bidirectional=True, mask_scope=mask_scope, **CASES[case])
    x, hx = inputs_of(rnn)
    output, h_n = rnn(x, hx, seed=SEED)
    strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert_near(rnn(strided, hx, seed=SEED), (output, h_n))
    one = rnn(x[:, :1], hx[:, :1], seed=SEED)
    assert_equal(rnn(x[:, 0], hx[:, 0], seed=SEED), (one[0][:, 0], one[1][:, 0]))
    rnn.batch_first = True
    transposed, same = rnn(x.transpose(0, 1), hx, seed=SEED)
    assert_equal((transposed.transpose(0, 1), same), (output, h_n))
    assert_equal(rnn(x[:, 0], hx[:, 0], seed=SEED), (one[0][:, 0], one[1][:, 0]))


@each_case
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_is_padded(case, enforce_sorted):
    """As far as a sequence goes, in one direction; for its whole length, in both."""
    rnn = make_rnn(num_layers=2, **CASES[case])
    x, hx = inputs_of(rnn)
    lengths = [5, 3, 2] if enforce_sorted else [3, 2, 5]
    padded, _ = rnn(x, hx, seed=SEED)
    output, _ = rnn(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), hx, seed=SEED)
    output, _ = pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        assert_near(output[:length, b], padded[:length, b])
    both = make_rnn(num_layers=2, bidirectional=True, **CASES[case])
    x, hx = inputs_of(both)
    output, h_n = both(pack_padded_sequence(x, [5, 5, 5], enforce_sorted=enforce_sorted), hx, seed=SEED)
    assert_equal((pad_packed_sequence(output)[0], h_n), both(x, hx, seed=SEED))


@each_case
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("seed", [SEED, torch.tensor([3, 4, 5])], ids=["one", "each"])
def test_packed_in_any_order_is_padded(case, steps, seed):
    """Sequences of one length, which packing may put in any order; of one step too."""
    rnn = make_rnn(num_layers=2, bidirectional=True, **CASES[case])
    x, hx = inputs_of(rnn, steps=steps)
    order = torch.tensor([2, 0, 1])
    packed = PackedSequence(x[:, order].flatten(0, 1), torch.tensor([3] * steps), order, order.argsort())
    output, h_n = rnn(packed, hx, seed=seed)
    assert_near((pad_packed_sequence(output)[0], h_n), rnn(x, hx, seed=seed))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(case, dtype):
    rnn = make_rnn(num_layers=2, bidirectional=True, dtype=torch.float32, **CASES[case])
    x, hx = inputs_of(rnn)
    parameters = {name: p.double() for name, p in rnn.named_parameters()}
    exact = oracle.network(rnn, x.to(dtype).double(), hx.double(), SEED, parameters=parameters)
    x = x.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = rnn(x, hx, seed=SEED)
    for found, expected in zip(outputs, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert_near(found, expected)
    outputs[0].float().square().sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())


def run_small(lengths, **options):
    """A module of few elements as a function of all its leaves, and those."""
    rnn = make_rnn(input_size=1, hidden_size=2, num_layers=2, bidirectional=True, **options)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn, 3, 2))
    return lambda x, hx, *_: run_packed(rnn, x, hx, lengths), (x, hx, *rnn.parameters())


@each_case
def test_gradcheck(case):
    assert gradcheck(*run_small(None, **CASES[case]))


def test_gradcheck_of_packed_data():
    assert gradcheck(*run_small([1, 3], **EVERY_KIND))


@pytest.mark.parametrize("case", ["outside", "every"])
def test_gradgradcheck(case):
    """Of fewer leaves: the gradient of all of them is differentiated in test_gradient_penalty."""
    run, (x, hx, w_ih, w_hh, *_) = run_small([1, 3], **CASES[case])
    assert gradgradcheck(run, (x, hx, w_ih, w_hh))


@each_case
def test_gradient_penalty(case):
    """Gradients of the norm of the gradients, against the oracle; the gradients under create_graph are the plain ones."""
    rnn = make_rnn(num_layers=2, **CASES[case])
    x, hx = inputs_of(rnn)
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)
    parameters = {name: copies[name] for name, _ in rnn.named_parameters()}

    def penalty(leaves, outputs):
        loss = outputs[0].square().sum() + outputs[1].sum()
        grads = torch.autograd.grad(loss, [leaves["x"], leaves["weight_hh_l0"]], create_graph=True)
        norm = sum(g.square().sum() for g in grads)
        return dict(zip(leaves, torch.autograd.grad(norm, list(leaves.values()), materialize_grads=True), strict=True))

    expected = oracle.network(rnn, copies["x"], copies["hx"], SEED, parameters=parameters)
    assert_near(penalty(leaves, rnn(x, hx, seed=SEED)), penalty(copies, expected))
    outputs = rnn(x, hx, seed=SEED)
    plain = gradients(outputs, leaves, retain_graph=True)
    assert_equal({name: g.detach() for name, g in gradients(outputs, leaves, create_graph=True).items()}, plain)


FUNCTIONAL = {case: {name: p for name, p in rates.items() if name != "dropout"} for case, rates in CASES.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [case for case in FUNCTIONAL if case != "between"])
@pytest.mark.parametrize("mask_scope", ["step", "sequence", MAPPINGS[0], {"hidden": "sequence", "output": "step"}], ids=str)
def test_the_function(strategy, case, mask_scope):
    """rnn_layer, of any layer and direction, padded and packed; all gradients."""
    for layer, direction, sizes in ((0, 0, None), (3, 1, None), (1, 0, [3, 3, 2, 1, 1])):
        leaves = make_layer()
        copies = doubled(leaves)
        options = dict(seed=SEED, mask_scope=mask_scope, layer=layer, direction=direction, **FUNCTIONAL[case])
        lengths = None if sizes is None else [5, 3, 2]
        given = leaves if sizes is None else leaves | {"input": pack_padded_sequence(leaves["input"], lengths).data}
        output, h_n = functional.rnn_layer(*given.values(), strategy=strategy, batch_sizes=sizes, **options)
        expected = list(oracle.layer(*copies.values(), lengths=lengths, **options))
        if sizes is not None:
            expected[0] = pack_padded_sequence(expected[0], lengths).data
        assert_near(output, expected[0])
        assert_near(h_n, expected[1])
        assert_near(gradients([output, h_n], leaves), gradients(expected, copies))


def test_one_mask_of_the_input_for_both_directions():
    """Where the input alone is dropped, both see the same: the reverse direction on the reversed input is the forward one."""
    rnn = make_rnn(bidirectional=True, input_dropout=0.5, bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.zero_(), rnn.weight_hh_l0_reverse.zero_()
        rnn.weight_ih_l0_reverse.copy_(rnn.weight_ih_l0)
    forward, backward = rnn(inputs_of(rnn)[0], seed=SEED)[0].chunk(2, -1)
    assert_equal(forward, backward)


def test_h_n_is_without_the_outputs_dropout():
    for others in ({}, INSIDE, EVERY_KIND):
        rnn = make_rnn(num_layers=2, bidirectional=True, **{**others, "output_dropout": 0.5})
        x, hx = inputs_of(rnn)
        output, h_n = rnn(x, hx, seed=SEED)
        rnn.output_dropout = 0.0
        whole, same = rnn(x, hx, seed=SEED)
        assert_equal(h_n, same)
        kept = output != 0
        assert_near(output[kept], 2 * whole[kept])
        assert 0.3 < kept.double().mean() < 0.7


@each_kind
@pytest.mark.parametrize("others", [{}, INSIDE], ids=["alone", "with those inside"])
def test_a_rate_is_set_between_calls(kind, others):
    """And what it was does not linger."""
    (name,) = EACH_KIND[kind]
    rnn = make_rnn(num_layers=2, **others)
    x, hx = inputs_of(rnn)
    before = rnn(x, hx, seed=SEED)
    usual = getattr(rnn, name)
    setattr(rnn, name, 0.5)
    outputs = rnn(x, hx, seed=SEED)
    assert not torch.equal(outputs[0], before[0])
    assert_near(outputs, oracle.network(rnn, x, hx, SEED))
    setattr(rnn, name, usual)
    assert_equal(rnn(x, hx, seed=SEED), before)


@pytest.mark.parametrize("kind", ["hidden", "recurrent", "between", "input", "output"])
def test_a_scope_is_set_between_calls(kind):
    """Each kind obeys the word for it and no other."""
    rnn = make_rnn(num_layers=2, bidirectional=True, **EVERY_KIND)
    x, hx = inputs_of(rnn)
    before = rnn(x, hx, seed=SEED)
    rnn.mask_scope = {kind: "sequence"}
    outputs = rnn(x, hx, seed=SEED)
    assert not torch.equal(outputs[0], before[0])
    assert_near(outputs, oracle.network(rnn, x, hx, SEED))
    rnn.mask_scope = dict.fromkeys(("hidden", "recurrent", "between", "input", "output"), "step")
    assert_equal(rnn(x, hx, seed=SEED), before)
