"""What a report says, section by section: a text, a table, a chart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from ..cases import CELLS, DTYPES, HEADLINE, SWEEPS
from ..contenders.base import BASELINE, GRAPH, LIMIT, LOOP, OURS
from ..measure.results import NAN
from . import analysis

EVALUATION_AIM = 1.02


class Aims(NamedTuple):
    """Of a training step: its geometric means, its worst of torch.nn, and its worst of the bare products where H >= 256."""

    means: dict[str, float]
    worst: float
    products: float


AIMS = {
    "RNN": Aims({BASELINE: 0.85, "torch.nn + nn.Dropout": 0.6, LOOP: 0.4}, worst=1, products=1.25),
    "LSTM": Aims({BASELINE: 1.1}, worst=1.5, products=1.35),
    "GRU": Aims({BASELINE: 0.7}, worst=1, products=1.35),
}
METHOD = """\
- All contenders of a case alternate within one process, in a new random order each round; a ratio is the median of the rounds'
  ratios. What a resumed run adds is timed in turns with rnndrop and torch.nn again, and compared with these times of theirs.
- Before it is timed each contender is checked: equal to torch.nn's layer with every dropout at 0, outputs and gradients; then
  the masks of a seed against a plain float64 loop; then, called as it is timed, the drop rate, the scale and that masks differ.
- A training step is forward, `output.sum()` as the loss (which costs least) and backward. The input needs no gradient unless
  the case says so. Hidden dropout is 0.2 with a fresh mask a step unless the case says so. torch.nn is nn.RNN, nn.LSTM or
  nn.GRU without any dropout, torch.nn + nn.Dropout drops its output only: neither does what rnndrop does; the loops do.
- Inputs and weights are random; four inputs rotate. First calls (compilation) are kept apart as `first_call_s`. Python's
  garbage collector rests while times are taken. On CUDA: events around a call after a write over the L2 cache,
  and the same step replayed as a CUDA graph ("graph"). Clocks are left as they are.
- "matrix products" is the limit of any implementation that calls the same library: the products of the layer alone, outputs
  preallocated.
- The compiled loop has its step under torch.compile (compiling the unrolled loop takes minutes). Keras masks the recurrent
  input once a sequence, and that of each gate of an LSTM or GRU by itself. haste drops elements of the recurrent weight.
