"""`cooperative` of a GRU or an LSTM: the whole sequence in one cooperative launch, one kernel each way for both cells.

A program owns the same columns of all gates; its part of W_hh stays in registers for all steps. A step of forward reads
the h (16, H) that enters W_hh, which all slices have written, from the L2 cache, multiplies it, and makes the gates, the
states and their masks of its own columns, a thread those of one row and column. A step of backward multiplies the gradients
(16, G H) of the gates by the slice's columns of W_hh, and goes back through the gates that forward saved. One grid barrier a
step; everything that no other program writes is loaded before it is waited for.

What a step needs of the step before in its own columns a program reads from what it wrote itself: h from the output, c from
the saved cell states. Backward keeps the gradients that pass by W_hh, of c and of a carried h (zoneout; z * h of a GRU), in
buffers (B, H) of float32. Saved for backward besides the output: 5 numbers of the output's dtype a unit and
step of an LSTM, 4 of a GRU.

The columns of gates, saved and of gradients: i, f, g, o of an LSTM; of a GRU hn = W_hn h' + b_hn, r, z and the candidate n. A
GRU's slice has room for a fourth gate too, whose weight is 0 forward.

Packed data, phases and the barrier are as in `cooperative`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .gates import dropped, gru_backward, gru_forward, lstm_backward, lstm_cell_state, lstm_forward, zoned, zoned_backward
from .grid_barrier import Shape, grid_barrier_arrive, grid_barrier_wait, launch_phases, rows_of_step
from .launch import (
    Masks,
    bits_and_scale,
    bits_and_share,
    check_zoneout,
    cropped,
    cropped_gates,
    dense,
    drawn,
    is_per_step,
    on_device,
    padded,
    padded_gates,
    padded_weight,
    row_offsets,
)
from .mask_bits import words, words_keep
from .plan import GATES, CooperativePlan, Extras, plan_gated_cooperative
from .product import clear_padding, precision
from .split_product import as_operand, of_four_gates, of_state, tile_of_rows, times_slice


@triton.jit
def row_of_weight(gate_column, CELL: tl.constexpr, WIDTH: tl.constexpr):
    """Which row of W_hh makes a column of gates: a GRU has hn first there and last in its weights."""
    if CELL == "LSTM":
        return gate_column
    else:
        return tl.where(gate_column < WIDTH, gate_column + 2 * WIDTH, gate_column - WIDTH)


@triton.jit
def load_gates_slice(
    w_hh_ptr,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    CHUNK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """W_hh.T in this program's columns of all gates, side by side, as `times_slice` takes it."""
    NEAR: tl.constexpr = 32 // w_hh_ptr.dtype.element_ty.primitive_bitwidth
    chunks = ()
    for i in tl.static_range(tl.cdiv(WIDTH, CHUNK)):
        n, k = tile_of_rows(i, 4 * SLICE, CHUNK // WARPS, WARPS, NEAR)
        gate, column = n // SLICE, tl.program_id(0) * SLICE + n % SLICE
        at = row_of_weight(gate * WIDTH + column, CELL, WIDTH) * WIDTH + k
        x = tl.load(w_hh_ptr + at, mask=(gate < GATES) & (column < WIDTH) & (k < WIDTH), other=0.0)
        chunks += (tl.permute(as_operand(x, NEAR), (0, 2, 1)),)
    return chunks


@triton.jit
def load_state_slice(
    w_hh_ptr, GATES: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, CHUNK: tl.constexpr, WARPS: tl.constexpr
):
    """This program's columns of W_hh, of the rows of all gates, as `times_slice` takes them; from W_hh.T."""
    NEAR: tl.constexpr = 32 // w_hh_ptr.dtype.element_ty.primitive_bitwidth
    chunks = ()
    for i in tl.static_range(tl.cdiv(GATES * WIDTH, CHUNK)):
        n, k = tile_of_rows(i, SLICE, CHUNK // WARPS, WARPS, NEAR)
        column = tl.program_id(0) * SLICE + n
        at = column * (GATES * WIDTH) + k
        x = tl.load(w_hh_ptr + at, mask=(column < WIDTH) & (k < GATES * WIDTH), other=0.0)
        chunks += (tl.permute(as_operand(x, NEAR), (0, 2, 1)),)
    return chunks


@triton.jit
def load_gates(ptr, inside, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """So many gates, WIDTH apart."""
    gates = ()
    for gate in tl.static_range(COUNT):
        gates += (tl.load(ptr + gate * WIDTH, mask=inside, other=0.0),)
    return gates


@triton.jit
def store_gates(ptr, gates, inside, WIDTH: tl.constexpr):
    for gate in tl.static_range(len(gates)):
        tl.store(ptr + gate * WIDTH, gates[gate].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_before(states_ptr, first_ptr, start_before, size_before, size, b, at, mine, WIDTH: tl.constexpr):
    """A state's rows from b on of the step before, or at the beginning of those sequences that begin here."""
    row = b + tl.arange(0, 16)[:, None]
    now, continues = (row < size) & mine, row < size_before
    before = tl.load(states_ptr + (start_before + b) * WIDTH + at, mask=now & continues, other=0.0)
    if size > size_before:  # sequences begin here
        before = tl.where(continues, before, tl.load(first_ptr + b * WIDTH + at, mask=now & ~continues, other=0.0))
    return before


@triton.jit
def load_words(bits_ptr, first_row, inside, column, H: tl.constexpr):
    """The words of 16 rows of a mask, or None without one."""
    if bits_ptr is None:
        return None
    else:
        return words(bits_ptr, first_row + tl.arange(0, 16)[:, None], column, H, inside)


@triton.jit
def keeps(words, column):
    """Where the words keep the columns given, or None without any."""
    if words is None:
        return None
    else:
        return words_keep(words, column)


RUNTIME = [
    *("T", "B", "begin", "end"),
    *("hidden_scale", "recurrent_scale", "candidate_scale", "cell_scale", "old_share", "old_cell_share"),
]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (N, GATES * WIDTH)
    b_hn_ptr,  # (WIDTH), or None
    h_0_ptr,  # (B, WIDTH)
    c_0_ptr,  # (B, WIDTH), or None of a GRU
    w_hh_ptr,  # (GATES * WIDTH, WIDTH)
    hidden_ptr,  # (N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    candidate_ptr,  # the same
    cell_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    cell_zoneout_ptr,  # the same
    offsets_ptr,  # (T + 1) int64, where the rows of each step begin, or None where each has B
    output_ptr,  # (N, WIDTH)
    gates_ptr,  # (N, 4 * WIDTH)
    cells_ptr,  # (N, WIDTH), or None of a GRU
    exchange_ptr,  # (2, B, WIDTH): what enters W_hh at this step and at the next, or None where output and h_0 serve
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    hidden_scale,
    recurrent_scale,
    candidate_scale,
    cell_scale,
    old_share,  # of the old state in the expectation of zoneout, or None
    old_cell_share,
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    CANDIDATE_PER_STEP: tl.constexpr,
    CELL_PER_STEP: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    GATES: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    SLICE: tl.constexpr,
    CHUNK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Phases begin ... end-1: phase p > 0 is the p-th step taken, phase 0 makes what enters W_hh there, for an exchange.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, 16)[:, None], tl.program_id(0) * SLICE + tl.arange(0, SLICE)[None, :]
    at, mine = row * WIDTH + column, column < WIDTH
    barrier_ptr += group * 16

    if exchange_ptr is not None and begin == 0:
        start, size = rows_of_step(offsets_ptr, T - 1 if REVERSE else begin, T, B)
        for tile in range(group, tl.cdiv(size, 16), groups):
            b = tile * 16
            now = (b + row < size) & mine
            h = tl.load(h_0_ptr + b * WIDTH + at, mask=now, other=0.0)
            recurrent = load_words(recurrent_ptr, start + b if RECURRENT_PER_STEP else b, now, column, H)
            h = dropped(h.to(tl.float32), keeps(recurrent, column), recurrent_scale).to(DTYPE)
            tl.store(exchange_ptr + b * WIDTH + at, h, mask=now)
        grid_barrier_arrive(barrier_ptr)

    w = load_gates_slice(w_hh_ptr, CELL, GATES, WIDTH, SLICE, CHUNK, WARPS)
    if b_hn_ptr is not None:
        b_hn = tl.load(b_hn_ptr + column, mask=mine, other=0.0).to(tl.float32)
    for phase in range(tl.maximum(begin, 1), end):
        t = T - phase if REVERSE else phase - 1
        before, after = (t + 1, t - 1) if REVERSE else (t - 1, t + 1)
        start, size = rows_of_step(offsets_ptr, t, T, B)
        start_before, size_before = rows_of_step(offsets_ptr, before, T, B)
        start_after, size_after = rows_of_step(offsets_ptr, after, T, B)
        if exchange_ptr is not None:
            source_ptr = exchange_ptr + (phase - 1) % 2 * B * WIDTH
        else:
            source_ptr = tl.where(size_before == 0, h_0_ptr, output_ptr + start_before * WIDTH)
        for tile in range(group, tl.cdiv(tl.maximum(size, size_after), 16), groups):
            b = tile * 16
            here = start + b
            now, following = (b + row < size) & mine, (b + row < size_after) & mine
            # What no other program writes is loaded before the wait, and first used after it.
            x_at = here * GATES * WIDTH + row * GATES * WIDTH + column
            x = load_gates(input_projection_ptr + x_at, now, GATES, WIDTH)
            hidden = load_words(hidden_ptr, here if HIDDEN_PER_STEP else b, now, column, H)
            candidate = load_words(candidate_ptr, here if CANDIDATE_PER_STEP else b, now, column, H)
            zoneout = load_words(zoneout_ptr, here, now, column, H)
            if recurrent_ptr is not None:
                first_row = start_after + b if RECURRENT_PER_STEP else b
                recurrent = load_words(recurrent_ptr, first_row, following, column, H)
            if CELL == "GRU" or zoneout_ptr is not None or old_share is not None:
                h_before = load_before(output_ptr, h_0_ptr, start_before, size_before, size, b, at, mine, WIDTH)
            else:
                h_before = None
            if CELL == "LSTM":
                cell = load_words(cell_ptr, here if CELL_PER_STEP else b, now, column, H)
                cell_zoneout = load_words(cell_zoneout_ptr, here, now, column, H)
                c_before = load_before(cells_ptr, c_0_ptr, start_before, size_before, size, b, at, mine, WIDTH)
            if tile == group:
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))

            total = times_slice(source_ptr + b * WIDTH, size - b, w, WIDTH, WIDTH, PRECISION)
            first, second, third, fourth = of_four_gates(total)
            first, second = clear_padding(first, column, H, WIDTH), clear_padding(second, column, H, WIDTH)
            third, fourth = clear_padding(third, column, H, WIDTH), clear_padding(fourth, column, H, WIDTH)
            candidate_keep = keeps(candidate, column)
            if CELL == "LSTM":
                c_before = c_before.to(tl.float32)
                i, f, g, o, c, made = lstm_forward(
                    first + x[0].to(tl.float32),
                    second + x[1].to(tl.float32),
                    third + x[2].to(tl.float32),
                    fourth + x[3].to(tl.float32),
                    c_before,
                    candidate_keep,
                    candidate_scale,
                    keeps(cell, column),
                    cell_scale,
                    DTYPE,
                    "exact",
                )
                c = zoned(c_before, c, keeps(cell_zoneout, column), old_cell_share)
                tl.store(cells_ptr + here * WIDTH + at, c.to(DTYPE), mask=now)
                gates = (i, f, g, o)
            else:
                hn = first
                if b_hn_ptr is not None:
                    hn += b_hn
                r, z, n, made = gru_forward(
                    second + x[0].to(tl.float32),
                    third + x[1].to(tl.float32),
                    x[2].to(tl.float32),
                    hn,
                    h_before.to(tl.float32),
                    candidate_keep,
                    candidate_scale,
                    DTYPE,
                    "exact",
                )
                gates = (hn, r, z, n)
            store_gates(gates_ptr + here * 4 * WIDTH + row * 4 * WIDTH + column, gates, now, WIDTH)
            h = dropped(made, keeps(hidden, column), hidden_scale)
            if h_before is not None:
                h = zoned(h_before.to(tl.float32), h, keeps(zoneout, column), old_share)
            h = h.to(DTYPE)
            tl.store(output_ptr + here * WIDTH + at, h, mask=now)
            if exchange_ptr is not None:
                if offsets_ptr is not None and REVERSE:  # sequences may begin at the next step
                    h = tl.where(now, h, tl.load(h_0_ptr + b * WIDTH + at, mask=following & ~now, other=0.0))
                if recurrent_ptr is not None:
                    h = dropped(h.to(tl.float32), keeps(recurrent, column), recurrent_scale).to(DTYPE)
                tl.store(exchange_ptr + phase % 2 * B * WIDTH + b * WIDTH + at, h, mask=following)
        grid_barrier_arrive(barrier_ptr)


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (N, WIDTH)
    grad_h_n_ptr,  # (B, WIDTH), or None
    grad_c_n_ptr,  # the same
    carried_0_ptr,  # (B, WIDTH), the first c of an LSTM, h of a GRU
    carried_ptr,  # (N, WIDTH), the same at each step
    gates_ptr,  # (N, 4 * WIDTH)
    w_hh_ptr,  # (WIDTH, GATES * WIDTH), transposed, the gates as those of a gradient
    hidden_ptr,  # (N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    candidate_ptr,  # the same
    cell_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    cell_zoneout_ptr,  # the same
    offsets_ptr,  # (T + 1) int64, where the rows of each step begin, or None where each has B
    passing_h_ptr,  # (B, WIDTH) float32: the gradient of h that passes by W_hh, or None where nothing does
    passing_c_ptr,  # (B, WIDTH) float32: the gradient of c, or None of a GRU
    grad_gates_ptr,  # (N, 4 * WIDTH)
    grad_h_0_ptr,  # (B, WIDTH)
    grad_c_0_ptr,  # (B, WIDTH), or None of a GRU
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    hidden_scale,
    recurrent_scale,
    candidate_scale,
    cell_scale,
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    CANDIDATE_PER_STEP: tl.constexpr,
    CELL_PER_STEP: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    GATES: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    SLICE: tl.constexpr,
    CHUNK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Phases begin ... end-1: phase p < T is the step that forward took p steps before its last, phase T has only gradients
    of the states at the beginning. Nothing comes from W_hh in phase 0, whose step has no step after it.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, 16)[:, None], tl.program_id(0) * SLICE + tl.arange(0, SLICE)[None, :]
    at, mine = row * WIDTH + column, column < WIDTH
    w = load_state_slice(w_hh_ptr, GATES, WIDTH, SLICE, CHUNK, WARPS)
    barrier_ptr += group * 16

    for phase in range(begin, end):
        t = phase if REVERSE else T - 1 - phase
        before, after = (t + 1, t - 1) if REVERSE else (t - 1, t + 1)
        start, size = rows_of_step(offsets_ptr, t, T, B)
        start_before, size_before = rows_of_step(offsets_ptr, before, T, B)
        start_after, size_after = rows_of_step(offsets_ptr, after, T, B)
        for tile in range(group, tl.cdiv(tl.maximum(size, size_after), 16), groups):
            b = tile * 16
            here, of_tile = start + b, b * WIDTH + at
            now, following = (b + row < size) & mine, (b + row < size_after) & mine
            # What no other program writes is loaded before the wait, and first used after it.
            grad_y = tl.load(grad_output_ptr + here * WIDTH + at, mask=now, other=0.0)
            gates_at = row * 4 * WIDTH + column
            gates = load_gates(gates_ptr + here * 4 * WIDTH + gates_at, now, 4, WIDTH)
            carried_before = load_before(carried_ptr, carried_0_ptr, start_before, size_before, size, b, at, mine, WIDTH)
            hidden = load_words(hidden_ptr, here if HIDDEN_PER_STEP else b, now, column, H)
            candidate = load_words(candidate_ptr, here if CANDIDATE_PER_STEP else b, now, column, H)
            zoneout = load_words(zoneout_ptr, here, now, column, H)
            recurrent = load_words(recurrent_ptr, start_after + b if RECURRENT_PER_STEP else b, following, column, H)
            if passing_h_ptr is not None:
                passing_h = tl.load(passing_h_ptr + of_tile, mask=following, other=0.0)
            if CELL == "LSTM":
                cell = load_words(cell_ptr, here if CELL_PER_STEP else b, now, column, H)
                cell_zoneout = load_words(cell_zoneout_ptr, here, now, column, H)
                grad_c = tl.load(passing_c_ptr + of_tile, mask=following, other=0.0)
                if cell_zoneout_ptr is None:
                    c = tl.load(carried_ptr + here * WIDTH + at, mask=now, other=0.0)
            if tile == group:
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))

            source_ptr = grad_gates_ptr + (start_after + b) * 4 * WIDTH
            total = times_slice(source_ptr, size_after - b, w, GATES * WIDTH, 4 * WIDTH, PRECISION)
            grad_h = dropped(of_state(total), keeps(recurrent, column), recurrent_scale)
            grad_h = tl.where(following & (column < H), grad_h, 0.0)
            if passing_h_ptr is not None:
                grad_h += passing_h
            if size_after > size:  # sequences begin at the step after
                tl.store(grad_h_0_ptr + of_tile, grad_h.to(DTYPE), mask=following & ~now)
                if CELL == "LSTM":
                    tl.store(grad_c_0_ptr + of_tile, grad_c.to(DTYPE), mask=following & ~now)
            if size > size_after:  # sequences end here
                ending = now & ~following
                if grad_h_n_ptr is not None:
                    grad_h += tl.load(grad_h_n_ptr + of_tile, mask=ending, other=0.0).to(tl.float32)
                if grad_c_n_ptr is not None:
                    grad_c += tl.load(grad_c_n_ptr + of_tile, mask=ending, other=0.0).to(tl.float32)
            old_h, grad_h = zoned_backward(grad_h + grad_y.to(tl.float32), keeps(zoneout, column))
            grad_made = dropped(grad_h, keeps(hidden, column), hidden_scale)
            candidate_keep, carried_before = keeps(candidate, column), carried_before.to(tl.float32)
            first, second = gates[0].to(tl.float32), gates[1].to(tl.float32)
            third, fourth = gates[2].to(tl.float32), gates[3].to(tl.float32)
            if CELL == "LSTM":
                old_c, grad_c = zoned_backward(grad_c, keeps(cell_zoneout, column))
                cell_keep = keeps(cell, column)
                if cell_zoneout_ptr is None:
                    c = c.to(tl.float32)
                else:  # what is saved may be the old state
                    c = lstm_cell_state(
                        first, second, third, carried_before, candidate_keep, candidate_scale, cell_keep, cell_scale
                    )
                d_i, d_f, d_g, d_o, grad_c = lstm_backward(
                    grad_made,
                    grad_c,
                    first,
                    second,
                    third,
                    fourth,
                    carried_before,
                    c,
                    candidate_keep,
                    candidate_scale,
                    cell_keep,
                    cell_scale,
                    DTYPE,
                    "exact",
                )
                tl.store(passing_c_ptr + of_tile, old_c + grad_c, mask=now)
                grads = (d_i, d_f, d_g, d_o)
            else:
                d_hn, d_r, d_z, d_n, grad_h = gru_backward(
                    grad_made, first, second, third, fourth, carried_before, candidate_keep, candidate_scale
                )
                old_h += grad_h
                grads = (d_hn, d_r, d_z, d_n)
            if passing_h_ptr is not None:
                tl.store(passing_h_ptr + of_tile, old_h, mask=now)
            store_gates(grad_gates_ptr + here * 4 * WIDTH + gates_at, grads, now, WIDTH)
        grid_barrier_arrive(barrier_ptr)


