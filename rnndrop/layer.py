"""One layer with its dropouts. Every mask of a call is made here, and the seed that they follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .cell import Cell, Weights
from .dropouts import Dropouts
from .mask import Mask, by_element, check_seed, scale, stream
from .ops import dropout as dropout_operator
from .ops import layer as layer_operator
from .ops.eager import computes_now
from .ops.mask import sequence_mask
from .steps import Steps


class MaskSource(NamedTuple):
    """How the masks of one layer in one direction are made.

    seed: int64 (1). order: (B), which sequence of the user's batch is the b-th of packed data, None if they are the same.
    """

    seed: Tensor
    steps: Steps
    form: str
    layer: int = 0
    direction: int = 0
    order: Tensor | None = None

    def make(self, kind: str, dropouts: Dropouts, rows: int, columns: int) -> Mask:
        """The mask (N, ...) of N = `rows` rows where it is per step, else (B, ...)."""
        p, where = dropouts.rate(kind), stream(kind, self.layer, self.direction)
        per_step = dropouts.per_step(kind)
        keep = sequence_mask(self.seed, columns, p, where, self.form, per_step, self.steps, self.order, rows)
        return Mask(keep, scale(p))


def recurrent_layer(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Weights,
    dropouts: Dropouts,
    masks: MaskSource | None,
    steps: Steps,
    cell: Cell,
    strategy: str,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer in one direction, with the dropouts inside its recurrence.

    Args:
        input: (T, B, I), or (N, I) packed.
        states: (B, H) each.
        masks: None where nothing is dropped.
        strategy: what :func:`resolved` returned.

    Returns:
        The output (T, B, H) or (N, H), and the states at the end (B, H).
    """
    columns = states[0].shape[1]
    made = _inside(dropouts, masks, cell, math.prod(input.shape[:-1]), columns)
    if strategy == "reference" and computes_now(input):
        kept = by_element(made, columns)
        if steps.count == 1:
            new = reference.STEP[cell.mode](input.flatten(0, -2), tuple(states), weights, kept, cell.activation)
            return new[0].view(*input.shape[:-1], columns), [new[0].clone(), *new[1:]]
        return reference.layer(input, states, weights, kept, steps, cell)
    return layer_operator.layer(input, states, weights, made, steps, cell, strategy)


def recurrent_step(
    x: Tensor, states: Sequence[Tensor], weights: Weights, dropouts: Dropouts, masks: MaskSource, cell: Cell
) -> Sequence[Tensor]:
    """One step of a cell on x (B, I), as PyTorch's operations: the new states, (B, H) each."""
    batch, columns = states[0].shape
    kept = by_element(_inside(dropouts, masks, cell, batch, columns), columns)
    return reference.STEP[cell.mode](x, tuple(states), weights, kept, cell.activation)


def _inside(dropouts: Dropouts, masks: MaskSource | None, cell: Cell, rows: int, columns: int) -> dict[str, Mask]:
    """The masks inside the recurrence of a cell, by kind."""
    if masks is None:
        return {}
    return {kind: masks.make(kind, dropouts, rows, columns) for kind in cell.kinds if dropouts.rate(kind)}


def resolved(strategy: str, input: Tensor, steps: Steps, columns: int, cell: Cell) -> str:
    """The strategy that runs; "auto" stays "auto" while a graph is traced, where there are no numbers to compute with.

    Raises:
        ValueError: one asked for by name that cannot run, with the reason.
    """
    return layer_operator.resolved(strategy, input, steps, columns, cell.mode) if computes_now(input) else strategy


def dropout_between(x: Tensor, dropouts: Dropouts, masks: MaskSource, directions: int) -> Tensor:
    """The dropout of a layer's output, (T, B, D*H) or packed (N, D*H), before the next; a mask a direction."""
    parts, columns = [], x.shape[-1] // directions
    for direction, part in enumerate(x.reshape(-1, x.shape[-1]).chunk(directions, 1)):
        mask = masks._replace(direction=direction).make("between", dropouts, part.shape[0], columns)
        parts.append(dropout_operator.dropout(part, mask))
    return (parts[0] if directions == 1 else torch.cat(parts, 1)).view(x.shape)


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed of a call as an int64 tensor of shape (1) on `device`, drawn from that device's generator if None."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    seed = check_seed(seed)
    if isinstance(seed, Tensor):
        return seed if seed.shape == (1,) and seed.device == device else seed.reshape(1).to(device)
    if not torch.compiler.is_compiling() and not -(2**63) <= seed < 2**63:  # the compiler has 64 bits for an int
        seed = (seed + 2**63) % 2**64 - 2**63
    return torch.full((1,), seed, dtype=torch.int64, device=device)
