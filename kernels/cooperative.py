"""The whole sequence in one cooperative launch, for a W_hh that one multiprocessor cannot hold.

A program owns a slice of the hidden columns, whose part of W_hh stays in shared memory for all steps, and every groups-th
tile of 16 batch rows. A step: load the input projection and the bits, wait until all slices of this group have written the
step before, read that h (16, H) from the L2 cache, multiply, apply the cell, mask, write the slice's columns, and say so at
the grid barrier. Masks are applied where a value is made, in the slice's own columns; backward exchanges the gradient of the
gates and sums W_hh's other direction. The gradient of W_hh is one library product after backward: in the loop it would cost
more than the recurrence.

Launches: this one and the zeroing of the barrier's counters, whatever T. A counter only grows and lives for one launch, so
that nothing is left over for the next, nor for the replay of a CUDA graph. It counts in 64 bits.

What limits it, by counts and data sheets, none of it timed: the latencies of the grid barrier. Store, arrival, wait and load
of h are a trip each through the L2 cache, 2 to 3 us on an A100 or H100; the product's reads of shared memory take 0.7 to
1.3 us at H = 512 to 1024, B = 16, in bf16; device memory, 66 KB a step at H = 1024, counts little.

AMD: Triton launches cooperatively on HIP where the device's `cooperativeLaunch` says so, and refuses elsewhere; gfx942
compiles, W_hh then partly in registers. Untested on a device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .cell import cell_backward, cell_forward
from .launch import Masks, bits_and_scale, cropped, dense, inverse, is_per_step, on_device, padded
from .mask_bits import slice_kept
from .plan import CooperativePlan, plan_cooperative
from .product import multiply, precision


@triton.jit
def grid_barrier_arrive(barrier_ptr):
    """Say that this program has stored what the others wait for."""
    tl.debug_barrier()  # all threads have stored before one of them releases
    tl.atomic_add(barrier_ptr, 1, sem="release", scope="gpu")


@triton.jit
def grid_barrier_wait(barrier_ptr, arrivals):
    """Wait for so many arrivals: what was stored before them is then visible here."""
    while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < arrivals:
        pass


@triton.jit
def load_weight_slice(w_hh_ptr, column, WIDTH: tl.constexpr, CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The columns given of W_hh.T (of W_hh if TRANSPOSED), as a tuple of (CHUNK, columns)."""
    chunks = ()
    for start in tl.static_range(0, WIDTH, CHUNK):
        k = start + tl.arange(0, CHUNK)
        at = k[:, None] * WIDTH + column[None, :] if TRANSPOSED else column[None, :] * WIDTH + k[:, None]
        chunks += (tl.load(w_hh_ptr + at, mask=(k < WIDTH)[:, None] & (column < WIDTH)[None, :], other=0.0),)
    return chunks


@triton.jit
def clear_padding(x, column, H: tl.constexpr, WIDTH: tl.constexpr):
    """0 in the columns past H, where an infinite or NaN h has met the zeros of W_hh."""
    return tl.where((column < H)[None, :], x, 0.0) if H < WIDTH else x


