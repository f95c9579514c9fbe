"""What the compiler makes of a module: one graph, one operator a layer, the same numbers. Inductor compiles, as by default."""

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnndrop
from tests.stand_ins import rnn

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def calls(graph):
    return [node for node in graph.graph.nodes if node.op == "call_function"]


class Backend:
    """aot_eager; it notes the calls of each graph as it comes."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append([(str(node.target), node.args) for node in calls(graph)])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def results(module, x, **options):
    """The outputs, and the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()
    found = module(x, **options)
    outputs = [*found] if isinstance(found, tuple) else [found]
    return [*outputs, *torch.autograd.grad(sum(y.sin().sum() for y in outputs), [x, *module.parameters()])]


def assert_same(found, expected, **tolerances):
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, **tolerances)


def test_seeds_and_inductor():
    """A second int seed does not overflow, nor the largest; each has its own masks."""
    module, x = rnn(), torch.randn(5, 3, 4)
    compiled = torch.compile(module, fullgraph=True)
    for seed in (1, 2, -3, 2**63 - 1):
        assert_same(results(compiled, x, seed=seed), results(module, x, seed=seed))


def test_dynamic_shapes_and_inductor():
    module = rnn(num_layers=2, dropout=0.5, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for steps, batch in ((5, 3), (6, 2), (9, 7)):
        x = torch.randn(steps, batch, 4)
        assert_same(results(compiled, x, seed=7), results(module, x, seed=7))


def test_draws_and_inductor():
    """Without a seed each call, and each of two in one graph, has fresh masks: repeated by manual_seed, those of eager mode."""
    module, x = rnn(), torch.randn(5, 3, 4)

    def twice(x):
        return module(x)[0], module(x)[0]

    compiled, drawn = torch.compile(twice, fullgraph=True), []
    for run in (compiled, compiled, twice):
        torch.manual_seed(1)
        drawn.append([*run(x), *run(x)])
    assert all(map(torch.equal, *drawn[:2]))
    assert_same(*drawn[1:])
    assert len({tuple(y.flatten().tolist()) for y in drawn[0]}) == 4


def test_tanh_dropout_and_inductor():
    compiled = torch.compile(rnndrop.functional.tanh_dropout, fullgraph=True)
    for seed in (1, 2):
        x = torch.randn(5, 3, requires_grad=True)
        found, expected = compiled(x, 0.5, seed=seed), rnndrop.functional.tanh_dropout(x, 0.5, seed=seed)
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)))


def test_auto_on_a_gpu(cuda):
    """The compiler does not look into the choice of a strategy, which asks the driver; the graph carries none."""
    module = rnndrop.RNN(4, 8, hidden_dropout=0.25, recurrent_dropout=0.25, device=cuda)
    x = torch.randn(5, 3, 4, device=cuda)
    backend = Backend()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_same(results(compiled, x, seed=3), results(module, x, seed=3))
    (graph,) = backend.graphs
    (arguments,) = [arguments for name, arguments in graph if name.startswith("rnndrop.layer")]
    assert arguments[-1] == "auto"


@pytest.mark.parametrize("training", [False, True])
def test_what_drops_nothing_is_few_operators(training):
    """PyTorch's layers are one; in training it would run them again for the gradient, and ours run."""
    module = rnndrop.RNN(4, 8, 2, bidirectional=True).train(training)
    backend = Backend()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for steps in (5, 10, 20, 40):
        x = torch.randn(steps, 3, 4)
        assert_same(results(compiled, x), results(module, x))
    assert 1 <= len(backend.graphs) <= 2
    for graph in backend.graphs:
        names = [name for name, _ in graph if "rnn" in name]
        assert names == (["rnndrop.layer.default"] * 4 if training else ["rnndrop.torch_layers.default"])
        assert len(graph) < (50 if training else 12)  # of no step


