"""The whole sequence in one launch, W_hh in the registers of one multiprocessor.

    forward, backward       launchers
    plan                    tile sizes and on-chip bytes, or the reason why a shape cannot run
    compile_cases           the kernels at their real tile sizes, to be compiled without a device

A program owns 16 rows of the batch. Per program and step, with e bytes an element (H = 128, bf16 in brackets):

    device memory   forward: x, y and H/8 bytes of bits a row, 32 H e + 2 H [8.4 KB]
                    backward: grad, y, grad_a and bits, 48 H e + 2 H [12.5 KB]
    W_hh            read once a launch, then in registers: H H e bytes [32 KB], H/8 to H/2 registers a thread of 8 warps
    shared memory   h goes through 16 H e bytes [4 KB]: written once, read by every warp; two barriers
    operations      32 H H on the tensor cores [0.5 MFLOP]; fp32 is three products of tf32 unless tf32 will do
    PTX             130 instructions forward, 165 backward; at H = 256 281 and 347, in tf32 337 and 174 (COSTS.md)

The bound of a step, from the data sheets, in cycles of one multiprocessor, H = 128 and 256 in bf16:

                    A100 (2048 flop a cycle)    H100 (4096)     what counts
    tensor cores    256, 1024                   128, 512        H = 256
    device memory   820, 1640 (10 bytes)        590, 1180 (14)  a batch that fills all multiprocessors
    latency         about 450 on either: store h, barrier, load it, a chain of H/16 products, activation, barrier

450 cycles are 0.32 us on an A100 (1.41 GHz) and 0.26 us on an H100 (1.76 GHz).
With B = 64 there are four programs, so the latency limits: the next step's numbers are loaded a step ahead, and a step
has nothing but the product between its barriers. None of this has been timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sequence
from .activation import activate, through
from .sequence import A100 as A100
from .sequence import dense, device_properties, multiply

# ---------------------------------------------------------------- layout
#
# A program owns 16 rows of the batch and, padded to SPANS * WARPS * 16, all columns. A thread of the product's result
# holds 2 rows and 4 columns of each span, so the tile of x, h and every gradient is (4, SPANS, 2, WARPS, 8, 4): element
# (c, s, i, w, r, q) is row 8 i + r, column 16 (WARPS s + w) + 4 q + c. Loaded like that, a thread's 4 columns are one
# access, 4 threads fill a sector, and the way to the product and back only renames registers. W_hh is loaded the same
# way, as the product's right operand.


@triton.jit
def plus(start, few, H: tl.constexpr):
    """start + few, for columns of a row of H. Rows that are not aligned are read one element at a time. "or" then hides
    that the columns are neighbours: the compiler would give them to neighbouring threads, and exchange them later."""
    return start + few if H % 4 == 0 else start | few


@triton.jit
def tile_rows():
    i = tl.arange(0, 2)[None, None, :, None, None, None]
    r = tl.arange(0, 8)[None, None, None, None, :, None]
    return tl.program_id(0).to(tl.int64) * 16 + i * 8 + r


@triton.jit
def tile_columns(H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr):
    c = tl.arange(0, 4)[:, None, None, None, None, None]
    s = tl.arange(0, SPANS)[None, :, None, None, None, None]
    w = tl.arange(0, WARPS)[None, None, None, :, None, None]
    q = tl.arange(0, 4)[None, None, None, None, None, :]
    return plus((s * WARPS + w) * 16 + q * 4, c, H)


@triton.jit
def to_result(x):
    """A tile as the product's accumulator: columns in the order (s, c % 2, w, q, c // 2)."""
    SPANS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    x = tl.permute(tl.reshape(x, (2, 2, SPANS, 2, WARPS, 8, 4)), (3, 5, 2, 1, 4, 6, 0))
    return tl.reshape(x, (16, SPANS * WARPS * 16))


@triton.jit
def from_result(x, SPANS: tl.constexpr):
    WARPS: tl.constexpr = x.shape[1] // (SPANS * 16)
    x = tl.permute(tl.reshape(x, (2, 8, SPANS, 2, WARPS, 4, 2)), (6, 3, 2, 0, 4, 1, 5))
    return tl.reshape(x, (4, SPANS, 2, WARPS, 8, 4))