def forward(
    input_projection: Tensor,
    states: Sequence[Tensor],
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    b_hn: Tensor | None = None,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The output of every step, and what backward needs besides.

    Args:
        input_projection: (T, B, G*H), or (N, G*H) with `sizes`, of float32, float16 or bfloat16: W_ih x and both biases, but
            b_hn of a GRU. G = 4 gates of an LSTM, 3 of a GRU.
        states: h_0 (B, H), and c_0 of an LSTM.
        w_hh: (G*H, H).
        masks: by kind; one that is not there drops nothing. "hidden": of the new state. "recurrent": of the state where it
            enters W_hh. "candidate". "cell": of the new cell state. "zoneout" and "cell_zoneout": where the new state is
            taken and not the old one.
        cell: "GRU" or "LSTM".
        b_hn: (H) of a GRU, or None.
        reverse: from the last step to the first.
        tf32: fp32 products may round their operands to tf32.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        (T, B, H) or (N, H), contiguous, and a list: the gates (T, B, 4*H) or (N, 4*H), of an LSTM i, f, g, o after their
        activations, of a GRU W_hn h + b_hn, and r, z and the candidate after theirs; then of an LSTM the cell states (T, B, H)
        or (N, H).

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = states[0].shape[-1]
    with on_device(input_projection):
        plan, shape, constexprs = _plan(cell, input_projection, H, masks, reverse, tf32, sizes)
        leading = input_projection.shape[:-1]
        lstm = cell == "LSTM"
        output, gates = (input_projection.new_empty(*leading, n * plan.width) for n in (1, 4))
        cells = torch.empty_like(output) if lstm else None
        begin = 0 if "recurrent" in masks or (reverse and sizes is not None) else 1
        zoneout_bits, old_share = bits_and_share(masks)
        cell_zoneout_bits, old_cell_share = bits_and_share(masks, "cell_zoneout")
        arguments = {
            "input_projection_ptr": dense(padded_gates(input_projection, H, plan.width)),
            "b_hn_ptr": None if b_hn is None else dense(padded(b_hn, plan.width)),
            "h_0_ptr": dense(padded(states[0], plan.width)),
            "c_0_ptr": dense(padded(states[1], plan.width)) if lstm else None,
            "w_hh_ptr": padded_weight(w_hh, plan.width),
            "zoneout_ptr": zoneout_bits,
            "cell_zoneout_ptr": cell_zoneout_bits,
            "output_ptr": output,
            "gates_ptr": gates,
            "cells_ptr": cells,
            "exchange_ptr": output.new_empty(2, shape.B, plan.width) if begin == 0 else None,
            "old_share": old_share,
            "old_cell_share": old_cell_share,
        }
        arguments |= _bits_and_scales(masks) | constexprs
        launch_phases(forward_kernel, arguments, shape, range(begin, shape.T + 1), plan, output.device)
    saved = [cropped_gates(gates, H, plan.width), *([cropped(cells, H)] if cells is not None else [])]
    return cropped(output, H), saved


def backward(
    grad_output: Tensor,
    grad_states: Sequence[Tensor | None],
    states: Sequence[Tensor],
    output: Tensor,
    saved: Sequence[Tensor],
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the gates and of the states at the beginning.

    Args:
        grad_output: like output.
        grad_states: of the states at the end, (B, H) or None each.
        output: what forward returned, as `saved` is. The rest is what forward was given, zoneouts as masks.

    Returns:
        (T, B, 4*H) or (N, 4*H), contiguous, of the pre-activations: i, f, g, o of an LSTM; of a GRU W_hn h + b_hn, r, z and
        the candidate. And a list, (B, H) of each state.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = output.shape[-1]
    with on_device(output):
        plan, shape, constexprs = _plan(cell, output, H, masks, reverse, tf32, sizes)
        lstm = cell == "LSTM"
        first, carried = (states[1], saved[1]) if lstm else (states[0], output)
        gates = dense(padded_gates(saved[0], H, plan.width))
        grad_gates = torch.empty_like(gates)
        grad_0 = [output.new_empty(shape.B, plan.width) for _ in states]
        zoneout_bits, cell_zoneout_bits = (bits_and_share(masks, kind)[0] for kind in ("zoneout", "cell_zoneout"))
        h_passes = not lstm or zoneout_bits is not None
        grad_ends = [None if grad is None else dense(padded(grad, plan.width)) for grad in grad_states]
        arguments = {
            "grad_output_ptr": dense(padded(grad_output, plan.width)),
            "grad_h_n_ptr": grad_ends[0],
            "grad_c_n_ptr": grad_ends[1] if lstm else None,
            "carried_0_ptr": dense(padded(first, plan.width)),
            "carried_ptr": dense(padded(carried, plan.width)),
            "gates_ptr": gates,
            "w_hh_ptr": _transposed_weight(w_hh, plan.width, cell),
            "zoneout_ptr": zoneout_bits,
            "cell_zoneout_ptr": cell_zoneout_bits,
            "passing_h_ptr": torch.empty_like(grad_0[0], dtype=torch.float32) if h_passes else None,
            "passing_c_ptr": torch.empty_like(grad_0[0], dtype=torch.float32) if lstm else None,
            "grad_gates_ptr": grad_gates,
            "grad_h_0_ptr": grad_0[0],
            "grad_c_0_ptr": grad_0[1] if lstm else None,
        }
        arguments |= _bits_and_scales(masks) | constexprs
        launch_phases(backward_kernel, arguments, shape, range(shape.T + 1), plan, output.device)
    return cropped_gates(grad_gates, H, plan.width), [cropped(grad, H) for grad in grad_0]


SCALED = "hidden", "recurrent", "candidate", "cell"  # kinds whose mask has a scale, per step or per sequence


def _bits_and_scales(masks: Masks) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for kind in SCALED:
        arguments[f"{kind}_ptr"], arguments[f"{kind}_scale"] = bits_and_scale(masks, kind)
    return arguments


def _plan(
    cell: str, data: Tensor, H: int, masks: Masks, reverse: bool, tf32: bool, sizes: Sequence[int] | None
) -> tuple[CooperativePlan, Shape, dict[str, Any]]:
    """The grid and tiles, the steps, and what both kernels are compiled for."""
    T, B = data.shape[:2] if sizes is None else (len(sizes), max(sizes, default=0))
    rows = math.prod(data.shape[:-1])
    device = launch.device_of(data.device)
    extras = Extras(drawn(masks), packed=sizes is not None)
    plan = plan_gated_cooperative(H, B, data.dtype, device, cell=cell, tf32=tf32, extras=extras)
    launch.check_can_run("cooperative", T, B, plan.reason)
    for kind in ("zoneout", "cell_zoneout"):
        check_zoneout(masks, rows, H, kind)
    constexprs = {f"{kind.upper()}_PER_STEP": is_per_step(masks, kind, rows, B, H) for kind in SCALED}
    constexprs |= {
        "CELL": cell,
        "REVERSE": reverse,
        "PRECISION": precision(data.dtype, tf32, device.backend),
        "GATES": GATES[cell],
        "H": H,
        "WIDTH": plan.width,
        "SLICE": plan.slice,
        "CHUNK": plan.chunk,
        "WARPS": plan.warps,
        "num_warps": plan.warps,
        "num_stages": 1,  # Triton's pipeliner would load the next tile's h before its programs have met
        "launch_cooperative_grid": True,
    }
    offsets = None if sizes is None else row_offsets(tuple(sizes), data.device)
    return plan, Shape(T, B, offsets), constexprs


def _transposed_weight(w_hh: Tensor, width: int, cell: str) -> Tensor:
    """w_hh (gates * H, H) as (width, gates * width), a GRU's gates as n, r, z."""
    H = w_hh.shape[-1]
    if cell == "GRU":
        w_hh = torch.cat([w_hh[2 * H :], w_hh[: 2 * H]])
    return padded_weight(w_hh, width).t().contiguous()
