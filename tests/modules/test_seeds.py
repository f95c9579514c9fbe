"""A seed for each sequence: it has the masks that it would have alone with its seed, whatever batch it stands in."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndrop
from rnndrop import functional
from tests import oracle
from tests.helpers import (
    BATCH,
    COLUMNS,
    EACH_KIND,
    EVERY_KIND,
    INPUTS,
    STRATEGIES,
    assert_equal,
    assert_near,
    doubled,
    draws_nothing,
    gradients,
    inputs_of,
    make_layer,
    make_rnn,
)
from tests.modules.checks import leaves_of

SEEDS = [7, -3, 2**63 - 1]
EACH = {**EACH_KIND, "every": EVERY_KIND}
OF_SEQUENCES = {case: {name: p for name, p in rates.items() if name != "weight_dropout"} for case, rates in EACH.items()}
STATES = {name: EVERY_KIND[name] for name in ("hidden_dropout", "recurrent_dropout", "zoneout")}
each_case = pytest.mark.parametrize("case", EACH)
scopes = pytest.mark.parametrize("mask_scope", ["step", "sequence", {"input": "sequence", "hidden": "sequence"}], ids=str)


def network(case, rates=EACH, **options):
    """A module, x and hx."""
    rnn = make_rnn(num_layers=2, **rates[case], **options)
    return rnn, *inputs_of(rnn)


def run(rnn, x, hx, seed, lengths=None):
    """Packed by `lengths`, and padded again."""
    if lengths is None:
        return rnn(x, hx, seed=seed)
    output, h_n = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), hx, seed=seed)
    return pad_packed_sequence(output, total_length=len(x))[0], h_n


@each_case
@scopes
@pytest.mark.parametrize("lengths", [None, [5, 3, 1], [2, 5, 3]], ids=str)
def test_against_the_oracle(case, mask_scope, lengths):
    """All gradients too; of weight_dropout the mask is that of the first seed."""
    rnn, x, hx = network(case, bidirectional=True, mask_scope=mask_scope)
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)
    parameters = {name: copies[name] for name, _ in rnn.named_parameters()}
    expected = oracle.network(rnn, copies["x"], copies["hx"], SEEDS, lengths, parameters)
    outputs = run(rnn, x, hx, torch.tensor(SEEDS), lengths)
    assert_near(outputs, expected)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("case", [case for case in OF_SEQUENCES if OF_SEQUENCES[case]])
@scopes
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_a_sequence_alone(case, mask_scope, lengths):
    """Its output, last state and gradient are those of a batch of one with its seed as an int; no oracle is asked."""
    rnn, x, hx = network(case, OF_SEQUENCES, bidirectional=True, mask_scope=mask_scope)
    x, hx = x.requires_grad_(), hx.requires_grad_()
    output, h_n = run(rnn, x, hx, torch.tensor(SEEDS), lengths)
    found = torch.autograd.grad(output.sin().sum() + h_n.sum(), [x, hx])
    for b, seed in enumerate(SEEDS):
        length = len(x) if lengths is None else lengths[b]
        alone, last = rnn(x[:length, b], hx[:, b], seed=seed)
        assert_near([output[:length, b], h_n[:, b]], [alone, last])
        expected = torch.autograd.grad(alone.sin().sum() + last.sum(), [x, hx])
        assert_near([found[0][:length, b], found[1][:, b]], [expected[0][:length, b], expected[1][:, b]])


@scopes
def test_whatever_batch_it_stands_in(mask_scope):
    """In another order, with others, twice."""
    rnn, x, hx = network("every", OF_SEQUENCES, bidirectional=True, mask_scope=mask_scope)
    output, h_n = rnn(x, hx, seed=torch.tensor(SEEDS))
    for order in ([2, 0, 1], [1], [0, 0, 2, 1, 2]):
        seeds = torch.tensor(SEEDS)[order]
        assert_near(rnn(x[:, order], hx[:, order], seed=seeds), (output[:, order], h_n[:, order]))
    rnn.batch_first = True
    found, same = rnn(x.transpose(0, 1), hx, seed=torch.tensor(SEEDS))
    assert_near([found.transpose(0, 1), same], [output, h_n])


@scopes
@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 5, 3]], ids=str)
def test_the_order_of_packing_does_not_matter(mask_scope, lengths):
    rnn, x, hx = network("every", mask_scope=mask_scope)
    seeds = torch.tensor(SEEDS)
    output, h_n = run(rnn, x, hx, seeds, lengths)
    padded, _ = rnn(x, hx, seed=seeds)
    for b, length in enumerate(lengths):
        assert_near(output[:length, b], padded[:length, b])
    order = sorted(range(BATCH), key=lambda b: -lengths[b])
    rnn.weight_dropout = 0.0  # whose mask is that of the first, which is another now
    output, h_n = run(rnn, x, hx, seeds, lengths)
    packed = pack_padded_sequence(x[:, order], sorted(lengths, reverse=True))
    found, last = rnn(packed, hx[:, order], seed=seeds[order])
    assert_near([pad_packed_sequence(found, total_length=5)[0], last], [output[:, order], h_n[:, order]])


@each_case
def test_the_same_seed_for_all_is_not_one_seed(case):
    """Each has row t of its own stream, not row t * B + b."""
    rnn, x, hx = network(case, OF_SEQUENCES)
    if not OF_SEQUENCES[case]:
        rnn.weight_dropout = 0.45
        assert_equal(rnn(x, hx, seed=torch.tensor([7] * BATCH)), rnn(x, hx, seed=7))
    else:
        output = rnn(x, hx, seed=torch.tensor([7] * BATCH))[0]
        assert_near(output[:, 1], rnn(x[:, 1], hx[:, 1], seed=7)[0])
        assert not torch.equal(output, rnn(x, hx, seed=7)[0])


def test_weight_dropout_takes_the_first_seed():
    rnn, x, hx = network("weight")
    expected = rnn(x, hx, seed=SEEDS[0])
    assert_equal(rnn(x, hx, seed=torch.tensor(SEEDS)), expected)
    assert_equal(rnn(x, hx, seed=torch.tensor([SEEDS[0], 0, 1])), expected)
    assert not torch.equal(rnn(x, hx, seed=torch.tensor(SEEDS[::-1]))[0], expected[0])
    # Of packed data too it is that of the user's first sequence.
    assert_near(run(rnn, x, hx, torch.tensor(SEEDS), [2, 5, 3]), run(rnn, x, hx, SEEDS[0], [2, 5, 3]))


@pytest.mark.parametrize("seeds", [torch.tensor(SEEDS), torch.tensor(SEEDS * 2)[::2], torch.tensor([SEEDS]).mT[:, 0]])
def test_seeds_that_do_not_lie_one_after_another(seeds):
    rnn, x, hx = network("every")
    before = seeds.clone()
    assert_equal(rnn(x, hx, seed=seeds), rnn(x, hx, seed=torch.tensor(seeds.tolist())))
    assert torch.equal(seeds, before)


def test_a_batch_of_one_and_of_none():
    rnn, x, hx = network("every", bidirectional=True)
    assert_equal(rnn(x[:, :1], hx[:, :1], seed=torch.tensor([7])), rnn(x[:, :1], hx[:, :1], seed=7))
    assert_equal(rnn(x[:, 0], hx[:, 0], seed=torch.tensor([7])), rnn(x[:, 0], hx[:, 0], seed=7))
    for seed in (torch.zeros(0, dtype=torch.int64), torch.tensor([7]), 7):
        output, h_n = rnn(x[:, :0], hx[:, :0], seed=seed)
        assert output.shape == (5, 0, 2 * COLUMNS) and h_n.shape == (4, 0, COLUMNS)


@pytest.mark.parametrize("rates", [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), dict(zoneout=0.2), STATES], ids=str)
def test_a_cell(rates):
    cell = rnndrop.RNNCell(INPUTS, COLUMNS, dtype=torch.float64, **rates)
    x, hx = torch.randn(BATCH, INPUTS, dtype=torch.float64), torch.randn(BATCH, COLUMNS, dtype=torch.float64)
    found = cell(x, hx, seed=torch.tensor(SEEDS))
    expected = oracle.layer(x[None], hx, *cell.parameters(), seed=SEEDS, **rates)
    assert_near(found, expected[1])
    for b, seed in enumerate(SEEDS):
        assert_near(found[b], cell(x[b], hx[b], seed=seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
@scopes
def test_the_function(strategy, mask_scope):
    rates = {name: p for name, p in EVERY_KIND.items() if name != "dropout"}
    for layer, direction in ((0, 0), (2, 1)):
        leaves = make_layer()
        copies = doubled(leaves)
        options = dict(mask_scope=mask_scope, layer=layer, direction=direction, **rates)
        outputs = functional.rnn_layer(*leaves.values(), seed=torch.tensor(SEEDS), strategy=strategy, **options)
        expected = oracle.layer(*copies.values(), seed=SEEDS, **options)
        assert_near(outputs, expected)
        assert_near(gradients(outputs, leaves), gradients(expected, copies))


ONE = r"^seed should be a tensor of one element, got a tensor of shape \(\d,\)$"
WRONG = [torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4]), torch.tensor([[1, 2, 3]]), torch.tensor([[1], [2], [3]])]


@pytest.mark.parametrize("seed", WRONG, ids=lambda seed: str(tuple(seed.shape)))
@pytest.mark.parametrize("training", [True, False])
@each_case
def test_a_wrong_shape(case, seed, training):
    """It is told what would be right, also where the seed is not needed, and nothing is drawn."""
    words = r"^seed should be a tensor of one element or of shape \(3,\), one for each sequence, got a tensor of shape {}$"
    words = words.format(str(tuple(seed.shape)).replace("(", r"\(").replace(")", r"\)"))
    rnn, x, hx = network(case)
    rnn.train(training)
    with pytest.raises(ValueError, match=words):
        draws_nothing(lambda: rnn(x, hx, seed=seed))
    with pytest.raises(ValueError, match=words):
        draws_nothing(lambda: rnn(pack_padded_sequence(x, [5, 3, 1]), hx, seed=seed))
    leaves = make_layer()
    with pytest.raises(ValueError, match=words):
        draws_nothing(lambda: functional.rnn_layer(*leaves.values(), hidden_dropout=0.5, seed=seed))
    cell = rnndrop.RNNCell(INPUTS, COLUMNS, dtype=torch.float64, **STATES).train(training)
    with pytest.raises(ValueError, match=words):
        draws_nothing(lambda: cell(x[0], hx[0], seed=seed))


def test_seeds_of_another_dtype_and_of_one_sequence():
    rnn, x, hx = network("every")
    for seed in (torch.zeros(BATCH, dtype=torch.int32), torch.zeros(BATCH)):
        with pytest.raises(TypeError, match=r"^seed should be an int or an int64 tensor, got a tensor of torch\."):
            draws_nothing(lambda seed=seed: rnn(x, hx, seed=seed))
    for one in (x[:, 0], x[:, :1]):
        with pytest.raises(ValueError, match=ONE):
            draws_nothing(lambda one=one: rnn(one, seed=torch.tensor([1, 2])))
    with pytest.raises(ValueError, match=ONE):
        rnndrop.dropout_mask(torch.tensor(SEEDS), 3, 4, 0.5)
    with pytest.raises(ValueError, match=ONE):
        functional.tanh_dropout(x, 0.5, seed=torch.tensor(SEEDS))


# In torch.func.


@each_case
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_vmap_over_samples(case, mask_scope):
    """A sample of the network for each seed, or for each row of seeds; the input too may be one for each."""
    rnn, x, hx = network(case, bidirectional=True, mask_scope=mask_scope)
    each = torch.tensor([[4, 5, 6], SEEDS])
    for seeds in (torch.tensor([4, -5]), each):
        expected = torch.stack([rnn(x, hx, seed=seed)[0] for seed in seeds])
        assert not torch.equal(expected[0], expected[1])
        assert_near(vmap(lambda seed: rnn(x, hx, seed=seed)[0])(seeds), expected)
    xs = torch.stack([x, 2 * x])
    expected = torch.stack([rnn(one, hx, seed=seed)[0] for one, seed in zip(xs, each, strict=True)])
    assert_near(vmap(lambda x, seed: rnn(x, hx, seed=seed)[0])(xs, each), expected)
    assert_near(vmap(lambda x: rnn(x, hx, seed=each[1])[0])(xs)[0], rnn(x, hx, seed=each[1])[0])


@each_case
def test_gradients_of_samples(case):
    """grad, and vmap of grad: a gradient of the parameters for each seed."""
    rnn, x, hx = network(case)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, seed):
        return functional_call(rnn, parameters, (x, hx), dict(seed=seed))[0].square().sum()

    seeds = torch.tensor([[4, 5, 6], SEEDS])
    expected = [torch.autograd.grad(rnn(x, hx, seed=seed)[0].square().sum(), [*rnn.parameters()]) for seed in seeds]
    found = [grad(loss)(parameters, seed) for seed in seeds]
    assert_near([list(g.values()) for g in found], expected)
    together = vmap(grad(loss), in_dims=(None, 0))(parameters, seeds)
    assert_near([[g[i] for g in together.values()] for i in range(2)], expected)


def test_per_sample_gradients():
    """The model is the same for all, an example and its seed are one of a batch each."""
    rnn, x, hx = network("every", OF_SEQUENCES)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, x, h, seed):
        return functional_call(rnn, parameters, (x, h), dict(seed=seed))[0].square().sum()

    seeds = torch.tensor(SEEDS)
    found = vmap(grad(loss), in_dims=(None, 1, 1, 0))(parameters, x, hx, seeds)
    whole = torch.autograd.grad(rnn(x, hx, seed=seeds)[0].square().sum(), [*rnn.parameters()])
    assert_near([g.sum(0) for g in found.values()], whole)


def test_vmap_of_a_cell():
    cell = rnndrop.RNNCell(INPUTS, COLUMNS, dtype=torch.float64, **STATES)
    x, seeds = torch.randn(BATCH, INPUTS, dtype=torch.float64), torch.tensor([[4, 5, 6], SEEDS])
    assert_near(vmap(lambda seed: cell(x, seed=seed))(seeds), torch.stack([cell(x, seed=seed) for seed in seeds]))
    xs, h = torch.stack([x, 2 * x]), torch.randn(BATCH, COLUMNS, dtype=torch.float64)
    for training in (True, False):
        cell.train(training)
        expected = torch.stack([cell(one, h, seed=7) for one in xs])
        assert_near(vmap(lambda x: cell(x, h, seed=7))(xs), expected)


@pytest.mark.parametrize("case", [*EACH, "none"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_vmap_over_inputs_states_and_parameters(case, training, steps):
    """nn.RNN itself refuses it."""
    rnn = make_rnn(num_layers=2, bidirectional=True, **EACH.get(case, {})).train(training)
    x, hx = inputs_of(rnn, steps=steps)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}
    seed = dict(seed=7) if training and case != "none" else {}  # else none is needed, or drawn
    run = lambda x, hx, p: functional_call(rnn, p, (x, hx), seed)  # noqa: E731
    for dims in ((0, None, None), (None, 0, None), (None, None, 0)):
        given = [torch.stack([v, 2 * v]) if dim == 0 else v for v, dim in zip((x, hx), dims, strict=False)]
        weights = {name: torch.stack([p, 2 * p]) if dims[2] == 0 else p for name, p in parameters.items()}
        found = draws_nothing(lambda: vmap(run, dims)(*given, weights))  # noqa: B023
        for i in range(2):
            one = [v[i] if dim == 0 else v for v, dim in zip(given, dims, strict=False)]
            expected = run(*one, {name: p[i] if dims[2] == 0 else p for name, p in weights.items()})
            assert_near([y[i] for y in found], expected)


def test_vmap_that_draws():
    """PyTorch's word for it decides whether the samples have a mask each or share one."""
    rnn, x, hx = network("every")
    xs = torch.stack([x, x])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: rnn(x, hx)[0])(xs)
    same = vmap(lambda x: rnn(x, hx)[0], randomness="same")(xs)
    assert_near(same[0], same[1])
    different = vmap(lambda x: rnn(x, hx)[0], randomness="different")(xs)
    assert not torch.equal(different[0] == 0, different[1] == 0)
