"""What a contender is: it builds a model with the weights of a given layer of torch.nn, or says why it cannot run a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cases import Case

OURS = "rnndrop"
BASELINE = "torch.nn"  # its RNN, LSTM or GRU, plain, without any dropout: what ratios refer to
LIMIT = "matrix products"
LOOP = "loop"
OUR_CELLS = "loop of rnndrop's cells"
GRAPH = ", graph"  # how the names of steps replayed as CUDA graphs end


class Model(nn.Module):
    """A layer as the benchmark calls it."""

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        """The output (T, B, D*H) of x (T, B, I), or that of packed data, (rows, D*H) of (rows, I)."""
        raise NotImplementedError

    def weights(self) -> Sequence[Sequence[Tensor]]:
        """w_ih (G*H, I), w_hh (G*H, H), b_ih and b_hh (G*H), G gates, of each layer in each direction; one bias is both."""
        raise NotImplementedError

    def gradients(self) -> list[list[Tensor | None]]:
        """Those of the weights."""
        return [[weight.grad for weight in group] for group in self.weights()]


class Wrapped(Model):
    """A module with the parameters and the call of torch.nn's, and what comes before and after it."""

    def __init__(self, case: Case, rnn: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.batch_sizes, self.rnn, self.before, self.after = case.batch_sizes, rnn, before, after

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        input = self.input(x if self.before is None else self.before(x))
        output = (self.rnn(input) if seed is None else self.rnn(input, seed=seed))[0]
        output = output.data if isinstance(output, PackedSequence) else output
        return output if self.after is None else self.after(output)

    def input(self, x: Tensor) -> Tensor | PackedSequence:
        """As the module takes it."""
        return x if self.batch_sizes is None else PackedSequence(x, self.batch_sizes)

    def weights(self) -> Sequence[Sequence[Tensor]]:
        return cast(nn.RNNBase, self.rnn).all_weights


@dataclass(frozen=True)
class Contender:
    """Who is measured.

    seeded: it takes a seed, and drops whatever the case has as the mask stream says. kinds: the dropouts, by rnndrop's names,
    that another has, with masks of its own. instead: those that it has in place of ones that it has not.
    packs: it takes packed sequences.
    cannot: why it cannot run a case on a device, or "". slow: it or its preparation takes long.
    captured: the step is replayed as a CUDA graph.
    """

    name: str
    build: Callable[[Case, nn.RNNBase], Model]
    kinds: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    seeded: bool = False
    packs: bool = False
    cannot: Callable[[Case, str], str] = lambda case, device: ""
    slow: bool = False
    captured: bool = False

    def why_not(self, case: Case, device: str) -> str:
        """Why it is not timed with a case on a device, or ""."""
        if self.captured and device != "cuda":
            return "CUDA graphs need CUDA"
        if case.packed and not self.packs:
            return "it takes no packed sequences"
        if reason := self.cannot(case, device):
            return reason
        if case.who == "two" and self.name not in (OURS, BASELINE):
            return "of this kind and shape only rnndrop and torch.nn are timed"
        return "takes long: timed with some of the headline's cases only" if self.slow and case.who != "everyone" else ""

    def rates(self, case: Case) -> dict[str, float]:
        """What it drops of a case."""
        if self.seeded:
            return dict(case.dropouts)
        instead = {self.instead[name]: p for name, p in case.dropouts.items() if name in self.instead}
        return instead | {name: p for name, p in case.dropouts.items() if name in self.kinds}


def lacks(case: Case, kinds: Sequence[str]) -> str:
    """Which dropouts of a case are none of these, or ""."""
    lacking = [name for name in case.dropouts if name not in kinds]
    return f"it has no {' and no '.join(lacking)}" if lacking else ""


def one_layer(case: Case) -> str:
    return "" if case.layers == 1 and not case.bidirectional else "it runs one layer in one direction"


def source(case: Case, device: str) -> nn.RNNBase:
    """PyTorch's layer with random weights, the same in every process."""
    torch.manual_seed(case.H * 1000 + case.I)
    rnn = getattr(nn, case.cell)(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    return rnn.to(device=device, dtype=case.torch_dtype)


def weights(rnn: nn.RNNBase) -> list[list[Tensor]]:
    """w_ih, w_hh, b_ih, b_hh of each layer in each direction."""
    return [[weight.detach() for weight in group] for group in rnn.all_weights]
