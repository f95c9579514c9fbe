"""The meta device: shapes and dtypes of everything, without a number."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import rnndrop
from rnndrop.functional import rnn_layer, tanh_dropout
from tests.helpers import EACH_KIND, EVERY_KIND

META = torch.device("meta")
DROPOUTS = [*EACH_KIND.values(), EVERY_KIND, dict()]


def described(tensors):
    return [None if x is None else (tuple(x.shape), x.dtype, x.device) for x in tensors]


def assert_alike(found, expected):
    """What was found on the meta device is as on the CPU."""
    assert described(found) == [None if x is None else (tuple(x.shape), x.dtype, META) for x in expected]


@pytest.mark.parametrize("dropouts", DROPOUTS, ids=str)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 4)])
def test_a_module(dropouts, seed, dtype, shape):
    """Forward and backward."""

    def run(device):
        rnn = rnndrop.RNN(4, 8, 2, bidirectional=True, batch_first=True, device=device, dtype=dtype, **dropouts)
        x = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
        output, h_n = rnn(x, seed=seed)
        (output.sum() + h_n.sum()).backward()
        return [output, h_n, x.grad, *(p.grad for p in rnn.parameters())]

    assert_alike(run(META), run("cpu"))


@pytest.mark.parametrize("dropouts", DROPOUTS, ids=str)
def test_a_packed_sequence(dropouts):
    rnn = rnndrop.RNN(4, 8, 2, device=META, **dropouts)
    sizes, order = torch.tensor([3, 2, 2]), torch.tensor([2, 0, 1], device=META)
    output, h_n = rnn(PackedSequence(torch.zeros(7, 4, device=META), sizes, order, order))
    assert_alike([output.data, h_n], [torch.zeros(7, 8), torch.zeros(2, 3, 8)])


@pytest.mark.parametrize(
    "dropouts", [dict(hidden_dropout=0.5), dict(recurrent_dropout=0.5), dict(zoneout=0.5), dict()], ids=str
)
def test_a_cell(dropouts):
    def run(device):
        cell = rnndrop.RNNCell(4, 8, device=device, **dropouts)
        x = torch.zeros(3, 4, device=device, requires_grad=True)
        h = cell(x)
        h.sum().backward()
        return [h, x.grad, *(p.grad for p in cell.parameters())]

    assert_alike(run(META), run("cpu"))


@pytest.mark.parametrize("strategy", ["auto", "cpu", "reference"])
def test_functions(strategy):
    x, h_0, w_ih, w_hh = (torch.zeros(shape, device=META, requires_grad=True) for shape in ((5, 3, 4), (3, 8), (8, 4), (8, 8)))
    output, h_n = rnn_layer(
        x, h_0, w_ih, w_hh, hidden_dropout=0.5, recurrent_dropout=0.5, mask_scope="sequence", strategy=strategy
    )
    found = torch.autograd.grad(output.sum() + h_n.sum(), [x, h_0, w_ih, w_hh])
    assert_alike([output, h_n, *found], [torch.zeros(5, 3, 8), torch.zeros(3, 8), x, h_0, w_ih, w_hh])
    y = tanh_dropout(x, 0.5, strategy=strategy)
    assert_alike([y, *torch.autograd.grad(y.sum(), [x])], [x, x])


def test_a_module_moves_off_it():
    rnn = rnndrop.RNN(4, 8, hidden_dropout=0.5, device=META)
    rnn.to_empty(device="cpu").reset_parameters()
    assert rnn(torch.zeros(5, 3, 4), seed=1)[0].isfinite().all()
