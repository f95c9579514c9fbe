"""What the README and the docstrings show is run."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

import rnndrop
from rnndrop.kinds import KINDS
from tests.helpers import assert_near, every_kind, make_rnn

README = (Path(__file__).parent.parent / "README.md").read_text()
TABLES = {
    heading: re.findall(r"^\| (.+) \|$", rows, re.M)
    for heading, rows in re.findall(r"^(\|.*)\n\|--.*\n((?:\|.*\n)+)", README, re.M)
}
ARGUMENTS = dict(row.split(" | ") for row in TABLES["| argument | what is dropped |"])
PAPERS = [row.rsplit(" | ", 2) for row in TABLES["| from | modules | write |"]]
CELLS = {"all": ["RNN", "LSTM", "GRU"], "RNN, GRU": ["RNN", "GRU"], "LSTM": ["LSTM"], "LSTM, GRU": ["LSTM", "GRU"]}
WRITTEN = [pytest.param(cell, text.strip("`"), id=f"{cell}-{paper}") for paper, cells, text in PAPERS for cell in CELLS[cells]]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_code_of_the_readme_runs(code):
    exec(code, {})


def test_the_readme_has_every_argument():
    """And says which cells have it."""
    names = [re.match(r"`(\w+)=", argument)[1] for argument in ARGUMENTS]
    assert sorted(names) == sorted([kind.argument for kind in KINDS.values()] + ["mask_scope"])
    for name, argument in zip(names, ARGUMENTS, strict=True):
        only = re.search(r" \((.*)\)$", argument)
        having = [cell for cell in CELLS["all"] if name == "mask_scope" or name in every_kind(cell)]
        assert having == CELLS[only[1] if only else "all"], argument
    example = re.search(r"a mapping, `(.*?)`", README)[1]
    make_rnn(mask_scope=eval(example))


def test_the_readme_has_every_paper():
    names = "Zaremba", "Pham", "Gal", "Keras", "Wan", "Merity", "Krueger", "Moon", "Semeniuta"
    assert all(any(paper.startswith(name) for paper, *_ in PAPERS) for name in names)


@pytest.mark.parametrize(("cell", "written"), WRITTEN)
def test_what_the_readme_writes_for_a_paper_is_what_drops(cell, written):
    """Its arguments are the constructor's, and each of them drops."""
    rates = eval(f"dict({written})", {"p": 0.5, "q": 0.25})
    rnn = make_rnn(cell, num_layers=2, **rates)
    assert {name: getattr(rnn, name) for name in rates} == rates
    x = torch.randn(5, 3, rnn.input_size, dtype=torch.float64)
    whole = rnn(x, seed=1)[0]
    for name in rates.keys() - {"mask_scope"}:
        assert not torch.equal(make_like(rnn, cell, **rates | {name: 0.0})(x, seed=1)[0], whole), name
    if "mask_scope" in rates:
        assert not torch.equal(make_like(rnn, cell, **rates | {"mask_scope": "step"})(x, seed=1)[0], whole)


def make_like(rnn, cell, **rates):
    other = make_rnn(cell, num_layers=2, **rates)
    other.load_state_dict(rnn.state_dict())
    return other


def test_the_readme_says_what_runs_an_lstm_whose_state_is_projected():
    lstm = make_rnn("LSTM", proj_size=3, hidden_dropout=0.2)
    assert "of an LSTM with `proj_size` and dropout inside, a plain loop" in README.replace("\n", " ")
    assert "a plain loop" in rnndrop.explain(lstm, torch.randn(5, 3, lstm.input_size, dtype=torch.float64)).reason


def test_the_code_in_the_docstring_is_what_the_module_computes():
    code = textwrap.dedent(re.search(r"\.\. code-block:: python\n(.*?)\n    Args:", rnndrop.RNN.__doc__, re.S)[1])
    sizes = dict(input_size=4, hidden_size=17, num_layers=3, L=5, N=2, seed=7)
    rates = dict(d=0.3, i=0.35, p=0.2, q=0.4, o=0.25, w=0.15, z=0.45)
    names = {**sizes, **rates, "torch": torch, "rnndrop": rnndrop}
    exec(code, names)
    x, h = torch.randn(5, 2, 4), torch.randn(3, 2, 17)
    rnn = names["rnn"]
    assert {getattr(rnn, name) for name in every_kind("RNN")} == set(rates.values())
    for actual, expected in zip(rnn(x, h, seed=7), names["forward"](x, h), strict=True):
        assert_near(actual, expected)