@pytest.mark.parametrize("options", [dict(nonlinearity="relu"), dict(bias=False), dict(batch_first=True), dict(dropout=0.5)])
def test_torch_layers_have_their_gradients(options):
    """Of every mode; `dropout` acts between layers that are PyTorch's own."""
    module, x = rnndrop.RNN(4, 8, 2, **options), torch.randn(5, 3, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x, seed=1), results(module, x, seed=1))


def test_torch_layers_in_evaluation_and_inductor():
    module, x = rnndrop.RNN(4, 8).eval(), torch.randn(50, 3, 4)
    assert_same(results(torch.compile(module, fullgraph=True), x), results(module, x))


@pytest.mark.parametrize("dropouts", [dict(hidden_dropout=0.5), dict(recurrent_dropout=0.5)])
@pytest.mark.parametrize("kind", [rnndrop.RNN, rnndrop.RNNCell])
def test_one_kind_of_dropout(kind, dropouts):
    """A cell runs the plain loop, inside its operator too."""
    module, x = kind(4, 8, **dropouts), torch.randn(*(5, 3, 4)[kind is rnndrop.RNNCell :])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x, seed=1), results(module, x, seed=1))


@pytest.mark.parametrize("training", [False, True])
def test_packed_sequences(training):
    module = rnn().train(training)
    packed = pack_sequence([torch.randn(5, 4), torch.randn(3, 4), torch.randn(3, 4)])
    compiled = torch.compile(module, backend="aot_eager")
    found, h_n = compiled(packed, seed=3)
    expected, last = module(packed, seed=3)
    assert isinstance(found, PackedSequence)
    assert_same([found.data, h_n], [expected.data, last])


@pytest.mark.parametrize("module", [nn.RNN(4, 8), rnndrop.RNN(4, 8), rnndrop.RNN(4, 8, hidden_dropout=0.5).eval()])
def test_an_export_keeps_torchs_own_operator(module):
    """Not ours, which nobody else knows, and not unrolled."""
    exported = torch.export.export(module, (torch.randn(5, 3, 4),), strict=False)
    assert [str(node.target) for node in calls(exported.graph_module) if "rnn" in str(node.target)] == ["aten.rnn_tanh.input"]


def test_a_trace_keeps_torchs_own_operator():
    """ONNX's exporter makes one RNN of it."""
    module = rnndrop.RNN(4, 8, hidden_dropout=0.5).eval()
    traced = torch.jit.trace(module, (torch.randn(5, 3, 4),))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::rnn_tanh") == 1 and not [kind for kind in kinds if "rnndrop" in kind]


@pytest.mark.parametrize("training", [False, True])
def test_batch_first_and_inductor(training):
    """The layout of the output is nn.RNN's, a transpose, which Inductor checks."""
    module = rnndrop.RNN(4, 8, 2, batch_first=True).train(training)
    x = torch.randn(3, 5, 4)
    assert_same(results(torch.compile(module, fullgraph=True), x), results(module, x))


def test_autocast_of_evaluation():
    module, x = rnndrop.RNN(4, 8, hidden_dropout=0.5).eval(), torch.randn(5, 3, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(compiled(x), module(x))


def test_a_state_that_is_transposed():
    module, hx = rnn(num_layers=2, bidirectional=True), torch.randn(8, 3, 4).permute(2, 1, 0)
    x, compiled = torch.randn(5, 3, 4), torch.compile(module, fullgraph=True, backend="aot_eager")
    assert not hx.is_contiguous()
    assert_same(results(compiled, x, hx=hx, seed=1), results(module, x, hx=hx, seed=1))


def test_operators_are_not_compiled_themselves():
    """Where Dynamo leaves a frame to Python, as after a graph break, it looks at what that calls."""
    seed, counter = torch.tensor([3]), torch._dynamo.testing.CompileCounter()

    @torch._dynamo.decorators.skip
    def left_to_python():
        return torch.ops.rnndrop.mask(seed, 8, 0.5, None, 0, "bytes", "step", 4, 3, 12, None, None)

    torch.compile(left_to_python, backend=counter)()
    assert counter.frame_count == 0
