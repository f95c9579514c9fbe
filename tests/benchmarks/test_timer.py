from __future__ import annotations

import gc
import time

from benchmarks.measure import timer
from benchmarks.measure.rates import measured_rates
from tests.benchmarks.helpers import fake_stopwatch


def test_contenders_alternate_in_changing_order() -> None:
    seen: list[str] = []
    runs = {name: (lambda number, name=name: seen.append(f"{name}{number}")) for name in "abc"}
    times, failed = timer.alternate(runs, fake_stopwatch(), seconds=0, least=8, most=8)
    assert not failed and {len(t) for t in times.values()} == {8}
    rounds = [seen[i : i + 3] for i in range(0, 24, 3)]
    assert all({x[1:] for x in r} == {str(i)} and {x[0] for x in r} == set("abc") for i, r in enumerate(rounds))
    assert len({tuple(x[0] for x in r) for r in rounds}) > 2


def test_rounds_stop_with_the_time_but_not_before_the_least() -> None:
    clock = iter(range(100))
    collected: list[bool] = []
    runs = {"a": lambda number: collected.append(gc.isenabled())}
    for seconds, expected in ((0.0, 3), (1.5, 4), (1e9, 8)):
        options = {"seconds": seconds, "least": 3, "most": 8, "clock": lambda: next(clock)}
        assert len(timer.alternate(runs, fake_stopwatch(), **options)[0]["a"]) == expected
    assert not any(collected) and gc.isenabled()


def test_the_stopwatch_of_the_cpu() -> None:
    assert 0.01 <= timer.stopwatch("cpu")(lambda number: time.sleep(0.01 * number), 1) < 10


def test_rates_are_those_of_the_fastest_run() -> None:
    rates = measured_rates("cpu", fake_stopwatch(0.5))
    assert rates == {"copy_bytes_per_s": 2 * 4 * 2**24 / 0.5, "fp32_flops_per_s": 2 * 1024**3 / 0.5}


def test_an_error_is_one_line() -> None:
    assert timer.describe(ValueError("a\nb")) == "ValueError: a"
    assert timer.describe(KeyError()) == "KeyError"


def test_what_fails_late_has_no_times_and_the_others_go_on() -> None:
    def late(number: int) -> None:
        if number == 2:
            raise RuntimeError("late")

    times, failed = timer.alternate({"late": late, "fine": print}, fake_stopwatch(), seconds=0, least=4, most=8)
    assert times == {"fine": [1e-3] * 4} and failed == {"late": "RuntimeError: late"}
