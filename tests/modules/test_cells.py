import pytest
import torch
from torch import nn

import rnndrop
from rnndrop import RNNCell
from tests import oracle
from tests.helpers import RATES as DROPPING
from tests.helpers import assert_equal, assert_near, doubled, draws_nothing, error_of, gradients, keep

BATCH, INPUTS, COLUMNS = 3, 4, 17
RATES = [*DROPPING, dict(hidden_dropout=1.0), dict(recurrent_dropout=1.0)]
ZONED = [dict(zoneout=0.2), dict(zoneout=1.0), dict(DROPPING[2], zoneout=0.2)]


def make(**options):
    return RNNCell(**{"input_size": INPUTS, "hidden_size": COLUMNS, "dtype": torch.float64, **options})


def torch_cell(cell):
    theirs = nn.RNNCell(cell.input_size, cell.hidden_size, cell.bias, cell.nonlinearity, dtype=cell.weight_ih.dtype)
    theirs.load_state_dict(cell.state_dict())
    return theirs


def by_hand(theirs, x, hx, seed, hidden_dropout=0.0, recurrent_dropout=0.0, zoneout=0.0):
    """nn.RNNCell with a mask before and a mask after it, and the old state where zoneout has it."""
    m = oracle.mask(seed, len(x), theirs.hidden_size, hidden_dropout)
    r = oracle.mask(seed, len(x), theirs.hidden_size, recurrent_dropout, kind="recurrent")
    stays = ~keep(seed, len(x), theirs.hidden_size, zoneout, kind="zoneout")
    return torch.where(stays, hx, theirs(x, hx * r) * m)


