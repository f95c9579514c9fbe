"""What the tests of the benchmarks share: a tiny case, a stopwatch that lies, contenders that are wrong, made-up results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contenders import BY_NAME
from benchmarks.contenders.base import BASELINE, OURS, Contender, Model, Wrapped
from benchmarks.contenders.torch_nn import copy_of
from benchmarks.measure import results, runner, timer
from benchmarks.measure.session import Session

TINY = Case("headline", 4, 3, 5, 16, who="everyone")
GATED_TINY = [replace(TINY, cell=cell) for cell in ("LSTM", "GRU")]
RNNDROP, PLAIN = BY_NAME[OURS], BY_NAME[BASELINE]


def fake_stopwatch(seconds: float = 1e-3) -> timer.Stopwatch:
    """Runs what it is given, and reports what it likes."""

    def watch(run: timer.Run, number: int) -> float:
        run(number)
        return seconds

    return watch


def session(folder: Path, seconds: float = 1e-3, ends: float = math.inf) -> Session:
    """One that finds that everything takes so long."""
    folder.mkdir(exist_ok=True)
    return Session(folder, "cpu", fake_stopwatch(seconds), ends, {"device": "test"}, {}, clock=lambda: 0.0)


def run(folder: Path, cases: list[Case], contenders: list[Contender], seconds: float = 1e-3, ends: float = math.inf) -> None:
    runner.run(session(folder, seconds, ends), cases, contenders, progress=False)


def broken(change: Callable[[Tensor], Tensor], name: str = "broken") -> Contender:
    """torch.nn whose output is changed."""

    class Changed(Wrapped):
        def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
            return change(super().forward(x))

    def build(case: Case, rnn: nn.RNNBase) -> Model:
        return Changed(case, copy_of(rnn))

    return Contender(name, build)


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
