"""What type checkers tell a user of the installed package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("basedpyright")  # pyright, with a Node.js that pip installs
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
model: torch.nn.Sequential = rnndrop.to_torch(rnndrop.from_torch(torch.nn.Sequential(torch.nn.GRU(4, 8)), hidden_dropout=0.5))
assert_type(rnndrop.explain(rnn, x).strategy, str)
lstm = rnndrop.LSTM(4, 8, cell_dropout=0.5)
gates, (h, c) = lstm(x)
assert_type(gates, Tensor)
assert_type(c, Tensor)
assert_type(lstm(pack_sequence([x[:, 0]]), (h, c)), tuple[PackedSequence, tuple[Tensor, Tensor]])
assert_type(rnndrop.GRU(4, 8)(x, seed=3), tuple[Tensor, Tensor])
assert_type(rnndrop.GRUCell(4, 8)(x[0]), Tensor)
assert_type(rnndrop.LSTMCell(4, 8)(x[0]), tuple[Tensor, Tensor])
with rnndrop.monte_carlo(lstm) as sampled:
    assert_type(sampled, rnndrop.LSTM)
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


def by_mypy(folder):
    (folder / "mypy.ini").write_text(f"[mypy]\nmypy_path = {ROOT}\nstrict = true\nfollow_imports = silent\n")
    command = ["mypy", "--config-file", "mypy.ini", "--python-version", "3.11", "right.py", "wrong.py"]
    lines = re.findall(r"^(.*?)(?:\.py)?:(\d+): error:", run(*command, cwd=folder), re.M)
    return [(name, int(line)) for name, line in lines]


def by_pyright(folder):
    options = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    found = json.loads(run("basedpyright", "--pythonpath", sys.executable, "--outputjson", cwd=folder))["generalDiagnostics"]
    return [(Path(each["file"]).stem, each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"]


def run(module, *options, cwd):
    done = subprocess.run([sys.executable, "-m", module, *options], cwd=cwd, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=[by_mypy, by_pyright])
def errors(request, tmp_path_factory):
    """The file and the line of each error in either file and in the package."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (folder / f"{name}.py").write_text(text.lstrip())
    return request.param(folder)


def test_right_calls_have_their_types_and_wrong_calls_are_found(errors):
    """And the package itself has no errors for a user."""
    first = WRONG.lstrip().splitlines().index('rnndrop.RNN(4, 8, nonlinearity="gelu")') + 1
    assert set(errors) == {("wrong", line) for line in range(first, first + 10)}
