"""The cases of kernels/RESOURCES.md: which kernels run on each GPU we promise, each as a launch.

They are those of `launches`, and `resident` and `cooperative`, whose tiles depend on the device, at more sizes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from rnndrop.cell import CELLS
from rnndrop.kernels import plan
from rnndrop.kernels.launch import Device
from rnndrop.kernels.plan import BOTH_DIRECTIONS, Extras

from .launches import LAUNCHES, gated_sequence, sequence

# Shared memory that one block may have, and multiprocessors: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090, MI300X.
TARGETS = {
    "sm_80": (166912, 108),
    "sm_86": (101376, 82),
    "sm_89": (101376, 128),
    "sm_90": (232448, 132),
    "sm_100": (232448, 148),
    "sm_120": (101376, 170),
    "gfx942": (65536, 304),
}

# Of the shapes with padding the ones with the most registers, padded to whole vector accesses (101, 250) and not (100).
# fp16, which is like bf16, not at every size.
KINDS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = {
    "resident": {
        64: ("fp32", "tf32", "bf16"),
        100: ("fp32",),
        101: ("fp32", "bf16"),
        128: tuple(KINDS),
        250: ("fp16", "bf16"),
        256: ("fp16", "bf16"),
    },
    "cooperative": {
        101: ("fp32",),
        250: ("fp32", "bf16"),
        512: ("fp32", "tf32", "bf16"),
        1001: ("tf32", "bf16"),
        1024: tuple(KINDS),
        2048: ("fp32", "tf32", "bf16"),
    },
}

GATED = ("LSTM", "GRU")
GATED_SIZES = {
    "resident": {32: ("fp32",), 64: ("tf32",), 101: ("bf16",), 128: ("bf16",)},
    "cooperative": {512: ("fp32", "tf32"), 1024: ("bf16",)},
}


class Variant(NamedTuple):
    """What a layer has besides its shape."""

    kinds: tuple[str, ...] = ("hidden",)  # of masks
    packed: bool = False
    directions: int = 1

    @property
    def extras(self) -> Extras:
        return Extras(self.kinds, self.packed, self.directions)


BOTH = ("hidden", "recurrent")
VARIANTS = {
    "": Variant(),
    ", both masks": Variant(BOTH),
    ", all masks": Variant((*BOTH, "zoneout")),
    ", packed": Variant(BOTH, packed=True),
    ", both directions": Variant(BOTH, directions=2),
}
SCARCE = {(128, "fp32"), (250, "bf16"), (256, "bf16"), (1024, "fp32"), (1024, "bf16")}


def shapes() -> Iterator[tuple[str, int, str]]:
    """Strategy, H and kind of number of the kernels whose tiles depend on the device."""
    for strategy, sizes in SIZES.items():
        for H, kinds in sizes.items():
            for kind in kinds:
                yield strategy, H, kind


def gated_shapes() -> Iterator[tuple[str, str, int, str]]:
    """Strategy, cell, H and kind of number."""
    for strategy, sizes in GATED_SIZES.items():
        for cell in GATED:
            for H, kinds in sizes.items():
                for kind in kinds:
                    yield strategy, cell, H, kind


def gated_variants(cell: str, H: int) -> dict[str, Variant]:
    """With every kind of mask, or as many as run, where registers are scarce."""
    if H not in (128, 1024):
        return {"": Variant()}
    every = CELLS[cell].kinds
    zoneouts = tuple(kind for kind in every if "zoneout" in kind)
    return {
        "": Variant(),
        ", four masks": Variant((*BOTH, *zoneouts) if cell == "LSTM" else every),
        ", all masks": Variant(every),
        ", packed": Variant(BOTH, packed=True),
    }


def refusal(strategy: str, H: int, kind: str, device: Device, variant: Variant = VARIANTS[""], cell: str = "RNN_TANH") -> str:
    """Why a strategy cannot run, or ""."""
    if variant.directions == 2 and strategy not in BOTH_DIRECTIONS:
        return "it takes one direction after the other"
    return plan.refusal(strategy, H, 16, KINDS[kind], device, tf32=kind == "tf32", cell=cell, extras=variant.extras)


def refused(device: Device) -> list[str]:
    """The shapes that do not run on the device."""
    return [f"{strategy} H={H} {kind}" for strategy, H, kind in shapes() if refusal(strategy, H, kind, device)]


def cases(device: Device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and launch of each kernel that runs on the device; with more masks too where registers are scarce."""
    for launch in LAUNCHES:
        for dtype in () if launch.strategy in SIZES else launch.dtypes:
            yield f"{launch.name} {str(dtype)[6:]}", lambda run=launch.run, T=launch.sizes[1], d=dtype: run(T, d, "meta")
    for strategy, H, kind in shapes():
        for words in VARIANTS if (H, kind) in SCARCE else ("",):
            variant = VARIANTS[words]
            if refusal(strategy, H, kind, device, variant):
                continue
            for direction, run in sequence(strategy, H, tf32=kind == "tf32", **variant._asdict()).items():
                name = f"{strategy} {direction} H={H} {kind}{words}"
                yield name, lambda run=run, dtype=KINDS[kind]: run(4, dtype, "meta")
    for strategy, cell, H, kind in gated_shapes():
        for words, variant in gated_variants(cell, H).items():
            if refusal(strategy, H, kind, device, variant, cell):
                continue
            options = {"tf32": kind == "tf32", "kinds": variant.kinds, "packed": variant.packed}
            for direction, run in gated_sequence(strategy, cell, H, **options).items():
                name = f"{strategy} {cell} {direction} H={H} {kind}{words}"
                yield name, lambda run=run, dtype=KINDS[kind]: run(4, dtype, "meta")
