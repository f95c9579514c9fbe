"""Operators in eager mode: when they may compute at once, and how they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .vmap import one_by_one


def computes_now(x: Tensor) -> bool:
    """Whether there are numbers to compute with: no tracing, no fake tensor, no meta device.

    Raises:
        RuntimeError: in ``torch.jit.trace``, which would keep the masks of this call, and cannot record these operators.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace cannot record dropout inside a layer: trace in evaluation without zoneout, or use torch.export"
        )
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not torch.compiler.is_compiling()


def in_transform() -> bool:
    """Whether torch.func is at work, whose tensors may have no numbers of their own."""
    return torch._C._are_functorch_transforms_active()


def by_operations(*tensors: Tensor | None) -> bool:
    """Whether only a loop of PyTorch's operations gives what is asked for: in forward-mode differentiation, of torch.func or of
    torch.autograd.forward_ad, and on batches of gradients, which ``is_grads_batched`` makes."""
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor
    return forward_ad._current_level >= 0 or any(x is not None and batched(x) for x in tensors)


def beyond_torch() -> bool:
    """Whether PyTorch's own layers would refuse: inside torch.func.vmap, and cuDNN's in forward-mode differentiation."""
    if not in_transform():
        return by_operations()
    functorch = torch._C._functorch
    mapping = any(level.key() == functorch.TransformType.Vmap for level in functorch.get_interpreter_stack() or ())
    return mapping or by_operations()


class Function(torch.autograd.Function):
    """An autograd.Function called without what PyTorch adds for defaults of arguments, which costs as much as a small step."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if in_transform():
            return super().apply(*args)
        args = torch._functorch.utils.unwrap_dead_wrappers(args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return one_by_one(cls, info, in_dims, args)
