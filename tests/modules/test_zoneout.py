"""Zoneout in evaluation, the one dropout that acts there: it is the expectation, and nothing is drawn."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndrop
from rnndrop import RNNCell
from tests.helpers import (
    BATCH,
    COLUMNS,
    EVERY_KIND,
    INPUTS,
    assert_equal,
    assert_near,
    doubled,
    draws_nothing,
    error_of,
    gradients,
    inputs_of,
    make_rnn,
)
from tests.modules.checks import leaves_of, run_packed
from tests.stream import threshold_of

P = 0.15
F = {"tanh": torch.tanh, "relu": torch.relu}


def share(p):
    """The old state's, exactly."""
    return threshold_of(p) / 65536


def step(x, h, weights, f, p):
    a = x @ weights[0].t() + h @ weights[1].t() + sum(weights[2:])
    return share(p) * h + (1 - share(p)) * f(a)


def by_hand(rnn, x, hx, parameters, lengths=None):
    """A sequence after another, in float64, in plain words; padded with zeros."""
    lengths = [len(x)] * x.shape[1] if lengths is None else lengths
    names, f = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if rnn.bias else 2], F[rnn.nonlinearity]
    outputs, states = [], [[] for _ in hx]
    for b, length in enumerate(lengths):
        y = x[:length, b]
        for number in range(rnn.num_layers):
            both = []
            for direction in range(rnn.num_directions):
                weights = [parameters[f"{name}_l{number}" + "_reverse" * direction] for name in names]
                row, made = number * rnn.num_directions + direction, {}
                h = hx[row, b]
                for t in reversed(range(length)) if direction else range(length):
                    h = made[t] = step(y[t], h, weights, f, rnn.zoneout)
                both.append(torch.stack([made[t] for t in range(length)]))
                states[row].append(h)
            y = torch.cat(both, -1)
        outputs.append(nn.functional.pad(y, (0, 0, 0, len(x) - length)))
    return torch.stack(outputs, 1), torch.stack([torch.stack(row) for row in states])


def check(lengths=None, **options):
    rnn = make_rnn(**{"num_layers": 2, "zoneout": P, **options}).eval()
    leaves = leaves_of(rnn, *inputs_of(rnn))
    copies = doubled(leaves)
    outputs = draws_nothing(lambda: run_packed(rnn, leaves["x"], leaves["hx"], lengths))
    expected = by_hand(rnn, copies["x"], copies["hx"], copies, lengths)
    assert_near(outputs, expected)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


