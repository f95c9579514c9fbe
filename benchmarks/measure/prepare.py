"""A contender of a case is built, checked, and made ready to be timed."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cases import Case
from ..contenders import ours
from ..contenders.base import Contender, Model, source
from . import memory
from .check import check
from .graph import capture
from .results import Row
from .session import Session
from .timer import Run, describe

INPUTS = 4  # rotated, so that no contender finds its input in the cache because of itself


@dataclass
class Ready:
    """A contender that passed its check. `cost`: seconds of a call, for planning."""

    row: Row
    run: Run
    cost: float


def prepare(session: Session, case: Case, contender: Contender) -> Ready | None:
    """The contender, ready; or None, its error written down."""
    try:
        rnn = source(case, session.device)
        inputs = [case.input(session.device) for _ in range(INPUTS)]
        for x in inputs:
            x.requires_grad_(case.input_grad)
        model = contender.build(case, rnn).train(case.pass_ != "inference")
        first_call_s = _first_call(session, step(case, model), inputs[0])
        check(contender, case, rnn, inputs[0])
        row = session.row(case, contender.name, "ok")
        row.first_call_s = first_call_s
        return _ready(session, case, contender, model, inputs, row)
    except Exception as error:
        session.write(session.row(case, contender.name, "skipped" if refuses(error) else "error", describe(error)))
        if session.device == "cuda":
            _probe(session)
        return None
    finally:
        gc.collect()


def refuses(error: Exception) -> bool:
    """Whether it is a strategy's, asked for by name, that says why it cannot run."""
    return isinstance(error, ValueError) and bool(re.match(r"strategy '\w+' cannot run", str(error)))


def _probe(session: Session) -> None:
    """After an error: whether the device still works, so that it is not held against those that follow."""
    try:
        torch.randn(1, device=session.device).item()
    except Exception as error:
        raise RuntimeError("the device fails after the last error in rows.csv; start again to go on without it") from error


def _first_call(session: Session, once: Callable[[Tensor], object], x: Tensor) -> float:
    """Seconds of the very first, which may compile."""
    start = session.clock()
    once(x)
    if session.device == "cuda":
        torch.cuda.synchronize()
    return session.clock() - start


def _ready(session: Session, case: Case, contender: Contender, model: Model, inputs: list[Tensor], row: Row) -> Ready:
    once, x = step(case, model), inputs[0]
    row.chosen = ours.chosen(model, x)
    once(x)  # what was compiled is gone if the check has compiled another
    if case.pass_ == "train" and not contender.captured:
        row.saved_bytes = memory.saved_bytes(lambda: model(x), [*model.parameters(), *model.buffers(), *inputs])
    row.peak_bytes = memory.peak_bytes(lambda: once(x), session.device)
    work = capture(once, x) if contender.captured else once

    def run(number: int) -> object:
        return work(inputs[number % INPUTS])

    return Ready(row, run, session.watch(run, 1))


def step(case: Case, model: nn.Module) -> Callable[[Tensor], object]:
    """What is timed, of one input. The loss is the sum of the output, which costs least."""

    def train(x: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        x.grad = None
        output = model(x)
        if output.requires_grad:  # the bare products have made their gradients by themselves
            output.sum().backward()

    def forward(x: Tensor) -> object:
        with torch.set_grad_enabled(case.pass_ == "forward"):
            return model(x)

    return train if case.pass_ == "train" else forward
