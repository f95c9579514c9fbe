"""Other ways of asking for derivatives and graphs: torch.func, compiled autograd, export, jit.trace."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vjp, vmap

import rnndrop
from tests.helpers import OUTSIDE
from tests.stand_ins import rnn

SEED = 3


@pytest.fixture(params=[1, 4], ids=["one step", "four steps"])
def x(request):
    return torch.randn(request.param, 2, 3, dtype=torch.float64)


@pytest.fixture(params=[dict(hidden_dropout=0.3), dict(recurrent_dropout=0.3), dict(hidden_dropout=0.3, recurrent_dropout=0.3)])
def module(request):
    return rnndrop.RNN(3, 4, dtype=torch.float64, **request.param)


def loop(module, x, parameters=None):
    """The module as PyTorch operations alone, which every transform knows."""
    p = dict(module.named_parameters()) if parameters is None else parameters
    steps, batch, _ = x.shape

    def mask(kind):
        rate = getattr(module, f"{kind}_dropout")
        drawn = rnndrop.dropout_mask(SEED, steps * batch, 4, rate, kind=kind).double()
        return ((drawn != 0).double() / (1 - round(rate * 65536) / 65536)).view(steps, batch, 4)

    m, r = mask("hidden"), mask("recurrent")
    h, outputs = x.new_zeros(batch, 4), []
    for t in range(steps):
        a = x[t] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + (r[t] * h) @ p["weight_hh_l0"].T + p["bias_hh_l0"]
        h = m[t] * torch.tanh(a)
        outputs.append(h)
    return torch.stack(outputs)


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_vjp(module, x):
    output, pull = vjp(lambda x: module(x, seed=SEED)[0], x)
    expected, other = vjp(lambda x: loop(module, x), x)
    assert_near(output, expected)
    assert_near(pull(torch.sin(output)), other(torch.sin(output)))


def test_what_vjp_gave_is_used_after_it(module, x):
    """Its tensors are still wrapped by the transform, which is over."""
    x.requires_grad_()
    found, expected = (vjp(function, x) for function in (lambda x: module(x, seed=SEED)[0], lambda x: loop(module, x)))
    mine, other = (torch.autograd.grad(pull(torch.ones_like(y))[0].square().sum(), x)[0] for y, pull in (found, expected))
    assert_near(mine, other)


def test_grad_of_the_parameters(module, x):
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters):
        return functional_call(module, parameters, (x,), dict(seed=SEED))[0].square().sum()

    assert_near(grad(loss)(parameters), grad(lambda p: loop(module, x, p).square().sum())(parameters))


def test_jacrev(module, x):
    found = jacrev(lambda x: module(x, seed=SEED)[0])(x)
    assert_near(found, jacrev(lambda x: loop(module, x))(x))


def test_jacrev_of_jacrev(module):
    x = torch.randn(3, 1, 3, dtype=torch.float64)
    found = jacrev(jacrev(lambda x: module(x, seed=SEED)[0]))(x)
    expected = jacrev(jacrev(lambda x: loop(module, x)))(x)
    assert_near(found, expected)
    assert expected.abs().max() > 1e-3


def test_jacrev_of_the_weights(module, x):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    found = jacrev(lambda p: functional_call(module, p, (x,), dict(seed=SEED))[0])(parameters)
    assert_near(found, jacrev(lambda p: loop(module, x, p))(parameters))


@pytest.mark.parametrize("options", [{}, dict(hidden_dropout=0.3)], ids=["alone", "with one inside"])
def test_jacrev_through_the_dropout_between_layers(options):
    module, x = rnndrop.RNN(3, 4, 2, dropout=0.5, dtype=torch.float64, **options), torch.randn(3, 2, 3, dtype=torch.float64)
    found = jacrev(lambda x: module(x, seed=SEED)[0])(x)
    assert_near(found, torch.autograd.functional.jacobian(lambda x: module(x, seed=SEED)[0], x))


def test_vmap():
    """Every slice has the masks that it has alone."""
    module, x = rnndrop.RNN(3, 4, 2, dropout=0.5, hidden_dropout=0.3), torch.randn(2, 3, 5, 3)
    for run in (lambda x: module(x, seed=SEED)[0], lambda x: rnndrop.functional.tanh_dropout(x, 0.5, seed=SEED)):
        assert_near(vmap(run)(x), torch.stack([run(one) for one in x]))


def test_jacrev_of_tanh_dropout():
    x = torch.randn(3, 5, dtype=torch.float64)
    mask = rnndrop.dropout_mask(SEED, 3, 5, 0.5).double()  # a scale of 2 is exact
    for times in (jacrev, lambda f: jacrev(jacrev(f))):
        found = times(lambda x: rnndrop.functional.tanh_dropout(x, 0.5, seed=SEED))(x)
        assert_near(found, times(lambda x: torch.tanh(x) * mask)(x))


def test_compiled_autograd_of_an_eager_forward(module, x):
    expected = torch.autograd.grad(module(x, seed=SEED)[0].square().sum(), [*module.parameters()])

    def compiler(graph: torch.fx.GraphModule) -> object:
        return torch.compile(graph, backend="eager")

    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(compiler):
        loss = module(x, seed=SEED)[0].square().sum()
        loss.backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert_near(parameter.grad, gradient)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_export_with_a_dynamic_batch(strict, each):
    """Masks are an operator of the program, which the seed is a constant or an input of."""
    module, x = rnn(num_layers=2, **OUTSIDE, zoneout=0.2, mask_scope={"input": "sequence"}), torch.randn(5, 3, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = dict(input={1: batch}, seed={0: batch} if each else None)
    seeds = dict(seed=torch.arange(3) if each else SEED)
    exported = torch.export.export(module, (x,), seeds, dynamic_shapes=shapes, strict=strict)
    for size in (3, 7):
        x, seed = torch.randn(5, size, 4), torch.arange(size) if each else SEED
        torch.testing.assert_close(exported.module()(x, seed=seed)[0], module(x, seed=seed)[0])


def test_export_of_a_cell():
    module, x = rnndrop.RNNCell(4, 8, hidden_dropout=0.3, recurrent_dropout=0.3, zoneout=0.2), torch.randn(3, 4)
    for training in (True, False):
        exported = torch.export.export(module.train(training), (x,), dict(seed=torch.arange(3)), strict=False)
        torch.testing.assert_close(exported.module()(2 * x, seed=torch.arange(3)), module(2 * x, seed=torch.arange(3)))


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_export_in_evaluation_with_a_dynamic_batch(zoneout):
    module, x = rnn(zoneout=zoneout).eval(), torch.randn(5, 3, 4)
    shapes = dict(input={1: torch.export.Dim("batch", min=2, max=64)})
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    x = torch.randn(5, 7, 4)
    torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize(
    "module",
    [
        rnn(),
        *(rnndrop.RNN(4, 8, 2, **{name: 0.5}) for name in OUTSIDE),
        rnndrop.RNNCell(4, 8, hidden_dropout=0.5),
        rnn(zoneout=0.5).eval(),
    ],
)
def test_jit_trace(module):
    """It would keep the masks of one call; and the expectation of zoneout is an operator that it cannot record."""
    x = torch.randn((3, 4) if isinstance(module, rnndrop.RNNCell) else (5, 3, 4))
    with pytest.raises(RuntimeError, match=r"no operator for dropout inside a layer, nor for zoneout: call eval\(\) before"):
        torch.jit.trace(module, (x,))


def test_jit_trace_in_evaluation():
    module, x, other = rnn().eval(), torch.randn(5, 3, 4), torch.randn(6, 2, 4)
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(other), module(other))
