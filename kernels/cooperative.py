"""The whole sequence in one cooperative launch, for a W_hh that one multiprocessor cannot hold.

A program owns a slice of the hidden columns, whose part of W_hh stays in shared memory for all steps, and every groups-th
tile of 16 batch rows. A step: right after arriving at the grid barrier load the input projection and the bits, wait until all
slices of this group have written the step before, read that h (16, H) from the L2 cache, multiply, and only then use what was
loaded: apply the cell, mask, write the slice's columns, and arrive. (In exact fp32 with a recurrent mask the input projection
is loaded after the product, since registers would spill.) Masks are applied where a value is made, in the slice's own columns;
backward exchanges the gradient of the gates and sums W_hh's other direction. The gradient of W_hh is one library product after
backward: in the loop it would cost more than the recurrence.

Zoneout: forward reads the slice's own columns of the old state from the output, before it waits. Backward keeps the part of
the gradient that passes by the gates in a buffer (B, H) of float32, `carry`; a program reads only what it wrote there itself.

Sequences of different lengths: step t has the rows offsets[t] ... offsets[t+1] - 1. The sizes never increase, so that a
sequence has the same index in every step, and a row takes part where its index is less than the step's size. A sequence that
begins at a step, as later ones do in reverse, takes its row of h_0 there.

Launches: this one and the zeroing of the barrier's counters, whatever T.

What limits it, by counts and data sheets, none of it timed: the latencies of the grid barrier. Store, arrival, wait and load
of h are a trip each through the L2 cache, 2 to 3 us on an A100 or H100; the product's reads of shared memory take 0.7 to
1.3 us at H = 512 to 1024, B = 16, in bf16; device memory, 66 KB a step at H = 1024, counts little.

AMD: Triton launches cooperatively on HIP where the device's `cooperativeLaunch` says so, and refuses elsewhere; gfx942
compiles, W_hh then partly in registers. Untested on a device.
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
from .cell import cell_backward, cell_forward
from .grid_barrier import Shape, grid_barrier_arrive, grid_barrier_wait, launch_phases, rows_of_step
from .launch import (
    Masks,
    bits_and_scale,
    bits_and_share,
    check_zoneout,
    cropped,
    dense,
    drawn,
    inverse,
    is_per_step,
    on_device,
    padded,
    row_offsets,
)
from .mask_bits import slice_words, words_keep
from .plan import CooperativePlan, Extras, plan_cooperative
from .product import clear_padding, multiply, precision
from .slice_layout import both_columns, from_result, slice_pairs, slice_rows


@triton.jit
def load_weight_slice(w_hh_ptr, WIDTH: tl.constexpr, SLICE: tl.constexpr, CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The slice's columns of W_hh.T (of W_hh if TRANSPOSED), as a tuple of (CHUNK, SLICE)."""
    column = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    chunks = ()
    for start in tl.static_range(0, WIDTH, CHUNK):
        k = start + tl.arange(0, CHUNK)
        at = k[:, None] * WIDTH + column[None, :] if TRANSPOSED else column[None, :] * WIDTH + k[:, None]
        chunks += (tl.load(w_hh_ptr + at, mask=(k < WIDTH)[:, None] & (column < WIDTH)[None, :], other=0.0),)
    return chunks


@triton.jit
def times_weight(source_ptr, rows, w, WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """The first so many rows at source_ptr, (rows, WIDTH), times the weight slice, as slice_layout has it. Other programs
    wrote them: .cg reads from the L2 cache."""
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, w[0].shape[1]], tl.float32)
    for i in tl.static_range(len(w)):
        k = i * CHUNK + tl.arange(0, CHUNK)[None, :]
        h = tl.load(source_ptr + row * WIDTH + k, mask=(row < rows) & (k < WIDTH), other=0.0, cache_modifier=".cg")
        total = multiply(h, w[i], total, PRECISION)
    return from_result(total)


@triton.jit
def enter(h, words, column, scale):
    """h where it enters W_hh, by the words of the recurrent mask."""
    return tl.where(words_keep(words, column), h.to(tl.float32) * scale, 0.0).to(h.dtype)


