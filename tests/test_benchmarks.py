"""The benchmark suite: what it refuses to time, how it goes on after a stop, what it says of two results, and its report."""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("pandas", reason="the bench extra is not installed")
pytest.importorskip("plotly", reason="the bench extra is not installed")

import typer
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import analysis, cases, check, compare, memory, model, providers, report, results, runner, timer
from benchmarks.cases import Case
from benchmarks.providers import BASELINE, LIMIT, OURS, Provider

TINY = Case("headline", 4, 3, 5, 16, everyone=True)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --window-size=1250,3200 --virtual-time-budget=8000"


class FakeStopwatch:
    """Runs what it is given, and reports what it likes."""

    def time(self, run: timer.Run, number: int) -> float:
        run(number)
        return 1e-3


class SlowStopwatch:
    def time(self, run: timer.Run, number: int) -> float:
        return 3 * FakeStopwatch().time(run, number)


def session(folder: Path) -> runner.Session:
    folder.mkdir(exist_ok=True)
    return runner.Session(folder, "cpu", FakeStopwatch(), math.inf, {"device": "test"}, {}, clock=lambda: 0.0)


def provider(name: str) -> Provider:
    return next(p for p in providers.everyone() if p.name == name)


def broken(change: Callable[[Tensor], Tensor], name: str = "broken") -> Provider:
    """nn.RNN whose output is changed."""

    class Changed(providers.Whole):
        def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
            return change(super().forward(x))

    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        return Changed(providers._copy(rnn))

    return Provider(name, build, "none", "")


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every provider on two tiny cases, rnndrop and nn.RNN on a sweep, and the report."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # no C++ compiler in a minute
        patch.setattr(runner, "MOST", 6)
        here = command.session(folder, "cpu", math.inf)
        runner.run(here, [TINY, replace(TINY, direction="inference")], providers.everyone(), progress=False)
        sweep = [Case("T", T, 2, 4, 8) for T in (2, 4, 8, 16)]
        runner.run(here, sweep, [provider(OURS), provider(BASELINE)], progress=False)
        report.write(folder)
    return folder


def test_every_provider_has_a_row_and_none_fails(smoke: Path) -> None:
    rows = results.read(smoke)
    assert not (rows.status == "error").any(), rows[rows.status == "error"][["provider", "reason"]].to_dict("records")
    for direction in ("train", "inference"):
        found = rows[(rows.case == TINY.name) & (rows.direction == direction)].set_index("provider")
        assert set(found.index) == {p.name for p in providers.everyone()}
        assert {OURS, BASELINE, "nn.RNN + nn.Dropout", "loop", "loop, compiled", "loop, one mask", LIMIT} <= set(
            found.index[found.status == "ok"]
        )
        assert (found.reason[found.status != "ok"] != "").all()
    timed = rows[rows.status == "ok"]
    assert (timed.runs >= runner.LEAST).all() and (timed.min_s > 0).all() and (timed.min_s <= timed.median_s).all()
    assert (timed.first_call_s > 0).all() and timed.samples.map(lambda s: len(s.split())).eq(timed.runs).all()
    assert timed.block[timed.case == TINY.name].nunique() == 2


def test_saved_bytes_are_in_the_rows(smoke: Path) -> None:
    rows = results.read(smoke)
    held = rows[(rows.case == TINY.name) & (rows.direction == "train")].set_index("provider").saved_bytes
    assert 0 < held[OURS] < held["loop"]
    assert held[LIMIT] == 0


def test_report_files(smoke: Path) -> None:
    assert {"rows.csv", "environment.json", "report.md", "report.html", "ratios.png", "growth.png", "memory.png"} <= {
        path.name for path in smoke.iterdir()
    }
    text = (smoke / "report.md").read_text()
    for heading in (
        "A training step with dropout inside, fp32",
        "Growth",
        "Held for",
        "computed",
        "Environment",
        "Not measured",
    ):
        assert re.search(rf"^## .*{heading}", text, re.MULTILINE), heading
    assert "haste_pytorch is not installed" in text or shutil.which("nvidia-smi")


