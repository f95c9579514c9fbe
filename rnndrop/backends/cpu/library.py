"""What computes on the rows of a step: NumPy, a call of which takes a third of the time of one of PyTorch's, or PyTorch, which is
faster on rows that lie apart and does more in one call. Both take what `of` makes of a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 1536  # elements of a state

Rows = Any  # an array or a tensor


class NumPy:
    multiply = staticmethod(np.multiply)

    @staticmethod
    def of(x: Tensor) -> Rows:
        return x.numpy()

    @staticmethod
    def repeated(row: Tensor, rows: int) -> Rows:
        """The row as many times."""
        return row.repeat(rows, 1).numpy()

    @staticmethod
    def scale_and_shift(x: Rows, scale: Rows, shift: Rows) -> None:
        np.multiply(x, scale, x)
        np.add(x, shift, x)

    @staticmethod
    def add_product(x: Rows, a: Rows, b: Rows, out: Rows) -> None:
        """out = x + a * b."""
        np.add(x, np.multiply(a, b), out)

    @staticmethod
    def mix(share: Rows, x: Rows, y: Rows, out: Rows) -> None:
        """out = share * x + (1 - share) * y."""
        np.subtract(x, y, out)
        np.multiply(out, share, out)
        np.add(out, y, out)


class PyTorch:
    multiply = staticmethod(torch.mul)

    @staticmethod
    def of(x: Tensor) -> Rows:
        return x

    @staticmethod
    def repeated(row: Tensor, rows: int) -> Rows:
        return row.expand(rows, -1)

    @staticmethod
    def scale_and_shift(x: Rows, scale: Rows, shift: Rows) -> None:
        torch.addcmul(shift, x, scale, out=x)

    @staticmethod
    def add_product(x: Rows, a: Rows, b: Rows, out: Rows) -> None:
        torch.addcmul(x, a, b, out=out)

    @staticmethod
    def mix(share: Rows, x: Rows, y: Rows, out: Rows) -> None:
        torch.lerp(y, x, share, out=out)


Library = type[NumPy] | type[PyTorch]


def library_for(state: Tensor) -> Library:
    """The faster of the two for a state (B, H)."""
    return NumPy if state.numel() < SMALL else PyTorch
