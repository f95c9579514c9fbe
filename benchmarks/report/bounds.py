"""What the CUDA strategies must do, counted, and how fast data sheets allow it. Computed, never measured.

A bound is the larger of two times. One is that of the operations, phase by phase (input product, forward sequence, backward
sequence, weight gradients), where the sequence has only the multiprocessors that its programs fill. The other is that of the
bytes that must go through device memory whatever the cache holds between the phases. Launches, barriers between
multiprocessors and latency are in no data sheet: they come on top, and at small sizes they decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rnndrop.kernels.launch import Device
from rnndrop.kernels.plan import plan_cooperative, plan_resident

from ..cases import Case

STRATEGIES = ("resident", "cooperative", "stepwise")


@dataclass(frozen=True)
class Gpu:
    """Dense rates of the maker's data sheet for the SXM board: bytes and operations a second."""

    name: str
    bandwidth: float
    fp32: float
    tf32: float
    half: float
    device: Device
    cache: int  # bytes of L2

    def rate(self, dtype: str) -> float:
        return {"fp32": self.fp32, "tf32": self.tf32}.get(dtype, self.half)


GPUS = [
    Gpu("A100", 2.039e12, 19.5e12, 156e12, 312e12, Device(108, 166912, capability=80), 40 << 20),
    Gpu("H100", 3.35e12, 67e12, 494.5e12, 989e12, Device(132, 232448, capability=90), 50 << 20),
    Gpu("H200", 4.8e12, 67e12, 494.5e12, 989e12, Device(132, 232448, capability=90), 50 << 20),
    Gpu("B200", 8.0e12, 75e12, 1125e12, 2250e12, Device(148, 232448, capability=100), 126 << 20),
]


@dataclass(frozen=True)
class Cost:
    """Of one layer in one direction, a whole pass. `reason`: why the strategy cannot run there, or ""."""

    launches: int
    bytes: float
    flops: float
    bound_s: float
    reason: str


def cost(case: Case, strategy: str, gpu: Gpu) -> Cost:
    share, reason = _share(case, strategy, gpu.device)
    rate = gpu.rate(case.dtype)
    # the sequence kernels multiply fp32 as three products of tf32
    sequence = max(rate, gpu.tf32 / 3) if strategy != "stepwise" and case.dtype == "fp32" else rate
    traffic, work = _bytes(case, strategy, gpu), _flops(case)
    phases = ["input", "forward", "backward", "weights"] if case.pass_ == "train" else ["input", "forward"]
    speed = {"input": rate, "forward": share * sequence, "backward": share * sequence, "weights": rate}
    bound = max(case.least_bytes() / gpu.bandwidth, sum(work[phase] / speed[phase] for phase in phases))
    moved, done = (sum(table[phase] for phase in phases) for table in (traffic, work))
    return Cost(_launches(case, strategy), moved, done, bound, reason)


def _bytes(case: Case, strategy: str, gpu: Gpu) -> dict[str, float]:
    """Through device memory, by phase. A step's working set is taken to stay in L2 if it fits."""
    size, rows, H = case.torch_dtype.itemsize, case.T * case.B, case.H
    bits = len(case.dropouts) * 4.0 * ceil(H / 32) * (rows if case.mask_scope == "step" else case.B)
    weight, plane = float(size * H * H), float(size * rows * H)
    again = (case.T - 1) * weight if strategy == "stepwise" and weight > gpu.cache else 0.0
    spilled = 2 * plane if strategy == "stepwise" and 4 * size * case.B * H > gpu.cache else 0.0
    return {
        "input": size * (rows * case.I + H * case.I) + plane,
        "forward": 2 * plane + 2 * bits + weight + again + spilled,  # projection in, y out; bits written and read
        "backward": 3 * plane + bits + weight + again + spilled,  # gradient and y in, da out
        "weights": 2 * plane + plane + size * (rows * case.I * (1 + case.input_grad) + H * case.I) + weight,
    }


def _flops(case: Case) -> dict[str, float]:
    rows = case.T * case.B
    inputs, recurrent = 2.0 * rows * case.I * case.H, 2.0 * rows * case.H**2
    weights = inputs * (1 + case.input_grad) + recurrent
    return {"input": inputs, "forward": recurrent, "backward": recurrent, "weights": weights}


def _launches(case: Case, strategy: str) -> int:
    """Kernels a pass: masks and the input product; the sequence; backward, the sequence and the products after it."""
    sequence = 2 * case.T if strategy == "stepwise" else 1
    return len(case.dropouts) + 1 + sequence + (case.pass_ == "train") * (sequence + 3 + case.input_grad)


def _share(case: Case, strategy: str, device: Device) -> tuple[float, str]:
    """The part of the multiprocessors that the sequence can use, and why it cannot run."""
    options = {"H": case.H, "B": case.B, "dtype": case.torch_dtype, "device": device, "tf32": case.dtype == "tf32"}
    if strategy == "stepwise":
        return 1.0, ""
    if strategy == "resident":
        resident = plan_resident(**options)
        programs, reason = resident.programs, resident.reason
    else:
        cooperative = plan_cooperative(**options)
        programs, reason = cooperative.slices * cooperative.groups, cooperative.reason
    return min(1.0, max(programs, 1) / device.num_sms), reason
