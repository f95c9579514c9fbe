from __future__ import annotations

from pathlib import Path

from benchmarks.contenders.base import BASELINE, OURS
from benchmarks.measure import results
from benchmarks.report import compare
from tests.benchmarks.helpers import result


def test_a_planted_slowdown_is_found_and_a_rerun_is_unchanged(tmp_path: Path) -> None:
    seconds = {OURS: 1e-3, BASELINE: 1.2e-3, "loop": 4e-3}
    before = result(tmp_path / "before", seconds, seed=1)
    rerun = result(tmp_path / "rerun", seconds, seed=2)
    slower = result(tmp_path / "slower", seconds | {OURS: 1.2e-3}, seed=3)

    def verdicts(a: Path, b: Path) -> dict[str, set[str]]:
        found = compare.compare(results.read(a), results.read(b))
        return {str(name): set(group.verdict) for name, group in found.groupby("contender")}

    assert verdicts(before, rerun) == {name: {"unchanged"} for name in seconds}
    assert verdicts(before, slower) == {OURS: {"slower"}, BASELINE: {"unchanged"}, "loop": {"unchanged"}}
    assert verdicts(slower, before)[OURS] == {"faster"}
    text = compare.text(before, slower)
    assert "6 slower" in text and "1.2" in text


def test_a_slower_machine_is_no_slower_code(tmp_path: Path) -> None:
    seconds = {OURS: 1e-3, BASELINE: 1.2e-3}
    before = result(tmp_path / "before", seconds, seed=1)
    after = result(tmp_path / "after", seconds, seed=2, machine=1.5)
    found = compare.compare(results.read(before), results.read(after)).set_index("contender")
    assert set(found.verdict[OURS]) == {"unchanged"} and set(found.verdict[BASELINE]) == {"machine slower"}


def test_few_runs_prove_nothing(tmp_path: Path) -> None:
    folders = [result(tmp_path / str(s), {OURS: s, BASELINE: 1.0}, seed=1, rounds=3, cases=1) for s in (1.0, 2.0)]
    found = compare.compare(*map(results.read, folders))
    assert set(found.verdict) == {"too few runs"}


def test_what_was_computed_or_measured_once_only_is_left_out(tmp_path: Path) -> None:
    folders = [result(tmp_path / name, {OURS: 1.0, name: 1.0}, seed=1, cases=1) for name in ("a", "b")]
    for folder in folders:
        results.append(folder, [results.Row("case0", "bytes / copy rate", "train", "fp32", "headline", "ok", median_s=1.0)])
    assert set(compare.compare(*map(results.read, folders)).contender) == {OURS}


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    folders = [result(tmp_path / name, {name: 1.0}, seed=1, cases=1) for name in ("a", "b")]
    assert "no measurement in common" in compare.text(*folders)
