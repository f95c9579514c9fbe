"""Timing: contenders alternate within one process, so that whatever the machine does meanwhile, it does to all of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

Run = Callable[[int], object]  # takes the number of the round, by which it chooses its input
Stopwatch = Callable[[Run, int], float]  # the seconds that a run of this number takes


def stopwatch(device: str) -> Stopwatch:
    return _cuda_stopwatch() if device == "cuda" else _cpu_seconds


def _cpu_seconds(run: Run, number: int) -> float:
    start = time.perf_counter()
    run(number)
    return time.perf_counter() - start


def _cuda_stopwatch() -> Stopwatch:
    """CUDA events around one call, after a write over the whole L2 cache."""
    size = torch.cuda.get_device_properties(0).L2_cache_size
    flush = torch.empty(2 * size, dtype=torch.uint8, device="cuda")
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(run: Run, number: int) -> float:
        flush.zero_()
        torch.cuda.synchronize()
        start.record()
        run(number)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    return seconds


def alternate(
    runs: Mapping[str, Run],
    watch: Stopwatch,
    *,
    seconds: float,
    least: int,
    most: int,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time every run once a round, in a new random order each, for `seconds` but `least` to `most` rounds.

    Returns the seconds of each by round, and what was raised by those that failed, which have no times then.
    """
    order, failed = list(runs), {}
    times: dict[str, list[float]] = {name: [] for name in order}
    shuffle, start = random.Random(seed).shuffle, clock()
    with _no_collection():
        for number in range(most):
            if number >= least and clock() - start >= seconds:
                break
            shuffle(order)
            for name in list(order):
                try:
                    times[name].append(watch(runs[name], number))
                except Exception as error:
                    failed[name] = describe(error)
                    order.remove(name)
                    del times[name]
    return times, failed


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector rests."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300].rstrip(": ")