RUNTIME = ["T", "B", "begin", "end", "hidden_scale", "inverse_scale", "recurrent_scale", "old_share"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (N, WIDTH)
    h_0_ptr,  # (B, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    offsets_ptr,  # (T + 1) int64, where the rows of each step begin, or None where each has B
    output_ptr,  # (N, WIDTH)
    exchange_ptr,  # (2, B, WIDTH): what enters W_hh at this step and at the next, or None where output and h_0 serve
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    hidden_scale,
    recurrent_scale,
    old_share,  # of the old state in the expectation of zoneout, or None
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    SLICE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Phases begin ... end-1: phase p > 0 is the p-th step taken, phase 0 makes what enters W_hh there, for an exchange.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, pair = slice_rows(), slice_pairs(SLICE)
    column = both_columns(pair)
    at, mine = row * WIDTH + column, column < WIDTH
    barrier_ptr += group * 16

    if exchange_ptr is not None and begin == 0:
        start, size = rows_of_step(offsets_ptr, T - 1 if REVERSE else begin, T, B)
        for tile in range(group, tl.cdiv(size, ROWS), groups):
            b = tile * ROWS
            now = b + row < size
            h = tl.load(h_0_ptr + b * WIDTH + at, mask=now & mine, other=0.0)
            if recurrent_ptr is not None:
                recurrent = slice_words(recurrent_ptr, start + b if RECURRENT_PER_STEP else b, now, pair, H)
                h = enter(h, recurrent, column, recurrent_scale)
            tl.store(exchange_ptr + b * WIDTH + at, h, mask=now & mine)
        grid_barrier_arrive(barrier_ptr)

    # Only now: on its way to shared memory it takes more registers than phase 0 leaves.
    w = load_weight_slice(w_hh_ptr, WIDTH, SLICE, CHUNK, False)
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
        for tile in range(group, tl.cdiv(tl.maximum(size, size_after), ROWS), groups):
            b = tile * ROWS
            now, following = b + row < size, b + row < size_after
            here, of_tile = (start + b) * WIDTH, b * WIDTH
            # What no other program writes is loaded before the wait, and first used after it.
            if recurrent_ptr is None or PRECISION != "tf32x3":
                x = tl.load(input_projection_ptr + here + at, mask=now & mine, other=0.0)
            if hidden_ptr is not None:
                hidden = slice_words(hidden_ptr, start + b if HIDDEN_PER_STEP else b, now, pair, H)
            if zoneout_ptr is not None:
                zoneout = slice_words(zoneout_ptr, start + b, now, pair, H)
            if zoneout_ptr is not None or old_share is not None:
                continues = b + row < size_before
                old = tl.load(output_ptr + (start_before + b) * WIDTH + at, mask=now & continues & mine, other=0.0)
                if size > size_before:  # sequences begin here
                    old = tl.where(continues, old, tl.load(h_0_ptr + of_tile + at, mask=now & mine & ~continues, other=0.0))
            if tile == group:
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))
            if recurrent_ptr is not None:
                first_row = start_after + b if RECURRENT_PER_STEP else b
                recurrent = slice_words(recurrent_ptr, first_row, following, pair, H)
            gates = times_weight(source_ptr + b * WIDTH, size - b, w, WIDTH, CHUNK, ROWS, PRECISION)
            if recurrent_ptr is not None and PRECISION == "tf32x3":  # too many registers to hold it during the product
                x = tl.load(input_projection_ptr + here + at, mask=now & mine, other=0.0)
            gates = clear_padding(gates + x.to(tl.float32), column, H, WIDTH)
            h = cell_forward(gates, CELL, DTYPE, "exact")
            if hidden_ptr is not None:
                h = tl.where(words_keep(hidden, column), h * hidden_scale, 0.0)
            if zoneout_ptr is not None:
                h = tl.where(words_keep(zoneout, column), h, old.to(tl.float32))
            elif old_share is not None:
                h = old_share * old.to(tl.float32) + (1.0 - old_share) * h
            h = h.to(DTYPE)
            tl.store(output_ptr + here + at, h, mask=now & mine)
            if exchange_ptr is not None:
                if offsets_ptr is not None and REVERSE:  # sequences may begin at the next step
                    h = tl.where(now, h, tl.load(h_0_ptr + of_tile + at, mask=following & mine & ~now, other=0.0))
                if recurrent_ptr is not None:
                    h = enter(h, recurrent, column, recurrent_scale)
                tl.store(exchange_ptr + phase % 2 * B * WIDTH + of_tile + at, h, mask=following & mine)
        grid_barrier_arrive(barrier_ptr)


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (N, WIDTH)
    grad_h_n_ptr,  # (B, WIDTH), or None
    output_ptr,  # (N, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (N, ceil(H/32)) int32, or None
    offsets_ptr,  # (T + 1) int64, where the rows of each step begin, or None where each has B
    carry_ptr,  # (B, WIDTH) float32, or None without zoneout: the gradient that passes by the gates of a step
    grad_gates_ptr,  # (N, WIDTH)
    grad_h_0_ptr,  # (B, WIDTH)
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    hidden_scale,
    inverse_scale,
    recurrent_scale,
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    SLICE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Phases begin ... end-1: phase p < T is the step that forward took p steps before its last, phase T has only gradients
    of h_0.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, pair = slice_rows(), slice_pairs(SLICE)
    column = both_columns(pair)
    at, mine = row * WIDTH + column, column < WIDTH
    w = load_weight_slice(w_hh_ptr, WIDTH, SLICE, CHUNK, True)
    barrier_ptr += group * 16

    if begin == 0:
        start, size = rows_of_step(offsets_ptr, begin if REVERSE else T - 1, T, B)
        for tile in range(group, tl.cdiv(size, ROWS), groups):
            b = tile * ROWS
            now = b + row < size
            here, of_tile = (start + b) * WIDTH, b * WIDTH
            dh = tl.load(grad_output_ptr + here + at, mask=now & mine, other=0.0).to(tl.float32)
            if grad_h_n_ptr is not None:
                dh += tl.load(grad_h_n_ptr + of_tile + at, mask=now & mine, other=0.0).to(tl.float32)
            grad_gates = cell_backward(
                dh,
                tl.load(output_ptr + here + at, mask=now & mine, other=0.0).to(tl.float32),
                hidden_scale,
                inverse_scale,
                CELL,
            )
            if hidden_ptr is not None:
                hidden = slice_words(hidden_ptr, start + b if HIDDEN_PER_STEP else b, now, pair, H)
                grad_gates = tl.where(words_keep(hidden, column), grad_gates, 0.0)
            if zoneout_ptr is not None:
                new = words_keep(slice_words(zoneout_ptr, start + b, now, pair, H), column)
                grad_gates = tl.where(new, grad_gates, 0.0)
                tl.store(carry_ptr + of_tile + at, tl.where(new, 0.0, dh), mask=now & mine)
            tl.store(grad_gates_ptr + here + at, grad_gates.to(DTYPE), mask=now & mine)
        grid_barrier_arrive(barrier_ptr)

    for phase in range(tl.maximum(begin, 1), end):
        t = phase if REVERSE else T - 1 - phase
        after = t - 1 if REVERSE else t + 1
        start, size = rows_of_step(offsets_ptr, t, T, B)
        start_after, size_after = rows_of_step(offsets_ptr, after, T, B)
        for tile in range(group, tl.cdiv(tl.maximum(size, size_after), ROWS), groups):
            b = tile * ROWS
            now, following = b + row < size, b + row < size_after
            here, of_tile = (start + b) * WIDTH, b * WIDTH
            # What no other program writes is loaded before the wait, and first used after it.
            g = tl.load(grad_output_ptr + here + at, mask=now & mine, other=0.0)
            y = tl.load(output_ptr + here + at, mask=now & mine, other=0.0)
            if hidden_ptr is not None:
                hidden = slice_words(hidden_ptr, start + b if HIDDEN_PER_STEP else b, now, pair, H)
            if recurrent_ptr is not None:
                first_row = start_after + b if RECURRENT_PER_STEP else b
                recurrent = slice_words(recurrent_ptr, first_row, following, pair, H)
            if zoneout_ptr is not None:
                zoneout = slice_words(zoneout_ptr, start + b, now, pair, H)
                carry = tl.load(carry_ptr + of_tile + at, mask=following & mine, other=0.0)
            if tile == group:
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))
            source_ptr = grad_gates_ptr + (start_after + b) * WIDTH
            dh = times_weight(source_ptr, size_after - b, w, WIDTH, CHUNK, ROWS, PRECISION)
            if recurrent_ptr is not None:
                dh = tl.where(words_keep(recurrent, column), dh * recurrent_scale, 0.0)
            dh = clear_padding(dh, column, H, WIDTH)
            if zoneout_ptr is not None:
                dh += carry
            if size_after > size:  # sequences begin at the step after
                tl.store(grad_h_0_ptr + of_tile + at, dh.to(DTYPE), mask=following & mine & ~now)
            if grad_h_n_ptr is not None:
                if size > size_after:  # sequences end here
                    dh += tl.load(grad_h_n_ptr + of_tile + at, mask=now & mine & ~following, other=0.0).to(tl.float32)
            dh += g.to(tl.float32)
            grad_gates = cell_backward(dh, y.to(tl.float32), hidden_scale, inverse_scale, CELL)
            if hidden_ptr is not None:
                grad_gates = tl.where(words_keep(hidden, column), grad_gates, 0.0)
            if zoneout_ptr is not None:
                new = words_keep(zoneout, column)
                grad_gates = tl.where(new, grad_gates, 0.0)
                tl.store(carry_ptr + of_tile + at, tl.where(new, 0.0, dh), mask=now & mine)
            tl.store(grad_gates_ptr + here + at, grad_gates.to(DTYPE), mask=now & mine)
        grid_barrier_arrive(barrier_ptr)


