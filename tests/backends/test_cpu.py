"""Every strategy that runs on the CPU against the oracle."""

import itertools

import pytest
import torch

from rnndrop import functional
from tests import oracle
from tests.helpers import BOTH, RATES, STRATEGIES, assert_equal, assert_near, doubled, gradients, keep, make_layer

SEED = -7


def run(leaves, lengths=None, seed=SEED, **options):
    """Output and h_n of functional.rnn_layer; with `lengths`, which fall, of the packed input, and padded again."""
    if lengths is None:
        return functional.rnn_layer(*leaves.values(), seed=seed, **options)
    x, *rest = leaves.values()
    sizes = [sum(length > t for length in lengths) for t in range(len(x))]
    packed = torch.cat([x[t, :size] for t, size in enumerate(sizes)])
    output, h_n = functional.rnn_layer(packed, *rest, seed=seed, batch_sizes=sizes, **options)
    steps = [torch.nn.functional.pad(y, (0, 0, 0, len(lengths) - len(y))) for y in output.split(sizes)]
    return torch.stack(steps), h_n


def check(leaves, lengths=None, seed=SEED, strategy="cpu", **options):
    """Outputs, h_n and the gradients of all leaves."""
    outputs, copies = run(leaves, lengths, seed, strategy=strategy, **options), doubled(leaves)
    expected = oracle.layer(*copies.values(), seed=seed, lengths=lengths, **options)
    for actual, exact in zip(outputs, expected, strict=True):
        assert actual.dtype == leaves["input"].dtype
        assert_near(actual, exact)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rates", RATES, ids=lambda rates: "+".join(rates))
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("direction", [0, 1])
def test_every_option(strategy, rates, mask_scope, direction):
    for nonlinearity, lengths, bias in itertools.product(["tanh", "relu"], [None, [5, 3, 3], [5, 2, 1]], [True, False]):
        options = dict(strategy=strategy, nonlinearity=nonlinearity, mask_scope=mask_scope, direction=direction)
        check(make_layer(bias=bias), lengths, **options, **rates)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rates", RATES, ids=lambda rates: "+".join(rates))
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_every_dtype(strategy, dtype, rates, mask_scope):
    for nonlinearity, direction, lengths in itertools.product(["tanh", "relu"], [0, 1], [None, [5, 3, 3]]):
        options = dict(strategy=strategy, nonlinearity=nonlinearity, mask_scope=mask_scope, direction=direction)
        check(make_layer(dtype=dtype, kink=nonlinearity == "tanh"), lengths, **options, **rates)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("hidden_dropout, recurrent_dropout", list(itertools.product([0, 0.5, 1], repeat=2)))
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_none_and_all(strategy, hidden_dropout, recurrent_dropout, mask_scope):
    for direction in (0, 1):
        rates = dict(hidden_dropout=float(hidden_dropout), recurrent_dropout=float(recurrent_dropout))
        check(make_layer(), strategy=strategy, mask_scope=mask_scope, direction=direction, **rates)


