"""The whole sequence in one launch, W_hh in the registers of one multiprocessor.

A program owns 16 rows of the batch (`tile_layout`) in one direction and reads W_hh once. A step reads the input projection
and the bits and writes the output; the state goes through shared memory, written once and read by every warp, between two
barriers. The next step's numbers are loaded a step ahead, so that a step has little but the product between its barriers.

Packed data: a row that a step does not have keeps its state, and in backward its gradient, like one that zoneout drops whole.

What limits it, by counts and data sheets, none of it timed: with many programs the device memory, at H = 256 the tensor
cores, and with few programs latency. A step's chain, store h, barrier, load it, H/16 products, activation, barrier, is 700 to
800 cycles on an A100 or H100 at H = 128 in bf16.

H that is no multiple of 4 is padded in memory (`plan`).
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
from .cell import cell_backward, cell_forward
from .launch import (
    Masks,
    bits_and_scale,
    bits_and_share,
    check_zoneout,
    cropped,
    dense,
    drawn,
    in_rows,
    inverse,
    is_per_step,
    on_device,
    padded,
    row_offsets,
)
from .mask_bits import drop_from_tile, tile_kept, tile_words
from .plan import Extras, plan_resident
from .product import multiply, precision
from .resident_tile import clear_padding, first_words, load_tile, next_words, size_of_step
from .tile_layout import from_result, load_right, tile_columns, tile_rows, to_left, to_result


@triton.jit
def direction_of_program(REVERSE: tl.constexpr, D: tl.constexpr):
    """Which of the D directions, and by how much a step's t is larger than the one before it: 1, or -1 in the other one of
    two. Constants where there is but one, which saves registers."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    if D == 1:
        return 0, SIGN
    else:
        return tl.program_id(1).to(tl.int64), SIGN * (1 - 2 * tl.program_id(1))


