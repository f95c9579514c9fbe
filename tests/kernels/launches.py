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
    """As `sequence`, of a GRU or an LSTM."""

    def tensors(T, dtype, device):
        rows = (T * 16,) if packed else (T, 16)
        y = torch.zeros(*rows, H, dtype=dtype, device=device)
        bits = torch.zeros(T * 16, -(-H // 32), dtype=torch.int32, device=device)
        module = importlib.import_module(f"rnndrop.kernels.gated_{strategy}")
        masks = dict.fromkeys(kinds, MaskBits(bits, 4 / 3))
        return module, y, [y.new_zeros(16, H)] * len(CELLS[cell].states), y.new_zeros(CELLS[cell].gates * H, H), masks

    def options(T):
        return {"cell": cell, "tf32": tf32} | ({"sizes": (16,) * T} if packed else {})

    def forward(T, dtype, device):
        module, y, states, w, masks = tensors(T, dtype, device)
        x = y.new_zeros(*y.shape[:-1], CELLS[cell].gates * H)
        module.forward(x, states, w, masks, b_hn=w.new_zeros(H) if cell == "GRU" else None, **options(T))

    def backward(T, dtype, device):
        module, y, states, w, masks = tensors(T, dtype, device)
        saved = [y.new_zeros(*y.shape[:-1], n * H) for n in CELLS[cell].saved]
        module.backward(y, states, states, y, saved, w, masks, **options(T))

    return {"forward": forward, "backward": backward}


def _sequence(strategy: str, H: int, dtypes: tuple[torch.dtype, ...], sizes: tuple[int, int], cell: str = "RNN") -> None:
    runs = sequence(strategy, H) if cell == "RNN" else gated_sequence(strategy, cell, H)
    for direction, run in runs.items():
        LAUNCHES.append(Launch(sequence_name(strategy, cell, direction, H), run, dtypes, sizes, "step"))


def sequence_name(strategy: str, cell: str, direction: str, H: int) -> str:
    return f"{strategy} {direction} H={H}" if cell == "RNN" else f"{strategy} {cell} {direction} H={H}"


for _H in (64, 128):
    _sequence("resident", _H, (torch.bfloat16, torch.float32), (4, 8))
_sequence("resident", 256, (torch.bfloat16,), (4, 8))
for _H in (512, 1024):
    _sequence("cooperative", _H, (torch.bfloat16,), (2, 4))
_sequence("stepwise", 128, FLOATS, (2, 4))

for _cell in ("LSTM", "GRU"):
    for _H in (512, 1024):
        _sequence("cooperative", _H, (torch.bfloat16,), (2, 4), _cell)
