"""Tiles of the strategies that keep W_hh on chip, and which strategy runs a layer. Can be imported without Triton.

Everything here is a function of shape, dtype and device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .launch import Device

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}  # rows of a cell's weights, in units of H
CELLS = tuple(GATES)
GATED = ("GRU", "LSTM")  # the cells of the kernels whose files are called so
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = 16  # of a batch tile, as the tensor cores take them

# A program takes its batch tiles one after the other. With more than this many waves of them the time goes into products,
# which the library does faster than a program that also has a recurrence to keep.
WAVES = 8
MOST_REGISTERS = 128  # that W_hh may take of a thread; the rest, of 255, is for everything else
GATED_REGISTERS = {80: 144, 86: 144, 89: 144}  # the same of all gates, by capability; code for others takes more besides


REASONS = {  # for each strategy
    "resident": "W_hh stays on one multiprocessor for all steps, in one launch",
    "cooperative": "W_hh stays on chip, spread over the multiprocessors, in one launch",
    "stepwise": "one library product and one pointwise kernel a step",
}
BOTH_DIRECTIONS = ("resident",)  # strategies whose kernels take them at once, where `takes_both_directions`
ON_CHIP = ("resident", "cooperative")  # strategies that keep W_hh there, by a plan, in the order in which they are tried


class Extras(NamedTuple):
    """What a layer has besides, each of which takes registers."""

    kinds: tuple[str, ...] = ()  # inside the recurrence, that have a mask; an expectation has none
    packed: bool = False  # sequences of different lengths
    directions: int = 1  # in one launch

    def __str__(self) -> str:
        words = [kind for kind in self.kinds if kind == "zoneout"]
        words += ["sequences of different lengths"] * self.packed + ["both directions at once"] * (self.directions == 2)
        return ", ".join(words)


PLAIN = Extras()


class ResidentPlan(NamedTuple):
    rows: int  # of the batch, that a program owns
    width: int  # of a row in memory: H, padded to whole vector accesses
    columns: int  # of a tile in registers: 16 * repeats * warps, at least H
    repeats: int  # how often the warps' tiles of 16 columns, side by side, fill the columns
    warps: int
    programs: int
    on_chip: int  # bytes of W_hh and of the batch tile's h
    shared: int  # bytes of shared memory that a program needs
    reason: str  # why it cannot run, or ""


class CooperativePlan(NamedTuple):
    slice: int  # columns that a program owns
    rows: int  # of a batch tile
    width: int  # of a row in memory: H, padded to whole vector accesses
    chunk: int  # rows of W_hh.T that a product takes at a time
    warps: int
    slices: int  # programs of a group, which meet at every step
    groups: int  # a group takes every groups-th batch tile
    shared: int  # bytes of shared memory that a program needs
    reason: str  # why it cannot run, or ""

    @property
    def on_chip(self) -> int:
        return self.shared


@dataclass(frozen=True)
class Choice:
    """A strategy and why it was chosen."""

    strategy: str
    reason: str
    plan: ResidentPlan | CooperativePlan | None  # of a strategy that has one
    rejected: Mapping[str, str]  # the strategies before it, and why not


@lru_cache(1024)
def choose(
    H: int,
    B: int,
    dtype: torch.dtype,
    device: Device,
    *,
    tf32: bool = False,
    cell: str = "RNN_TANH",
    extras: Extras = PLAIN,
) -> Choice:
    """The strategy of a layer of H units and at most B sequences a step on a device.

    It is the same for both directions at once: they are twice the programs of one, for twice the products.
    """
    if cell not in CELLS:
        return Choice("reference", f"no kernel has the cell {cell}: a plain loop", None, {})
    if dtype not in DTYPES:
        return Choice("reference", f"the kernels compute in float32, which is less than {dtype}: a plain loop", None, {})
    if B == 0:
        return Choice("reference", "there is nothing to compute: a plain loop", None, {})
    rejected: dict[str, str] = {}
    for name in ON_CHIP:
        plan = _plan(name, H, B, dtype, device, tf32, cell, extras)
        if plan.reason:
            rejected[name] = plan.reason
        elif (waves := _waves(plan, B, device)) > WAVES:
            rejected[name] = f"B = {B} is {waves} batch tiles for each program in turn, more than {WAVES}"
        else:
            return Choice(name, REASONS[name], plan, rejected)
    return Choice("stepwise", REASONS["stepwise"], None, rejected)


@lru_cache(1024)
def refusal(
    strategy: str,
    H: int,
    B: int,
    dtype: torch.dtype,
    device: Device,
    *,
    tf32: bool = False,
    cell: str = "RNN_TANH",
    extras: Extras = PLAIN,
) -> str:
    """Why a strategy cannot run a layer, or ""."""
    if cell not in CELLS:
        return f"no kernel has the cell {cell}"
    if B == 0:
        return "there is nothing to compute"
    if strategy == "stepwise":
        return without_kernel(dtype)
    return _plan(strategy, H, B, dtype, device, tf32, cell, extras).reason


def _plan(
    strategy: str, H: int, B: int, dtype: torch.dtype, device: Device, tf32: bool, cell: str, extras: Extras
) -> ResidentPlan | CooperativePlan:
    """That of a strategy in ON_CHIP for a cell."""
    if cell in GATED:
        gated = plan_gated_resident if strategy == "resident" else plan_gated_cooperative
        return gated(H, B, dtype, device, cell=cell, tf32=tf32, extras=extras)
    plain = plan_resident if strategy == "resident" else plan_cooperative
    return plain(H, B, dtype, device, tf32=tf32, extras=extras)


def _waves(plan: ResidentPlan | CooperativePlan, B: int, device: Device) -> int:
    """The batch tiles that a program, or a multiprocessor with its programs, takes one after the other."""
    side_by_side = device.num_sms if isinstance(plan, ResidentPlan) else max(1, plan.groups)
    return _ceil_div(_ceil_div(B, plan.rows), side_by_side)


def takes_both_directions(strategy: str, *, cell: str, extras: Extras, **layer: Any) -> bool:
    """Whether a strategy runs both directions of a layer in one launch. `layer`: as in `refusal`."""
    if strategy not in BOTH_DIRECTIONS or cell in GATED:
        return False
    return not refusal(strategy, cell=cell, extras=extras._replace(directions=2), **layer)


def without_kernel(dtype: torch.dtype) -> str:
    """Why no kernel computes in this dtype, or ""."""
    return "" if dtype in DTYPES else f"{dtype} is none of float32, float16, bfloat16"


@lru_cache(1024)
def plan_resident(
    H: int, B: int, dtype: torch.dtype, device: Device, *, tf32: bool = False, extras: Extras = PLAIN
) -> ResidentPlan:
    """A program owns 16 rows of the batch and all columns; W_hh is in its registers."""
    columns = max(16, _power_of_2(H))
    warps = min(columns // 16, 8)
    number = dtype.itemsize * _copies(dtype, tf32, device)
    weight, shared = columns * columns * number, ROWS * columns * number
    on_chip = weight + shared
    if device.warp_size == 64:  # AMD: W_hh passes through shared memory on its way to the registers
        shared = max(shared, weight)
    elif device.triton_version < (3, 7):  # keeps W_hh there for all steps; the rest is at most this
        shared = weight + ROWS * columns * dtype.itemsize * 5 // 2
    registers = weight // (warps * 32 * 4)
    reason = _unfit(dtype, device)
    if not reason and registers > MOST_REGISTERS:
        reason = (
            f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread, only {MOST_REGISTERS} leave room for the rest"
        )
    extras = extras._replace(kinds=tuple(kind for kind in extras.kinds if kind == "zoneout"))  # other masks take no room
    # Backward would spill; in 16 bit only where columns are padded, and packed data still fits.
    crowding = extras if dtype == torch.float32 else extras._replace(packed=False) if _width(H) < columns else PLAIN
    if not reason and registers == MOST_REGISTERS and crowding != PLAIN:
        reason = f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread: no room for {crowding}"
    if not reason and shared > device.max_shared_mem:
        reason = f"H = {H}, {dtype}, needs {shared} bytes of shared memory, a multiprocessor has {device.max_shared_mem}"
    return ResidentPlan(
        rows=ROWS,
        width=_width(H),
        columns=columns,
        repeats=columns // 16 // warps,
        warps=warps,
        programs=_ceil_div(B, ROWS),
        on_chip=on_chip,
        shared=shared,
        reason=reason,
    )


@lru_cache(1024)
def plan_gated_resident(
    H: int, B: int, dtype: torch.dtype, device: Device, *, cell: str, tf32: bool = False, extras: Extras = PLAIN
) -> ResidentPlan:
    """A program owns 16 rows of the batch and all columns of all gates; W_hh is in its registers."""
    columns = max(16, _power_of_2(H))
    warps = min(columns // 16, 8)
    number = dtype.itemsize * _copies(dtype, tf32, device)
    weight, shared = GATES[cell] * columns * columns * number, ROWS * columns * number
    on_chip = weight + shared
    if device.warp_size == 64:  # AMD: W_hh passes through shared memory on its way to the registers, one gate after the other
        shared = max(shared, weight // GATES[cell])
    elif device.triton_version < (3, 7):  # keeps W_hh there for all steps; the rest is at most this
        shared = weight + ROWS * columns * dtype.itemsize * 5 // 2
    registers = weight // (warps * 32 * 4)
    reason = _unfit(dtype, device)
    if not reason and registers > MOST_REGISTERS:
        reason = (
            f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread, only {MOST_REGISTERS} leave room for the rest"
        )
    if not reason and device.warp_size == 64 and warps == 8:
        reason = f"W_hh of H = {H}, {dtype}, leaves too few of the 256 registers that a thread of 8 wavefronts has"
    elif not reason and device.warp_size == 32:
        if crowding := _crowding(H, dtype, registers, _copies(dtype, tf32, device), extras):
            reason = f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread: no room for {crowding}"
    if not reason and shared > device.max_shared_mem:
        reason = f"H = {H}, {dtype}, needs {shared} bytes of shared memory, a multiprocessor has {device.max_shared_mem}"
    return ResidentPlan(
        rows=ROWS,
        width=_width(H),
        columns=columns,
        repeats=columns // 16 // warps,
        warps=warps,
        programs=_ceil_div(B, ROWS),
        on_chip=on_chip,
        shared=shared,
        reason=reason,
    )


def _crowding(H: int, dtype: torch.dtype, registers: int, copies: int, extras: Extras) -> str:
    """What would spill on NVIDIA's GPUs beside the weight of a GRU or an LSTM of so many registers, or ""."""
    zoneouts = " and ".join(kind for kind in extras.kinds if "zoneout" in kind)
    if registers == MOST_REGISTERS:
        if copies == 2:
            return "the operands of exact fp32"
        if zoneouts and dtype == torch.float32:
            return zoneouts
        padded = _width(H) < max(16, _power_of_2(H))
        most = 1 if padded or (extras.packed and dtype == torch.float32) else 2 if extras.packed else 4
        if len(extras.kinds) > most:
            return f"{len(extras.kinds)} masks" + " of sequences of different lengths" * extras.packed
    elif registers >= 96 and copies == 2 and extras.packed:
        return zoneouts
    return ""


