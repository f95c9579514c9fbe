"""The obvious loop over time, in any dtype and differentiable as often as one likes: the oracle of every test.

One loop; what a cell computes in a step is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .cell import Cell, Weights
from .mask import Mask
from .steps import Steps

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}
States = tuple[Tensor, ...]
Masks = Mapping[str, Mask]


def dropout(x: Tensor, mask: Mask | None, activation: str = "identity") -> Tensor:
    """dropout(f(x)): 0 where the mask, an element each, is 0 or False, and elsewhere f(x) times the mask's scale."""
    if mask is None:
        return ACTIVATIONS[activation](x)
    # f(0) = 0: to drop before f is to drop after it, and no NaN meets a 0 in the gradient.
    return ACTIVATIONS[activation](x.masked_fill(mask.keep == 0, 0)) * mask.scale


def tanh_dropout_gradient(grad_y: Tensor, y: Tensor, mask: Mask) -> Tensor:
    """The gradient of x, from y = dropout(tanh(x)), which leads to x where this is to be differentiated itself."""
    wide, scale = y.to(torch.promote_types(y.dtype, torch.float32)), mask.scale
    slope = torch.addcmul(wide.new_full((), scale), wide, wide, value=-1 / scale if scale else 0.0)  # scale * (1 - f**2)
    return (grad_y * slope).masked_fill(mask.keep == 0, 0).to(y.dtype)


def zone(old: Tensor, new: Tensor, mask: Mask | None) -> Tensor:
    """`old` where the zoneout mask drops, `new` where it keeps; or the expectation."""
    if mask is None:
        return new
    return mask.scale * old + (1 - mask.scale) * new if mask.is_expectation else torch.where(mask.keep != 0, new, old)


def rnn_step(x: Tensor, states: States, weights: Weights, masks: Masks, activation: str) -> States:
    """h_t = zone(h_{t-1}, m * f(W_ih x_t + b_ih + W_hh (r * h_{t-1}) + b_hh))."""
    a = torch.nn.functional.linear(x, weights.w_ih, weights.b_ih)
    a = a + torch.nn.functional.linear(dropout(states[0], masks.get("recurrent")), weights.w_hh, weights.b_hh)
    return (zone(states[0], dropout(a, masks.get("hidden"), activation), masks.get("zoneout")),)


def gru_step(x: Tensor, states: States, weights: Weights, masks: Masks, activation: str) -> States:
    """r and z = sigmoid(...), n = tanh(W_in x_t + b_in + r * (W_hn (r' * h_{t-1}) + b_hn)), r' the recurrent mask;
    h_t = zone(h_{t-1}, m * ((1 - z) * (u * n) + z * h_{t-1}))."""
    (h,) = states
    of_x = torch.nn.functional.linear(x, weights.w_ih, weights.b_ih)
    of_h = torch.nn.functional.linear(dropout(h, masks.get("recurrent")), weights.w_hh, weights.b_hh)
    made = gru_of_gates(of_x, of_h, h, masks, activation)
    return (zone(h, dropout(made, masks.get("hidden")), masks.get("zoneout")),)


def gru_of_gates(of_x: Tensor, of_h: Tensor, h: Tensor, masks: Masks, activation: str = "tanh") -> Tensor:
    """What a GRU makes of the old state and its gates, as x and as h made them, before dropout."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = of_x.chunk(3, -1), of_h.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    candidate = dropout(x_n + r * h_n, masks.get("candidate"), activation)
    return (1 - z) * candidate + z * h


def lstm_step(x: Tensor, states: States, weights: Weights, masks: Masks, activation: str) -> States:
    """i, f and o = sigmoid(...), c' = d * (f * c_{t-1} + i * (u * tanh(g)));
    h_t = zone(h_{t-1}, m * o * tanh(c')), of a projection m * W_hr (o * tanh(c')); c_t = zone_c(c_{t-1}, c')."""
    h, c = states
    of_x = torch.nn.functional.linear(x, weights.w_ih, weights.b_ih)
    of_h = torch.nn.functional.linear(dropout(h, masks.get("recurrent")), weights.w_hh, weights.b_hh)
    made, new = lstm_of_gates(of_x, of_h, c, masks, activation)
    if weights.w_hr is not None:
        made = torch.nn.functional.linear(made, weights.w_hr)
    return zone(h, dropout(made, masks.get("hidden")), masks.get("zoneout")), zone(c, new, masks.get("cell_zoneout"))


def lstm_of_gates(of_x: Tensor, of_h: Tensor, c: Tensor, masks: Masks, activation: str = "tanh") -> tuple[Tensor, Tensor]:
    """What an LSTM makes of the old cell state and its gates, as x and as h made them: the new state, before dropout, and the
    new cell state."""
    i, f, g, o = (of_x + of_h).chunk(4, -1)
    candidate = dropout(g, masks.get("candidate"), activation)
    new = dropout(torch.sigmoid(f) * c + torch.sigmoid(i) * candidate, masks.get("cell"))
    return torch.sigmoid(o) * ACTIVATIONS[activation](new), new


STEP: dict[str, Callable[[Tensor, States, Weights, Masks, str], States]] = {
    "RNN_TANH": rnn_step,
    "RNN_RELU": rnn_step,
    "GRU": gru_step,
    "LSTM": lstm_step,
}


def layer(
    input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
) -> tuple[Tensor, States]:
    """One layer, one direction.

    Args:
        input: (T, B, I), or (N, I) of packed data.
        states: (B, H) each, at the beginning.
        weights: those of the layer.
        masks: by kind, an element each, of the rows of all steps (N, H) or of the sequences (B, H).
        steps: where the rows are.
        cell: what runs at each step.

    Returns:
        The first state at all steps, (T, B, H) or (N, H), and the states at the end, (B, H) each. Weights of
        both directions make twice the columns, from states and masks of both, (2, B, H) and (2, N, H).
    """
    if weights.directions == 2:
        return _both_directions(input, states, weights, masks, steps, cell)
    step, states = STEP[cell.mode], tuple(states)
    outputs = []
    for x, (start, stop) in zip(steps.split(input), steps.ranges, strict=True):
        size = stop - start
        now = {kind: _rows(mask, start, stop, steps) for kind, mask in masks.items()}
        new = step(x, tuple(state[:size] for state in states), weights, now, cell.activation)
        outputs.append(new[0])
        states = tuple(torch.cat([s, old[size:]]) if size < steps.batch else s for s, old in zip(new, states, strict=True))
    output = torch.cat(outputs[::-1] if steps.reverse else outputs)
    return output.view(*input.shape[:-1], output.shape[-1]), states


def _both_directions(
    input: Tensor, states: Sequence[Tensor], weights: Weights, masks: Masks, steps: Steps, cell: Cell
) -> tuple[Tensor, States]:
    outputs, ends = [], []
    for direction, its_steps in enumerate((steps, steps.backwards())):
        its_states = [state[direction] for state in states]
        its_masks = {kind: Mask(mask.keep[direction], mask.scale) for kind, mask in masks.items()}
        output, last = layer(input, its_states, weights.of_direction(direction), its_masks, its_steps, cell)
        outputs.append(output)
        ends.append(last)
    return torch.cat(outputs, -1), tuple(torch.stack(pair) for pair in zip(*ends, strict=True))


def _rows(mask: Mask, start: int, stop: int, steps: Steps) -> Mask:
    """The mask of a step."""
    if mask.is_expectation:
        return mask
    per_step = mask.keep.shape[0] == steps.rows
    return Mask(mask.keep[start:stop] if per_step else mask.keep[: stop - start], mask.scale)
