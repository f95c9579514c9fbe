"""The kinds of dropout: one table of what each is.

A new one is a row here, a field of dropouts.Dropouts with its option and attribute, and a line where it acts: layer.py for one
outside the recurrence; for one inside its name in cell.py and a line where a cell makes its states: reference.py, one_step.py,
backends/cpu/ (rnn, gru, lstm), kernels/cell.py and gates.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """number: in the mask stream. argument: of the modules. state: of one inside the recurrence, the state that its mask is as
    wide as, the cell's first (0) or last (-1). scoped: `mask_scope` governs its masks."""

    number: int
    argument: str
    state: int | None = None
    scoped: bool = True


KINDS = {
    "hidden": Kind(0, "hidden_dropout", state=0),
    "recurrent": Kind(1, "recurrent_dropout", state=0),
    "between": Kind(2, "dropout"),
    "input": Kind(3, "input_dropout"),
    "output": Kind(4, "output_dropout"),
    "weight": Kind(5, "weight_dropout", scoped=False),  # one mask a call
    "zoneout": Kind(6, "zoneout", state=0, scoped=False),  # always per step
    "cell": Kind(7, "cell_dropout", state=-1),
    "cell_zoneout": Kind(8, "cell_zoneout", state=-1, scoped=False),  # always per step
    "candidate": Kind(9, "candidate_dropout", state=-1),
}
INSIDE = tuple(name for name, kind in KINDS.items() if kind.state is not None)
SCOPED = tuple(name for name, kind in KINDS.items() if kind.scoped)
ZONEOUTS = ("zoneout", "cell_zoneout")  # take the old state where they drop, and are an expectation in evaluation
