"""Operators in eager mode: when they may compute at once, and how they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .vmap import one_by_one


def computes_now(x: Tensor) -> bool:
    """Whether there are numbers to compute with: no tracing, no fake tensor, no meta device.

    Nor under a dispatch mode, which is to see the operator: one counts its FLOPs.

    Raises:
        RuntimeError: in ``torch.jit.trace``, which would keep the masks of this call, and in an export to ONNX.
    """
    if torch.jit.is_tracing() or (is_exporting() and _is_for_onnx()):  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace and ONNX have no operator for dropout inside a layer, nor for zoneout: call eval() before, or "
            "take what to_torch() returns, which has no zoneout; torch.export needs neither"
        )
    known = type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta"
    return known and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


def is_exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return bool(asked and asked())


def _is_for_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# The compiler would take the answer for False. This is torch.compiler.assume_constant_result, which would import the compiler.
_is_for_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def operands(number: float | Tensor) -> tuple[float, Tensor | None]:
    """A number as an operator takes it: in a graph for every value of it, a tensor."""
    return (0.0, number) if isinstance(number, Tensor) else (number, None)


def number(given: float, tensor: Tensor | None) -> float:
    """That of `operands`."""
    return given if tensor is None else float(tensor)


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
