"""The kernels as compiled code for devices that need not be there."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.triton_driver import backend

if backend() not in ("interpreter", "cuda"):
    pytest.skip("the same with any --triton-driver", allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    """In a process of its own: Triton either interprets or compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_no_kernel_spills_and_the_table_is_fresh():
    """Compiles every kernel for every device, those of a GRU and an LSTM for one. Triton keeps what it has compiled."""
    run("-m", "tests.kernels.resources", "--quick")


def test_sizes_rates_and_streams_do_not_compile_again():
    """Two shapes of columns, one alone: two kernels, whatever else changes."""
    out = run(
        "-c",
        """if True:
        import torch
        from tests.kernels.resources import install
        install("sm_80")
        from rnndrop.kernels import packed_mask, activation_dropout
        seed = torch.ones(1, dtype=torch.int64, device="meta")
        for columns in (64, 128):
            for rows, threshold, scale, stream in [(1, 1, 1.0, 0), (16, 16, 2.0, 1),
                                                 (33, 65536, 0.0, 16), (2**20, 77, 1.5, 2**33 + 1)]:
                x = torch.empty(rows, columns, device="meta")
                y = activation_dropout.forward(x, seed, threshold, scale, stream)
                activation_dropout.backward(x, y, seed, threshold, scale, stream)
                packed_mask.packed_mask(seed, rows, columns, threshold, stream)
        for kernel in (activation_dropout.forward_kernel, activation_dropout.backward_kernel, packed_mask.packed_mask_kernel):
            print(len(kernel.device_caches["sm_80"][0]))
    """,
    )
    assert out.split() == ["2", "2", "2"]