- Bytes held for backward are whole storages seen by `saved_tensors_hooks`, each once, without weights and input."""
GROUPS = {
    "dropout": "Kinds of dropout beside what others have",
    "network": "Layers, directions, input gradient",
    "short": "Short sequences",
    "packed": "Packed sequences of many lengths",
}
NOTHING = "\N{EN DASH}"  # where nothing was measured


@dataclass(frozen=True)
class Section:
    """`chart`: the name of one; a section with a chart has nothing else."""

    title: str = ""
    text: str = ""
    table: pd.DataFrame | None = None
    chart: str = ""


def sections(rows: pd.DataFrame, environment: dict[str, Any]) -> Iterator[Section]:
    for cell in CELLS:
        yield from _headline(rows, cell)
        yield Section(chart=f"ratios-{cell}")
    yield from _other_cases(rows)
    yield from _growth(rows)
    yield from _memory(rows)
    yield from _contradictions(rows)
    yield _times(rows)
    yield from _not_measured(rows)
    yield Section("Method", METHOD)
    yield _environment(rows, environment)


def number(value: object) -> str:
    """Three digits; a dash where nothing was measured."""
    if not isinstance(value, (int, float)):
        return str(value)
    return NOTHING if value != value else f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def _by_case(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(number).reset_index(names="case")


def _headline(rows: pd.DataFrame, cell: str) -> Iterator[Section]:
    for dtype in DTYPES:
        table = analysis.headline(rows, cell, dtype=dtype)
        if table.empty:
            continue
        text = "Time of rnndrop over the time of the other, forward and backward; below 1, rnndrop is faster."
        if dtype == "fp32" and {case.name for case in HEADLINE[cell]} <= set(table.index):
            text += _aims(table, cell)
        yield Section(f"A training step of {cell} with dropout inside, {dtype}", text, _by_case(table))
        table = analysis.headline(rows, cell, dtype=dtype, graph=True)
        if not table.empty:
            text = "The host launches a copy of the input and one graph."
            yield Section(f"The same of {cell} as CUDA graphs, {dtype}", text, _by_case(table))


def _aims(table: pd.DataFrame, cell: str) -> str:
    """The aims of the project beside what was reached."""
    means, cases, aims = table.loc["geometric mean"], table.drop("geometric mean"), AIMS[cell]
    said = [f"{means[name]:.2f} of {name} (at most {aim})" for name, aim in aims.means.items() if means.get(name, NAN) > 0]
    if BASELINE in cases and cases[BASELINE].notna().any():
        said.append(f"at worst {cases[BASELINE].max():.2f} of {BASELINE} (at most {aims.worst})")
    if LIMIT in cases:
        worst = cases.loc[[case.name for case in HEADLINE[cell] if case.H >= 256], LIMIT].max()
        said.append(f"at worst {worst:.2f} of the matrix products where H >= 256 (at most {aims.products})")
    return f" Reached, and aimed at: {'; '.join(said)}." if said else ""


def _other_cases(rows: pd.DataFrame) -> Iterator[Section]:
    for pass_, name in {"inference": "evaluation", "forward": "forward in training"}.items():
        for cell in CELLS:
            table = analysis.headline(rows, cell, pass_)
            if not table.empty:
                mean = table[BASELINE].get("geometric mean", NAN) if pass_ == "inference" and BASELINE in table else NAN
                aim = f" Of {BASELINE} it takes {mean:.3f} (aim: at most {EVALUATION_AIM})." if mean == mean else ""
                yield Section(f"The same cases of {cell}, {name}", f"Time of rnndrop over the other's.{aim}", _by_case(table))
    for cell in CELLS:
        table = analysis.kinds(rows, cell)
        if set(table.columns) - {"hidden"}:
            text = (
                f"A training step unless said, time of rnndrop over that of nn.{cell} without any dropout, by what is dropped."
            )
            yield Section(f"Kinds of dropout of {cell}", text, _by_case(table))
    found = analysis.ratios(rows)
    for group, title in GROUPS.items():
        yield from _ratios(title, found[found.group == group])
    table = analysis.cells(rows)
    if len(table):
        yield Section(
            "A loop of cells", "Time of a loop of rnndrop's cells over that of the loops of torch.nn's.", _by_case(table)
        )


def _ratios(title: str, found: pd.DataFrame) -> Iterator[Section]:
    """Ratios of training steps, a row for each case and dtype."""
    found = found[(found["pass"] == "train") & ~found.contender.str.endswith(GRAPH)]
    if not found.empty:
        table = found.pivot_table("ratio", ["case", "dtype"], "contender", sort=False)
        table = table[analysis.by_importance(table.columns)].map(number).reset_index()
        yield Section(title, "A training step, time of rnndrop over the other's.", table)


def _growth(rows: pd.DataFrame) -> Iterator[Section]:
    ratios = analysis.ratios(rows)
    for over in SWEEPS:
        names = analysis.sweep(rows, over).case.unique()
        yield from _ratios(f"Growing {over}", ratios[ratios.case.isin(names)].sort_values(over))
    found = pd.concat([analysis.growth(rows, over) for over in SWEEPS])
    if len(found):
        table = found[["over", "contender", "dtype"]].assign(
            **{
                "exponent": found.exponent.map("{:.2f}".format),
                "ms at T = 0": (found.constant_s * 1e3).map(number),
                "us a step": (found.per_step_s * 1e6).map(number),
                "R2": found.r2.map(number),
            }
        )
        text = (
            "Time of a training step, of its fastest round, as a power of T, B or H over the upper half of the sweep; over T "
            "also the straight line through all lengths."
        )
        yield Section("Growth", text, table)
        yield Section(chart="growth")


def _memory(rows: pd.DataFrame) -> Iterator[Section]:
    for cell in CELLS:
        table = analysis.held(rows, cell)
        if table.empty:
            continue
        text = "Bytes for each element of the output, without weights and input."
        if {OURS, LOOP} <= set(table.columns):
            text += f" rnndrop holds {(table[OURS] / table[LOOP]).max():.2f} of the loop's at most (aim: 0.5)."
        yield Section(f"Held for the backward pass of {cell}", text, _by_case(table))
        yield Section(chart=f"memory-{cell}")
    peaks = analysis.timed(rows)
    peaks = peaks[peaks.peak_bytes.notna() & analysis.of_headline(peaks) & (peaks["pass"] == "train")]
    if not peaks.empty:
        table = peaks.pivot_table("peak_bytes", ["case", "dtype"], "contender", sort=False) / 1e6
        yield Section("Peak on the device", "MB above what was allocated before the step.", table.map(number).reset_index())


def _contradictions(rows: pd.DataFrame) -> Iterator[Section]:
    if not analysis.timed(rows).contender.str.startswith(analysis.STRATEGY).any():
        return
    title, found = 'Where another strategy was faster than the one "auto" chose', analysis.contradictions(rows)
    if found.empty:
        yield Section(title, "Nowhere in what was measured.")
        return
    names = {"contender": "faster", "ratio": "auto / it", "low": "lower quartile", "high": "upper quartile"}
    table = found[["case", "pass", "dtype", "chosen", *names]].rename(columns=names)
    text = "Each case where the median of the rounds' ratios is above 1; quartiles on both sides of 1 are noise."
    yield Section(title, text, table.map(number))


def _times(rows: pd.DataFrame) -> Section:
    found = analysis.timed(rows)
    found = found[analysis.of_headline(found) & (found["pass"] == "train")]
    table = found[["case", "dtype", "contender"]].assign(
        **{
            "median, ms": (found.median_s * 1e3).map(number),
            "quartiles": [f"{number(a * 1e3)} to {number(b * 1e3)}" for a, b in zip(found.q25_s, found.q75_s, strict=True)],
            "runs": found.runs.astype(int),
            "first call, s": found.first_call_s.map(number),
        }
    )
    return Section("Times of a training step", "All other rows, and each round's time, are in rows.csv.", table)


def every_row(rows: pd.DataFrame) -> pd.DataFrame:
    """All that was measured or not, times in ms."""
    table = rows[["group", "case", "pass", "dtype", "contender", "status", "reason"]].copy()
    for name in ("median", "min", "q25", "q75", "q95"):
        table[f"{name}, ms"] = (rows[f"{name}_s"] * 1e3).map(number)
    table["runs"] = rows.runs.fillna(0).astype(int)
    table["first call, s"] = rows.first_call_s.map(number)
    table["held, MB"] = (rows.saved_bytes / 1e6).map(number)
    return table


def _not_measured(rows: pd.DataFrame) -> Iterator[Section]:
    missing = rows[rows.status != "ok"]
    if missing.empty:
        return
    groups = missing.groupby(["status", "contender", "reason"], sort=True).case.agg(["size", "first"]).reset_index()
    text = (
        '"skipped" cannot run here, "deferred" did not fit the time, "error" failed or was wrong; a resumed run tries these '
        "two again."
    )
    yield Section("Not measured, and why", text, groups.rename(columns={"size": "cases", "first": "for example"}))


def _environment(rows: pd.DataFrame, found: dict[str, Any]) -> Section:
    commits = ", ".join(analysis.timed(rows).commit.unique())  # a run may have been gone on with at a later one
    flat = {**found, "commit": commits, "versions": ", ".join(f"{k} {v}" for k, v in found.get("versions", {}).items())}
    flat["measured_rates"] = ", ".join(f"{k} {v:.3g}" for k, v in found.get("measured_rates", {}).items())
    table = pd.DataFrame([(k, v) for k, v in flat.items() if v], columns=["what", "value"])
    text = (
        "Repeat it by the command below at this commit; `python -m benchmarks compare A B` compares two results. "
        "`python -m benchmarks report` on this folder makes report.html: the same, with charts to look into and every row."
    )
    return Section("Environment", text, table)
