"""Out of rows: ratios, growth, and where "auto" chose worse than it could."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ..cases import HEADLINE, SWEEPS
from ..contenders.base import BASELINE, GRAPH, LIMIT, LOOP, OUR_CELLS, OURS
from ..measure.results import CASE, NAN

SHAPES = [case.name for cases in HEADLINE.values() for case in cases]
IMPORTANT = [OURS, BASELINE, "torch.nn + nn.Dropout", LOOP, "loop, compiled", "loop, one mask", "Keras", LIMIT]
STRATEGY = f"{OURS} "  # how the names of ours by strategy begin
COMPUTED = " rate"  # how the names of limits end that were computed from measured rates


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.status == "ok"]


def ratios(rows: pd.DataFrame, ours: str = OURS) -> pd.DataFrame:
    """`ratio`: the time of `ours` over that of each other contender of the same case; below 1, ours is faster.

    It is the median of the rounds' ratios, with their quartiles; a time that was computed has no rounds. Without a row where
    the two were not timed in the same rounds.
    """
    found = []
    shared = [*CASE, "group", "contender", "T", "B", "I", "H"]
    for _, group in timed(rows).groupby(CASE, sort=False):
        for _, mine in group[group.contender == ours].iterrows():
            for _, other in group[group.contender != ours].iterrows():
                if len(quotients := _quotients(mine, other)):
                    found.append([*other[shared], *np.quantile(quotients, (0.25, 0.5, 0.75))])
    return pd.DataFrame(found, columns=[*shared, "low", "ratio", "high"])


def _quotients(mine: pd.Series, other: pd.Series) -> np.ndarray:
    """By round."""
    if not other.samples:
        return np.array([mine.median_s / other.median_s])
    beside = seconds(other.beside.get(mine.contender, ""))
    return beside / seconds(other.samples) if len(beside) else beside


def seconds(samples: str) -> np.ndarray:
    """Of each round."""
    return np.array(samples.split(), float)


def headline(
    rows: pd.DataFrame, cell: str = "RNN", pass_: str = "train", dtype: str = "fp32", graph: bool = False
) -> pd.DataFrame:
    """The headline's cases of a cell and, of contenders that have all of them, the geometric mean, by the other contender.

    graph: rnndrop and the others replayed as CUDA graphs, else none of them.
    """
    found = ratios(rows[rows.cell == cell], OURS + GRAPH * graph)
    found = found[(found.contender.str.endswith(GRAPH) == graph) | found.contender.str.endswith(COMPUTED)]
    found = found[(found["pass"] == pass_) & (found.dtype == dtype)]
    table = _by_shape(found, "ratio")
    return with_means(table) if len(table) > 1 else table


def with_means(table: pd.DataFrame) -> pd.DataFrame:
    """A row more: the geometric mean of each column that lacks nothing."""
    table.loc["geometric mean"] = np.exp(np.log(table).mean(skipna=False))
    return table


def kinds(rows: pd.DataFrame, cell: str = "RNN") -> pd.DataFrame:
    """rnndrop's time over that of torch.nn without dropout, fp32, by shape and by what is dropped, with means and the worst."""
    found = ratios(rows[rows.cell == cell])
    found = found[(found.contender == BASELINE) & (found.dtype == "fp32") & found.group.isin(["headline", "dropout", "kinds"])]
    found = found[(found["pass"] == "train") | (found.group != "headline")]
    shapes, dropped = (
        found.case.str.extract(r"^(\S+)")[0],
        found.case.str.extract(rf" (?!{cell}$)(?:{cell} )?(.+)")[0].fillna("hidden"),
    )
    dropped = dropped.where(found["pass"] == "train", dropped + ", " + found["pass"])
    table = found.assign(shape=shapes, dropped=dropped).pivot_table("ratio", "shape", "dropped", sort=False)
    worst = table.max()
    table = with_means(table)
    table.loc["worst"] = worst
    return table.rename_axis(index=None, columns=None)


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The time of a loop of rnndrop's cells over that of each loop of torch.nn's, a row for each case."""
    found = ratios(rows, OUR_CELLS)
    found = found[found.contender.str.startswith(LOOP) & (found["pass"] == "train")]
    return found.pivot_table("ratio", "case", "contender", sort=False).rename_axis(index=None, columns=None)


def held(rows: pd.DataFrame, cell: str = "RNN") -> pd.DataFrame:
    """Bytes held for the backward pass for each element of the output, by shape and contender, of a cell's headline in fp32."""
    found = timed(rows[rows.cell == cell])
    found = found[(found["pass"] == "train") & (found.dtype == "fp32") & found.saved_bytes.notna()]
    found = found[~found.contender.isin([OUR_CELLS, LIMIT]) & ~found.contender.str.startswith(STRATEGY)]
    return _by_shape(found.assign(held=found.saved_bytes / (found["T"] * found.B * found.H)), "held")


def _by_shape(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    """A row for each shape of the headline, in its order, a column for each contender."""
    table = rows[of_headline(rows)].pivot(index="case", columns="contender", values=values)
    cases = [s for s in SHAPES if s in table.index] + [s for s in table.index if s not in SHAPES]
    return table.loc[cases, by_importance(table.columns)].rename_axis(index=None, columns=None)


def of_headline(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of the headline's shapes."""
    return rows.case.isin(SHAPES) | (rows.group == "headline")


def by_importance(names: Iterable[str]) -> list[str]:
    """Contenders as tables and pictures have them."""
    return sorted(names, key=lambda name: (IMPORTANT.index(name) if name in IMPORTANT else len(IMPORTANT), name))


def sweep(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """The rows of a sweep over T, B or H, in order, without CUDA graphs: none of fewer than three sizes.

    A shape may belong to two sweeps.
    """
    found = timed(rows)
    found = found[(found.group == over) | found.case.isin([case.name for case in SWEEPS[over]])]
    found = found[(found["pass"] == "train") & ~found.contender.str.endswith((GRAPH, COMPUTED))]
    return found.sort_values(["contender", "dtype", over])[: len(found) * (found[over].nunique() >= 3)]


def growth(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """How each contender's time grows over a sweep: that of the fastest round, because sizes are not timed in turns and what
    else the machine does would bend the line.

    exponent: of the upper half of the sweep. constant_s, per_step_s and r2: of a straight line in T, fitted to relative errors.
    """
    found = []
    for (contender, dtype), group in sweep(rows, over).groupby(["contender", "dtype"], sort=False):
        x, y = group[over].to_numpy(float), group.min_s.to_numpy(float)
        if len(x) >= 3:
            half = slice(len(x) // 2 - (len(x) < 4), None)
            exponent = np.polyfit(np.log(x[half]), np.log(y[half]), 1)[0]
            found.append([over, contender, dtype, exponent, *(_line(x, y) if over == "T" else [NAN] * 3)])
    return pd.DataFrame(found, columns=["over", "contender", "dtype", "exponent", "constant_s", "per_step_s", "r2"])


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Constant, slope and R2 of y over x, each point with the same relative weight."""
    slope, constant = np.polyfit(x, y, 1, w=1 / y)
    off = (y - constant - slope * x) / y
    around = (y - np.average(y, weights=1 / y**2)) / y
    return float(constant), float(slope), float(1 - (off**2).sum() / (around**2).sum())


def contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Cases where a strategy other than the one "auto" chose was faster in more than half of the rounds."""
    found = ratios(rows)
    found = found[found.contender.str.startswith(STRATEGY) & (found.ratio > 1)]
    found = found.merge(rows[rows.contender == OURS][[*CASE, "chosen"]], on=CASE)
    return found[found.contender != STRATEGY + found.chosen]