@triton.jit
def to_left(x):
    """A tile as the product's left operand. A thread of the right one holds pairs of 16-bit numbers, single ones of
    fp32: columns in the order (s, w, c // 2, q, c % 2), or (s, w, c, q)."""
    SPANS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    if x.dtype.primitive_bitwidth == 16:
        x = tl.permute(tl.reshape(x, (2, 2, SPANS, 2, WARPS, 8, 4)), (3, 5, 2, 4, 0, 6, 1))
    else:
        x = tl.permute(x, (2, 4, 1, 3, 0, 5))
    return tl.reshape(x, (16, SPANS * WARPS * 16))


@triton.jit
def load_right(w_hh, H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The right operand: W_hh.T, or W_hh if TRANSPOSED. Rows (k) as in to_left, columns (n) as in to_result."""
    GROUPS: tl.constexpr = SPANS * WARPS
    c = tl.arange(0, 4)[:, None, None, None, None, None, None]
    group = tl.arange(0, GROUPS)[None, :, None, None, None, None, None]
    j = tl.arange(0, 2)[None, None, :, None, None, None, None]
    s = tl.arange(0, SPANS)[None, None, None, :, None, None, None]
    w = tl.arange(0, WARPS)[None, None, None, None, :, None, None]
    g = tl.arange(0, 8)[None, None, None, None, None, :, None]
    q = tl.arange(0, 4)[None, None, None, None, None, None, :]
    k, n = plus(group * 16 + q * 4, c, H), plus((s * WARPS + w) * 16 + g * 2, j, H)
    w_hh += k * H + n if TRANSPOSED else n * H + k
    x = tl.load(w_hh, mask=(n < H) & (k < H), other=0.0) if H < GROUPS * 16 else tl.load(w_hh)
    if x.dtype.primitive_bitwidth == 16:
        x = tl.permute(tl.reshape(x, (2, 2, GROUPS, 2, SPANS, WARPS, 8, 4)), (2, 0, 7, 1, 4, 3, 5, 6))
    else:
        x = tl.permute(x, (1, 0, 6, 3, 2, 4, 5))
    return tl.reshape(x, (GROUPS * 16, GROUPS * 16))


# ---------------------------------------------------------------- value functions


@triton.jit
def load(pointers, there, H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr):
    """A tile, 0 where `there` denies its rows and in the columns past H."""
    padded: tl.constexpr = H < SPANS * WARPS * 16
    return tl.load(pointers, mask=there & (tile_columns(H, SPANS, WARPS) < H) if padded else there, other=0.0)


@triton.jit
def word_of(row, H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr):
    """Where in a packed mask a tile's columns are: (1, SPANS, 2, WARPS, 8, 4), one word a thread, row and span."""
    WORDS: tl.constexpr = (H + 31) // 32
    s = tl.arange(0, SPANS)[None, :, None, None, None, None]
    w = tl.arange(0, WARPS)[None, None, None, :, None, None]
    word = row * WORDS + tl.minimum((s * WARPS + w) // 2, WORDS - 1)
    return tl.broadcast_to(word, (1, SPANS, 2, WARPS, 8, 4))


@triton.jit
def drop(x, words):
    """x where the mask keeps it, 0 elsewhere, NaN or not."""
    c = tl.arange(0, 4)[:, None, None, None, None, None]
    w = tl.arange(0, x.shape[3])[None, None, None, :, None, None]
    q = tl.arange(0, 4)[None, None, None, None, None, :]
    return tl.where(words >> (w % 2 * 16 + q * 4) >> c & 1 != 0, x, 0.0)


@triton.jit
def clear_padding(x, H: tl.constexpr):
    """0 in the columns past H, where an infinite or NaN h has met the zeros of W_hh."""
    SPANS: tl.constexpr = x.shape[1]
    WARPS: tl.constexpr = x.shape[3]
    return tl.where(tile_columns(H, SPANS, WARPS) < H, x, 0.0) if H < SPANS * WARPS * 16 else x


@triton.jit
def activate_quickly(x, NONLINEARITY: tl.constexpr, DTYPE: tl.constexpr, TANH: tl.constexpr):
    """TANH "hardware": one instruction, relative error 2**-11 everywhere; rounding to bf16 costs up to 2**-8."""
    if NONLINEARITY == "tanh" and TANH == "hardware":
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)
    else:
        return activate(x, NONLINEARITY, DTYPE)


# ---------------------------------------------------------------- kernels

RUNTIME = ["T", "B", "x_step", "x_row", "g_step", "g_row"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(xw, h0, w_hh, hidden_bits, recurrent_bits, output, T, B, x_step, x_row,
                   hidden_scale, recurrent_scale,
                   NONLINEARITY: tl.constexpr, PER_STEP: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
                   TANH: tl.constexpr, H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr):
    """xw: (T, B, H), a step x_step rows of H elements after the one before, a row x_row. output: (T, B, H). h0: (B, H).
    w_hh: (H, H). hidden_bits, recurrent_bits: (T*B or B, ceil(H/32)) or None.

    The numbers of the next step are loaded a step ahead.
    """
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = output.dtype.element_ty
    first, direction = (T - 1, -1) if REVERSE else (0, 1)
    row, column = tile_rows(), tile_columns(H, SPANS, WARPS)
    mine = (row < B) & (column < H)
    real = row < B
    start = tl.cast(first, tl.int64)
    mask_start = start * B if PER_STEP else 0
    mask_step = tl.cast(B, tl.int64) * (direction * WORDS)
    y_step = tl.cast(B, tl.int64) * (direction * H)
    x_step = tl.cast(x_step, tl.int64) * H

    w = load_right(w_hh, H, SPANS, WARPS, False)
    h = load(h0 + row * H + column, real, H, SPANS, WARPS)
    xw += start * x_step + row * x_row * H + column
    x = load(xw, real, H, SPANS, WARPS)
    output += (start * B + row) * H + column
    word = word_of(mask_start + row, H, SPANS, WARPS)
    if hidden_bits is not None:
        kept = tl.load(hidden_bits + word, mask=real, other=0)
    if recurrent_bits is not None:
        entering = tl.load(recurrent_bits + word, mask=real, other=0)

    for step in range(T):
        if recurrent_bits is not None:
            h = drop(h.to(tl.float32) * recurrent_scale, entering).to(DTYPE)
        a = from_result(multiply(to_left(h), w, to_result(x.to(tl.float32)), PRECISION), SPANS)
        ahead = row < tl.where(step + 1 < T, B, 0)
        xw += x_step * direction
        x = load(xw, ahead, H, SPANS, WARPS)
        a = clear_padding(a, H)
        if hidden_bits is not None:
            a = drop(a, kept)                               # f(0) = 0
        word += mask_step
        if PER_STEP and hidden_bits is not None:
            kept = tl.load(hidden_bits + word, mask=ahead, other=0)
        if PER_STEP and recurrent_bits is not None:
            entering = tl.load(recurrent_bits + word, mask=ahead, other=0)
        h = activate_quickly(a, NONLINEARITY, DTYPE, TANH)
        if hidden_bits is not None:
            h = h * hidden_scale
        h = h.to(DTYPE)
        tl.store(output, h, mask=mine)
        output += y_step


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(grad_output, grad_h_n, output, w_hh, hidden_bits, recurrent_bits, grad_a, grad_h0,
                    T, B, g_step, g_row, hidden_scale, inverse_scale, recurrent_scale,
                    NONLINEARITY: tl.constexpr, PER_STEP: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
                    H: tl.constexpr, SPANS: tl.constexpr, WARPS: tl.constexpr):
    """From the step that forward took last to its first. grad_output: (T, B, H), a step g_step rows of H elements after
    the one before, a row g_row. output, grad_a: (T, B, H). grad_h_n (or None), grad_h0: (B, H). The rest as in
    forward_kernel.

    Dropped units have gradient 0, so what is kept decides, never the output's value.
    """
    WORDS: tl.constexpr = (H + 31) // 32
    DTYPE: tl.constexpr = grad_a.dtype.element_ty
    first, direction = (0, 1) if REVERSE else (T - 1, -1)
    row, column = tile_rows(), tile_columns(H, SPANS, WARPS)
    mine = (row < B) & (column < H)
    real = row < B
    start = tl.cast(first, tl.int64)
    mask_start = start * B if PER_STEP else 0
    mask_step = tl.cast(B, tl.int64) * (direction * WORDS)
    y_step = tl.cast(B, tl.int64) * (direction * H)
    g_step = tl.cast(g_step, tl.int64) * H

    w = load_right(w_hh, H, SPANS, WARPS, True)
    grad_output += start * g_step + row * g_row * H + column
    at = (start * B + row) * H + column
    dh = load(grad_output, real, H, SPANS, WARPS).to(tl.float32)
    y = load(output + at, real, H, SPANS, WARPS)
    if grad_h_n is not None:
        dh += load(grad_h_n + row * H + column, real, H, SPANS, WARPS).to(tl.float32)
    word = word_of(mask_start + row, H, SPANS, WARPS)
    if hidden_bits is not None:
        kept = tl.load(hidden_bits + word, mask=real, other=0)
    if recurrent_bits is not None:
        entering = tl.load(recurrent_bits + word, mask=real, other=0)

    for step in range(T):
        ahead = row < tl.where(step + 1 < T, B, 0)
        grad_output += g_step * direction
        g = load(grad_output, ahead, H, SPANS, WARPS)
        da = clear_padding(through(dh, y.to(tl.float32), hidden_scale, inverse_scale, NONLINEARITY), H)
        y = load(output + (at + y_step), ahead, H, SPANS, WARPS)
        if hidden_bits is not None:
            da = drop(da, kept)
        word += mask_step
        if PER_STEP and hidden_bits is not None:
            kept = tl.load(hidden_bits + word, mask=ahead, other=0)
        da = da.to(DTYPE)
        tl.store(grad_a + at, da, mask=mine)
        at += y_step
        if recurrent_bits is None:
            dh = from_result(multiply(to_left(da), w, to_result(g.to(tl.float32)), PRECISION), SPANS)
        else:
            dh = from_result(multiply(to_left(da), w, tl.zeros([16, w.shape[1]], tl.float32), PRECISION), SPANS)
            dh = drop(dh * recurrent_scale, entering) + g.to(tl.float32)
            if PER_STEP:
                entering = tl.load(recurrent_bits + word, mask=ahead, other=0)
    tl.store(grad_h0 + row * H + column, dh, mask=mine)


# ---------------------------------------------------------------- launchers


def forward(xw: Tensor, h0: Tensor, w_hh: Tensor, hidden_bits: Tensor | None, recurrent_bits: Tensor | None,
            hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh", mask_scope: str = "step",
            reverse: bool = False, tf32: bool = False) -> Tensor:
    """output (T, B, H) from xw (T, B, H), the input's part with both biases, h0 (B, H) and w_hh (H, H).

    hidden_bits, recurrent_bits: packed masks, int32 (T*B or B, ceil(H/32)), or None.
    """
    output = torch.empty_like(xw, memory_format=torch.contiguous_format)
    xw, step, row = _in_rows(xw)
    tensors = xw, dense(h0), dense(w_hh), hidden_bits, recurrent_bits, output
    scales = hidden_scale, recurrent_scale
    _launch(forward_kernel, tensors, xw, (step, row), scales, nonlinearity, mask_scope, reverse, tf32,
            TANH=_tanh(xw.dtype, sequence.backend()))
    return output


def backward(grad_output: Tensor, grad_h_n: Tensor | None, output: Tensor, w_hh: Tensor, hidden_bits: Tensor | None,
             recurrent_bits: Tensor | None, hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh",
             mask_scope: str = "step", reverse: bool = False, tf32: bool = False) -> tuple[Tensor, Tensor]:
    """grad_a (T, B, H), the gradient of what goes into the activation, and grad_h0 (B, H)."""
    grad_a = torch.empty_like(output, memory_format=torch.contiguous_format)
    grad_h0 = output.new_empty(output.shape[1:])
    grad_output, step, row = _in_rows(grad_output)
    tensors = grad_output, dense(grad_h_n), dense(output), dense(w_hh), hidden_bits, recurrent_bits, grad_a, grad_h0
    scales = (*sequence.backward_scales(hidden_bits, hidden_scale), recurrent_scale)
    _launch(backward_kernel, tensors, output, (step, row), scales, nonlinearity, mask_scope, reverse, tf32)
    return grad_a, grad_h0


def _launch(kernel: Any, tensors: tuple, like: Tensor, strides: tuple, scales: tuple, nonlinearity: str,
            mask_scope: str, reverse: bool, tf32: bool, **constexprs: Any) -> None:
    T, B, H = like.shape
    p = plan(H, B, like.dtype, device_properties())
    sequence.check("resident", T, B, p.reason)
    kernel[(p.programs,)](
        *tensors, T, B, *strides, *scales, NONLINEARITY=nonlinearity, PER_STEP=mask_scope == "step", REVERSE=reverse,
        PRECISION=sequence.precision(like.dtype, tf32, sequence.backend()), H=H, SPANS=p.spans, WARPS=p.warps, **constexprs,
        num_warps=p.warps, num_stages=1)


def _in_rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x (T, B, H), copied if its steps and rows are not whole rows of H apart, and how many rows they are apart."""
    H = x.shape[2]
    if (x.stride(2) != 1 and H > 1) or x.stride(0) % H or x.stride(1) % H or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    return x, x.stride(0) // H, x.stride(1) // H


def _tanh(dtype: torch.dtype, backend: str) -> str:
    return "hardware" if dtype == torch.bfloat16 and backend == "cuda" else "exact"


# ---------------------------------------------------------------- choice of tiles

class Plan(NamedTuple):
    rows: int  # rows of the batch a program owns
    columns: int  # H, padded: 16 * spans * warps
    spans: int
    warps: int
    programs: int
    weight: int  # bytes of W_hh, in registers
    shared: int  # bytes of shared memory, through which h goes from step to step
    reason: str  # why it cannot run, or ""


def plan(H: int, B: int, dtype: torch.dtype, properties: Mapping[str, int]) -> Plan:
    """Tiles for a device with this `max_shared_mem`. Where `warpSize` is 64 (AMD), W_hh passes through it."""
    columns = max(16, triton.next_power_of_2(H))
    warps = min(columns // 16, 8)
    weight = columns * columns * dtype.itemsize
    halves = sequence.halves(dtype, False, properties)
    shared, limit = 16 * columns * dtype.itemsize * halves, properties["max_shared_mem"]
    if properties.get("warpSize", 32) == 64:
        shared = max(shared, weight)
    registers, most = weight * halves // (warps * 32 * 4), 128
    reason = ""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reason = f"{dtype} is none of float32, float16, bfloat16"
    elif registers > most:
        reason = f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread, only {most} leave room for the rest"
    elif shared > limit:
        reason = f"H = {H}, {dtype}, needs {shared} bytes of shared memory, a multiprocessor has {limit}"
    return Plan(16, columns, columns // 16 // warps, warps, triton.cdiv(B, 16), weight, shared, reason)


def compile_cases(properties: Mapping[str, int], backend: str) -> Iterator[tuple]:
    """(name, kernel, signature, constexprs, num_warps, num_stages) for what `plan` takes on such a device.

    At 64 fp16 is like bf16; of the shapes with masked loads the one with the most registers.
    """
    all_sizes = [(H, kind) for H in (64, 128, 256) for kind in sequence.KINDS if (H, kind) != (64, "fp16")]
    for H, kind in [*all_sizes, (100, "fp32")]:
        dtype = sequence.KINDS[kind]
        p = plan(H, 16, dtype, properties)
        if p.reason:
            continue
        constexprs = dict(NONLINEARITY="tanh", PER_STEP=True, REVERSE=False, H=H, SPANS=p.spans, WARPS=p.warps,
                          PRECISION=sequence.precision(dtype, kind == "tf32", backend))
        for kernel in (forward_kernel, backward_kernel):
            own = dict(constexprs, TANH=_tanh(dtype, backend)) if kernel is forward_kernel else constexprs
            name = f"resident {kernel.__name__.removesuffix('_kernel')} H={H} {kind}"
            yield name, kernel, sequence.signature(kernel, dtype, own, dict.fromkeys(RUNTIME, "i32")), own, p.warps, 1
