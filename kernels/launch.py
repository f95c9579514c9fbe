"""Masks and device facts as the launchers take them. Can be imported without Triton."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

OLDEST_TRITON = (3, 4)
INSTALL = "pip install 'triton>=3.7.1'"


class MaskBits(NamedTuple):
    """A packed mask: bit c % 32 of word c // 32 is 1 where column c is kept, 0 past the last column.

    Attributes:
        bits: int32 (rows, ceil(H/32)); `resident` takes (directions, rows, ceil(H/32)). As many rows as the data has (T*B or
            N) are a mask per step; B rows are a mask per sequence, the same at each of its steps. No rows are the expectation
            of zoneout.
        scale: 1 / (1 - p), or 0 where everything is dropped. Of zoneout 1, of its expectation the old state's share.
    """

    bits: Tensor
    scale: float


Masks = Mapping[str, MaskBits]  # by kind


class Device(NamedTuple):
    """What the choice of tiles needs to know of a device."""

    num_sms: int  # multiprocessors
    max_shared_mem: int  # bytes of shared memory that a block may have
    warp_size: int = 32
    capability: int = 80  # 80 is sm_80; 0 on AMD
    backend: str = "cuda"  # "cuda", "hip" or "interpreter"
    triton_version: tuple[int, int] = (3, 9)


A100 = Device(num_sms=108, max_shared_mem=166912)


def unavailable() -> str:
    """Why no kernel can run here, and what to install; "" if kernels can run."""
    try:
        import triton
    except ImportError:
        return f"Triton is not installed: {INSTALL}"
    if _version(triton) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than 3.4, the oldest that the kernels run on: {INSTALL}"
    if not triton.knobs.runtime.interpret:
        try:
            _ = triton.runtime.driver.active.get_current_target
        except RuntimeError as error:
            return f"Triton finds no device: {error}"
    return ""


def elsewhere(device: torch.device) -> str:
    """Why kernels cannot run on tensors of this device, or ""; the interpreter takes those of any."""
    import triton

    if triton.knobs.runtime.interpret:
        return ""
    kernels_run_on = triton.runtime.driver.active.get_active_torch_device().type
    return "" if device.type == kernels_run_on else f"it runs on {kernels_run_on}, and the input is on {device}"


def device_of(device: torch.device) -> Device:
    """The facts of a device, which the driver is asked once. While Triton interprets kernels: those of an A100."""
    index = device.index
    if index is None and device.type == "cuda":
        index = torch.cuda.current_device()
    return _facts(index)


@functools.cache
def _facts(index: int | None) -> Device:
    import triton

    if triton.knobs.runtime.interpret:
        return A100._replace(backend="interpreter")
    driver = triton.runtime.driver.active
    with torch.cuda.device(-1 if index is None else index):  # the target is that of the current device; -1 changes none
        target = driver.get_current_target()
        facts = driver.utils.get_device_properties(driver.get_current_device() if index is None else index)
    return Device(
        num_sms=facts["multiprocessor_count"],
        max_shared_mem=facts["max_shared_mem"],
        warp_size=target.warp_size,
        capability=target.arch if target.backend == "cuda" else 0,
        backend=target.backend,
        triton_version=_version(triton),
    )


def _version(triton: Any) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", triton.__version__)[:2]
    return int(major), int(minor)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's CUDA device the current one, on which Triton launches; does nothing for other tensors."""
    return torch.cuda.device_of(tensor)


def allows_tf32() -> bool:
    """Whether PyTorch's settings let fp32 products on CUDA round their operands to tf32."""
    # torch.get_float32_matmul_precision() raises once the setting of PyTorch 2.9 was used
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() != "highest"
    if precision == "none":
        precision = getattr(torch.backends, "fp32_precision", "none")
    return precision == "tf32"


def check_can_run(strategy: str, T: int, B: int, reason: str) -> None:
    """Raises ValueError with the reason, if there is one, or where there is nothing to compute."""
    if reason:
        raise ValueError(f"strategy {strategy!r} cannot run: {reason}")
    if T == 0 or B == 0:
        raise ValueError(f"strategy {strategy!r} cannot run: it needs at least one step and one sequence, got {T} and {B}")


def bits_and_scale(masks: Masks, kind: str) -> tuple[Tensor | None, float]:
    """A mask as kernels take it; without one nothing is dropped."""
    return (dense(masks[kind].bits), masks[kind].scale) if kind in masks else (None, 1.0)


