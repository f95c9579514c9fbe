"""One layer with its dropouts. Every mask of a call is made here, and the seed that they follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch, one_step, reference
from .cell import Cell, Weights
from .dropouts import Dropouts
from .kinds import ZONEOUTS
from .mask import Mask, by_element, check_seed, columns_of, factor, stream, unpacked
from .ops import dropout as dropout_operator
from .ops import layer as layer_operator
from .ops.eager import by_operations, computes_now, in_transform, is_exporting
from .ops.mask import sequence_mask
from .ops.seed import drawn_seed
from .steps import Steps


class MaskSource(NamedTuple):
    """How the masks of one layer in one direction are made.

    seed: int64 (1), or (B), one for each sequence of the user's batch. order: (B), which sequence of that batch is the b-th of
    packed data, None if they are the same.
    """

    seed: Tensor
    steps: Steps
    form: str
    layer: int = 0
    direction: int = 0
    order: Tensor | None = None

    def inside(self, kind: str, dropouts: Dropouts, rows: int, columns: int) -> Mask:
        """A mask inside the recurrence: (N, ...) of N = `rows` rows where it is per step, else (B, ...)."""
        return self._mask(kind, dropouts, "step" if dropouts.per_step(kind) else "sequence", rows, columns)

    def outside(self, kind: str, dropouts: Dropouts, rows: int, columns: int) -> Mask:
        """A mask (N, ...) of N = `rows` rows that no recurrence connects."""
        return self._mask(kind, dropouts, "step" if dropouts.per_step(kind) else "repeated", rows, columns)

    def factor(self, kind: str, dropouts: Dropouts, batch: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A mask inside the recurrence, of a single step, with its scale: (B, columns)."""
        plain = self.seed.device.type == "cpu" and self.seed.shape[0] == 1 and self.order is None
        if plain and computes_now(self.seed):
            p = dropouts.rate(kind)
            return factor(int(self.seed), batch, columns, p, stream(kind, self.layer, self.direction), dtype)
        keep, scale = unpacked(self.inside(kind, dropouts, batch, columns), columns)
        return (keep != 0).to(dtype) * scale

    def _mask(self, kind: str, dropouts: Dropouts, scope: str, rows: int, columns: int) -> Mask:
        (p, scale), where = _amounts(dropouts, kind, self.seed), stream(kind, self.layer, self.direction)
        keep = sequence_mask(self.seed, columns, p, where, self.form, scope, self.steps, self.order, rows)
        return Mask(keep, 1.0 if kind in ZONEOUTS else scale)

    def of_weight(self, dropouts: Dropouts, rows: int, columns: int) -> Mask:
        """The mask of W_hh (rows, columns), the same for all sequences: with a seed for each, that of the first."""
        (p, scale), where = _amounts(dropouts, "weight", self.seed), stream("weight", self.layer, self.direction)
        keep = sequence_mask(self.seed.narrow(0, 0, 1), columns, p, where, self.form, "step", Steps(1, rows), None, rows)
        return Mask(keep, scale)


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
        masks: None in evaluation, where zoneout is its expectation, and where nothing is dropped.
        strategy: what :func:`resolved` returned.

    Returns:
        The output (T, B, H) or (N, H), and the states at the end (B, H).
    """
    if strategy == "one step":
        new = recurrent_step(input.flatten(0, -2), states, weights, dropouts, masks, cell)
        return new[0].view(*input.shape[:-1], new[0].shape[-1]), [new[0].clone(), *new[1:]]
    made = _inside(dropouts, masks, input, states)
    if weights.w_hr is not None or (strategy == "reference" and computes_now(input)):
        return reference.layer(input, states, weights, by_element(made, states), steps, cell)
    return layer_operator.layer(input, states, weights, made, steps, cell, strategy)


def both_directions(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Weights],
    dropouts: Dropouts,
    masks: MaskSource | None,
    steps: Steps,
    cell: Cell,
    strategy: str,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer in both directions at once, where the strategy can.

    Args:
        states: (2, B, H) each. weights: of both. masks, steps: of the first. The rest as in recurrent_layer.

    Returns:
        The output (T, B, 2*H) or (N, 2*H), and the states at the end (2, B, H).
    """
    each = [None if masks is None else masks._replace(direction=direction) for direction in (0, 1)]
    forwards, backwards = (_inside(dropouts, one, input, states) for one in each)
    made = {kind: Mask(torch.stack([mask.keep, backwards[kind].keep]), mask.scale) for kind, mask in forwards.items()}
    return layer_operator.layer(input, states, Weights.of_both(*weights), made, steps, cell, strategy)


