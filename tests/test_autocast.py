"""autocast on the CPU: where backward runs does not matter, and the layer runs in autocast's dtype or in its own."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import jvp
from torch.nn.utils.rnn import pack_padded_sequence

import rnndrop
from tests.helpers import GATED, inputs_of, make_rnn
from tests.modules.checks import changed, flat

DROPOUTS = [
    dict(hidden_dropout=0.5),
    dict(recurrent_dropout=0.5),
    dict(zoneout=0.5),
    dict(hidden_dropout=0.5, recurrent_dropout=0.5),
]
OF_CELL = {"GRU": dict(candidate_dropout=0.5), "LSTM": dict(cell_dropout=0.25, cell_zoneout=0.25)}
CASES = [("RNN", dropouts) for dropouts in DROPOUTS]
CASES += [(cell, dropouts) for cell in GATED for dropouts in (DROPOUTS[-1], OF_CELL[cell] | DROPOUTS[2])]
each_layer = pytest.mark.parametrize("cell, dropouts", CASES, ids=str)


def inside():
    return torch.autocast("cpu", torch.bfloat16)


def outside():
    return torch.autocast("cpu", enabled=False)


@pytest.fixture(params=[(cell + end, dropouts) for cell, dropouts in CASES for end in ("", "Cell")], ids=str)
def run(request):
    """The loss of a module as a function of nothing, its leaves, and how near gradients are, relative to the largest: a layer's
    to the bit; a cell is PyTorch's operations, as nn.RNNCell is, which an autocast around backward runs in bfloat16."""
    kind, dropouts = request.param
    if not kind.endswith("Cell"):
        x = torch.randn(5, 3, 4, requires_grad=True)
        module = make_rnn(kind, num_layers=2, bidirectional=True, dtype=None, **dropouts)
        return lambda: module(x, seed=1)[0].float().square().sum(), [x, *module.parameters()], 0
    cell, x = getattr(rnndrop, kind)(4, 8, **dropouts), torch.randn(3, 4, requires_grad=True)
    return lambda: flat(cell(x, cell(x, seed=2), seed=1))[0].float().square().sum(), [x, *cell.parameters()], 2**-5


def assert_near(found, expected, bound):
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == other.dtype and mine.isfinite().all() and other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=0, atol=bound * other.abs().max().item())


def test_backward_inside_of_a_forward_outside(run):
    loss, leaves, bound = run
    expected = torch.autograd.grad(loss(), leaves)
    value = loss()
    with inside():
        found = torch.autograd.grad(value, leaves)
    assert_near(found, expected, bound)


def test_a_layer_that_autocast_leaves_alone(run):
    """Nested, as one does for a layer that needs its precision; backward is in the outer autocast."""
    loss, leaves, bound = run
    expected = torch.autograd.grad(loss(), leaves)
    with inside():
        with outside():
            value = loss()
        found = torch.autograd.grad(value, leaves)
    assert_near(found, expected, bound)


def test_backward_outside_of_a_forward_inside(run):
    """Gradients are of the parameters' dtype, wherever backward runs."""
    loss, leaves, _ = run
    with inside():
        value, again = loss(), loss()
        within = torch.autograd.grad(again, leaves)
    found = torch.autograd.grad(value, leaves)
    for mine, other, leaf in zip(found, within, leaves, strict=True):
        assert torch.equal(mine, other) and mine.dtype == leaf.dtype and mine.isfinite().all()


