"""Which strategy runs a module on an input, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .autocast import compute_dtype
from .dispatch import REASONS, Choice, Problem, choose
from .kernels.plan import Extras
from .modules.base import RNNBase
from .steps import Steps


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` tells; as a string, for people."""

    strategy: str
    reason: str
    tiles: dict[str, int] = field(default_factory=dict)
    on_chip_bytes: int = 0  # what it keeps on each multiprocessor for all steps
    rejected: dict[str, str] = field(default_factory=dict)  # the strategies considered before it, and why not

    def __str__(self) -> str:
        lines = [f"{self.strategy}: {self.reason}"]
        if self.tiles:
            lines.append("    " + ", ".join(f"{name} {value}" for name, value in self.tiles.items()))
            lines.append(f"    on chip {self.on_chip_bytes:,} bytes")
        return "\n".join(lines + [f"    not {name}: {reason}" for name, reason in self.rejected.items()])


def explain(rnn: RNNBase, input: Tensor | PackedSequence) -> Explanation:
    """Which strategy ``rnn(input)`` runs for each of its layers and directions, and why.

    It is ``"torch.nn.RNN"`` (or ``"torch.nn.LSTM"``, ``"torch.nn.GRU"``), PyTorch's own layers, in evaluation without zoneout,
    and in training in which nothing is dropped inside the recurrence: dropout of the input, between layers, of the output and
    of the weight acts around them. Evaluation with zoneout, which is inside, is the expectation, computed by a strategy of
    this library.

    Args:
        rnn: an ``rnndrop.RNN``, ``LSTM`` or ``GRU``, in the mode in which it is to run.
        input: what it is to run on, a tensor (L, H_in), (L, N, H_in) or (N, L, H_in), or a packed sequence.

    Raises:
        TypeError: `rnn` is none of these.
    """
    if not isinstance(rnn, RNNBase):
        raise TypeError(f"rnn should be a rnndrop.RNN, LSTM or GRU, got {type(rnn).__name__}")
    dropouts = rnn._dropouts if rnn.training else rnn._dropouts.in_evaluation()
    if not dropouts.inside:
        return Explanation(
            f"torch.nn.{rnn.cell.name}", "nothing is dropped inside the recurrence: PyTorch's own layers, cuDNN's on CUDA"
        )
    if rnn.proj_size:
        return Explanation("reference", f"its state is projected (proj_size): {REASONS['reference']}")
    return from_choice(choose("auto", _problem(rnn, input)))


def _problem(rnn: RNNBase, input: Tensor | PackedSequence) -> Problem:
    if isinstance(input, PackedSequence):
        data, sizes = input.data, input.batch_sizes
        steps = Steps(len(sizes), int(sizes[0]), sizes)
    else:
        first = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if rnn.batch_first else input
        data, steps = input, Steps(*first.shape[:2])
    extras = Extras(rnn._dropouts.inside if rnn.training else (), packed=len(steps.runs) > 1)
    return Problem(data.device, compute_dtype(data), steps.count, steps.batch, rnn.hidden_size, rnn.mode, extras)


def from_choice(choice: Choice) -> Explanation:
    facts = choice.plan._asdict() if choice.plan else {}
    tiles = {name: value for name, value in facts.items() if name not in ("on_chip", "shared", "reason")}
    return Explanation(choice.strategy, choice.reason, tiles, choice.plan.on_chip if choice.plan else 0, choice.rejected)
