"""The operators of torch.library, which the compiler sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._compile import _disable_dynamo


def operator(
    name: str,
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
    random: bool = False,
) -> Any:
    """Registers ``torch.ops.rnndrop.<name>``, of functions as torch.library's register_fake and register_autograd take them.

    Not by torch.library.custom_op, which adds a third to the price of a call in a compiled graph, for checks of what the
    operator returns that opcheck makes in the tests.
    """
    qualified, tags = f"rnndrop::{name}", [torch.Tag.pt2_compliant_tag, *[torch.Tag.nondeterministic_seeded] * random]
    torch.library.define(qualified, schema, tags=tags)
    torch.library.impl(qualified, "default", _disable_dynamo(forward))  # after a graph break it would compile `forward`
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=save)
    return getattr(torch.ops.rnndrop, name).default
