"""What got faster or slower between two results, and whether that is more than noise.

A contender's time is taken relative to plain torch.nn in the same round, where both were timed together, so that a machine that
is slower on another day does not count. The change is the quotient of the medians; its interval is a bootstrap over the rounds
of both results. A change counts where the whole interval is beyond what a rerun of the same code may differ by. A change of
torch.nn itself is the machine's or PyTorch's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from ..contenders.base import BASELINE
from ..measure import results
from ..measure.results import KEY
from .analysis import seconds, timed

TOLERANCE = 0.05  # of a change, below which none is claimed: memory layout and clocks differ between two processes
CONFIDENCE = 0.99
FEWEST = 5  # rounds
DRAWS = 2000


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """A row for each measurement that both have: its change, the interval of that, and a verdict."""
    both = (timed(rows)[[*KEY, "samples", "beside"]] for rows in (before, after))
    found = pd.merge(*both, on=KEY, suffixes=("_before", "_after")).sort_values(KEY)
    changes = []
    for row in found.to_dict("records"):
        old, new = (_logs(row[f"samples_{which}"]) for which in ("before", "after"))
        if not len(old) or not len(new):
            continue  # computed, not timed
        bases = [_logs(row[f"beside_{which}"].get(BASELINE, "")) for which in ("before", "after")]
        if row["contender"] == BASELINE:
            change = _change(old, new)
            change["verdict"] = "machine " * (change["verdict"] in ("slower", "faster")) + str(change["verdict"])
        elif all(map(len, bases)):
            change = _change(old - bases[0], new - bases[1])
        else:
            change = _change(old, new)
        changes.append({name: row[name] for name in KEY} | change)
    return pd.DataFrame(changes, columns=[*KEY, "change", "low", "high", "verdict"])


def _logs(samples: str) -> np.ndarray:
    """Logarithms of the seconds by round."""
    return np.log(seconds(samples))


def _change(old: np.ndarray, new: np.ndarray) -> dict[str, object]:
    """The quotient new / old with its interval."""
    rng = np.random.default_rng(0)

    def medians(x: np.ndarray) -> np.ndarray:
        return np.median(x[rng.integers(0, len(x), (DRAWS, len(x)))], axis=1)

    low, high = np.exp(np.quantile(medians(new) - medians(old), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    change = float(np.exp(np.median(new) - np.median(old)))
    if min(len(old), len(new)) < FEWEST:
        verdict = "too few runs"
    elif low > 1 + TOLERANCE:
        verdict = "slower"
    elif high < 1 / (1 + TOLERANCE):
        verdict = "faster"
    else:
        verdict = "unchanged"
    return {"change": change, "low": float(low), "high": float(high), "verdict": verdict}


def text(before: Path, after: Path) -> str:
    """The comparison as a table: what changed, and how many did not. FileNotFoundError where a folder has no results."""
    for folder in (before, after):
        if not (folder / "rows.csv").exists():
            raise FileNotFoundError(f"{folder} has no rows.csv")
    found = compare(results.read(before), results.read(after))
    machines = [_machine(results.read_environment(folder)) for folder in (before, after)]
    heading = f"Before: {machines[0]}. After: {machines[1]}.\n\n"
    if found.empty:
        return heading + "The two results have no measurement in common."
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdict.value_counts().items())
    changed = found[~found.verdict.isin(["unchanged", "too few runs"])].sort_values("change", ascending=False)
    table = changed[KEY].assign(
        **{
            "time after / before": changed.change.map("{:.2f}".format),
            f"{CONFIDENCE:.0%} interval": [f"{r.low:.2f} to {r.high:.2f}" for r in changed.itertuples()],
            "verdict": changed.verdict,
        }
    )
    width = float(np.median(np.sqrt(found.high / found.low)))
    return (
        f"{heading}{counts}. Times are relative to {BASELINE} in the same round if it was timed along. Half of the intervals "
        f"reach at most {width - 1:.0%} to either side: a smaller change cannot be told from noise; one below {TOLERANCE:.0%} "
        "is not claimed."
    ) + f"\n\n{tabulate(table, 'keys', 'github', showindex=False, disable_numparse=True)}" * (not table.empty)


def _machine(found: dict[str, Any]) -> str:
    return f"{found.get('device', 'unknown device')}, commit {found.get('commit') or 'unknown'}"
