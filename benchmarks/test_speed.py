"""The quick cases for pytest-benchmark, a group each: ``pytest benchmarks --benchmark-only``; it can save and compare, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import Case, select
from .contenders import EVERYONE
from .contenders.base import Contender, source
from .measure.check import check
from .measure.prepare import refuses, step
from .measure.rates import set_precision

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("contender", EVERYONE, ids=lambda contender: contender.name)
@pytest.mark.parametrize("case", select(DEVICE, True, []), ids=lambda case: " ".join(case.key))
def test_speed(benchmark: Any, case: Case, contender: Contender) -> None:
    reason = contender.why_not(case, DEVICE) or ("python -m benchmarks times CUDA graphs" if contender.captured else "")
    if reason:
        pytest.skip(reason)
    benchmark.group = " ".join(case.key)
    set_precision(case.dtype)
    rnn = source(case, DEVICE)
    x = case.input(DEVICE)
    try:
        check(contender, case, rnn, x)
    except ValueError as error:
        if not refuses(error):
            raise
        pytest.skip(str(error))
    once = step(case, contender.build(case, rnn).train(case.pass_ != "inference"))
    x.requires_grad_(case.input_grad)

    def run() -> None:
        once(x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
