"""The loop that a user writes: nn.RNNCell and nn.Dropout at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cases import Case
from .base import Contender, Model, weights

KINDS = ("dropout", "hidden_dropout", "recurrent_dropout")


class Step(nn.Module):
    """One step, its masks fresh."""

    def __init__(self, case: Case, of: list[Tensor]) -> None:
        super().__init__()
        self.cell = nn.RNNCell(of[0].shape[1], case.H, device=of[0].device, dtype=of[0].dtype)
        self.cell.load_state_dict(dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), of, strict=True)))
        self.recurrent, self.hidden = nn.Dropout(case.rate("recurrent_dropout")), nn.Dropout(case.rate("hidden_dropout"))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.hidden(self.cell(x, self.recurrent(h)))


class SequenceStep(Step):
    """Likewise with masks drawn once, by :meth:`draw`."""

    def draw(self, h: Tensor) -> None:
        self.recurrent_mask, self.hidden_mask = self.recurrent(torch.ones_like(h)), self.hidden(torch.ones_like(h))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h * self.recurrent_mask) * self.hidden_mask


class Loop(Model):
    """The loop over time, layers and directions. `prepare` may compile the step."""

    def __init__(
        self, case: Case, rnn: nn.RNN, scope: str = "", prepare: Callable[[nn.Module], Any] = lambda step: step
    ) -> None:
        super().__init__()
        kind = SequenceStep if (scope or case.mask_scope) == "sequence" else Step
        self.steps = nn.ModuleList(kind(case, group) for group in weights(rnn))
        self.between = nn.Dropout(case.rate("dropout"))
        self.directions, self.H = case.directions, case.H
        self.run = [prepare(step) for step in self.steps]

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        for first in range(0, len(self.steps), self.directions):
            x = self.between(x) if first else x
            outputs = [self._layer(x, first + reverse, bool(reverse)) for reverse in range(self.directions)]
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return x

    def _layer(self, x: Tensor, number: int, reverse: bool) -> Tensor:
        h, run, step, outputs = x.new_zeros(x.shape[1], self.H), self.run[number], self.steps[number], []
        if isinstance(step, SequenceStep):
            step.draw(h)
        steps = x.unbind(0)
        for x_t in steps[::-1] if reverse else steps:
            h = run(x_t, h)
            outputs.append(h)
        return torch.stack(outputs[::-1] if reverse else outputs)

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(step.parameters()) for step in self.steps]


def _one_mask(case: Case, rnn: nn.RNN) -> Model:
    return Loop(case, rnn, scope="sequence")


def _compiled(case: Case, rnn: nn.RNN) -> Model:
    torch._dynamo.reset()
    return Loop(case, rnn, prepare=lambda step: torch.compile(step, fullgraph=True, dynamic=False))


def _cannot(case: Case, device: str) -> str:
    lacking = [name for name in case.dropouts if name not in KINDS]
    return f"the loop has no {' and no '.join(lacking)}" if lacking else ""


def _per_step_only(reason: str) -> Callable[[Case, str], str]:
    return lambda case, device: _cannot(case, device) or ("" if case.mask_scope == "step" else reason)


LOOP = Contender("loop", Loop, KINDS, cannot=_cannot)
ONE_MASK = Contender(
    "loop, one mask", _one_mask, KINDS, cannot=_per_step_only("this case has one mask a sequence: the loop above is it")
)
COMPILED = Contender(
    "loop, compiled", _compiled, KINDS, cannot=_per_step_only("the compiled step draws a mask at each call"), slow=True
)
