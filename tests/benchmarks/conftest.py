from __future__ import annotations

import functools
import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

MISSING = [name for name in ("matplotlib", "pandas", "plotly", "tabulate", "tqdm", "typer") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_collectionfinish() -> list[str]:
    """What is imported below is imported late, so that this can be said."""
    return [f"tests/benchmarks is left out: the bench extra is not installed ({', '.join(MISSING)})"] if MISSING else []


@pytest.fixture(scope="package", autouse=True)
def no_collection() -> Iterator[None]:
    """The runner collects garbage for each contender, through all that Keras and the compiler have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda generation=2: 0)
        yield


@pytest.fixture(scope="package")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every contender on tiny cases of every cell, rnndrop and torch.nn on a sweep, and the report."""
    from benchmarks import report
    from benchmarks.cases import Case
    from benchmarks.contenders import EVERYONE
    from benchmarks.measure import runner
    from benchmarks.measure.session import open_session
    from tests.benchmarks.helpers import GATED_TINY, PLAIN, RNNDROP, TINY

    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # no C++ compiler in a minute
        patch.setattr(runner, "MOST", 6)
        here = open_session(folder, "cpu", math.inf, [])
        runner.run(here, [TINY, *GATED_TINY, replace(TINY, pass_="inference")], EVERYONE, progress=False)
        sweep = [Case("T", T, 2, 4, 8) for T in (2, 4, 8, 16)]
        runner.run(here, sweep, [RNNDROP, PLAIN], progress=False)
        report.write(folder)
    return folder
