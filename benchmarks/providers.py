"""Who is measured: each builds a model with the weights of a given nn.RNN, or says why it cannot run a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import rnndrop
from rnndrop import functional

from .cases import Case
from .limits import Products

BASELINE = "nn.RNN"  # plain, without any dropout: what ratios refer to
OURS = "rnndrop"
LIMIT = "matrix products"
GRAPH = ", graph"  # how the names of steps replayed as CUDA graphs end
Build = Callable[[Case, nn.RNN], nn.Module]
Unfit = Callable[[Case, str], str]


@dataclass(frozen=True)
class Provider:
    """A contender.

    masks: "same", it takes a seed and drops what the mask stream says; "none"; or the kinds of dropout of which it draws its
    own, "hidden", "recurrent" or both. One that has only recurrent dropout takes the case's rate whatever its kind.
    unfit: why it cannot run a case on a device, or "". slow: it or its preparation takes long; only cases for everyone have it.
    captured: the step is replayed as a CUDA graph.
    """

    name: str
    build: Build
    masks: str
    about: str
    unfit: Unfit = lambda case, device: ""
    slow: bool = False
    captured: bool = False


def source(case: Case, device: str) -> nn.RNN:
    """Random weights, the same in every process."""
    torch.manual_seed(case.H * 1000 + case.I)
    rnn = nn.RNN(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    return rnn.to(device=device, dtype=case.torch_dtype)


def weights(rnn: nn.RNN) -> list[list[Tensor]]:
    """w_ih, w_hh, b_ih, b_hh of each layer in each direction."""
    return [[weight.detach() for weight in group] for group in rnn.all_weights]


class Model(nn.Module):
    """A layer as the benchmark calls it."""

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        """The output (T, B, D*H) of x (T, B, I)."""
        raise NotImplementedError

    def gradients(self) -> list[list[Tensor | None]]:
        """Those of w_ih (H, I), w_hh (H, H), b_ih and b_hh (H) of each layer in each direction; one bias has both."""
        raise NotImplementedError


class Whole(Model):
    """A module with nn.RNN's parameters and call, and what follows it."""

    def __init__(self, rnn: nn.Module, after: nn.Module | None = None, takes_seed: bool = False) -> None:
        super().__init__()
        self.rnn, self.after, self.takes_seed = rnn, after, takes_seed

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        output = (self.rnn(x, seed=seed) if self.takes_seed else self.rnn(x))[0]
        return output if self.after is None else self.after(output)

    def gradients(self) -> list[list[Tensor | None]]:
        return [[weight.grad for weight in group] for group in cast(nn.RNN, self.rnn).all_weights]


class Named(Model):
    """rnndrop's layer by the name of a strategy."""

    def __init__(self, case: Case, rnn: nn.RNN, strategy: str) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(weight.clone() for weight in weights(rnn)[0])
        self.options: dict[str, Any] = dict(case.rates, strategy=strategy)

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        h0 = x.new_zeros(x.shape[1], self.parameters_[1].shape[0])
        options = self.options if self.training else self.options | {"hidden_dropout": 0.0, "recurrent_dropout": 0.0}
        return functional.rnn_layer(x, h0, *self.parameters_, seed=seed, **options)[0]

    def gradients(self) -> list[list[Tensor | None]]:
        return [[weight.grad for weight in self.parameters_]]


class Step(nn.Module):
    """One step of the loop that a user writes: nn.RNNCell and nn.Dropout, fresh masks."""

    def __init__(self, case: Case, of: list[Tensor]) -> None:
        super().__init__()
        self.cell = nn.RNNCell(of[0].shape[1], case.H, device=of[0].device, dtype=of[0].dtype)
        self.cell.load_state_dict(dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), of, strict=True)))
        self.recurrent, self.hidden = nn.Dropout(case.recurrent_dropout), nn.Dropout(case.hidden_dropout)

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
        self.between = nn.Dropout(case.dropout_between)
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

    def gradients(self) -> list[list[Tensor | None]]:
        cells = [cast(nn.RNNCell, step.cell) for step in self.steps]
        return [[cell.weight_ih.grad, cell.weight_hh.grad, cell.bias_ih.grad, cell.bias_hh.grad] for cell in cells]


