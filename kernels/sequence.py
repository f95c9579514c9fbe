"""What the strategies with the whole sequence in one launch share: the product, the device, the launchers' small print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
A100 = {"multiprocessor_count": 108, "max_shared_mem": 166912, "warpSize": 32}
KINDS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@triton.jit
def multiply(left, right, start, PRECISION: tl.constexpr):
    """start + left @ right. PRECISION "wide" is for Triton's interpreter, which multiplies the bits of bf16 numbers."""
    if PRECISION == "wide":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), start, input_precision="ieee")
    else:
        return tl.dot(left, right, start, input_precision=PRECISION)


def precision(dtype: torch.dtype, tf32: bool, backend: str) -> str:
    """How `multiply` does it. fp32 on NVIDIA's tensor cores is three products of tf32, as exact as fp32."""
    if backend == "interpreter":
        return "wide"
    if dtype != torch.float32 or backend == "hip":
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


def halves(dtype: torch.dtype, tf32: bool, properties: Mapping[str, int]) -> int:
    """The numbers on chip for one of W_hh: tf32x3 keeps each as two."""
    return 2 if dtype == torch.float32 and not tf32 and properties.get("warpSize", 32) == 32 else 1


def backend() -> str:
    return "interpreter" if INTERPRETED else triton.runtime.driver.active.get_current_target().backend


def device_properties() -> Mapping[str, int]:
    if INTERPRETED:
        return A100
    driver = triton.runtime.driver.active
    return driver.utils.get_device_properties(driver.get_current_device())


def check(strategy: str, T: int, B: int, reason: str) -> None:
    if reason:
        raise ValueError(f"strategy {strategy!r} cannot run: {reason}")
    if T == 0 or B == 0:
        raise ValueError(f"strategy {strategy!r} needs at least one step and one row, got {T} and {B}")


def backward_scales(hidden_bits: Tensor | None, hidden_scale: float) -> tuple[float, float]:
    """The scale of a kept unit and its inverse; 0 for both where everything is dropped."""
    scale = 1.0 if hidden_bits is None else hidden_scale
    return scale, 1.0 / scale if scale else 0.0


def dense(x: Tensor | None) -> Tensor | None:
    """x contiguous and on a 16-byte boundary, as vector accesses and Triton's cache of compiled kernels need it."""
    if x is None or (x.is_contiguous() and x.data_ptr() % 16 == 0):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def signature(kernel: Any, dtype: torch.dtype, constexprs: Mapping[str, Any], others: Mapping[str, str]) -> dict[str, str]:
    """The types of a kernel's arguments, by name; a tensor of the dtype is what nothing else is said of."""
    pointer = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    special = dict.fromkeys(("hidden_scale", "inverse_scale", "recurrent_scale"), "fp32")
    special |= {"hidden_bits": "*i32", "recurrent_bits": "*i32"} | dict(others) | dict.fromkeys(constexprs, "constexpr")
    return {name: special.get(name, pointer) for name in kernel.arg_names}
