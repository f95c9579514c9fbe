"""PyTorch's own statements: nn.RNN followed by nn.Dropout where that is the same, and its own test inputs."""

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import rnndrop
from tests.helpers import BATCH, COLUMNS, INPUTS, STEPS, assert_near, gradients
from tests.oracle import mask as exact_mask


class SameMask(nn.Module):
    """nn.Dropout with a mask that is given."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask.to(x.dtype).view(x.shape)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.875])
def test_dropout_with_its_mask_given_is_dropout(p):
    """What stands for nn.Dropout here does what nn.Dropout does: the same values where kept, 0 elsewhere."""
    x = torch.randn(40, 50)
    torch.manual_seed(1)
    theirs = nn.Dropout(p)(x)
    torch.manual_seed(1)
    mask = nn.Dropout(p)(torch.ones(40, 50))
    assert torch.equal(SameMask(mask)(x), theirs)
    assert mask.unique().tolist() == rnndrop.dropout_mask(1, 40, 50, p).unique().tolist()


def run_both(theirs, p, steps):
    """Outputs and gradients of an rnndrop.RNN, and of nn.RNN followed by a dropout with its mask."""
    mine = rnndrop.RNN.from_torch(theirs, hidden_dropout=p)
    x = torch.randn(steps, BATCH, INPUTS, dtype=torch.float64, requires_grad=True)
    output, h_n = mine(x, seed=3)
    expected = SameMask(exact_mask(3, steps * BATCH, COLUMNS, p))(theirs(x)[0])
    assert torch.equal(h_n[0], output[-1])
    return [
        (output, expected),
        *[gradients([y], {"x": x, **dict(module.named_parameters())}) for y, module in ((output, mine), (expected, theirs))],
    ]


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_one_step_is_rnn_and_dropout(p, nonlinearity):
    theirs = nn.RNN(INPUTS, COLUMNS, nonlinearity=nonlinearity, dtype=torch.float64)
    outputs, mine, expected = run_both(theirs, p, steps=1)
    assert_near(*outputs)
    assert_near(mine, expected)


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_outputs_that_are_not_fed_back_are_rnn_and_dropout(p, nonlinearity):
    theirs = nn.RNN(INPUTS, COLUMNS, nonlinearity=nonlinearity, dtype=torch.float64)
    nn.init.zeros_(theirs.weight_hh_l0)
    outputs, mine, expected = run_both(theirs, p, steps=STEPS)
    assert_near(*outputs)
    del mine["grad weight_hh_l0"], expected["grad weight_hh_l0"]  # what would have been fed back differs
    assert_near(mine, expected)


def test_outputs_that_are_fed_back_are_not():
    """The first step is; from the second on, what was dropped is missing."""
    (output, expected), *_ = run_both(nn.RNN(INPUTS, COLUMNS, dtype=torch.float64), 0.5, steps=STEPS)
    assert_near(output[0], expected[0])
    assert torch.equal(output == 0, expected == 0)
    kept = output[1:] != 0
    assert (output[1:][kept] != expected[1:][kept]).all()


def test_the_last_step_of_a_sequence_is_rnn_and_dropout_after_it():
    """Dropout of the last state alone is not fed back: an RNN for the steps before, one step with dropout."""
    theirs = nn.RNN(INPUTS, COLUMNS, dtype=torch.float64)
    mine = rnndrop.RNN.from_torch(theirs, hidden_dropout=0.5)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    _, before = mine.eval()(x[:-1])
    output, _ = mine.train()(x[-1:], before, seed=3)
    assert_near(output[0], SameMask(exact_mask(3, BATCH, COLUMNS, 0.5))(theirs(x)[0][-1]))


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
def test_a_loop_of_rnn_cell_and_dropout(p):
    """The loop that users write, its dropout with our masks."""
    cell = nn.RNNCell(INPUTS, COLUMNS, dtype=torch.float64)
    mine = rnndrop.RNN(INPUTS, COLUMNS, dtype=torch.float64, hidden_dropout=p)
    mine.load_state_dict({name + "_l0": w for name, w in cell.state_dict().items()})
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64, requires_grad=True)
    masks, h, steps = exact_mask(3, STEPS * BATCH, COLUMNS, p).split(BATCH), None, []
    for x_t, mask in zip(x, masks, strict=True):
        h = SameMask(mask)(cell(x_t, h))
        steps.append(h)
    output, _ = mine(x, seed=3)
    assert_near(output, torch.stack(steps))
    names = [name for name, _ in mine.named_parameters()]
    theirs = dict(zip(names, cell.parameters(), strict=True))
    assert_near(
        gradients([output], {"x": x, **dict(mine.named_parameters())}), gradients([torch.stack(steps)], {"x": x, **theirs})
    )


def test_on_average_it_drops_what_dropout_drops():
    """Over many seeds the mean of one step's output is the output without dropout, as nn.Dropout's is."""
    mine = rnndrop.RNN(INPUTS, COLUMNS, dtype=torch.float64, hidden_dropout=0.5)
    x = torch.randn(1, 1, INPUTS, dtype=torch.float64).expand(1, 20_000, INPUTS)
    with torch.no_grad():
        output, expected = mine(x, seed=3)[0][0], mine.eval()(x[:, :1])[0][0, 0]
    # An element is 0 or twice its value, even chances: its mean over n has standard deviation |value| / sqrt(n).
    assert ((output.mean(0) - expected).abs() <= 6 * expected.abs() / 20_000**0.5).all()


# PyTorch's own inputs.

PAIRS = {getattr(nn, name): getattr(rnndrop, name) for cell in ("RNN", "GRU", "LSTM") for name in (cell, f"{cell}Cell")}
RATES = [dict(), dict(hidden_dropout=0.25, recurrent_dropout=0.5)]


def infos():
    return [pytest.param(info, id=info.name) for info in module_db if info.module_cls in PAIRS]


@pytest.mark.parametrize("info", infos())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_inputs_of_torch(info, dtype, training):
    options = dict(device="cpu", dtype=dtype, requires_grad=True, training=training)
    samples = info.module_inputs_func(info, **options)
    if issubclass(info.module_cls, nn.RNNBase):
        samples += info.module_inputs_func(info, with_packed_sequence=True, **options)
    assert samples
    dropped = 0
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
        expected = theirs(*given.args, **given.kwargs)
        for rates in RATES:
            mine = PAIRS[info.module_cls](*made.args, **made.kwargs, **rates).to(dtype).train(training)
            mine.load_state_dict(theirs.state_dict())
            actual = mine(*given.args, **given.kwargs)
            if not (rates and training):
                torch.testing.assert_close(actual, expected, rtol=0, atol=0)
            for a, b in zip(flat(actual), flat(expected), strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype and a.isfinite().all()
                dropped += not torch.equal(a, b)
    assert bool(dropped) == training


def flat(outputs):
    """The tensors of a cell's or a layer's outputs."""
    if isinstance(outputs, nn.utils.rnn.PackedSequence):
        return [outputs.data]
    return [y for part in outputs for y in flat(part)] if isinstance(outputs, tuple) else [outputs]


@pytest.mark.parametrize("info", infos())
@pytest.mark.parametrize("rates", RATES, ids=["none", "inside"])
def test_error_inputs_of_torch(info, rates):
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    assert errors
    for error in errors:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                PAIRS[info.module_cls](*made.args, **made.kwargs, **rates)
        else:
            mine = PAIRS[info.module_cls](*made.args, **made.kwargs, **rates)
            with pytest.raises(error.error_type, match=error.error_regex):
                mine(*given.args, **given.kwargs)
