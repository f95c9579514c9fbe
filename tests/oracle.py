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

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
KINDS = {
    "hidden": "hidden_dropout",
    "recurrent": "recurrent_dropout",
    "between": "dropout",
    "input": "input_dropout",
    "output": "output_dropout",
    "weight": "weight_dropout",
    "zoneout": "zoneout",
    "cell": "cell_dropout",
    "cell_zoneout": "cell_zoneout",
    "candidate": "candidate_dropout",
}
INSIDE = {"RNN": ("hidden", "recurrent", "zoneout")}
INSIDE["GRU"] = *INSIDE["RNN"], "candidate"
INSIDE["LSTM"] = *INSIDE["GRU"], "cell", "cell_zoneout"
OF_C = "cell", "cell_zoneout", "candidate"  # as wide as an LSTM's cell state
ZONEOUTS = "zoneout", "cell_zoneout"
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
    if kind in ZONEOUTS:
        return "step"
    return mask_scope if isinstance(mask_scope, str) else mask_scope.get(kind, "step")


def layer(
    x: Tensor,
    *leaves: Tensor | None,
    seed: Seed = 0,
    mask_scope="step",
    cell: str = "RNN",
    nonlinearity: str = "tanh",
    layer: int = 0,
    direction: int = 0,
    lengths: Sequence[int] | None = None,
    **rates: float,
) -> tuple[Tensor, ...]:
    """(T, B, I), and (B, H) of each state, to (T, B, H), and (B, H) of each state at the end.

    leaves: the states, w_ih, w_hh, and the biases and w_hr where there are any. rates: any but `dropout`.
    """
    of_cell = CELLS[rnn_mode(nonlinearity) if cell == "RNN" else cell]
    states, (w_ih, w_hh, *others) = leaves[: len(of_cell.states)], leaves[len(of_cell.states) :]
    (count, batch), columns = x.shape[:2], states[0].shape[1]
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
    for kind in INSIDE[cell]:
        if p := rates.get(KINDS[kind]):
            scale = 1.0 if kind in ZONEOUTS else scale_of(threshold_of(p))
            wide = states[-1 if kind in OF_C else 0].shape[1]
            masks[kind] = Mask(over_time(kind, wide, **where)[time, place] != 0, scale)
    steps, first = Steps(count, batch, sizes, bool(direction)), [state[order] for state in states]
    packed, last = reference.layer(x[time, place], first, Weights(w_ih, w_hh, *others), masks, steps, of_cell)
    rows = torch.tensor(time), torch.tensor(place)
    output = packed.new_zeros(count, batch, columns).index_put(rows, packed)
    if rates.get("output_dropout"):
        output = output * over_time("output", columns, **where)
    back = torch.tensor(order).argsort()
    return output, *[state[back] for state in last]


def network(
    rnn: rnndrop.modules.base.RNNBase,
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor],
    seed: Seed,
    lengths: Sequence[int] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """A module in training: (T, B, I), and (layers * D, B, H) of each state, to (T, B, D * H), and each state at the end.

    parameters: in place of the module's.
    """
    (count, batch, _), kind_of_cell = x.shape, type(rnn).__name__
    hx = hx if isinstance(hx, tuple) else (hx,)
    parameters = dict(rnn.named_parameters()) if parameters is None else parameters
    directions, ends, last_layer = 1 + rnn.bidirectional, [], rnn.num_layers - 1
    for number in range(rnn.num_layers):
        outputs = []
        names = [KINDS[kind] for kind in ("weight", *INSIDE[kind_of_cell])]
        names += ["input_dropout"] * (number == 0) + ["output_dropout"] * (number == last_layer)
        for direction in range(directions):
            end = f"_l{number}" + "_reverse" * direction
            output, *last = layer(
                x,
                *[state[number * directions + direction] for state in hx],
                *[parameters.get(name + end) for name in PARAMETERS],
                seed=seed,
                mask_scope=rnn.mask_scope,
                cell=kind_of_cell,
                nonlinearity=getattr(rnn, "nonlinearity", "tanh"),
                layer=number,
                direction=direction,
                lengths=lengths,
                **{name: getattr(rnn, name) for name in names},
            )
            if number < last_layer:
                where = dict(kind="between", layer=number, direction=direction)
                scope = scope_of("between", rnn.mask_scope)
                output = output * mask_over_time(seed, count, batch, output.shape[-1], rnn.dropout, scope, **where)
            outputs.append(output)
            ends.append(last)
        x = torch.cat(outputs, -1)
    return x, *[torch.stack(state) for state in zip(*ends, strict=True)]


def tanh_dropout(x: Tensor, p: float, seed: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    return (torch.tanh(rows.double()) * mask(seed, *rows.shape, p)).view(x.shape)