def recurrent_step(
    x: Tensor, states: Sequence[Tensor], weights: Weights, dropouts: Dropouts, masks: MaskSource | None, cell: Cell
) -> Sequence[Tensor]:
    """One step of a cell on x (B, I), as PyTorch's operations: the new states, (B, H) each. `masks` as in recurrent_layer."""
    if in_transform() or by_operations():  # which PyTorch's cells do not all know
        kept = by_element(_inside(dropouts, masks, x, states), states)
        return reference.STEP[cell.mode](x, tuple(states), weights, kept, cell.activation)
    factors: dict[str, Tensor] = {}
    zoneouts: dict[str, Mask] = {}
    for kind in dropouts.inside:
        columns, batch = columns_of(kind, states), x.shape[0]
        if masks is None:
            zoneouts[kind] = _expectation(x, dropouts, kind)
        elif kind in ZONEOUTS:
            zoneouts[kind] = unpacked(masks.inside(kind, dropouts, batch, columns), columns)
        else:
            factors[kind] = masks.factor(kind, dropouts, batch, columns, one_step.factor_dtype(x))
    return one_step.STEP[cell.mode](x, tuple(states), weights, factors, zoneouts, cell.mode)


def _inside(dropouts: Dropouts, masks: MaskSource | None, input: Tensor, states: Sequence[Tensor]) -> dict[str, Mask]:
    """The masks inside the recurrence, by kind; without a source, in evaluation, only zoneout is left."""
    if masks is None:
        return {kind: _expectation(input, dropouts, kind) for kind in dropouts.inside}
    rows = math.prod(input.shape[:-1])
    return {kind: masks.inside(kind, dropouts, rows, columns_of(kind, states)) for kind in dropouts.inside}


def _expectation(like: Tensor, dropouts: Dropouts, kind: str) -> Mask:
    """Zoneout in evaluation: a mask without rows."""
    return Mask(like.new_empty((0, 1), dtype=torch.int8), _amounts(dropouts, kind, like)[1])


def _amounts(dropouts: Dropouts, kind: str, like: Tensor) -> tuple[float, float]:
    """The rate of a kind and the scale of its masks; as tensors where a graph is compiled, which serves for every rate then.

    Not where it runs on a GPU, whose graphs take no tensors of the CPU, nor where it is exported.
    """
    if dropouts.tensors and torch.compiler.is_compiling() and like.device.type == "cpu" and not is_exporting():
        return dropouts.tensors[kind].unbind()  # type: ignore[return-value]
    return dropouts.amounts(kind)


def resolved(strategy: str, input: Tensor, steps: Steps, columns: int, cell: Cell, drawn: tuple[str, ...]) -> str:
    """The strategy that runs; "auto" stays "auto" while a graph is traced, where there are no numbers to compute with.

    Args:
        drawn: the kinds inside the recurrence that have a mask, which zoneout's expectation in evaluation has not.

    Raises:
        ValueError: one asked for by name that cannot run, with the reason.
    """
    if not computes_now(input):
        return strategy
    return dispatch.choose(strategy, layer_operator.problem(input, steps, columns, cell, drawn)).strategy


def takes_both_directions(strategy: str, input: Tensor, steps: Steps, columns: int, cell: Cell, drawn: tuple[str, ...]) -> bool:
    """Whether the strategy that `resolved` returned can run :func:`both_directions` of a layer."""
    if strategy not in dispatch.KERNELS:  # "auto" while a graph is traced
        return False
    return dispatch.takes_both_directions(strategy, layer_operator.problem(input, steps, columns, cell, drawn))


def outside_dropout(x: Tensor, kind: str, dropouts: Dropouts, masks: MaskSource, directions: int = 1) -> Tensor:
    """The dropout of a layer's input or output x, (T, B, D*F) or packed (N, D*F); a mask a direction."""
    parts, columns = [], x.shape[-1] // directions
    for direction, part in enumerate(x.reshape(-1, x.shape[-1]).chunk(directions, 1)):
        mask = masks._replace(direction=masks.direction + direction).outside(kind, dropouts, part.shape[0], columns)
        parts.append(dropout_operator.dropout(part, mask))
    return (parts[0] if directions == 1 else torch.cat(parts, 1)).view(x.shape)


def weight_dropout(weights: Weights, dropouts: Dropouts, masks: MaskSource) -> Weights:
    """The weights of a layer in one direction, elements of W_hh dropped (DropConnect)."""
    mask = masks.of_weight(dropouts, *weights.w_hh.shape)
    return weights._replace(w_hh=dropout_operator.dropout(weights.w_hh, mask))


def seed_tensor(seed: int | Tensor | None, device: torch.device, batch: int = 1) -> Tensor:
    """The seed of a call as an int64 tensor of shape (1), or (`batch`) as given, on `device`.

    If None, it is drawn from that device's generator.
    """
    if seed is None:
        return drawn_seed(device)
    seed = check_seed(seed, batch)
    if isinstance(seed, Tensor):
        if seed.shape == (0,):  # one for each of no sequences, and the weights have a mask nevertheless
            seed = seed.new_zeros(1)
        return seed if seed.dim() == 1 and seed.device == device else seed.reshape(-1).to(device)
    if not torch.compiler.is_compiling() and not -(2**63) <= seed < 2**63:  # the compiler has 64 bits for an int
        seed = (seed + 2**63) % 2**64 - 2**63
    return torch.full((1,), seed, dtype=torch.int64, device=device)
