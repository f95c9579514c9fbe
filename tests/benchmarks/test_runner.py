"""A run: what fails, what is stopped, what does not fit the time, and how it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contenders import BY_NAME, EVERYONE
from benchmarks.contenders.base import BASELINE, LIMIT, OURS, Contender, Model, Wrapped
from benchmarks.contenders.torch_nn import copy_of
from benchmarks.measure import memory, results, runner
from benchmarks.measure.prepare import Ready
from benchmarks.report import analysis
from tests.benchmarks.helpers import GATED_TINY, PLAIN, RNNDROP, TINY, broken, run, session


def test_every_contender_has_a_row_and_none_fails(smoke: Path) -> None:
    rows = results.read(smoke)
    assert not (rows.status == "error").any(), rows[rows.status == "error"][["contender", "reason"]].to_dict("records")
    for name, pass_ in [(TINY.name, "train"), (TINY.name, "inference"), *((tiny.name, "train") for tiny in GATED_TINY)]:
        found = rows[(rows.case == name) & (rows["pass"] == pass_)].set_index("contender")
        assert set(found.index) == set(BY_NAME) and len(found) == len(EVERYONE)
        assert {OURS, BASELINE, "torch.nn + nn.Dropout", "loop", "loop, compiled", "loop, one mask", LIMIT} <= set(
            found.index[found.status == "ok"]
        )
        assert (found.reason[found.status != "ok"] != "").all()
        assert found.chosen[OURS] and set(found.chosen.drop(OURS)) == {""}
    timed = rows[rows.status == "ok"]
    assert (timed.runs >= runner.LEAST).all() and (timed.min_s > 0).all() and (timed.min_s <= timed.median_s).all()
    assert (timed.first_call_s > 0).all() and timed.samples.map(lambda s: len(s.split())).eq(timed.runs).all()
    assert timed.block[timed.case == TINY.name].nunique() == 2


def test_saved_bytes_are_in_the_rows(smoke: Path) -> None:
    rows = results.read(smoke)
    held = rows[(rows.case == TINY.name) & (rows["pass"] == "train")].set_index("contender").saved_bytes
    assert 0 < held[OURS] < held["loop"]
    assert held[LIMIT] == 0


def test_saved_bytes_counts_each_storage_once() -> None:
    x, w = torch.randn(10, 4), torch.randn(4, 4, requires_grad=True)

    def forward() -> Tensor:
        y = torch.tanh(x @ w)
        return y * y[:, :4]  # the views are of one storage

    assert memory.saved_bytes(forward, [x, w]) == 10 * 4 * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y * 1.01, "off by"),
        (lambda y: y.detach() + 0 * y, "gradient"),
        (lambda y: y[:, :, :-1], "shape"),
        (lambda y: y * torch.nan, "off by nan"),
    ],
)
def test_wrong_values_give_an_error_and_no_time(tmp_path: Path, change: Any, reason: str) -> None:
    run(tmp_path, [TINY], [broken(change), PLAIN])
    rows = results.read(tmp_path).set_index("contender")
    assert rows.status.to_dict() == {"broken": "error", BASELINE: "ok"}
    assert reason in rows.reason["broken"] and np.isnan(rows.median_s["broken"]) and rows.samples["broken"] == ""


def test_a_contender_that_fails_or_runs_out_of_memory_leaves_the_others(tmp_path: Path) -> None:
    def fail(error: Exception) -> Callable[[Case, nn.RNNBase], Model]:
        def build(case: Case, rnn: nn.RNNBase) -> Model:
            raise error

        return build

    calls = iter(range(1000))

    def late(y: Tensor) -> Tensor:
        if next(calls) > 6:
            raise RuntimeError("late")
        return y

    contenders = [
        Contender("memory", fail(torch.OutOfMemoryError("out of memory: 1 GiB\nmore"))),
        Contender("refuses", fail(ValueError("strategy 'x' cannot run: H is odd"))),
        broken(late, "late"),
        PLAIN,
    ]
    run(tmp_path, [TINY], contenders)
    rows = results.read(tmp_path).set_index("contender")
    assert rows.status.to_dict() == {"memory": "error", "refuses": "skipped", "late": "error", BASELINE: "ok"}
    assert rows.reason["memory"] == "OutOfMemoryError: out of memory: 1 GiB" and "H is odd" in rows.reason["refuses"]


@pytest.mark.parametrize("input_grad", [False, True])
def test_the_input_needs_a_gradient_where_the_case_says_so(tmp_path: Path, input_grad: bool) -> None:
    """In what is timed, too; the mode is that of the case."""
    needed: list[tuple[bool, bool]] = []

    class Looks(Wrapped):
        def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
            needed.append((x.requires_grad, self.training))
            return super().forward(x)

    looks = Contender("looks", lambda case, rnn: Looks(case, copy_of(rnn)))
    run(tmp_path, [replace(TINY, input_grad=input_grad)], [looks])
    assert len(needed) > runner.MOST and set(needed) == {(input_grad, True)}
    assert results.read(tmp_path).status.to_list() == ["ok"]


def test_an_interrupted_run_goes_on_without_repeating(tmp_path: Path) -> None:
    built: list[int] = []
    stop = True

    def build(case: Case, rnn: nn.RNNBase) -> Model:
        built.append(case.T)
        if stop and case.T == 3:
            raise KeyboardInterrupt
        return PLAIN.build(case, rnn)

    contenders = [Contender("counted", build), PLAIN]
    work = [replace(TINY, T=T) for T in (2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, work, contenders)
    before = (tmp_path / "rows.csv").read_text()
    assert set(results.read(tmp_path).case) == {work[0].name}
    stop = False
    built.clear()
    run(tmp_path, work, contenders)
    assert set(built) == {3, 4}
    after = (tmp_path / "rows.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 1 + 3 * 2
    built.clear()
    run(tmp_path, work, contenders)
    assert not built and (tmp_path / "rows.csv").read_text() == after


def test_what_is_added_later_is_compared_with_its_own_rounds(tmp_path: Path) -> None:
    run(tmp_path, [TINY], [RNNDROP, PLAIN])
    run(tmp_path, [TINY], [BY_NAME["loop"]], seconds=3e-3)
    rows = results.read(tmp_path)
    assert len(results.whole_lines(tmp_path / "rows.csv").splitlines()) == 1 + 2 + 3
    assert set(rows.contender) == {OURS, BASELINE, "loop"} and set(rows.median_s) == {3e-3}
    assert analysis.ratios(rows).ratio.to_list() == [1.0, 1.0]
    before = rows[rows.contender == "loop"]
    run(tmp_path, [TINY], [BY_NAME["loop, one mask"]])
    rows = results.read(tmp_path)
    assert set(analysis.ratios(rows).ratio) == {1.0}
    assert rows[rows.contender == "loop"].samples.to_list() == before.samples.to_list()


def test_what_cannot_run_needs_no_rounds_beside_it(tmp_path: Path) -> None:
    run(tmp_path, [TINY], [RNNDROP])
    run(tmp_path, [TINY], [BY_NAME[f"{OURS}, graph"]])
    rows = results.whole_lines(tmp_path / "rows.csv").splitlines()[1:]
    assert len(rows) == 2 and results.read(tmp_path).status.to_list() == ["ok", "skipped"]


def test_what_does_not_fit_the_time_is_deferred_and_made_up_for(tmp_path: Path) -> None:
    run(tmp_path, [TINY], [PLAIN], ends=-1.0)
    assert results.read(tmp_path).status.to_list() == ["deferred"]
    run(tmp_path, [TINY], [PLAIN])
    assert results.read(tmp_path).status.to_list() == ["ok"]


def test_preparing_others_does_not_take_the_time_of_rnndrop_and_its_baseline(tmp_path: Path) -> None:
    here = session(tmp_path, ends=10.0)
    seconds = iter(range(0, 1000, 4))
    here.clock = lambda: float(next(seconds))
    runner.run(here, [TINY], [BY_NAME["loop, one mask"], BY_NAME["loop"], PLAIN, RNNDROP], progress=False)
    rows = results.read(tmp_path).set_index("contender")
    assert rows.status.to_dict() == {"loop, one mask": "ok", "loop": "deferred", BASELINE: "ok", OURS: "ok"}
    assert "preparing others" in rows.reason["loop"]


def test_the_slowest_give_way_but_not_rnndrop_and_its_baseline() -> None:
    costs = {OURS: 2.0, BASELINE: 1.0, "slow": 9.0, "fast": 0.1}
    row = functools.partial(results.Row, "case", pass_="train", dtype="fp32", group="", status="ok")
    kept, late = runner.affordable([Ready(row(name), print, cost) for name, cost in costs.items()], 10.0)
    assert {ready.row.contender for ready in kept} == {OURS, BASELINE, "fast"}
    assert [(r.contender, r.status) for r in late] == [("slow", "deferred")] and "a run takes 9 s" in late[0].reason
