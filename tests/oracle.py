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

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


KINDS = {
    "hidden": "hidden_dropout",
    "recurrent": "recurrent_dropout",
    "between": "dropout",
    "input": "input_dropout",
    "output": "output_dropout",
    "weight": "weight_dropout",
    "zoneout": "zoneout",
}
INSIDE = "hidden", "recurrent", "zoneout"
Seed = int | Sequence[int]  # one, or one for each sequence


def mask(seed, rows: int, columns: int, p: float, **where) -> Tensor:
    """In float64, with its scale; 1 where nothing is dropped."""
    return (rnndrop.dropout_mask(seed, rows, columns, p, **where) != 0).double() * scale_of(threshold_of(p))


def mask_over_time(seed: Seed, steps: int, batch: int, columns: int, p: float, scope: str = "step", **where) -> Tensor:
    """Likewise, (T, B, H), of a padded batch."""
    if not isinstance(seed, int):
        return torch.cat([mask_over_time(one, steps, 1, columns, p, scope, **where) for one in seed], 1)
    if scope == "sequence":
        return mask(seed, batch, columns, p, **where).expand(steps, batch, columns)
    return mask(seed, steps * batch, columns, p, **where).view(steps, batch, columns)


def scope_of(kind: str, mask_scope) -> str:
    """ "step" of zoneout, and of what a mapping does not name."""
    if kind == "zoneout":
        return "step"
    return mask_scope if isinstance(mask_scope, str) else mask_scope.get(kind, "step")


def layer(
    x: Tensor,
    h_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    seed: Seed = 0,
    mask_scope="step",
    nonlinearity: str = "tanh",
    layer: int = 0,
    direction: int = 0,
    lengths: Sequence[int] | None = None,
    **rates: float,
) -> tuple[Tensor, Tensor]:
    """(T, B, I) and (B, H) to (T, B, H) and (B, H). `rates`: any but `dropout`."""
    (count, batch), columns = x.shape[:2], w_hh.shape[1]
    lengths = [count] * batch if lengths is None else list(lengths)
    order = sorted(range(batch), key=lambda b: -lengths[b])
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(count)])
    time, place = zip(*[(t, b) for t, size in enumerate(sizes) for b in order[:size]], strict=True)
    where = dict(layer=layer, direction=direction)

    def over_time(kind: str, columns: int, **where) -> Tensor:
        p, scope = rates.get(KINDS[kind], 0.0), scope_of(kind, mask_scope)
        return mask_over_time(seed, count, batch, columns, p, scope, kind=kind, **where)

    if rates.get("input_dropout"):
        x = x * over_time("input", x.shape[2], layer=layer)
    if rates.get("weight_dropout"):
        first = seed if isinstance(seed, int) else seed[0]
        w_hh = w_hh * mask(first, *w_hh.shape, rates["weight_dropout"], kind="weight", **where)
    masks = {}
    for kind in INSIDE:
        if p := rates.get(KINDS[kind]):
            scale = 1.0 if kind == "zoneout" else scale_of(threshold_of(p))
            masks[kind] = Mask(over_time(kind, columns, **where)[time, place] != 0, scale)
    steps, cell = Steps(count, batch, sizes, bool(direction)), CELLS[rnn_mode(nonlinearity)]
    packed, (last,) = reference.layer(x[time, place], [h_0[order]], Weights(w_ih, w_hh, b_ih, b_hh), masks, steps, cell)
    rows = torch.tensor(time), torch.tensor(place)
    output = packed.new_zeros(count, batch, columns).index_put(rows, packed)
    if rates.get("output_dropout"):
        output = output * over_time("output", columns, **where)
    return output, last[torch.tensor(order).argsort()]


def network(
    rnn: rnndrop.RNN,
    x: Tensor,
    hx: Tensor,
    seed: Seed,
    lengths: Sequence[int] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """An rnndrop.RNN in training: (T, B, I) and (layers * D, B, H) to (T, B, D * H) and h_n. `parameters`: in place of its."""
    count, batch, _ = x.shape
    parameters = dict(rnn.named_parameters()) if parameters is None else parameters
    directions, states, last_layer = 1 + rnn.bidirectional, [], rnn.num_layers - 1
    for number in range(rnn.num_layers):
        outputs = []
        rates = {name: getattr(rnn, name) for kind, name in KINDS.items() if kind not in ("between", "input", "output")}
        rates |= dict(input_dropout=rnn.input_dropout) if number == 0 else {}
        rates |= dict(output_dropout=rnn.output_dropout) if number == last_layer else {}
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
                **rates,
            )
            if number < last_layer:
                where = dict(kind="between", layer=number, direction=direction)
                scope = scope_of("between", rnn.mask_scope)
                output = output * mask_over_time(seed, count, batch, rnn.hidden_size, rnn.dropout, scope, **where)
            outputs.append(output)
            states.append(last)
        x = torch.cat(outputs, -1)
    return x, torch.stack(states)


def tanh_dropout(x: Tensor, p: float, seed: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    return (torch.tanh(rows.double()) * mask(seed, *rows.shape, p)).view(x.shape)
