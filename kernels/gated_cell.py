"""A step of a GRU or an LSTM from its gates, in one pass, its masks made in registers and never stored.

Forward reads the gates as x and as h made them and the old state, and writes the new one and the gates after their
activations; backward reads those. A thread calls Philox once a kind for four or eight elements: one call would serve sixteen,
but with some fifteen numbers an element in memory there is time for it, and more programs share a small batch. Not timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import dropped, gru_backward, gru_forward, lstm_backward, lstm_forward
from .launch import on_device
from .register_mask import keep, tile, tiles


@triton.jit
def _keep_or_all(seed_ptr, stream, columns, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr, VECTOR: tl.constexpr):
    """A mask as the functions of `gates` take it."""
    if threshold is None:
        return None
    else:
        return keep(seed_ptr, stream, columns, threshold, ROWS, BLOCKS, VECTOR)


@triton.jit
def _load(pointer, at, inside):
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_or_zero(pointer, at, inside):
    if pointer is None:
        return tl.zeros(inside.shape, tl.float32)
    else:
        return _load(pointer, at, inside)


@triton.jit
def _store(pointer, at, x, inside):
    tl.store(pointer + at, x.to(pointer.dtype.element_ty), mask=inside)


NUMBERS = ["rows"] + [f"{kind}_{name}" for kind in ("hidden", "cell", "candidate") for name in ("threshold", "scale", "stream")]


@triton.jit(do_not_specialize=NUMBERS)
def forward_kernel(
    of_x_ptr,  # (rows, G*columns), rows x_row elements apart
    x_row,
    of_h_ptr,  # (rows, G*columns), rows h_row elements apart
    h_row,
    before_ptr,  # (rows, columns): c of an LSTM, h of a GRU
    h_ptr,  # (rows, columns): written
    c_ptr,  # (rows, columns) of an LSTM: written
    gates_ptr,  # (rows, 4*columns): written
    seed_ptr,  # (1,) int64, or None where nothing is dropped
    rows: tl.int64,
    columns,
    hidden_threshold,  # None where nothing is dropped, and so on
    hidden_scale,
    hidden_stream: tl.int64,
    cell_threshold,
    cell_scale,
    cell_stream: tl.int64,
    candidate_threshold,
    candidate_scale,
    candidate_stream: tl.int64,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    DTYPE: tl.constexpr = h_ptr.dtype.element_ty
    row, column, inside = tile(rows, columns, ROWS, BLOCKS, VECTOR)
    x_at, h_at, at, gates_at = row * x_row + column, row * h_row + column, row * columns + column, row * (4 * columns) + column
    before = _load(before_ptr, at, inside)
    candidate = _keep_or_all(seed_ptr, candidate_stream, columns, candidate_threshold, ROWS, BLOCKS, VECTOR)
    first = _load(of_x_ptr, x_at, inside) + _load(of_h_ptr, h_at, inside)
    second = _load(of_x_ptr, x_at + columns, inside) + _load(of_h_ptr, h_at + columns, inside)
    of_x, of_h = _load(of_x_ptr, x_at + 2 * columns, inside), _load(of_h_ptr, h_at + 2 * columns, inside)
    if CELL == "LSTM":
        o = _load(of_x_ptr, x_at + 3 * columns, inside) + _load(of_h_ptr, h_at + 3 * columns, inside)
        cell = _keep_or_all(seed_ptr, cell_stream, columns, cell_threshold, ROWS, BLOCKS, VECTOR)
        i, f, g, o, c, made = lstm_forward(
            first, second, of_x + of_h, o, before, candidate, candidate_scale, cell, cell_scale, DTYPE, "exact"
        )
        _store(c_ptr, at, c, inside)
        _store_four(gates_ptr, gates_at, columns, i, f, g, o, inside)
    else:
        tl.static_assert(CELL == "GRU")
        r, z, n, made = gru_forward(first, second, of_x, of_h, before, candidate, candidate_scale, DTYPE, "exact")
        _store_four(gates_ptr, gates_at, columns, of_h, r, z, n, inside)
    hidden = _keep_or_all(seed_ptr, hidden_stream, columns, hidden_threshold, ROWS, BLOCKS, VECTOR)
    _store(h_ptr, at, dropped(made, hidden, hidden_scale), inside)


@triton.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    grad_h_ptr,  # (rows, columns), or None
    grad_c_ptr,  # (rows, columns) of an LSTM, or None
    gates_ptr,  # (rows, 4*columns): what forward wrote, as c is
    before_ptr,  # (rows, columns): c of an LSTM, h of a GRU, as forward read it
    c_ptr,  # (rows, columns) of an LSTM
    grad_x_ptr,  # (rows, G*columns): written, the gradient of the gates of x; of an LSTM of those of h too
    grad_of_h_ptr,  # (rows, G*columns) of a GRU: written
    grad_before_ptr,  # (rows, columns): written
    seed_ptr,  # (1,) int64, or None where nothing is dropped
    rows: tl.int64,
    columns,
    hidden_threshold,  # None where nothing is dropped, and so on
    hidden_scale,
    hidden_stream: tl.int64,
    cell_threshold,
    cell_scale,
    cell_stream: tl.int64,
    candidate_threshold,
    candidate_scale,
    candidate_stream: tl.int64,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    row, column, inside = tile(rows, columns, ROWS, BLOCKS, VECTOR)
    at, gates_at = row * columns + column, row * (4 * columns) + column
    before = _load(before_ptr, at, inside)
    hidden = _keep_or_all(seed_ptr, hidden_stream, columns, hidden_threshold, ROWS, BLOCKS, VECTOR)
    candidate = _keep_or_all(seed_ptr, candidate_stream, columns, candidate_threshold, ROWS, BLOCKS, VECTOR)
    grad_made = dropped(_load_or_zero(grad_h_ptr, at, inside), hidden, hidden_scale)
    first, second = _load(gates_ptr, gates_at, inside), _load(gates_ptr, gates_at + columns, inside)
    third, fourth = _load(gates_ptr, gates_at + 2 * columns, inside), _load(gates_ptr, gates_at + 3 * columns, inside)
    if CELL == "LSTM":
        DTYPE: tl.constexpr = grad_x_ptr.dtype.element_ty
        c, grad_c = _load(c_ptr, at, inside), _load_or_zero(grad_c_ptr, at, inside)
        cell = _keep_or_all(seed_ptr, cell_stream, columns, cell_threshold, ROWS, BLOCKS, VECTOR)
        i, f, g, o, grad_before = lstm_backward(
            grad_made,
            grad_c,
            first,
            second,
            third,
            fourth,
            before,
            c,
            candidate,
            candidate_scale,
            cell,
            cell_scale,
            DTYPE,
            "exact",
        )
        _store_four(grad_x_ptr, gates_at, columns, i, f, g, o, inside)
    else:
        tl.static_assert(CELL == "GRU")
        hn, r, z, n, grad_before = gru_backward(grad_made, first, second, third, fourth, before, candidate, candidate_scale)
        three_at = row * (3 * columns) + column
        _store_three(grad_x_ptr, three_at, columns, r, z, n, inside)
        _store_three(grad_of_h_ptr, three_at, columns, r, z, hn, inside)
    _store(grad_before_ptr, at, grad_before, inside)


@triton.jit
def _store_three(pointer, at, columns, first, second, third, inside):
    _store(pointer, at, first, inside)
    _store(pointer, at + columns, second, inside)
    _store(pointer, at + 2 * columns, third, inside)


@triton.jit
def _store_four(pointer, at, columns, first, second, third, fourth, inside):
    _store_three(pointer, at, columns, first, second, third, inside)
    _store(pointer, at + 3 * columns, fourth, inside)


class DrawnMask(NamedTuple):
    """A mask made in registers.

    Attributes:
        threshold: 0 (keep all) ... 65536 (drop all).
        scale: 65536 / (65536 - threshold), or 0.
        stream: the number of the mask among those of one seed.
    """

    threshold: int
    scale: float
    stream: int


DrawnMasks = Mapping[str, DrawnMask]  # by kind: "hidden", "candidate", of an LSTM "cell"; one not there drops nothing


def forward(
    of_x: Tensor, of_h: Tensor, before: Tensor, seed: Tensor | None, masks: DrawnMasks, *, cell: str
) -> tuple[list[Tensor], Tensor]:
    """The states after a step.

    Args:
        of_x: (B, G*H), of float32, float16 or bfloat16: W_ih x and its bias, gates i, f, g, o of an LSTM, r, z, n of a GRU.
        of_h: (B, G*H): W_hh h and its bias.
        before: (B, H): c of an LSTM, h of a GRU.
        seed: one int64, (1,), on the device; None without masks. Row b of a mask is for row b.
        masks: those that drop.
        cell: "LSTM" or "GRU".

    Returns:
        h, and of an LSTM c, (B, H) each; and what backward needs besides, (B, 4*H): i, f, g, o after their activations, or
        the gate of h that belongs to n, and r, z, n after their activations.
    """
    of_x, of_h, before = _rows_together(of_x), _rows_together(of_h), before.contiguous()
    rows, columns = before.shape
    states, gates = [torch.empty_like(before) for _ in range(2 if cell == "LSTM" else 1)], before.new_empty(rows, 4 * columns)
    if before.numel():
        grid, options = tiles(before, _blocks(before))
        with on_device(before):
            forward_kernel[grid](
                of_x_ptr=of_x,
                x_row=of_x.stride(0),
                of_h_ptr=of_h,
                h_row=of_h.stride(0),
                before_ptr=before,
                h_ptr=states[0],
                c_ptr=states[1] if cell == "LSTM" else None,
                gates_ptr=gates,
                seed_ptr=seed,
                rows=rows,
                columns=columns,
                CELL=cell,
                **_of_masks(masks),
                **options,
            )
    return states, gates


def backward(
    grad_states: Sequence[Tensor | None],
    gates: Tensor,
    before: Tensor,
    c: Tensor | None,
    seed: Tensor | None,
    masks: DrawnMasks,
    *,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what a step was made of.

    Args:
        grad_states: of h, and of an LSTM of c, (B, H) each or None.
        gates: (B, 4*H), from forward.
        c: (B, H), from forward, of an LSTM. The rest is what forward was given.

    Returns:
        Those of of_x and of_h, (B, G*H), the same tensor of an LSTM; that of the old state, (B, H).
    """
    gates, before = gates.contiguous(), before.contiguous()
    grad_h, grad_c = (None if grad is None else grad.contiguous() for grad in (*grad_states, None)[:2])
    rows, columns = before.shape
    lstm = cell == "LSTM"
    grad_before, of_x = torch.empty_like(before), before.new_empty(rows, (4 if lstm else 3) * columns)
    of_h = of_x if lstm else torch.empty_like(of_x)
    if before.numel():
        grid, options = tiles(before, _blocks(before))
        with on_device(before):
            backward_kernel[grid](
                grad_h_ptr=grad_h,
                grad_c_ptr=grad_c,
                gates_ptr=gates,
                before_ptr=before,
                c_ptr=None if c is None else c.contiguous(),
                grad_x_ptr=of_x,
                grad_of_h_ptr=None if lstm else of_h,
                grad_before_ptr=grad_before,
                seed_ptr=seed,
                rows=rows,
                columns=columns,
                CELL=cell,
                **_of_masks(masks),
                **options,
            )
    return of_x, of_h, grad_before


def _rows_together(x: Tensor) -> Tensor:
    """x (rows, columns), its rows any distance apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _blocks(x: Tensor) -> int:
    """What a program takes: sixteen bytes a thread of four warps."""
    return 128 * 16 // x.element_size() // 16


def _of_masks(masks: DrawnMasks) -> dict[str, float | None]:
    """The arguments of the kernels that tell of masks."""
    arguments: dict[str, float | None] = {}
    for kind in ("hidden", "cell", "candidate"):
        mask = masks.get(kind, DrawnMask(0, 1.0, 0))
        arguments |= {f"{kind}_threshold": mask.threshold or None, f"{kind}_scale": mask.scale, f"{kind}_stream": mask.stream}
    return arguments
