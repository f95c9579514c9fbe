"""16-bit layers on processors that multiply their dtype, and on those that do not: there in float32."""

import itertools

import pytest
import torch

from rnndrop.backends.cpu import loop
from rnndrop.backends.cpu.elements import WIDE, alternating, computes_in
from rnndrop.steps import Steps
from tests.backends import test_zoneout
from tests.backends.test_cpu import check, run
from tests.helpers import RATES, make_layer

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[True, False], ids=["units", "no units"])
def units(request, monkeypatch):
    monkeypatch.setattr(loop, "computes_in", lambda dtype: dtype if request.param or dtype in WIDE else torch.float32)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rates", RATES, ids="+".join)
def test_against_the_oracle(units, dtype, rates):
    for nonlinearity, direction, lengths in itertools.product(["tanh", "relu"], [0, 1], [None, [5, 3, 3]]):
        leaves = make_layer(dtype=dtype, kink=nonlinearity == "tanh")
        check(leaves, lengths, nonlinearity=nonlinearity, direction=direction, **rates)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", test_zoneout.WITH[::3], ids="+".join)
def test_zoneout_against_the_plain_loop(units, dtype, kinds):
    for activation, sizes, reverse in itertools.product(["tanh", "relu"], [None, [3, 2, 2, 2, 1]], [False, True]):
        steps = test_zoneout.steps_of(sizes, reverse)
        leaves = make_layer(dtype=dtype, kink=activation == "tanh")
        test_zoneout.check(leaves, test_zoneout.masks_of(kinds, steps, 17), steps, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rates", [{}, *RATES], ids="+".join)
def test_what_goes_on_is_what_came_out(monkeypatch, dtype, rates):
    """In float32 or not: a sequence in two parts is the whole, to the last bit."""
    monkeypatch.setattr(loop, "computes_in", lambda dtype: torch.float32)
    leaves = make_layer(dtype=dtype)
    options = dict(mask_scope="sequence", strategy="cpu", **rates)
    output, h_n = run(leaves, **options)
    first = run({**leaves, "input": leaves["input"][:3]}, **options)
    second = run({**leaves, "input": leaves["input"][3:], "h_0": first[1]}, **options)
    assert torch.equal(torch.cat([first[0], second[0]]), output) and torch.equal(second[1], h_n)
    assert torch.equal(h_n, output[-1])


@pytest.mark.parametrize("dtype", [*DTYPES, *WIDE])
def test_a_sum_over_the_rows_is_rounded_once(dtype):
    pieces = [*alternating(Steps(40, 1000), torch.empty(40_000, 16, dtype=dtype))]
    assert (len(pieces) == 1) == (dtype in DTYPES)


@pytest.mark.parametrize(
    "units, native", [((), []), (("avx512_bf16",), DTYPES[:1]), (("amx_fp16", "amx_bf16"), DTYPES)], ids=str
)
def test_what_the_processor_has(monkeypatch, units, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True), raising=False)
    for dtype in (*WIDE, *DTYPES):
        assert computes_in.__wrapped__(dtype) == (dtype if dtype in (*WIDE, *native) else torch.float32)
