"""What the kernels cost, where the module of --triton-driver counts it: the limits that a change must keep."""

import importlib

import pytest
import torch

from tests import triton_driver

from .costs import cost
from .launches import LAUNCHES

SEED = 4 * 32  # bytes: every program's four warps read the seed, one sector each
POINTWISE = {  # instructions, and tensors read and written
    "tanh_dropout forward": (45, 1, 1),
    "tanh_dropout backward": (45, 2, 1),
    "packed_mask": (12, 0, 1 / 8),
    "apply_mask": (25, 1, 1),
}


@pytest.fixture(scope="module")
def driver(request):
    name = triton_driver.backend()
    if name in ("interpreter", "cuda"):
        pytest.skip("only a --triton-driver counts instructions")
    module = importlib.import_module(name)
    module.install(profile=True)
    yield module
    triton_driver.use(name, request.config.getoption("--triton-driver-seed"))


def counted(name, dtype, driver):
    return cost(next(x for x in LAUNCHES if x.name == name and dtype in x.dtypes), dtype, driver)


@pytest.mark.parametrize("launch", [x for x in LAUNCHES if x.name in POINTWISE], ids=lambda x: x.name)
def test_pointwise(launch, driver):
    instructions, read, written = POINTWISE[launch.name]
    for dtype in launch.dtypes:
        size = 1 if dtype == torch.int32 else dtype.itemsize
        c = cost(launch, dtype, driver)
        assert c["instructions"] <= instructions
        assert c["written"] == c["sectors written"] * 32 == written * size
        more = 1 if launch.name == "apply_mask" else SEED / 2048  # a lane asks for its word once for each of four columns
        assert read * size <= c["sectors read"] * 32 <= read * size + more


@pytest.mark.parametrize("direction, limit, tensors", [("forward", 136, 1), ("backward", 220, 2)])
def test_resident(direction, limit, tensors, driver):
    """Per step: instructions, barriers, no conflict; of device memory x (or grad and y), bits and y: no W_hh."""
    # Forward had 130 before it issued the next step's loads ahead of the product, which shortens the critical path.
    H, tile = 128, 16 * 128 * 2
    c = counted(f"resident {direction} H={H}", torch.bfloat16, driver)
    assert c["instructions"] <= limit and c["barriers"] <= 6 and c["conflicts"] == 0 and c["launches"] == 1
    assert c["written"] == c["sectors written"] * 32 == tile
    assert tensors * tile < c["read"] <= tensors * tile + 2 * tile // 4  # each warp reads its words of the bits
    assert c["read once"] >= H * H * 2


@pytest.mark.parametrize(
    "cell, gates, direction, limit, tensors",
    [
        ("LSTM", 4, "forward", 450, 4),
        ("LSTM", 4, "backward", 580, 6),
        ("GRU", 3, "forward", 365, 3),
        ("GRU", 3, "backward", 475, 6),
    ],
)
def test_gated_resident(cell, gates, direction, limit, tensors, driver):
    """As `test_resident`: x, or grad, the gates and the state before; no W_hh, which a launch reads once whatever T."""
    H, tile = 128, 16 * 128 * 2
    c = counted(f"resident {cell} {direction} H={H}", torch.bfloat16, driver)
    assert c["instructions"] <= limit and c["barriers"] <= 2 * (1 if direction == "forward" else gates)
    assert c["conflicts"] == 0 and c["launches"] == 1
    written = 4 if direction == "backward" else 6 if cell == "LSTM" else 5  # the gates; forward the output and the cell state
    assert c["written"] == c["sectors written"] * 32 == written * tile
    assert tensors * tile < c["read"] <= tensors * tile + 2 * tile // 4 and c["sectors read"] * 32 <= c["read"]
    assert 0 <= c["read once"] - gates * H * H * 2 <= 3 * tile


@pytest.mark.parametrize("H", [512, 1024])
@pytest.mark.parametrize("direction, tensors", [("forward", 1), ("backward", 2)])
def test_cooperative(direction, tensors, H, driver):
    """One grid barrier a step; W_hh once a launch; per step x (or grad and y), h once for each slice, bits and polls."""
    tile, slices = 16 * H * 2, H // 32
    c = counted(f"cooperative {direction} H={H}", torch.bfloat16, driver)
    assert c["grid barriers"] == 1 and c["conflicts"] == 0 and c["launches"] == 1
    assert c["written"] == tile and c["sectors written"] * 32 <= 2 * tile  # four lanes have 16 bytes of a row, half a sector
    words = tile  # a lane asks for the word of its two columns of a row
    assert (slices + tensors) * tile + words < c["read"] < (slices + tensors + 1) * tile + words
    assert abs(c["read once"] - H * H * 2) <= 3 * tile
