"""The loop over cases: each provider is checked, then all that are right are timed in turns, and their rows written."""

from __future__ import annotations

import datetime
import gc
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import memory, model, results
from .cases import Case
from .check import check
from .graph import capture
from .limits import set_precision
from .providers import BASELINE, GRAPH, OURS, Provider, choice, everyone, source
from .results import Row
from .timer import Stopwatch, alternate, describe

REFERENCES = (OURS, OURS + GRAPH, BASELINE)  # of ratios
INPUTS = 4  # rotated, so that no contender finds its input in the cache because of itself
LEAST, MOST = 3, 40  # rounds of a case


@dataclass
class Contender:
    """A provider that passed its check, ready to be timed. `cost`: seconds of a call, for planning."""

    row: Row
    run: Callable[[int], object]
    cost: float


@dataclass
class Session:
    """Where and how to measure. `facts`: the columns that all rows share. `ends`: when the time is used up, by `clock`."""

    folder: Path
    device: str
    watch: Stopwatch
    ends: float
    facts: dict[str, Any]
    rates: dict[str, float]
    clock: Callable[[], float] = time.monotonic

    def row(self, case: Case, provider: str, status: str, reason: str = "") -> Row:
        when = datetime.datetime.now().isoformat(timespec="seconds")
        shape = {"T": case.T, "B": case.B, "I": case.I, "H": case.H}
        facts: dict[str, Any] = {"when": when, "flops": case.flops(), **shape, **self.facts}
        return Row(case.name, provider, case.direction, case.dtype, case.group, status, reason, **facts)

    def write(self, *rows: Row) -> None:
        results.append(self.folder, list(rows))


def run(session: Session, cases: Sequence[Case], providers: Sequence[Provider], progress: bool = True) -> None:
    """Measure what the folder does not have yet, sharing the time that is left among the cases that are."""
    done = results.finished(session.folder)

    def is_done(case: Case, provider: str) -> bool:
        return (case.name, case.direction, case.dtype, provider) in done

    def missing(case: Case) -> list[Provider]:
        return [p for p in providers if not is_done(case, p.name)]

    def beside(case: Case, missed: list[Provider]) -> list[Provider]:
        """What the missing ones are compared with, which must be timed in the same rounds: again, if that is done."""
        fit = any(not unfit(p, case, session.device) for p in missed)
        return [p for p in everyone() if fit and p.name in REFERENCES and is_done(case, p.name)]

    work = [(case, missed + beside(case, missed)) for case in cases if (missed := missing(case))]
    bar = tqdm(total=len(work), unit="case", disable=not progress, dynamic_ncols=True)
    for number, (case, missed) in enumerate(work):
        bar.set_description(f"{case.group}: {case.name} {case.dtype} {case.direction}")
        left = session.ends - session.clock()
        bar.set_postfix_str(f"at most {max(left, 0) / 60:.0f} min left")
        share = weight(case) / sum(weight(case) for case, _ in work[number:])
        measure(session, case, missed, max(left, 0.0) * share)
        bar.update()
    bar.close()


def weight(case: Case) -> float:
    """What a case may take of the time, relative to others: more where everyone is timed, for large products and many steps."""
    return 1 + 2 * case.everyone + min(case.flops() / 1e10, 4) + case.T / 400


def measure(session: Session, case: Case, providers: Sequence[Provider], share: float) -> None:
    """One case in about `share` seconds."""
    started = session.clock()
    set_precision(case.dtype)
    contenders: list[Contender] = []
    for provider in providers:
        reason = unfit(provider, case, session.device)
        used = session.clock() - started
        if reason:
            session.write(session.row(case, provider.name, "skipped", reason))
        elif share <= 0:
            session.write(session.row(case, provider.name, "deferred", "the run's time was used up; repeat it to go on"))
        elif used > share and provider.name not in (OURS, BASELINE):
            session.write(session.row(case, provider.name, "deferred", f"preparing others took this case's {share:.0f} s"))
        else:
            contenders += _prepared(session, case, provider)
    left = max(share - (session.clock() - started), share / 2)  # preparing never leaves nothing for timing
    contenders, late = _affordable(contenders, left)
    session.write(*late)
    _time(session, contenders, left)
    if session.device == "cuda":
        session.write(*_device_limits(session, case))
        torch.cuda.empty_cache()


def unfit(provider: Provider, case: Case, device: str) -> str:
    slow = "takes long: timed with some of the headline's cases only" if provider.slow and not case.everyone else ""
    return provider.unfit(case, device) or slow


def _prepared(session: Session, case: Case, provider: Provider) -> Iterator[Contender]:
    """The provider as a contender, or its error written down."""
    try:
        rnn = source(case, session.device)
        inputs = [torch.randn(case.T, case.B, case.I, device=session.device).to(case.torch_dtype) for _ in range(INPUTS)]
        for x in inputs:
            x.requires_grad_(case.input_grad)
        layer = provider.build(case, rnn).train(case.direction != "inference")
        first_call_s = _first_call(session, step(case, layer), inputs[0])
        check(provider, case, rnn, inputs[0])
        yield _contender(session, case, provider, layer, inputs, first_call_s)
    except Exception as error:
        session.write(session.row(case, provider.name, "skipped" if refuses(error) else "error", describe(error)))
        if session.device == "cuda":
            _probe(session)
    finally:
        gc.collect()