def forward(
    input_projection: Tensor,
    h_0: Tensor,
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """The output of every step.

    Args:
        input_projection: (T, B, H), or (N, H) with `sizes`, of float32, float16 or bfloat16, W_ih x and both biases.
        h_0: (B, H).
        w_hh: (H, H).
        masks: by kind; one that is not there drops nothing. "hidden": of the new state. "recurrent": of the state where it
            enters W_hh. "zoneout": where the new state is taken and not the old one.
        cell: "RNN_TANH" or "RNN_RELU".
        reverse: from the last step to the first.
        tf32: fp32 products may round their operands to tf32.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        Like input_projection, contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = input_projection.shape[-1]
    with on_device(input_projection):
        plan, shape, constexprs = _plan(input_projection, masks, tf32, sizes)
        x = dense(padded(input_projection, plan.width))
        output = torch.empty_like(x)
        begin = 0 if "recurrent" in masks or (reverse and sizes is not None) else 1
        exchange = x.new_empty(2, shape.B, plan.width) if begin == 0 else None
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, old_share = bits_and_share(masks)
        arguments = {
            "input_projection_ptr": x,
            "h_0_ptr": dense(padded(h_0, plan.width)),
            "w_hh_ptr": dense(padded(w_hh, plan.width, plan.width)),
            "hidden_ptr": hidden_bits,
            "recurrent_ptr": recurrent_bits,
            "zoneout_ptr": zoneout_bits,
            "output_ptr": output,
            "exchange_ptr": exchange,
            "hidden_scale": hidden_scale,
            "recurrent_scale": recurrent_scale,
            "old_share": old_share,
            "CELL": cell,
            "REVERSE": reverse,
        }
        launch_phases(forward_kernel, arguments | constexprs, shape, range(begin, shape.T + 1), plan, x.device)
    return cropped(output, H)


def backward(
    grad_output: Tensor,
    grad_h_n: Tensor | None,
    output: Tensor,
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of the gates, which are those of the input projection, and of h_0.

    Args:
        grad_output: like output.
        grad_h_n: (B, H), or None.
        output: (T, B, H) or (N, H), what forward returned. The rest is what forward was given, zoneout as a mask.

    Returns:
        Like output, and (B, H), contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = output.shape[-1]
    with on_device(output):
        plan, shape, constexprs = _plan(output, masks, tf32, sizes)
        y = dense(padded(output, plan.width))
        grad_gates, grad_h_0 = torch.empty_like(y), y.new_empty(shape.B, plan.width)
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, _ = bits_and_share(masks)
        arguments = {
            "grad_output_ptr": dense(padded(grad_output, plan.width)),
            "grad_h_n_ptr": None if grad_h_n is None else dense(padded(grad_h_n, plan.width)),
            "output_ptr": y,
            "w_hh_ptr": dense(padded(w_hh, plan.width, plan.width)),
            "hidden_ptr": hidden_bits,
            "recurrent_ptr": recurrent_bits,
            "zoneout_ptr": zoneout_bits,
            "carry_ptr": None if zoneout_bits is None else torch.empty_like(grad_h_0, dtype=torch.float32),
            "grad_gates_ptr": grad_gates,
            "grad_h_0_ptr": grad_h_0,
            "hidden_scale": hidden_scale,
            "inverse_scale": inverse(hidden_scale),
            "recurrent_scale": recurrent_scale,
            "CELL": cell,
            "REVERSE": reverse,
        }
        launch_phases(backward_kernel, arguments | constexprs, shape, range(shape.T + 1), plan, y.device)
    return cropped(grad_gates, H), cropped(grad_h_0, H)


def _plan(
    data: Tensor, masks: Masks, tf32: bool, sizes: Sequence[int] | None = None
) -> tuple[CooperativePlan, Shape, dict[str, Any]]:
    """The grid and tiles, the steps, and what both kernels are compiled for."""
    T, B = data.shape[:2] if sizes is None else (len(sizes), max(sizes, default=0))
    H, rows = data.shape[-1], math.prod(data.shape[:-1])
    device = launch.device_of(data.device)
    extras = Extras(drawn(masks), packed=sizes is not None)
    plan = plan_cooperative(H, B, data.dtype, device, tf32=tf32, extras=extras)
    launch.check_can_run("cooperative", T, B, plan.reason)
    check_zoneout(masks, rows, H)
    constexprs = {
        "HIDDEN_PER_STEP": is_per_step(masks, "hidden", rows, B, H),
        "RECURRENT_PER_STEP": is_per_step(masks, "recurrent", rows, B, H),
        "PRECISION": precision(data.dtype, tf32, device.backend),
        "H": H,
        "WIDTH": plan.width,
        "SLICE": plan.slice,
        "ROWS": plan.rows,
        "CHUNK": plan.chunk,
        "num_warps": plan.warps,
        "num_stages": 1,  # Triton's pipeliner would load the next tile's h before its programs have met
        "launch_cooperative_grid": True,
    }
    offsets = None if sizes is None else row_offsets(tuple(sizes), data.device)
    return plan, Shape(T, B, offsets), constexprs
