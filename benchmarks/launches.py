"""Every kernel once, as a launch: what benchmarks.kernel_costs counts and benchmarks.resources compiles.

A new kernel is a new function here. It gets a size (rows or steps), a dtype and a device ("meta" when it is only
compiled) and returns nothing; it must launch with the tile sizes that real use has.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Launch:
    name: str
    run: Callable[[int, torch.dtype, str], None]    # size, dtype, device
    dtypes: tuple[torch.dtype, ...]
    unit: str                                       # what the cost is counted per
    units: int                                      # how many of them there are in one row or step
    sizes: tuple[int, int]                          # the cost is that of the second less that of the first
    strategy: str | None                            # of a whole sequence; None is a pointwise kernel


LAUNCHES: list[Launch] = []


def launch(name: str, *, dtypes: tuple[torch.dtype, ...] = FLOATS, unit: str = "element", units: int = 1,
           sizes: tuple[int, int] = (0, 64), strategy: str | None = None):
    def add(run):
        LAUNCHES.append(Launch(name, run, dtypes, unit, units, sizes, strategy))
        return run
    return add


def _seed(device):
    return torch.ones(1, dtype=torch.int64, device=device)


def _pointwise(nonlinearity):
    @launch(f"{nonlinearity}_dropout forward", units=1024)
    def forward(rows, dtype, device):
        from rnndrop.kernels import tanh_dropout

        x = torch.ones(rows, 1024, dtype=dtype, device=device)
        tanh_dropout.forward(x, _seed(device), 16384, 4 / 3, 0, nonlinearity=nonlinearity)

    @launch(f"{nonlinearity}_dropout backward", units=1024)
    def backward(rows, dtype, device):
        from rnndrop.kernels import tanh_dropout

        y, grad = torch.ones(2, rows, 1024, dtype=dtype, device=device)
        tanh_dropout.backward(grad, y, _seed(device), 16384, 4 / 3, 0, nonlinearity=nonlinearity)


_pointwise("tanh")
_pointwise("relu")


@launch("packed_mask", dtypes=(torch.int32,), units=1024)
def packed_mask(rows, dtype, device):
    from rnndrop.kernels import packed_mask

    packed_mask.packed_mask(_seed(device), rows, 1024, 16384, 0)


def _sequence(strategy: str, H: int, dtypes: tuple[torch.dtype, ...], sizes: tuple[int, int]) -> None:
    """16 rows and hidden dropout; fp32 multiplies in tf32."""
    def tensors(T, dtype, device):
        x, h0, w, bits = (torch.zeros(s, dtype=d, device=device) for s, d in (
            ((T, 16, H), dtype), ((16, H), dtype), ((H, H), dtype), ((T * 16, -(-H // 32)), torch.int32)))
        return importlib.import_module(f"rnndrop.kernels.{strategy}"), x, h0, w, bits

    @launch(f"{strategy} forward H={H}", dtypes=dtypes, unit="step", sizes=sizes, strategy=strategy)
    def forward(T, dtype, device):
        module, x, h0, w, bits = tensors(T, dtype, device)
        module.forward(x, h0, w, bits, None, 4 / 3, 1.0, tf32=True)

    @launch(f"{strategy} backward H={H}", dtypes=dtypes, unit="step", sizes=sizes, strategy=strategy)
    def backward(T, dtype, device):
        module, x, h0, w, bits = tensors(T, dtype, device)
        module.backward(x, h0, x, w, bits, None, 4 / 3, 1.0, tf32=True)


for _H in (64, 128):
    _sequence("resident", _H, (torch.bfloat16, torch.float32), (4, 8))
_sequence("resident", 256, (torch.bfloat16,), (4, 8))
for _H in (512, 1024):
    _sequence("cooperative", _H, (torch.bfloat16,), (2, 4))
_sequence("stepwise", 128, FLOATS, (2, 4))
