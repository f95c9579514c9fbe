"""Every strategy against the layer by hand in float64."""

import itertools

import pytest
import torch

from rnndrop import functional
from tests.helpers import (
    STRATEGIES,
    assert_near,
    doubled,
    exact_mask,
    gradients,
    keep,
    layer_by_hand,
    make_layer,
    mask_over_time,
)

SEED = -7
BOTH = dict(hidden_dropout=0.3, recurrent_dropout=0.4)
RATES = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), BOTH]


def run(leaves, lengths=None, **options):
    """Output and h_n of functional.rnn_layer; with `lengths`, which fall, of the packed input, and padded again."""
    if lengths is None:
        return functional.rnn_layer(*leaves.values(), seed=SEED, **options)
    x, *rest = leaves.values()
    sizes = [sum(length > t for length in lengths) for t in range(len(x))]
    packed = torch.cat([x[t, :size] for t, size in enumerate(sizes)])
    output, h_n = functional.rnn_layer(packed, *rest, seed=SEED, batch_sizes=sizes, **options)
    steps = [torch.nn.functional.pad(y, (0, 0, 0, len(lengths) - len(y))) for y in output.split(sizes)]
    return torch.stack(steps), h_n


def by_hand(leaves, lengths=None, *, hidden_dropout=0.0, recurrent_dropout=0.0, mask_scope="step", layer=0, direction=0,
            nonlinearity="tanh", strategy=None):  # fmt: skip
    steps, batch, _ = leaves["x"].shape
    hidden, recurrent = (
        mask_over_time(SEED, steps, batch, len(leaves["w_hh"]), p, mask_scope, kind=kind, layer=layer, direction=direction)
        for kind, p in (("hidden", hidden_dropout), ("recurrent", recurrent_dropout))
    )
    return layer_by_hand(
        *leaves.values(), nonlinearity=nonlinearity, hidden=hidden, recurrent=recurrent, lengths=lengths,
        reverse=bool(direction),
    )  # fmt: skip


def check(leaves, lengths=None, **options):
    """Outputs, h_n and the gradients of all leaves."""
    outputs, copies = run(leaves, lengths, **options), doubled(leaves)
    expected = by_hand(copies, lengths, **options)
    for actual, exact in zip(outputs, expected, strict=True):
        assert actual.dtype == leaves["x"].dtype
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


