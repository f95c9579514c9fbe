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

x = torch.zeros(5, 3, 4)
rnndrop.RNN(4, 8, nonlinearity="relu")
rnndrop.RNNCell(4, 8, nonlinearity="tanh")
assert_type(functional.tanh_dropout(x, strategy="cpu"), Tensor)
assert_type(functional.lstm_cell_dropout(x, x, x, cell_dropout=0.5, strategy="triton"), tuple[Tensor, Tensor])
assert_type(functional.gru_cell_dropout(x, x, x, candidate_dropout=0.5, strategy="triton"), Tensor)
assert_type(rnndrop.dropout_mask(1, 2, 3, 0.5), Tensor)
model: torch.nn.Sequential = rnndrop.to_torch(rnndrop.from_torch(torch.nn.Sequential(torch.nn.GRU(4, 8)), hidden_dropout=0.5))
"""

# Of each cell; `states` is the type of its states, `own` an argument that not every cell has, `call` the begin of a call.
RIGHT_OF_A_LAYER = """
def use_{name}(hx: {states}) -> None:
    layer = rnndrop.{name}(4, 8, 2, mask_scope="sequence", hidden_dropout=0.5, input_dropout=0.5, {own})
    packed = pack_sequence([x[:, 0]])
    assert_type(layer(x), tuple[Tensor, {states}])
    assert_type(layer(x, hx, seed=3), tuple[Tensor, {states}])
    assert_type(layer.forward(x, seed=x), tuple[Tensor, {states}])
    assert_type(layer(packed, hx, seed=x), tuple[PackedSequence, {states}])
    assert_type(layer.forward(packed, hx, seed=3), tuple[PackedSequence, {states}])
    assert_type(rnndrop.{name}.from_torch(torch.nn.{name}(4, 8)), rnndrop.{name})
    assert_type(layer.to_torch(), torch.nn.{name})
    assert_type(rnndrop.explain(layer, x).strategy, str)
    with rnndrop.monte_carlo(layer) as sampled:
        assert_type(sampled, rnndrop.{name})
    found = functional.{call}, mask_scope="step", strategy="resident", zoneout=0.5, {own})
    assert_type(found, tuple[Tensor, {states}])
"""
RIGHT_OF_A_CELL = """
def use_{name}Cell(hx: {states}) -> None:
    cell = rnndrop.{name}Cell(4, 8, hidden_dropout=0.5, {own})
    assert_type(cell(x[0]), {states})
    assert_type(cell(x[0], hx, seed=3), {states})
    assert_type(cell.forward(x[0], hx, seed=x), {states})
    assert_type(rnndrop.{name}Cell.from_torch(torch.nn.{name}Cell(4, 8)), rnndrop.{name}Cell)
    assert_type(cell.to_torch(), torch.nn.{name}Cell)
    with rnndrop.monte_carlo(cell) as sampled:
        assert_type(sampled, rnndrop.{name}Cell)
"""

WRONG = """
import torch
import rnndrop
from rnndrop import functional

x = torch.zeros(5, 3, 4)
# Each line from here on is wrong.
rnndrop.RNN(4, 8, nonlinearity="gelu")
rnndrop.RNNCell(4, 8, nonlinearity="gelu")
functional.rnn_layer(x, x, x, x, nonlinearity="gelu")
functional.tanh_dropout(x, strategy="resident")
functional.lstm_cell_dropout(x, x, x, strategy="resident")
functional.gru_cell_dropout(x, x, x, strategy="resident")
rnndrop.from_torch(rnndrop.RNN(4, 8), hidden_drop=0.5)
"""
WRONG_OF_EITHER = """
rnndrop.{name}{end}(4, 8, hidden_drop=0.5)
rnndrop.{name}{end}(4, 8, {not_own})
rnndrop.{name}{end}(4, 8).forward(x, seed="3")
rnndrop.{name}{end}(4, 8)(x, seed="3")
rnndrop.{name}{end}(4, 8).forward([x])
rnndrop.{name}{end}(4, 8)(x, {not_states})
"""
WRONG_OF_A_LAYER = """
rnndrop.{name}(4, 8, mask_scope="steps")
functional.{call}, strategy="gpu")
functional.{call}, mask_scope="steps")
functional.{call}, {not_own})
"""
CELLS = [
    dict(
        name="RNN",
        states="Tensor",
        not_states="(x, x)",
        own='nonlinearity="relu"',
        not_own="candidate_dropout=0.5",
        call="rnn_layer(x, x, x, x",
    ),
    dict(
        name="GRU",
        states="Tensor",
        not_states="(x, x)",
        own="candidate_dropout=0.5",
        not_own="cell_dropout=0.5",
        call="gru_layer(x, x, x, x",
    ),
    dict(
        name="LSTM",
        states="tuple[Tensor, Tensor]",
        not_states="x",
        own="cell_zoneout=0.5",
        not_own='nonlinearity="tanh"',
        call="lstm_layer(x, x, x, x, x",
    ),
]


def of_each(template, *ends):
    """The template for every cell, without its first empty line; for modules of each of these ends of their names."""
    return "".join(template.lstrip().format(**cell, end=end) for cell in CELLS for end in ends or ("",))


RIGHT_FILE = RIGHT.lstrip() + of_each(RIGHT_OF_A_LAYER) + of_each(RIGHT_OF_A_CELL)
WRONG_FILE = WRONG.lstrip() + of_each(WRONG_OF_A_LAYER) + of_each(WRONG_OF_EITHER, "", "Cell")


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
    (folder / "right.py").write_text(RIGHT_FILE)
    (folder / "wrong.py").write_text(WRONG_FILE)
    return request.param(folder)


def test_right_calls_have_their_types_and_wrong_calls_are_found(errors):
    """And the package itself has no errors for a user."""
    lines = WRONG_FILE.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("#")) + 1
    assert set(errors) == {("wrong", number) for number in range(first, len(lines) + 1)}
