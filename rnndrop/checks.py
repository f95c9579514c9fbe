"""What a layer refuses, in the words of torch.nn, before anything is drawn or computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cell import Cell, Weights

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise NotImplementedError(f'"{name}" not implemented for {x.dtype}')


def check_tensors(
    like: Tensor, width: int, batch: int, names: Sequence[str], states: Sequence[Tensor], weights: Weights, cell: Cell
) -> None:
    """RuntimeError where a layer's states, under their `names`, or weights are not of the shape that an input (..., `width`)
    of `batch` sequences asks for, or not of the dtype and on the device of `like`, that input."""
    hidden = weights.w_hh.shape[0] // cell.gates
    output = hidden if weights.w_hr is None else weights.w_hr.shape[0]
    rows = cell.gates * hidden
    of_states = [(batch, output), (batch, hidden)][: len(states)]
    shapes = [*of_states, (rows, width), (rows, output), (rows,), (rows,), (output, hidden)]
    for name, tensor, shape in zip((*names, *Weights._fields), (*states, *weights), shapes, strict=True):
        if tensor is not None:
            _check_tensor(name, tensor, shape, "input", like)


def check_gates(state: Tensor, names: Sequence[str], gates: Sequence[Tensor], cell: Cell) -> None:
    """RuntimeError where the gates of a cell are not of the shape, the dtype or the device that its state (B, H) asks for."""
    if state.dim() != 2:
        raise RuntimeError(f"Expected the state to have 2 dimensions, got {state.dim()}")
    for name, tensor in zip(names, gates, strict=True):
        _check_tensor(name, tensor, (state.shape[0], cell.gates * state.shape[1]), "the state", state)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], other: str, like: Tensor) -> None:
    if tensor.shape != shape:
        raise RuntimeError(f"Expected {name} size {shape}, got {list(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise RuntimeError(f"expected {other} and {name} to have the same dtype, got {like.dtype} and {tensor.dtype}")
    if tensor.device != like.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {other} is on {like.device} and {name} on {tensor.device}"
        )


def check_length(steps: int) -> None:
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
