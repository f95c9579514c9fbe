"""The kernels behind a layer of a GRU or an LSTM: every strategy against the plain loop in float64."""

import pytest
import torch

from rnndrop import functional
from rnndrop.backends.triton import GATED_RECURRENCES
from rnndrop.cell import CELLS, Weights
from rnndrop.mask import Mask, stream
from rnndrop.ops import layer as layer_operator
from rnndrop.ops.mask import draw
from rnndrop.steps import Steps
from tests import triton_driver
from tests.tolerances import SEQUENCE

H = 20  # not a power of two
EVERY = {"hidden_dropout": 0.25, "recurrent_dropout": 0.3, "zoneout": 0.25, "candidate_dropout": 0.2}
OF_AN_LSTM = {"cell_dropout": 0.15, "cell_zoneout": 0.25}
OPTIONS = [
    {},
    {"hidden_dropout": 0.25, "direction": 1},
    {"recurrent_dropout": 0.25, "mask_scope": "sequence", "layer": 2},
    EVERY,
    EVERY | {"mask_scope": "sequence", "direction": 1},
]
both_cells = pytest.mark.parametrize("cell", ["LSTM", "GRU"])
every_strategy = pytest.mark.parametrize("strategy", GATED_RECURRENCES)


@pytest.fixture
def device():
    return triton_driver.device()


def layer_inputs(cell, *, T=4, B=3, width=5, batch_sizes=None, dtype=torch.float32, device="cpu"):
    """input, the states, w_ih, w_hh, b_ih, b_hh."""
    generator, rows = torch.Generator().manual_seed(H), CELLS[cell].gates * H

    def normal(*shape, size=1.0):
        return (size * torch.randn(shape, generator=generator)).to(dtype).to(device)

    x = normal(T, B, width) if batch_sizes is None else normal(sum(batch_sizes), width)
    states = [normal(B, H) for _ in CELLS[cell].states]
    return [x, *states, normal(rows, width, size=width**-0.5), normal(rows, H, size=0.5 * H**-0.5), normal(rows), normal(rows)]


def run(cell, inputs, **options):
    """Output and the states at the end."""
    output, last = (functional.lstm_layer if cell == "LSTM" else functional.gru_layer)(*inputs, seed=-7, **options)
    return output, *(last if cell == "LSTM" else (last,))


