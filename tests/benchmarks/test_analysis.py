from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.cases import CELLS, Case, Cell, of_kind, select, with_dropouts
from benchmarks.contenders.base import BASELINE, GRAPH, LIMIT, LOOP, OUR_CELLS, OURS
from benchmarks.measure import results, runner
from benchmarks.report import analysis
from tests.benchmarks.helpers import result


def test_ratios_are_of_rounds(tmp_path: Path) -> None:
    found = analysis.ratios(results.read(result(tmp_path / "a", {OURS: 1.0, BASELINE: 2.0}, seed=5)))
    assert found.ratio.between(0.48, 0.52).all() and (found.low < found.ratio).all()


def test_what_slows_a_whole_round_does_not_bend_its_ratio(tmp_path: Path) -> None:
    for name, seconds in {OURS: [1.0, 4.0, 2.0], BASELINE: [2.0, 8.0, 4.0]}.items():
        row = results.Row("case", name, "train", "fp32", "headline", "ok")
        runner.fill(row, seconds, "block")
        results.append(tmp_path, [row])
    assert analysis.ratios(results.read(tmp_path))[["low", "ratio", "high"]].to_numpy().tolist() == [[0.5] * 3]


def test_a_time_that_was_computed_has_a_ratio_of_medians(tmp_path: Path) -> None:
    result(tmp_path / "a", {OURS: 1.0}, seed=5, cases=1)
    results.append(tmp_path / "a", [results.Row("case0", "bytes / copy rate", "train", "fp32", "headline", "ok", median_s=0.5)])
    rows = results.read(tmp_path / "a")
    assert analysis.ratios(rows).ratio.to_list() == [rows.median_s[0] / 0.5]


def test_the_headline_in_order_with_means_of_what_has_all_cases(tmp_path: Path) -> None:
    seconds = {"loop": 4.0, BASELINE: 2.0, OURS: 1.0, OURS + GRAPH: 0.5, BASELINE + GRAPH: 2.0, "part": 1.0}
    rows = results.read(result(tmp_path / "a", seconds, seed=5, cases=2))
    rows = rows[(rows.contender != "part") | (rows.case == "case0")]
    table = analysis.headline(rows)
    assert list(table.columns) == [BASELINE, "loop", "part"] and list(table.index) == ["case0", "case1", "geometric mean"]
    assert table[BASELINE].between(0.45, 0.55).all() and np.isnan(table["part"].iloc[-1])
    assert table[BASELINE].iloc[-1] == pytest.approx(np.sqrt(table[BASELINE].iloc[0] * table[BASELINE].iloc[1]))
    graph = analysis.headline(rows, graph=True)
    assert list(graph.columns) == [BASELINE + GRAPH] and graph.to_numpy().max() < 0.3
    assert analysis.headline(rows, dtype="bf16").empty


def test_bytes_held_are_for_each_element(tmp_path: Path) -> None:
    shape = {"T": 2, "B": 3, "I": 1, "H": 5}
    names = {"loop": 240.0, OURS: 120.0, f"{OURS} cpu": 1.0, LIMIT: 0.0}
    rows = [results.Row("a", n, "train", "fp32", "headline", "ok", saved_bytes=b, **shape) for n, b in names.items()]
    results.append(tmp_path, rows)
    assert analysis.held(results.read(tmp_path)).to_dict("records") == [{OURS: 4.0, "loop": 8.0}]


def test_growth_finds_the_line(tmp_path: Path) -> None:
    for T in (16, 64, 256, 1024):
        row = results.Row(f"T{T}", OURS, "train", "fp32", "T", "ok", T=T, B=1, H=1)
        runner.fill(row, [2e-3 + 1e-4 * T] * 3, "")
        results.append(tmp_path, [row])
    (line,) = analysis.growth(results.read(tmp_path), "T").itertuples()
    assert line.constant_s == pytest.approx(2e-3) and line.per_step_s == pytest.approx(1e-4) and line.r2 == pytest.approx(1)
    assert 0.9 < line.exponent < 1


