"""Every kernel once, as a launch: what `costs` counts and `resources` compiles.

A new kernel is a new function here. It gets a size (rows or steps), a dtype and a device ("meta" when it is only compiled)
and returns nothing; it must launch with the tile sizes that real use has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rnndrop.cell import CELLS
from rnndrop.kernels.launch import MaskBits

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Run = Callable[[int, torch.dtype, str], None]  # size, dtype, device


@dataclass(frozen=True)
class Launch:
    """A pointwise kernel, whose cost is counted per element, or a whole sequence, per step."""

    name: str
    run: Run
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, int]  # the cost is that of the second less that of the first
    unit: str = "element"
    units: int = 1  # in one row or step

    @property
    def strategy(self) -> str | None:
        return self.name.split()[0] if self.unit == "step" else None


LAUNCHES: list[Launch] = []
COLUMNS = 1024  # of the pointwise kernels


def pointwise(name: str, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        LAUNCHES.append(Launch(name, run, dtypes, (0, 64), units=COLUMNS))
        return run

    return add


def _seed(device: str) -> torch.Tensor:
    return torch.ones(1, dtype=torch.int64, device=device)


@pointwise("tanh_dropout forward")
def tanh_dropout_forward(rows, dtype, device):
    from rnndrop.kernels import activation_dropout

    x = torch.ones(rows, COLUMNS, dtype=dtype, device=device)
    activation_dropout.forward(x, _seed(device), 16384, 4 / 3, 0)


@pointwise("tanh_dropout backward")
def tanh_dropout_backward(rows, dtype, device):
    from rnndrop.kernels import activation_dropout

    y, grad = torch.ones(2, rows, COLUMNS, dtype=dtype, device=device)
    activation_dropout.backward(grad, y, _seed(device), 16384, 4 / 3, 0)


def gated_cell(cell: str, kinds: tuple[str, ...]) -> None:
    """A step of a GRU or an LSTM from its gates, with a mask of each of the kinds; counted by element of a state."""

    def tensors(rows, dtype, device):
        from rnndrop.kernels.gated_cell import DrawnMask

        seed = torch.ones(1, dtype=torch.int64, device=device)
        masks = {kind: DrawnMask(16384, 4 / 3, number << 32) for number, kind in enumerate(kinds)}
        return lambda columns: torch.ones(rows, columns * COLUMNS, dtype=dtype, device=device), seed, masks

    @pointwise(f"{cell.lower()}_cell_dropout forward")
    def forward(rows, dtype, device):
        from rnndrop.kernels import gated_cell

        ones, seed, masks = tensors(rows, dtype, device)
        gates = ones(CELLS[cell].gates)
        gated_cell.forward(gates, gates, ones(1), seed, masks, cell=cell)

    @pointwise(f"{cell.lower()}_cell_dropout backward")
    def backward(rows, dtype, device):
        from rnndrop.kernels import gated_cell

        ones, seed, masks = tensors(rows, dtype, device)
        grads = [ones(1) for _ in CELLS[cell].states]
        gated_cell.backward(grads, ones(4), ones(1), ones(1) if cell == "LSTM" else None, seed, masks, cell=cell)


gated_cell("LSTM", ("hidden", "cell", "candidate"))
gated_cell("GRU", ("hidden", "candidate"))


@pointwise("packed_mask", (torch.int32,))
def packed_mask(rows, dtype, device):
    from rnndrop.kernels import packed_mask

    packed_mask.packed_mask(_seed(device), rows, COLUMNS, 16384, 0)


@pointwise("apply_mask")
def apply_mask(rows, dtype, device):
    from rnndrop.kernels import apply_mask

    bits = torch.full((rows, COLUMNS // 32), -1, dtype=torch.int32, device=device)
    apply_mask.apply_mask(torch.ones(rows, COLUMNS, dtype=dtype, device=device), MaskBits(bits, 4 / 3))


def sequence(
    strategy: str, H: int, *, tf32: bool = True, kinds: tuple[str, ...] = ("hidden",), packed: bool = False, directions: int = 1
) -> dict[str, Run]:
    """A strategy's forward and backward of 16 sequences, with masks per step; `directions` is for `resident`."""

    def tensors(T, dtype, device):
        axes = (directions,) if strategy == "resident" else ()
        x = torch.zeros(*((T * 16,) if packed else (T, 16)), *axes, H, dtype=dtype, device=device)
        bits = torch.zeros(*axes, T * 16, -(-H // 32), dtype=torch.int32, device=device)
        module = importlib.import_module(f"rnndrop.kernels.{strategy}")
        masks = dict.fromkeys(kinds, MaskBits(bits, 4 / 3))
        return module, x, x.new_zeros(*axes, 16, H), x.new_zeros(*axes, H, H), masks

    def options(T):
        return {"cell": "RNN_TANH", "tf32": tf32} | ({"sizes": (16,) * T} if packed else {})

    def forward(T, dtype, device):
        module, x, h_0, w, masks = tensors(T, dtype, device)
        module.forward(x, h_0, w, masks, **options(T))

    def backward(T, dtype, device):
        module, x, h_0, w, masks = tensors(T, dtype, device)
        module.backward(x, h_0, x, w, masks, **options(T))

    return {"forward": forward, "backward": backward}


def gated_sequence(
    strategy: str, cell: str, H: int, *, tf32: bool = True, kinds: tuple[str, ...] = ("hidden",), packed: bool = False
) -> dict[str, Run]:
    """A strategy's forward and backward of a GRU or an LSTM, of 16 sequences, with masks per step."""

    def tensors(T, dtype, device):
        def zeros(*shape):
            return torch.zeros(*shape, dtype=dtype, device=device)

        def rows(columns):
            return zeros(*((T * 16,) if packed else (T, 16)), columns * H)

        module, row = importlib.import_module(f"rnndrop.kernels.gated_{strategy}"), CELLS[cell]
        bits = torch.zeros(T * 16, -(-H // 32), dtype=torch.int32, device=device)
        states = [zeros(16, H) for _ in row.states]
        return module, row, rows, states, zeros(row.gates * H, H), dict.fromkeys(kinds, MaskBits(bits, 4 / 3))

    def options(T):
        return {"cell": cell, "tf32": tf32} | ({"sizes": (16,) * T} if packed else {})

    def forward(T, dtype, device):
        module, row, rows, states, w_hh, masks = tensors(T, dtype, device)
        b_hn = states[0][0] if cell == "GRU" else None
        module.forward(rows(row.gates), states, w_hh, masks, b_hn=b_hn, **options(T))

    def backward(T, dtype, device):
        module, row, rows, states, w_hh, masks = tensors(T, dtype, device)
        saved = [rows(columns) for columns in row.saved]
        module.backward(rows(1), states, states, rows(1), saved, w_hh, masks, **options(T))

    return {"forward": forward, "backward": backward}


def _sequence(strategy: str, H: int, dtypes: tuple[torch.dtype, ...], sizes: tuple[int, int]) -> None:
    for direction, run in sequence(strategy, H).items():
        LAUNCHES.append(Launch(f"{strategy} {direction} H={H}", run, dtypes, sizes, "step"))


for _H in (64, 128):
    _sequence("resident", _H, (torch.bfloat16, torch.float32), (4, 8))
_sequence("resident", 256, (torch.bfloat16,), (4, 8))
for _H in (512, 1024):
    _sequence("cooperative", _H, (torch.bfloat16,), (2, 4))
_sequence("stepwise", 128, FLOATS, (2, 4))


def _gated_sequence(
    strategy: str, H: int, dtypes: tuple[torch.dtype, ...], sizes: tuple[int, int], *, every_mask: bool = False
) -> None:
    for cell in ("LSTM", "GRU"):
        kinds = CELLS[cell].kinds if every_mask else ("hidden",)
        for direction, run in gated_sequence(strategy, cell, H, kinds=kinds).items():
            name = f"{strategy} {cell} {direction} H={H}" + ", all masks" * every_mask
            LAUNCHES.append(Launch(name, run, dtypes, sizes, "step"))


_gated_sequence("stepwise", 128, FLOATS, (2, 4))
_gated_sequence("stepwise", 128, (torch.float32, torch.bfloat16), (2, 4), every_mask=True)
_gated_sequence("resident", 64, (torch.bfloat16, torch.float32), (4, 8))
_gated_sequence("resident", 128, (torch.bfloat16,), (4, 8))
for _H in (512, 1024):
    _gated_sequence("cooperative", _H, (torch.bfloat16,), (2, 4))
