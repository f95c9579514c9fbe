"""Which strategy runs a layer, and why: one table behind "auto", the strategies by name and :func:`rnndrop.explain`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch

from .backends.base import Backend
from .backends.cpu import Cpu
from .backends.reference import Reference
from .kernels import launch, plan

StrategyName = Literal["auto", "cpu", "reference", "resident", "cooperative", "stepwise"]
STRATEGIES: tuple[str, ...] = get_args(StrategyName)
REASONS = {
    "cpu": "in-place products by PyTorch, the rest by NumPy",
    "reference": "a plain loop of PyTorch operations",
    **plan.REASONS,
}
KERNELS = tuple(plan.REASONS)


class Problem(NamedTuple):
    """What has to be run: T steps, at most B sequences each, H units."""

    device: torch.device
    dtype: torch.dtype
    steps: int
    batch: int
    hidden_size: int
    cell: str
    extras: plan.Extras = plan.PLAIN


@dataclass(frozen=True)
class Choice:
    """A strategy, why it runs, its plan if it has one, and why not those considered before it."""

    strategy: str
    reason: str
    plan: Any = None
    rejected: dict[str, str] = field(default_factory=dict)


ONE_STEP = Choice("one step", "a single step is a few PyTorch operations")
ON_THE_CPU = Choice("cpu", f"the input is on the CPU: {REASONS['cpu']}")


def choose(strategy: str, problem: Problem) -> Choice:
    """What runs. Raises ValueError, with the reason, where a strategy asked for by name cannot."""
    if strategy != "auto":
        return _by_name(strategy, problem)
    kind = problem.device.type
    if kind == "cuda":
        return _on_cuda(problem)
    if kind not in ("cpu", "meta"):
        return Choice("reference", f"there are no kernels for {kind}: {REASONS['reference']}")
    return ONE_STEP if problem.steps == 1 else ON_THE_CPU


def takes_both_directions(strategy: str, problem: Problem) -> bool:
    """Whether kernels of a strategy run both directions of a layer in one launch."""
    return plan.takes_both_directions(strategy, **_to_plan(problem))


def _by_name(strategy: str, problem: Problem) -> Choice:
    why_not = _wrong_device(strategy, problem.device)
    if strategy in KERNELS:
        why_not = _no_kernels(problem.device) or plan.refusal(strategy, **_to_plan(problem))
    _check_runs(strategy, why_not)
    return Choice(strategy, REASONS[strategy])


def _on_cuda(problem: Problem) -> Choice:
    why_not = kernels_unavailable()
    if why_not:
        _warn_once(why_not)
        return Choice("reference", f"the kernels cannot run: {REASONS['reference']}", rejected=dict.fromkeys(KERNELS, why_not))
    found = plan.choose(**_to_plan(problem))
    return Choice(found.strategy, found.reason, found.plan, dict(found.rejected))


def _to_plan(problem: Problem) -> dict[str, Any]:
    """The problem in the words of the kernels."""
    device, tf32 = launch.device_of(problem.device), launch.allows_tf32()
    shape = dict(H=problem.hidden_size, B=problem.batch, dtype=problem.dtype, cell=problem.cell)
    return shape | dict(device=device, tf32=tf32, extras=problem.extras)


@cache
def kernels_unavailable() -> str:
    """Why Triton's kernels cannot run here, or ""."""
    return launch.unavailable()


@cache
def _warn_once(why_not: str) -> None:
    warnings.warn(f"rnndrop runs a plain loop on CUDA, since its kernels cannot run: {why_not}", stacklevel=2)


@cache
def backend(strategy: str, cell: str = "RNN_TANH", tf32: bool = False) -> Backend:
    """That of a strategy for a cell; `tf32`: its kernels may round. Triton is imported only here."""
    if strategy == "cpu":
        return Cpu()
    if strategy in ("reference", "one step"):
        return Reference()
    from .backends.triton import GatedKernels, Kernels

    return (GatedKernels if cell in plan.GATED else Kernels)(strategy, tf32)


def mask_form(strategy: str, device: torch.device) -> str:
    """How masks are held: a byte an element for the CPU, bits for the kernels. It depends on no choice that "auto" makes."""
    return "bits" if strategy in KERNELS or (device.type == "cuda" and strategy != "cpu") else "bytes"


def check_pointwise(strategy: str, x: torch.Tensor) -> None:
    """ValueError, with the reason, where a strategy of tanh_dropout asked for by name cannot run."""
    if strategy == "triton":
        _check_runs(strategy, _no_kernels(x.device) or plan.without_kernel(x.dtype))
    else:
        _check_runs(strategy, _wrong_device(strategy, x.device))


def _wrong_device(strategy: str, device: torch.device) -> str:
    """Why a strategy cannot run on the input's device, or ""."""
    if strategy == "cpu" and device.type not in ("cpu", "meta"):
        return f"it computes in NumPy, and the input is on {device}"
    return ""


def _no_kernels(device: torch.device) -> str:
    """Why no kernel can run on tensors of a device, or ""."""
    return kernels_unavailable() or launch.elsewhere(device)


def _check_runs(strategy: str, why_not: str) -> None:
    """ValueError where there is a reason why a strategy asked for by name cannot run."""
    if why_not:
        raise ValueError(f"strategy {strategy!r} cannot run: {why_not}")
