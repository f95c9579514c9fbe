"""Which strategy runs a module on an input, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .functional import compute_dtype
from .rnn import RNN


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


def explain(rnn: RNN, input: Tensor | PackedSequence) -> Explanation:
    """Which strategy ``rnn(input)`` runs for each of its layers and directions, and why.

    Args:
        rnn: an ``rnndrop.RNN``, in the mode in which it is to run.
        input: what it is to run on, a tensor (L, H_in), (L, N, H_in) or (N, L, H_in), or a packed sequence.

    Raises:
        TypeError: `rnn` is no ``rnndrop.RNN``.
    """
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn should be a rnndrop.RNN, got {type(rnn).__name__}")
    packed = isinstance(input, PackedSequence)
    data: Any = input.data if isinstance(input, PackedSequence) else input
    if not rnn.training or not (rnn.hidden_dropout or rnn.recurrent_dropout):
        return Explanation("torch.nn.RNN", "nothing is dropped inside the recurrence: PyTorch's own layers, cuDNN's on CUDA")
    if data.device.type in ("cpu", "meta"):
        return Explanation("torch", "the input is on the CPU: in-place products by PyTorch, the rest by NumPy")
    if data.device.type != "cuda":
        return Explanation("reference", f"there are no kernels for {data.device.type}: a plain loop of PyTorch operations")
    from .gpu import choose

    if isinstance(input, PackedSequence):
        batch = int(input.batch_sizes[0])
    else:
        batch = 1 if data.dim() == 2 else data.shape[0 if rnn.batch_first else 1]
    return from_choice(choose(data.device, rnn.hidden_size, batch, compute_dtype(data), packed=packed))


def from_choice(choice: Any) -> Explanation:
    plan = choice.plan._asdict() if choice.plan else {}
    on_chip = plan.get("weight", 0) + plan.get("shared", 0)
    tiles = {name: value for name, value in plan.items() if name not in ("weight", "shared", "reason")}
    return Explanation(choice.strategy, choice.reason, tiles, on_chip, choice.rejected)
