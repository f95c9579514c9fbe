"""The loop over cases: each contender is checked, then all that are right are timed in turns, and their rows written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from ..cases import Case
from ..contenders import BY_NAME
from ..contenders.base import BASELINE, GRAPH, OUR_CELLS, OURS, Contender
from . import results
from .prepare import Ready, prepare
from .rates import set_precision
from .results import Row
from .session import Session
from .timer import alternate

REFERENCES = (OURS, OURS + GRAPH, OUR_CELLS, BASELINE)  # of ratios
LEAST, MOST = 3, 40  # rounds of a case
_BLOCKS = itertools.count()


def run(session: Session, cases: Sequence[Case], contenders: Sequence[Contender], progress: bool = True) -> None:
    """Measure what the folder does not have yet, sharing the time that is left among the cases that are."""
    done = results.finished(session.folder)
    work = []
    for case in cases:
        missing = [c for c in contenders if (*case.key, c.name) not in done]
        if any(not c.why_not(case, session.device) for c in missing):
            # what these are compared with must be timed in the same rounds: again, if that is done
            missing += [BY_NAME[name] for name in REFERENCES if (*case.key, name) in done]
        if missing:
            work.append((case, missing))
    bar = tqdm(work, unit="case", disable=not progress, dynamic_ncols=True)
    for number, (case, missing) in enumerate(bar):
        left = max(session.ends - session.clock(), 0.0)
        bar.set_description(f"{case.group}: {' '.join(case.key)}")
        bar.set_postfix_str(f"at most {left / 60:.0f} min left")
        measure(session, case, missing, left * weight(case) / sum(weight(case) for case, _ in work[number:]))


def weight(case: Case) -> float:
    """What a case may take of the time, relative to others: more with more contenders, for large products and many steps."""
    contenders = {"two": 1 / 3, "most": 1.0, "everyone": 2.0}[case.who]
    return contenders * (1 + min(case.flops() / 1e10, 4) + case.T / 400)


def measure(session: Session, case: Case, contenders: Sequence[Contender], share: float) -> None:
    """One case in about `share` seconds."""
    started = session.clock()
    set_precision(case.dtype)
    ready: list[Ready] = []
    for contender in contenders:
        if reason := contender.why_not(case, session.device):
            session.write(session.row(case, contender.name, "skipped", reason))
        elif share <= 0:
            session.write(session.row(case, contender.name, "deferred", "the run's time was used up; repeat it to go on"))
        elif session.clock() - started > share and contender.name not in (OURS, BASELINE):
            session.write(session.row(case, contender.name, "deferred", f"preparing others took this case's {share:.0f} s"))
        elif made := prepare(session, case, contender):
            ready.append(made)
    left = max(share - (session.clock() - started), share / 2)  # preparing never leaves nothing for timing
    ready, late = affordable(ready, left)
    session.write(*late)
    if ready:
        session.write(*_timed(session, ready, left))
    if session.device == "cuda":
        session.write(*_limits(session, case))
        torch.cuda.empty_cache()


def affordable(ready: list[Ready], seconds: float) -> tuple[list[Ready], list[Row]]:
    """Those of which the least number of rounds fits the time, and rows for the slowest, which do not."""
    kept, late = sorted(ready, key=lambda r: r.cost), []
    for slowest in kept[::-1]:
        if sum(r.cost for r in kept) * LEAST <= seconds:
            break
        if slowest.row.contender in (OURS, BASELINE):
            continue
        kept.remove(slowest)
        slowest.row.status = "deferred"
        slowest.row.reason = (
            f"a run takes {slowest.cost:.2g} s; {LEAST} rounds do not fit the {seconds:.0f} s left for this case"
        )
        late.append(slowest.row)
    return kept, late


def _timed(session: Session, ready: list[Ready], seconds: float) -> list[Row]:
    runs = {r.row.contender: r.run for r in ready}
    times, failed = alternate(runs, session.watch, seconds=seconds, least=LEAST, most=MOST, clock=session.clock)
    rows = [r.row for r in ready]
    block = f"{rows[0].when}/{next(_BLOCKS)}"
    for row in rows:
        if row.contender in failed:
            row.status, row.reason = "error", failed[row.contender]
        else:
            fill(row, times[row.contender], block)
    return rows


def fill(row: Row, seconds: Sequence[float], block: str) -> None:
    """The statistics of some runs."""
    row.runs, row.block = len(seconds), block
    quantiles = np.quantile(seconds, (0, 0.25, 0.5, 0.75, 0.95)).tolist()
    row.min_s, row.q25_s, row.median_s, row.q75_s, row.q95_s = quantiles
    row.samples = " ".join(f"{s:.4g}" for s in seconds)


def _limits(session: Session, case: Case) -> list[Row]:
    """Bytes over the measured copy rate, operations over the measured rate of products: computed, not timed."""
    limits = {
        "bytes / copy rate": case.least_bytes() / session.rates["copy_bytes_per_s"],
        "operations / product rate": case.flops() / session.rates[f"{case.dtype}_flops_per_s"],
    }
    rows = [session.row(case, name, "ok", "computed from measured rates") for name in limits]
    for row, seconds in zip(rows, limits.values(), strict=True):
        row.min_s = row.median_s = row.q25_s = row.q75_s = seconds
    return rows
