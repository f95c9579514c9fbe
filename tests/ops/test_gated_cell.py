"""lstm_cell_dropout and gru_cell_dropout: one definition by PyTorch's operations and by the kernel, and its derivatives."""

import pytest
import torch
from torch.autograd import gradcheck

import rnndrop
from rnndrop import functional
from rnndrop.ops import gated_cell
from tests import triton_driver
from tests.helpers import assert_near, draws_nothing

RATES = {
    "LSTM": {"hidden_dropout": 0.3, "cell_dropout": 0.2, "candidate_dropout": 0.4},
    "GRU": {"hidden_dropout": 0.3, "candidate_dropout": 0.4},
}
SEED, ROWS, COLUMNS = 11, 3, 5
both_cells = pytest.mark.parametrize("cell", RATES)


@pytest.fixture
def device():
    return triton_driver.device()


def leaves(cell, dtype=torch.float64, device="cpu"):
    gates = (4 if cell == "LSTM" else 3) * COLUMNS
    shapes = (ROWS, gates), (ROWS, gates), (ROWS, COLUMNS)
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def run(cell, inputs, strategy, **options):
    """The states."""
    function = functional.lstm_cell_dropout if cell == "LSTM" else functional.gru_cell_dropout
    states = function(*inputs, seed=SEED, strategy=strategy, **(RATES[cell] | options))
    return states if cell == "LSTM" else (states,)


@both_cells
def test_without_dropout_it_is_the_cell_of_pytorch(cell):
    """By the weights of one: its gates are the two products."""
    torch_cell = (torch.nn.LSTMCell if cell == "LSTM" else torch.nn.GRUCell)(4, COLUMNS, dtype=torch.float64)
    x, h, c = (torch.randn(ROWS, width, dtype=torch.float64) for width in (4, COLUMNS, COLUMNS))
    of_x = torch.nn.functional.linear(x, torch_cell.weight_ih, torch_cell.bias_ih)
    of_h = torch.nn.functional.linear(h, torch_cell.weight_hh, torch_cell.bias_hh)
    expected = torch_cell(x, (h, c)) if cell == "LSTM" else (torch_cell(x, h),)
    given = of_x, of_h, c if cell == "LSTM" else h
    assert_near(draws_nothing(lambda: run(cell, given, "auto", training=False)), expected)
    none = dict.fromkeys(RATES[cell], 0.0)
    assert_near(draws_nothing(lambda: run(cell, given, "auto", **none)), expected)


@both_cells
def test_it_is_the_cell_of_rnndrop(cell):
    """With the masks of the same seed."""
    module = getattr(rnndrop, f"{cell}Cell")(4, COLUMNS, dtype=torch.float64, **RATES[cell])
    x, h, c = (torch.randn(ROWS, width, dtype=torch.float64) for width in (4, COLUMNS, COLUMNS))
    of_x = torch.nn.functional.linear(x, module.weight_ih, module.bias_ih)
    of_h = torch.nn.functional.linear(h, module.weight_hh, module.bias_hh)
    expected = module(x, (h, c) if cell == "LSTM" else h, seed=SEED)
    found = run(cell, (of_x, of_h, c if cell == "LSTM" else h), "auto")
    assert_near(found, expected if cell == "LSTM" else (expected,))


@both_cells
def test_gradcheck(cell):
    assert gradcheck(lambda *inputs: run(cell, inputs, "reference"), leaves(cell))


@pytest.mark.parametrize("dropping", [True, False])
@both_cells
def test_the_kernel_is_the_definition(cell, dropping, device):
    inputs, found = leaves(cell, torch.float32, device), []
    for strategy, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        states = run(cell, [x.to(dtype) for x in inputs], strategy, training=dropping)
        grads = torch.autograd.grad(sum(y.square().sum() for y in states), inputs)
        found.append([x.double().cpu() for x in (*states, *grads)])
    assert_near(*found, bound=1e-5)


@both_cells
def test_second_derivatives_of_the_kernel(cell, device):
    """Of every first derivative by everything, the states' own included; and the first is the plain one."""
    inputs, found = leaves(cell, torch.float32, device), []
    for strategy in ("triton", "reference"):
        states = run(cell, inputs, strategy)
        loss = sum(y.square().sum() for y in states)
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(x.pow(3).sum() for x in first), inputs, retain_graph=True)
        plain = torch.autograd.grad(loss, inputs)
        found.append([*first, *second, *plain])
    assert_near(*found, bound=1e-4)