@pytest.mark.parametrize("rates", [*RATES, *ZONED], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch_cell_between_masks(rates, nonlinearity, bias, dtype):
    cell = make(nonlinearity=nonlinearity, bias=bias, dtype=dtype, **rates)
    leaves = {"x": torch.randn(BATCH, INPUTS, dtype=dtype), "hx": torch.randn(BATCH, COLUMNS, dtype=dtype)}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    copies, theirs = doubled(leaves), torch_cell(cell).double()
    y, expected = cell(*leaves.values(), seed=3), by_hand(theirs, *copies.values(), 3, **rates)
    assert y.dtype == dtype
    assert_near(y, expected)
    leaves, copies = leaves | dict(cell.named_parameters()), copies | dict(theirs.named_parameters())
    allowed = dict(allow_unused=True, materialize_grads=True)  # where all is zoned out, or dropped
    assert_near(gradients([y], leaves, **allowed), gradients([expected], copies, **allowed))


@pytest.mark.parametrize("rates", [dict(), *RATES[:3], *ZONED], ids=str)
def test_it_is_a_step_of_rnn(rates):
    """Seeded, and one step long, RNN and RNNCell are the same."""
    cell = make(**rates)
    rnn = rnndrop.RNN(INPUTS, COLUMNS, dtype=torch.float64, **rates)
    rnn.load_state_dict({name + "_l0": p for name, p in cell.state_dict().items()})
    x, hx = torch.randn(BATCH, INPUTS, dtype=torch.float64), torch.randn(BATCH, COLUMNS, dtype=torch.float64)
    assert_near(cell(x, hx, seed=3), rnn(x[None], hx[None], seed=3)[0][0])
    assert_near(cell(x, seed=3), rnn(x[None], seed=3)[0][0])


@pytest.mark.parametrize("mode", ["evaluation", "training without dropout"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_without_dropout_it_is_torch(mode, nonlinearity):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        cell = make(nonlinearity=nonlinearity, dtype=dtype, **(RATES[2] if mode == "evaluation" else {}))
        cell.train(mode != "evaluation")
        theirs = torch_cell(cell)
        x, hx = torch.ones(BATCH, INPUTS, dtype=dtype), torch.ones(BATCH, COLUMNS, dtype=dtype)
        for arguments in [(x, hx), (x,), (x[0], hx[0]), (x[0],)]:
            assert torch.equal(draws_nothing(lambda: cell(*arguments)), theirs(*arguments))  # noqa: B023


def test_unbatched_is_a_batch_of_one():
    cell = make(**RATES[2])
    x, hx = torch.randn(INPUTS, dtype=torch.float64), torch.randn(COLUMNS, dtype=torch.float64)
    assert torch.equal(cell(x, hx, seed=3), cell(x[None], hx[None], seed=3)[0])
    assert torch.equal(cell(x, seed=3), cell(x[None], seed=3)[0])


@pytest.mark.parametrize("rates", [dict(hidden_dropout=0.5), dict(zoneout=0.5)], ids=str)
def test_every_call_draws_a_mask(rates):
    cell = make(**rates)
    x = torch.randn(BATCH, INPUTS, dtype=torch.float64)
    first, second = cell(x), cell(x)
    assert not torch.equal(first == 0, second == 0)


@pytest.mark.parametrize("options", [dict(), dict(bias=False), dict(nonlinearity="relu")], ids=str)
def test_parameters_and_repr_are_those_of_torch(options):
    torch.manual_seed(5)
    mine = RNNCell(3, 6, **options, hidden_dropout=0.1)
    torch.manual_seed(5)
    theirs = nn.RNNCell(3, 6, **options)
    for (name, p), (other, q) in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other and torch.equal(p, q)
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    assert repr(RNNCell(3, 6, **options)) == repr(theirs)
    assert (mine.bias_ih is None) == (theirs.bias_ih is None)


def test_repr_and_positional_arguments():
    assert repr(RNNCell(3, 5, zoneout=0.125, hidden_dropout=0.25, recurrent_dropout=0.5)) == (
        "RNNCell(3, 5, hidden_dropout=0.25, recurrent_dropout=0.5, zoneout=0.125)"
    )
    arguments = (3, 5, False, "relu", "meta", torch.float64)
    mine, theirs = RNNCell(*arguments), nn.RNNCell(*arguments)
    assert mine.weight_ih.device == theirs.weight_ih.device and mine.weight_ih.dtype == theirs.weight_ih.dtype
    assert (mine.bias, mine.nonlinearity) == (theirs.bias, theirs.nonlinearity)
    with pytest.raises(TypeError):
        RNNCell(*arguments, 0.5)


@pytest.mark.parametrize("name", ["dropout", "input_dropout", "output_dropout", "weight_dropout", "mask_scope", "cell_dropout"])
def test_arguments_that_a_cell_does_not_have(name):
    with pytest.raises(TypeError, match=rf"^RNNCell\.__init__\(\) got an unexpected keyword argument '{name}'$"):
        RNNCell(3, 5, **{name: 0.5})
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'$"):
        RNNCell.from_torch(nn.RNNCell(3, 5), **{name: 0.5})
    assert not hasattr(RNNCell(3, 5), name)


def z(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("rates", [dict(), *RATES[:3], ZONED[0]], ids=str)
@pytest.mark.parametrize(
    "args",
    [
        (z(2, 2, 4),),
        (z(),),
        (z(3, 5),),
        (z(5),),
        (z(3, 4), z(2, 17)),
        (z(3, 4), z(3, 16)),
        (z(3, 4), z(3, 1, 17)),
        (z(4), z(16)),
        (z(3, 4, dtype=torch.float32),),
        (z(3, 4, dtype=torch.int64),),
        (z(3, 4), z(3, 17, dtype=torch.float32)),
        (z(4), z(1, 17)),
        (z(3, 4), z(17)),
        ("x",),
        (None,),
        (),
    ],
    ids=lambda args: ", ".join(str(list(a.shape)) + str(a.dtype)[5:] if hasattr(a, "shape") else repr(a) for a in args),
)
def test_bad_inputs(rates, args):
    cell = make(**rates)
    expected = error_of(torch_cell(cell), *args)
    assert expected is not None
    assert draws_nothing(lambda: error_of(cell, *args)) is expected


@pytest.mark.parametrize("rates", [dict(), *RATES[:3], ZONED[0]], ids=str)
def test_unknown_nonlinearity(rates):
    cell = make(nonlinearity="sigmoid", **rates)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sigmoid"):
        cell(z(3, 4))


@pytest.mark.parametrize("rates", [dict(), RATES[2]], ids=str)
def test_a_bad_seed_is_refused_where_it_would_be_ignored(rates):
    cell = make(**rates).eval()
    for seed, error in [(1.5, TypeError), (True, TypeError), (torch.tensor([1, 2]), ValueError)]:
        with pytest.raises(error, match=r"^seed should be"):
            draws_nothing(lambda seed=seed: cell(z(3, 4), seed=seed))
    assert torch.equal(draws_nothing(lambda: cell(z(3, 4), seed=1)), cell(z(3, 4)))


@pytest.mark.parametrize("rates", [dict(), *RATES[:3], *ZONED], ids=str)
def test_a_batch_of_none_is_as_in_torch(rates):
    cell = make(**rates)
    assert cell(z(0, INPUTS), seed=1).shape == torch_cell(cell)(z(0, INPUTS)).shape


def test_the_gradient_under_create_graph_is_the_plain_one():
    cell = make(**RATES[2])
    leaves = {"x": z(3, 4).requires_grad_(), "hx": z(3, 17).requires_grad_(), **dict(cell.named_parameters())}
    y = cell(leaves["x"], leaves["hx"], seed=1)
    plain = gradients([y], leaves, retain_graph=True)
    again = gradients([y], leaves, create_graph=True)
    assert_equal({name: g.detach() for name, g in again.items()}, plain)


def test_float64_under_autocast():
    cell = make(**RATES[2])
    x = torch.randn(BATCH, INPUTS, dtype=torch.float64)
    expected = cell(x, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(cell(x, seed=1), expected)
