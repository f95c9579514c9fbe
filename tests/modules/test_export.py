"""What leaves Python: torch.export, AOTInductor, ONNX, traces. In evaluation they give what the module gives."""

import io
import itertools

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import rnndrop
from tests.helpers import assert_equal, inside
from tests.modules.checks import flat

CELLS = ("RNN", "GRU", "LSTM")
T, B = Dim("T", min=2, max=64), Dim("B", min=2, max=64)
each_cell = pytest.mark.parametrize("cell", CELLS)
REFUSED = r"(?s)eval\(\).*to_torch\(\)"


def dropping(cell):
    """Without zoneout, of which evaluation leaves something."""
    return {name: p for name, p in inside(cell).items() if "zoneout" not in name}


def module(cell, **options):
    return getattr(rnndrop, cell)(4, 8, **options)


def assert_close(found, expected):
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), other)


@each_cell
@pytest.mark.parametrize("case, strict", [("evaluation", False), *itertools.product(["zoneout", "training"], [False, True])])
def test_an_export_for_every_length_and_batch(cell, case, strict):
    rates = dropping(cell) if case == "evaluation" else inside(cell)
    rnn = module(cell, num_layers=2, bidirectional=True, batch_first=True, **rates).train(case == "training")
    seeds = [dict(seed=torch.tensor([seed])) if case == "training" else {} for seed in (3, 4)]
    shapes = dict(input={0: B, 1: T}) | dict.fromkeys(seeds[0])
    exported = torch.export.export(rnn, (torch.randn(3, 5, 4),), seeds[0], dynamic_shapes=shapes, strict=strict)
    for program in (exported, exported.run_decompositions()):
        x = torch.randn(6, 9, 4)
        assert_close(flat(program.module()(x, **seeds[1])), flat(rnn(x, **seeds[1])))


@pytest.mark.parametrize("name", [*CELLS, *[f"{cell}Cell" for cell in CELLS]])
def test_a_strict_export_of_a_model_in_evaluation(name):
    """For every batch; without zoneout the program has PyTorch's own operators alone, as of torch.nn's."""
    rates = dropping(name.removesuffix("Cell"))
    model = nn.Sequential(nn.Linear(5, 4), module(name, **rates)).eval()
    shape = (3, 5) if name.endswith("Cell") else (6, 3, 5)
    exported = torch.export.export(model, (torch.randn(shape),), dynamic_shapes=({len(shape) - 2: B},), strict=True)
    assert not [node for node in exported.graph.nodes if "rnndrop" in str(node.target)]
    x = torch.randn(*shape[:-2], 7, 5)
    assert_close(flat(exported.module()(x)), flat(model(x)))


def test_a_package_of_aot_inductor(tmp_path):
    rnn = module("GRU", hidden_dropout=0.5).eval()
    exported = torch.export.export(rnn, (torch.randn(3, 3, 4),), dynamic_shapes=dict(input={1: B}))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "gru.pt2"))
    x = torch.randn(3, 7, 4)
    assert_close(flat(torch._inductor.aoti_load_package(path)(x)), flat(rnn(x)))


def run_onnx(model, x):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@each_cell
def test_onnx_of_the_graph(cell):
    """Any batch; the steps are those of the example, as of torch.nn's."""
    rnn, buffer = module(cell, **dropping(cell)).eval(), io.BytesIO()
    example = torch.randn(5, 3, 4)
    torch.onnx.export(rnn, (example,), dynamo=True, dynamic_shapes=({1: B},), verbose=False).save(buffer)
    x = torch.randn(5, 6, 4)
    assert_close(run_onnx(buffer.getvalue(), x), flat(rnn(x)))


@each_cell
def test_onnx_of_the_trace(cell):
    """Any batch and any number of steps."""
    rnn, buffer = module(cell, num_layers=2, bidirectional=True, **dropping(cell)).eval(), io.BytesIO()
    axes = {"x": {0: "T", 1: "B"}}
    torch.onnx.export(rnn, (torch.randn(5, 3, 4),), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes)
    x = torch.randn(7, 6, 4)
    assert_close(run_onnx(buffer.getvalue(), x), flat(rnn(x)))


@each_cell
@pytest.mark.parametrize("rates", ["inside", "input"])
def test_what_has_no_operator_elsewhere_is_refused(cell, rates):
    """In training, and zoneout in evaluation, by all three."""
    rnn, x = module(cell, **(inside(cell) if rates == "inside" else dict(input_dropout=0.5))), torch.randn(2, 3, 4)
    kept = torch.onnx.TrainingMode.PRESERVE
    for training in (True, False)[: 1 + (rates == "inside")]:
        rnn.train(training)
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match=REFUSED):
            torch.onnx.export(rnn, (x,), dynamo=True, verbose=False)
        with pytest.raises(RuntimeError, match=REFUSED):
            torch.onnx.export(rnn, (x,), io.BytesIO(), dynamo=False, training=kept)
        with pytest.raises(RuntimeError, match=REFUSED):
            torch.jit.trace(rnn, (x,))


@each_cell
def test_cells_elsewhere(cell):
    """A step is PyTorch's operations, zoneout in evaluation too."""
    rnn, x, buffer = module(f"{cell}Cell", **inside(cell)), torch.randn(3, 4), io.BytesIO()
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=REFUSED):
        torch.onnx.export(rnn, (x,), dynamo=True, verbose=False)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.jit.trace(rnn, (x,))
    rnn.eval()
    assert_close(flat(torch.jit.trace(rnn, (x,))(-x)), flat(rnn(-x)))
    torch.onnx.export(rnn, (x,), dynamo=True, verbose=False).save(buffer)
    assert_close(run_onnx(buffer.getvalue(), -x), flat(rnn(-x)))


@each_cell
def test_a_trace_of_evaluation_for_every_length_and_batch(cell):
    rnn, x = module(cell, num_layers=2, **dropping(cell)).eval(), torch.randn(7, 6, 4)
    assert_close(flat(torch.jit.trace(rnn, (torch.randn(5, 3, 4),))(x)), flat(rnn(x)))


class Model(nn.Module):
    def __init__(self, rnn, with_hx):
        super().__init__()
        self.before, self.rnn, self.after, self.with_hx = nn.Linear(5, 4), rnn, nn.Linear(8, 2), with_hx

    def forward(self, x, h, c, seed):
        hx = (h, c) if isinstance(self.rnn, (rnndrop.LSTM, rnndrop.LSTMCell)) else h
        found = self.rnn(self.before(x), hx if self.with_hx else None, seed=seed)
        first = found if isinstance(self.rnn, (rnndrop.RNNCell, rnndrop.GRUCell)) else found[0]
        return self.after(first), found


@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("name", [*CELLS, *[f"{cell}Cell" for cell in CELLS]])
def test_a_leaf_of_a_symbolic_trace(name, with_hx):
    """One graph for training and for evaluation, of which zoneout leaves something."""
    model = Model(module(name, **inside(name.removesuffix("Cell"))), with_hx)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["before", "rnn", "after"]
    x, states = torch.randn(6, 3, 5), torch.randn(2, 1, 3, 8)
    given = (x[0], *states[:, 0], torch.tensor(3)) if name.endswith("Cell") else (x, *states, torch.tensor(3))
    results = []
    for training in (True, False):
        results.append(flat(model.train(training)(*given)))
        assert_equal(flat(graph.train(training)(*given)), results[-1])
    assert not torch.equal(results[0][0], results[1][0])