@both_cells
def test_formulas_of_the_gradient(cell):
    """In float64, in place of the kernel: the first and the second derivatives are those of the definition."""
    rates = [RATES[cell].get(f"{kind}_dropout", 0.0) for kind in gated_cell.KINDS]
    inputs, seed = leaves(cell), torch.tensor([SEED])

    def plain(*inputs):
        return tuple(gated_cell._by_operations(*inputs, seed, rates, cell))

    class Formulas(torch.autograd.Function):
        """The operator, its forward pass by the definition."""

        @staticmethod
        def forward(of_x, of_h, before, seed, rates, cell):
            gates = of_x + of_h if cell == "LSTM" else torch.cat([of_h[:, 2 * COLUMNS :], of_x + of_h], 1)
            parts = list(gates.chunk(4, 1))
            if cell == "GRU":
                r = torch.sigmoid(parts[1])
                parts[3] = parts[3] - parts[0] + r * parts[0]
            tanh = 2 if cell == "LSTM" else 3
            after = [torch.tanh(x) if k == tanh else torch.sigmoid(x) for k, x in enumerate(parts)]
            if cell == "GRU":
                after[0] = parts[0]
            return *plain(of_x, of_h, before), torch.cat(after, 1)

        setup_context = staticmethod(gated_cell._save)
        backward = staticmethod(gated_cell._gradient)

    def run_formulas(*inputs):
        return Formulas.apply(*inputs, seed, rates, cell)[:-1]

    derivatives = []
    for function in (run_formulas, plain):
        states = function(*inputs)
        first = torch.autograd.grad(sum(y.square().sum() for y in states), inputs, create_graph=True)
        derivatives.append([*first, *torch.autograd.grad(sum(x.pow(3).sum() for x in first), inputs)])
    assert_near(*derivatives)


@both_cells
def test_the_operators_are_what_the_compiler_is_told(cell, device):
    arguments = *leaves(cell, torch.float32, device), torch.tensor([SEED], device=device), [0.3, 0.0, 0.2], cell
    torch.library.opcheck(gated_cell._operator, arguments)


@both_cells
def test_compiled_whole(cell, device):
    inputs = leaves(cell, torch.float32, device)
    for strategy in ("auto", "triton"):
        compiled = torch.compile(lambda *x, s=strategy: run(cell, x, s), fullgraph=True, backend="aot_eager")
        found = [f(*inputs) for f in (compiled, lambda *x, s=strategy: run(cell, x, s))]
        grads = [torch.autograd.grad(sum(y.sum() for y in states), inputs) for states in found]
        assert_near(*found, bound=1e-6)
        assert_near(*grads, bound=1e-6)
    with pytest.raises(ValueError, match=r"'triton' cannot run: torch.float64 is none of"):
        compiled(*leaves(cell, device=device))


def test_vmap(device):
    inputs = [torch.stack([x.detach()] * 2) for x in leaves("LSTM", torch.float32, device)]
    for strategy in ("reference", "triton"):
        found = torch.func.vmap(lambda *x, s=strategy: run("LSTM", x, s))(*inputs)
        assert_near([x[1] for x in found], run("LSTM", [x[1] for x in inputs], strategy), bound=1e-6)


def test_autocast():
    inputs = [x.float() for x in leaves("GRU")]
    with torch.autocast("cpu", torch.bfloat16):
        assert run("GRU", [inputs[0].bfloat16(), *inputs[1:]], "auto")[0].dtype == torch.bfloat16


@both_cells
def test_errors(cell):
    of_x, of_h, state = leaves(cell)
    wrong = [
        ((of_x[:, 1:], of_h, state), {}, RuntimeError, "Expected input_gates size"),
        ((of_x, of_h[1:], state), {}, RuntimeError, "Expected hidden_gates size"),
        ((of_x, of_h.float(), state), {}, RuntimeError, "hidden_gates to have the same dtype"),
        ((of_x[0], of_h[0], state[0]), {}, RuntimeError, "2 dimensions, got 1"),
        ((of_x, of_h, state), {"hidden_dropout": 1.5}, ValueError, "hidden_dropout should be a number in range"),
        ((of_x, of_h, state), {"strategy": "cpu"}, ValueError, "Unknown strategy 'cpu'"),
        ((of_x, of_h, state), {"strategy": "triton"}, ValueError, "'triton' cannot run: "),
        ((of_x, of_h, state), {"seed": 0.5}, TypeError, "seed should be"),
        ((of_x.long(), of_h.long(), state.long()), {}, NotImplementedError, "not implemented for"),
    ]
    function = functional.lstm_cell_dropout if cell == "LSTM" else functional.gru_cell_dropout
    for tensors, options, kind, words in wrong:
        with pytest.raises(kind, match=words):
            draws_nothing(lambda t=tensors, o=options: function(*t, **({"candidate_dropout": 0.5} | o)))


@both_cells
def test_without_a_seed_each_call_has_its_own_masks(cell):
    inputs, function = leaves(cell), functional.lstm_cell_dropout if cell == "LSTM" else functional.gru_cell_dropout
    first, second = (function(*inputs, hidden_dropout=0.5) for _ in range(2))
    torch.manual_seed(0)
    leaves(cell)
    again = function(*inputs, hidden_dropout=0.5)
    first, second, again = (x[0] if cell == "LSTM" else x for x in (first, second, again))
    assert torch.equal(first, again) and not torch.equal(first == 0, second == 0)
