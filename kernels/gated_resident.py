"""`resident` of a GRU and an LSTM: the whole sequence in one launch, W_hh of all gates in the registers of one multiprocessor.

A program owns 16 rows of the batch (`tile_layout`) and all columns of all gates, so that a lane has every gate of its columns
and the cell goes on in registers: h and c in forward, their gradients, in fp32, in backward. It reads W_hh once. A step reads
the input projection and the bits and writes the output, the gates and the cell states; backward reads these and makes nothing
again but tanh of the cell state (with zoneout of it, that itself). States and gates are rounded as they are written, and go on
as they were written.

Forward has one product for each gate, of the same operand, between two barriers. Backward adds up one product for each gate,
and each of their operands goes through shared memory on its own. What a step needs of memory is loaded a step ahead, as far
as there are registers: in forward before the products; the bits, of which only those of the recurrent mask are needed before
the next products, when a step is done; in backward between the products, where half of the gradients are done with, or after.

Packed data: a row that a step does not have keeps its states, and in backward its gradients, like one that zoneout drops whole.

Sizes of steps are computed where all are the same too: with addresses that grow by a constant, LLVM keeps one for each
tensor, and registers spill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .activation import way_of_tanh
from .gates import dropped, gru_backward, gru_forward, lstm_backward, lstm_cell_state, lstm_forward, zoned, zoned_backward
from .launch import (
    Masks,
    bits_and_scale,
    bits_and_share,
    check_zoneout,
    cropped,
    cropped_gates,
    dense,
    drawn,
    in_rows,
    is_per_step,
    on_device,
    padded,
    padded_gates,
    padded_weight,
    row_offsets,
)
from .mask_bits import tile_kept, tile_words
from .plan import GATES, Extras, plan_gated_resident
from .product import multiply, precision
from .resident_tile import clear_padding, first_words, load_tile, next_words, size_of_step
from .tile_layout import from_result, load_right, tile_columns, tile_rows, to_left, to_result

KINDS = ("hidden", "candidate", "cell", "zoneout", "cell_zoneout")  # in the order in which the kernels have them side by side
HIDDEN, CANDIDATE, CELL_STATE, ZONEOUT, CELL_ZONEOUT = (tl.constexpr(i) for i in range(5))


@triton.jit
def load_gates(pointers, there, GATES: tl.constexpr, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """The tiles of gates side by side in a row."""
    gates = ()
    for gate in tl.static_range(GATES):
        gates += (load_tile(pointers + gate * WIDTH, there, WIDTH, REPEATS, WARPS),)
    return gates


@triton.jit
def store_gates(pointers, gates, there, WIDTH: tl.constexpr):
    """Their inverse."""
    for gate in tl.static_range(len(gates)):
        tl.store(pointers + gate * WIDTH, gates[gate], mask=there)


@triton.jit
def load_weights(
    w_hh_ptr, GATES: tl.constexpr, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """The right operand of each gate."""
    weights = ()
    for gate in tl.static_range(GATES):
        weights += (load_right(w_hh_ptr + gate * WIDTH * WIDTH, WIDTH, REPEATS, WARPS, TRANSPOSED),)
    return weights


@triton.jit
def first_words_of_each(
    bits, start, row, real, there, PER_STEP: tl.constexpr, H: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr
):
    """`first_words` of each mask."""
    words = ()
    for kind in tl.static_range(len(bits)):
        words += (first_words(bits[kind], start, 0, row, real, there, PER_STEP[kind], H, REPEATS, WARPS),)
    return words


@triton.jit
def next_words_of_each(bits, word, real, words, PER_STEP: tl.constexpr):
    """`next_words` of each mask."""
    following = ()
    for kind in tl.static_range(len(bits)):
        following += (next_words(bits[kind], word, real, words[kind], PER_STEP[kind]),)
    return following


@triton.jit
def kept(bits_ptr, words):
    """A mask as the functions of `gates` take it."""
    if bits_ptr is None:
        return None
    else:
        return tile_kept(words)


@triton.jit
def state_after(old, new, bits_ptr, words, share, real, PACKED: tl.constexpr, H: tl.constexpr):
    """A state after a step, as it is stored: after zoneout or its expectation; the old one where the step has no such row."""
    before = old.to(tl.float32)
    if bits_ptr is not None:  # no bits are kept in such a row
        new = zoned(before, new, tile_kept(words), None)
    else:
        new = zoned(before, new, None, share)
        new = tl.where(real, new, before) if PACKED else new
    return clear_padding(new.to(old.dtype), H)


@triton.jit
def taken(bits_ptr, words, real, PACKED: tl.constexpr):
    """Where a new state is taken, by zoneout and because the step has the row; None for everywhere."""
    if bits_ptr is not None:
        return tile_kept(words)
    elif PACKED:
        return real
    else:
        return None


@triton.jit
def rows_of_step(offsets_ptr, t, T, B):
    """How many rows step t has, 0 where there is no such step."""
    if offsets_ptr is None:
        return tl.where((t >= 0) & (t < T), B, 0)
    else:
        return size_of_step(offsets_ptr, t, T)


@triton.jit
def state_before(states_ptr, initial_ptr, start, rows, row, WIDTH: tl.constexpr):
    """Where rows have the state before a step: in the `rows` rows from `start`, or in the first of all."""
    pointers = tl.where(row < rows, states_ptr + (start + row) * WIDTH, initial_ptr + row * WIDTH)
    return tl.multiple_of(pointers, [8] * 6)  # bytes; else the choice hides it, and a lane loads its four columns one by one


RUNTIME = ["T", "B", "input_step", "input_row", "grad_step", "grad_row"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (T, B, GATES * WIDTH), or (N, GATES * WIDTH) of packed data
    b_hn_ptr,  # (WIDTH) of a GRU, or None
    offsets_ptr,  # (T + 1) int64, the first row of each step of packed data; or None
    h_0_ptr,  # (B, WIDTH)
    c_0_ptr,  # (B, WIDTH) of an LSTM
    w_hh_ptr,  # (GATES, WIDTH, WIDTH)
    recurrent_ptr,  # (N or B, ceil(H/32)) int32, or None
    hidden_ptr,  # the same
    candidate_ptr,  # the same
    cell_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    cell_zoneout_ptr,  # the same
    output_ptr,  # (N, WIDTH)
    gates_ptr,  # (N, 4 * WIDTH)
    cells_ptr,  # (N, WIDTH) of an LSTM
    T,
    B,
    input_step,  # rows of GATES * WIDTH elements from a step's input projection to the next one's, of padded data
    input_row,  # from a sequence's
    recurrent_scale,
    hidden_scale,
    candidate_scale,
    cell_scale,
    share,  # of the old state in the expectation of zoneout, or None
    cell_share,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    PER_STEP: tl.constexpr,  # of each of KINDS
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TANH: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """grid: (batch tiles,)."""
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    PACKED: tl.constexpr = offsets_ptr is not None
    ONWARD: tl.constexpr = -1 if REVERSE else 1
    LOADS_FIRST: tl.constexpr = DTYPE.primitive_bitwidth == 16  # in fp32 there are no registers for it
    bits = (hidden_ptr, candidate_ptr, cell_ptr, zoneout_ptr, cell_zoneout_ptr)
    first = T - 1 if REVERSE else 0
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    size, next_size = rows_of_step(offsets_ptr, first, T, B), rows_of_step(offsets_ptr, first + ONWARD, T, B)
    start, input_start = tl.cast(first, tl.int64) * B, tl.cast(first, tl.int64) * input_step
    input_moved = tl.cast(input_step, tl.int64) * ONWARD
    if PACKED:
        start = tl.load(offsets_ptr + first)
        input_start = start * input_row
    real = row < size

    w = load_weights(w_hh_ptr, GATES, WIDTH, REPEATS, WARPS, False)
    h = load_tile(h_0_ptr + row * WIDTH + column, row < B, WIDTH, REPEATS, WARPS)
    if CELL == "LSTM":
        c = load_tile(c_0_ptr + row * WIDTH + column, row < B, WIDTH, REPEATS, WARPS)
    elif b_hn_ptr is not None:
        b_hn = load_tile(b_hn_ptr + column, row < B, WIDTH, REPEATS, WARPS).to(tl.float32)
    else:
        b_hn = tl.zeros_like(h).to(tl.float32)
    input_projection_ptr += (input_start + row * input_row) * (GATES * WIDTH) + column
    x = load_gates(input_projection_ptr, real, GATES, WIDTH, REPEATS, WARPS)
    recurrent = first_words(recurrent_ptr, start, 0, row, real, row < B, RECURRENT_PER_STEP, H, REPEATS, WARPS)
    words = first_words_of_each(bits, start, row, real, row < B, PER_STEP, H, REPEATS, WARPS)

    for step in range(T):
        later_size = rows_of_step(offsets_ptr, first + (step + 2) * ONWARD, T, B)
        moved = tl.where(ONWARD > 0, size, -next_size).to(tl.int64)
        if PACKED:
            input_moved = moved * input_row
        real, ahead = row < size, row < next_size
        input_projection_ptr += input_moved * (GATES * WIDTH)
        word = tile_words(start + moved + row, H, REPEATS, WARPS)
        left = to_left(dropped(h.to(tl.float32), kept(recurrent_ptr, recurrent), recurrent_scale).to(DTYPE))
        recurrent = next_words(recurrent_ptr, word, ahead, recurrent, RECURRENT_PER_STEP)
        if LOADS_FIRST:
            next_x = load_gates(input_projection_ptr, ahead, GATES, WIDTH, REPEATS, WARPS)
        sums = ()
        for gate in tl.static_range(GATES):
            begin = b_hn if CELL == "GRU" and gate == 2 else x[gate].to(tl.float32)
            sums += (from_result(multiply(left, w[gate], to_result(begin), PRECISION), REPEATS),)
        if not LOADS_FIRST:
            next_x = load_gates(input_projection_ptr, ahead, GATES, WIDTH, REPEATS, WARPS)

        there = real & (column < WIDTH)
        candidate, h_before = kept(candidate_ptr, words[CANDIDATE]), h.to(tl.float32)
        if CELL == "LSTM":
            cell, c_before = kept(cell_ptr, words[CELL_STATE]), c.to(tl.float32)
            i, f, g, o, c_new, made = lstm_forward(*sums, c_before, candidate, candidate_scale, cell, cell_scale, DTYPE, TANH)
            saved = (i.to(DTYPE), f.to(DTYPE), g.to(DTYPE), o.to(DTYPE))
            c = state_after(c, c_new, cell_zoneout_ptr, words[CELL_ZONEOUT], cell_share, real, PACKED, H)
            tl.store(cells_ptr + (start + row) * WIDTH + column, c, mask=there)
        else:
            tl.static_assert(CELL == "GRU")
            r, z, n, made = gru_forward(
                sums[0], sums[1], x[2].to(tl.float32), sums[2], h_before, candidate, candidate_scale, DTYPE, TANH
            )
            saved = (sums[2].to(DTYPE), r.to(DTYPE), z.to(DTYPE), n.to(DTYPE))
        made = dropped(made, kept(hidden_ptr, words[HIDDEN]), hidden_scale)
        h = state_after(h, made, zoneout_ptr, words[ZONEOUT], share, real, PACKED, H)
        tl.store(output_ptr + (start + row) * WIDTH + column, h, mask=there)
        store_gates(gates_ptr + (start + row) * (4 * WIDTH) + column, saved, there, WIDTH)
        x, words = next_x, next_words_of_each(bits, word, ahead, words, PER_STEP)
        start, size, next_size = start + moved, next_size, later_size


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (T, B, WIDTH), or (N, WIDTH) of packed data
    offsets_ptr,  # (T + 1) int64, the first row of each step of packed data; or None
    grad_h_n_ptr,  # (B, WIDTH), or None
    grad_c_n_ptr,  # the same of an LSTM
    initial_ptr,  # (B, WIDTH): c_0 of an LSTM, h_0 of a GRU
    states_ptr,  # (N, WIDTH): the cell states of an LSTM, the output of a GRU
    gates_ptr,  # (N, 4 * WIDTH)
    w_hh_ptr,  # (GATES, WIDTH, WIDTH)
    recurrent_ptr,  # (N or B, ceil(H/32)) int32, or None
    hidden_ptr,  # the same
    candidate_ptr,  # the same
    cell_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    cell_zoneout_ptr,  # the same
    grad_gates_ptr,  # (N, 4 * WIDTH)
    grad_h_0_ptr,  # (B, WIDTH)
    grad_c_0_ptr,  # (B, WIDTH) of an LSTM
    T,
    B,
    grad_step,  # rows of WIDTH elements from a step's grad_output to the next one's, of padded data
    grad_row,  # from a sequence's
    recurrent_scale,
    hidden_scale,
    candidate_scale,
    cell_scale,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    PER_STEP: tl.constexpr,  # of each of KINDS
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TANH: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """From the step that forward took last to its first; `before` is before it in forward, and so after it here.

    grid: (batch tiles,).
    """
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    PACKED: tl.constexpr = offsets_ptr is not None
    ONWARD: tl.constexpr = 1 if REVERSE else -1
    # Which gate's product the next step's loads come before; with zoneout, and in fp32, there are registers only after all.
    LOADS_EARLY: tl.constexpr = DTYPE.primitive_bitwidth == 16 and zoneout_ptr is None and cell_zoneout_ptr is None
    LOADS_BEFORE: tl.constexpr = 2 if LOADS_EARLY else GATES
    bits = (hidden_ptr, candidate_ptr, cell_ptr, zoneout_ptr, cell_zoneout_ptr)
    first = 0 if REVERSE else T - 1
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    size, next_size = rows_of_step(offsets_ptr, first, T, B), rows_of_step(offsets_ptr, first + ONWARD, T, B)
    moved = tl.where(ONWARD > 0, size, -next_size).to(tl.int64)
    start, grad_start = tl.cast(first, tl.int64) * B, tl.cast(first, tl.int64) * grad_step
    grad_moved = tl.cast(grad_step, tl.int64) * ONWARD
    if PACKED:
        start = tl.load(offsets_ptr + first)
        grad_start = start * grad_row
    real, state = row < size, row * WIDTH + column

    w = load_weights(w_hh_ptr, GATES, WIDTH, REPEATS, WARPS, True)
    if CELL == "GRU":
        w = w[2], w[0], w[1]  # as their gradients are side by side: hn, r, z
    grad_output_ptr += (grad_start + row * grad_row) * WIDTH + column
    dh = load_tile(grad_output_ptr, real, WIDTH, REPEATS, WARPS).to(tl.float32)
    if grad_h_n_ptr is not None:
        dh += load_tile(grad_h_n_ptr + state, row < B, WIDTH, REPEATS, WARPS).to(tl.float32)
    if CELL == "LSTM":
        dc = tl.zeros_like(dh)
        if grad_c_n_ptr is not None:
            dc = load_tile(grad_c_n_ptr + state, row < B, WIDTH, REPEATS, WARPS).to(tl.float32)
        c = load_tile(states_ptr + (start + row) * WIDTH + column, real, WIDTH, REPEATS, WARPS)
    before_ptr = state_before(states_ptr, initial_ptr, start + moved, next_size, row, WIDTH)
    before = load_tile(before_ptr + column, row < tl.maximum(size, next_size), WIDTH, REPEATS, WARPS)
    saved = load_gates(gates_ptr + (start + row) * (4 * WIDTH) + column, real, 4, WIDTH, REPEATS, WARPS)
    recurrent = first_words(recurrent_ptr, start, 0, row, real, row < B, RECURRENT_PER_STEP, H, REPEATS, WARPS)
    words = first_words_of_each(bits, start, row, real, row < B, PER_STEP, H, REPEATS, WARPS)

    for step in range(T):
        later_size = rows_of_step(offsets_ptr, first + (step + 2) * ONWARD, T, B)
        next_moved = tl.where(ONWARD > 0, next_size, -later_size).to(tl.int64)
        if PACKED:
            grad_moved = moved * grad_row
        real, ahead = row < size, row < next_size
        grad_output_ptr += grad_moved * WIDTH
        word = tile_words(start + moved + row, H, REPEATS, WARPS)

        d_carried, d_made = zoned_backward(dh, taken(zoneout_ptr, words[ZONEOUT], real, PACKED))
        d_made = dropped(d_made, kept(hidden_ptr, words[HIDDEN]), hidden_scale)
        candidate, old = kept(candidate_ptr, words[CANDIDATE]), before.to(tl.float32)
        s0, s1, s2, s3 = saved[0].to(tl.float32), saved[1].to(tl.float32), saved[2].to(tl.float32), saved[3].to(tl.float32)
        if CELL == "LSTM":
            cell = kept(cell_ptr, words[CELL_STATE])
            c_new = c.to(tl.float32)
            if cell_zoneout_ptr is not None:
                c_new = lstm_cell_state(s0, s1, s2, old, candidate, candidate_scale, cell, cell_scale)
            dc_carried, dc = zoned_backward(dc, taken(cell_zoneout_ptr, words[CELL_ZONEOUT], real, PACKED))
            d0, d1, d2, d3, dc = lstm_backward(
                d_made, dc, s0, s1, s2, s3, old, c_new, candidate, candidate_scale, cell, cell_scale, DTYPE, TANH
            )
            dc += dc_carried
            c = before
        else:
            tl.static_assert(CELL == "GRU")
            d0, d1, d2, d3, by_z = gru_backward(d_made, s0, s1, s2, s3, old, candidate, candidate_scale)
            d_carried += by_z
        grads = (d0.to(DTYPE), d1.to(DTYPE), d2.to(DTYPE), d3.to(DTYPE))
        store_gates(grad_gates_ptr + (start + row) * (4 * WIDTH) + column, grads, real & (column < WIDTH), WIDTH)

        start += moved
        dh = to_result(d_carried if recurrent_ptr is None else tl.zeros_like(d_carried))
        for gate in tl.static_range(GATES + 1):
            if gate == LOADS_BEFORE:
                grad = load_tile(grad_output_ptr, ahead, WIDTH, REPEATS, WARPS)
                before_ptr = state_before(states_ptr, initial_ptr, start + next_moved, later_size, row, WIDTH)
                needed = row < tl.maximum(next_size, later_size)  # of an LSTM also as that step's own
                before = load_tile(before_ptr + column, needed, WIDTH, REPEATS, WARPS)
                saved = load_gates(gates_ptr + (start + row) * (4 * WIDTH) + column, ahead, 4, WIDTH, REPEATS, WARPS)
                words = next_words_of_each(bits, word, ahead, words, PER_STEP)
            if gate < GATES:
                dh = multiply(to_left(grads[gate]), w[gate], dh, PRECISION)
        dh = clear_padding(from_result(dh, REPEATS), H)
        if recurrent_ptr is not None:
            dh = dropped(dh, tile_kept(recurrent), recurrent_scale) + d_carried
        dh += grad.to(tl.float32)
        recurrent = next_words(recurrent_ptr, word, ahead, recurrent, RECURRENT_PER_STEP)
        moved, size, next_size = next_moved, next_size, later_size
    tl.store(grad_h_0_ptr + state, dh, mask=(row < B) & (column < WIDTH))
    if CELL == "LSTM":
        tl.store(grad_c_0_ptr + state, dc, mask=(row < B) & (column < WIDTH))


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
    """The output of every step, and what backward needs besides: as `gated_stepwise` has it.

    Args:
        input_projection: (T, B, G*H), or (N, G*H) with `sizes`, of float32, float16 or bfloat16: W_ih x and both biases, but
            not a GRU's b_hn. Its gates are i, f, g, o of an LSTM and r, z, n of a GRU.
        states: h_0 (B, H); of an LSTM c_0 (B, H) too.
        w_hh: (G*H, H).
        masks: by kind; one that is not there drops nothing.
        cell: "LSTM" or "GRU".
        b_hn: (H) of a GRU, or None.
        reverse: from the last step to the first.
        tf32: fp32 products may round their operands to tf32.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        The output, (T, B, H) or (N, H). A list: of an LSTM the gates i, f, g, o after their activations, (T, B, 4*H) or
        (N, 4*H), and the cell states; of a GRU W_hn h' + b_hn, and r, z and n after their activations.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    with on_device(input_projection):
        run = _run(input_projection, w_hh, masks, cell, tf32, sizes)
        shape = input_projection.shape[:-1]
        input_projection, (step, row, _) = in_rows(padded_gates(input_projection, run.H, run.width).unsqueeze(-2))
        output, gates = (input_projection.new_empty(*shape, k * run.width) for k in (1, 4))
        saved = [gates] if cell == "GRU" else [gates, torch.empty_like(output)]
        forward_kernel[run.grid](
            input_projection,
            None if b_hn is None else dense(padded(b_hn, run.width)),
            run.offsets,
            *[None if state is None else dense(padded(state, run.width)) for state in (*states, None)[:2]],
            padded_weight(w_hh, run.width),
            *run.bits,
            output,
            *(*saved, None)[:2],
            *run.sizes,
            step,
            row,
            *run.scales,
            *run.shares,
            REVERSE=reverse,
            **run.constexprs,
        )
    return cropped(output, run.H), [cropped_gates(gates, run.H, run.width), *[cropped(c, run.H) for c in saved[1:]]]


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
    """The gradients of the gates' pre-activations and of the states at the beginning.

    Args:
        grad_output: like output.
        grad_states: of the states at the end, (B, H) each, or None.
        output, saved: what forward returned. The rest is what forward was given, zoneouts as masks.

    Returns:
        (T, B, 4*H) or (N, 4*H): i, f, g, o of an LSTM; of a GRU W_hn h' + b_hn, r, z and n. (B, H) each. All contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why; or a zoneout is an expectation.
    """
    with on_device(output):
        run = _run(output, w_hh, masks, cell, tf32, sizes)
        if any(share is not None for share in run.shares):
            raise ValueError("the expectation of zoneout has no kernel for its gradient")
        width = run.width
        grad_output, (step, row, _) = in_rows(padded(grad_output, width).unsqueeze(-2))
        gates = dense(padded_gates(saved[0], run.H, run.width))
        grad_gates = torch.empty_like(gates)
        grad_begun = [output.new_empty(state.shape[0], width) for state in states]
        backward_kernel[run.grid](
            grad_output,
            run.offsets,
            *[None if grad is None else dense(padded(grad, width)) for grad in (*grad_states, None)[:2]],
            dense(padded(states[-1], width)),
            dense(padded(output if cell == "GRU" else saved[1], width)),
            gates,
            padded_weight(w_hh, run.width),
            *run.bits,
            grad_gates,
            *(*grad_begun, None)[:2],
            *run.sizes,
            step,
            row,
            *run.scales,
            REVERSE=reverse,
            **run.constexprs,
        )
    return cropped_gates(grad_gates, run.H, run.width), [cropped(grad, run.H) for grad in grad_begun]