def test_html_needs_no_network(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    body = page[: page.index("<script>")] + page[page.index("<body>") :]  # without plotly's own source
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page[: page.index("<script>")])
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"'](?!data:)", body)
    assert "{{" not in page[: page.index("<script>")]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_html_in_a_browser(smoke: Path, tmp_path: Path) -> None:
    """Offline, no console error, charts drawn, and a click sorts the table."""
    page = tmp_path / "report.html"
    click = """<script>addEventListener("load", () => {
      const table = document.querySelector("#rows table"), heads = [...table.querySelectorAll("th")];
      const column = heads.findIndex(h => h.textContent === "median, ms");
      const read = () => [...table.tBodies[0].rows].map(r => parseFloat(r.cells[column].textContent)).filter(x => x === x);
      heads[column].click(); const up = read(); heads[column].click(); const down = read();
      const sorted = up.every((x, i) => !i || up[i - 1] <= x) && down.every((x, i) => !i || down[i - 1] >= x);
      document.body.dataset.sorted = `${sorted} ${up.length}`;
    });</script>"""
    page.write_text((smoke / "report.html").read_text().replace("</body>", click + "</body>"))
    shot = tmp_path / "report.png"
    options = [*PAGE.split(), f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dom = subprocess.run([CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert "CONSOLE" not in dom.stderr, [line for line in dom.stderr.splitlines() if "CONSOLE" in line]
    assert len(re.findall(r'class="main-svg"', dom.stdout)) >= 3, "charts drawn"
    sorted_, rows = re.search(r'data-sorted="(\w+) (\d+)"', dom.stdout).groups()  # type: ignore[union-attr]
    assert sorted_ == "true" and int(rows) == (results.read(smoke).status == "ok").sum()
    assert shot.stat().st_size > 20_000


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limit_to_available", lambda: None)  # it would hold for the tests after this
    options = ["--device", "cpu", "--quick", "--cases", "T50-B1", "--providers", BASELINE, "--providers", OURS]
    done = CliRunner().invoke(command.app, [*options, "--out", str(tmp_path), "--minutes", "0.2"])
    assert done.exit_code == 0, done.output
    assert set(results.read(tmp_path).provider) == {BASELINE, OURS}
    assert "T50-B1-I32-H64" in (tmp_path / "report.md").read_text()


def test_a_stop_leaves_a_report_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "limit_to_available", lambda: None)
    monkeypatch.setattr(runner, "run", stop)
    stopped = CliRunner().invoke(command.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert stopped.exit_code == 130 and "--out" in stopped.output
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--providers", "nobody", "--out", "{}/new"], "nobody"),
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


# ---------------------------------------------------------------- right before fast


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
    runner.run(session(tmp_path), [TINY], [broken(change), provider(BASELINE)], progress=False)
    rows = results.read(tmp_path).set_index("provider")
    assert rows.status.to_dict() == {"broken": "error", BASELINE: "ok"}
    assert reason in rows.reason["broken"] and np.isnan(rows.median_s["broken"]) and rows.samples["broken"] == ""


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("kind", ["hidden", "recurrent"])
def test_wrong_drop_rate_is_caught(kind: str, scope: str) -> None:
    """Of each kind while the other is right."""

    rate = f"{kind}_dropout"

    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        return providers.Loop(replace(case, **{rate: getattr(case, rate) * 1.5}), rnn)

    x = torch.randn(12, 16, 5)
    case = replace(TINY, T=12, B=16, H=64, recurrent_dropout=0.2, mask_scope=scope)
    check.check(provider("loop"), case, providers.source(case, "cpu"), x)
    with pytest.raises(check.Wrong, match=rf"drops 0\.[23]\d* of the units by {kind} dropout"):
        check.check(Provider("wrong rate", build, "hidden recurrent", ""), case, providers.source(case, "cpu"), x)


def test_wrong_drop_rate_is_caught_where_only_recurrent_dropout_is_had() -> None:
    """Of a case with hidden dropout."""

    def build(factor: float, case: Case, rnn: nn.RNN) -> nn.Module:
        rate = factor * (case.recurrent_dropout or case.hidden_dropout)
        return providers.Loop(replace(case, hidden_dropout=0.0, recurrent_dropout=rate), rnn)

    x = torch.randn(12, 16, 5)
    case = replace(TINY, T=12, B=16, H=64)
    right, wrong = (Provider("recurrent only", functools.partial(build, factor), "recurrent", "") for factor in (1.0, 1.5))
    check.check(right, case, providers.source(case, "cpu"), x)
    with pytest.raises(check.Wrong, match=r"drops 0\.[23]\d* of the units by recurrent dropout"):
        check.check(wrong, case, providers.source(case, "cpu"), x)


class Own(providers.Whole):
    """nn.RNN and a dropout of its own."""

    def __init__(self, rnn: nn.RNN, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__(providers._copy(rnn))
        self.drop = drop

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        y = super().forward(x)
        return self.drop(y) if self.training else y


def drawn(*shape: int) -> Tensor:
    return (torch.rand(shape) >= 0.2) / 0.8


FIXED = drawn(12, 16, 64)


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (lambda y: y * drawn(len(y), 16, 64), ""),
        (lambda y: y * drawn(len(y), 1, 64), "for every sequence"),
        (lambda y: y * FIXED, "in every call"),
        (lambda y: y * (drawn(len(y), 16, 64) > 0), "kept by dropout"),
        (lambda y: y if y.requires_grad else y * drawn(len(y), 16, 64), "drops 0.000"),
        (lambda y: y + (y * drawn(len(y), 16, 64) - y).detach(), "the gradient of b_ih"),
    ],
    ids=["right", "one for all rows", "one for all calls", "no scale", "not in training", "not in the gradient"],
)
def test_masks_of_its_own_are_looked_at(drop: Callable[[Tensor], Tensor], reason: str) -> None:
    case = replace(TINY, T=12, B=16, H=64)
    contender = Provider("own", lambda case, rnn: Own(rnn, drop if case.hidden_dropout else torch.clone), "hidden", "")
    with pytest.raises(check.Wrong, match=reason) if reason else nullcontext():
        check.check(contender, case, providers.source(case, "cpu"), torch.randn(12, 16, 5))


@pytest.mark.parametrize("name", ["b_ih[0]", "b_hh[1]", "w_ih[2]", "w_hh[3]", "x"])
def test_every_gradient_is_looked_at(name: str) -> None:
    case = replace(TINY, layers=2, bidirectional=True, input_grad=True)

    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        model = provider(BASELINE).build(case, rnn)
        kind, number = (name[:-3], int(name[-2])) if name != "x" else ("", 0)
        if kind:
            position = ("w_ih", "w_hh", "b_ih", "b_hh").index(kind)
            model.rnn.all_weights[number][position].register_hook(torch.zeros_like)  # type: ignore[union-attr, index]
        else:
            forward = model.forward
            model.forward = lambda x, seed=None: forward(x.detach() + 0 * x)  # type: ignore[method-assign]
        return model

    with pytest.raises(check.Wrong, match=re.escape(f"the gradient of {name} ")):
        check.check(Provider("broken", build, "none", ""), case, providers.source(case, "cpu"), torch.randn(4, 3, 5))


def test_dropout_only_with_a_seed_is_caught() -> None:
    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        model, plain = provider(OURS).build(case, rnn), provider(BASELINE).build(case, rnn)
        forward = model.forward
        model.forward = lambda x, seed=None: forward(x, seed=seed) if seed else plain(x)  # type: ignore[method-assign]
        model.gradients = lambda: [  # type: ignore[method-assign]
            [a if a is not None else b for a, b in zip(*groups, strict=True)]
            for groups in zip(providers.Whole.gradients(model), plain.gradients(), strict=True)  # type: ignore[arg-type]
        ]
        return model

    with pytest.raises(check.Wrong, match=r"drops 0\.000"):
        check.check(Provider("seed", build, "same", ""), TINY, providers.source(TINY, "cpu"), torch.randn(4, 3, 5))


def test_evaluation_is_judged_before_it_can_spoil_its_input() -> None:
    class Spoils(providers.Whole):
        def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
            x.zero_()
            return torch.zeros(4, 3, 16)

    case = replace(TINY, direction="inference")
    contender = Provider("spoils", lambda case, rnn: Spoils(rnn), "none", "")
    with pytest.raises(check.Wrong, match="in evaluation"):
        check.check(contender, case, providers.source(case, "cpu"), torch.randn(4, 3, 5))


def test_wrong_mask_is_caught() -> None:
    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        model = provider(OURS).build(case, rnn)
        forward = model.forward
        model.forward = lambda x, seed=None: forward(x, seed=None if seed is None else seed + 1)  # type: ignore[method-assign]
        return model

    with pytest.raises(check.Wrong, match="with dropout"):
        check.check(Provider("wrong mask", build, "same", ""), TINY, providers.source(TINY, "cpu"), torch.randn(4, 3, 5))


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_dropout": 0.0, "recurrent_dropout": 0.2},
        {"recurrent_dropout": 0.2, "mask_scope": "sequence"},
        {"layers": 2, "bidirectional": True},
        {"dtype": "bf16"},
        {"input_grad": True},
        {"direction": "forward"},
    ],
    ids=str,
)
def test_every_kind_of_case_passes_its_checks(options: dict[str, Any]) -> None:
    case = replace(TINY, everyone=False, **options)
    for contender in providers.everyone():
        if not runner.unfit(contender, case, "cpu"):
            x = torch.randn(case.T, case.B, case.I).to(case.torch_dtype)
            check.check(contender, case, providers.source(case, "cpu"), x)


