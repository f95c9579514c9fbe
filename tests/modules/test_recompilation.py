"""How often the compiler has to compile: one graph for all rates, seeds, lengths and batches, forward and backward."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rnndrop
from tests.helpers import each_kind, every_kind, inside, make_rnn
from tests.modules.checks import flat

CELLS = ("RNN", "GRU", "LSTM")
each_cell = pytest.mark.parametrize("cell", CELLS)
pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Compiled:
    """A module in one graph at a time, beside itself in eager mode; it counts the graphs."""

    def __init__(self, module, **options):
        self.module, self.counter = module, CompileCounterWithBackend("aot_eager")
        self.run = torch.compile(module, fullgraph=True, backend=self.counter, **options)

    def assert_same(self, x, hx=None, seed=3):
        leaves = [x.requires_grad_(), *self.module.parameters()] if self.module.training else []
        for mine, other in zip(*(results(run, x, hx, seed, leaves) for run in (self.run, self.module)), strict=True):
            torch.testing.assert_close(mine, other)

    @property
    def graphs(self):
        return self.counter.frame_count


def results(run, x, hx, seed, leaves):
    torch.manual_seed(1)
    outputs = flat(run(x, hx, seed=seed))
    return [*outputs, *(torch.autograd.grad(sum(y.sin().sum() for y in outputs), leaves) if leaves else ())]


@each_cell
def test_twenty_rates_of_every_kind(cell):
    rnn = make_rnn(cell, num_layers=2, dtype=torch.float32, **every_kind(cell))
    compiled = Compiled(rnn)
    for rate in range(1, 21):
        for name in every_kind(cell):
            setattr(rnn, name, rate / 21)
        compiled.assert_same(torch.randn(5, 3, 4))
    assert compiled.graphs == 1


@each_cell
def test_twenty_rates_in_evaluation(cell):
    rnn = make_rnn(cell, dtype=torch.float32, zoneout=0.5).eval()
    compiled = Compiled(rnn)
    for rate in range(1, 21):
        rnn.zoneout = rate / 21
        compiled.assert_same(torch.randn(5, 3, 4))
    assert compiled.graphs == 1


@each_cell
def test_twenty_rates_of_a_cell(cell):
    module = getattr(rnndrop, f"{cell}Cell")(4, 8, **inside(cell))
    compiled = Compiled(module)
    hx = torch.randn(3, 8)
    for rate in range(1, 21):
        for name in inside(cell):
            setattr(module, name, rate / 21)
        compiled.assert_same(torch.randn(3, 4), (hx, -hx) if cell == "LSTM" else hx)
    assert compiled.graphs == 1


def test_a_projection_takes_every_rate_too():
    """Its layers are the plain loop, in the graph."""
    rnn = make_rnn("LSTM", dtype=torch.float32, proj_size=3, **inside("LSTM"))
    compiled = Compiled(rnn)
    for rate in (0.2, 0.4, 0.6):
        rnn.hidden_dropout = rnn.zoneout = rate
        compiled.assert_same(torch.randn(2, 3, 4))
    assert compiled.graphs == 1


def test_a_rate_that_becomes_zero():
    rnn = make_rnn(dtype=torch.float32, hidden_dropout=0.5, recurrent_dropout=0.25)
    compiled = Compiled(rnn)
    for rate in (0.5, 0.0, 1.0):
        rnn.hidden_dropout = rate
        compiled.assert_same(torch.randn(5, 3, 4))
    assert compiled.graphs == 2


@each_cell
def test_twenty_seeds(cell):
    """The compiler takes the first int for a constant."""
    compiled = Compiled(make_rnn(cell, dtype=torch.float32, **every_kind(cell)))
    for seed in range(20):
        compiled.assert_same(torch.randn(5, 3, 4), seed=7 * seed - 50)
    assert compiled.graphs == 2


@each_cell
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["none", "outside", "every"])
def test_every_length_and_batch(cell, training, case):
    rates = {"none": {}, "outside": each_kind(cell)["input"], "every": every_kind(cell)}[case]
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, dtype=torch.float32, **rates).train(training)
    compiled = Compiled(rnn, dynamic=True)
    for steps, batch in ((5, 3), (7, 3), (2, 2), (40, 6)):
        compiled.assert_same(torch.randn(steps, batch, 4))
    assert compiled.graphs == 1


@pytest.mark.parametrize("training", [True, False])
def test_packed_of_every_length(training):
    compiled = Compiled(make_rnn("LSTM", dtype=torch.float32, **inside("LSTM")).train(training), dynamic=True)
    for longest in (4, 6, 9, 12, 15):
        parts = [torch.randn(steps, 4) for steps in (3, longest, 2)]
        packed = torch.nn.utils.rnn.pack_sequence(parts, enforce_sorted=False)
        with torch.no_grad():
            for mine, other in zip(*(flat(run(packed, seed=3)) for run in (compiled.run, compiled.module)), strict=True):
                torch.testing.assert_close(mine, other)
    assert compiled.graphs <= 2


@each_cell
def test_a_cell_in_a_loop_in_one_graph(cell):
    module = getattr(rnndrop, f"{cell}Cell")(4, 8, **inside(cell))

    def loop(x, hx):
        for step in x:
            hx = module(step, hx, seed=3)
        return hx

    counter = CompileCounterWithBackend("aot_eager")
    x, hx = torch.randn(5, 3, 4), torch.randn(3, 8)
    hx = (hx, -hx) if cell == "LSTM" else hx
    for mine, other in zip(flat(torch.compile(loop, fullgraph=True, backend=counter)(x, hx)), flat(loop(x, hx)), strict=True):
        torch.testing.assert_close(mine, other)
    assert counter.frame_count == 1


@each_cell
def test_compiled_autograd(cell):
    """The backward pass is a graph too."""
    rnn = make_rnn(cell, dtype=torch.float32, **every_kind(cell))
    x = torch.randn(5, 3, 4)

    def step(run):
        rnn.zero_grad()
        sum(y.sin().sum() for y in flat(run(x, seed=3))).backward()
        return [p.grad.clone() for p in rnn.parameters()]

    torch._dynamo.utils.counters.clear()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        found = step(torch.compile(rnn, fullgraph=True, backend="aot_eager"))
    assert torch._dynamo.utils.counters["compiled_autograd"]["captures"] > 0
    for mine, other in zip(found, step(rnn), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_mode_that_reduces_overhead():
    rnn = make_rnn(dtype=torch.float32, hidden_dropout=0.5)
    run, x = torch.compile(rnn, fullgraph=True, mode="reduce-overhead"), torch.randn(5, 3, 4)
    leaves = [x.requires_grad_(), *rnn.parameters()]
    for rate in (0.25, 0.75):
        rnn.hidden_dropout = rate
        for mine, other in zip(*(results(each, x, None, 3, leaves) for each in (run, rnn)), strict=True):
            torch.testing.assert_close(mine, other)
