"""One library product and one fused pointwise kernel a step: correct for every shape, the measure of the others.

What limits it on a GPU with small layers is neither bytes nor operations: two launches a step that depend on each other take
some 5 us of the device, 3 us inside a CUDA graph, and Python's part of them takes the host 25 to 35 us a step, which is what
counts unless a CUDA graph replays the call. It may be captured: nothing here waits for the device, and only Python integers
steer it. A graph that the layer kept itself would belong in `forward` and `backward`, by shapes; without a device to try it on,
there is none. Estimates; none was measured on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cell import cell_backward, cell_forward
from .launch import Masks, dense, inverse, on_device
from .mask_bits import kept
from .step_rows import NO_STEP, StepMask, StepRows, step_mask, steps_in_order, zoneout_mask

TILE = 1024  # elements a program takes
RUNTIME = ["rows", "others", "olds", "hidden_row", "recurrent_row", "zoneout_row"]
RUNTIME += ["hidden_scale", "inverse_scale", "recurrent_scale", "old_share"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    gates_ptr,  # (rows, H), becomes the output of the step
    h_0_ptr,  # (B, H)
    hidden_ptr,  # (any, ceil(H/32)) int32, or None: row hidden_row is that of our row 0
    recurrent_ptr,  # the same for the next step
    zoneout_ptr,  # the same for this step
    old_ptr,  # (olds, H): the output of the step before, or None without zoneout
    state_ptr,  # (others, H), or None: r * h for the next step, from h_0 where a sequence starts there
    rows,
    others,  # rows of the next step
    hidden_row: tl.int64,
    recurrent_row: tl.int64,
    zoneout_row: tl.int64,
    hidden_scale,
    recurrent_scale,
    old_share,  # of the old state in the expectation of zoneout, or None
    olds,
    H,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    DTYPE: tl.constexpr = gates_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row * H + column
    inside = (row < rows) & (column < H)
    h = cell_forward(tl.load(gates_ptr + at, mask=inside, other=0.0).to(tl.float32), CELL, DTYPE, "exact")
    if hidden_ptr is not None:
        h = tl.where(kept(hidden_ptr, hidden_row + row, column, H, inside), h * hidden_scale, 0.0)
    if old_ptr is not None:
        begins = row >= olds
        old = tl.load(old_ptr + at, mask=inside & ~begins, other=0.0)
        old = tl.where(begins, tl.load(h_0_ptr + at, mask=inside & begins, other=0.0), old).to(tl.float32)
        if zoneout_ptr is not None:
            h = tl.where(kept(zoneout_ptr, zoneout_row + row, column, H, inside), h, old)
        else:
            h = old_share * old + (1.0 - old_share) * h
    h = h.to(DTYPE)
    tl.store(gates_ptr + at, h, mask=inside)
    if state_ptr is not None:
        other = (row < others) & (column < H)
        h = tl.where(row < rows, h, tl.load(h_0_ptr + at, mask=other & (row >= rows), other=0.0))
        if recurrent_ptr is not None:
            keep = kept(recurrent_ptr, recurrent_row + row, column, H, other)
            h = tl.where(keep, h.to(tl.float32) * recurrent_scale, 0.0).to(DTYPE)
        tl.store(state_ptr + at, h, mask=other)


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    grad_output_ptr,  # (rows, H)
    grad_h_n_ptr,  # (B, H), or None: taken by a sequence that ends here (row >= others)
    output_ptr,  # (rows, H)
    hidden_ptr,  # (any, ceil(H/32)) int32, or None: row hidden_row is that of our row 0
    recurrent_ptr,  # the same for the step after
    zoneout_ptr,  # the same for this step
    carry_ptr,  # (B, H) float32, or None without zoneout: the gradient that passes by the gates of a step
    state_ptr,  # (others, H): the gradient of the gates of the step after, times W_hh
    grad_gates_ptr,  # (rows, H)
    grad_h_0_ptr,  # (B, H): given by a sequence that starts at the step after (row >= rows)
    rows,
    others,  # rows of the step after
    hidden_row: tl.int64,
    recurrent_row: tl.int64,
    zoneout_row: tl.int64,
    hidden_scale,
    inverse_scale,
    recurrent_scale,
    H,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row * H + column
    inside, other = (row < rows) & (column < H), (row < others) & (column < H)
    dh = tl.load(state_ptr + at, mask=other, other=0.0).to(tl.float32)
    if recurrent_ptr is not None:
        dh = tl.where(kept(recurrent_ptr, recurrent_row + row, column, H, other), dh * recurrent_scale, 0.0)
    if zoneout_ptr is not None:
        dh += tl.load(carry_ptr + at, mask=other, other=0.0)
    tl.store(grad_h_0_ptr + at, dh.to(DTYPE), mask=other & (row >= rows))
    if grad_h_n_ptr is not None:
        dh += tl.load(grad_h_n_ptr + at, mask=inside & (row >= others), other=0.0).to(tl.float32)
    dh += tl.load(grad_output_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(output_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad_gates = cell_backward(dh, y, hidden_scale, inverse_scale, CELL)
    if hidden_ptr is not None:
        grad_gates = tl.where(kept(hidden_ptr, hidden_row + row, column, H, inside), grad_gates, 0.0)
    if zoneout_ptr is not None:
        new = kept(zoneout_ptr, zoneout_row + row, column, H, inside)
        grad_gates = tl.where(new, grad_gates, 0.0)
        tl.store(carry_ptr + at, tl.where(new, 0.0, dh), mask=inside)
    tl.store(grad_gates_ptr + at, grad_gates.to(DTYPE), mask=inside)


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
        tf32: for the other strategies; the library's product asks PyTorch itself.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        Like input_projection, contiguous.

    Raises:
        ValueError: the strategy cannot run this here, and why.
    """
    with on_device(input_projection):
        input_projection, h_0, weight = input_projection.contiguous(), dense(h_0), w_hh.t()
        steps = steps_in_order("stepwise", input_projection, reverse, sizes)
        output = torch.empty_like(input_projection)
        x, y = (v.view(-1, v.shape[-1]) for v in (input_projection, output))
        H = h_0.shape[1]
        hidden, recurrent = (step_mask(masks, kind, steps, H) for kind in ("hidden", "recurrent"))
        zoneout_bits, old_share = zoneout_mask(masks, "zoneout", steps, H)
        # Without a state of its own the product reads what the step before wrote.
        state = torch.empty_like(h_0) if "recurrent" in masks or (reverse and sizes is not None) else None
        h = h_0

        def pointwise(step: StepRows, following: StepRows) -> None:
            old = h if "zoneout" in masks else None
            tensors = y[step.slice], h_0, hidden.bits, recurrent.bits, zoneout_bits, old, state
            numbers = hidden.scale, recurrent.scale, old_share, h.shape[0]
            _launch(forward_kernel, tensors, step, following, (hidden, recurrent), numbers, cell)

        if state is not None:
            pointwise(NO_STEP, steps[0])
        for step, following in zip(steps, [*steps[1:], NO_STEP], strict=True):
            entering = (h if state is None else state)[: step.size]
            torch.addmm(x[step.slice], entering, weight, out=y[step.slice])
            pointwise(step, following)
            h = y[step.slice]
    return output


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
        ValueError: the strategy cannot run this here, and why.
    """
    H = output.shape[-1]
    with on_device(output):
        steps = steps_in_order("stepwise", output, reverse, sizes)
        grad_gates = torch.empty_like(output, memory_format=torch.contiguous_format)
        g, y, d = (v.contiguous().view(-1, H) for v in (grad_output, output, grad_gates))
        grad_h_n = dense(grad_h_n)
        grad_h_0, state = (output.new_empty(max(step.size for step in steps), H) for _ in range(2))
        hidden, recurrent = (step_mask(masks, kind, steps, H) for kind in ("hidden", "recurrent"))
        zoneout_bits, _ = zoneout_mask(masks, "zoneout", steps, H)
        carry = None if zoneout_bits is None else torch.empty_like(state, dtype=torch.float32)
        scales = hidden.scale, inverse(hidden.scale), recurrent.scale

        following = NO_STEP
        for step in [*steps[::-1], NO_STEP]:
            rows = step.slice
            bits = hidden.bits, recurrent.bits, zoneout_bits
            tensors = g[rows], grad_h_n, y[rows], *bits, carry, state, d[rows], grad_h_0
            _launch(backward_kernel, tensors, step, following, (hidden, recurrent), scales, cell)
            if step.size:
                torch.mm(d[rows], w_hh, out=state[: step.size])
            following = step
    return grad_gates, grad_h_0


def _launch(
    kernel: Any,
    tensors: tuple[Tensor | None, ...],
    step: StepRows,
    following: StepRows,
    dropouts: tuple[StepMask, StepMask],
    numbers: tuple[float | None, ...],
    cell: str,
) -> None:
    H, (hidden, recurrent) = tensors[0].shape[-1], dropouts
    rows, columns = max(step.size, following.size), min(triton.next_power_of_2(H), 256)
    ROWS = TILE // columns
    kernel[triton.cdiv(rows, ROWS), triton.cdiv(H, columns)](
        *tensors,
        step.size,
        following.size,
        hidden.first_row(step),
        recurrent.first_row(following),
        step.start,
        *numbers,
        H,
        CELL=cell,
        ROWS=ROWS,
        COLUMNS=columns,
    )
