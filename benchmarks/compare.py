"""What got faster or slower between two results, and whether that is more than noise.

A provider's time is taken relative to plain nn.RNN in the same round, where both were timed together, so that a machine that is
slower on another day does not count. The change is the quotient of the medians; its interval is a bootstrap over the rounds of
both results. A change counts where the whole interval is beyond what a rerun of the same code may differ by. A change of
nn.RNN itself is the machine's or PyTorch's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from . import analysis, results
from .providers import BASELINE
from .results import KEY

TOLERANCE = 0.05  # of a change, below which none is claimed: memory layout and clocks differ between two processes
CONFIDENCE = 0.99
FEWEST = 5  # rounds
DRAWS = 2000


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """A row for each measurement that both have: its change, the interval of that, and a verdict."""
    times = [_times(rows) for rows in (before, after)]
    found = []
    for key in sorted(times[0].keys() & times[1].keys()):
        (old, old_base), (new, new_base) = times[0][key], times[1][key]
        if key[-1] != BASELINE and len(old_base) and len(new_base):
            old, new = old - old_base, new - new_base
        change = _change(old, new)
        if key[-1] == BASELINE and change["verdict"] in ("slower", "faster"):
            change["verdict"] = f"machine {change['verdict']}"
        found.append(dict(zip(KEY, key, strict=True)) | change)
    return pd.DataFrame(found, columns=[*KEY, "change", "low", "high", "verdict"])


def _times(rows: pd.DataFrame) -> dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
    """Logarithms of the seconds by round, and those of the baseline in the same rounds, if it was there."""
    timed = rows[(rows.status == "ok") & (rows.runs > 0)]
    return {
        tuple(str(getattr(row, name)) for name in KEY): (_logs(row.samples), _logs(row.beside.get(BASELINE, "")))
        for row in timed.itertuples()
    }


def _logs(samples: str) -> np.ndarray:
    return np.log(analysis.seconds(samples))


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
    rows = [
        [r.case, r.direction, r.dtype, r.provider, f"{r.change:.2f}", f"{r.low:.2f} to {r.high:.2f}", r.verdict]
        for r in changed.itertuples()
    ]
    head = ["case", "pass", "dtype", "provider", "time after / before", f"{CONFIDENCE:.0%} interval", "verdict"]
    table = "\n\n" + tabulate(rows, head, tablefmt="github", disable_numparse=True) if rows else ""
    width = float(np.median(np.sqrt(found.high / found.low)))
    return (
        f"{heading}{counts}. Times are relative to {BASELINE} in the same round if it was timed along. Half of the intervals "
        f"reach at most {width - 1:.0%} to either side: a smaller change cannot be told from noise; one below {TOLERANCE:.0%} "
        f"is not claimed.{table}"
    )


def _machine(found: dict[str, Any]) -> str:
    return f"{found.get('device', 'unknown device')}, commit {found.get('commit') or 'unknown'}"
