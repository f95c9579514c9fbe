"""Where and how a run measures."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cases import Case
from . import results
from .machine import environment
from .rates import measured_rates
from .results import Row
from .timer import Stopwatch, stopwatch

MACHINE = ("device", "driver", "versions")  # of the environment: what all rows of a folder share; each has its own commit


@dataclass
class Session:
    """`facts`: the columns that all rows share. `ends`: when the time is used up, by `clock`. `rates`: see `measured_rates`."""

    folder: Path
    device: str
    watch: Stopwatch
    ends: float
    facts: dict[str, str]
    rates: dict[str, float]
    clock: Callable[[], float] = time.monotonic

    def row(self, case: Case, contender: str, status: str, reason: str = "") -> Row:
        when = datetime.datetime.now().isoformat(timespec="seconds")
        shape = {"cell": case.cell, "T": case.T, "B": case.B, "I": case.I, "H": case.H}
        facts: dict[str, Any] = {"when": when, "flops": case.flops(), **shape, **self.facts}
        return Row(case.name, contender, case.pass_, case.dtype, case.group, status, reason, **facts)

    def write(self, *rows: Row) -> None:
        results.append(self.folder, list(rows))


def open_session(folder: Path, device: str, ends: float, arguments: list[str]) -> Session:
    """A session on this machine, its environment written to the folder if that has none yet.

    Raises ValueError where the folder has results of another machine.
    """
    watch = stopwatch(device)
    found, old = environment(device, arguments), results.read_environment(folder)
    if differ := [name for name in MACHINE if old and old.get(name) != found[name]]:
        raise ValueError(f"{folder} has results of another {' and '.join(differ)}")
    folder.mkdir(parents=True, exist_ok=True)
    rates = old["measured_rates"] if old else measured_rates(device, watch)
    if not old:
        results.write_environment(folder, {**found, "measured_rates": rates})
    versions = " ".join(f"{name}={version}" for name, version in found["versions"].items())
    facts = {"device": found["device"], "driver": found["driver"], "versions": versions, "commit": found["commit"]}
    return Session(folder, device, watch, ends, facts, rates)