def test_a_provider_that_fails_or_runs_out_of_memory_leaves_the_others(tmp_path: Path) -> None:
    def fail(error: Exception) -> Callable[[Case, nn.RNN], nn.Module]:
        def build(case: Case, rnn: nn.RNN) -> nn.Module:
            raise error

        return build

    calls = iter(range(1000))

    def late(y: Tensor) -> Tensor:
        if next(calls) > 6:
            raise RuntimeError("late")
        return y

    contenders = [
        Provider("memory", fail(torch.OutOfMemoryError("out of memory: 1 GiB\nmore")), "none", ""),
        Provider("refuses", fail(ValueError("strategy 'x' cannot run: H is odd")), "none", ""),
        broken(late, "late"),
        provider(BASELINE),
    ]
    runner.run(session(tmp_path), [TINY], contenders, progress=False)
    rows = results.read(tmp_path).set_index("provider")
    assert rows.status.to_dict() == {"memory": "error", "refuses": "skipped", "late": "error", BASELINE: "ok"}
    assert rows.reason["memory"] == "OutOfMemoryError: out of memory: 1 GiB" and "H is odd" in rows.reason["refuses"]


# ---------------------------------------------------------------- stop and go on


def test_an_interrupted_run_goes_on_without_repeating(tmp_path: Path) -> None:
    built: list[int] = []
    stop = True

    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        built.append(case.T)
        if stop and case.T == 3:
            raise KeyboardInterrupt
        return provider(BASELINE).build(case, rnn)

    contenders = [Provider("counted", build, "none", ""), provider(BASELINE)]
    work = [replace(TINY, T=T) for T in (2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        runner.run(session(tmp_path), work, contenders, progress=False)
    before = (tmp_path / "rows.csv").read_text()
    assert set(results.read(tmp_path).case) == {work[0].name}
    stop = False
    built.clear()
    runner.run(session(tmp_path), work, contenders, progress=False)
    assert set(built) == {3, 4}
    after = (tmp_path / "rows.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 1 + 3 * 2
    built.clear()
    runner.run(session(tmp_path), work, contenders, progress=False)
    assert not built and (tmp_path / "rows.csv").read_text() == after


def test_a_run_goes_on_with_results_of_its_own_commit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "new")
    first = results.default_folder("cpu")
    first.mkdir(parents=True)
    results.write_environment(first, {"commit": "new"})
    assert results.default_folder("cpu") == first
    results.write_environment(first, {"commit": "old"})
    assert results.default_folder("cpu") == first.with_name(f"{first.name}-new")


def test_what_is_added_later_is_compared_with_its_own_rounds(tmp_path: Path) -> None:
    runner.run(session(tmp_path), [TINY], [provider(OURS), provider(BASELINE)], progress=False)
    slow = session(tmp_path)
    slow.watch = SlowStopwatch()
    runner.run(slow, [TINY], [provider("loop")], progress=False)
    rows = results.read(tmp_path)
    assert len(results.whole_lines(tmp_path / "rows.csv").splitlines()) == 1 + 2 + 3
    assert set(rows.provider) == {OURS, BASELINE, "loop"} and set(rows.median_s) == {3e-3}
    assert analysis.ratios(rows).ratio.to_list() == [1.0, 1.0]
    before = rows[rows.provider == "loop"]
    late = session(tmp_path)
    runner.run(late, [TINY], [provider("loop, one mask")], progress=False)
    rows = results.read(tmp_path)
    assert set(analysis.ratios(rows).ratio) == {1.0}
    assert rows[rows.provider == "loop"].samples.to_list() == before.samples.to_list()


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_row_cut_short_is_measured_again(tmp_path: Path, cut: int) -> None:
    contenders = [provider(OURS), provider(BASELINE)]
    runner.run(session(tmp_path), [TINY], contenders, progress=False)
    whole = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(whole[:-cut])
    assert len(results.read(tmp_path)) == 1
    runner.run(session(tmp_path), [TINY], contenders, progress=False)
    assert set(results.read(tmp_path).provider) == {OURS, BASELINE}
    (tmp_path / "rows.csv").write_bytes(b"")  # stopped before the first line
    runner.run(session(tmp_path), [TINY], contenders, progress=False)
    assert set(results.read(tmp_path).provider) == {OURS, BASELINE}
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        results.read(tmp_path)


def test_a_folder_holds_one_machine(tmp_path: Path) -> None:
    command.session(tmp_path, "cpu", math.inf)
    found = results.read_environment(tmp_path)
    command.session(tmp_path, "cpu", math.inf)
    results.write_environment(tmp_path, found | {"device": "1 thread of a dream"})
    with pytest.raises(typer.BadParameter, match="another device"):
        command.session(tmp_path, "cpu", math.inf)


def test_what_does_not_fit_the_time_is_deferred_and_made_up_for(tmp_path: Path) -> None:
    late = session(tmp_path)
    late.ends = -1.0
    runner.run(late, [TINY], [provider(BASELINE)], progress=False)
    assert results.read(tmp_path).status.to_list() == ["deferred"]
    runner.run(session(tmp_path), [TINY], [provider(BASELINE)], progress=False)
    assert results.read(tmp_path).status.to_list() == ["ok"]


def test_the_slowest_give_way_but_not_rnndrop_and_its_baseline() -> None:
    costs = {OURS: 2.0, BASELINE: 1.0, "slow": 9.0, "fast": 0.1}
    row = functools.partial(results.Row, "case", direction="train", dtype="fp32", group="", status="ok")
    kept, late = runner._affordable([runner.Contender(row(name), print, cost) for name, cost in costs.items()], 10.0)
    assert {c.row.provider for c in kept} == {OURS, BASELINE, "fast"}
    assert [(r.provider, r.status) for r in late] == [("slow", "deferred")] and "a run takes 9 s" in late[0].reason


def test_contenders_alternate_in_changing_order() -> None:
    seen: list[str] = []
    runs = {name: (lambda number, name=name: seen.append(f"{name}{number}")) for name in "abc"}
    times, failed = timer.alternate(runs, FakeStopwatch(), seconds=0, least=8, most=8)
    assert not failed and {len(t) for t in times.values()} == {8}
    rounds = [seen[i : i + 3] for i in range(0, 24, 3)]
    assert all({x[1:] for x in r} == {str(i)} and {x[0] for x in r} == set("abc") for i, r in enumerate(rounds))
    assert len({tuple(x[0] for x in r) for r in rounds}) > 2


# ---------------------------------------------------------------- two results


def result(
    folder: Path, seconds: dict[str, float], *, seed: int, machine: float = 1.0, rounds: int = 20, cases: int = 6
) -> Path:
    """A result folder with noisy times: a round is slower or faster for all, and each time has noise of its own."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(cases):
        rows, drift = [], machine * np.exp(rng.normal(0, 0.1, rounds))
        for name, median in seconds.items():
            row = results.Row(f"case{number}", name, "train", "fp32", "headline", "ok")
            runner.fill(row, (median * drift * np.exp(rng.normal(0, 0.03, rounds))).tolist(), f"block{number}")
            rows.append(row)
        results.append(folder, rows)
    return folder


def test_a_planted_slowdown_is_found_and_a_rerun_is_unchanged(tmp_path: Path) -> None:
    seconds = {OURS: 1e-3, BASELINE: 1.2e-3, "loop": 4e-3}
    before = result(tmp_path / "before", seconds, seed=1)
    rerun = result(tmp_path / "rerun", seconds, seed=2)
    slower = result(tmp_path / "slower", seconds | {OURS: 1.2e-3}, seed=3)

    def verdicts(a: Path, b: Path) -> dict[str, set[str]]:
        found = compare.compare(results.read(a), results.read(b))
        return {str(name): set(group.verdict) for name, group in found.groupby("provider")}

    assert verdicts(before, rerun) == {name: {"unchanged"} for name in seconds}
    assert verdicts(before, slower) == {OURS: {"slower"}, BASELINE: {"unchanged"}, "loop": {"unchanged"}}
    assert verdicts(slower, before)[OURS] == {"faster"}
    written = CliRunner().invoke(command.app, ["compare", str(before), str(slower)])
    assert written.exit_code == 0 and "6 slower" in written.output and "1.2" in written.output


def test_a_slower_machine_is_no_slower_code(tmp_path: Path) -> None:
    seconds = {OURS: 1e-3, BASELINE: 1.2e-3}
    before = result(tmp_path / "before", seconds, seed=1)
    after = result(tmp_path / "after", seconds, seed=2, machine=1.5)
    found = compare.compare(results.read(before), results.read(after)).set_index("provider")
    assert set(found.verdict[OURS]) == {"unchanged"} and set(found.verdict[BASELINE]) == {"machine slower"}


def test_few_runs_prove_nothing(tmp_path: Path) -> None:
    folders = [result(tmp_path / str(s), {OURS: s, BASELINE: 1.0}, seed=1, rounds=3, cases=1) for s in (1.0, 2.0)]
    found = compare.compare(*map(results.read, folders))
    assert set(found.verdict) == {"too few runs"}


# ---------------------------------------------------------------- numbers


def test_ratios_are_of_rounds(tmp_path: Path) -> None:
    found = analysis.ratios(results.read(result(tmp_path / "a", {OURS: 1.0, BASELINE: 2.0}, seed=5)))
    assert found.ratio.between(0.48, 0.52).all() and (found.low < found.ratio).all()


def test_growth_finds_the_line(tmp_path: Path) -> None:
    for T in (16, 64, 256, 1024):
        row = results.Row(f"T{T}", OURS, "train", "fp32", "T", "ok", T=T, B=1, H=1)
        runner.fill(row, [2e-3 + 1e-4 * T] * 3, "")
        results.append(tmp_path, [row])
    (line,) = analysis.growth(results.read(tmp_path), "T")
    assert line.constant_s == pytest.approx(2e-3) and line.per_step_s == pytest.approx(1e-4) and line.r2 == pytest.approx(1)
    assert 0.9 < line.exponent < 1


def test_a_shape_of_two_sweeps_is_measured_once_and_in_both(tmp_path: Path) -> None:
    whole = cases.select("cpu", False, ["T T", "H T64"])
    assert [case.group for case in whole if case.name == "T64-B32-I128-H128"] == ["T"]
    rows = [results.Row(case.name, OURS, "train", "fp32", case.group, "ok", T=case.T, B=case.B, H=case.H) for case in whole]
    results.append(tmp_path, rows)
    assert {over: len(analysis.sweep(results.read(tmp_path), over)) for over in "TBH"} == {"T": 8, "B": 0, "H": 7}


def test_the_report_contradicts_auto(tmp_path: Path) -> None:
    folder = result(
        tmp_path / "a", {OURS: 1.0, BASELINE: 1.0, f"{OURS} resident": 0.8, f"{OURS} stepwise": 1.5}, seed=5, cases=2
    )
    rows = results.read(folder)
    rows.loc[(rows.provider == OURS) & (rows.case == "case0"), "chosen"] = "resident"  # which is no other strategy
    found = analysis.contradictions(rows)
    assert found.provider.to_list() == [f"{OURS} resident"] and found.case.to_list() == ["case1"]
    report.write(folder)
    assert 'Where another strategy was faster than the one "auto" chose' in (folder / "report.md").read_text()
    assert analysis.contradictions(rows[rows.provider != f"{OURS} resident"]).empty


def test_saved_bytes_counts_each_storage_once() -> None:
    x, w = torch.randn(10, 4), torch.randn(4, 4, requires_grad=True)

    def forward() -> Tensor:
        y = torch.tanh(x @ w)
        return y * y[:, :4]  # the views are of one storage

    assert memory.saved_bytes(forward, [x, w]) == 10 * 4 * 4


def test_cases_are_distinct_and_the_seven_are_there() -> None:
    for device in ("cpu", "cuda"):
        for quick in (True, False):
            found = cases.select(device, quick, [])
            assert len({(c.name, c.dtype, c.direction) for c in found}) == len(found)
            names = [c.name for c in found if c.direction == "train" and c.dtype == "fp32" and c.group == "headline"]
            assert names == analysis.SHAPES
    assert {c.group for c in cases.select("cpu", False, ["T2048", "network"])} == {"T", "network"}


@pytest.mark.parametrize("direction", ["train", "inference"])
def test_bounds_of_the_model(direction: str) -> None:
    case = Case("", 128, 64, 128, 256, direction=direction)
    for cost in model.costs(case):
        assert cost.flops == case.flops()
        assert cost.bytes >= model.least_bytes(case)
        gpu = next(g for g in model.GPUS if g.name == cost.gpu)
        least = max(model.least_bytes(case) / gpu.bandwidth, cost.flops / max(gpu.fp32, gpu.tf32 / 3))
        assert least * 0.99 <= cost.bound_s <= cost.bytes / gpu.bandwidth + cost.flops / gpu.fp32 * gpu.multiprocessors
    wide = Case("", 10, 4000, 2000, 16, "bf16", direction)  # of which the bytes decide
    assert model.cost(wide, "stepwise", model.GPUS[0]).bound_s == model.least_bytes(wide) / model.GPUS[0].bandwidth
    steps = [model.cost(replace(case, T=T), "stepwise", model.GPUS[0]).launches for T in (10, 11)]
    assert steps[1] - steps[0] == (4 if direction == "train" else 2)
    assert model.cost(case, "cooperative", model.GPUS[0]).launches < 10


def test_the_bare_products_are_those_of_the_layer() -> None:
    case = replace(TINY, input_grad=True)
    rnn = providers.source(case, "cpu")
    products = provider(LIMIT).build(case, rnn)
    x = torch.randn(case.T, case.B, case.I)
    for _ in range(2):  # nothing accumulates
        a = products(x)
    (layer,) = products.layers  # type: ignore[union-attr, misc]
    w_ih, w_hh = rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(a, x @ w_ih.t() + layer.h @ w_hh.t())
    da = layer.g + layer.h @ w_hh
    torch.testing.assert_close(layer.da, da)
    torch.testing.assert_close(layer.dw_hh, da.flatten(0, 1).t() @ layer.h.flatten(0, 1))
    torch.testing.assert_close(layer.dw_ih, da.flatten(0, 1).t() @ x.flatten(0, 1))
    torch.testing.assert_close(layer.dx, da @ w_ih)