@lru_cache(1024)
def plan_cooperative(
    H: int, B: int, dtype: torch.dtype, device: Device, *, tf32: bool = False, extras: Extras = PLAIN
) -> CooperativePlan:
    """A program owns a slice of the columns, of W_hh as well, and every groups-th tile of 16 rows of the batch.

    All programs must run at once, and one fills a multiprocessor. Of the slices that fit, the one with which a program takes
    the fewest batch tiles a step; among equals the narrowest, since more multiprocessors then share W_hh.
    """
    if reason := _unfit(dtype, device):
        return CooperativePlan(0, 0, 0, 0, 0, 0, 0, 0, reason)
    tiles, copies = _ceil_div(B, ROWS), _copies(dtype, tf32, device)
    if device.capability in (90, 100) and copies == 2 and H > 512 and "zoneout" in extras.kinds:  # forward would spill
        reason = f"exact fp32 of H = {H} with zoneout has too few registers on sm_{device.capability}"
        return CooperativePlan(0, 0, 0, 0, 0, 0, 0, 0, reason)
    best = None
    for slice in (32, 16) if dtype == torch.float32 else (32, 64, 16):
        chunk, shared = _chunk(H, slice, dtype, copies, device.max_shared_mem)
        slices = _ceil_div(H, slice)
        if shared > device.max_shared_mem:
            reason = (
                reason or f"{slice} columns need {shared} bytes of shared memory, a multiprocessor has {device.max_shared_mem}"
            )
        elif slices > device.num_sms:
            reason = f"{slices} programs must be resident at once, the device has {device.num_sms} multiprocessors"
        else:
            groups = max(1, min(tiles, device.num_sms // slices))
            if best is None or (slice > best.slice and _ceil_div(tiles, groups) < _ceil_div(tiles, best.groups)):
                best = CooperativePlan(slice, ROWS, _width(H), chunk, 4, slices, groups, shared, "")
    return best or CooperativePlan(0, 0, 0, 0, 0, 0, 0, 0, reason)


@lru_cache(1024)
def plan_gated_cooperative(
    H: int, B: int, dtype: torch.dtype, device: Device, *, cell: str, tf32: bool = False, extras: Extras = PLAIN
) -> CooperativePlan:
    """As `plan_cooperative`, of all gates of a slice's columns: 16, or 8 where 16 do not fit. W_hh is in registers."""
    reason = _unfit(dtype, device)
    copies = _copies(dtype, tf32, device)
    warps = 8 * 32 // device.warp_size
    most = GATED_REGISTERS.get(device.capability, MOST_REGISTERS)
    crowded = extras.packed or copies == 2 or "zoneout" in extras.kinds
    for slice in () if reason else (16, 8) if device.warp_size == 32 else (16,):  # AMD's tensor cores take 16
        slices = _ceil_div(H, slice)
        chunk = _gated_chunk(H, warps, dtype)
        weight = 4 * slice * _ceil_div(H, chunk) * chunk * copies * dtype.itemsize
        registers = weight // (warps * device.warp_size * 4)
        shared = warps * ROWS * 4 * slice * 4
        if registers > most:
            reason = f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread, only {most} leave room for the rest"
        elif registers > 112 and cell == "LSTM" and device.capability >= 90 and crowded:
            reason = f"W_hh of H = {H}, {dtype}, takes {registers} registers a thread: backward would spill"
        elif slices > device.num_sms:
            reason = f"{slices} programs must be resident at once, the device has {device.num_sms} multiprocessors"
        else:
            groups = max(1, min(_ceil_div(B, ROWS), device.num_sms // slices))
            return CooperativePlan(slice, ROWS, _width(H), chunk, warps, slices, groups, shared, "")
    return CooperativePlan(0, 0, 0, 0, 0, 0, 0, 0, reason)


def _gated_chunk(H: int, warps: int, dtype: torch.dtype) -> int:
    """The chunk of W_hh.T that pads it least, the largest of several."""
    smallest = 16 * warps  # 16 for each warp, as the tensor cores take them
    largest = 1024 // dtype.itemsize  # 16 registers a thread for the rows' elements
    return min(
        (smallest << n for n in range(3) if smallest << n <= largest), key=lambda chunk: (_ceil_div(H, chunk) * chunk, -chunk)
    )


def _chunk(H: int, slice: int, dtype: torch.dtype, copies: int, limit: int) -> tuple[int, int]:
    """The largest chunk of W_hh.T with which a slice of this width fits, and the bytes of shared memory that it takes:
    the slice, padded to whole chunks, and a chunk of a batch tile's h."""
    largest = 1024 if dtype != torch.float32 else 4 * slice // copies  # with more, registers spill
    chunk = max(16, min(_power_of_2(H), largest))
    while True:
        shared = (slice * _ceil_div(H, chunk) * chunk * copies + ROWS * chunk) * dtype.itemsize
        if shared <= limit or chunk <= 64:
            return chunk, shared
        chunk //= 2


def _unfit(dtype: torch.dtype, device: Device) -> str:
    """Why neither strategy has tensor cores for this, or ""."""
    if why_not := without_kernel(dtype):
        return why_not
    if 0 < device.capability < 80:
        return f"it needs the tensor cores of sm_80 or newer, the device is sm_{device.capability}"
    return ""


def _copies(dtype: torch.dtype, tf32: bool, device: Device) -> int:
    """The numbers on chip for one of W_hh: exact fp32 on NVIDIA's tensor cores keeps each as two of tf32."""
    return 2 if dtype == torch.float32 and not tf32 and device.warp_size == 32 else 1


def _width(H: int) -> int:
    """Elements of a row in memory such that each begins at a vector access; else kernels spill addresses."""
    return _ceil_div(H, 4) * 4


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(n: int) -> int:
    """The smallest that is not less than n."""
    return 1 << (n - 1).bit_length()
