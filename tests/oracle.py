"""What must come out: the plain loop of rnndrop.reference in float64, with the masks of rnndrop.dropout_mask.

Both are proved by tests of their own, test_reference.py and test_mask.py, which use neither. Sequences may have lengths: they
are given as a padded batch in any order, and the output is 0 after the end of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import rnndrop
from rnndrop import reference
from rnndrop.cell import CELLS, Weights, rnn_mode
from rnndrop.mask import Mask
from rnndrop.steps import Steps
from tests.stream import scale_of, threshold_of

RATES = ("hidden_dropout", "recurrent_dropout")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def mask(seed, rows: int, columns: int, p: float, **where) -> Tensor:
    """In float64, with its scale; 1 where nothing is dropped."""
    return (rnndrop.dropout_mask(seed, rows, columns, p, **where) != 0).double() * scale_of(threshold_of(p))


def mask_over_time(seed, steps: int, batch: int, columns: int, p: float, scope: str = "step", **where) -> Tensor:
    """Likewise, (T, B, H), of a padded batch."""
    if scope == "sequence":
        return mask(seed, batch, columns, p, **where).expand(steps, batch, columns)
    return mask(seed, steps * batch, columns, p, **where).view(steps, batch, columns)


def layer(
    x: Tensor,
    h_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    seed: int = 0,
    hidden_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    mask_scope: str = "step",
    nonlinearity: str = "tanh",
    layer: int = 0,
    direction: int = 0,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(T, B, I) and (B, H) to (T, B, H) and (B, H)."""
    (count, batch), columns = x.shape[:2], w_hh.shape[1]
    lengths = [count] * batch if lengths is None else list(lengths)
    order = sorted(range(batch), key=lambda b: -lengths[b])
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(count)])
    time, place = zip(*[(t, b) for t, size in enumerate(sizes) for b in order[:size]], strict=True)
    masks = {}
    for kind, p in (("hidden", hidden_dropout), ("recurrent", recurrent_dropout)):
        if p:
            over_time = mask_over_time(seed, count, batch, columns, p, mask_scope, kind=kind, layer=layer, direction=direction)
            masks[kind] = Mask(over_time[time, place] != 0, scale_of(threshold_of(p)))
    steps, cell = Steps(count, batch, sizes, bool(direction)), CELLS[rnn_mode(nonlinearity)]
    packed, (last,) = reference.layer(x[time, place], [h_0[order]], Weights(w_ih, w_hh, b_ih, b_hh), masks, steps, cell)
    where = torch.tensor(time), torch.tensor(place)
    output = packed.new_zeros(count, batch, columns).index_put(where, packed)
    return output, last[torch.tensor(order).argsort()]


def network(
    rnn: rnndrop.RNN,
    x: Tensor,
    hx: Tensor,
    seed: int,
    lengths: Sequence[int] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """An rnndrop.RNN in training: (T, B, I) and (layers * D, B, H) to (T, B, D * H) and h_n. `parameters`: in place of its."""
    count, batch, _ = x.shape
    parameters = dict(rnn.named_parameters()) if parameters is None else parameters
    directions, states = 1 + rnn.bidirectional, []
    for number in range(rnn.num_layers):
        outputs = []
        for direction in range(directions):
            end = f"_l{number}" + "_reverse" * direction
            output, last = layer(
                x,
                hx[number * directions + direction],
                *[parameters.get(name + end) for name in PARAMETERS],
                seed=seed,
                mask_scope=rnn.mask_scope,
                nonlinearity=rnn.nonlinearity,
                layer=number,
                direction=direction,
                lengths=lengths,
                **{name: getattr(rnn, name) for name in RATES},
            )
            if number + 1 < rnn.num_layers:
                where = dict(kind="between", layer=number, direction=direction)
                output = output * mask_over_time(seed, count, batch, rnn.hidden_size, rnn.dropout, **where)
            outputs.append(output)
            states.append(last)
        x = torch.cat(outputs, -1)
    return x, torch.stack(states)


def tanh_dropout(x: Tensor, p: float, seed: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    return (torch.tanh(rows.double()) * mask(seed, *rows.shape, p)).view(x.shape)