def test_each_length_has_the_same_weight_in_the_line(tmp_path: Path) -> None:
    """The relative errors of the fit are orthogonal to what is fitted."""
    x, y = np.array([16.0, 64.0, 256.0, 1024.0]), np.array([2.0, 9.0, 30.0, 150.0])
    for T, ms in zip(x, y, strict=True):
        results.append(tmp_path, [results.Row(f"T{T}", OURS, "train", "fp32", "T", "ok", min_s=ms / 1e3, T=int(T), B=1, H=1)])
    (line,) = analysis.growth(results.read(tmp_path), "T").itertuples()
    errors = (y - 1e3 * (line.constant_s + line.per_step_s * x)) / y
    assert abs(errors @ (1 / y)) < 1e-9 and abs(errors @ (x / y)) < 1e-6
    assert 0 < line.r2 < 1


def test_a_shape_of_two_sweeps_is_measured_once_and_in_both(tmp_path: Path) -> None:
    whole = select("cpu", False, ["T T", "H T64"])
    assert [case.group for case in whole if case.name == "T64-B32-I128-H128"] == ["T"]
    rows = [results.Row(case.name, OURS, "train", "fp32", case.group, "ok", T=case.T, B=case.B, H=case.H) for case in whole]
    results.append(tmp_path, rows)
    assert {over: len(analysis.sweep(results.read(tmp_path), over)) for over in "TBH"} == {"T": 8, "B": 0, "H": 7}


def test_contradictions_of_auto(tmp_path: Path) -> None:
    seconds = {OURS: 1.0, BASELINE: 1.0, f"{OURS} resident": 0.8, f"{OURS} stepwise": 1.5}
    rows = results.read(result(tmp_path / "a", seconds, seed=5, cases=2))
    rows.loc[(rows.contender == OURS) & (rows.case == "case0"), "chosen"] = "resident"  # which is no other strategy
    found = analysis.contradictions(rows)
    assert found.contender.to_list() == [f"{OURS} resident"] and found.case.to_list() == ["case1"]
    assert analysis.contradictions(rows[rows.contender != f"{OURS} resident"]).empty


@pytest.mark.parametrize("cell", CELLS)
def test_kinds_are_columns_with_their_mean_and_worst(cell: Cell, tmp_path: Path) -> None:
    shapes = [Case("headline", 2, 3, 4, H, cell=cell) for H in (5, 6)]
    zoned = with_dropouts(shapes[0], {"zoneout": 0.1})
    seconds = {  # rnndrop's, torch.nn taking 1
        **dict(zip((case.key for case in shapes), (0.25, 1.0), strict=True)),
        **{of_kind(case, {"zoneout": 0.1}).key: 1.5 for case in shapes},
        of_kind(shapes[0], {"input_dropout": 0.2}).key: 0.7,
    }
    cases = [*shapes, *(of_kind(case, {"zoneout": 0.1}) for case in shapes), of_kind(shapes[0], {"input_dropout": 0.2})]
    for case in [*cases, replace(zoned, pass_="inference"), replace(shapes[0], pass_="inference")]:
        for name, median in {OURS: seconds.get(case.key, 9.0), BASELINE: 1.0, "loop": 5.0}.items():
            row = results.Row(case.name, name, case.pass_, "fp32", case.group, "ok", cell=cell)
            runner.fill(row, [median] * 3, f"block {case.key}")
            results.append(tmp_path, [row])
    nan = float("nan")
    expected = {
        "hidden": [0.25, 1.0, 0.5, 1.0],
        "zoneout": [1.5, 1.5, 1.5, 1.5],
        "input": [0.7, nan, nan, 0.7],
        "zoneout, inference": [9.0, nan, nan, 9.0],
    }
    assert all(analysis.kinds(results.read(tmp_path), other).empty for other in CELLS.keys() - {cell})
    table = analysis.kinds(results.read(tmp_path), cell)
    assert list(table.index) == ["T2-B3-I4-H5", "T2-B3-I4-H6", "geometric mean", "worst"]
    np.testing.assert_allclose(table, pd.DataFrame(expected))


def test_loops_of_cells_are_beside_the_loops(tmp_path: Path) -> None:
    result(tmp_path / "a", {OURS: 1.0, BASELINE: 1.0, OUR_CELLS: 3.0, LOOP: 2.0, "loop, one mask": 1.0}, seed=5, cases=2)
    table = analysis.cells(results.read(tmp_path / "a"))
    assert list(table) == [LOOP, "loop, one mask"] and list(table.index) == ["case0", "case1"]
    assert table[LOOP].between(1.4, 1.6).all() and table["loop, one mask"].between(2.8, 3.2).all()
