"""Both directions of a layer in one launch of `resident`, through the module."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndrop
from rnndrop.kernels import resident
from rnndrop.modules import base
from tests import oracle, triton_driver
from tests.helpers import assert_near, inputs_of, make_rnn
from tests.tolerances import SEQUENCE

KINDS = [
    dict(hidden_dropout=0.3),
    dict(recurrent_dropout=0.4, zoneout=0.3, mask_scope="sequence", bias=False),
    dict(hidden_dropout=0.3, recurrent_dropout=0.4, zoneout=0.3, num_layers=2, dropout=0.25, nonlinearity="relu"),
]
SEED = -9


@pytest.fixture
def launches(monkeypatch):
    """The shapes of the input projections that `resident` is given; modules choose it wherever they are."""
    shapes, forward = [], resident.forward

    def counted(input_projection, *args, **options):
        shapes.append(tuple(input_projection.shape))
        return forward(input_projection, *args, **options)

    monkeypatch.setattr(resident, "forward", counted)
    monkeypatch.setattr(base, "resolved", lambda *args: "resident")
    monkeypatch.setattr(base, "mask_form", lambda *args: "bits")
    return shapes


def module(**options) -> rnndrop.RNN:
    torch.manual_seed(3)
    return make_rnn(bidirectional=True, dtype=torch.float32, **options).to(triton_driver.device())


def compare(outputs, leaves, expected, exact, **options):
    """Outputs and gradients of a loss that is not linear."""
    for y, e in zip(outputs, expected, strict=True):
        assert_near(y.cpu(), e, SEQUENCE[torch.float32])
    found, right = (
        torch.autograd.grad(sum(y.square().sum() for y in of), list(by), **options)
        for of, by in ((outputs, leaves), (expected, exact))
    )
    for g, e in zip(found, right, strict=True):
        assert_near(g.cpu(), e, 4 * SEQUENCE[torch.float32])
    return found, right


@pytest.mark.parametrize("lengths", [None, [5, 3, 3, 1]], ids=str)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_one_launch_is_both_directions(options, lengths, launches):
    rnn = module(**options)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn, steps=5, batch=4))
    device = rnn.weight_ih_l0.device
    parameters = {name: p.detach().cpu().double().requires_grad_() for name, p in rnn.named_parameters()}
    exact_x, exact_hx = (v.detach().double().requires_grad_() for v in (x, hx))
    expected = oracle.network(rnn, exact_x, exact_hx, SEED, lengths, parameters)
    exact = [exact_x, exact_hx, *parameters.values()]
    given = x.to(device)
    if lengths is not None:
        given = pack_padded_sequence(given, lengths)
    output, h_n = rnn(given, hx.to(device), seed=SEED)
    if lengths is not None:
        output = pad_packed_sequence(output)[0]
    rows = (5, 4) if lengths is None else (sum(lengths),)
    assert launches == [(*rows, 2, rnn.hidden_size)] * rnn.num_layers
    compare([output, h_n], [x, hx, *rnn.parameters()], expected, exact)


def test_one_launch_after_the_other_where_both_do_not_fit(launches):
    torch.manual_seed(3)
    rnn = rnndrop.RNN(3, 65, bidirectional=True, hidden_dropout=0.3).to(triton_driver.device())
    x = torch.randn(2, 3, 3)
    output, h_n = rnn(x.to(rnn.weight_ih_l0.device), seed=SEED)
    assert launches == [(2, 3, 1, 65)] * 2
    expected = oracle.network(rnn.double().cpu(), x.double(), torch.zeros(2, 3, 65).double(), SEED)
    for y, e in zip((output, h_n), expected, strict=True):
        assert_near(y.cpu(), e, SEQUENCE[torch.float32])


def test_the_gradient_of_the_gradient(launches):
    rnn = module(hidden_dropout=0.3, zoneout=0.3)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn, steps=3, batch=2))
    parameters = {name: p.detach().cpu().double().requires_grad_() for name, p in rnn.named_parameters()}
    exact = [v.detach().double().requires_grad_() for v in (x, hx)]
    expected = oracle.network(rnn, *exact, SEED, None, parameters)
    device = rnn.weight_ih_l0.device
    outputs = rnn(x.to(device), hx.to(device), seed=SEED)
    found, right = compare(outputs, [x, hx], expected, exact, create_graph=True)
    assert len(launches) == 1
    for g, e in zip(
        torch.autograd.grad(sum(g.square().sum() for g in found), [x, hx]),
        torch.autograd.grad(sum(g.square().sum() for g in right), exact),
        strict=True,
    ):
        assert_near(g.cpu(), e, 16 * SEQUENCE[torch.float32])


def test_zoneout_in_evaluation(launches, monkeypatch):
    """And its gradient, which is the plain loop's."""
    rnn = module(hidden_dropout=0.3, zoneout=0.3).eval()
    x, hx = (v.requires_grad_() for v in inputs_of(rnn))
    device = rnn.weight_ih_l0.device
    output, h_n = rnn(x.to(device), hx.to(device))
    assert [shape[-2] for shape in launches] == [2]
    plain = make_rnn(bidirectional=True, zoneout=0.3).eval()
    plain.load_state_dict(rnn.state_dict())
    exact = [v.detach().double().requires_grad_() for v in (x, hx)]
    monkeypatch.setattr(base, "resolved", lambda *args: "reference")
    compare([output, h_n], [x, hx], plain(*exact), exact)
