"""What is measured. Legend: T steps, B sequences, I inputs, H hidden units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rnndrop import cell as table
from rnndrop.kinds import KINDS, ZONEOUTS

Cell = Literal["RNN", "LSTM", "GRU"]  # as torch.nn has them
CELLS: dict[str, table.Cell] = {name: table.CELLS["RNN_TANH" if name == "RNN" else name] for name in get_args(Cell)}
RATES = {  # of all dropouts that a cell has, by the names that rnndrop gives them
    name: {
        kind.argument: 0.1 if known in ZONEOUTS else 0.2
        for known, kind in KINDS.items()
        if kind.state is None or known in cell.kinds
    }
    for name, cell in CELLS.items()
}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    group: the section of the report that it belongs to.
    pass_: "train", forward and backward; "forward", with a graph; "inference", neither graph nor masks.
    dropouts: rates by the names that rnndrop gives them, of those that are not 0.
    packed: sequences of lengths that fall evenly from T to 5.
    who: "everyone", also what is slow to prepare, such as torch.compile and Keras; "most"; "two", rnndrop and torch.nn.
    """

    group: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    dtype: str = "fp32"
    pass_: str = "train"
    cell: Cell = "RNN"
    dropouts: Mapping[str, float] = field(default_factory=lambda: {"hidden_dropout": 0.2})
    mask_scope: str = "step"
    layers: int = 1
    bidirectional: bool = False
    input_grad: bool = False
    packed: bool = False
    who: Literal["everyone", "most", "two"] = "most"

    @property
    def name(self) -> str:
        """The shape and what differs from the headline's layer; dtype and pass stand in columns of their own."""
        kinds = [name for name, kind in KINDS.items() if self.rate(kind.argument)]
        dropped = "every kind" if len(kinds) == len(RATES[self.cell]) else "+".join(kinds) or "no dropout"
        extra = [self.cell] if self.cell != "RNN" else []
        extra += [dropped] if dropped != "hidden" else []
        extra += ["sequence"] if self.mask_scope == "sequence" else []
        extra += [f"{self.layers} layers"] if self.layers > 1 else []
        extra += ["bidirectional"] if self.bidirectional else []
        extra += ["input gradient"] if self.input_grad else []
        extra += ["packed"] if self.packed else []
        return " ".join([f"T{self.T}-B{self.B}-I{self.I}-H{self.H}", *extra])

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.pass_, self.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def gates(self) -> int:
        """Rows of the weights, in units of H."""
        return CELLS[self.cell].gates

    @property
    def states(self) -> int:
        """How many the cell carries from step to step."""
        return len(CELLS[self.cell].states)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def layer_inputs(self) -> list[int]:
        """The input width of each layer in each direction."""
        widths = [self.I] + [self.H * self.directions] * (self.layers - 1)
        return [width for width in widths for _ in range(self.directions)]

    @cached_property
    def batch_sizes(self) -> Tensor | None:
        """The rows of each step, (T), where the sequences are packed."""
        lengths = torch.linspace(self.T, min(5, self.T), self.B).round()
        return (lengths > torch.arange(self.T).unsqueeze(1)).sum(1) if self.packed else None

    @property
    def rows(self) -> int:
        """Of all steps and sequences."""
        return self.T * self.B if self.batch_sizes is None else int(self.batch_sizes.sum())

    def input(self, device: str) -> Tensor:
        """A random one, (T, B, I), or (rows, I) packed."""
        shape = (self.rows,) if self.packed else (self.T, self.B)
        return torch.randn(*shape, self.I, device=device).to(self.torch_dtype)

    @property
    def options(self) -> dict[str, Any]:
        """The dropouts, as rnndrop takes them."""
        return {**self.dropouts, "mask_scope": self.mask_scope}

    def rate(self, name: str) -> float:
        return self.dropouts.get(name, 0.0)

    def without_dropout(self) -> Case:
        return replace(self, dropouts={})

    def flops(self) -> float:
        """Operations of the matrix products: forward, then the gradients of the recurrence and of both weights."""
        rows, train = self.rows, self.pass_ == "train"
        total = 0.0
        for number, width in enumerate(self.layer_inputs):
            needs_dx = number >= self.directions or self.input_grad
            inputs, recurrent = (2.0 * rows * wide * self.gates * self.H for wide in (width, self.H))
            total += (inputs * (2 + needs_dx) + recurrent * 3) if train else inputs + recurrent
        return total

    def least_bytes(self) -> float:
        """What any implementation moves at least: the input, the weights, the last outputs and the gradients once."""
        rows, train = self.rows, self.pass_ == "train"
        weights = sum(self.gates * self.H * (width + self.H) for width in self.layer_inputs)
        numbers = rows * (self.I * (1 + train * self.input_grad) + self.H * self.directions) + weights * (1 + train)
        return float(self.torch_dtype.itemsize * numbers)


