"""Tensors and rates at the edge of what a layer takes."""

import pytest
import torch
from torch import nn

import rnndrop
from rnndrop.functional import tanh_dropout

DROPOUTS = [dict(hidden_dropout=0.5), dict(recurrent_dropout=0.5), dict(hidden_dropout=0.5, recurrent_dropout=0.5)]


def negative(x):
    """The same numbers, of a tensor with the negative bit."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


@pytest.fixture(params=DROPOUTS, ids=" and ".join)
def dropouts(request):
    return request.param


@pytest.fixture(params=["RNN", "packed", "RNNCell"])
def run(request, dropouts):
    """A function of x and hx, those, and the parameters."""
    if request.param == "RNNCell":
        cell = rnndrop.RNNCell(4, 8, **dropouts)
        return lambda x, hx: cell(x, hx, seed=1), torch.randn(3, 4), torch.randn(3, 8), [*cell.parameters()]
    rnn = rnndrop.RNN(4, 8, **dropouts)
    x, hx, sizes = torch.randn(5, 3, 4), torch.randn(1, 3, 8), torch.tensor([3, 2, 2])

    def output(x, hx):
        if request.param == "RNN":
            return rnn(x, hx, seed=1)[0]
        return rnn(nn.utils.rnn.PackedSequence(x[:, 0][[0, 1, 2, 3, 4, 0, 1]], sizes), hx, seed=1)[0].data

    return output, x, hx, [*rnn.parameters()]


@pytest.mark.parametrize("which", ["input", "hx", "gradient", "all"])
def test_the_negative_bit(run, which):
    forward, x, hx, parameters = run

    def results(change):
        leaves = [x.clone().requires_grad_(), hx.clone().requires_grad_()]
        given = [change(leaf) if which in (name, "all") else leaf for name, leaf in zip(("input", "hx"), leaves, strict=True)]
        output = forward(*given)
        gradient = torch.linspace(-1, 1, output.numel()).view(output.shape)
        gradient = change(gradient) if which in ("gradient", "all") else gradient
        return [output, *torch.autograd.grad(output, [*leaves, *parameters], gradient)]

    for found, expected in zip(results(negative), results(lambda x: x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strategy", ["cpu", "reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_negative_bit_of_tanh_dropout(strategy, dtype):
    x, gradient = torch.randn(5, 3, dtype=dtype, requires_grad=True), torch.randn(5, 3, dtype=dtype)
    if dtype in (torch.bfloat16, torch.float16):  # which have no complex numbers to take one from
        change = torch._neg_view
    else:
        change = negative
    y = tanh_dropout(change(x), 0.5, seed=1, strategy=strategy)
    sign = -1 if change is torch._neg_view else 1
    assert torch.equal(y, tanh_dropout(sign * x, 0.5, seed=1, strategy=strategy))
    found = torch.autograd.grad(y, x, change(gradient), retain_graph=True)
    assert torch.equal(found[0], torch.autograd.grad(y, x, sign * gradient)[0])


@pytest.mark.parametrize("p", [1 - 2**-16, 1 - 2**-15, 0.9999])
@pytest.mark.parametrize("kind", ["hidden_dropout", "recurrent_dropout"])
def test_half_precision_near_one(kind, p):
    """A scale of 65,536 is no float16; what is kept is finite or infinite, what is dropped 0, and nothing raises."""
    rnn = rnndrop.RNN(4, 64, dtype=torch.float16, **{kind: p})
    x = torch.randn(50, 3, 4, dtype=torch.float16, requires_grad=True)
    output, _ = rnn(x, seed=1)
    output.float().sum().backward()
    if kind == "hidden_dropout":
        kept = rnndrop.dropout_mask(1, 150, 64, p).view(50, 3, 64) != 0
        assert (output[~kept] == 0).all()
    assert x.grad is not None and not x.grad.isnan().all()
    z = torch.randn(500, 40, dtype=torch.float16, requires_grad=True)
    y = tanh_dropout(z, p, seed=1)
    y.backward(torch.ones_like(y))
    kept = rnndrop.dropout_mask(1, 500, 40, p) != 0
    assert (y[~kept] == 0).all() and (z.grad[~kept] == 0).all()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_half_precision_gradients_near_one(nonlinearity):
    """No NaN comes of the few elements that are kept, relu's at 0 among them."""
    p, steps, batch, columns = 1 - 2**-16, 2, 256, 256
    seed = max(range(20), key=lambda seed: int((rnndrop.dropout_mask(seed, steps * batch, columns, p) != 0).sum()))
    kept = (rnndrop.dropout_mask(seed, steps * batch, columns, p) != 0).view(steps, batch, columns)
    rnn = rnndrop.RNN(4, columns, nonlinearity=nonlinearity, dtype=torch.float16, hidden_dropout=p)
    x = torch.randn(steps, batch, 4, dtype=torch.float16, requires_grad=True)
    output, _ = rnn(x, seed=seed)
    output.backward(torch.full_like(output, 2**-10))
    assert kept.sum() >= 3 and (output[kept] == 0).any() == (nonlinearity == "relu")
    assert not x.grad.isnan().any() and (x.grad[-1][~kept[-1].any(1)] == 0).all()


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", [nn.RNN, rnndrop.RNN, rnndrop.RNNCell])
def test_a_bias_changed_between_forward_and_backward(kind, name, dropouts):
    """The gradient needs none of its numbers; nn.RNN allows it too."""
    module = kind(4, 8, **({} if kind is nn.RNN else dropouts))
    bias = getattr(module, name + ("" if kind is rnndrop.RNNCell else "_l0"))
    x = torch.randn(*((3, 4) if kind is rnndrop.RNNCell else (5, 3, 4)))
    options = {} if kind is nn.RNN else dict(seed=1)

    def loss():
        found = module(x, **options)
        return (found[0] if isinstance(found, tuple) else found).sin().sum()

    expected = torch.autograd.grad(loss(), [*module.parameters()])
    value = loss()
    with torch.no_grad():
        bias.add_(1)
    for mine, other in zip(torch.autograd.grad(value, [*module.parameters()]), expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ["bias_ih_l0", "bias_hh_l0"])
def test_a_changed_bias_and_a_double_backward(name, dropouts):
    """The second derivatives run the layer again, and would be those of another bias."""
    module, x = rnndrop.RNN(4, 8, **dropouts), torch.randn(5, 3, 4)
    value = module(x, seed=1)[0].sin().sum()
    with torch.no_grad():
        getattr(module, name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, [*module.parameters()], create_graph=True)


def test_a_bias_changed_between_the_backwards(dropouts):
    """Between the first with a graph and the second."""
    module, x = rnndrop.RNN(4, 8, **dropouts), torch.randn(5, 3, 4)
    gradients = torch.autograd.grad(module(x, seed=1)[0].sin().sum(), [*module.parameters()], create_graph=True)
    with torch.no_grad():
        module.bias_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(g.square().sum() for g in gradients).backward()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("module", [rnndrop.RNN, rnndrop.GRU, rnndrop.LSTM])
def test_infinite_numbers_raise_no_warning(module):
    layer = module(4, 8, hidden_dropout=0.5)
    hx = torch.full((1, 2, 8), torch.inf)
    output, _ = layer(torch.randn(5, 2, 4), (hx, hx) if module is rnndrop.LSTM else hx)
    output.sum().backward()
    assert output.isnan().any()
