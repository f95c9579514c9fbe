"""out = plus + x @ W, for each step of a loop in which W (K, M) stays the same, by the fastest of three libraries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .elements import WIDE, Numbers

Product = Callable[[Numbers, Numbers, Numbers], None]  # x (n, K), plus and out (n, M), which may be the same

SMALL = 1 << 18  # multiplications a step: up to here NumPy's BLAS keeps to one thread, and its call is the shortest
LARGE = 1 << 25  # from here on oneDNN's, on a weight that it has laid out for itself, is the fastest
WORTH_PACKING = 1024  # rows of all steps: with fewer, the laying out takes longer than it saves


def product(weight: Tensor, rows: int, steps: int) -> Product:
    """For `steps` steps of at most so many rows."""
    work = rows * weight.numel()
    if weight.dtype in WIDE and work <= SMALL:
        return _of_numpy(weight)
    if weight.dtype == torch.float32 and work >= LARGE and rows * steps >= WORTH_PACKING and _has_onednn():
        return _of_onednn(weight, rows)
    return _of_torch(weight)


def _of_numpy(weight: Tensor) -> Product:
    w, memory = weight.contiguous().numpy(), np.empty(0)

    def add_product(x: Numbers, plus: Numbers, out: Numbers) -> None:
        nonlocal memory
        if memory.shape != out.shape:
            memory = np.empty(out.shape, out.dtype)
        np.dot(x, w, memory)
        np.add(plus, memory, out)

    return add_product


def _of_torch(weight: Tensor) -> Product:
    of = torch.from_numpy if weight.dtype in WIDE else lambda x: x

    def add_product(x: Numbers, plus: Numbers, out: Numbers) -> None:
        if plus is not out:
            out[:] = plus
        of(out).addmm_(of(x), weight)

    return add_product


def _of_onednn(weight: Tensor, rows: int) -> Product:
    """PyTorch's compiler calls these operators for the linear layers of a frozen model."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.t(), rows)
    of, add = torch.from_numpy, torch.ops.mkldnn._linear_pointwise.binary

    def add_product(x: Numbers, plus: Numbers, out: Numbers) -> None:
        of(out).copy_(add(of(x), of(plus), packed, None, "add"))

    return add_product


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
