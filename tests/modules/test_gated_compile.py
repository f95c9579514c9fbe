"""GRU and LSTM compiled, exported, mapped, on the meta device, and sampled: what they give in eager mode."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import rnndrop
from tests.helpers import GATED, OUTSIDE, assert_equal, assert_near, each_kind, every_kind, inputs_of, inside, make_rnn
from tests.modules.checks import changed, flat, leaves_of
from tests.oracle import INSIDE

SEED = 3
each_cell = pytest.mark.parametrize("cell", GATED)
modes = pytest.mark.parametrize("training", [True, False])
pytestmark = pytest.mark.usefixtures("fresh_compiler")


def rates_of(cell, case):
    return {"none": {}, "outside": OUTSIDE, "inside": inside(cell), "every": every_kind(cell)}[case]


def close(found, expected):
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def same_compiled(rnn, seed, steps=5, backend="aot_eager"):
    """In one graph: results and gradients."""
    x, hx = inputs_of(rnn, steps=steps)
    leaves = [*leaves_of(rnn, x, hx).values()]

    def step(run):
        torch.manual_seed(5)
        outputs = flat(run(x, hx, seed=seed))
        return [*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves)]

    close(step(torch.compile(rnn, fullgraph=True, backend=backend)), step(rnn))


@each_cell
@pytest.mark.parametrize("case", ["none", "inside", "every"])
def test_in_one_graph(cell, case):
    rnn = make_rnn(cell, bidirectional=True, dtype=torch.float32, mask_scope={"input": "sequence"}, **rates_of(cell, case))
    same_compiled(rnn, None)
    if case == "every":
        same_compiled(rnn.eval(), None)


@each_cell
def test_one_step_and_many_seeds_in_one_graph(cell):
    rnn = make_rnn(cell, dtype=torch.float32, **inside(cell))
    same_compiled(rnn, torch.tensor([3, -4, 5]))
    same_compiled(rnn, 7, steps=1)


def test_inductor():
    same_compiled(make_rnn("LSTM", dtype=torch.float32, **inside("LSTM")), SEED, backend="inductor")


@each_cell
@modes
def test_cells_in_one_graph(cell, training):
    module = getattr(rnndrop, f"{cell}Cell")(4, 8, **inside(cell)).train(training)
    x, hx = torch.randn(3, 4), torch.randn(3, 8)
    hx = (hx, -hx) if cell == "LSTM" else hx
    close(flat(torch.compile(module, fullgraph=True, backend="aot_eager")(x, hx, seed=SEED)), flat(module(x, hx, seed=SEED)))


@each_cell
def test_an_export_keeps_torchs_own_operator(cell):
    module = getattr(rnndrop, cell)(4, 8, hidden_dropout=0.5).eval()
    batch, x = torch.export.Dim("batch", min=2, max=64), torch.randn(5, 3, 4)
    exported = torch.export.export(module, (x,), dynamic_shapes=dict(input={1: batch}), strict=False)
    names = [str(node.target) for node in exported.graph_module.graph.nodes if node.op == "call_function"]
    assert [name for name in names if "gru" in name or "lstm" in name] == [f"aten.{cell.lower()}.input"]
    x = torch.randn(5, 7, 4)
    close(flat(exported.module()(x)), flat(module(x)))


@each_cell
@modes
def test_an_export_with_dropout(cell, training):
    """In evaluation too, where the expectation of zoneout is left."""
    module, x = make_rnn(cell, num_layers=2, dtype=torch.float32, **every_kind(cell)).train(training), torch.randn(5, 3, 4)
    exported = torch.export.export(module, (x,), dict(seed=SEED), strict=False)
    close(flat(exported.module()(2 * x, seed=SEED)), flat(module(2 * x, seed=SEED)))


@each_cell
@modes
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("case", ["none", "inside", "every"])
def test_vmap(cell, training, steps, case):
    """Over inputs, states, seeds and parameters, which torch.nn's refuse."""
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, **rates_of(cell, case)).train(training)
    x, hx = inputs_of(rnn, steps=steps)
    parameters = {name: torch.stack([p.detach(), p.detach() / 2]) for name, p in rnn.named_parameters()}
    xs, states, seeds = torch.stack([x, -x]), changed(hx, lambda h: torch.stack([h, 2 * h])), torch.tensor([7, -8])
    run = lambda x, hx, p, seed: flat(functional_call(rnn, p, (x, hx), dict(seed=seed)))  # noqa: E731
    found = vmap(run)(xs, states, parameters, seeds)
    for i in range(2):
        weights = {name: p[i] for name, p in parameters.items()}
        assert_near([y[i] for y in found], run(xs[i], changed(states, lambda h: h[i]), weights, seeds[i]))  # noqa: B023