def _probe(session: Session) -> None:
    """After an error: whether the device still works, so that it is not held against those that follow."""
    try:
        torch.randn(1, device=session.device).item()
    except Exception as error:
        raise RuntimeError("the device fails after the last error in rows.csv; start again to go on without it") from error


def refuses(error: Exception) -> bool:
    """Whether it is a strategy's, asked for by name, that says why it cannot run."""
    return isinstance(error, ValueError) and bool(re.match(r"strategy '\w+' cannot run", str(error)))


def _first_call(session: Session, once: Callable[[Tensor], object], x: Tensor) -> float:
    """Seconds of the very first, which may compile."""
    start = session.clock()
    once(x)
    if session.device == "cuda":
        torch.cuda.synchronize()
    return session.clock() - start


def _contender(
    session: Session, case: Case, provider: Provider, layer: nn.Module, inputs: list[Tensor], first_call_s: float
) -> Contender:
    once = step(case, layer)
    row = session.row(case, provider.name, "ok")
    row.chosen, row.first_call_s = choice(layer, inputs[0]), first_call_s
    once(inputs[0])  # what was compiled is gone if the check has compiled another
    if case.direction == "train" and not provider.captured:
        known = [*layer.parameters(), *layer.buffers(), *inputs]
        row.saved_bytes = memory.saved_bytes(lambda: layer(inputs[0]), known)
    row.peak_bytes = memory.peak_bytes(lambda: once(inputs[0]), session.device)
    work = capture(once, inputs[0]) if provider.captured else once

    def run(number: int) -> object:
        return work(inputs[number % INPUTS])

    return Contender(row, run, session.watch.time(run, 1))


def step(case: Case, layer: nn.Module) -> Callable[[Tensor], object]:
    """What is timed, of one input. The loss is the sum of the output, which costs least."""
    if case.direction != "train":

        def forward(x: Tensor) -> object:
            with torch.set_grad_enabled(case.direction == "forward"):
                return layer(x)

        return forward

    def train(x: Tensor) -> object:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        output = layer(x)
        if output.requires_grad:  # the bare products have made their gradients by themselves
            output.sum().backward()
        return None

    return train


def _affordable(contenders: list[Contender], seconds: float) -> tuple[list[Contender], list[Row]]:
    """Those of which the least number of rounds fits the time, and rows for the slowest, which do not."""
    kept, late = sorted(contenders, key=lambda c: c.cost), []
    for contender in kept[::-1]:
        if sum(c.cost for c in kept) * LEAST <= seconds:
            break
        if contender.row.provider in (OURS, BASELINE):
            continue
        kept.remove(contender)
        contender.row.status = "deferred"
        contender.row.reason = (
            f"a run takes {contender.cost:.2g} s; {LEAST} rounds do not fit the {seconds:.0f} s left for this case"
        )
        late.append(contender.row)
    return kept, late


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _time(session: Session, contenders: list[Contender], seconds: float) -> None:
    if not contenders:
        return
    rows = {c.row.provider: c.row for c in contenders}
    with _no_collection():
        times, failed = alternate(
            {c.row.provider: c.run for c in contenders},
            session.watch,
            seconds=seconds,
            least=LEAST,
            most=MOST,
            clock=session.clock,
        )
    block = f"{rows[contenders[0].row.provider].when}/{next(_BLOCKS)}"
    for name, row in rows.items():
        if name in failed:
            row.status, row.reason = "error", failed[name]
        else:
            fill(row, times[name], block)
    session.write(*rows.values())


_BLOCKS = itertools.count()


def fill(row: Row, seconds: Sequence[float], block: str) -> None:
    """The statistics of some runs."""
    row.min_s, row.runs, row.block = min(seconds), len(seconds), block
    row.q25_s, row.q75_s, row.q95_s = (float(q) for q in np.quantile(seconds, (0.25, 0.75, 0.95)))
    row.median_s = statistics.median(seconds)
    row.samples = " ".join(f"{s:.4g}" for s in seconds)


def _device_limits(session: Session, case: Case) -> list[Row]:
    """Bytes over the measured copy rate, operations over the measured rate of products: computed, not timed."""
    limits = {
        "bytes / copy rate": model.least_bytes(case) / session.rates["copy_bytes_per_s"],
        "operations / product rate": case.flops() / session.rates[f"{case.dtype}_flops_per_s"],
    }
    rows = [session.row(case, name, "ok", "computed from measured rates") for name in limits]
    for row, seconds in zip(rows, limits.values(), strict=True):
        row.min_s = row.median_s = row.q25_s = row.q75_s = seconds
    return rows
