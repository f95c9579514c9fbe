"""A symbolic trace of torch.fx keeps these modules as calls, as it keeps torch.nn's: what they do depends on their input."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def is_symbolic(input: Any) -> bool:
    return isinstance(input, Proxy)


def call_of(module: nn.Module, input: Any, hx: Any, seed: Any) -> Any:
    """The call of a submodule in the graph that is traced."""
    options = {name: value for name, value in (("hx", hx), ("seed", seed)) if value is not None}
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), (input,), options)
