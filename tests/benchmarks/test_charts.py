from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_hex

from benchmarks.cases import CELLS, Cell
from benchmarks.contenders.base import BASELINE, LIMIT, OURS
from benchmarks.measure import results
from benchmarks.report import analysis, charts
from tests.benchmarks.helpers import TINY


@pytest.fixture(scope="module")
def drawn(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, go.Figure]]:
    """Of each chart matplotlib's figure and plotly's."""
    rows = results.read(smoke)
    drawn = {name: chart.draw(rows, "title") for name, chart in charts.CHARTS.items()}
    return {name: pair for name, pair in drawn.items() if pair}


@pytest.mark.parametrize("cell", CELLS)
def test_ratios_are_those_of_the_table(cell: Cell, smoke: Path, drawn: dict[str, tuple[Any, go.Figure]]) -> None:
    picture, figure = drawn[f"ratios-{cell}"]
    table = analysis.headline(results.read(smoke), cell)
    table = table[[name for name in table if not name.startswith(f"{OURS} ")]]
    assert list(table.index) == [replace(TINY, cell=cell).name]
    assert [trace.name for trace in figure.data] == list(table.columns)
    assert picture.axes[0].get_legend_handles_labels()[1] == list(table.columns)
    for points, trace in zip(picture.axes[0].collections, figure.data, strict=True):
        assert list(trace.x) == list(points.get_offsets()[:, 0]) == table[trace.name].to_list()
        assert to_hex(points.get_facecolor()[0]).upper() == trace.marker.color
    assert figure.layout.xaxis.type == "log" and figure.layout.yaxis.autorange == "reversed"


def test_growth_is_that_of_the_fastest_round(smoke: Path, drawn: dict[str, tuple[Any, go.Figure]]) -> None:
    picture, figure = drawn["growth"]
    assert len(picture.axes) == 1  # only T was swept
    for name, line, trace in zip((OURS, BASELINE), picture.axes[0].lines, figure.data, strict=True):
        found = analysis.sweep(results.read(smoke), "T").query("contender == @name")
        assert trace.name == line.get_label() == name and trace.line.color == line.get_color()
        assert list(trace.x) == list(line.get_xdata()) == [2, 4, 8, 16]
        assert list(trace.y) == list(line.get_ydata()) == (found.min_s * 1e3).to_list()
        assert [y + more for y, more in zip(trace.y, trace.error_y.array, strict=True)] == pytest.approx(
            (found.median_s * 1e3).to_list()
        )
        assert set(trace.error_y.arrayminus) == {0}
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


@pytest.mark.parametrize("cell", CELLS)
def test_memory_is_that_of_the_table(cell: Cell, smoke: Path, drawn: dict[str, tuple[Any, go.Figure]]) -> None:
    picture, figure = drawn[f"memory-{cell}"]
    table = analysis.held(results.read(smoke), cell)
    assert list(table.index) == [replace(TINY, cell=cell).name]
    assert LIMIT not in table and list(table.columns) == [trace.name for trace in figure.data]
    for bars, trace in zip(picture.axes[0].containers, figure.data, strict=True):
        assert list(trace.y) == [bar.get_height() for bar in bars] == table[trace.name].to_list()
        assert to_hex(bars[0].get_facecolor()).upper() == trace.marker.color


def test_nothing_is_drawn_of_nothing(smoke: Path, tmp_path: Path) -> None:
    rows = results.read(smoke)
    assert charts.write(rows[rows.status != "ok"], tmp_path, "machine") == {} and not list(tmp_path.iterdir())