@pytest.mark.parametrize("strategy", ["torch", "reference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(strategy, shape):
    for direction in (0, 1):
        check(make_layer(*shape), strategy=strategy, direction=direction, **BOTH)


@pytest.mark.parametrize("strategy", ["torch", "reference"])
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
        "x": leaves["x"].detach().permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "h0": leaves["h0"].detach().repeat(2, 2)[::2, ::2][:, :3].repeat(2, 2)[:4],
        "w_ih": leaves["w_ih"].detach().t().contiguous().t(),
        "w_hh": leaves["w_hh"].detach()[:1].expand(6, 6),
        "b_ih": leaves["b_ih"].detach()[::2].repeat_interleave(4)[::2],
        "b_hh": leaves["b_hh"].detach()[:1].expand(6),
    }
    strided = {name: leaf.requires_grad_() for name, leaf in strided.items()}
    assert not any(strided[name].is_contiguous() for name in ("x", "w_ih", "w_hh", "b_hh"))
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

    assert_near(found(leaves, run(leaves, strategy=strategy, **BOTH)), found(copies, by_hand(copies, **BOTH)))


# The mask seen from outside.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("lengths", [None, [5, 3, 2]])
def test_the_hidden_mask_in_gradients_is_that_in_outputs(strategy, mask_scope, direction, lengths):
    """With W_ih = 1 the gradient of x_t is that of a_t: zero just where step t dropped, as its output is."""
    steps, batch, columns, p = 5, 3, 40, 0.4
    leaves = make_layer(steps, batch, columns, columns)
    with torch.no_grad():
        leaves["w_ih"].copy_(torch.eye(columns))
    options = dict(hidden_dropout=p, mask_scope=mask_scope, direction=direction, strategy=strategy)
    output, h_n = run(leaves, lengths, **options)
    grad = gradients([output, h_n], leaves)["grad x"]
    rows = steps * batch if mask_scope == "step" else batch
    drawn = keep(SEED, rows, columns, p, direction=direction).view(-1, batch, columns).expand(steps, batch, columns)
    for t in range(steps):
        alive = batch if lengths is None else sum(length > t for length in lengths)
        assert torch.equal(output[t, :alive] != 0, drawn[t, :alive])
        assert torch.equal(grad[t, :alive] != 0, drawn[t, :alive])
        assert (output[t, alive:] == 0).all() and (grad[t, alive:] == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("direction", [0, 1])
def test_the_recurrent_mask_in_gradients_is_that_in_outputs(strategy, mask_scope, direction):
    """With W_hh = 1 and no input a dropped unit shows as an output of exactly 0, and cuts the gradient to the step before."""
    steps, batch, columns, p = 4, 3, 40, 0.4
    x = torch.randn(steps, batch, columns, dtype=torch.float64).requires_grad_()
    h0 = torch.randn(batch, columns, dtype=torch.float64).requires_grad_()
    eye = torch.eye(columns, dtype=torch.float64)
    options = dict(recurrent_dropout=p, mask_scope=mask_scope, direction=direction, strategy=strategy, seed=SEED)
    output, _ = functional.rnn_layer(x, h0, eye, eye, **options)
    rows = steps * batch if mask_scope == "step" else batch
    where = dict(kind="recurrent", direction=direction)
    drawn = keep(SEED, rows, columns, p, **where).view(-1, batch, columns).expand(steps, batch, columns)
    order = list(range(steps))[:: -1 if direction else 1]
    for before, t in zip([None, *order], order, strict=False):
        # The output shows it: without what was dropped a_t is x_t alone.
        alone = output[t].isclose(torch.tanh(x[t]), rtol=1e-12, atol=0)
        assert torch.equal(~alone, drawn[t])
        # The gradient shows it: that of step t's output, seen one step before.
        grads = torch.autograd.grad(output[t].sum(), [x, h0], retain_graph=True)
        seen = grads[1] if before is None else grads[0][before]
        assert torch.equal(seen != 0, drawn[t])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_dropped_unit_is_zero_even_where_its_activation_is_nan(strategy, nonlinearity):
    columns, options = 40, dict(hidden_dropout=0.5, strategy=strategy, nonlinearity=nonlinearity)
    leaves, nan = make_layer(2, 1, 3, columns), torch.rand(columns) < 0.5
    with torch.no_grad():
        leaves["b_ih"][nan] = float("nan")
        leaves["b_ih"][~nan] = 3  # a relu lets all others through
    output, _ = run(leaves, **options)
    drawn = keep(SEED, 2, columns, 0.5).view(2, 1, columns)
    assert torch.equal(output != 0, drawn)
    assert torch.equal(output[0, 0].isnan(), nan & drawn[0, 0])
    assert output[1][drawn[1]].isnan().all()  # a NaN that was kept reaches all units of the next step, but the dropped
    first = {**leaves, "x": leaves["x"][:1]}
    grad = torch.autograd.grad(run(first, **options)[0].sum(), leaves["b_ih"])[0]
    assert (grad[~drawn[0, 0]] == 0).all() and (grad[drawn[0, 0] & ~nan] != 0).all()
    if nonlinearity == "tanh":  # the slope of relu at NaN is a convention
        assert torch.equal(grad.isnan(), nan & drawn[0, 0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_recurrently_dropped_nan_does_not_enter(strategy, value):
    columns, p = 40, 0.5
    leaves = make_layer(1, 2, 3, columns)
    drawn = keep(SEED, 2, columns, p, kind="recurrent")
    clean = run(leaves, recurrent_dropout=p, strategy=strategy)
    with torch.no_grad():
        leaves["h0"][~drawn] = value
    output, h_n = run(leaves, recurrent_dropout=p, strategy=strategy)
    assert torch.equal(output, clean[0]) and torch.equal(h_n, clean[1])
    found = gradients([output, h_n], leaves)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert (found["grad h0"][~drawn] == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("rates", [dict(hidden_dropout=1.0), dict(recurrent_dropout=1.0)], ids=lambda r: "+".join(r))
def test_everything_dropped_is_zero_even_where_all_is_nan(strategy, mask_scope, rates):
    leaves = make_layer()
    with torch.no_grad():
        leaves["x" if "hidden_dropout" in rates else "h0"].fill_(float("nan"))
    output, h_n = run(leaves, mask_scope=mask_scope, strategy=strategy, **rates)
    found = gradients([output, h_n], leaves)
    if "hidden_dropout" in rates:
        assert (output == 0).all() and (h_n == 0).all()
        assert all((found[name] == 0).all() for name in ("grad x", "grad h0", "grad b_ih", "grad b_hh"))
    else:
        assert all(torch.isfinite(y).all() for y in (output, h_n, *found.values()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_step_scope_brings_units_back_and_sequence_scope_does_not(strategy):
    leaves = make_layer(steps=30, columns=40)
    step = run(leaves, hidden_dropout=0.5, strategy=strategy)[0] != 0
    whole = run(leaves, hidden_dropout=0.5, mask_scope="sequence", strategy=strategy)[0] != 0
    assert (step.any(0) & ~step.all(0)).all()  # in 30 steps each unit is there once and not there once
    assert torch.equal(whole, whole[:1].expand_as(whole)) and not whole[0].all()
    assert torch.equal(whole[0], exact_mask(SEED, 3, 40, 0.5) != 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_h_n_is_no_view_of_the_output(strategy):
    output, h_n = run(make_layer(steps=1), hidden_dropout=0.5, strategy=strategy)
    assert torch.equal(output[-1], h_n)
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()


def test_memory_is_poisoned():
    """An element that is left out shows as NaN: what these tests count on."""
    assert torch.empty(100).isnan().all() and torch.empty_like(torch.zeros(100)).isnan().all()