@triton.jit
def times_weight(source_ptr, w, real, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """Rows at source_ptr, (rows, WIDTH), times the weight slice. Other programs wrote them: .cg reads from the L2 cache."""
    ROWS: tl.constexpr = real.shape[0]
    total = tl.zeros([ROWS, w[0].shape[1]], tl.float32)
    for i in tl.static_range(len(w)):
        k = i * CHUNK + tl.arange(0, CHUNK)
        at = tl.arange(0, ROWS)[:, None] * WIDTH + k[None, :]
        h = tl.load(source_ptr + at, mask=real[:, None] & (k < WIDTH)[None, :], other=0.0, cache_modifier=".cg")
        total = multiply(h, w[i], total, PRECISION)
    return total


RUNTIME = ["T", "B", "tiles", "begin", "end", "hidden_scale", "inverse_scale", "recurrent_scale"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    input_projection_ptr,  # (T, B, WIDTH)
    h_0_ptr,  # (B, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (T*B or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    output_ptr,  # (T, B, WIDTH)
    exchange_ptr,  # (2, B, WIDTH): r * h of this step and of the next; None without recurrent_ptr, where the output serves
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    tiles: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    hidden_scale,
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
    """Phases begin ... end-1: phase 0 masks h_0 for the first product, phase p > 0 is step p - 1.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, ROWS), tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    at = row[:, None] * WIDTH + column[None, :]
    w = load_weight_slice(w_hh_ptr, column, WIDTH, CHUNK, False)
    barrier_ptr += group * 16

    if recurrent_ptr is not None and begin == 0:
        t = T - 1 if REVERSE else begin
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < WIDTH)[None, :]
            keep = slice_kept(recurrent_ptr, t * B + b if RECURRENT_PER_STEP else b, real, H, SLICE)
            h = tl.load(h_0_ptr + b * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(exchange_ptr + b * WIDTH + at, tl.where(keep, h * recurrent_scale, 0.0).to(DTYPE), mask=inside)
        grid_barrier_arrive(barrier_ptr)

    for phase in range(tl.maximum(begin, 1), end):
        t = T - phase if REVERSE else phase - 1
        after = t - 1 if REVERSE else t + 1
        if recurrent_ptr is not None:
            source_ptr = exchange_ptr + (phase - 1) % 2 * B * WIDTH
        else:
            source_ptr = tl.where(phase == 1, h_0_ptr, output_ptr + (2 * t - after) * B * WIDTH)
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < WIDTH)[None, :]
            start = (t * B + b) * WIDTH
            gates = tl.load(input_projection_ptr + start + at, mask=inside, other=0.0).to(tl.float32)
            if hidden_ptr is not None:
                keep = slice_kept(hidden_ptr, t * B + b if HIDDEN_PER_STEP else b, real, H, SLICE)
            if tile == group:  # what no other program writes is loaded before the wait
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))
            gates += times_weight(source_ptr + b * WIDTH, w, real, WIDTH, CHUNK, PRECISION)
            h = cell_forward(clear_padding(gates, column, H, WIDTH), CELL, DTYPE, "exact")
            if hidden_ptr is not None:
                h = tl.where(keep, h * hidden_scale, 0.0)
            h = h.to(DTYPE)
            tl.store(output_ptr + start + at, h, mask=inside)
            if recurrent_ptr is not None:
                following = b + row < B * (phase < T)  # no rows after the last step
                keep = slice_kept(recurrent_ptr, after * B + b if RECURRENT_PER_STEP else b, following, H, SLICE)
                h = tl.where(keep, h.to(tl.float32) * recurrent_scale, 0.0)
                tl.store(exchange_ptr + (phase % 2 * B + b) * WIDTH + at, h.to(DTYPE), mask=inside)
        grid_barrier_arrive(barrier_ptr)


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (T, B, WIDTH)
    grad_h_n_ptr,  # (B, WIDTH), or None
    output_ptr,  # (T, B, WIDTH)
    w_hh_ptr,  # (WIDTH, WIDTH)
    hidden_ptr,  # (T*B or B, ceil(H/32)) int32, or None
    recurrent_ptr,  # the same
    grad_gates_ptr,  # (T, B, WIDTH)
    grad_h_0_ptr,  # (B, WIDTH)
    barrier_ptr,  # (groups, 16) int64, zeroed
    T: tl.int64,
    B: tl.int64,
    tiles: tl.int64,
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
    """Phases begin ... end-1: phase p < T is the step that forward took p steps before its last, phase T makes grad_h_0.

    grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, ROWS), tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    at = row[:, None] * WIDTH + column[None, :]
    w = load_weight_slice(w_hh_ptr, column, WIDTH, CHUNK, True)
    barrier_ptr += group * 16

    if begin == 0:
        t = begin if REVERSE else T - 1
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < WIDTH)[None, :]
            start = (t * B + b) * WIDTH
            dh = tl.load(grad_output_ptr + start + at, mask=inside, other=0.0).to(tl.float32)
            if grad_h_n_ptr is not None:
                dh += tl.load(grad_h_n_ptr + b * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
            y = tl.load(output_ptr + start + at, mask=inside, other=0.0).to(tl.float32)
            grad_gates = cell_backward(dh, y, hidden_scale, inverse_scale, CELL)
            if hidden_ptr is not None:
                keep = slice_kept(hidden_ptr, t * B + b if HIDDEN_PER_STEP else b, real, H, SLICE)
                grad_gates = tl.where(keep, grad_gates, 0.0)
            tl.store(grad_gates_ptr + start + at, grad_gates.to(DTYPE), mask=inside)
        grid_barrier_arrive(barrier_ptr)

    for phase in range(tl.maximum(begin, 1), end):
        t = phase if REVERSE else T - 1 - phase
        after = t - 1 if REVERSE else t + 1
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < WIDTH)[None, :]
            start = (t * B + b) * WIDTH
            now = b + row < B * (phase < T)  # no rows in phase T
            g = tl.load(grad_output_ptr + start + at, mask=now[:, None] & inside, other=0.0).to(tl.float32)
            y = tl.load(output_ptr + start + at, mask=now[:, None] & inside, other=0.0).to(tl.float32)
            if hidden_ptr is not None:
                keep = slice_kept(hidden_ptr, t * B + b if HIDDEN_PER_STEP else b, now, H, SLICE)
            if recurrent_ptr is not None:
                entering = slice_kept(recurrent_ptr, after * B + b if RECURRENT_PER_STEP else b, real, H, SLICE)
            if tile == group:
                grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))
            dh = times_weight(grad_gates_ptr + (after * B + b) * WIDTH, w, real, WIDTH, CHUNK, PRECISION)
            if recurrent_ptr is not None:
                dh = tl.where(entering, dh * recurrent_scale, 0.0)
            dh = clear_padding(dh, column, H, WIDTH)
            grad_gates = cell_backward(g + dh, y, hidden_scale, inverse_scale, CELL)
            if hidden_ptr is not None:
                grad_gates = tl.where(keep, grad_gates, 0.0)
            destination_ptr = tl.where(phase < T, grad_gates_ptr + start, grad_h_0_ptr + b * WIDTH)
            tl.store(destination_ptr + at, tl.where(phase < T, grad_gates, dh).to(DTYPE), mask=inside)
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
) -> Tensor:
    """The output of every step.

    Args:
        input_projection: (T, B, H) of float32, float16 or bfloat16, W_ih x and both biases.
        h_0: (B, H).
        w_hh: (H, H).
        masks: by kind; one that is not there drops nothing. "hidden": of the new state. "recurrent": of the state where it
            enters W_hh.
        cell: "RNN_TANH" or "RNN_RELU".
        reverse: from the last step to the first.
        tf32: fp32 products may round their operands to tf32.

    Returns:
        (T, B, H), contiguous.

    Raises:
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = input_projection.shape[2]
    with on_device(input_projection):
        plan, constexprs = _plan(input_projection, masks, tf32)
        x = dense(padded(input_projection, plan.width))
        output = torch.empty_like(x)
        exchange = x.new_empty(2, *x.shape[1:]) if "recurrent" in masks else None
        weights = dense(padded(h_0, plan.width)), dense(padded(w_hh, plan.width, plan.width))
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        tensors = x, *weights, hidden_bits, recurrent_bits, output, exchange
        phases = range(0 if "recurrent" in masks else 1, len(x) + 1)
        constexprs |= {"CELL": cell, "REVERSE": reverse}
        _launch(forward_kernel, tensors, phases, (hidden_scale, recurrent_scale), plan, constexprs)
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
        ValueError: the strategy cannot run this shape here, and why.
    """
    H = output.shape[2]
    with on_device(output):
        plan, constexprs = _plan(output, masks, tf32)
        y = dense(padded(output, plan.width))
        gradients = (None if g is None else dense(padded(g, plan.width)) for g in (grad_output, grad_h_n))
        grad_gates, grad_h_0 = torch.empty_like(y), y.new_empty(y.shape[1:])
        hidden_bits, hidden_scale = bits_and_scale(masks, "hidden")
        recurrent_bits, recurrent_scale = bits_and_scale(masks, "recurrent")
        weight = dense(padded(w_hh, plan.width, plan.width))
        tensors = *gradients, y, weight, hidden_bits, recurrent_bits, grad_gates, grad_h_0
        scales = hidden_scale, inverse(hidden_scale), recurrent_scale
        constexprs |= {"CELL": cell, "REVERSE": reverse}
        _launch(backward_kernel, tensors, range(len(y) + 1), scales, plan, constexprs)
    return cropped(grad_gates, H), cropped(grad_h_0, H)