# The last: more than one chunk of the cache.
SHAPES = [(1, 1, 1, 1), (1, 3, 2, 17), (4, 1, 2, 16), (3, 2, 1, 1), (6, 2, 3, 33), (40, 1, 1, 5), (12, 24, 2, 300)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(strategy, shape):
    for direction in (0, 1):
        check(make_layer(*shape), strategy=strategy, direction=direction, **BOTH)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packed_across_cache_chunks(strategy):
    lengths = sorted([1 + 7 * i % 12 for i in range(24)], reverse=True)
    for direction in (0, 1):
        check(make_layer(12, 24, 2, 300), lengths, strategy=strategy, direction=direction, **BOTH)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layer, direction", [(0, 1), (3, 0), (2**31 - 1, 1)])
def test_masks_know_their_layer(strategy, layer, direction):
    check(make_layer(), strategy=strategy, layer=layer, direction=direction, **BOTH)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inputs_that_are_not_contiguous(strategy):
    """Strides, expanded weights and transposed views give what their copies give."""
    leaves = make_layer(5, 4, 4, 6)
    strided = {
        "input": leaves["input"].detach().permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "h_0": leaves["h_0"].detach().repeat(2, 2)[::2, ::2][:, :3].repeat(2, 2)[:4],
        "w_ih": leaves["w_ih"].detach().t().contiguous().t(),
        "w_hh": leaves["w_hh"].detach()[:1].expand(6, 6),
        "b_ih": leaves["b_ih"].detach()[::2].repeat_interleave(4)[::2],
        "b_hh": leaves["b_hh"].detach()[:1].expand(6),
    }
    strided = {name: leaf.requires_grad_() for name, leaf in strided.items()}
    assert not any(strided[name].is_contiguous() for name in ("input", "w_ih", "w_hh", "b_hh"))
    copies = {name: leaf.detach().contiguous().requires_grad_() for name, leaf in strided.items()}
    options = dict(strategy=strategy, **BOTH)
    outputs, expected = run(strided, **options), run(copies, **options)
    for a, b in zip(outputs, expected, strict=True):
        assert_near(a, b)
    assert_near(gradients(outputs, strided), gradients(expected, copies))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grads", ["transposed", "expanded", "output alone", "h_n alone", "one step"])
def test_every_kind_of_incoming_gradient(strategy, grads):
    leaves = make_layer()
    copies = doubled(leaves)

    def found(leaves, outputs):
        output, h_n = outputs
        weights = torch.randn(17, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        loss = {
            "transposed": lambda: (output.permute(2, 1, 0) * weights).sum() + h_n.t().sum(),
            "expanded": lambda: output.sum() + h_n.sum(),
            "output alone": lambda: (output.permute(2, 1, 0) * weights).sum(),
            "h_n alone": lambda: h_n.square().sum(),
            "one step": lambda: output[2].square().sum(),
        }[grads]()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    assert_near(
        found(leaves, run(leaves, strategy=strategy, **BOTH)), found(copies, oracle.layer(*copies.values(), seed=SEED, **BOTH))
    )


@pytest.mark.parametrize("steps, strategy", [(1, "reference"), (5, "cpu")])
def test_auto_is_one_of_them(steps, strategy):
    """The same to the last bit, so the others need not be tested twice."""
    leaves = make_layer(steps)
    outputs, expected = run(leaves, **BOTH), run(leaves, strategy=strategy, **BOTH)
    for actual, exact in zip(outputs, expected, strict=True):
        assert_equal(actual, exact)
    assert_equal(gradients(outputs, leaves), gradients(expected, leaves))


EXTREME = {"1/65536": 1 / 65536, "32769/65536": 32769 / 65536, "1 - 2**-16": 1 - 2**-16}


def telling_seed(p, kind, rows=15, columns=40):
    """A seed whose mask drops some and keeps some."""
    return next(seed for seed in range(10**5) if 0 < keep(seed, rows, columns, p, kind=kind).sum() < rows * columns)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["hidden", "recurrent"])
@pytest.mark.parametrize("p", EXTREME.values(), ids=EXTREME)
def test_extreme_rates(strategy, dtype, kind, p):
    """One threshold past a half, and those next to nothing and to all, whose scale no float16 has."""
    seed = telling_seed(p, kind)
    leaves = make_layer(columns=40, dtype=dtype)
    with torch.no_grad():  # the state that is kept is up to 65536 times as large, and enters with a weight as much smaller
        leaves["w_hh"] /= oracle.scale_of(oracle.threshold_of(p))
    rates = {f"{kind}_dropout": p}
    outputs, copies = run(leaves, seed=seed, strategy=strategy, **rates), doubled(leaves)
    expected = oracle.layer(*copies.values(), seed=seed, **rates)
    for actual, exact in zip(outputs, expected, strict=True):
        assert_near(actual, exact)
    if kind == "hidden":
        assert torch.equal(outputs[0] != 0, keep(seed, 15, 40, p).view(5, 3, 40))
    if (strategy, dtype, kind, p) == ("reference", torch.float16, "recurrent", 1 - 2**-16):
        return  # plain operations in float16 have no number for such a gradient, before its scale or after it
    pairs = (outputs, leaves), (expected, copies)
    # Of an expanded gradient, small enough that float16 holds what comes of it.
    summed = [torch.autograd.grad((y[0] / 64).sum(), list(v.values())) for y, v in pairs]
    for actual, exact in zip(*summed, strict=True):
        assert_near(actual, exact)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_slope_of_relu_is_0_at_0_and_that_of_torch_at_nan(strategy):
    x = torch.tensor([float("nan"), 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    bias = x.detach().clone().requires_grad_()
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    output, _ = functional.rnn_layer(
        zeros[None, :1], zeros[:1], zeros, zeros, bias, nonlinearity="relu", hidden_dropout=1e-9, strategy=strategy, seed=1
    )
    scale = oracle.scale_of(1)
    (expected,) = torch.autograd.grad(torch.relu(x).sum(), x)
    (actual,) = torch.autograd.grad(output.sum(), bias)
    assert output[0, 0, 0].isnan() and output[0, 0, 1:].tolist() == [0.0, 2.0 * scale]
    assert_equal(actual, expected * scale)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1.0])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_dead_unit_stops_every_gradient(strategy, dtype, value, p):
    leaves = make_layer(dtype=dtype)
    output, _ = run(leaves, nonlinearity="relu", hidden_dropout=p, strategy=strategy)
    some = torch.autograd.grad(output, list(leaves.values()), torch.where(output > 0, 1.0, value).to(dtype), retain_graph=True)
    none = torch.autograd.grad(output, list(leaves.values()), torch.where(output > 0, 1.0, 0.0).to(dtype))
    assert (output == 0).any()
    for found, expected in zip(some, none, strict=True):
        assert_equal(found, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grads", ["both biases", "b_ih", "b_hh"])
def test_the_gradients_of_the_biases_are_equal_but_not_the_same(strategy, grads):
    """To change one in place leaves the other."""
    leaves = make_layer()
    biases = [leaves[name] for name in ("b_ih", "b_hh") if grads in (name, "both biases")]
    output, _ = run(leaves, strategy=strategy, **BOTH)
    found = torch.autograd.grad(output.square().sum(), biases, retain_graph=True)
    expected = torch.autograd.grad(output.square().sum(), leaves["b_ih"])[0]
    assert all(torch.equal(g, expected) for g in found)
    assert len({g.untyped_storage().data_ptr() for g in found}) == len(biases)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_batch_of_nobody(strategy, p):
    leaves = make_layer(batch=0)
    output, h_n = run(leaves, hidden_dropout=p, recurrent_dropout=p, strategy=strategy)
    assert output.shape == (5, 0, 17) and h_n.shape == (0, 17)
    grads = torch.autograd.grad(output.sum() + h_n.sum(), list(leaves.values()), create_graph=True)
    assert all((g == 0).all() and g.shape == leaf.shape for g, leaf in zip(grads, leaves.values(), strict=True))


def test_memory_is_poisoned():
    """An element that is left out shows as NaN: what these tests count on."""
    assert torch.empty(100).isnan().all() and torch.empty_like(torch.zeros(100)).isnan().all()
