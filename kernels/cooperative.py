"""The whole sequence in one cooperative launch, for a W_hh that one multiprocessor cannot hold.

    forward, backward       launchers
    plan                    tile sizes and grid, or the reason why a shape cannot run
    compile_cases           the kernels at their real tile sizes, to be compiled without a device

A program owns a slice of the hidden columns, whose part of W_hh stays in shared memory for all steps, and every groups-th
tile of 16 batch rows. A step: load the input's part and the bits, wait until all slices of this group have written the step
before, read that h (16, H) from the second-level cache, multiply, activate, mask, write 16 columns wide, arrive. Masks are
applied where a value is made, in the slice's own columns; backward exchanges grad_a and sums W_hh's other direction.
The gradient of W_hh is one library product after backward: in the loop it would cost more than the recurrence.

Launches: this one and the zeroing of the counters, whatever T. A counter only grows and lives for one launch, so that
nothing is left over for the next, nor for the replay of a CUDA graph. It counts in 64 bits.

With S = ceil(H / slice), e bytes an element, per step and batch tile of 16 rows:

    device memory   h written and the input's part read once: 2 * 16*H*e; bits 16*H/8. Backward: grad_output, output, grad_a.
                    W_hh: once a launch, H*H*e for each group.
    second level    S readers of h: S * 16*H*e
    operations      2 * 16*H*H on tensor cores, in exact fp32 as three products of tf32, and about 25 an element beside
    on chip         slice*H*e of W_hh, twice in exact fp32, and 16*chunk*e of h: 48 KB at H = 512, 96 KB at H = 1024 (bf16)
    PTX a step      about 340 instructions at H = 512, 490 at H = 1024 (bf16, slices of 32, hidden mask; COSTS.md)

Bound a step, B = 16, bf16: 1000 shared-memory cycles at H = 512 and 1900 at 1024: 0.7 and 1.3 us on an A100 (1.41 GHz),
0.6 and 1.1 us on an H100 (1.75 GHz), and before it one trip each through the second-level cache of the store, the
arrival, the wait and the load of h: 2 to 3 us on both. Those latencies limit it, not bandwidth: at B = 16, H = 1024 a
step moves 66 KB of device memory, 0.04 us. These are estimates from counts; none was measured on a device.

AMD: Triton launches cooperatively on HIP where the device's `cooperativeLaunch` says so, and refuses elsewhere; gfx942 compiles
without spills, W_hh then partly in registers. Untested on a device.
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
from .sequence import INTERPRETED, dense, device_properties, multiply

# ---------------------------------------------------------------- value functions


@triton.jit
def arrive(arrived):
    """Say that this program has stored what the others wait for."""
    tl.debug_barrier()  # all threads have stored before one of them releases
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")


@triton.jit
def meet(arrived, everyone):
    """Wait until the counter says that everyone has arrived: what they stored is then visible here."""
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < everyone:
        pass


@triton.jit
def kept(bits, first, real, H: tl.constexpr, SLICE: tl.constexpr):
    """Booleans of shape (rows, SLICE): this program's columns of the rows from `first` (int64) of a packed mask
    (rows, ceil(H/32)). False where a row is not real."""
    ROWS: tl.constexpr = real.shape[0]
    STRIDE: tl.constexpr = (H + 31) // 32 * 4
    byte = tl.program_id(0) * (SLICE // 8) + tl.arange(0, SLICE // 8)[None, :]
    start = bits.to(tl.pointer_type(tl.int8)) + first * STRIDE
    eight = tl.load(start + tl.arange(0, ROWS)[:, None] * STRIDE + byte, mask=real[:, None] & (byte * 8 < H), other=0)
    return tl.reshape((eight[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1, [ROWS, SLICE]) != 0


@triton.jit
def weight_slice(w_hh, column, H: tl.constexpr, CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The columns given of W_hh.T (of W_hh if TRANSPOSED), as a tuple of (CHUNK, columns)."""
    chunks = ()
    for start in tl.static_range(0, H, CHUNK):
        k = start + tl.arange(0, CHUNK)
        at = k[:, None] * H + column[None, :] if TRANSPOSED else column[None, :] * H + k[:, None]
        chunks += (tl.load(w_hh + at, mask=(k < H)[:, None] & (column < H)[None, :], other=0.0),)
    return chunks