@each_cell
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_of_samples(cell, steps):
    """grad, and vmap of grad: a gradient of the parameters for each seed."""
    rnn = make_rnn(cell, num_layers=2, **every_kind(cell))
    x, hx = inputs_of(rnn, steps=steps)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, seed):
        return sum(y.square().sum() for y in flat(functional_call(rnn, parameters, (x, hx), dict(seed=seed))))

    seeds = torch.tensor([[4, 5, 6], [7, -3, 2**63 - 1]])
    together = vmap(grad(loss), in_dims=(None, 0))(parameters, seeds)
    for i, seed in enumerate(seeds):
        expected = torch.autograd.grad(sum(y.square().sum() for y in flat(rnn(x, hx, seed=seed))), [*rnn.parameters()])
        assert_near([*grad(loss)(parameters, seed).values()], expected)
        assert_near([g[i] for g in together.values()], expected)


@each_cell
@pytest.mark.parametrize("case", ["none", "inside", "every"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_meta_device(cell, case, steps):
    """Shapes and dtypes of all results and gradients."""

    def run(device):
        rnn = make_rnn(cell, num_layers=2, bidirectional=True, device=device, dtype=torch.bfloat16, **rates_of(cell, case))
        x = torch.zeros(steps, 3, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
        outputs = flat(rnn(x))
        sum(y.sum() for y in outputs).backward()
        return [*outputs, x.grad, *(p.grad for p in rnn.parameters())]

    found, expected = run("meta"), run("cpu")
    assert [(y.shape, y.dtype) for y in found] == [(y.shape, y.dtype) for y in expected] and all(y.is_meta for y in found)


@each_cell
def test_monte_carlo(cell):
    """Each kind acts in evaluation as in training, in a module and in a cell, and no longer after it."""
    for kind, rates in each_kind(cell).items():
        rnn = make_rnn(cell, num_layers=2, **rates)
        x, hx = inputs_of(rnn)
        given = [(rnn, (x, hx))]
        if kind in INSIDE[cell]:
            one = getattr(rnndrop, f"{cell}Cell")(4, 17, dtype=torch.float64, **rates)
            given.append((one, (x[0], changed(hx, lambda h: h[0]))))
        for module, arguments in given:
            expected = flat(module(*arguments, seed=SEED))
            quiet = flat(module.eval()(*arguments, seed=SEED))
            with rnndrop.monte_carlo(module):
                assert_equal(flat(module(*arguments, seed=SEED)), expected)
            assert_equal(flat(module(*arguments, seed=SEED)), quiet)
            assert any(not torch.equal(a, b) for a, b in zip(quiet, expected, strict=True))


@each_cell
def test_explain(cell):
    rnn, x = make_rnn(cell, num_layers=2, **OUTSIDE), torch.zeros(5, 3, 4, dtype=torch.float64)
    assert rnndrop.explain(rnn, x).strategy == f"torch.nn.{cell}"
    for name in inside(cell):
        rnn = make_rnn(cell, **{name: 0.5})
        assert rnndrop.explain(rnn, x).strategy in ("cpu", "reference")
        assert rnndrop.explain(rnn, x[:1]).strategy == "one step"
        zoned = "zoneout" in name
        assert rnndrop.explain(rnn.eval(), x).strategy in (("cpu", "reference") if zoned else (f"torch.nn.{cell}",))