def _plan(data: Tensor, masks: Masks, tf32: bool) -> tuple[CooperativePlan, dict[str, Any]]:
    """The grid and tiles, and what both kernels are compiled for."""
    T, B, H = data.shape
    device = launch.device_of(data.device)
    plan = plan_cooperative(H, B, data.dtype, device, tf32=tf32)
    launch.check_can_run("cooperative", T, B, plan.reason)
    constexprs = {
        "HIDDEN_PER_STEP": is_per_step(masks, "hidden", T * B, B, H),
        "RECURRENT_PER_STEP": is_per_step(masks, "recurrent", T * B, B, H),
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
    return plan, constexprs


def _launch(
    kernel: Any,
    tensors: tuple[Tensor | None, ...],  # the first is (T, B, WIDTH)
    phases: range,
    scales: tuple[float, ...],
    plan: CooperativePlan,
    constexprs: dict[str, Any],
) -> None:
    """One launch for all phases. Triton's interpreter runs program after program, so there each phase is a launch."""
    data = tensors[0]
    T, B, _ = data.shape
    barrier = torch.zeros(plan.groups, 16, dtype=torch.int64, device=data.device)  # 128 bytes a counter, a cache line
    interpreted = launch.device_of(data.device).backend == "interpreter"
    launches = [(p, p + 1) for p in phases] if interpreted else [(phases.start, phases.stop)]
    for begin, end in launches:
        kernel[plan.slices, plan.groups](*tensors, barrier, T, B, -(-B // plan.rows), begin, end, *scales, **constexprs)