class _Run(NamedTuple):
    grid: tuple[int]  # batch tiles
    sizes: tuple[int, int]  # T, B
    offsets: Tensor | None  # of packed data
    H: int
    width: int  # of a row in memory
    bits: list[Tensor | None]  # of the recurrent mask and those of KINDS
    scales: list[float]  # of those of them that have one
    shares: list[float | None]  # of the old state, in the expectations of both zoneouts
    constexprs: dict[str, Any]  # what both kernels are compiled for


def _run(data: Tensor, w_hh: Tensor, masks: Masks, cell: str, tf32: bool, sizes: Sequence[int] | None) -> _Run:
    *rows, _ = data.shape
    H, dtype, device = w_hh.shape[1], data.dtype, launch.device_of(data.device)
    T, B = rows if sizes is None else (len(sizes), max(sizes, default=0))
    N = T * B if sizes is None else rows[0]
    extras = Extras(drawn(masks), packed=sizes is not None)
    plan = plan_gated_resident(H, B, dtype, device, cell=cell, tf32=tf32, extras=extras)
    launch.check_can_run("resident", T, B, plan.reason)
    scaled = ("recurrent", *KINDS[:3])
    zoneouts = [bits_and_share(masks, kind) for kind in KINDS[3:]]
    for kind in KINDS[3:]:
        check_zoneout(masks, N, H, kind)
    constexprs = {
        "CELL": cell,
        "GATES": GATES[cell],
        "RECURRENT_PER_STEP": is_per_step(masks, "recurrent", N, B, H),
        "PER_STEP": (*[is_per_step(masks, kind, N, B, H) for kind in KINDS[:3]], *[kind in extras.kinds for kind in KINDS[3:]]),
        "PRECISION": precision(dtype, tf32, device.backend),
        "TANH": way_of_tanh(dtype, device.backend),
        "H": H,
        "WIDTH": plan.width,
        "REPEATS": plan.repeats,
        "WARPS": plan.warps,
        "num_warps": plan.warps,
        "num_stages": 1,
    }
    return _Run(
        grid=(plan.programs,),
        sizes=(T, B),
        offsets=None if sizes is None else row_offsets(tuple(sizes), data.device),
        H=H,
        width=plan.width,
        bits=[*[bits_and_scale(masks, kind)[0] for kind in scaled], *[bits for bits, _ in zoneouts]],
        scales=[bits_and_scale(masks, kind)[1] for kind in scaled],
        shares=[share for _, share in zoneouts],
        constexprs=constexprs,
    )
