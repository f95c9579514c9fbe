"""Out of rows: ratios, growth, and where "auto" chose worse than it could."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .cases import HEADLINE, SWEEPS
from .providers import BASELINE, GRAPH, LIMIT, OURS
from .results import CASE

SHAPES = ["T{}-B{}-I{}-H{}".format(*shape) for shape in HEADLINE]


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.status == "ok"]


def ratios(rows: pd.DataFrame, ours: str = OURS) -> pd.DataFrame:
    """`ratio`: the time of `ours` over that of each other provider of the same case; below 1, ours is faster.

    It is the median of the rounds' ratios, with their quartiles; a time that was computed has no rounds. Without a row where
    the two were not timed in the same rounds.
    """
    found = []
    for _, group in timed(rows).groupby(CASE, sort=False):
        mine = group[group.provider == ours]
        if mine.empty:
            continue
        for other in group[group.provider != ours].itertuples():
            q = _quotients(mine.iloc[0], other, ours)
            if not len(q):
                continue
            quartiles = dict(zip(("low", "ratio", "high"), np.quantile(q, (0.25, 0.5, 0.75)), strict=True))
            shared = {name: getattr(other, name) for name in [*CASE, "group", "provider", "T", "B", "I", "H"]}
            found.append(shared | quartiles)
    return pd.DataFrame(found, columns=[*CASE, "group", "provider", "T", "B", "I", "H", "low", "ratio", "high"])


def _quotients(mine: pd.Series, other: Any, ours: str) -> np.ndarray:
    if not other.samples:
        return np.array([mine.median_s / other.median_s])
    beside = seconds(other.beside.get(ours, ""))
    return beside / seconds(other.samples) if len(beside) else beside


def seconds(samples: str) -> np.ndarray:
    """Of each round."""
    return np.array(samples.split(), float)


def headline(rows: pd.DataFrame, direction: str = "train", dtype: str = "fp32", graph: bool = False) -> pd.DataFrame:
    """The seven cases and, of providers that have all of them, the geometric mean, by the other provider.

    graph: rnndrop and the others replayed as CUDA graphs, else none of them.
    """
    found = ratios(rows, OURS + GRAPH * graph)
    found = found[(found.provider.str.endswith(GRAPH) == graph) | found.provider.str.endswith(" rate")]
    found = found[(found.direction == direction) & (found.dtype == dtype) & of_headline(found)]
    if found.empty:
        return pd.DataFrame()
    table = found.pivot(index="case", columns="provider", values="ratio")
    table = table.reindex(index=in_order(table.index), columns=by_importance(table.columns))
    if len(table) > 1:
        table.loc["geometric mean"] = np.exp(np.log(table).mean(skipna=False))
    return table.rename_axis(index=None, columns=None)


def of_headline(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of the headline's shapes."""
    return rows.case.isin(SHAPES) | (rows.group == "headline")


def in_order(cases: pd.Index) -> list[str]:
    """Shapes as the headline has them, others after them."""
    return [s for s in SHAPES if s in cases] + [s for s in cases if s not in SHAPES]


def by_importance(names: pd.Index | list[str]) -> list[str]:
    """Providers as the tables have them."""
    first = [OURS, BASELINE, "nn.RNN + nn.Dropout", "loop", "loop, compiled", "loop, one mask", "Keras SimpleRNN", LIMIT]
    return [n for n in first if n in names] + sorted(n for n in names if n not in first)


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """Bytes held for the backward pass for each element of the output, by shape and provider, of the headline in fp32."""
    found = timed(rows)
    found = found[of_headline(found) & (found.direction == "train") & (found.dtype == "fp32") & found.saved_bytes.notna()]
    found = found[(found.provider != LIMIT) & ~found.provider.str.startswith(f"{OURS} ")]
    if found.empty:
        return pd.DataFrame()
    table = found.assign(held=found.saved_bytes / (found["T"] * found.B * found.H)).pivot(
        index="case", columns="provider", values="held"
    )
    return table.loc[in_order(table.index), by_importance(table.columns)]


@dataclass(frozen=True)
class Growth:
    """How a provider's time grows with T, B or H over a sweep: that of the fastest round, because sizes are not timed in turns
    and what else the machine does would bend the line.

    constant_s, per_step_s and r2: of a straight line in T, fitted to relative errors. exponent: of the upper half of a sweep.
    """

    provider: str
    dtype: str
    over: str
    exponent: float
    constant_s: float = float("nan")
    per_step_s: float = float("nan")
    r2: float = float("nan")


def sweep(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """The rows of a sweep over T, B or H, in order, without CUDA graphs: none of fewer than three sizes.

    A shape may belong to two sweeps.
    """
    found = timed(rows)
    found = found[(found.group == over) | found.case.isin([case.name for case in SWEEPS[over]])]
    found = found[(found.direction == "train") & ~found.provider.str.endswith(GRAPH) & ~found.provider.str.endswith(" rate")]
    return found.sort_values(["provider", "dtype", over])[: len(found) * (found[over].nunique() >= 3)]


def growth(rows: pd.DataFrame, over: str) -> list[Growth]:
    found = []
    for (provider, dtype), group in sweep(rows, over).groupby(["provider", "dtype"], sort=False):
        x, y = group[over].to_numpy(float), group.min_s.to_numpy(float)
        if len(x) < 3:
            continue
        half = slice(len(x) // 2 - (len(x) < 4), None)
        exponent = float(np.polyfit(np.log(x[half]), np.log(y[half]), 1)[0])
        line = _line(x, y) if over == "T" else (float("nan"),) * 3
        found.append(Growth(str(provider), str(dtype), over, exponent, *line))
    return found


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Constant, slope and R2 of y over x, each point with the same relative weight."""
    slope, constant = np.polyfit(x, y, 1, w=1 / y)
    off = (y - constant - slope * x) / y
    around = (y - np.average(y, weights=1 / y**2)) / y
    return float(constant), float(slope), float(1 - (off**2).sum() / (around**2).sum())


def contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Cases where a strategy other than the one "auto" chose was faster in more than half of the rounds."""
    found = ratios(rows)
    found = found[found.provider.str.startswith(f"{OURS} ") & (found.ratio > 1)]
    chosen = rows[rows.provider == OURS].set_index(CASE).chosen.to_dict()
    found = found.assign(chosen=pd.Series([chosen.get(tuple(key), "") for key in found[CASE].to_numpy()], found.index, str))
    return found[found.provider != f"{OURS} " + found.chosen]
