"""The whole sequence in one launch, W_hh in the registers of one multiprocessor.

A program owns 16 rows of the batch (`tile_layout`) and reads W_hh once. A step reads the input projection and the bits and
writes the output; the state goes through shared memory, written once and read by every warp, between two barriers. The next
step's numbers are loaded a step ahead, so that a step has little but the product between its barriers.

What limits it, by counts and data sheets, none of it timed: with many programs the device memory, at H = 256 the tensor
cores, and with few programs latency. A step's chain, store h, barrier, load it, H/16 products, activation, barrier, is 700 to
800 cycles on an A100 or H100 at H = 128 in bf16.

H that is no multiple of 4 is padded in memory (`plan`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .cell import cell_backward, cell_forward
from .launch import Masks, bits_and_scale, bits_and_share, cropped, dense, inverse, is_per_step, on_device, padded
from .mask_bits import drop_from_tile, tile_kept, tile_words
from .plan import plan_resident
from .product import multiply, precision
from .tile_layout import from_result, load_right, tile_columns, tile_rows, to_left, to_result


@triton.jit
def load_tile(pointers, there, WIDTH: tl.constexpr, REPEATS: tl.constexpr, WARPS: tl.constexpr):
    """A tile, 0 where `there` denies its rows and in the columns past a row in memory."""
    padded: tl.constexpr = WIDTH < REPEATS * WARPS * 16
    return tl.load(pointers, mask=there & (tile_columns(REPEATS, WARPS) < WIDTH) if padded else there, other=0.0)


@triton.jit
def clear_padding(x, REAL: tl.constexpr):
    """0 in the columns that are not real, where an infinite or NaN h has met the zeros of W_hh."""
    REPEATS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    return tl.where(tile_columns(REPEATS, WARPS) < REAL, x, 0.0) if REAL < REPEATS * WARPS * 16 else x


RUNTIME = ["T", "B", "input_step", "input_row", "grad_step", "grad_row"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (T, B, WIDTH): a step is input_step rows of WIDTH elements after the one before, a row input_row
    h_0_ptr,  # (B, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (T*B or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (T*B, ceil(H/32)) int32, or None
    output_ptr,  # (T, B, WIDTH)
    T,
    B,
    input_step,
    input_row,
    hidden_scale,
    recurrent_scale,
    share,  # of the old state in the expectation of zoneout, or None
    CELL: tl.constexpr,
    HIDDEN_PER_STEP: tl.constexpr,
    RECURRENT_PER_STEP: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TANH: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # H, or the next multiple of 4
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    REAL: tl.constexpr = H if hidden_ptr is None and zoneout_ptr is None else WIDTH  # these have no bits past H
    first, direction = (T - 1, -1) if REVERSE else (0, 1)
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    mine = (row < B) & (column < WIDTH)
    real = row < B
    start = tl.cast(first, tl.int64)
    mask_step = tl.cast(B, tl.int64) * (direction * WORDS)
    output_step = tl.cast(B, tl.int64) * (direction * WIDTH)
    input_step = tl.cast(input_step, tl.int64) * WIDTH

    w = load_right(w_hh_ptr, WIDTH, REPEATS, WARPS, False)
    h = load_tile(h_0_ptr + row * WIDTH + column, real, WIDTH, REPEATS, WARPS)
    input_projection_ptr += start * input_step + row * input_row * WIDTH + column
    x = load_tile(input_projection_ptr, real, WIDTH, REPEATS, WARPS)
    output_ptr += (start * B + row) * WIDTH + column
    if hidden_ptr is not None:
        word = tile_words(start * B + row if HIDDEN_PER_STEP else row, H, REPEATS, WARPS)
        hidden = tl.load(hidden_ptr + word, mask=real, other=0)
    if recurrent_ptr is not None:
        word = tile_words(start * B + row if RECURRENT_PER_STEP else row, H, REPEATS, WARPS)
        recurrent = tl.load(recurrent_ptr + word, mask=real, other=0)
    word = tile_words(start * B + row, H, REPEATS, WARPS)
    if zoneout_ptr is not None:
        zoneout = tl.load(zoneout_ptr + word, mask=real, other=0)

    for step in range(T):
        entering = h
        if recurrent_ptr is not None:
            entering = drop_from_tile(h.to(tl.float32) * recurrent_scale, recurrent).to(DTYPE)
        gates = from_result(multiply(to_left(entering), w, to_result(x.to(tl.float32)), PRECISION), REPEATS)
        ahead = row < tl.where(step + 1 < T, B, 0)
        input_projection_ptr += input_step * direction
        x = load_tile(input_projection_ptr, ahead, WIDTH, REPEATS, WARPS)
        gates = clear_padding(gates, REAL)
        if hidden_ptr is not None:
            gates = drop_from_tile(gates, hidden)  # the cell makes 0 of 0
        word += mask_step
        if HIDDEN_PER_STEP:
            hidden = tl.load(hidden_ptr + word, mask=ahead, other=0)
        if RECURRENT_PER_STEP:
            recurrent = tl.load(recurrent_ptr + word, mask=ahead, other=0)
        made = cell_forward(gates, CELL, DTYPE, TANH)
        if hidden_ptr is not None:
            made = made * hidden_scale
        if share is not None:
            made = share * h.to(tl.float32) + (1 - share) * made
        made = made.to(DTYPE)
        if zoneout_ptr is not None:
            made = tl.where(tile_kept(zoneout), made, h)
            zoneout = tl.load(zoneout_ptr + word, mask=ahead, other=0)
        h = made
        tl.store(output_ptr, h, mask=mine)
        output_ptr += output_step


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (T, B, WIDTH): a step is grad_step rows of WIDTH elements after the one before, a row grad_row
    grad_h_n_ptr,  # (B, WIDTH), or None
    output_ptr,  # (T, B, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (T*B or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    zoneout_ptr,  # (T*B, ceil(H/32)) int32, or None
    grad_gates_ptr,  # (T, B, WIDTH)
    grad_h_0_ptr,  # (B, WIDTH)
    T,
    B,
    grad_step,
    grad_row,
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
    REPEATS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """From the step that forward took last to its first. The mask says what was dropped, never the output's value."""
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    REAL: tl.constexpr = H if hidden_ptr is None and zoneout_ptr is None else WIDTH  # these have no bits past H
    first, direction = (0, 1) if REVERSE else (T - 1, -1)
    row, column = tile_rows(), tile_columns(REPEATS, WARPS)
    mine = (row < B) & (column < WIDTH)
    real = row < B
    start = tl.cast(first, tl.int64)
    mask_step = tl.cast(B, tl.int64) * (direction * WORDS)
    output_step = tl.cast(B, tl.int64) * (direction * WIDTH)
    grad_step = tl.cast(grad_step, tl.int64) * WIDTH

    w = load_right(w_hh_ptr, WIDTH, REPEATS, WARPS, True)
    grad_output_ptr += start * grad_step + row * grad_row * WIDTH + column
    at = (start * B + row) * WIDTH + column
    dh = load_tile(grad_output_ptr, real, WIDTH, REPEATS, WARPS).to(tl.float32)
    y = load_tile(output_ptr + at, real, WIDTH, REPEATS, WARPS)
    if grad_h_n_ptr is not None:
        dh += load_tile(grad_h_n_ptr + row * WIDTH + column, real, WIDTH, REPEATS, WARPS).to(tl.float32)
    if hidden_ptr is not None:
        word = tile_words(start * B + row if HIDDEN_PER_STEP else row, H, REPEATS, WARPS)
        hidden = tl.load(hidden_ptr + word, mask=real, other=0)
    if recurrent_ptr is not None:
        word = tile_words(start * B + row if RECURRENT_PER_STEP else row, H, REPEATS, WARPS)
        recurrent = tl.load(recurrent_ptr + word, mask=real, other=0)
    word = tile_words(start * B + row, H, REPEATS, WARPS)
    if zoneout_ptr is not None:
        zoneout = tl.load(zoneout_ptr + word, mask=real, other=0)

    for step in range(T):
        ahead = row < tl.where(step + 1 < T, B, 0)
        grad_output_ptr += grad_step * direction
        g = load_tile(grad_output_ptr, ahead, WIDTH, REPEATS, WARPS)
        grad_gates = clear_padding(cell_backward(dh, y.to(tl.float32), hidden_scale, inverse_scale, CELL), REAL)
        y = load_tile(output_ptr + (at + output_step), ahead, WIDTH, REPEATS, WARPS)
        if hidden_ptr is not None:
            grad_gates = drop_from_tile(grad_gates, hidden)
        word += mask_step
        if HIDDEN_PER_STEP:
            hidden = tl.load(hidden_ptr + word, mask=ahead, other=0)
        carried = g.to(tl.float32)
        if zoneout_ptr is not None:
            carried += tl.where(tile_kept(zoneout), 0.0, dh)
            grad_gates = drop_from_tile(grad_gates, zoneout)
            zoneout = tl.load(zoneout_ptr + word, mask=ahead, other=0)
        grad_gates = grad_gates.to(DTYPE)
        tl.store(grad_gates_ptr + at, grad_gates, mask=mine)
        at += output_step
        if recurrent_ptr is None:
            dh = from_result(multiply(to_left(grad_gates), w, to_result(carried), PRECISION), REPEATS)
        else:
            nothing = tl.zeros([16, w.shape[1]], tl.float32)
            dh = from_result(multiply(to_left(grad_gates), w, nothing, PRECISION), REPEATS)
            dh = drop_from_tile(dh * recurrent_scale, recurrent) + carried
            if RECURRENT_PER_STEP:
                recurrent = tl.load(recurrent_ptr + word, mask=ahead, other=0)
    tl.store(grad_h_0_ptr + row * WIDTH + column, dh, mask=mine)