def drawn(masks: Masks) -> tuple[str, ...]:
    """The kinds that have a mask, and are no expectation."""
    return tuple(kind for kind, mask in masks.items() if mask.bits.shape[-2] > 0)


def bits_and_share(masks: Masks, kind: str = "zoneout") -> tuple[Tensor | None, float | None]:
    """Zoneout as kernels take it: its mask, or of an expectation the old state's share."""
    if kind in drawn(masks):
        return dense(masks[kind].bits), None
    return None, masks[kind].scale if kind in masks else None


def inverse(scale: float) -> float:
    """1 / scale; 0 where everything is dropped."""
    return 1.0 / scale if scale else 0.0


def is_per_step(masks: Masks, kind: str, rows: int, B: int, H: int) -> bool:
    """Whether the mask has a row for each row of the data, not for each sequence.

    Raises:
        ValueError: it has neither, or another width.
    """
    if kind not in masks:
        return False
    *_, found, words = masks[kind].bits.shape
    if found not in (rows, B) or words != -(-H // 32):
        expected = rows if rows == B else f"{rows} or {B}"
        raise ValueError(f"a packed mask should be ({expected}, {-(-H // 32)}), got ({found}, {words})")
    return found == rows


def check_zoneout(masks: Masks, rows: int, H: int, kind: str = "zoneout") -> None:
    """ValueError where there is a mask of zoneout that has no row for each row of the data, or another width."""
    if kind in drawn(masks):
        is_per_step(masks, kind, rows, rows, H)


def row_offsets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The first row of each step of packed data, and the row after its last, int64 (T + 1) on the device.

    They are copied once for all launches of the same sizes, and nothing waits for the copy.

    Args:
        sizes: the rows of each step.

    Raises:
        RuntimeError: a CUDA graph is being captured, and no launch before it had these sizes.
    """
    offsets = _row_offsets(sizes, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _OFFSETS_OF_GRAPHS[sizes, device] = offsets  # which are read at each replay, whatever the cache has forgotten
    return offsets


_OFFSETS_OF_GRAPHS: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


@functools.lru_cache(1024)
def _row_offsets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    offsets = torch.from_numpy(np.cumsum((0, *sizes), dtype=np.int64))
    if device.type != "cuda":
        return offsets.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("packed data in a CUDA graph: run it once before the capture, which copies where its steps begin")
    return offsets.pin_memory().to(device, non_blocking=True)


def dense(x: Tensor | None) -> Tensor | None:
    """x contiguous and on a 16-byte boundary, as vector accesses and Triton's cache of compiled kernels need it."""
    if x is None or (x.is_contiguous() and x.data_ptr() % 16 == 0):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def padded(x: Tensor, width: int, rows: int | None = None) -> Tensor:
    """x (..., H) with zeros up to (..., width), of so many rows if given; x itself where nothing is missing."""
    missing = width - x.shape[-1]
    if missing == 0:
        return x
    return pad(x, (0, missing) if rows is None else (0, missing, 0, rows - x.shape[-2]))


def cropped(x: Tensor, H: int) -> Tensor:
    """The first H columns, contiguous."""
    return x if x.shape[-1] == H else x[..., :H].contiguous()


def in_rows(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x (T, B, D, width) or (N, D, width), copied if its rows are not whole rows apart, and how many rows apart its steps,
    sequences and directions are; packed data has no steps."""
    width = x.shape[-1]
    if (x.stride(-1) != 1 and width > 1) or any(stride % width for stride in x.stride()[:-1]) or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    *step, row, direction = (stride // width for stride in x.stride()[:-1])
    return x, (step[0] if step else 0, row, direction)


def padded_gates(x: Tensor, H: int, width: int) -> Tensor:
    """x (..., gates * H) as (..., gates * width), zeros behind each gate; x itself where nothing is missing."""
    return x if width == H else padded(x.unflatten(-1, (-1, H)), width).flatten(-2)


def padded_weight(w_hh: Tensor, width: int) -> Tensor:
    """w_hh (gates * H, H) as (gates * width, width), zeros behind each gate, as `dense` returns it."""
    H = w_hh.shape[-1]
    return dense(w_hh if width == H else padded(w_hh.unflatten(0, (-1, H)), width, width).flatten(0, 1))


def cropped_gates(x: Tensor, H: int, width: int) -> Tensor:
    """The first H columns of each gate of (..., gates * width), contiguous."""
    return x if width == H else cropped(x.unflatten(-1, (-1, width)), H).flatten(-2)
