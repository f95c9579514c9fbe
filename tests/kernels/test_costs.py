"""What the pointwise kernels cost, where the module of --triton-driver counts it."""

import importlib

import pytest
import torch

from benchmarks.kernel_costs import cost
from benchmarks.launches import LAUNCHES
from tests import triton_driver

SEED = 4 * 32           # bytes: every program's four warps read the seed, one sector each
LIMITS = {"packed_mask": (12, 0, 1 / 8)}
for f in ("tanh", "relu"):      # instructions, and tensors read and written
    LIMITS |= {f"{f}_dropout forward": (45, 1, 1), f"{f}_dropout backward": (45, 2, 1)}


@pytest.fixture(scope="module")
def driver():
    if triton_driver.backend() in ("interpreter", "cuda"):
        pytest.skip("only a --triton-driver counts instructions")
    return importlib.import_module(triton_driver.backend())


@pytest.mark.parametrize("launch", [x for x in LAUNCHES if x.name in LIMITS], ids=lambda x: x.name)
def test_cost(launch, driver):
    instructions, read, written = LIMITS[launch.name]
    for dtype in launch.dtypes:
        size = 1 if dtype == torch.int32 else dtype.itemsize
        counted = cost(launch, dtype, driver)
        assert counted["instructions"] <= instructions
        assert counted["written"] == counted["sectors written"] * 32 == written * size
        assert read * size <= counted["sectors read"] * 32 <= read * size + SEED / 2048
