from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cases import Case
from benchmarks.report.bounds import GPUS, STRATEGIES, cost


@pytest.mark.parametrize("pass_", ["train", "inference"])
def test_bounds_of_the_model(pass_: str) -> None:
    case = Case("", 128, 64, 128, 256, pass_=pass_)
    for gpu in GPUS:
        for strategy in STRATEGIES:
            found = cost(case, strategy, gpu)
            assert found.flops == case.flops()
            assert found.bytes >= case.least_bytes()
            least = max(case.least_bytes() / gpu.bandwidth, found.flops / max(gpu.fp32, gpu.tf32 / 3))
            most = found.bytes / gpu.bandwidth + found.flops / gpu.fp32 * gpu.device.num_sms
            assert least * 0.99 <= found.bound_s <= most
    wide = Case("", 10, 4000, 2000, 16, "bf16", pass_)  # of which the bytes decide
    assert cost(wide, "stepwise", GPUS[0]).bound_s == wide.least_bytes() / GPUS[0].bandwidth
    steps = [cost(replace(case, T=T), "stepwise", GPUS[0]).launches for T in (10, 11)]
    assert steps[1] - steps[0] == (4 if pass_ == "train" else 2)
    assert cost(case, "cooperative", GPUS[0]).launches < 10