@pytest.mark.parametrize("where", [inside, contextlib.nullcontext])
def test_double_backward(run, where):
    loss, leaves, bound = run
    gradients = torch.autograd.grad(loss(), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    value = loss()
    with where():
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        # The squares' own backward is not what is tested.
        with outside():
            penalty = sum(g.square().sum() for g in gradients)
        found = torch.autograd.grad(penalty, leaves)
    assert_near(found, expected, max(bound, 1e-5))


def batched(value, leaves):
    return torch.autograd.grad(value, leaves, torch.tensor([1.0, -2.0]), is_grads_batched=True, retain_graph=True)


def dual(value, leaves):
    """The tangents of gradients."""
    with forward_ad.dual_level():
        along = forward_ad.make_dual(torch.tensor(1.0), torch.tensor(-2.0))
        gradients = torch.autograd.grad(value, leaves, along, retain_graph=True)
        return [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]


@pytest.mark.parametrize("gradients", [batched, dual])
def test_backward_by_the_plain_loop(run, gradients):
    loss, leaves, bound = run
    value = loss()
    expected = gradients(value, leaves)
    with inside():
        found = gradients(value, leaves)
    assert_near(found, expected, bound)


def test_tanh_dropout_inside_and_out():
    x = torch.randn(5, 3, requires_grad=True)
    expected = torch.autograd.grad(rnndrop.functional.tanh_dropout(x, 0.5, seed=1).sum(), x)
    value = rnndrop.functional.tanh_dropout(x, 0.5, seed=1).sum()
    with inside():
        found = torch.autograd.grad(value, x)
    assert torch.equal(found[0], expected[0])


@each_layer
def test_float64_stays(cell, dropouts):
    """Autocast casts no float64."""
    module, x = make_rnn(cell, **dropouts), torch.randn(5, 3, 4, dtype=torch.float64)
    expected = module(x, seed=1)[0]
    with inside():
        found = module(x, seed=1)[0]
    assert found.dtype == torch.float64 and torch.equal(found, expected)


@each_layer
def test_what_autocast_makes_of_a_layer(cell, dropouts):
    """The same as of one whose tensors were cast by hand."""
    module, x = make_rnn(cell, dtype=None, **dropouts), torch.randn(5, 3, 4)
    by_hand = type(module).from_torch(module.to_torch().bfloat16(), **dropouts)
    with inside():
        output, *states = flat(module(x, seed=1))
    assert {y.dtype for y in (output, *states)} == {torch.float32 if cell == "GRU" else torch.bfloat16}
    for found, expected in zip((output, *states), flat(by_hand(x.bfloat16(), seed=1)), strict=True):
        assert torch.equal(found.bfloat16(), expected)


@each_layer
def test_forward_mode(cell, dropouts):
    """As of a layer whose tensors were cast by hand; outputs and tangents have the dtypes of outputs without tangents."""
    module, (x, along) = make_rnn(cell, dtype=None, **dropouts), torch.randn(2, 5, 3, 4)
    by_hand = type(module).from_torch(module.to_torch().bfloat16(), **dropouts)
    expected = jvp(lambda x: by_hand(x, seed=1)[0], (x.bfloat16(),), (along.bfloat16(),))
    with inside():
        dtype = module(x)[0].dtype
        found = jvp(lambda x: module(x, seed=1)[0], (x,), (along,))
        with forward_ad.dual_level():
            again = forward_ad.unpack_dual(module(forward_ad.make_dual(x, along), seed=1)[0])
    for one, other, exact in zip(found, again, expected, strict=True):
        assert one.dtype == other.dtype == dtype and exact.abs().max() > 0
        assert torch.equal(one.bfloat16(), exact) and torch.equal(other.bfloat16(), exact)


OF_TORCH = [dict(), DROPOUTS[3], dict(zoneout=0.5), dict(input_dropout=0.5), dict(num_layers=2, dropout=0.5)]


def dtypes(module, given, dtype):
    """Those of a module's results; on a CPU whose oneDNN has no 16 bits, of what its padded LSTM would give on another."""
    with torch.autocast("cpu", dtype):
        try:
            found = module(*given)
        except RuntimeError as error:
            assert "could not create a primitive descriptor" in str(error)
            with FakeTensorMode(allow_non_fake_inputs=True):
                found = module(*given)
    return [y.dtype for y in flat(found)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM", "LSTM projected"])
@pytest.mark.parametrize("dropouts", OF_TORCH, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtypes_of_a_layer_are_those_of_torch(cell, packed, dropouts, dtype):
    """In training and in evaluation, whatever the states are."""
    cell, *projected = cell.split()
    module = make_rnn(cell, dtype=torch.float32, **(dict(proj_size=5) if projected else {}), **dropouts)
    x, hx = inputs_of(module)
    sixteen, low = x.to(dtype), changed(hx, lambda h: h.to(dtype))
    cases = [(x,), (x, hx), (x, low), (sixteen,), (sixteen, low)]
    cases += [(x, (hx[0], low[1])), (x, (low[0], hx[1]))] if cell == "LSTM" else []
    if cell != "LSTM" or projected or packed:  # else nn.LSTM's are those of the code that the machine has
        cases += [(sixteen, hx)]
    for x, *states in cases:
        given = (pack_padded_sequence(x, [5, 3, 2]) if packed else x, *states)
        for training in (True, False):
            module.train(training)
            assert dtypes(module, given, dtype) == dtypes(module.to_torch(), given, dtype)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("dropouts", [OF_TORCH[0], OF_TORCH[1], OF_TORCH[3]], ids=str)
@pytest.mark.usefixtures("fresh_compiler")
def test_the_dtypes_of_a_graph_are_those_of_torch(cell, packed, dropouts):
    module = make_rnn(cell, dtype=torch.float32, **dropouts)
    x, _ = inputs_of(module)
    given = (pack_padded_sequence(x, [5, 3, 2]) if packed else x,)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert dtypes(compiled, given, torch.bfloat16) == dtypes(module.to_torch(), given, torch.bfloat16)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("dropouts", OF_TORCH[:3], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtypes_of_a_cell_are_those_of_torch(name, dropouts, dtype):
    module, x, hx = getattr(rnndrop, name)(4, 8, **dropouts), torch.randn(3, 4), torch.randn(3, 8)
    hx = (hx, hx) if name == "LSTMCell" else hx
    for training in (True, False):
        module.train(training)
        for given in ((x,), (x.to(dtype),), (x, hx), (x, changed(hx, lambda h: h.to(dtype)))):
            assert dtypes(module, given, dtype) == dtypes(module.to_torch(), given, dtype)
