"""How fast this device copies and multiplies, measured; and in which arithmetic products are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..cases import DTYPES
from .timer import Stopwatch


def measured_rates(device: str, watch: Stopwatch) -> dict[str, float]:
    """Bytes a second of a copy (read and write) and operations a second of a square product, by dtype; best of several."""

    def best(run: Callable[[], object], runs: int = 5) -> float:
        return min(watch(lambda number: run(), number) for number in range(runs))

    big = device == "cuda"
    source = torch.randn(2**28 if big else 2**24, device=device)
    target = torch.empty_like(source)
    rates = {"copy_bytes_per_s": 2 * source.nbytes / best(partial(target.copy_, source))}
    size = 8192 if big else 1024
    for name in DTYPES if big else ("fp32",):
        set_precision(name)
        a, b = torch.randn(2, size, size, device=device).to(DTYPES[name])
        rates[f"{name}_flops_per_s"] = 2 * size**3 / best(partial(torch.mm, a, b, out=torch.empty_like(a)))
    set_precision("fp32")
    return rates


def set_precision(dtype: str) -> None:
    """fp32 products in ieee arithmetic, or in tf32 where the dtype says so."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
