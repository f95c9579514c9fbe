"""The pictures of a report, each twice out of the same table: PNG by matplotlib, and interactive by plotly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from ..cases import CELLS
from . import analysis

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000"]  # Okabe and Ito
MARKERS = ["o", "s", "^", "D", "v", "P"]
SYMBOLS = {  # as plotly has them
    "symbol": "contender",
    "symbol_sequence": ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"],
}
AXES = {
    "T": "steps T  (B 32, I = H = 128)",
    "B": "sequences B  (T 64, I = H = 256)",
    "H": "hidden units H  (T 64, B 32, I = H)",
}
TICKS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20]
RATIO = "time of rnndrop / time of the other"
STEP = "training step, ms"
HELD = "bytes for each element of the output"
LEGEND: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False}
Pair = tuple[Any, go.Figure]  # matplotlib's figure and plotly's


def write(rows: pd.DataFrame, folder: Path, machine: str) -> dict[str, go.Figure]:
    """Draw what the rows have: a PNG file of each chart's name in `folder`, and a plotly figure by name."""
    figures = {}
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        for name, chart in CHARTS.items():
            pair = chart.draw(rows, f"{chart.title} ({machine})")
            if pair:
                picture, figures[name] = pair
                picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight", facecolor="white")
                plt.close(picture)
    return figures


def _ratios(cell: str, rows: pd.DataFrame, title: str) -> Pair | None:
    table = analysis.headline(rows, cell).dropna(axis=1, how="all")
    table = table[[name for name in table.columns if not name.startswith(analysis.STRATEGY) and "rate" not in name]]
    if table.empty:
        return None
    table.index = table.index.str.replace("-", "  ")
    picture, axes = plt.subplots(figsize=(9.5, 0.5 * len(table) + 2.2))
    places = range(len(table))[::-1]
    for name, marker in zip(table, cycle(MARKERS), strict=False):
        axes.scatter(table[name], places, s=64, color=_colour(name), marker=marker, label=name, zorder=3, alpha=0.9)
    axes.axvline(1, color="black", linewidth=1.2, zorder=2)
    if "geometric mean" in table.index:
        axes.axhline(0.5, color="grey", linewidth=0.6)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    low, high = np.nanmin(table.to_numpy(float)), np.nanmax(table.to_numpy(float))
    axes.set_xticks([tick for tick in TICKS if low / 1.3 <= tick <= high * 1.3])
    axes.set_xlim(min(low, 1) / 1.2, max(high, 1) * 1.2)
    axes.set_yticks(places, table.index)
    axes.set_xlabel(f"{RATIO} (logarithmic; left of the line rnndrop is faster)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.legend(title="the other", **LEGEND)

    figure = px.scatter(_long(table, RATIO), x=RATIO, y="case", log_x=True, **SYMBOLS, **_style(table))
    figure.update_traces(marker_size=12).add_vline(x=1, line_width=2, line_color="black")
    figure.update_xaxes(title=f"{RATIO} (left of 1 rnndrop is faster)", tickvals=TICKS, ticktext=TICKS)
    figure.update_yaxes(title="", autorange="reversed")
    return picture, _sized(figure)


def _growth(rows: pd.DataFrame, title: str) -> Pair | None:
    """Lines of the fastest round, shaded to the median."""
    sweeps = {over: analysis.sweep(rows, over).query("dtype == 'fp32'") for over in AXES}
    sweeps = {over: found for over, found in sweeps.items() if len(found)}
    if not sweeps:
        return None
    picture, panels = plt.subplots(1, len(sweeps), figsize=(4.6 * len(sweeps) + 1, 4.2), squeeze=False)
    for axes, (over, found) in zip(panels[0], sweeps.items(), strict=True):
        for name, marker in zip(analysis.by_importance(found.contender.unique()), cycle(MARKERS), strict=False):
            line = found[found.contender == name]
            style = {"color": _colour(name), "marker": marker, "markersize": 5, "linewidth": 1.6}
            axes.plot(line[over], line.min_s * 1e3, label=name, **style)
            axes.fill_between(line[over], line.min_s * 1e3, line.median_s * 1e3, color=_colour(name), alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel(AXES[over])
        axes.set_ylabel(STEP)
        axes.grid(color="0.92")
    handles = {label: h for axes in panels[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    picture.legend(handles.values(), handles.keys(), **LEGEND | {"bbox_to_anchor": (0.99, 0.92)})
    picture.suptitle(f"{title}; fastest round, shaded to the median", x=0.01, ha="left", fontsize=11)
    picture.tight_layout()

    tables = [found.assign(over=AXES[over], size=found[over]) for over, found in sweeps.items()]
    table = pd.concat(tables).assign(none=0.0)
    table = table.assign(**{STEP: table.min_s * 1e3, "spread": (table.median_s - table.min_s) * 1e3})
    names = analysis.by_importance(table.contender.unique())
    spread = {"error_y": "spread", "error_y_minus": "none", "log_x": True, "log_y": True, "markers": True}
    figure = px.line(table, x="size", y=STEP, facet_col="over", **spread, **SYMBOLS, **_style(names))
    figure.update_xaxes(matches=None, title="", dtick=0.30103, tickformat="~g")
    figure.update_yaxes(matches=None, showticklabels=True)
    figure.for_each_annotation(lambda note: note.update(text=note.text.removeprefix("over=")))
    return picture, _sized(figure).update_layout(margin_t=50)


def _memory(cell: str, rows: pd.DataFrame, title: str) -> Pair | None:
    table = analysis.held(rows, cell)
    if table.empty:
        return None
    picture, axes = plt.subplots(figsize=(9.5, 4.2))
    table.rename(lambda name: name.replace("-", "\n")).plot.bar(
        ax=axes, rot=0, width=0.85, color=[_colour(name) for name in table], zorder=3, ylabel=HELD, legend=False
    )
    axes.set_title(f"{title}\nwithout weights and input", loc="left", fontsize=11)
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.legend(**LEGEND)
    figure = px.bar(_long(table, HELD), x="case", y=HELD, barmode="group", **_style(table))
    return picture, _sized(figure.update_xaxes(title=""))


def _colour(name: str) -> str:
    known = analysis.IMPORTANT
    return PALETTE[(known.index(name) if name in known else sum(map(ord, name))) % len(PALETTE)]


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _long(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row for each cell."""
    return table.reset_index(names="case").melt("case", var_name="contender", value_name=value)


def _style(names: Any) -> dict[str, Any]:
    """Of contenders in plotly: their order, and each its colour as in the PNG."""
    colours = {name: _colour(name) for name in names}
    return {"color": "contender", "color_discrete_map": colours, "category_orders": {"contender": list(names)}}


def _sized(figure: go.Figure) -> go.Figure:
    margin = {"l": 60, "r": 20, "t": 30, "b": 60}
    return figure.update_layout(template="plotly_white", height=480, margin=margin, font_size=13, legend_title="")


class Chart(NamedTuple):
    """draw: the pair of a picture out of rows and a title, or None where there is nothing to draw."""

    title: str
    draw: Callable[[pd.DataFrame, str], Pair | None]


CHARTS = {
    **{
        f"ratios-{cell}": Chart(f"A training step of {cell} against each alternative", partial(_ratios, cell)) for cell in CELLS
    },
    "growth": Chart("How a training step of RNN grows", _growth),
    **{f"memory-{cell}": Chart(f"Bytes held for the backward pass of {cell}", partial(_memory, cell)) for cell in CELLS},
}
