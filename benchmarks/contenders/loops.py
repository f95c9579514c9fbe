"""The loop that a user writes: a cell of torch.nn and nn.Dropout at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..cases import Case
from .base import LOOP, Contender, Model, lacks, weights

Cell = TypeVar("Cell", bound=nn.Module)
PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
FUNCTIONS: dict[str, Callable[..., Any]] = {"RNN": torch.rnn_tanh_cell, "LSTM": torch.lstm_cell, "GRU": torch.gru_cell}
States = tuple[Tensor, ...]
AROUND = "hidden_dropout", "zoneout", "dropout", "input_dropout", "output_dropout", "weight_dropout"
KINDS: dict[str, tuple[str, ...]] = {  # what is had around a whole cell; a GRU also carries the state on that enters W_hh
    "RNN": ("recurrent_dropout", *AROUND),
    "LSTM": ("recurrent_dropout", "cell_zoneout", *AROUND),
    "GRU": AROUND,
}


def loaded(cell: Cell, of: list[Tensor]) -> Cell:
    """A cell with these weights."""
    cell.load_state_dict(dict(zip(PARAMETERS, of, strict=True)))
    return cell


class Step(nn.Module):
    """One step, its masks fresh; of the weight one is drawn, by :meth:`begin`, for all steps."""

    def __init__(self, case: Case, of: list[Tensor]) -> None:
        super().__init__()
        kind = getattr(nn, f"{case.cell}Cell")
        self.cell = loaded(kind(of[0].shape[1], case.H, device=of[0].device, dtype=of[0].dtype), of)
        self.function = FUNCTIONS[case.cell]
        self.recurrent, self.hidden = nn.Dropout(case.rate("recurrent_dropout")), nn.Dropout(case.rate("hidden_dropout"))
        self.weight, self.zoneouts = case.rate("weight_dropout"), (case.rate("zoneout"), case.rate("cell_zoneout"))

    def begin(self, h: Tensor) -> None:
        if self.weight:
            self.w_hh = nn.functional.dropout(self.cell.weight_hh, self.weight, self.training)

    def forward(self, x: Tensor, states: States) -> States:
        h, *others = self.new(x, (self.recurrent(states[0]), *states[1:]))
        return self.zoned(states, (self.hidden(h), *others))

    def new(self, x: Tensor, states: States) -> States:
        given = states if len(states) > 1 else states[0]
        if self.weight:
            new = self.function(x, given, self.cell.weight_ih, self.w_hh, self.cell.bias_ih, self.cell.bias_hh)
        else:
            new = self.cell(x, given)
        return new if len(states) > 1 else (new,)

    def zoned(self, old: States, new: States) -> States:
        return tuple(self.zone(p, *pair) if p else pair[1] for p, *pair in zip(self.zoneouts, old, new, strict=False))

    def zone(self, p: float, old: Tensor, new: Tensor) -> Tensor:
        return torch.where(torch.rand_like(new) < p, old, new) if self.training else p * old + (1 - p) * new


class SequenceStep(Step):
    """Likewise with the masks of states drawn once."""

    def begin(self, h: Tensor) -> None:
        super().begin(h)
        self.recurrent_mask, self.hidden_mask = self.recurrent(torch.ones_like(h)), self.hidden(torch.ones_like(h))

    def forward(self, x: Tensor, states: States) -> States:
        h, *others = self.new(x, (states[0] * self.recurrent_mask, *states[1:]))
        return self.zoned(states, (h * self.hidden_mask, *others))


class Dropout(nn.Dropout):
    """Of all steps, (T, B, F), with fresh masks or with one."""

    def __init__(self, p: float, one_mask: bool) -> None:
        super().__init__(p)
        self.one_mask = one_mask

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(torch.ones_like(x[:1])) if self.one_mask and self.p else super().forward(x)


class Loop(Model):
    """The loop over time, layers and directions. `prepare` may compile the step."""

    def __init__(
        self,
        case: Case,
        rnn: nn.RNNBase,
        scope: str = "",
        prepare: Callable[[nn.Module], Any] = lambda step: step,
        step: Callable[[Case, list[Tensor]], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        one_mask = (scope or case.mask_scope) == "sequence"
        make = step or (SequenceStep if one_mask else Step)
        self.steps = nn.ModuleList(make(case, group) for group in weights(rnn))
        outside = [Dropout(case.rate(name), one_mask) for name in ("input_dropout", "dropout", "output_dropout")]
        self.on_input, self.between, self.on_output = outside
        self.directions, self.H, self.states = case.directions, case.H, case.states
        self.run = [prepare(step) for step in self.steps]

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        x = self.on_input(x)
        for first in range(0, len(self.steps), self.directions):
            x = self.between(x) if first else x
            outputs = [self._layer(x, first + reverse, bool(reverse)) for reverse in range(self.directions)]
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return self.on_output(x)

    def _layer(self, x: Tensor, number: int, reverse: bool) -> Tensor:
        zeros, run, outputs = x.new_zeros(x.shape[1], self.H), self.run[number], []
        self.steps[number].begin(zeros)
        states, steps = (zeros,) * self.states, x.unbind(0)
        for x_t in steps[::-1] if reverse else steps:
            states = run(x_t, states)
            outputs.append(states[0])
        return torch.stack(outputs[::-1] if reverse else outputs)

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return [list(step.parameters()) for step in self.steps]


def _one_mask(case: Case, rnn: nn.RNNBase) -> Model:
    return Loop(case, rnn, scope="sequence")


def _compiled(case: Case, rnn: nn.RNNBase) -> Model:
    torch._dynamo.reset()
    return Loop(case, rnn, prepare=lambda step: torch.compile(step, fullgraph=True, dynamic=False))


def _cannot(case: Case, device: str) -> str:
    return lacks(case, KINDS[case.cell])


def _per_step_only(reason: str) -> Callable[[Case, str], str]:
    return lambda case, device: lacks(case, KINDS[case.cell]) or ("" if case.mask_scope == "step" else reason)


EVERY_KIND = KINDS["LSTM"]
THE_LOOP = Contender(LOOP, Loop, EVERY_KIND, cannot=_cannot)
ONE_MASK = Contender(
    "loop, one mask", _one_mask, EVERY_KIND, cannot=_per_step_only("this case has one mask a sequence: the loop above is it")
)
COMPILED = Contender(
    "loop, compiled", _compiled, EVERY_KIND, cannot=_per_step_only("the compiled step draws a mask at each call"), slow=True
)
