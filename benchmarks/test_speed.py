"""The quick cases for pytest-benchmark, a group each: ``pytest benchmarks --benchmark-only``; it can save and compare, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import cases, check, limits, providers, runner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = cases.select(DEVICE, True, [])


@pytest.mark.parametrize("provider", providers.everyone(), ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.dtype} {case.direction}")
def test_speed(benchmark: Any, case: cases.Case, provider: providers.Provider) -> None:
    reason = runner.unfit(provider, case, DEVICE) or ("" if not provider.captured else "python -m benchmarks times CUDA graphs")
    if reason:
        pytest.skip(reason)
    benchmark.group = f"{case.name} {case.dtype} {case.direction}"
    limits.set_precision(case.dtype)
    rnn = providers.source(case, DEVICE)
    x = torch.randn(case.T, case.B, case.I, device=DEVICE).to(case.torch_dtype)
    try:
        check.check(provider, case, rnn, x)
    except ValueError as error:
        if not runner.refuses(error):
            raise
        pytest.skip(str(error))
    step = runner.step(case, provider.build(case, rnn).train(case.direction != "inference"))
    x.requires_grad_(case.input_grad)

    def run() -> None:
        step(x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
