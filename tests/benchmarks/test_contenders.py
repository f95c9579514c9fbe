from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.cases import CELLS, Cell
from benchmarks.contenders import BY_NAME, EVERYONE
from benchmarks.contenders.base import BASELINE, LIMIT, OUR_CELLS, OURS, source
from benchmarks.contenders.loops import Dropout
from tests.benchmarks.helpers import PLAIN, TINY

LAYERS = ["cases", "contenders", "measure", "report", "__main__"]  # each imports only from those before it


def test_nothing_imports_upward() -> None:
    root = Path(benchmarks.__file__).parent
    for number, layer in enumerate(LAYERS):
        for path in [*(root / layer).glob("*.py"), root / f"{layer}.py"]:
            for node in ast.walk(ast.parse(path.read_text())) if path.exists() else ():
                if isinstance(node, ast.ImportFrom) and node.level:
                    base = [] if node.level > (path.parent != root) else [layer]
                    whole = [*base, *(node.module or "").split("."), node.names[0].name]
                    target = next(part for part in whole if part)
                    assert LAYERS.index(target) <= number, f"{path.name} imports {target}"


def test_names_are_distinct_and_who_cannot_run_says_why() -> None:
    assert len(BY_NAME) == len(EVERYONE)
    cell_dropout = replace(TINY, cell="LSTM", dropouts={"cell_dropout": 0.1})
    assert BY_NAME[f"{OURS}, graph"].why_not(TINY, "cpu") == "CUDA graphs need CUDA"
    assert "no cell_dropout" in BY_NAME["loop"].why_not(cell_dropout, "cpu")
    assert "no recurrent_dropout" in BY_NAME["loop"].why_not(
        replace(TINY, cell="GRU", dropouts={"recurrent_dropout": 0.1}), "cpu"
    )
    assert "no packed sequences" in BY_NAME["loop"].why_not(replace(TINY, packed=True), "cpu")
    assert "rnndrop and torch.nn" in BY_NAME["loop"].why_not(replace(TINY, who="two"), "cpu")
    assert not any(BY_NAME[name].why_not(replace(TINY, who="two"), "cpu") for name in (OURS, BASELINE))
    assert "50 steps" in BY_NAME[OUR_CELLS].why_not(replace(TINY, T=51), "cpu")
    assert not BY_NAME[OUR_CELLS].why_not(cell_dropout, "cpu") and BY_NAME[OUR_CELLS].why_not(
        replace(cell_dropout, cell="GRU"), "cpu"
    )
    slow = BY_NAME["loop, compiled"]
    assert slow.why_not(replace(TINY, who="most"), "cpu") and not slow.why_not(TINY, "cpu")
    assert BY_NAME[f"{OURS} reference"].why_not(replace(TINY, layers=2), "cpu")
    assert BY_NAME["torch.nn + nn.Dropout"].why_not(replace(TINY, dropouts={"recurrent_dropout": 0.2}), "cpu")
    assert not PLAIN.why_not(replace(TINY, layers=2, dropouts={"zoneout": 0.1}), "cpu")


@pytest.mark.parametrize("cell", CELLS)
def test_the_bare_products_are_those_of_the_layer(cell: Cell) -> None:
    case = replace(TINY, cell=cell, input_grad=True)
    rnn = source(case, "cpu")
    products = BY_NAME[LIMIT].build(case, rnn)
    x = torch.randn(case.T, case.B, case.I)
    for _ in range(2):  # nothing accumulates
        a = products(x)
    (layer,) = products.layers  # type: ignore[union-attr, misc]
    w_ih, w_hh = rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(a, x @ w_ih.t() + layer.h @ w_hh.t())
    torch.testing.assert_close(layer.dh, layer.g + layer.d @ w_hh)
    torch.testing.assert_close(layer.dw_hh, layer.d.flatten(0, 1).t() @ layer.h.flatten(0, 1))
    torch.testing.assert_close(layer.dw_ih, layer.d.flatten(0, 1).t() @ x.flatten(0, 1))
    torch.testing.assert_close(layer.dx, layer.d @ w_ih)


@pytest.mark.parametrize("name", [OURS, "torch.nn", "loop", "rnndrop reference"])
def test_a_model_is_a_copy(name: str) -> None:
    """What one contender learns, no other sees."""
    rnn = source(TINY, "cpu")
    model = BY_NAME[name].build(TINY, rnn)
    for (group,), theirs in [(model.weights(), rnn.all_weights[0])]:
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(group, theirs, strict=True))


@pytest.mark.parametrize("name", [OURS, "torch.nn + nn.Dropout", "loop", "loop, one mask"])
def test_dropout_between_layers(name: str) -> None:
    """Where it drops everything the second layer sees nothing of the input."""
    case = replace(TINY, layers=2, bidirectional=True, dropouts={"dropout": 1.0})
    model = BY_NAME[name].build(case, source(case, "cpu"))
    x, other = torch.randn(2, case.T, case.B, case.I)
    assert torch.equal(model.train()(x), model(other))
    assert not torch.equal(model.eval()(x), model(other))


def test_dropout_of_all_steps_has_fresh_masks_or_one() -> None:
    x = torch.ones(6, 4, 8)
    for one_mask in (True, False):
        y = Dropout(0.5, one_mask)(x)
        assert set(y.unique().tolist()) == {0.0, 2.0} and torch.equal(y, y[:1].expand_as(y)) == one_mask
        assert not torch.equal(y[:, 0], y[:, 1])
        assert torch.equal(Dropout(0.5, one_mask).eval()(x), x)
