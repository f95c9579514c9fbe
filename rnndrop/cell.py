"""The cell table: what a layer of each cell is made of, under the names that torch.nn gives its modes.

A new cell is a row here, a step in reference.py and one_step.py, a file of backends/cpu/, what kernels/gates.py makes of its
gates, and its module, cell and layer in modules/ and functional.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Of one layer in one direction, G gates of H units: (G*H, I), (G*H, H) and twice (G*H) or ``None``.

    Of both directions at once: (2*G*H, I), (2, G*H, H) and (2*G*H). With a projection of the state, P units instead of H
    enter W_hh, and `w_hr` is (P, H).
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    @classmethod
    def of(cls, tensors: Sequence[Tensor], bias: bool = True) -> Weights:
        """Of torch.nn's list: two, then the biases, then a projection."""
        names = ["w_ih", "w_hh", *["b_ih", "b_hh"] * bias, "w_hr"]
        return cls(**dict(zip(names, tensors, strict=False)))

    @classmethod
    def of_both(cls, forward: Weights, backward: Weights) -> Weights:
        """Those of both directions at once."""
        pairs = zip(forward[2:4], backward[2:4], strict=True)
        b_ih, b_hh = (None if one is None or other is None else torch.cat([one, other]) for one, other in pairs)
        return cls(torch.cat([forward.w_ih, backward.w_ih]), torch.stack([forward.w_hh, backward.w_hh]), b_ih, b_hh)

    @property
    def directions(self) -> int:
        return 2 if self.w_hh.dim() == 3 else 1

    def of_direction(self, direction: int) -> Weights:
        """Those of one of both directions."""
        b_ih, b_hh = (None if b is None else b.chunk(2)[direction] for b in self[2:4])
        return Weights(self.w_ih.chunk(2)[direction], self.w_hh[direction], b_ih, b_hh)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        return Weights(*[None if tensor is None else function(tensor) for tensor in self])  # type: ignore[arg-type]

    @property
    def bias(self) -> Tensor | None:
        """The sum of both biases, for a cell that adds both to the same."""
        return self.b_hh if self.b_ih is None else self.b_ih if self.b_hh is None else self.b_ih + self.b_hh

    @property
    def biases_of_gru(self) -> tuple[Tensor | None, Tensor | None]:
        """What is added to W_ih x (3*H), and to W_hn h' (H)."""
        if self.b_hh is None:
            return self.b_ih, None
        bias, b_hn = self.b_hh.clone(), self.b_hh[-self.w_hh.shape[-1] :]
        bias[-b_hn.shape[0] :].zero_()
        return bias if self.b_ih is None else bias.add_(self.b_ih), b_hn


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell.

    Attributes:
        mode: torch.nn's name of it.
        activation: of what it makes.
        gates: rows of its weights, in units of the hidden size H.
        states: what it carries from step to step; the first is its output.
        kinds: of the masks inside its recurrence.
        columns: of a row of gates, in units of H, as a backend goes back through them: first the gates of W_hh, last those of
            W_ih, in the order of the weights' rows. A GRU multiplies W_hn h' + b_hn before it adds it, and has four: that, r,
            z and the candidate. (Hence W_hh's come as n, r, z.)
        saved: the widths of what a backend keeps for backward besides the output, in units of H, a row for each row of the
            sequences: of an LSTM the gates i, f, g, o after their activations, and the cell state; of a GRU W_hn h' + b_hn, and
            r, z and the candidate after theirs, before their dropouts.
    """

    mode: str
    activation: str
    gates: int
    states: tuple[str, ...]
    kinds: tuple[str, ...] = ("hidden", "recurrent", "zoneout")
    columns: int = 1
    saved: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """That of torch.nn's module."""
        return self.mode.split("_")[0]


CELLS = {
    cell.mode: cell
    for cell in (
        Cell("RNN_TANH", "tanh", gates=1, states=("h",)),
        Cell("RNN_RELU", "relu", gates=1, states=("h",)),
        Cell("GRU", "tanh", 3, ("h",), ("hidden", "recurrent", "zoneout", "candidate"), columns=4, saved=(4,)),
        Cell(
            "LSTM",
            "tanh",
            gates=4,
            states=("h", "c"),
            kinds=("hidden", "recurrent", "zoneout", "cell", "cell_zoneout", "candidate"),
            columns=4,
            saved=(4, 1),
        ),
    )
}


def rnn_mode(nonlinearity: str) -> str:
    """The mode of the plain RNN whose activation is "tanh" or "relu"."""
    return f"RNN_{nonlinearity.upper()}"
