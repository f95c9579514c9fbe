"""What a case must give, in float64: the masks of the stream, and for each layer rnndrop's reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnndrop import dropout_mask, reference
from rnndrop.cell import CELLS, Weights
from rnndrop.mask import Mask, scale
from rnndrop.steps import Steps

from ..cases import Case
from ..contenders.base import weights


def network(case: Case, rnn: nn.RNN, x: Tensor, seed: int) -> tuple[Tensor, list[Weights], Tensor]:
    """The output of a case, and what it can be differentiated by: the weights of each layer and direction, and the input."""
    groups = [Weights(*(weight.double().requires_grad_() for weight in group)) for group in weights(rnn)]
    x = y = x.detach().double().requires_grad_(case.input_grad)
    sides = range(case.directions)
    for layer in range(case.layers):
        if layer:
            masks = [_mask(case, "between", seed, layer - 1, side, x.device) for side in sides]
            parts = zip(y.flatten(0, 1).chunk(case.directions, -1), masks, strict=True)
            y = torch.cat([reference.dropout(*part) for part in parts], -1).view_as(y)
        outputs = [_layer(case, rnn.mode, y, groups[layer * case.directions + side], seed, layer, side) for side in sides]
        y = torch.cat(outputs, -1)
    return y, groups, x


def _layer(case: Case, mode: str, x: Tensor, weights: Weights, seed: int, layer: int, direction: int) -> Tensor:
    """The output (T, B, H) of one layer in one direction."""
    cell = CELLS[mode]
    masks = {kind: _mask(case, kind, seed, layer, direction, x.device) for kind in cell.kinds}
    states = [x.new_zeros(case.B, case.H) for _ in cell.states]
    return reference.layer(x, states, weights, masks, Steps.of(x, case.B, reverse=bool(direction)), cell)[0]


def _mask(case: Case, kind: str, seed: int, layer: int, direction: int, device: torch.device) -> Mask:
    """Bool, of all steps (T*B, H) or of the sequences (B, H); between layers always of all steps."""
    p = case.rate("dropout" if kind == "between" else f"{kind}_dropout")
    rows = case.B if case.mask_scope == "sequence" and kind != "between" else case.T * case.B
    keep = dropout_mask(seed, rows, case.H, p, layer=layer, direction=direction, kind=kind) != 0
    return Mask(keep.to(device), scale(p))