@triton.jit
def product(source, w, real, H: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """Rows at source, (rows, H), times the weight slice. Others wrote them: .cg reads from the second-level cache."""
    ROWS: tl.constexpr = real.shape[0]
    total = tl.zeros([ROWS, w[0].shape[1]], tl.float32)
    for i in tl.static_range(len(w)):
        k = i * CHUNK + tl.arange(0, CHUNK)
        at = tl.arange(0, ROWS)[:, None] * H + k[None, :]
        h = tl.load(source + at, mask=real[:, None] & (k < H)[None, :], other=0.0, cache_modifier=".cg")
        total = multiply(h, w[i], total, PRECISION)
    return total


# ---------------------------------------------------------------- kernels

RUNTIME = ["T", "B", "tiles", "begin", "end", "hidden_scale", "recurrent_scale"]


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(xw, h0, w_hh, hidden_bits, recurrent_bits, output, exchange, arrived,
                   T: tl.int64, B: tl.int64, tiles: tl.int64, begin: tl.int64, end: tl.int64,
                   hidden_scale, recurrent_scale, NONLINEARITY: tl.constexpr, PER_STEP: tl.constexpr,
                   REVERSE: tl.constexpr, PRECISION: tl.constexpr, H: tl.constexpr, SLICE: tl.constexpr,
                   ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Phases begin ... end-1: phase 0 masks h0 for the first product, phase p > 0 is step p - 1.

    xw, output: (T, B, H). h0: (B, H). w_hh: (H, H). hidden_bits, recurrent_bits: (T*B or B, ceil(H/32)) or None.
    exchange: (2, B, H), r * h of this step and of the next; None without recurrent_bits, where the output serves.
    arrived: (groups, 16), zeroed. grid: (slices of the columns, groups of batch tiles).
    """
    DTYPE: tl.constexpr = output.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, ROWS), tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    at = row[:, None] * H + column[None, :]
    w = weight_slice(w_hh, column, H, CHUNK, False)
    arrived += group * 16

    if recurrent_bits is not None and begin == 0:
        t = T - 1 if REVERSE else begin
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < H)[None, :]
            keep = kept(recurrent_bits, t * B + b if PER_STEP else b, real, H, SLICE)
            h = tl.load(h0 + b * H + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(exchange + b * H + at, tl.where(keep, h * recurrent_scale, 0.0).to(DTYPE), mask=inside)
        arrive(arrived)

    for phase in range(tl.maximum(begin, 1), end):
        t = T - phase if REVERSE else phase - 1
        after = t - 1 if REVERSE else t + 1
        if recurrent_bits is not None:
            source = exchange + (phase - 1) % 2 * B * H
        else:
            source = tl.where(phase == 1, h0, output + (2 * t - after) * B * H)
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < H)[None, :]
            start = (t * B + b) * H
            a = tl.load(xw + start + at, mask=inside, other=0.0).to(tl.float32)
            if hidden_bits is not None:
                keep = kept(hidden_bits, t * B + b if PER_STEP else b, real, H, SLICE)
            if tile == group:  # what no other program writes is loaded before the wait
                meet(arrived, (phase - begin) * tl.num_programs(0))
            h = activate(a + product(source + b * H, w, real, H, CHUNK, PRECISION), NONLINEARITY, DTYPE)
            if hidden_bits is not None:
                h = tl.where(keep, h * hidden_scale, 0.0)
            h = h.to(DTYPE)
            tl.store(output + start + at, h, mask=inside)
            if recurrent_bits is not None:
                keep = kept(recurrent_bits, after * B + b if PER_STEP else b, b + row < B * (phase < T), H, SLICE)
                h = tl.where(keep, h.to(tl.float32) * recurrent_scale, 0.0)
                tl.store(exchange + (phase % 2 * B + b) * H + at, h.to(DTYPE), mask=inside)
        arrive(arrived)


@triton.jit(do_not_specialize=RUNTIME + ["inverse_scale"])
def backward_kernel(grad_output, grad_h_n, output, w_hh, hidden_bits, recurrent_bits, grad_a, grad_h0, arrived,
                    T: tl.int64, B: tl.int64, tiles: tl.int64, begin: tl.int64, end: tl.int64,
                    hidden_scale, inverse_scale, recurrent_scale, NONLINEARITY: tl.constexpr, PER_STEP: tl.constexpr,
                    REVERSE: tl.constexpr, PRECISION: tl.constexpr, H: tl.constexpr, SLICE: tl.constexpr,
                    ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Phases begin ... end-1: phase p < T is the step that forward took p steps before its last, phase T makes grad_h0.

    grad_output, output, grad_a: (T, B, H). grad_h_n (or None), grad_h0: (B, H). The rest as in forward_kernel.
    """
    DTYPE: tl.constexpr = grad_a.dtype.element_ty
    T, B = tl.cast(T, tl.int64), tl.cast(B, tl.int64)  # the interpreter does not read annotations
    group, groups = tl.program_id(1), tl.num_programs(1)
    row, column = tl.arange(0, ROWS), tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    at = row[:, None] * H + column[None, :]
    w = weight_slice(w_hh, column, H, CHUNK, True)
    arrived += group * 16

    if begin == 0:
        t = begin if REVERSE else T - 1
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < H)[None, :]
            start = (t * B + b) * H
            d = tl.load(grad_output + start + at, mask=inside, other=0.0).to(tl.float32)
            if grad_h_n is not None:
                d += tl.load(grad_h_n + b * H + at, mask=inside, other=0.0).to(tl.float32)
            y = tl.load(output + start + at, mask=inside, other=0.0).to(tl.float32)
            d = through(d, y, hidden_scale, inverse_scale, NONLINEARITY)
            if hidden_bits is not None and NONLINEARITY != "relu":  # a dropped unit is 0, which relu does not pass
                d = tl.where(kept(hidden_bits, t * B + b if PER_STEP else b, real, H, SLICE), d, 0.0)
            tl.store(grad_a + start + at, d.to(DTYPE), mask=inside)
        arrive(arrived)

    for phase in range(tl.maximum(begin, 1), end):
        t = phase if REVERSE else T - 1 - phase
        after = t - 1 if REVERSE else t + 1
        for tile in range(group, tiles, groups):
            b = tile * ROWS
            real = b + row < B
            inside = real[:, None] & (column < H)[None, :]
            start = (t * B + b) * H
            now = b + row < B * (phase < T)  # no rows in phase T
            g = tl.load(grad_output + start + at, mask=now[:, None] & inside, other=0.0).to(tl.float32)
            y = tl.load(output + start + at, mask=now[:, None] & inside, other=0.0).to(tl.float32)
            if hidden_bits is not None and NONLINEARITY != "relu":
                keep = kept(hidden_bits, t * B + b if PER_STEP else b, now, H, SLICE)
            if recurrent_bits is not None:
                keep_h = kept(recurrent_bits, after * B + b if PER_STEP else b, real, H, SLICE)
            if tile == group:
                meet(arrived, (phase - begin) * tl.num_programs(0))
            dh = product(grad_a + (after * B + b) * H, w, real, H, CHUNK, PRECISION)
            if recurrent_bits is not None:
                dh = tl.where(keep_h, dh * recurrent_scale, 0.0)
            d = through(g + dh, y, hidden_scale, inverse_scale, NONLINEARITY)
            if hidden_bits is not None and NONLINEARITY != "relu":
                d = tl.where(keep, d, 0.0)
            destination = tl.where(phase < T, grad_a + start, grad_h0 + b * H)
            tl.store(destination + at, tl.where(phase < T, d, dh).to(DTYPE), mask=inside)
        arrive(arrived)


# ---------------------------------------------------------------- launchers


def forward(xw: Tensor, h0: Tensor, w_hh: Tensor, hidden_bits: Tensor | None, recurrent_bits: Tensor | None,
            hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh", mask_scope: str = "step",
            reverse: bool = False, tf32: bool = False) -> Tensor:
    """output (T, B, H) from xw (T, B, H), the input's part with both biases, h0 (B, H) and w_hh (H, H).

    hidden_bits, recurrent_bits: packed masks, int32 (T*B or B, ceil(H/32)), or None.
    """
    T, B, H = xw.shape
    output = torch.empty_like(xw, memory_format=torch.contiguous_format)
    exchange = None if recurrent_bits is None else xw.new_empty(2, B, H)
    tensors = (dense(xw), dense(h0), dense(w_hh), hidden_bits, recurrent_bits, output, exchange)
    _launch(forward_kernel, tensors, range(int(recurrent_bits is None), T + 1), (hidden_scale, recurrent_scale),
            nonlinearity, mask_scope, reverse, tf32)
    return output


def backward(grad_output: Tensor, grad_h_n: Tensor | None, output: Tensor, w_hh: Tensor, hidden_bits: Tensor | None,
             recurrent_bits: Tensor | None, hidden_scale: float, recurrent_scale: float, *, nonlinearity: str = "tanh",
             mask_scope: str = "step", reverse: bool = False, tf32: bool = False) -> tuple[Tensor, Tensor]:
    """grad_a (T, B, H), the gradient of what goes into the activation, and grad_h0 (B, H)."""
    T, B, H = output.shape
    grad_a = torch.empty_like(output, memory_format=torch.contiguous_format)
    grad_h0 = output.new_empty(B, H)
    tensors = (dense(grad_output), dense(grad_h_n), dense(output), dense(w_hh), hidden_bits, recurrent_bits,
               grad_a, grad_h0)
    scales = (*sequence.backward_scales(hidden_bits, hidden_scale), recurrent_scale)
    _launch(backward_kernel, tensors, range(T + 1), scales, nonlinearity, mask_scope, reverse, tf32)
    return grad_a, grad_h0


def _launch(kernel: Any, tensors: tuple, phases: range, scales: tuple, nonlinearity: str, mask_scope: str,
            reverse: bool, tf32: bool) -> None:
    """One launch for all phases. Triton's interpreter runs program after program, so there each phase is a launch."""
    (T, B, H), dtype = tensors[0].shape, tensors[0].dtype
    p = plan(H, B, dtype, device_properties(), tf32)
    sequence.check("cooperative", T, B, p.reason)
    arrived = torch.zeros(p.groups, 16, dtype=torch.int64, device=tensors[0].device)  # a counter a sector pair
    ranges = [(i, i + 1) for i in phases] if INTERPRETED else [(phases.start, phases.stop)]
    for begin, end in ranges:
        kernel[p.slices, p.groups](
            *tensors, arrived, T, B, triton.cdiv(B, p.rows), begin, end, *scales, NONLINEARITY=nonlinearity,
            PER_STEP=mask_scope == "step", REVERSE=reverse, H=H,
            SLICE=p.slice, ROWS=p.rows, CHUNK=p.chunk, PRECISION=sequence.precision(dtype, tf32, sequence.backend()),
            num_warps=p.warps, num_stages=STAGES, launch_cooperative_grid=True)


# ---------------------------------------------------------------- choice of tiles

STAGES = 1  # Triton's pipeliner would load the next tile's h before its programs have met


class Plan(NamedTuple):
    slice: int  # columns a program owns
    rows: int  # rows of a batch tile
    chunk: int  # rows of W_hh.T a product takes at a time
    warps: int
    slices: int  # grid[0]; these meet at every step
    groups: int  # grid[1]; a group takes every groups-th batch tile
    shared: int  # on-chip bytes a program needs
    reason: str  # why it cannot run, or ""


def plan(H: int, B: int, dtype: torch.dtype, properties: Mapping[str, int], tf32: bool = False) -> Plan:
    """Tiles and grid for a device with these `multiprocessor_count` and `max_shared_mem`.

    Every program must be resident at once, and one fills a multiprocessor. Of the slices that fit, the one with which a
    program takes the fewest batch tiles a step; among equals the narrowest, since more multiprocessors then share W_hh.
    """
    rows, tiles = 16, triton.cdiv(B, 16)
    units, limit = properties["multiprocessor_count"], properties["max_shared_mem"]
    best, reason = None, ""
    copies = sequence.halves(dtype, tf32, properties)
    for width in (32, 16) if dtype == torch.float32 else (32, 64, 16):
        largest = 1024 if dtype != torch.float32 else 4 * width // copies  # with more, registers spill
        slices, chunk = triton.cdiv(H, width), max(16, min(triton.next_power_of_2(H), largest))
        while chunk > 64 and on_chip_bytes(H, width, chunk, dtype, copies) > limit:
            chunk //= 2
        shared = on_chip_bytes(H, width, chunk, dtype, copies)
        if shared > limit:
            reason = reason or f"{width} columns need {shared} bytes of shared memory, a multiprocessor has {limit}"
        elif slices > units:
            reason = f"{slices} programs must be resident at once, the device has {units} multiprocessors"
        else:
            groups = max(1, min(tiles, units // slices))
            if best is None or (width > best.slice and triton.cdiv(tiles, groups) < triton.cdiv(tiles, best.groups)):
                best = Plan(width, rows, chunk, 4, slices, groups, shared, "")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        best, reason = None, f"{dtype} is none of float32, float16, bfloat16"
    return best or Plan(0, 0, 0, 0, 0, 0, 0, reason)


def on_chip_bytes(H: int, width: int, chunk: int, dtype: torch.dtype, copies: int) -> int:
    """The slice of W_hh, padded to whole chunks, and a chunk of a batch tile's h."""
    return (width * triton.cdiv(H, chunk) * chunk * copies + 16 * chunk) * dtype.itemsize


def compile_cases(properties: Mapping[str, int], backend: str) -> Iterator[tuple]:
    """(name, kernel, signature, constexprs, num_warps, num_stages) for what `plan` takes on such a device.

    fp16, which is like bf16, at one size.
    """
    integers = {"arrived": "*i64"} | dict.fromkeys(RUNTIME[:5], "i64")
    for H in (512, 1024, 2048):
        for kind, dtype in sequence.KINDS.items():
            p = plan(H, 16, dtype, properties, kind == "tf32")
            if p.reason or (kind == "fp16" and H != 1024):
                continue
            constexprs = dict(NONLINEARITY="tanh", PER_STEP=True, REVERSE=False, H=H, SLICE=p.slice, ROWS=p.rows,
                              CHUNK=p.chunk, PRECISION=sequence.precision(dtype, kind == "tf32", backend))
            for kernel in (forward_kernel, backward_kernel):
                name = f"cooperative {kernel.__name__.removesuffix('_kernel')} H={H} {kind}"
                yield name, kernel, sequence.signature(kernel, dtype, constexprs, integers), constexprs, p.warps, STAGES
