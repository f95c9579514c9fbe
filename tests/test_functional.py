import re

import pytest
import torch

from rnndrop import functional
from rnndrop.kinds import KINDS
from tests.helpers import STRATEGIES, assert_equal, assert_near, draws_nothing, keep, make_layer
from tests.oracle import tanh_dropout as tanh_dropout_by_hand
from tests.tolerances import POINTWISE, POINTWISE_GRADIENT

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 33), (2, 3, 17), (2, 2, 2, 2), (3000, 50)], ids=str)
@pytest.mark.parametrize("p", [0.0, 1 / 65536, 0.25, 32769 / 65536, 1 - 2**-16, 1.0])
def test_tanh_dropout(strategy, dtype, shape, p):
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = functional.tanh_dropout(x, p, seed=5, strategy=strategy)
    exact = x.detach().double().requires_grad_()
    expected = tanh_dropout_by_hand(exact, p, 5)
    grad = (torch.rand(shape) - 0.5).to(dtype)
    (dx,) = torch.autograd.grad(y, x, grad)
    (expected_dx,) = torch.autograd.grad(expected, exact, grad.double())
    assert y.dtype == dx.dtype == dtype and y.shape == dx.shape == shape
    # Twice the table's bounds: here the activation is rounded to the dtype, and its product with the scale again.
    assert_near(y, expected, 2 * POINTWISE[dtype])
    size = (expected.detach() / torch.tanh(exact.detach())).max().item() * grad.abs().max().item()  # the scale, or 0
    torch.testing.assert_close(dx.double(), expected_dx, rtol=0, atol=size * 2 * POINTWISE_GRADIENT[dtype])
    kept = expected.detach() != 0
    assert torch.equal(y != 0, kept) and (dx[~kept] == 0).all()


def test_auto_is_the_cpu():
    """To the last bit, so it need not be tested twice."""
    x = torch.randn(30, 50, requires_grad=True)
    pair = [functional.tanh_dropout(x, 0.4, seed=5, strategy=strategy) for strategy in ("auto", "cpu")]
    assert_equal(*pair)
    assert_equal(*[torch.autograd.grad(y.square().sum(), x)[0] for y in pair])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_tanh_dropout_of_nan_and_inf(strategy, value):
    x = torch.full((20, 30), value, requires_grad=True)
    y = functional.tanh_dropout(x, 0.5, seed=1, strategy=strategy)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    drawn = keep(1, 20, 30, 0.5)
    assert (y[~drawn] == 0).all() and (dx[~drawn] == 0).all()
    if value != value:
        assert y[drawn].isnan().all() and dx[drawn].isnan().all()
    else:
        assert (y[drawn] == 2 * torch.tensor(value).sign()).all() and (dx == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dropped_gradient_of_nan_is_zero(strategy):
    x = torch.randn(20, 30, requires_grad=True)
    y = functional.tanh_dropout(x, 0.5, seed=1, strategy=strategy)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, NAN))
    drawn = keep(1, 20, 30, 0.5)
    assert (dx[~drawn] == 0).all() and dx[drawn].isnan().all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("view", [lambda x: x.t(), lambda x: x[::2, 1::3], lambda x: x[:1].expand(9, 40), lambda x: x[None].mT])
def test_tanh_dropout_of_views(strategy, view):
    x = torch.randn(40, 40, dtype=torch.float64, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    y = functional.tanh_dropout(view(x), 0.5, seed=1, strategy=strategy)
    expected = tanh_dropout_by_hand(view(copy), 0.5, 1)
    assert_near(y, expected)
    grad = torch.randn(y.mT.shape, dtype=torch.float64).mT
    assert_near(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(expected, copy, grad)[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)], ids=str)
