"""Memory: bytes held for the backward pass, the peak on CUDA, and a limit so that too much is an error and not a kill."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], theirs: Iterable[Tensor]) -> int:
    """Bytes that autograd holds after `forward`: whole storages, each once, less those of `theirs` (weights and inputs)."""
    known = {x.untyped_storage().data_ptr() for x in theirs}
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = forward()
    total = sum(held.values())
    del output
    return total


def peak_bytes(run: Callable[[], object], device: str) -> float:
    """Most bytes allocated on the GPU during `run`, above those before it; NaN on the CPU."""
    if device != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def limit_to_available() -> None:
    """Let allocations beyond the free memory fail in this process, which can then report them; on Linux, which tells it."""
    told = Path("/proc/meminfo")
    available = re.search(r"^MemAvailable:\s*(\d+) kB", told.read_text(), re.MULTILINE) if told.exists() else None
    if available:
        free, hard = int(available[1]) * 1024, resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (free if hard == resource.RLIM_INFINITY else min(free, hard), hard))
