"""The kernels as compiled code for devices that need not be there."""

import ast
import os
import subprocess
import sys

import pytest

from tests.triton_driver import backend

from .resources import ROOT, TABLE, fingerprint, sources

if backend() not in ("interpreter", "cuda"):
    pytest.skip("the same with any --triton-driver", allow_module_level=True)


def run(*arguments):
    """In a process of its own: Triton either interprets or compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def rewritten(text):
    """Without its comments and line breaks, and with other docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body[0].value.value = "Other words."
    return ast.unparse(tree)


def test_the_table_is_of_todays_code():
    stale = f"{TABLE.name} is of other code: run python -m tests.kernels.resources --write"
    assert f"Fingerprint of the code: {fingerprint(sources())}." in TABLE.read_text(), stale


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("kernels/product.py", "tl.where(column < H,", "tl.where(column <= H,"),
        ("kernels/plan.py", "MOST_REGISTERS = 128", "MOST_REGISTERS = 129"),
        ("rnndrop/cell.py", "saved=(4, 1)", "saved=(1, 4)"),
        ("tests/kernels/cases.py", "64: (", "65: ("),
    ],
)
def test_other_code_has_another_fingerprint(name, old, new):
    found = sources()
    assert old in found[name]
    assert fingerprint(found | {name: found[name].replace(old, new, 1)}) != fingerprint(found)


def test_other_comments_have_the_same_fingerprint():
    found = sources()
    others = {name: rewritten(text) for name, text in found.items()}
    assert others != found and fingerprint(others) == fingerprint(found)


def test_no_kernel_of_a_sample_spills_and_the_table_has_its_numbers():
    """A kernel of each strategy and cell; `python -m tests.kernels.resources` compiles all, in half an hour."""
    run("-m", "tests.kernels.resources", "--sample")


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
