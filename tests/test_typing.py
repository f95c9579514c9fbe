"""What a type checker tells a user of the installed package."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parent.parent

RIGHT = """
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing import assert_type

import rnndrop
from rnndrop import functional

rnn = rnndrop.RNN(4, 8, nonlinearity="relu", mask_scope="sequence", hidden_dropout=0.5)
x = torch.zeros(5, 3, 4)
output, h_n = rnn.forward(x, seed=3)
assert_type(output, Tensor)
assert_type(h_n, Tensor)
packed, last = rnn.forward(pack_sequence([x[:, 0]]), h_n, seed=h_n)
assert_type(packed, PackedSequence)
assert_type(last, Tensor)
called, _ = rnn(x)
assert_type(called, Tensor)
cell = rnndrop.RNNCell(4, 8, nonlinearity="tanh")
assert_type(cell.forward(x[0]), Tensor)
assert_type(cell(x[0]), Tensor)
assert_type(functional.tanh_dropout(x, strategy="cpu"), Tensor)
assert_type(functional.rnn_layer(x, x[0], x[0], x[0], mask_scope="step", strategy="resident"), tuple[Tensor, Tensor])
assert_type(rnndrop.dropout_mask(1, 2, 3, 0.5), Tensor)
assert_type(rnndrop.RNN.from_torch(torch.nn.RNN(4, 8)), rnndrop.RNN)
assert_type(rnn.to_torch(), torch.nn.RNN)
assert_type(rnndrop.RNNCell.from_torch(torch.nn.RNNCell(4, 8)), rnndrop.RNNCell)
assert_type(cell.to_torch(), torch.nn.RNNCell)
torch.jit.script(rnndrop.to_torch(rnndrop.from_torch(torch.nn.Sequential(torch.nn.GRU(4, 8)), dropout=0.5, cell_dropout=0.5)))
assert_type(rnndrop.explain(rnn, x).strategy, str)
"""

WRONG = """
import torch
import rnndrop
from rnndrop import functional

x = torch.zeros(5, 3, 4)
rnndrop.RNN(4, 8, nonlinearity="gelu")
rnndrop.RNN(4, 8, mask_scope="steps")
rnndrop.RNNCell(4, 8, nonlinearity="gelu")
rnndrop.RNN(4, 8).forward(x, seed="3")
rnndrop.RNN(4, 8).forward([x])
functional.rnn_layer(x, x, x, x, strategy="gpu")
functional.rnn_layer(x, x, x, x, mask_scope="steps")
functional.rnn_layer(x, x, x, x, nonlinearity="gelu")
functional.tanh_dropout(x, strategy="resident")
rnndrop.from_torch(rnndrop.RNN(4, 8), hidden_drop=0.5)
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """mypy's lines on both files, by the name of each."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (folder / f"{name}.py").write_text(text.lstrip())
    (folder / "mypy.ini").write_text(f"[mypy]\nmypy_path = {ROOT}\nstrict = true\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-version", "3.11", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    return {name: [line for line in lines if line.startswith(name)] for name in ("right", "wrong")}, lines


def test_right_calls_have_their_types(checked):
    assert checked[0]["right"] == []


def test_wrong_calls_are_found(checked):
    """Each once."""
    first = WRONG.lstrip().splitlines().index('rnndrop.RNN(4, 8, nonlinearity="gelu")') + 1
    numbers = [int(line.split(":")[1]) for line in checked[0]["wrong"]]
    assert numbers == [*range(first, first + 10)]


def test_the_package_itself_has_no_errors_for_them(checked):
    found, lines = checked
    assert len(lines) == len(found["right"]) + len(found["wrong"]), lines