SHAPES = [  # T, B, I, H
    (35, 20, 200, 200),
    (100, 32, 64, 128),
    (128, 64, 128, 256),
    (256, 64, 512, 512),
    (35, 128, 1024, 1024),
    (784, 100, 1, 100),
    (50, 1, 32, 64),
    (60, 48, 88, 150),
    (200, 16, 40, 320),
]
GATED_SHAPES = [*SHAPES[:3], (35, 128, 650, 650), SHAPES[6]]
HEADLINE: dict[str, list[Case]] = {
    "RNN": [Case("headline", *shape) for shape in SHAPES],
    "LSTM": [Case("headline", *shape, cell="LSTM") for shape in GATED_SHAPES],
    "GRU": [Case("headline", *shape, cell="GRU") for shape in GATED_SHAPES],
}
GATED = [*HEADLINE["LSTM"], *HEADLINE["GRU"]]
ONE = HEADLINE["RNN"][2]  # of which all that differs from the headline is measured
SHORT = [
    Case("short", 7, 1, 32, 64),
    Case("short", 1, 32, 128, 128),
    Case("short", 10, 4, 16, 16),
    Case("short", 50, 32, 128, 128),
]
PACKED = [Case("packed", 200, 64, H, H, packed=True) for H in (128, 512)]
SWEEPS = {  # by what grows
    "T": [Case("T", T, 32, 128, 128) for T in (16, 32, 64, 128, 256, 512, 1024, 2048)],
    "B": [Case("B", 64, B, 256, 256) for B in (1, 4, 16, 64, 256)],
    "H": [Case("H", 64, 32, H, H) for H in (32, 64, 128, 256, 512, 1024, 2048)],
}
KINDS_ALONE = [{name: p} for name, p in RATES["RNN"].items()]
HIDDEN, RECURRENT, BOTH = KINDS_ALONE[0], KINDS_ALONE[1], KINDS_ALONE[0] | KINDS_ALONE[1]
GATED_KINDS: list[tuple[tuple[str, ...], str]] = [  # as the papers have them, those that the cell has, with their scopes
    (("recurrent_dropout",), "sequence"),
    (("zoneout", "cell_zoneout"), "step"),
    (("cell_dropout",), "sequence"),
    (("candidate_dropout",), "step"),
    (("weight_dropout",), "step"),
]
AWD_LSTM = Case("kinds", 70, 80, 400, 1150, cell="LSTM", dropouts={"weight_dropout": 0.5}, who="two")


def select(device: str, quick: bool, wanted: list[str]) -> list[Case]:
    """The cases of a run, the most important first. `wanted`: words of which a case's group or name must contain one."""
    cases = {case.key: case for case in reversed([*(_quick if quick else _whole)(device)])}  # the first group of a case wins
    return [c for c in reversed(cases.values()) if not wanted or any(word in f"{c.group} {' '.join(c.key)}" for word in wanted)]


def with_dropouts(case: Case, dropouts: Mapping[str, float], scope: str = "step") -> Case:
    """A case of the group "dropout", with a second layer where anything is dropped between layers."""
    return replace(case, group="dropout", dropouts=dropouts, mask_scope=scope, layers=1 + ("dropout" in dropouts))


def of_kind(case: Case, dropouts: Mapping[str, float], scope: str = "step") -> Case:
    """Of the group "kinds": rnndrop beside torch.nn alone."""
    return replace(with_dropouts(case, dropouts, scope), group="kinds", who="two")


def gated_kinds(case: Case) -> Iterator[Case]:
    """A case of an LSTM or GRU with each of GATED_KINDS."""
    for names, scope in GATED_KINDS:
        if dropouts := {name: RATES[case.cell][name] for name in names if name in RATES[case.cell]}:
            yield of_kind(case, dropouts, scope)


def _quick(device: str) -> Iterator[Case]:
    plain = HEADLINE["RNN"]
    for case in [*plain[:7], *GATED]:
        yield replace(case, who="two" if case.flops() > 4e10 else "everyone" if case in (plain[1], plain[6]) else "most")
    yield from (replace(cases[2], pass_="forward", who="two") for cases in HEADLINE.values())
    yield replace(ONE, pass_="inference")
    if device == "cuda":
        yield replace(plain[4], dtype="bf16")
        yield from (replace(case, dtype="bf16", who="two") for case in GATED)
    yield from (of_kind(ONE, dropouts) for dropouts in (*KINDS_ALONE[1:], BOTH, RATES["RNN"]))
    for cell in ("LSTM", "GRU"):
        yield from gated_kinds(HEADLINE[cell][1])
    yield replace(PACKED[0], who="two")
    yield from (case for case in SWEEPS["T"] if case.T in (16, 64, 256))


def _whole(device: str) -> Iterator[Case]:
    headline = [*HEADLINE["RNN"], *GATED]
    yield from (replace(case, who="everyone") for case in headline)
    for pass_ in ("inference", "forward"):
        yield from (replace(case, pass_=pass_) for case in headline)
    for dropouts in (*KINDS_ALONE[1:], BOTH, RATES["RNN"]):
        yield with_dropouts(ONE, dropouts)
    for dropouts in (HIDDEN, RECURRENT, RATES["RNN"]):
        yield with_dropouts(ONE, dropouts, "sequence")
    yield replace(with_dropouts(ONE, {"zoneout": RATES["RNN"]["zoneout"]}), pass_="inference")
    for case in [*HEADLINE["LSTM"][1:3], *HEADLINE["GRU"][1:3]]:
        yield from gated_kinds(case)
    yield AWD_LSTM
    yield from SHORT
    yield from PACKED
    for dropouts in (*KINDS_ALONE[1:], BOTH):
        yield from (of_kind(case, dropouts) for case in HEADLINE["RNN"])
    yield replace(ONE, group="network", layers=2, dropouts={"dropout": 0.2, "hidden_dropout": 0.2})
    yield replace(ONE, group="network", bidirectional=True)
    yield replace(ONE, group="network", input_grad=True)
    sweeps = [case for sweep in SWEEPS.values() for case in sweep]
    yield from sweeps
    if device == "cuda":
        for dtype in ("tf32", "bf16", "fp16"):
            yield from (replace(case, group="dtype", dtype=dtype) for case in headline)
        yield from (replace(case, dtype="bf16") for case in sweeps)
    else:
        yield from (replace(ONE, group="dtype", dtype=dtype) for dtype in ("bf16", "fp16"))
