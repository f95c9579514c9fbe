"""What the tests share: cases, and how results are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import rnndrop
from tests.tolerances import SEQUENCE

STRATEGIES = ("cpu", "reference")  # that run on the CPU; "auto" is one of them
RATES = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4), dict(hidden_dropout=0.3, recurrent_dropout=0.4)]
BOTH = RATES[2]
EACH_KIND = {  # of a module of two layers
    "hidden": dict(hidden_dropout=0.3),
    "recurrent": dict(recurrent_dropout=0.4),
    "between": dict(dropout=0.25),
    "input": dict(input_dropout=0.2),
    "output": dict(output_dropout=0.35),
    "weight": dict(weight_dropout=0.45),
    "zoneout": dict(zoneout=0.15),
}
EVERY_KIND = {name: p for rates in EACH_KIND.values() for name, p in rates.items()}
GATED = ("GRU", "LSTM")
OF_CELL = {"GRU": {"candidate": dict(candidate_dropout=0.25)}}  # what a cell has besides
OF_CELL["LSTM"] = OF_CELL["GRU"] | {"cell": dict(cell_dropout=0.2), "cell_zoneout": dict(cell_zoneout=0.35)}
OUTSIDE = {name: EVERY_KIND[name] for name in ("dropout", "input_dropout", "output_dropout", "weight_dropout")}
INSIDE = {name: p for name, p in EVERY_KIND.items() if name not in OUTSIDE}
STEPS, BATCH, INPUTS, COLUMNS = 5, 3, 4, 17


def each_kind(cell: str) -> dict[str, dict[str, float]]:
    """Each kind of dropout that a module of this cell has."""
    return EACH_KIND | OF_CELL.get(cell, {})


def every_kind(cell: str) -> dict[str, float]:
    return {name: p for rates in each_kind(cell).values() for name, p in rates.items()}


def inside(cell: str) -> dict[str, float]:
    return {name: p for name, p in every_kind(cell).items() if name not in OUTSIDE}


# Cases.


def make_layer(
    steps=STEPS, batch=BATCH, inputs=INPUTS, columns=COLUMNS, *, cell="RNN", dtype=torch.float64, bias=True, kink=True
):
    """Leaves of a freshly initialised layer, {name: tensor}. `kink` False: every pre-activation is far from 0, so that
    rounding does not switch a relu."""
    rows, states = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell] * columns, ["h_0", "c_0"][: 1 + (cell == "LSTM")]
    shapes = dict(w_ih=(rows, inputs), w_hh=(rows, columns)) | (dict(b_ih=(rows,), b_hh=(rows,)) if bias else {})
    leaves = dict(input=torch.randn(steps, batch, inputs)) | {name: torch.randn(batch, columns) for name in states}
    leaves |= {name: torch.empty(shape).uniform_(-1, 1) / columns**0.5 for name, shape in shapes.items()}
    if not kink:
        leaves["w_ih"], leaves["w_hh"] = leaves["w_ih"] / 4, leaves["w_hh"] / 4
        leaves["b_ih"] = torch.randn(columns).sign() * 3
    return {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}


def make_rnn(cell: str = "RNN", **options) -> Any:
    """A module of layers in float64, without the warning about dropout of a single layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(rnndrop, cell)(**{"input_size": INPUTS, "hidden_size": COLUMNS, "dtype": torch.float64, **options})


def inputs_of(rnn: Any, steps: int = STEPS, batch: int = BATCH) -> tuple[Tensor, Any]:
    """x (T, B, I) and hx, of an LSTM a pair."""
    dtype, rows = rnn.weight_ih_l0.dtype, rnn.num_layers * rnn.num_directions
    x = torch.randn(steps, batch, rnn.input_size, dtype=dtype)
    widths = [getattr(rnn, "proj_size", 0) or rnn.hidden_size, rnn.hidden_size][: 1 + (rnn.cell.name == "LSTM")]
    hx = tuple(torch.randn(rows, batch, width, dtype=dtype) for width in widths)
    return x, hx if len(hx) > 1 else hx[0]


def keep(seed, rows: int, columns: int, p: float, **where) -> Tensor:
    """The mask of the package as bool."""
    return rnndrop.dropout_mask(seed, rows, columns, p, **where) != 0


def seed_tensor(value: int, device: str = "cpu") -> Tensor:
    return torch.tensor([value], dtype=torch.int64, device=device)


@contextmanager
def threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Comparison.


def doubled(leaves):
    return {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}


def gradients(outputs, leaves, **options):
    """Gradients of the leaves for fixed random gradients of the outputs: {"grad " + name: tensor}."""
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads, **options)
    return {f"grad {name}": g for name, g in zip(leaves, found, strict=True)}


def assert_near(actual, expected, bound=None):
    """Within `bound` (by default that of the dtype in the tolerance table) of the largest element of `expected`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            try:
                assert_near(actual[name], expected[name], bound)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
        return
    if isinstance(expected, (tuple, list)):
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other, bound)
        return
    assert actual.shape == expected.shape
    bound = SEQUENCE[actual.dtype] if bound is None else bound
    size = max(expected.detach().abs().max().item(), 1e-30) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach().double(), expected.detach().double(), rtol=0, atol=bound * size)


def assert_equal(actual, expected):
    """To the last bit, and where NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_binomial(count, trials, p, sigmas=6):
    """A binomial count is beyond six standard deviations once in 500 million; a seed fixes it for good."""
    count, deviation = torch.as_tensor(count, dtype=torch.float64), (trials * p * (1 - p)) ** 0.5
    worst = (count - trials * p).abs().max().item()
    assert worst <= sigmas * deviation, f"{worst / deviation:.1f} standard deviations of {trials} trials at {p}"


def error_of(call: Callable, *args, **kwargs):
    """The type of exception that a call raises; None without."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


def draws_nothing(run: Callable):
    """The result of run(), which must leave PyTorch's generator as it was, whether it returns or raises."""
    state = torch.get_rng_state()
    try:
        return run()
    finally:
        assert torch.equal(torch.get_rng_state(), state), "a number was drawn"