def test_tanh_dropout_of_nothing(strategy, shape):
    x = torch.zeros(shape, requires_grad=True)
    y = functional.tanh_dropout(x, 0.5, seed=1, strategy=strategy)
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@pytest.mark.parametrize("options", [dict(p=0.0), dict(p=0.5, training=False), dict(p=1, training=False)])
def test_without_dropout_it_is_tanh_and_draws_nothing(options):
    x = torch.randn(3, 5)
    assert torch.equal(draws_nothing(lambda: functional.tanh_dropout(x, **options)), torch.tanh(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_become_floats_as_for_torch_tanh(dtype):
    x = torch.arange(12).view(3, 4).to(dtype)
    y = functional.tanh_dropout(x, 0.5, seed=1)
    assert y.dtype == torch.tanh(x).dtype
    assert_near(y, tanh_dropout_by_hand(x, 0.5, 1))


def test_integers_become_floats_of_the_default_dtype():
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            y = functional.tanh_dropout(torch.arange(12).view(3, 4), 0.5, seed=1)
            assert y.dtype == torch.tanh(torch.arange(12)).dtype == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_mask_in_every_dtype(strategy):
    x = torch.rand(30, 50) + 0.5
    masks = [functional.tanh_dropout(x.to(dtype), 0.3, seed=1, strategy=strategy) != 0 for dtype in POINTWISE]
    assert all(torch.equal(m, keep(1, 30, 50, 0.3)) for m in masks)


LAYERS = {functional.rnn_layer: "RNN", functional.gru_layer: "GRU", functional.lstm_layer: "LSTM"}
each_layer = pytest.mark.parametrize("function", LAYERS, ids=lambda f: f.__name__)


def refuses(error, words, function, **changed):
    """The call raises, and has drawn nothing."""
    leaves = make_layer(cell=LAYERS.get(function, "RNN"))
    arguments = {"x": leaves["input"], "p": 0.5} if function is functional.tanh_dropout else {"hidden_dropout": 0.5, **leaves}
    with pytest.raises(error, match=words):
        draws_nothing(lambda: function(**{**arguments, **changed}))


@pytest.mark.parametrize("p", [-0.1, 1.5, NAN, INF, True, None, "0.2"])
@pytest.mark.parametrize("name", ["p", *(kind.argument for name, kind in KINDS.items() if name != "between")])
def test_bad_probability(name, p):
    function = functional.tanh_dropout if name == "p" else functional.lstm_layer
    refuses(ValueError, f"^{name} should be a number in range .* got {re.escape(repr(p))}$", function, **{name: p})


CHOICES = dict(nonlinearity="'tanh' or 'relu'", mask_scope="'step' or 'sequence'", strategy="'auto', 'cpu'")


@pytest.mark.parametrize("value", ["other", None, 1])
@pytest.mark.parametrize(
    "function, name", [(functional.tanh_dropout, "strategy"), *[(functional.rnn_layer, n) for n in CHOICES]]
)
def test_unknown_choice(function, name, value):
    refuses(ValueError, f"^Unknown {name} {value!r}. Select from {CHOICES[name]}", function, **{name: value})


@pytest.mark.parametrize(
    "seed, error",
    [
        (1.0, TypeError),
        ("1", TypeError),
        (True, TypeError),
        (torch.tensor(1.0), TypeError),
        (torch.tensor(1, dtype=torch.int32), TypeError),
        (torch.tensor([1, 2]), ValueError),
        (torch.tensor([], dtype=torch.int64), ValueError),
    ],
)
@pytest.mark.parametrize("function", [functional.tanh_dropout, functional.rnn_layer], ids=lambda f: f.__name__)
def test_bad_seed(function, seed, error):
    refuses(error, "^seed should be", function, seed=seed)


def shaped(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "changed, error",
    [
        (dict(input=shaped(5, 4)), "input must have 3 dimensions, got 2"),
        (dict(input=shaped(5, 3, 4), batch_sizes=[3, 2]), "input must have 2 dimensions, got 3"),
        (dict(input=shaped(0, 3, 4)), "sequence length to be larger than 0"),
        (dict(input=shaped(5, 3, 9)), "Expected w_ih size"),
        (dict(h_0=shaped(4, 17)), "Expected h_0 size"),
        (dict(h_0=shaped(3, 18)), "Expected h_0 size"),
        (dict(h_0=shaped(1, 3, 17)), "Expected h_0 size"),
        (dict(w_hh=shaped(16, 17)), "Expected h_0 size"),
        (dict(w_hh=shaped(17, 16)), "Expected w_hh size"),
        (dict(b_ih=shaped(16)), "Expected b_ih size"),
        (dict(b_hh=shaped(17, 1)), "Expected b_hh size"),
        (dict(input=shaped(6, 4), batch_sizes=[3, 2]), "batch_sizes should be positive"),
        (dict(input=shaped(6, 4), batch_sizes=[3, 1, 2]), "batch_sizes should be positive"),
        (dict(input=shaped(6, 4), batch_sizes=[3, 3, 0]), "batch_sizes should be positive"),
        (dict(input=shaped(6, 4), batch_sizes=[]), "batch_sizes should be positive"),
        (dict(h_0=shaped(3, 17, dtype=torch.float32)), "same dtype"),
        (dict(w_hh=shaped(17, 17).to("meta")), "same device"),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shapes_that_do_not_match(changed, error, strategy):
    refuses(RuntimeError, error, functional.rnn_layer, strategy=strategy, **changed)


@pytest.mark.parametrize(
    "changed, error",
    [
        (dict(input=shaped(5, 3, 9)), r"Expected w_ih size \(68, 9\)"),
        (dict(c_0=shaped(3, 16)), r"Expected c_0 size \(3, 17\), got \[3, 16\]"),
        (dict(c_0=shaped(1, 3, 17)), "Expected c_0 size"),
        (dict(c_0=shaped(3, 17, dtype=torch.float32)), "input and c_0 to have the same dtype"),
        (dict(c_0=shaped(3, 17).to("meta")), "c_0 on meta"),
        (dict(w_hh=shaped(69, 17)), "Expected w_hh size"),
        (dict(w_hh=shaped(68, 16)), "Expected w_hh size"),
        (dict(w_ih=shaped(51, 4)), "Expected w_ih size"),
        (dict(b_ih=shaped(51)), "Expected b_ih size"),
        (dict(b_hh=shaped(17)), "Expected b_hh size"),
    ],
)
def test_shapes_of_an_lstm_that_do_not_match(changed, error):
    refuses(RuntimeError, error, functional.lstm_layer, **changed)


@each_layer
@pytest.mark.parametrize("layer, direction", [(-1, 0), (2**31, 0), (0, 2), (0, -1)])
def test_bad_numbers(function, layer, direction):
    refuses(ValueError, "layer should be at least 0 and direction 0 or 1", function, layer=layer, direction=direction)


@each_layer
def test_dtypes_that_torch_refuses_are_refused(function):
    leaves = {name: leaf.detach().to(torch.int64) for name, leaf in make_layer(cell=LAYERS[function]).items()}
    refuses(NotImplementedError, f"{function.__name__}. not implemented for", function, **leaves)


@pytest.mark.parametrize("strategy", ["auto", "reference"])
@each_layer
@pytest.mark.parametrize("p", [{}, dict(hidden_dropout=0.0, recurrent_dropout=0.0)])
def test_a_layer_without_rates_draws_nothing(function, strategy, p):
    """A seed changes nothing, either."""
    leaves = make_layer(cell=LAYERS[function])
    output, h_n = draws_nothing(lambda: function(**leaves, strategy=strategy, **p))
    assert_equal(function(**leaves, strategy=strategy, seed=3, **p), (output, h_n))
    assert (output != 0).all()


@each_layer
@pytest.mark.parametrize("name", ["cell_dropout", "cell_zoneout", "candidate_dropout", "dropout", "nonlinearity"])
def test_arguments_that_only_some_cells_have(function, name):
    """Between layers nothing is dropped, of which a function has one."""
    given = {"cell_dropout": "LSTM", "cell_zoneout": "LSTM", "candidate_dropout": "GRU LSTM", "nonlinearity": "RNN"}
    leaves, value = make_layer(cell=LAYERS[function]), "tanh" if name == "nonlinearity" else 0.5
    if LAYERS[function] in given.get(name, ""):
        assert function(**leaves, **{name: value})[0].isfinite().all()
    else:
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument '{name}'$"):
            draws_nothing(lambda: function(**leaves, **{name: value}))


@pytest.mark.parametrize("function", [functional.tanh_dropout, functional.rnn_layer], ids=lambda f: f.__name__)
def test_a_bad_seed_where_it_would_be_ignored(function):
    rates = {"training": False} if function is functional.tanh_dropout else {"hidden_dropout": 0.0}
    refuses(TypeError, "^seed should be", function, seed=1.5, **rates)


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("seed", [3, -3, 2**64 - 3])
def test_int_and_tensor_seeds(scope, seed):
    leaves = make_layer()
    signed = (seed + 2**63) % 2**64 - 2**63
    seeds = [seed, torch.tensor(signed), torch.tensor([signed]), torch.tensor([[signed]])]
    drawn = [functional.rnn_layer(*leaves.values(), hidden_dropout=0.5, mask_scope=scope, seed=s)[0] for s in seeds]
    assert all(torch.equal(drawn[0], y) for y in drawn[1:])
    x = torch.randn(30, 4)
    drawn = [functional.tanh_dropout(x, 0.5, seed=s) for s in seeds]
    assert all(torch.equal(drawn[0], y) for y in drawn[1:])


def test_a_complex_input_is_refused():
    refuses(NotImplementedError, "complex64", functional.tanh_dropout, x=torch.randn(3, 4, dtype=torch.complex64))
