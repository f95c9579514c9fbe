"""The cell table: what a layer of each cell is made of, under the names that torch.nn gives its modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Of one layer in one direction, G gates of H units: (G*H, I), (G*H, H) and twice (G*H) or ``None``.

    Of both directions at once: (2*G*H, I), (2, G*H, H) and (2*G*H).
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Weights:
        """Of two tensors or, with the biases, four."""
        w_ih, w_hh, *biases = tensors
        b_ih, b_hh = biases or (None, None)
        return cls(w_ih, w_hh, b_ih, b_hh)

    @classmethod
    def of_both(cls, forward: Weights, backward: Weights) -> Weights:
        """Those of both directions at once."""
        pairs = zip(forward[2:], backward[2:], strict=True)
        b_ih, b_hh = (None if one is None or other is None else torch.cat([one, other]) for one, other in pairs)
        return cls(torch.cat([forward.w_ih, backward.w_ih]), torch.stack([forward.w_hh, backward.w_hh]), b_ih, b_hh)

    @property
    def directions(self) -> int:
        return 2 if self.w_hh.dim() == 3 else 1

    def of_direction(self, direction: int) -> Weights:
        """Those of one of both directions."""
        b_ih, b_hh = (None if b is None else b.chunk(2)[direction] for b in self[2:])
        return Weights(self.w_ih.chunk(2)[direction], self.w_hh[direction], b_ih, b_hh)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        b_ih, b_hh = (None if b is None else function(b) for b in self[2:])
        return Weights(function(self.w_ih), function(self.w_hh), b_ih, b_hh)

    @property
    def bias(self) -> Tensor | None:
        """The sum of both biases, for a cell that adds both to the same."""
        return self.b_hh if self.b_ih is None else self.b_ih if self.b_hh is None else self.b_ih + self.b_hh


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell.

    mode: torch.nn's name of it. activation: of its new state. gates: rows of its weights, in units of the hidden size.
    states: what it carries from step to step; the first is its output. kinds: of the masks inside its recurrence.
    """

    mode: str
    activation: str
    gates: int
    states: tuple[str, ...]
    kinds: tuple[str, ...] = ("hidden", "recurrent", "zoneout")


CELLS = {
    cell.mode: cell
    for cell in (
        Cell("RNN_TANH", "tanh", gates=1, states=("h",)),
        Cell("RNN_RELU", "relu", gates=1, states=("h",)),
    )
}


def rnn_mode(nonlinearity: str) -> str:
    """The mode of the plain RNN whose activation is "tanh" or "relu"."""
    return f"RNN_{nonlinearity.upper()}"