def results(cell, inputs, strategy, dtype=None, **options):
    """Output, states at the end and the gradients of all inputs, in float64 on the CPU."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    outputs = run(cell, leaves, strategy=strategy, **options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype).to(y.device) for y in outputs]
    found = torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], grads)
    return [x.double().cpu() for x in (*outputs, *found)]


def assert_close(found, expected, bound):
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() <= bound * y.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@both_cells
@every_strategy
def test_a_strategy_by_name_is_the_plain_loop(strategy, cell, options, device):
    inputs = layer_inputs(cell, device=device)
    if cell == "LSTM" and "zoneout" in options:
        options = options | OF_AN_LSTM
    expected = results(cell, inputs, "reference", torch.float64, **options)
    assert_close(results(cell, inputs, strategy, **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("missing", [("b_ih",), ("b_hh",), ("b_ih", "b_hh")], ids=str)
@both_cells
def test_without_a_bias(cell, missing, device):
    inputs = layer_inputs(cell, T=2, device=device)
    for name in missing:
        inputs[-2 if name == "b_ih" else -1] = None
    expected = results(cell, inputs, "reference", torch.float64, hidden_dropout=0.25)
    assert_close(results(cell, inputs, "stepwise", hidden_dropout=0.25), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both_cells
@every_strategy
def test_sixteen_bits(strategy, cell, dtype, device):
    inputs = layer_inputs(cell, dtype=dtype, device=device)
    options = {"hidden_dropout": 0.25, "recurrent_dropout": 0.25}
    expected = results(cell, inputs, "reference", torch.float64, **options)
    found = results(cell, inputs, strategy, **options)
    assert_close(found, expected, SEQUENCE[dtype])
    assert torch.equal(found[0] == 0, expected[0] == 0)


@pytest.mark.parametrize("scope, direction", [("step", 0), ("sequence", 1)])
@both_cells
@every_strategy
def test_packed_sequences(strategy, cell, scope, direction, device):
    batch_sizes = [3, 3, 2, 1]
    inputs = layer_inputs(cell, batch_sizes=batch_sizes, device=device)
    options = {"batch_sizes": batch_sizes, "direction": direction, "mask_scope": scope} | EVERY
    expected = results(cell, inputs, "reference", torch.float64, **options)
    assert_close(results(cell, inputs, strategy, **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("batch_sizes", [None, [3, 3, 2, 1]], ids=str)
@both_cells
@every_strategy
def test_the_expectation_of_zoneout(strategy, cell, batch_sizes, device, monkeypatch):
    """Forward is the kernel's, backward the plain loop's."""
    leaves = [x.requires_grad_() for x in layer_inputs(cell, batch_sizes=batch_sizes, device=device)]
    row, sizes = CELLS[cell], None if batch_sizes is None else torch.tensor(batch_sizes)
    shares = {"zoneout": 0.3, "cell_zoneout": 0.45} if cell == "LSTM" else {"zoneout": 0.3}
    masks = {kind: Mask(torch.empty(0, 1, dtype=torch.int8, device=device), share) for kind, share in shares.items()}
    found, calls, recurrence = [], [], GATED_RECURRENCES[strategy]
    forward = recurrence.forward
    monkeypatch.setattr(recurrence, "forward", lambda *args, **options: calls.append(strategy) or forward(*args, **options))
    for name, dtype in ((strategy, torch.float32), ("reference", torch.float64)):
        x, *rest = (leaf.to(dtype) for leaf in leaves)
        states, weights = rest[: len(row.states)], Weights(*rest[len(row.states) :])
        output, last = layer_operator.layer(x, states, weights, masks, Steps(4, 3, sizes), row, name)
        gradients = torch.autograd.grad(output.square().sum() + sum(y.sum() for y in last), leaves)
        found.append([y.detach().double() for y in (output, *last, *gradients)])
    assert calls == [strategy]
    assert_close(*found, SEQUENCE[torch.float32])


@both_cells
def test_a_gradient_that_nobody_asks_for(cell, device):
    """Of the output alone, of the last state alone, of weights alone."""
    inputs, found = layer_inputs(cell, device=device), []
    for name, dtype in (("stepwise", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_(i > 2) for i, x in enumerate(inputs)]
        output, *last = run(cell, leaves, strategy=name, hidden_dropout=0.25)
        asked = leaves[3:]
        gradients = [torch.autograd.grad(y.sum(), asked, retain_graph=True) for y in (output, last[-1])]
        found.append([x.double().cpu() for each in gradients for x in each])
    assert_close(*found, SEQUENCE[torch.float32])


@both_cells
def test_second_derivatives_go_through_the_plain_loop(cell, device):
    inputs, second = [x.requires_grad_() for x in layer_inputs(cell, T=3, device=device)], []
    for name in ("stepwise", "reference"):
        output, *_ = run(cell, inputs, strategy=name, **EVERY)
        first = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
        second.append([*first, *torch.autograd.grad(sum(x.square().sum() for x in first), inputs)])
    for x, y in zip(*second, strict=True):
        assert (x - y).abs().max() <= SEQUENCE[torch.float32] * y.abs().max().clamp(min=1)


@both_cells
def test_the_operators_are_what_the_compiler_is_told(cell, device):
    row = CELLS[cell]
    x, *rest = (v.requires_grad_() for v in layer_inputs(cell, T=2, device=device))
    states, weights = rest[: len(row.states)], rest[len(row.states) :]
    seed = torch.tensor([3], device=device)
    keeps = [None if "zoneout" in kind else draw(seed, 6, H, 0.25, stream(kind, 0, 1), "bits") for kind in row.kinds]
    scales = [1.0 if keep is None else 4 / 3 for keep in keeps]
    operands = x, states, *weights, keeps, scales, 2, 3, None, True, cell, "stepwise"
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(layer_operator._operator, operands, test_utils=checks)
