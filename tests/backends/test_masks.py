"""The masks of every strategy that runs on the CPU, seen from outside: what is 0, in outputs and in gradients."""

import pytest
import torch

from rnndrop import functional
from tests import oracle
from tests.backends.test_cpu import SEED, run
from tests.helpers import STRATEGIES, gradients, keep, make_layer


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
    grad = gradients([output, h_n], leaves)["grad input"]
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
    h_0 = torch.randn(batch, columns, dtype=torch.float64).requires_grad_()
    eye = torch.eye(columns, dtype=torch.float64)
    options = dict(recurrent_dropout=p, mask_scope=mask_scope, direction=direction, strategy=strategy, seed=SEED)
    output, _ = functional.rnn_layer(x, h_0, eye, eye, **options)
    rows = steps * batch if mask_scope == "step" else batch
    where = dict(kind="recurrent", direction=direction)
    drawn = keep(SEED, rows, columns, p, **where).view(-1, batch, columns).expand(steps, batch, columns)
    order = list(range(steps))[:: -1 if direction else 1]
    for before, t in zip([None, *order], order, strict=False):
        # The output shows it: without what was dropped a_t is x_t alone.
        alone = output[t].isclose(torch.tanh(x[t]), rtol=1e-12, atol=0)
        assert torch.equal(~alone, drawn[t])
        # The gradient shows it: that of step t's output, seen one step before.
        grads = torch.autograd.grad(output[t].sum(), [x, h_0], retain_graph=True)
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
    first = {**leaves, "input": leaves["input"][:1]}
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
        leaves["h_0"][~drawn] = value
    output, h_n = run(leaves, recurrent_dropout=p, strategy=strategy)
    assert torch.equal(output, clean[0]) and torch.equal(h_n, clean[1])
    found = gradients([output, h_n], leaves)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert (found["grad h_0"][~drawn] == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("rates", [dict(hidden_dropout=1.0), dict(recurrent_dropout=1.0)], ids=lambda r: "+".join(r))
def test_everything_dropped_is_zero_even_where_all_is_nan(strategy, mask_scope, rates):
    leaves = make_layer()
    with torch.no_grad():
        leaves["input" if "hidden_dropout" in rates else "h_0"].fill_(float("nan"))
    output, h_n = run(leaves, mask_scope=mask_scope, strategy=strategy, **rates)
    found = gradients([output, h_n], leaves)
    if "hidden_dropout" in rates:
        assert (output == 0).all() and (h_n == 0).all()
        assert all((found[name] == 0).all() for name in ("grad input", "grad h_0", "grad b_ih", "grad b_hh"))
    else:
        assert all(torch.isfinite(y).all() for y in (output, h_n, *found.values()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_step_scope_brings_units_back_and_sequence_scope_does_not(strategy):
    leaves = make_layer(steps=30, columns=40)
    step = run(leaves, hidden_dropout=0.5, strategy=strategy)[0] != 0
    whole = run(leaves, hidden_dropout=0.5, mask_scope="sequence", strategy=strategy)[0] != 0
    assert (step.any(0) & ~step.all(0)).all()  # in 30 steps each unit is there once and not there once
    assert torch.equal(whole, whole[:1].expand_as(whole)) and not whole[0].all()
    assert torch.equal(whole[0], oracle.mask(SEED, 3, 40, 0.5) != 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_h_n_is_no_view_of_the_output(strategy):
    output, h_n = run(make_layer(steps=1), hidden_dropout=0.5, strategy=strategy)
    assert torch.equal(output[-1], h_n)
    assert output.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()
