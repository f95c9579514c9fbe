"""The obvious loop over time, in any dtype and differentiable as often as one likes: the oracle of every test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}


def dropout(x: Tensor, keep: Tensor | None, scale: float, *, nonlinearity: str = "identity") -> Tensor:
    """dropout(f(x)): 0 where `keep` is False, and elsewhere f(x) times `scale`."""
    if keep is not None:
        # f(0) = 0: to drop before f is to drop after it, and no NaN meets a 0 in the gradient.
        x = x.masked_fill(~keep, 0)
    return ACTIVATIONS[nonlinearity](x) * scale


def rnn_layer(
    input: Sequence[Tensor],
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    hidden_keep: Sequence[Tensor] | None = None,
    hidden_scale: float = 1.0,
    recurrent_keep: Sequence[Tensor] | None = None,
    recurrent_scale: float = 1.0,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer, one direction, in the words of its equations.

    Args:
        input: for each step the x_t of the sequences that have not ended, (B_t, I) with B_t <= B.
        h0: (B, H).
        hidden_keep: for each step, bool (B_t, H) or (B, H): True where h_t is kept, to be multiplied by the scale.
        recurrent_keep: likewise what of h_{t-1} enters W_hh.
        reverse: from the last step to the first.

    Returns:
        The h_t of all steps, row under row, (sum of B_t, H), and h_n (B, H).
    """
    steps = list(enumerate(input))
    output = [h0] * len(steps)
    h = h0
    for t, x in steps[::-1] if reverse else steps:
        running = len(x)
        r = None if recurrent_keep is None else recurrent_keep[t][:running]
        m = None if hidden_keep is None else hidden_keep[t][:running]
        a = x @ w_ih.t() + dropout(h[:running], r, recurrent_scale) @ w_hh.t()
        for bias in (b_ih, b_hh):
            a = a if bias is None else a + bias
        output[t] = dropout(a, m, hidden_scale, nonlinearity=nonlinearity)
        h = torch.cat([output[t], h[running:]])
    return torch.cat(output), h
