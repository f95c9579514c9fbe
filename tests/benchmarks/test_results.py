from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.contenders.base import BASELINE, OURS
from benchmarks.measure import machine, results, runner
from benchmarks.measure.session import open_session
from tests.benchmarks.helpers import PLAIN, RNNDROP, TINY, run


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    row = results.Row("case", OURS, "train", "fp32", "T", "ok", 'a "reason", here', T=2, block="b", saved_bytes=1.5)
    runner.fill(row, [4.0, 1.0, 2.0, 3.0, 5.0], "b")
    results.append(tmp_path, [row, results.Row("case", BASELINE, "train", "fp32", "T", "skipped")])
    first, second = results.read(tmp_path).to_dict("records")
    assert {first[name] for name in ("case", "contender", "pass", "reason")} == {"case", OURS, "train", 'a "reason", here'}
    assert [first[name] for name in ("min_s", "q25_s", "median_s", "q75_s", "q95_s", "runs")] == [1, 2, 3, 4, 4.8, 5]
    assert first["T"] == 2 and first["saved_bytes"] == 1.5 and first["beside"] == {OURS: "4 1 2 3 5"}
    assert math.isnan(second["median_s"]) and second["samples"] == "" and second["beside"] == {}
    assert results.finished(tmp_path) == {("case", "train", "fp32", name) for name in (OURS, BASELINE)}


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_row_cut_short_is_measured_again(tmp_path: Path, cut: int) -> None:
    contenders = [RNNDROP, PLAIN]
    run(tmp_path, [TINY], contenders)
    whole = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(whole[:-cut])
    assert len(results.read(tmp_path)) == 1
    run(tmp_path, [TINY], contenders)
    assert set(results.read(tmp_path).contender) == {OURS, BASELINE}


def test_a_table_cut_before_its_first_line_ends_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"case,cont")
    run(tmp_path, [TINY], [PLAIN])
    assert results.read(tmp_path).contender.to_list() == [BASELINE]


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        results.read(tmp_path)


def test_a_run_goes_on_with_results_of_its_own_commit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "new")
    first = results.default_folder("cpu")
    assert first.parent == tmp_path and first.name.startswith("cpu-")
    first.mkdir(parents=True)
    results.write_environment(first, {"commit": "new"})
    assert results.default_folder("cpu") == first
    results.write_environment(first, {"commit": "old"})
    assert results.default_folder("cpu") == first.with_name(f"{first.name}-new")


def test_a_folder_holds_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([{"copy_bytes_per_s": 1.0}, {"copy_bytes_per_s": 2.0}])
    monkeypatch.setattr("benchmarks.measure.session.measured_rates", lambda device, watch: next(rates))
    assert open_session(tmp_path, "cpu", math.inf, ["--quick"]).rates == {"copy_bytes_per_s": 1.0}
    found = results.read_environment(tmp_path)
    assert found["command"] == "python -m benchmarks --quick" and found["versions"]["torch"]
    again = open_session(tmp_path, "cpu", math.inf, [])
    assert again.rates == {"copy_bytes_per_s": 1.0} and results.read_environment(tmp_path) == found
    assert again.facts["commit"] == found["commit"] == machine.commit()
    for name in ("device", "driver", "versions"):
        results.write_environment(tmp_path, found | {name: "of a dream"})
        with pytest.raises(ValueError, match=f"another {name}"):
            open_session(tmp_path, "cpu", math.inf, [])
