"""The pictures of a report: PNG by matplotlib, and the same interactive by plotly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import analysis
from .providers import BASELINE, LIMIT, OURS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F"]  # Okabe and Ito
MARKERS = [("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross")]
NAMED = [OURS, BASELINE, "nn.RNN + nn.Dropout", "loop", "loop, compiled", "loop, one mask", LIMIT, "Keras SimpleRNN"]
AXES = {"T": "steps T", "B": "sequences B", "H": "hidden units H"}
SWEPT = {"T": "B 32, I = H = 128", "B": "T 64, I = H = 256", "H": "T 64, B 32, I = H"}
TICKS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20]
RATIO = "time of rnndrop / time of the other"
HELD = "bytes for each element of the output"
Figures = dict[str, go.Figure]


def colour(name: str) -> str:
    return PALETTE[_index(name) % len(PALETTE)]


def _index(name: str) -> int:
    return NAMED.index(name) if name in NAMED else len(NAMED) + sum(map(ord, name))


def write(rows: pd.DataFrame, folder: Path, machine: str) -> tuple[list[str], Figures]:
    """PNG files in `folder` (their names) and plotly figures by title, of what the rows have."""
    drawn: list[str] = []
    figures: Figures = {}
    plots: list[tuple[str, str, Callable[..., Any], Callable[..., Any]]] = [
        ("ratios", "A training step against each alternative", _ratios_png, _ratios_html),
        ("growth", "How a training step grows", _growth_png, _growth_html),
        ("memory", "Bytes held for the backward pass", _memory_png, _memory_html),
    ]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "rnndrop"}):
        for name, title, png, html in plots:
            picture = png(rows, f"{title} ({machine})")
            if picture is None:
                continue
            picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight", facecolor="white")
            plt.close(picture)
            drawn.append(f"{name}.png")
            figures[title] = html(rows)
    return drawn, figures


def _headline(rows: pd.DataFrame) -> pd.DataFrame:
    table = analysis.headline(rows).dropna(axis=1, how="all")
    return table[[name for name in table.columns if not name.startswith(f"{OURS} ") and "rate" not in name]]


def _ratios_png(rows: pd.DataFrame, title: str) -> Any:
    table = _headline(rows)
    if table.empty:
        return None
    figure, axes = plt.subplots(figsize=(9.5, 0.5 * len(table) + 2.2))
    for number, name in enumerate(table.columns):
        heights = [len(table) - 1 - i for i in range(len(table))]
        axes.scatter(
            table[name],
            heights,
            s=64,
            color=colour(name),
            marker=MARKERS[number % len(MARKERS)][0],
            label=name,
            zorder=3,
            alpha=0.9,
        )
    axes.axvline(1, color="black", linewidth=1.2, zorder=2)
    if "geometric mean" in table.index:
        axes.axhline(0.5, color="grey", linewidth=0.6)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    low, high = np.nanmin(table.to_numpy(float)), np.nanmax(table.to_numpy(float))
    axes.set_xticks([tick for tick in TICKS if low / 1.3 <= tick <= high * 1.3])
    axes.set_xlim(min(low, 1) / 1.2, max(high, 1) * 1.2)
    axes.set_yticks(range(len(table))[::-1], _shape_labels(table.index))
    axes.set_xlabel(f"{RATIO} (logarithmic; left of the line rnndrop is faster)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, title="the other")
    return figure


def _shape_labels(index: pd.Index) -> list[str]:
    return [str(name).replace("-", "  ") for name in index]


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _swept(rows: pd.DataFrame, over: str) -> list[tuple[str, pd.DataFrame]]:
    found = analysis.sweep(rows, over)
    found = found[found.dtype == "fp32"]
    names = analysis.by_importance(list(found.provider.unique()))
    return [(name, found[found.provider == name]) for name in names]


def _growth_png(rows: pd.DataFrame, title: str) -> Any:
    sweeps = {over: _swept(rows, over) for over in AXES}
    sweeps = {over: lines for over, lines in sweeps.items() if lines}
    if not sweeps:
        return None
    figure, panels = plt.subplots(1, len(sweeps), figsize=(4.6 * len(sweeps) + 1, 4.2), squeeze=False)
    for axes, (over, lines) in zip(panels[0], sweeps.items(), strict=True):
        for number, (name, line) in enumerate(lines):
            style = {"color": colour(name), "marker": MARKERS[number % len(MARKERS)][0], "markersize": 5, "linewidth": 1.6}
            axes.plot(line[over], line.min_s * 1e3, label=name, **style)
            axes.fill_between(line[over], line.min_s * 1e3, line.median_s * 1e3, color=colour(name), alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel(f"{AXES[over]}  ({SWEPT[over]})")
        axes.set_ylabel("training step, ms")
        axes.grid(color="0.92")
    handles = {label: h for axes in panels[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0.99, 0.92), frameon=False)
    figure.suptitle(f"{title}; fastest round, shaded to the median", x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    return figure


def _memory_png(rows: pd.DataFrame, title: str) -> Any:
    table = analysis.held(rows)
    if table.empty:
        return None
    figure, axes = plt.subplots(figsize=(9.5, 4.2))
    width = 0.85 / len(table.columns)
    for number, name in enumerate(table.columns):
        places = [i + (number - (len(table.columns) - 1) / 2) * width for i in range(len(table))]
        axes.bar(places, table[name], width, color=colour(name), label=name, zorder=3)
    axes.set_ylabel(HELD)
    axes.set_xticks(range(len(table)), [str(name).replace("-", "\n") for name in table.index])
    axes.set_title(f"{title}\nwithout weights and input", loc="left", fontsize=11)
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def _styled(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 30, "b": 60}, font={"size": 13}
    )


def _ratios_html(rows: pd.DataFrame) -> go.Figure:
    table = _headline(rows)
    figure = go.Figure()
    for number, name in enumerate(table.columns):
        marker = {"size": 12, "color": colour(name), "symbol": MARKERS[number % len(MARKERS)][1]}
        hover = "%{y}<br>%{x:.3f}"
        figure.add_scatter(
            x=table[name], y=_shape_labels(table.index), mode="markers", name=name, marker=marker, hovertemplate=hover
        )
    figure.add_vline(x=1, line_width=2, line_color="black")
    figure.update_xaxes(type="log", title=f"{RATIO} (left of 1 rnndrop is faster)", tickvals=TICKS, ticktext=TICKS)
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, 480)


def _growth_html(rows: pd.DataFrame) -> go.Figure:
    sweeps = {over: lines for over in AXES if (lines := _swept(rows, over))}
    figure = make_subplots(1, len(sweeps), subplot_titles=[f"{AXES[over]} ({SWEPT[over]})" for over in sweeps])
    shown: set[str] = set()
    for column, (over, lines) in enumerate(sweeps.items(), 1):
        for number, (name, line) in enumerate(lines):
            to_median = (line.median_s - line.min_s) * 1e3
            spread = {"array": to_median, "arrayminus": 0 * to_median, "thickness": 1, "symmetric": False}
            marker = {"symbol": MARKERS[number % len(MARKERS)][1], "color": colour(name), "size": 8}
            options = {"name": name, "legendgroup": name, "showlegend": name not in shown, "marker": marker, "error_y": spread}
            figure.add_scatter(x=line[over], y=line.min_s * 1e3, mode="lines+markers", row=1, col=column, **options)
            shown.add(name)
        figure.update_xaxes(type="log", dtick=0.30103, tickformat="~g", row=1, col=column)
        figure.update_yaxes(type="log", title="training step, ms" if column == 1 else "", row=1, col=column)
    return _styled(figure, 480).update_layout(margin={"t": 50})


def _memory_html(rows: pd.DataFrame) -> go.Figure:
    table = analysis.held(rows)
    figure = go.Figure()
    hover = "%{x}<br>%{y:.3g} bytes"
    for name in table.columns:
        figure.add_bar(x=list(table.index), y=table[name], name=name, marker_color=colour(name), hovertemplate=hover)
    figure.update_yaxes(title=HELD)
    return _styled(figure, 440)
