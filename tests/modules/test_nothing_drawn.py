"""A call that raises has drawn nothing: what follows has the masks that it would have had without it."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnndrop
from rnndrop import functional
from rnndrop.kernels import launch
from tests.helpers import EVERY_KIND, GATED, OF_CELL, OUTSIDE

EVERY = [("RNN", name) for name in EVERY_KIND]
EVERY += [(cell, name) for cell in GATED for name in ("hidden_dropout", "weight_dropout")]
EVERY += [(cell, name) for cell in GATED for rates in OF_CELL[cell].values() for name in rates]


@contextlib.contextmanager
def raises(*errors, match=None):
    """One of the errors, and a generator that is left alone."""
    before = torch.get_rng_state()
    with pytest.raises(errors, match=match):
        yield
    assert torch.equal(torch.get_rng_state(), before), "a number was drawn"


@pytest.fixture(params=EVERY, ids=" ".join)
def module(request):
    """Of two layers where the dropout has a part outside of the recurrence."""
    kind, name = request.param
    return getattr(rnndrop, kind)(4, 8, 1 + (name in OUTSIDE), **{name: 0.5})


@pytest.fixture
def a100(monkeypatch):
    """Kernels can run here, as on an A100."""
    monkeypatch.setattr(rnndrop.dispatch, "kernels_unavailable", lambda: "")
    monkeypatch.setattr(launch, "elsewhere", lambda device: "")
    monkeypatch.setattr(launch, "device_of", lambda device: launch.A100)


@pytest.fixture(params=[(f"{cell}Cell", name) for cell, name in EVERY if name not in OUTSIDE], ids=" ".join)
def cell(request):
    kind, name = request.param
    return getattr(rnndrop, kind)(4, 8, **{name: 0.5})


def states(module, hx):
    """hx for each state of a module."""
    return (hx, hx) if module.cell.name == "LSTM" else hx


X = torch.zeros(5, 3, 4)


def test_a_call_draws(module):
    """So that the other tests see something."""
    before = torch.get_rng_state()
    module(X)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("hx", [torch.zeros(2, 3, 8, device="meta"), torch.zeros(2, 3, 8).double(), torch.zeros(2, 3, 7)])
def test_hx(module, hx):
    with raises(RuntimeError):
        module(X, states(module, hx[: module.num_layers]))


@pytest.mark.parametrize(
    "hx", [torch.zeros(3, 8, device="meta"), torch.zeros(3, 8).double(), torch.zeros(3, 7), torch.zeros(2, 8)]
)
def test_hx_of_a_cell(cell, hx):
    with raises(RuntimeError):
        cell(X[0], states(cell, hx))


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(9, [3, 3, 2]), (7, [3, 3, 2]), (8, [2, 3, 3]), (8, [3, 3, 2, 0]), (8, [9, -1]), (0, [])],
    ids=str,
)
def test_the_batch_sizes_of_a_packed_sequence_made_by_hand(module, rows, sizes):
    with raises(RuntimeError, IndexError):
        module(PackedSequence(torch.zeros(rows, 4), torch.tensor(sizes, dtype=torch.int64)))


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 2, 0], [0, 1, 3], [-1, 0, 1]], ids=str)
def test_the_order_of_a_packed_sequence_made_by_hand(module, order):
    indices = torch.tensor(order)
    with raises(RuntimeError, match="sorted_indices"):
        module(PackedSequence(torch.zeros(8, 4), torch.tensor([3, 3, 2]), indices, indices))


@pytest.mark.parametrize(
    "x", [X[:0], X[..., :3], X.double(), X[0, 0], X.to("meta")], ids=lambda x: f"{tuple(x.shape)} {x.dtype}"
)
def test_the_input(module, x):
    with raises(RuntimeError, ValueError):
        module(x)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize(
    "change", [lambda p: p[:-1], lambda p: p.double(), lambda p: p.to("meta")], ids=["shape", "dtype", "device"]
)
def test_a_replaced_weight(module, name, change):
    """Of the last layer too, which would run after the first has drawn."""
    name = name.replace("l0", f"l{module.num_layers - 1}")
    setattr(module, name, nn.Parameter(change(getattr(module, name).detach())))
    with raises(RuntimeError, ValueError):
        module(X)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_deleted_weight(module, name):
    delattr(module, name)
    with raises(AttributeError, match=f"no attribute '{name}'"):
        module(X)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize(
    "change", [lambda p: p[:-1], lambda p: p.double(), lambda p: p.to("meta")], ids=["shape", "dtype", "device"]
)
def test_a_replaced_weight_of_a_cell(cell, name, change):
    setattr(cell, name, nn.Parameter(change(getattr(cell, name).detach())))
    with raises(RuntimeError, ValueError):
        cell(X[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_scope", "steps"),
        ("mask_scope", {"hidden": "steps"}),
        ("input_dropout", -1),
        ("weight_dropout", None),
        ("zoneout", 2),
        ("hidden_dropout", 1.5),
        ("recurrent_dropout", float("nan")),
        ("dropout", "0.5"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_attribute_set_badly(module, name, value, training):
    """It is refused at once, and the module is as before."""
    expected = module.train(training)(X, seed=1)[0]
    with raises(ValueError, match=name):
        setattr(module, name, value)
    assert torch.equal(module(X, seed=1)[0], expected)


def test_an_attribute_of_a_cell_set_badly(cell):
    for name in ("hidden_dropout", "recurrent_dropout", "zoneout"):
        with raises(ValueError, match=name):
            setattr(cell, name, 2)


@pytest.mark.parametrize("training", [True, False])
def test_a_nonlinearity_set_badly(training):
    """By a cell it is refused in forward, as by nn.RNNCell."""
    module = rnndrop.RNN(4, 8, hidden_dropout=0.5).train(training)
    with raises(ValueError, match="nonlinearity"):
        module.nonlinearity = "gelu"
    assert module.nonlinearity == "tanh"
    cell = rnndrop.RNNCell(4, 8, hidden_dropout=0.5).train(training)
    cell.nonlinearity = "gelu"
    with raises(RuntimeError, match="Unknown nonlinearity: gelu"):
        cell(X[0])


bad_seeds = pytest.mark.parametrize("seed", [1.5, "1", True, torch.zeros(2, dtype=torch.int64), torch.zeros(1)], ids=repr)


@bad_seeds
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_seed(module, seed, training):
    with raises(TypeError, ValueError, match="seed"):
        module.train(training)(X, seed=seed)


@bad_seeds
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_seed_of_a_cell(cell, seed, training):
    with raises(TypeError, ValueError, match="seed"):
        cell.train(training)(X[0], seed=seed)


def run_layer(cell, strategy, x, h_0):
    weights = getattr(rnndrop, cell)(4, 8, dtype=x.dtype).all_weights[0]
    layer, given = getattr(functional, f"{cell.lower()}_layer"), [h_0] * (1 + (cell == "LSTM"))
    return lambda: layer(x, *given, *weights, hidden_dropout=0.5, strategy=strategy)


@pytest.mark.parametrize("cell", ["RNN", *GATED])
@pytest.mark.parametrize("strategy", ["resident", "cooperative", "stepwise"])
def test_a_strategy_that_cannot_run(cell, strategy):
    run = run_layer(cell, strategy, X.double(), torch.zeros(3, 8, dtype=torch.float64))
    with raises(ValueError, match=f"strategy '{strategy}' cannot run"):
        run()


@pytest.mark.parametrize("cell", ["RNN", *GATED])
@pytest.mark.parametrize("strategy", ["resident", "cooperative", "stepwise"])
def test_a_kernel_without_a_sequence(cell, strategy, a100):
    run = run_layer(cell, strategy, X[:, :0], torch.zeros(0, 8))
    with raises(ValueError, match=f"strategy '{strategy}' cannot run: there is nothing to compute"):
        run()


@pytest.mark.parametrize("strategy", ["resident", "cooperative", "stepwise", "triton"])
def test_a_kernel_for_a_tensor_of_the_cpu(strategy, monkeypatch):
    """Where kernels run on a GPU."""
    triton = pytest.importorskip("triton")
    driver = type("Driver", (), {"get_active_torch_device": lambda self: torch.device("cuda", 0)})
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(triton.runtime, "driver", type("Drivers", (), {"active": driver()}))
    monkeypatch.setattr(rnndrop.dispatch, "kernels_unavailable", lambda: "")
    weights = rnndrop.RNN(4, 8).all_weights[0]
    with raises(ValueError, match=f"strategy '{strategy}' cannot run: it runs on cuda, and the input is on cpu"):
        if strategy == "triton":
            functional.tanh_dropout(X, strategy=strategy)
        else:
            functional.rnn_layer(X, torch.zeros(3, 8), *weights, hidden_dropout=0.5, strategy=strategy)


def test_a_strategy_of_tanh_dropout_that_cannot_run(forgetful, monkeypatch):
    monkeypatch.setattr(launch, "unavailable", lambda: "there is no driver")
    with raises(ValueError, match="strategy 'triton' cannot run: there is no driver"):
        functional.tanh_dropout(X, strategy="triton")


def test_a_dtype_of_tanh_dropout_that_no_kernel_has(a100):
    with raises(ValueError, match="strategy 'triton' cannot run: torch.float64 is none of"):
        functional.tanh_dropout(X.double(), strategy="triton")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_a_dtype_that_no_layer_has(dtype):
    with raises(NotImplementedError, match="not implemented for"):
        functional.tanh_dropout(X.to(dtype))


def test_functions_without_rates_draw_nothing():
    module, before = rnndrop.RNN(4, 8), torch.get_rng_state()
    functional.rnn_layer(X, torch.zeros(3, 8), *module.all_weights[0])
    functional.tanh_dropout(X, 0.0)
    functional.tanh_dropout(X, training=False)
    assert torch.equal(torch.get_rng_state(), before)