RUNTIME = ["T", "B", "N", "input_step", "input_row", "input_direction", "grad_step", "grad_row", "grad_direction"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (T, B, D, WIDTH), or (N, D, WIDTH) of packed data
    offsets_ptr,  # (T + 1) int64, the first row of each step of packed data; or None
    h_0_ptr,  # (D, B, WIDTH)
    w_hh_ptr,  # (D, WIDTH, WIDTH)
    hidden_ptr,  # (D, N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (D, N, ceil(H/32)) int32, or None
    output_ptr,  # (N, D, WIDTH)
    T,
    B,
    N,
    input_step,  # rows of WIDTH elements from a step's input projection to the next one's, of padded data
    input_row,  # from a sequence's
    input_direction,  # from a direction's
    hidden_scale,
    recurrent_scale,
    share,  # of the old state in the expectation of zoneout, or None
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    ZONEOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    LOADS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    TANH: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """grid: (batch tiles, D). Direction 0 runs from the last step to the first if REVERSE; direction 1 opposite to it.

    LOADS_FIRST: before a step's product, not after it, the next step's numbers are asked for.
    """
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    PACKED: tl.constexpr = offsets_ptr is not None
    REAL: tl.constexpr = H if hidden_ptr is None and zoneout_ptr is None else WIDTH  # these have no bits past H
    direction, onward = direction_of_program(REVERSE, D)
    first = tl.where(onward > 0, 0, T - 1)
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    size, moved = B, tl.cast(B, tl.int64) * onward
    start, input_start = tl.cast(first, tl.int64) * B, tl.cast(first, tl.int64) * input_step
    input_moved = tl.cast(input_step, tl.int64) * onward
    if PACKED:
        size, next_size = size_of_step(offsets_ptr, first, T), size_of_step(offsets_ptr, first + onward, T)
        start = tl.load(offsets_ptr + first)
        input_start = start * input_row
    real = row < size

    w = load_right(w_hh_ptr + direction * (WIDTH * WIDTH), WIDTH, REPEATS, WARPS, False)
    h = load_tile(h_0_ptr + (direction * B + row) * WIDTH + column, row < B, WIDTH, REPEATS, WARPS)
    input_projection_ptr += (input_start + row * input_row + direction * input_direction) * WIDTH + column
    x = load_tile(input_projection_ptr, real, WIDTH, REPEATS, WARPS)
    output_ptr += ((start + row) * D + direction) * WIDTH + column
    start += direction * N
    word = tile_words(start + row, H, REPEATS, WARPS)
    hidden = first_words(hidden_ptr, start, direction * B, row, real, row < B, HIDDEN_PER_STEP, H, REPEATS, WARPS)
    recurrent = first_words(recurrent_ptr, start, direction * B, row, real, row < B, RECURRENT_PER_STEP, H, REPEATS, WARPS)
    zoneout = first_words(zoneout_ptr, start, direction * B, row, real, row < B, ZONEOUT, H, REPEATS, WARPS)

    for step in range(T):
        if PACKED:
            later_size = size_of_step(offsets_ptr, first + (step + 2) * onward, T)
            moved = tl.where(onward > 0, size, -next_size).to(tl.int64)
            input_moved = moved * input_row
            real = row < size
            ahead = row < next_size
        else:
            ahead = row < tl.where(step + 1 < T, B, 0)
        input_projection_ptr += input_moved * WIDTH
        word += moved * WORDS
        entering = h
        if recurrent_ptr is not None:
            entering = drop_from_tile(h.to(tl.float32) * recurrent_scale, recurrent).to(DTYPE)
        if LOADS_FIRST:
            next_x = load_tile(input_projection_ptr, ahead, WIDTH, REPEATS, WARPS)
            next_hidden = next_words(hidden_ptr, word, ahead, hidden, HIDDEN_PER_STEP)
            recurrent = next_words(recurrent_ptr, word, ahead, recurrent, RECURRENT_PER_STEP)
            next_zoneout = next_words(zoneout_ptr, word, ahead, zoneout, ZONEOUT)
        gates = from_result(multiply(to_left(entering), w, to_result(x.to(tl.float32)), PRECISION), REPEATS)
        if not LOADS_FIRST:
            next_x = load_tile(input_projection_ptr, ahead, WIDTH, REPEATS, WARPS)
            next_hidden = next_words(hidden_ptr, word, ahead, hidden, HIDDEN_PER_STEP)
            recurrent = next_words(recurrent_ptr, word, ahead, recurrent, RECURRENT_PER_STEP)
            next_zoneout = next_words(zoneout_ptr, word, ahead, zoneout, ZONEOUT)
        gates = clear_padding(gates, REAL)
        if hidden_ptr is not None:
            gates = drop_from_tile(gates, hidden)  # the cell makes 0 of 0
        made = cell_forward(gates, CELL, DTYPE, TANH)
        if hidden_ptr is not None:
            made = made * hidden_scale
        if share is not None:
            made = share * h.to(tl.float32) + (1 - share) * made
        made = made.to(DTYPE)
        if ZONEOUT:
            made = tl.where(tile_kept(zoneout), made, h)
        elif PACKED:
            made = tl.where(real, made, h)
        h = made
        tl.store(output_ptr, h, mask=real & (column < WIDTH))
        output_ptr += moved * (D * WIDTH)
        x, hidden, zoneout = next_x, next_hidden, next_zoneout
        if PACKED:
            size, next_size = next_size, later_size


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (T, B, D, WIDTH), or (N, D, WIDTH) of packed data
    offsets_ptr,  # (T + 1) int64, the first row of each step of packed data; or None
    grad_h_n_ptr,  # (D, B, WIDTH), or None
    output_ptr,  # (N, D, WIDTH)
    w_hh_ptr,  # (D, WIDTH, WIDTH)
    hidden_ptr,  # (D, N or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (D, N, ceil(H/32)) int32, or None
    grad_gates_ptr,  # (N, D, WIDTH)
    grad_h_0_ptr,  # (D, B, WIDTH)
    T,
    B,
    N,
    grad_step,  # rows of WIDTH elements from a step's grad_output to the next one's, of padded data
    grad_row,  # from a sequence's
    grad_direction,  # from a direction's
    hidden_scale,
    inverse_scale,
    recurrent_scale,
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    ZONEOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    LOADS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """From the step that forward took last to its first. The mask says what was dropped, never the output's value.

    grid: (batch tiles, D), as in forward. LOADS_FIRST: a step's product does not wait for the next step's grad_output.
    """
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    PACKED: tl.constexpr = offsets_ptr is not None
    REAL: tl.constexpr = H if hidden_ptr is None and zoneout_ptr is None else WIDTH  # these have no bits past H
    direction, onward = direction_of_program(not REVERSE, D)
    first = tl.where(onward > 0, 0, T - 1)
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    size, moved = B, tl.cast(B, tl.int64) * onward
    start, grad_start = tl.cast(first, tl.int64) * B, tl.cast(first, tl.int64) * grad_step
    grad_moved = tl.cast(grad_step, tl.int64) * onward
    if PACKED:
        size, next_size = size_of_step(offsets_ptr, first, T), size_of_step(offsets_ptr, first + onward, T)
        start = tl.load(offsets_ptr + first)
        grad_start = start * grad_row
    real = row < size

    w = load_right(w_hh_ptr + direction * (WIDTH * WIDTH), WIDTH, REPEATS, WARPS, True)
    grad_output_ptr += (grad_start + row * grad_row + direction * grad_direction) * WIDTH + column
    at = ((start + row) * D + direction) * WIDTH + column
    dh = load_tile(grad_output_ptr, real, WIDTH, REPEATS, WARPS).to(tl.float32)
    y = load_tile(output_ptr + at, real, WIDTH, REPEATS, WARPS)
    state = (direction * B + row) * WIDTH + column
    if grad_h_n_ptr is not None:
        dh += load_tile(grad_h_n_ptr + state, row < B, WIDTH, REPEATS, WARPS).to(tl.float32)
    start += direction * N
    word = tile_words(start + row, H, REPEATS, WARPS)
    hidden = first_words(hidden_ptr, start, direction * B, row, real, row < B, HIDDEN_PER_STEP, H, REPEATS, WARPS)
    recurrent = first_words(recurrent_ptr, start, direction * B, row, real, row < B, RECURRENT_PER_STEP, H, REPEATS, WARPS)
    zoneout = first_words(zoneout_ptr, start, direction * B, row, real, row < B, ZONEOUT, H, REPEATS, WARPS)

    for step in range(T):
        if PACKED:
            later_size = size_of_step(offsets_ptr, first + (step + 2) * onward, T)
            moved = tl.where(onward > 0, size, -next_size).to(tl.int64)
            grad_moved = moved * grad_row
            real = row < size
            ahead = row < next_size
        else:
            ahead = row < tl.where(step + 1 < T, B, 0)
        grad_output_ptr += grad_moved * WIDTH
        g = load_tile(grad_output_ptr, ahead, WIDTH, REPEATS, WARPS)
        grad_gates = clear_padding(cell_backward(dh, y.to(tl.float32), hidden_scale, inverse_scale, CELL), REAL)
        next_at = at + moved * (D * WIDTH)
        y = load_tile(output_ptr + next_at, ahead, WIDTH, REPEATS, WARPS)
        if hidden_ptr is not None:
            grad_gates = drop_from_tile(grad_gates, hidden)
        word += moved * WORDS
        hidden = next_words(hidden_ptr, word, ahead, hidden, HIDDEN_PER_STEP)
        if ZONEOUT or PACKED:
            new = tile_kept(zoneout) if ZONEOUT else real
            carried = tl.where(new, 0.0, dh)
            grad_gates = tl.where(new, grad_gates, 0.0)
        else:
            carried = tl.zeros_like(dh)
        zoneout = next_words(zoneout_ptr, word, ahead, zoneout, ZONEOUT)
        grad_gates = grad_gates.to(DTYPE)
        tl.store(grad_gates_ptr + at, grad_gates, mask=real & (column < WIDTH))
        at = next_at
        if recurrent_ptr is not None:
            nothing = tl.zeros([16, w.shape[1]], tl.float32)
            dh = from_result(multiply(to_left(grad_gates), w, nothing, PRECISION), REPEATS)
            dh = drop_from_tile(dh * recurrent_scale, recurrent) + g.to(tl.float32)
            if ZONEOUT or PACKED:
                dh += carried
            recurrent = next_words(recurrent_ptr, word, ahead, recurrent, RECURRENT_PER_STEP)
        elif LOADS_FIRST:
            dh = from_result(multiply(to_left(grad_gates), w, to_result(carried), PRECISION), REPEATS) + g.to(tl.float32)
        else:
            dh = from_result(multiply(to_left(grad_gates), w, to_result(carried + g.to(tl.float32)), PRECISION), REPEATS)
        if PACKED:
            size, next_size = next_size, later_size
    tl.store(grad_h_0_ptr + state, dh, mask=(row < B) & (column < WIDTH))


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
    """The output of every step, in D directions side by side: D is 1 or 2.

    Args:
        input_projection: (T, B, D, H), or (N, D, H) with `sizes`, of float32, float16 or bfloat16, W_ih x and both biases.
        h_0: (D, B, H).
        w_hh: (D, H, H).
        masks: by kind, the bits (D, rows, words); one that is not there drops nothing. "hidden": of the new state.
            "recurrent": of the state where it enters W_hh. "zoneout": where it drops, the state stays that of the step
            before; or its expectation.
        cell: "RNN_TANH" or "RNN_RELU".
        reverse: direction 0 runs from the last step to the first. Direction 1 runs opposite to it.
        tf32: fp32 products may round their operands to tf32.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        Like input_projection, contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H, dtype = input_projection.shape[-1], input_projection.dtype
    with on_device(input_projection):
        run = _run(input_projection, masks, tf32, sizes)
        input_projection, strides = in_rows(padded(input_projection, run.width))
        output = torch.empty_like(input_projection, memory_format=torch.contiguous_format)
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, share = bits_and_share(masks)
        forward_kernel[run.grid](
            input_projection,
            run.offsets,
            dense(padded(h_0, run.width)),
            dense(padded(w_hh, run.width, run.width)),
            hidden_bits,
            recurrent_bits,
            zoneout_bits,
            output,
            *run.sizes,
            *strides,
            hidden_scale,
            recurrent_scale,
            share,
            CELL=cell,
            REVERSE=reverse,
            TANH=way_of_tanh(dtype, launch.device_of(output.device).backend),
            **run.constexprs,
        )
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
        grad_h_n: (D, B, H), or None.
        output: (T, B, D, H) or (N, D, H), what forward returned. The rest is what forward was given.

    Returns:
        Like output, and (D, B, H), contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why; or zoneout is an expectation.
    """
    H = output.shape[-1]
    with on_device(output):
        run = _run(output, masks, tf32, sizes)
        grad_output, strides = in_rows(padded(grad_output, run.width))
        output = dense(padded(output, run.width))
        grad_gates, grad_h_0 = torch.empty_like(output), output.new_empty(run.grid[1], run.sizes[1], run.width)
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, share = bits_and_share(masks)
        if share is not None:
            raise ValueError("the expectation of zoneout has no kernel for its gradient")
        backward_kernel[run.grid](
            grad_output,
            run.offsets,
            None if grad_h_n is None else dense(padded(grad_h_n, run.width)),
            output,
            dense(padded(w_hh, run.width, run.width)),
            hidden_bits,
            recurrent_bits,
            zoneout_bits,
            grad_gates,
            grad_h_0,
            *run.sizes,
            *strides,
            hidden_scale,
            inverse(hidden_scale),
            recurrent_scale,
            CELL=cell,
            REVERSE=reverse,
            **run.constexprs,
        )
    return cropped(grad_gates, H), cropped(grad_h_0, H)


class _Run(NamedTuple):
    grid: tuple[int, int]  # batch tiles, D
    sizes: tuple[int, int, int]  # T, B, N
    offsets: Tensor | None  # of packed data
    width: int  # of a row in memory
    constexprs: dict[str, Any]  # what both kernels are compiled for


def _run(data: Tensor, masks: Masks, tf32: bool, sizes: Sequence[int] | None) -> _Run:
    *rows, D, H = data.shape
    T, B = rows if sizes is None else (len(sizes), max(sizes, default=0))
    N = T * B if sizes is None else rows[0]
    device = launch.device_of(data.device)
    extras = Extras(drawn(masks), packed=sizes is not None, directions=D)
    plan = plan_resident(H, B, data.dtype, device, tf32=tf32, extras=extras)
    launch.check_can_run("resident", T, B, plan.reason)
    if any(mask.bits.shape[0] != D for mask in masks.values()):
        raise ValueError(f"each packed mask should be of {D} directions, got {[tuple(m.bits.shape) for m in masks.values()]}")
    check_zoneout(masks, N, H)
    constexprs = {
        "HIDDEN_PER_STEP": is_per_step(masks, "hidden", N, B, H),
        "RECURRENT_PER_STEP": is_per_step(masks, "recurrent", N, B, H),
        "ZONEOUT": "zoneout" in extras.kinds and is_per_step(masks, "zoneout", N, N, H),
        "LOADS_FIRST": data.dtype.itemsize == 2,  # in fp32 there are no registers for it
        "PRECISION": precision(data.dtype, tf32, device.backend),
        "D": D,
        "H": H,
        "WIDTH": plan.width,
        "REPEATS": plan.repeats,
        "WARPS": plan.warps,
        "num_warps": plan.warps,
        "num_stages": 1,
    }
    offsets = None if sizes is None else row_offsets(tuple(sizes), data.device)
    return _Run((plan.programs, D), (T, B, N), offsets, plan.width, constexprs)
