"""The kinds of dropout: one table of what each is.

A new one is a row here, a field of dropouts.Dropouts with its option and attribute, and a line where it acts: layer.py for one
outside the recurrence; for one inside its name in cell.py and a line in each cell file.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """number: in the mask stream. argument: of the modules. inside: the recurrence. scoped: `mask_scope` governs its masks."""

    number: int
    argument: str
    inside: bool = False
    scoped: bool = True


KINDS = {
    "hidden": Kind(0, "hidden_dropout", inside=True),
    "recurrent": Kind(1, "recurrent_dropout", inside=True),
    "between": Kind(2, "dropout"),
    "input": Kind(3, "input_dropout"),
    "output": Kind(4, "output_dropout"),
    "weight": Kind(5, "weight_dropout", scoped=False),  # one mask a call
    "zoneout": Kind(6, "zoneout", inside=True, scoped=False),  # always per step
}
INSIDE = tuple(name for name, kind in KINDS.items() if kind.inside)
SCOPED = tuple(name for name, kind in KINDS.items() if kind.scoped)
