from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.contenders.base import BASELINE, OURS
from benchmarks.measure import memory, results, runner
from tests.benchmarks.helpers import result


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory, which would hold for the tests after this."""
    monkeypatch.setattr(memory, "limit_to_available", lambda: None)


def test_the_command_line(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--quick", "--cases", "T50-B1", "--contenders", BASELINE, "--contenders", OURS]
    done = CliRunner().invoke(command.app, [*options, "--out", str(tmp_path), "--minutes", "0.2"])
    assert done.exit_code == 0, done.output
    assert set(results.read(tmp_path).contender) == {BASELINE, OURS}
    assert "T50-B1-I32-H64" in (tmp_path / "report.md").read_text()


def test_a_stop_leaves_a_report_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", stop)
    stopped = CliRunner().invoke(command.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert stopped.exit_code == 130 and "--out" in stopped.output
    assert (tmp_path / "report.md").exists()


def test_two_results_are_compared(tmp_path: Path) -> None:
    folders = [result(tmp_path / str(slow), {OURS: slow, BASELINE: 1.2}, seed=int(slow), cases=6) for slow in (1.0, 2.0)]
    written = CliRunner().invoke(command.app, ["compare", *map(str, folders)])
    assert written.exit_code == 0 and "6 slower" in written.output and "2.0" in written.output


def test_a_report_is_written_again(tmp_path: Path) -> None:
    folder = result(tmp_path / "a", {OURS: 1.0, BASELINE: 1.2}, seed=1, cases=1)
    assert CliRunner().invoke(command.app, ["report", str(folder)]).exit_code == 0
    assert (folder / "report.md").exists() and (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--contenders", "nobody", "--out", "{}/new"], "nobody"),
        (["--cases", "nothing", "--out", "{}/new"], "nothing"),
        (["--minutes", "-1", "--out", "{}/new"], "--minutes"),
        (["--out", __file__], "file"),
        (["compare", "{}/new", "{}"], "exist"),
        (["compare", "{}", "{}"], "rows.csv"),
        (["report", "{}/new"], "exist"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda", "--out", "{}/new"], "CUDA")]),
    ],
)
def test_wrong_arguments_leave_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    wrong = CliRunner().invoke(command.app, [argument.format(tmp_path) for argument in arguments])
    assert wrong.exit_code == 2 and said in wrong.output, wrong.output
    assert not list(tmp_path.iterdir())


def test_results_of_another_machine_are_refused(tmp_path: Path) -> None:
    results.write_environment(tmp_path, {"device": "1 thread of a dream"})
    wrong = CliRunner().invoke(command.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert wrong.exit_code == 2 and "another device" in wrong.output
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]
