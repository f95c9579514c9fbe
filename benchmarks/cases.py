"""What is measured. Legend: T steps, B sequences, I inputs, H hidden units, D directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

PASSES = ("train", "forward", "inference")  # forward and backward; forward with a graph; neither graph nor dropout
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADLINE = [  # T, B, I, H
    (35, 20, 200, 200),
    (100, 32, 64, 128),
    (128, 64, 128, 256),
    (256, 64, 512, 512),
    (35, 128, 1024, 1024),
    (784, 100, 1, 100),
    (50, 1, 32, 64),
]


@dataclass(frozen=True)
class Case:
    """One thing to measure. `group` is the section of the report that it belongs to."""

    group: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    dtype: str = "fp32"
    direction: str = "train"  # one of PASSES
    hidden_dropout: float = 0.2
    recurrent_dropout: float = 0.0
    mask_scope: str = "step"
    layers: int = 1
    bidirectional: bool = False
    input_grad: bool = False
    everyone: bool = False  # time also what is slow to prepare: torch.compile, Keras

    @property
    def name(self) -> str:
        """The shape and what differs from the headline's layer; dtype and pass stand in columns of their own."""
        kinds = {"hidden": self.hidden_dropout, "recurrent": self.recurrent_dropout}
        dropped = "+".join(kind for kind, p in kinds.items() if p)
        extra = [dropped or "no dropout"] if dropped != "hidden" else []
        extra += ["sequence"] if self.mask_scope == "sequence" else []
        extra += [f"{self.layers} layers"] if self.layers > 1 else []
        extra += ["bidirectional"] if self.bidirectional else []
        extra += ["input gradient"] if self.input_grad else []
        return " ".join([f"T{self.T}-B{self.B}-I{self.I}-H{self.H}", *extra])

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def dropout_between(self) -> float:
        return self.hidden_dropout if self.layers > 1 else 0.0

    @property
    def layer_inputs(self) -> list[int]:
        """The input width of each layer in each direction."""
        widths = [self.I] + [self.H * self.directions] * (self.layers - 1)
        return [width for width in widths for _ in range(self.directions)]

    @property
    def rates(self) -> dict[str, float | str]:
        """The dropouts, as rnndrop takes them."""
        return {
            "hidden_dropout": self.hidden_dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "mask_scope": self.mask_scope,
        }

    def without_dropout(self) -> Case:
        return replace(self, hidden_dropout=0.0, recurrent_dropout=0.0)

    def flops(self) -> float:
        """Operations of the matrix products: forward, then the gradients of the recurrence and of both weights."""
        rows, train = self.T * self.B, self.direction == "train"
        total = 0.0
        for number, width in enumerate(self.layer_inputs):
            needs_dx = number >= self.directions or self.input_grad
            inputs, recurrent = 2.0 * rows * width * self.H, 2.0 * rows * self.H**2
            total += (inputs * (2 + needs_dx) + recurrent * 3) if train else inputs + recurrent
        return total


SWEEPS = {  # by what grows
    "T": [Case("T", T, 32, 128, 128) for T in (16, 32, 64, 128, 256, 512, 1024, 2048)],
    "B": [Case("B", 64, B, 256, 256) for B in (1, 4, 16, 64, 256)],
    "H": [Case("H", 64, 32, H, H) for H in (32, 64, 128, 256, 512, 1024, 2048)],
}


def select(device: str, quick: bool, wanted: list[str]) -> list[Case]:
    """The cases of a run, the most important first. `wanted`: words of which a case's group or name must contain one."""
    cases = list(_quick(device) if quick else _whole(device))
    cases = list({(c.name, c.dtype, c.direction): c for c in reversed(cases)}.values())[::-1]  # first group wins
    return [c for c in cases if not wanted or any(word in f"{c.group} {c.name} {c.dtype} {c.direction}" for word in wanted)]


def _quick(device: str) -> Iterator[Case]:
    headline = [Case("headline", *shape) for shape in HEADLINE]
    everyone = {HEADLINE[1], HEADLINE[6]}
    yield from (replace(c, everyone=(c.T, c.B, c.I, c.H) in everyone) for c in headline)
    yield replace(headline[2], direction="inference")
    yield replace(headline[2], direction="forward")
    if device == "cuda":
        yield replace(headline[4], dtype="bf16")
    yield from (case for case in SWEEPS["T"] if case.T in (16, 64, 256))
    yield replace(headline[2], group="dropout", hidden_dropout=0.0, recurrent_dropout=0.2, mask_scope="sequence")


def _whole(device: str) -> Iterator[Case]:
    headline = [Case("headline", *shape, everyone=True) for shape in HEADLINE]
    yield from headline
    for direction in ("inference", "forward"):
        yield from (replace(c, direction=direction, everyone=False) for c in headline)
    one = Case("", 128, 64, 128, 256)
    for hidden, recurrent, scope in [(0.2, 0, "sequence"), (0, 0.2, "step"), (0, 0.2, "sequence"), (0.2, 0.2, "step")]:
        yield replace(one, group="dropout", hidden_dropout=hidden, recurrent_dropout=recurrent, mask_scope=scope)
    yield replace(one, group="network", layers=2)
    yield replace(one, group="network", bidirectional=True)
    yield replace(one, group="network", input_grad=True)
    sweeps = [case for sweep in SWEEPS.values() for case in sweep]
    yield from sweeps
    if device == "cuda":
        for dtype in ("tf32", "bf16", "fp16"):
            yield from (replace(c, group="dtype", dtype=dtype, everyone=False) for c in headline)
        yield from (replace(c, dtype="bf16") for c in sweeps)
    else:
        yield from (replace(one, group="dtype", dtype=dtype) for dtype in ("bf16", "fp16"))
