"""One library product and one fused pointwise kernel a step: correct for every shape, the measure of the others.

    forward, backward       launchers; also of packed batches of sequences that end at different steps

Bytes a step, forward (B rows, e bytes an element): the product reads W_hh (H*H*e), h and the input's part and writes a
(3*B*H*e); the pointwise kernel reads a and B*H/8 bytes of bits and writes h (2*B*H*e), once more with a recurrent mask.
Backward: 2*B*H*e more. Operations: 2*B*H*H, and 24 PTX instructions an element beside, backward 29 (16 bit; COSTS.md). On
chip: nothing is kept from step to step.

Bound a step at B = 64, H = 1024, bf16: 2.8 MB, all in the second-level cache, and 0.13 GFLOP: about 1 us on an A100,
0.6 us on an H100. The limit is neither: two launches that depend on each other take about 5 us, or 3 us inside a CUDA
graph, which may capture a call: nothing here waits for the device, and only lists of Python integers steer it.
These are estimates; none was measured on a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, through

TILE = 1024  # elements a program takes
RUNTIME = ["rows", "others", "mask_row", "other_mask_row", "hidden_scale", "recurrent_scale"]


# ---------------------------------------------------------------- kernels


@triton.jit
def kept(bits, mask_row, row, column, H, inside):
    """Booleans of shape (rows, columns) of a packed mask (any, ceil(H/32)), whose row mask_row (int64) is our row 0."""
    word = tl.load(bits + (mask_row + row) * tl.cdiv(H, 32) + column // 32, mask=inside, other=0)
    return (word >> (column % 32)) & 1 != 0


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(y, h0, hidden_bits, recurrent_bits, state, rows, others, mask_row: tl.int64,
                   other_mask_row: tl.int64, hidden_scale, recurrent_scale, H, NONLINEARITY: tl.constexpr,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y (rows, H) becomes m * f(y). state (others, H), for the next step: r * y, or r * h0 where a sequence starts."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row * H + column
    inside = (row < rows) & (column < H)
    h = activate(tl.load(y + at, mask=inside, other=0.0).to(tl.float32), NONLINEARITY, y.dtype.element_ty)
    if hidden_bits is not None:
        h = tl.where(kept(hidden_bits, mask_row, row, column, H, inside), h * hidden_scale, 0.0)
    h = h.to(y.dtype.element_ty)
    tl.store(y + at, h, mask=inside)
    if state is not None:
        other = (row < others) & (column < H)
        h = tl.where(row < rows, h, tl.load(h0 + at, mask=other & (row >= rows), other=0.0))
        if recurrent_bits is not None:
            keep = kept(recurrent_bits, other_mask_row, row, column, H, other)
            h = tl.where(keep, h.to(tl.float32) * recurrent_scale, 0.0).to(y.dtype.element_ty)
        tl.store(state + at, h, mask=other)


@triton.jit(do_not_specialize=RUNTIME + ["inverse_scale"])
def backward_kernel(grad_output, grad_h_n, output, hidden_bits, recurrent_bits, state, grad_a, grad_h0, rows, others,
                    mask_row: tl.int64, other_mask_row: tl.int64, hidden_scale, inverse_scale, recurrent_scale, H,
                    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """grad_a (rows, H) of a step, whose successor had `others` rows and sent state (others, H) = grad_a' @ W_hh.

    A sequence that ends here takes grad_h_n instead (row >= others); one that started at the successor gives grad_h0
    (row >= rows). grad_output, output: (rows, H). grad_h_n (or None), grad_h0: (B, H).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row * H + column
    inside, other = (row < rows) & (column < H), (row < others) & (column < H)
    dh = tl.load(state + at, mask=other, other=0.0).to(tl.float32)
    if recurrent_bits is not None:
        dh = tl.where(kept(recurrent_bits, other_mask_row, row, column, H, other), dh * recurrent_scale, 0.0)
    tl.store(grad_h0 + at, dh.to(grad_h0.dtype.element_ty), mask=other & (row >= rows))
    if grad_h_n is not None:
        dh += tl.load(grad_h_n + at, mask=inside & (row >= others), other=0.0).to(tl.float32)
    dh += tl.load(grad_output + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(output + at, mask=inside, other=0.0).to(tl.float32)
    d = through(dh, y, hidden_scale, inverse_scale, NONLINEARITY)
    if hidden_bits is not None and NONLINEARITY != "relu":
        d = tl.where(kept(hidden_bits, mask_row, row, column, H, inside), d, 0.0)
    tl.store(grad_a + at, d.to(grad_a.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------- launchers


def forward(xw: Tensor, h0: Tensor, w_hh: Tensor, hidden_bits: Tensor | None, recurrent_bits: Tensor | None,
            hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh", mask_scope: str = "step",
            reverse: bool = False, tf32: bool = False, batch_sizes: Sequence[int] | None = None) -> Tensor:
    """output like xw, the input's part with both biases: (T, B, H) or (sum of batch_sizes, H). h0: (B, H). w_hh: (H, H).

    hidden_bits, recurrent_bits: packed masks, int32 (T*B or B, ceil(H/32)), or None. tf32 is for the other strategies:
    the library's product asks PyTorch itself.
    """
    xw, h0, weight = xw.contiguous(), h0.contiguous(), w_hh.t()
    steps = _steps(xw, batch_sizes, mask_scope, reverse)
    output = torch.empty_like(xw)
    x, y = xw.view(-1, xw.shape[-1]), output.view(-1, xw.shape[-1])
    # Without one, the product reads what the step before wrote.
    state = torch.empty_like(h0) if recurrent_bits is not None or (reverse and batch_sizes is not None) else None
    h = h0

    def pointwise(step: _Step, following: _Step) -> None:
        _launch(forward_kernel, (y[step.where], h0, hidden_bits, recurrent_bits, state), step, following,
                (hidden_scale, recurrent_scale), nonlinearity)

    if state is not None:
        pointwise(_NONE, steps[0])
    for step, following in zip(steps, [*steps[1:], _NONE], strict=True):
        torch.addmm(x[step.where], (h if state is None else state)[:step.rows], weight, out=y[step.where])
        pointwise(step, following)
        h = y[step.where]
    return output


def backward(grad_output: Tensor, grad_h_n: Tensor | None, output: Tensor, w_hh: Tensor, hidden_bits: Tensor | None,
             recurrent_bits: Tensor | None, hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh",
             mask_scope: str = "step", reverse: bool = False, tf32: bool = False,
             batch_sizes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """grad_a like output, the gradient of what goes into the activation, and grad_h0 (B, H)."""
    H = output.shape[-1]
    grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
    steps = _steps(output, batch_sizes, mask_scope, reverse)
    grad_a = torch.empty_like(output, memory_format=torch.contiguous_format)
    g, y, d = grad_output.contiguous().view(-1, H), output.contiguous().view(-1, H), grad_a.view(-1, H)
    grad_h0, state = (output.new_empty(max(s.rows for s in steps), H) for _ in range(2))
    hidden_scale = 1.0 if hidden_bits is None else hidden_scale
    scales = hidden_scale, 1.0 / hidden_scale if hidden_scale else 0.0, recurrent_scale

    following = _NONE
    for step in [*steps[::-1], _NONE]:
        tensors = (g[step.where], grad_h_n, y[step.where], hidden_bits, recurrent_bits, state, d[step.where], grad_h0)
        _launch(backward_kernel, tensors, step, following, scales, nonlinearity)
        if step.rows:
            torch.mm(d[step.where], w_hh, out=state[:step.rows])
        following = step
    return grad_a, grad_h0


class _Step:
    """Where a step's rows are in the data, and the row of the mask that is its row 0."""

    def __init__(self, start: int, rows: int, mask_row: int) -> None:
        self.where, self.rows, self.mask_row = slice(start, start + rows), rows, mask_row


_NONE = _Step(0, 0, 0)


def _steps(data: Tensor, batch_sizes: Sequence[int] | None, mask_scope: str, reverse: bool) -> list[_Step]:
    """The steps in the order in which forward takes them."""
    sizes = [data.shape[1]] * data.shape[0] if batch_sizes is None else list(batch_sizes)
    steps, start = [], 0
    for t, rows in enumerate(sizes):
        steps.append(_Step(start, rows, t * sizes[0] if mask_scope == "step" else 0))
        start += rows
    return steps[::-1] if reverse else steps


def _launch(kernel, tensors: tuple, step: _Step, following: _Step, scales: tuple, nonlinearity: str) -> None:
    H = tensors[0].shape[-1]
    rows, columns = max(step.rows, following.rows), min(triton.next_power_of_2(H), 256)
    ROWS = TILE // columns
    kernel[triton.cdiv(rows, ROWS), triton.cdiv(H, columns)](
        *tensors, step.rows, following.rows, step.mask_row, following.mask_row, *scales, H,
        NONLINEARITY=nonlinearity, ROWS=ROWS, COLUMNS=columns)
