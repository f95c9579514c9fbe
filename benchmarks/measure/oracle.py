"""What a case must give, in float64: rnndrop's plain loop for each layer, and what is dropped around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rnndrop import dropout_mask, reference
from rnndrop.cell import Weights
from rnndrop.kinds import KINDS, ZONEOUTS
from rnndrop.mask import Mask, scale, share
from rnndrop.steps import Steps

from ..cases import CELLS, Case
from ..contenders.base import weights

Masks = Callable[[str, int, int], Mask | None]  # of kind, layer and direction, an element each, a row for each row of the case


def network(case: Case, rnn: nn.RNNBase, x: Tensor, masks: Masks) -> tuple[Tensor, list[Weights], Tensor]:
    """The output of a case, and what it can be differentiated by: the weights of each layer and direction, and the input."""
    groups = [Weights(*(weight.double().requires_grad_() for weight in group)) for group in weights(rnn)]
    x = x.detach().double().requires_grad_(case.input_grad)
    sides, last = range(case.directions), case.layers - 1
    y = _dropped(x, [masks("input", 0, 0)])
    for layer in range(case.layers):
        outputs = [_layer(case, y, groups[layer * case.directions + side], masks, layer, side) for side in sides]
        kind = "output" if layer == last else "between"
        y = _dropped(torch.cat(outputs, -1), [masks(kind, layer, side) for side in sides])
    return y, groups, x


def of_seed(case: Case, seed: int, device: torch.device) -> Masks:
    """The masks of the stream; in evaluation the expectation of zoneout."""

    def masks(kind: str, layer: int, direction: int) -> Mask | None:
        p = case.rate(KINDS[kind].argument)
        if case.pass_ == "inference":
            return Mask(torch.empty(0, case.H), share(p)) if kind in ZONEOUTS and p else None
        if not p:
            return None
        per_sequence = case.mask_scope == "sequence" and KINDS[kind].scoped
        rows = case.gates * case.H if kind == "weight" else case.B if per_sequence else case.T * case.B
        columns = case.I if kind == "input" else case.H
        keep = dropout_mask(seed, rows, columns, p, layer=layer, direction=direction, kind=kind).to(device) != 0
        if kind != "weight":
            keep = keep.view(-1, case.B, columns).expand(case.T, case.B, columns)
            keep = keep.flatten(0, 1) if case.batch_sizes is None else keep[_reached(case).to(device)]
        return Mask(keep, 1.0 if kind in ZONEOUTS else scale(p))

    return masks


def _reached(case: Case) -> Tensor:
    """Which sequences reach which step, bool (T, B)."""
    assert case.batch_sizes is not None
    return torch.arange(case.B) < case.batch_sizes.unsqueeze(1)


def _layer(case: Case, x: Tensor, weights: Weights, masks: Masks, layer: int, direction: int) -> Tensor:
    """The output of one layer in one direction."""
    cell, states = CELLS[case.cell], [x.new_zeros(case.B, case.H)] * case.states
    found = {kind: mask for kind in cell.kinds if (mask := masks(kind, layer, direction))}
    weights = weights._replace(w_hh=reference.dropout(weights.w_hh, masks("weight", layer, direction)))
    steps = Steps.of(x, case.B, case.batch_sizes, bool(direction))
    return reference.layer(x, states, weights, found, steps, cell)[0]


def _dropped(x: Tensor, masks: Sequence[Mask | None]) -> Tensor:
    """A mask for each part of the columns."""
    parts = zip(x.flatten(0, -2).chunk(len(masks), -1), masks, strict=True)
    return torch.cat([reference.dropout(*part) for part in parts], -1).view_as(x)