def _rnndrop(case: Case, rnn: nn.RNN) -> nn.Module:
    return Whole(rnndrop.RNN.from_torch(rnn, dropout=case.dropout_between, **case.rates), takes_seed=True)


def _plain(case: Case, rnn: nn.RNN) -> nn.Module:
    return Whole(_copy(rnn))


def _followed_by_dropout(case: Case, rnn: nn.RNN) -> nn.Module:
    return Whole(_copy(rnn, case.dropout_between), nn.Dropout(case.hidden_dropout))


def _copy(rnn: nn.RNN, dropout: float = 0.0) -> nn.RNN:
    weight = rnn.weight_ih_l0
    options = {"bidirectional": rnn.bidirectional, "device": weight.device, "dtype": weight.dtype}
    copy = nn.RNN(rnn.input_size, rnn.hidden_size, rnn.num_layers, dropout=dropout, **options)
    copy.load_state_dict(rnn.state_dict())
    return copy


def _compiled(case: Case, rnn: nn.RNN) -> nn.Module:
    torch._dynamo.reset()
    return Loop(case, rnn, prepare=lambda step: torch.compile(step, fullgraph=True, dynamic=False))


def _one_layer(case: Case, device: str) -> str:
    return "" if case.layers == 1 and not case.bidirectional else "a strategy by name runs one layer in one direction"


def _strategy(name: str) -> Provider:
    def unfit(case: Case, device: str) -> str:
        if device == "cpu" and name not in ("torch", "reference"):
            return "a CUDA strategy"
        if device == "cuda" and name == "torch":
            return "the CPU's path"
        return _one_layer(case, device)

    def build(case: Case, rnn: nn.RNN) -> nn.Module:
        return Named(case, rnn, name)

    return Provider(f"{OURS} {name}", build, "same", f"rnndrop, strategy {name!r}", unfit, slow=name in ("torch", "reference"))


def _needs_hidden(case: Case, device: str) -> str:
    return "" if case.hidden_dropout else "nn.Dropout on the output is no recurrent dropout"


def _needs_step(case: Case, device: str) -> str:
    return "" if case.mask_scope == "step" else "this case has one mask a sequence: the loop above is it"


def _needs_step_compiled(case: Case, device: str) -> str:
    return "" if case.mask_scope == "step" else "the compiled step draws a mask at each call"


def everyone() -> list[Provider]:
    """All providers, installed or not; captured ones are for CUDA."""
    from . import others

    found = [
        Provider(OURS, _rnndrop, "same", "rnndrop.RNN, strategy 'auto'"),
        Provider(BASELINE, _plain, "none", "torch.nn.RNN, no dropout at all"),
        Provider("nn.RNN + nn.Dropout", _followed_by_dropout, "hidden", "dropout on the output, not fed back", _needs_hidden),
        Provider("loop", Loop, "hidden recurrent", "a loop of nn.RNNCell and nn.Dropout"),
        Provider(LIMIT, Products, "none", "the bare matrix products of the same layer, outputs preallocated"),
        Provider("loop, one mask", _loop_one_mask, "hidden recurrent", "the loop with one mask a sequence", _needs_step),
        Provider(
            "loop, compiled",
            _compiled,
            "hidden recurrent",
            "the loop, its step under torch.compile",
            _needs_step_compiled,
            slow=True,
        ),
        *[_strategy(name) for name in functional.STRATEGIES if name != "auto"],
        *others.adapters(),
    ]
    captured = (OURS, BASELINE, "nn.RNN + nn.Dropout", "loop", LIMIT)
    found += [_captured(provider) for provider in found if provider.name in captured]
    return found


def _loop_one_mask(case: Case, rnn: nn.RNN) -> nn.Module:
    return Loop(case, rnn, scope="sequence")


def _captured(provider: Provider) -> Provider:
    def unfit(case: Case, device: str) -> str:
        return provider.unfit(case, device) if device == "cuda" else "CUDA graphs need CUDA"

    about = f"{provider.about}, replayed as a CUDA graph"
    return Provider(provider.name + GRAPH, provider.build, provider.masks, about, unfit, captured=True)


def choice(model: nn.Module, x: Tensor) -> str:
    """The strategy that "auto" runs for this input, or "" of another model."""
    return rnndrop.explain(model.rnn, x).strategy if isinstance(model, Whole) and isinstance(model.rnn, rnndrop.RNN) else ""