def forward(
    input_projection: Tensor,
    h_0: Tensor,
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    reverse: bool = False,
    tf32: bool = False,
) -> Tensor:
    """The output of every step.

    Args:
        input_projection: (T, B, H) of float32, float16 or bfloat16, W_ih x and both biases.
        h_0: (B, H).
        w_hh: (H, H).
        masks: by kind; one that is not there drops nothing. "hidden": of the new state. "recurrent": of the state where it
            enters W_hh. "zoneout": where it drops, the state stays that of the step before; or its expectation.
        cell: "RNN_TANH" or "RNN_RELU".
        reverse: from the last step to the first.
        tf32: fp32 products may round their operands to tf32.

    Returns:
        (T, B, H), contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H, dtype = input_projection.shape[2], input_projection.dtype
    with on_device(input_projection):
        programs, constexprs, width = _plan(input_projection, masks, tf32)
        input_projection, step_stride, row_stride = _in_rows(padded(input_projection, width))
        T, B, _ = input_projection.shape
        output = torch.empty_like(input_projection, memory_format=torch.contiguous_format)
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, share = bits_and_share(masks)
        forward_kernel[(programs,)](
            input_projection,
            dense(padded(h_0, width)),
            dense(padded(w_hh, width, width)),
            hidden_bits,
            recurrent_bits,
            zoneout_bits,
            output,
            T,
            B,
            step_stride,
            row_stride,
            hidden_scale,
            recurrent_scale,
            share,
            CELL=cell,
            REVERSE=reverse,
            TANH=_tanh(dtype, launch.device_of(output.device).backend),
            **constexprs,
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
) -> tuple[Tensor, Tensor]:
    """The gradients of the gates, which are those of the input projection, and of h_0.

    Args:
        grad_output: (T, B, H).
        grad_h_n: (B, H), or None.
        output: (T, B, H), what forward returned. The rest is what forward was given.

    Returns:
        (T, B, H) and (B, H), contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why; or zoneout is an expectation.
    """
    H = output.shape[2]
    with on_device(output):
        programs, constexprs, width = _plan(output, masks, tf32)
        grad_output, step_stride, row_stride = _in_rows(padded(grad_output, width))
        output = dense(padded(output, width))
        T, B, _ = output.shape
        grad_gates, grad_h_0 = torch.empty_like(output), output.new_empty(B, width)
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        zoneout_bits, share = bits_and_share(masks)
        if share is not None:
            raise ValueError("the expectation of zoneout has no kernel for its gradient")
        backward_kernel[(programs,)](
            grad_output,
            None if grad_h_n is None else dense(padded(grad_h_n, width)),
            output,
            dense(padded(w_hh, width, width)),
            hidden_bits,
            recurrent_bits,
            zoneout_bits,
            grad_gates,
            grad_h_0,
            T,
            B,
            step_stride,
            row_stride,
            hidden_scale,
            inverse(hidden_scale),
            recurrent_scale,
            CELL=cell,
            REVERSE=reverse,
            **constexprs,
        )
    return cropped(grad_gates, H), cropped(grad_h_0, H)


def _plan(data: Tensor, masks: Masks, tf32: bool) -> tuple[int, dict[str, Any], int]:
    """The grid, what both kernels are compiled for, and the width of a row in memory."""
    T, B, H = data.shape
    device = launch.device_of(data.device)
    plan = plan_resident(H, B, data.dtype, device, tf32=tf32)
    launch.check_can_run("resident", T, B, plan.reason)
    if bits_and_share(masks)[0] is not None:
        is_per_step(masks, "zoneout", T * B, T * B, H)  # nothing else
    constexprs = {
        "HIDDEN_PER_STEP": is_per_step(masks, "hidden", T * B, B, H),
        "RECURRENT_PER_STEP": is_per_step(masks, "recurrent", T * B, B, H),
        "PRECISION": precision(data.dtype, tf32, device.backend),
        "H": H,
        "WIDTH": plan.width,
        "REPEATS": plan.repeats,
        "WARPS": plan.warps,
        "num_warps": plan.warps,
        "num_stages": 1,
    }
    return plan.programs, constexprs, plan.width


def _in_rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x (T, B, width), copied if its steps and rows are not whole rows apart, and how many rows they are apart."""
    width = x.shape[2]
    if (x.stride(2) != 1 and width > 1) or x.stride(0) % width or x.stride(1) % width or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    return x, x.stride(0) // width, x.stride(1) // width


def _tanh(dtype: torch.dtype, backend: str) -> str:
    """How `activation` makes tanh: by the instruction of NVIDIA's GPUs, where bf16's rounding hides its error."""
    return "hardware" if dtype == torch.bfloat16 and backend == "cuda" else "exact"
