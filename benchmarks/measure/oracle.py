"""What a case must give, in float64: the masks of the stream, and for each layer rnndrop's reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnndrop import dropout_mask, reference
from rnndrop.mask import scale

from ..cases import Case
from ..contenders.base import weights

INSIDE = ("hidden_dropout", "recurrent_dropout")  # the recurrence


def network(case: Case, rnn: nn.RNN, x: Tensor, seed: int) -> tuple[Tensor, list[list[Tensor]], Tensor]:
    """The output of a case, and what it can be differentiated by: w_ih, w_hh, b_ih, b_hh of each layer, and the input."""
    groups = [[weight.double().requires_grad_() for weight in group] for group in weights(rnn)]
    x = y = x.detach().double().requires_grad_(case.input_grad)
    for layer in range(case.layers):
        if layer:
            masks = [
                _keep(case, "dropout", "between", seed, layer - 1, direction) * scale(case.rate("dropout"))
                for direction in range(case.directions)
            ]
            y = y * torch.cat(masks, -1).view(case.T, case.B, -1).to(y.device)
        first = layer * case.directions
        outputs = [_layer(case, y, groups[first + side], seed, layer, side) for side in range(case.directions)]
        y = torch.cat(outputs, -1)
    return y, groups, x


def _layer(case: Case, x: Tensor, group: list[Tensor], seed: int, layer: int, direction: int) -> Tensor:
    """The output (T, B, H) of one layer in one direction."""
    masks: dict[str, Any] = {}
    for name in INSIDE:
        kind = name.removesuffix("_dropout")
        keep = _keep(case, name, kind, seed, layer, direction, case.mask_scope).view(-1, case.B, case.H).to(x.device)
        masks |= {f"{kind}_keep": keep.expand(case.T, -1, -1).unbind(0), f"{kind}_scale": scale(case.rate(name))}
    h0 = x.new_zeros(case.B, case.H)
    output, _ = reference.rnn_layer(x.unbind(0), h0, *group, reverse=bool(direction), **masks)
    return output.view(case.T, case.B, case.H)


def _keep(case: Case, name: str, kind: str, seed: int, layer: int, direction: int, scope: str = "step") -> Tensor:
    """The mask of a kind of dropout, bool, of all steps (T*B, H) or of a sequence (B, H)."""
    rows = case.T * case.B if scope == "step" else case.B
    return dropout_mask(seed, rows, case.H, case.rate(name), layer=layer, direction=direction, kind=kind) != 0