@pytest.mark.parametrize("lengths", [None, [5, 3, 1], [2, 5, 3]], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", [dict(), dict(num_layers=1), dict(nonlinearity="relu"), dict(bias=False), EVERY_KIND])
def test_a_module_against_a_loop(lengths, bidirectional, options):
    """All gradients too; no other dropout acts."""
    check(lengths, bidirectional=bidirectional, **options)


@pytest.mark.parametrize("zoneout", [1e-9, 1 / 65536, 1 / 3, 0.5, 32769 / 65536, 1 - 2**-16, 1.0])
def test_every_rate(zoneout):
    """The share is that of the rate as the masks have it, in units of 1/65536."""
    check(zoneout=zoneout, bidirectional=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=str)
def test_dtypes(dtype, lengths):
    check(lengths, bidirectional=True, dtype=dtype)


def test_all_of_it_leaves_the_state():
    rnn = make_rnn(zoneout=1.0)
    x, hx = inputs_of(rnn)
    for module in (rnn, rnn.eval()):
        output, h_n = module(x, hx)
        assert torch.equal(output, hx.expand(5, BATCH, COLUMNS)) and torch.equal(h_n, hx)


def test_without_a_rate_it_is_torch():
    rnn = make_rnn(**{**EVERY_KIND, "zoneout": 0.0}).eval()
    x, hx = inputs_of(rnn)
    assert_equal(rnn(x, hx), rnn.to_torch()(x, hx))
    rnn.zoneout = P
    assert not torch.equal(rnn(x, hx)[0], rnn.to_torch()(x, hx)[0])


def test_the_seed_and_the_scope_are_ignored():
    rnn = make_rnn(num_layers=2, **EVERY_KIND).eval()
    x, hx = inputs_of(rnn)
    expected = rnn(x, hx)
    for seed in (3, torch.tensor([3]), torch.tensor([1, 2, 3])):
        assert_equal(draws_nothing(lambda seed=seed: rnn(x, hx, seed=seed)), expected)
    rnn.mask_scope = "sequence"
    assert_equal(rnn(x, hx), expected)
    for seed, error in ((1.5, TypeError), (torch.tensor([1, 2]), ValueError)):
        assert draws_nothing(lambda seed=seed: error_of(rnn, x, hx, seed=seed)) is error


def test_layouts():
    rnn = make_rnn(num_layers=2, bidirectional=True, zoneout=P).eval()
    x, hx = inputs_of(rnn)
    output, h_n = rnn(x, hx)
    assert output.stride() == rnn.to_torch()(x, hx)[0].stride()
    one = rnn(x[:, :1], hx[:, :1])
    assert_near(one, (output[:, :1], h_n[:, :1]))
    assert_equal(rnn(x[:, 0], hx[:, 0]), (one[0][:, 0], one[1][:, 0]))
    packed, last = rnn(pack_padded_sequence(x, [5, 5, 5]), hx)
    assert_equal((pad_packed_sequence(packed)[0], last), (output, h_n))
    zeros = torch.zeros_like(hx)
    assert_equal(rnn(x), rnn(x, zeros))
    rnn.batch_first = True
    transposed, same = rnn(x.transpose(0, 1), hx)
    assert_equal((transposed.transpose(0, 1), same), (output, h_n))
    assert transposed.stride() == rnn.to_torch()(x.transpose(0, 1), hx)[0].stride()
    empty = rnn(x[:, :0].transpose(0, 1))
    assert empty[0].shape == (0, 5, 2 * COLUMNS) and empty[1].shape == (4, 0, COLUMNS)


@pytest.mark.parametrize("steps", [1, 3])
def test_h_n_shares_no_memory_with_the_output(steps):
    rnn = make_rnn(zoneout=P).eval()
    output, h_n = rnn(inputs_of(rnn, steps=steps)[0])
    before = h_n.clone()
    with torch.no_grad():
        output.fill_(7)
    assert torch.equal(h_n, before)


def test_gradcheck():
    rnn = make_rnn(input_size=1, hidden_size=2, num_layers=2, bidirectional=True, zoneout=P).eval()
    leaves = [v.requires_grad_() for v in inputs_of(rnn, 3, 2)]
    assert gradcheck(lambda x, hx, *_: rnn(x, hx), (*leaves, *rnn.parameters()))
    assert gradgradcheck(lambda x, hx, *_: rnn(x, hx), (*leaves, rnn.weight_hh_l0))
    leaves = leaves_of(rnn, *inputs_of(rnn))
    outputs = rnn(leaves["x"], leaves["hx"])
    plain = gradients(outputs, leaves, retain_graph=True)
    assert_equal({name: g.detach() for name, g in gradients(outputs, leaves, create_graph=True).items()}, plain)


def test_grad_of_the_parameters():
    rnn = make_rnn(num_layers=2, zoneout=P).eval()
    x, hx = inputs_of(rnn)
    found = grad(lambda p: functional_call(rnn, p, (x, hx))[0].square().sum())(
        {n: p.detach() for n, p in rnn.named_parameters()}
    )
    expected = torch.autograd.grad(rnn(x, hx)[0].square().sum(), [*rnn.parameters()])
    assert_near([*found.values()], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype):
    rnn = make_rnn(num_layers=2, bidirectional=True, zoneout=P, dtype=torch.float32).eval()
    x, hx = inputs_of(rnn)
    exact = by_hand(rnn, x.to(dtype).double(), hx.double(), {name: p.double() for name, p in rnn.named_parameters()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, theirs = rnn(x.to(dtype), hx), rnn.to_torch()(x.to(dtype), hx)
    assert [y.dtype for y in outputs] == [y.dtype for y in theirs] == [torch.bfloat16] * 2
    assert_near(outputs, exact)
    outputs[0].float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())


def test_no_grad_and_inference_mode():
    rnn = make_rnn(num_layers=2, zoneout=P).eval()
    x, hx = inputs_of(rnn)
    expected = rnn(x, hx)
    with torch.no_grad():
        assert_equal(rnn(x, hx), expected)
    with torch.inference_mode():
        assert_equal(rnn(x, hx), expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zoneout", [P, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_cell(nonlinearity, bias, zoneout, dtype):
    cell = RNNCell(INPUTS, COLUMNS, bias, nonlinearity, dtype=dtype, zoneout=zoneout, hidden_dropout=0.5, recurrent_dropout=0.5)
    leaves = {"x": torch.randn(BATCH, INPUTS, dtype=dtype), "hx": torch.randn(BATCH, COLUMNS, dtype=dtype)}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()} | dict(cell.eval().named_parameters())
    copies = doubled(leaves)
    found = draws_nothing(lambda: cell(leaves["x"], leaves["hx"], seed=3))
    x, hx, *weights = copies.values()
    expected = step(x, hx, weights, F[nonlinearity], zoneout)
    assert found.dtype == dtype
    assert_near(found, expected)
    allowed = dict(allow_unused=True, materialize_grads=True)
    assert_near(gradients([found], leaves, **allowed), gradients([expected], copies, **allowed))
    assert_equal(cell(leaves["x"][0], leaves["hx"][0]), cell(leaves["x"][:1], leaves["hx"][:1])[0])


def test_a_cell_is_a_step_of_a_module():
    cell = RNNCell(INPUTS, COLUMNS, dtype=torch.float64, zoneout=P).eval()
    rnn = make_rnn(zoneout=P).eval()
    rnn.load_state_dict({name + "_l0": p for name, p in cell.state_dict().items()})
    x, hx = inputs_of(rnn)
    h, outputs = hx[0], []
    for one in x:
        h = cell(one, h)
        outputs.append(h)
    assert_near(rnn(x, hx), (torch.stack(outputs), h[None]))


SAMPLES = 4000


def test_it_is_the_mean_of_a_step():
    """Over many masks of one step the state tends to it, within six deviations of the mean, in a module and in a cell."""
    cell = RNNCell(INPUTS, COLUMNS, dtype=torch.float64, zoneout=0.3)
    rnn = make_rnn(zoneout=0.3)
    rnn.load_state_dict({name + "_l0": p for name, p in cell.state_dict().items()})
    x, hx = torch.randn(1, INPUTS, dtype=torch.float64), torch.randn(1, COLUMNS, dtype=torch.float64)
    many, seeds = (x.expand(SAMPLES, -1), hx.expand(SAMPLES, -1)), torch.arange(SAMPLES)
    q = share(0.3)
    new = torch.tanh(x @ cell.weight_ih.t() + hx @ cell.weight_hh.t() + cell.bias_ih + cell.bias_hh)
    deviation = (new - hx).abs() * (q * (1 - q) / SAMPLES) ** 0.5
    for samples in (cell(*many, seed=seeds), rnn(many[0][None], many[1][None], seed=seeds)[0][0], cell(*many, seed=5)):
        assert ((samples.mean(0) - cell.eval()(x, hx)[0]).abs() <= 6 * deviation).all()
        assert all(((sample == hx) | (sample - new).abs().lt(1e-12)).all() for sample in samples[:20])
        cell.train()
    expected = torch.autograd.grad(cell.eval()(x, hx).sum(), cell.weight_hh)[0]
    mean = torch.autograd.grad(cell.train()(*many, seed=seeds).sum() / SAMPLES, cell.weight_hh)[0]
    slope = torch.autograd.grad(new.sum(), cell.weight_hh)[0].abs()
    assert ((mean - expected).abs() <= 6 * slope * (q * (1 - q) / SAMPLES) ** 0.5 + 1e-12).all()


def test_copies_and_what_explains_it():
    rnn = make_rnn(zoneout=P).eval()
    x, hx = inputs_of(rnn)
    assert rnndrop.explain(rnn, x).strategy == "cpu"
    assert_equal(copy.deepcopy(rnn)(x, hx), rnn(x, hx))
    rnn.zoneout = 0.0
    assert rnndrop.explain(rnn, x).strategy == "torch.nn.RNN"
