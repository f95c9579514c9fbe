"""What torch.nn's modules refuse is refused, with their type of exception and their words, and before a seed is drawn."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnndrop
from tests.helpers import BOTH, GATED, assert_equal, draws_nothing, error_of, every_kind, make_rnn
from tests.modules.checks import flat

INSIDE = BOTH
each_cell = pytest.mark.parametrize("cell", ["RNN", *GATED])


def message(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), re.sub(r"'|\.$", "", str(error).split(", got")[0] if "probability" in str(error) else str(error))
    return None


@each_cell
@pytest.mark.parametrize(
    "options",
    [
        dict(hidden_size=0),
        dict(hidden_size=-3),
        dict(input_size=0),
        dict(num_layers=0),
        dict(num_layers=-1),
        dict(input_size=3.0),
        dict(input_size="3"),
        dict(hidden_size=5.0),
        dict(hidden_size=None),
        dict(num_layers="2"),
        dict(bias=1),
        dict(bias=None),
        dict(batch_first="yes"),
        dict(nonlinearity="sigmoid"),
        dict(nonlinearity=None),
        dict(dropout=-0.1),
        dict(dropout=1.5),
        dict(dropout=True),
        dict(dropout=float("nan")),
        dict(proj_size=2),
        dict(proj_size=5),
        dict(proj_size=7),
        dict(proj_size=-1),
        dict(proj_size="2"),
        dict(unknown=1),
    ],
    ids=str,
)
def test_bad_constructor_arguments(cell, options):
    options = {"input_size": 3, "hidden_size": 5, **options}
    mine, theirs = (message(getattr(package, cell), **options) for package in (rnndrop, nn))
    assert (mine is None) == (theirs is None) == (cell == "LSTM" and options.get("proj_size") == 2)
    if "nonlinearity" in options and cell != "RNN":
        assert mine[0] is theirs[0] is TypeError
    elif "unknown" not in options:  # a TypeError too, but torch.nn names a class of its own in it
        assert mine == theirs


def z(*shape, dtype=torch.float64, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


DTYPE_OF_PACKED = "packed dtype"  # nn.LSTM does not look at it

BAD_INPUTS = [
    ((z(4),), "1-D"),
    ((z(2, 2, 2, 4),), "4-D"),
    ((z(5, 3, 7),), "input size"),
    ((z(5, 7),), "input size, unbatched"),
    ((z(5, 3, 4, dtype=torch.float32),), "dtype"),
    ((z(5, 3, 4, dtype=torch.int64),), "integers"),
    ((z(0, 3, 4),), "no steps"),
    ((z(0, 4),), "no steps, unbatched"),
    ((z(5, 3, 4), z(1, 4, 17)), "hx batch"),
    ((z(5, 3, 4), z(2, 3, 17)), "hx layers"),
    ((z(5, 3, 4), z(1, 3, 16)), "hx size"),
    ((z(5, 3, 4), z(3, 17)), "hx 2-D"),
    ((z(5, 4), z(1, 1, 17)), "hx 3-D"),
    ((z(5, 4), z(1, 16)), "hx size, unbatched"),
    ((z(5, 3, 4), z(1, 3, 17, dtype=torch.float32)), "hx dtype"),
    ((pack_padded_sequence(z(5, 3, 7), [5, 3, 1]),), "packed input size"),
    ((pack_padded_sequence(z(5, 3, 4), [5, 3, 1]), z(1, 4, 17)), "packed hx batch"),
    ((pack_padded_sequence(z(5, 3, 4, dtype=torch.float32), [5, 3, 1]),), DTYPE_OF_PACKED),
    (("x",), "a string"),
    ((None,), "None"),
    (([1, 2],), "a list"),
    ((z(5, 3, 4), "h"), "hx a string"),
    ((), "nothing"),
]
H, C = z(1, 3, 17), z(1, 3, 17)
PACKED = pack_padded_sequence(z(5, 3, 4), [5, 3, 1], enforce_sorted=False)
BAD_PAIRS = [  # of an LSTM alone
    ((z(5, 3, 4), H), "one state"),
    ((z(5, 4), H), "one state, unbatched"),
    ((z(5, 3, 4), (H,)), "a tuple of one"),
    ((z(5, 3, 4), (H, C, C)), "three states"),
    ((z(5, 3, 4), ()), "no states"),
    ((z(5, 3, 4), (H, None)), "no cx"),
    ((z(5, 3, 4), (None, C)), "no hx"),
    ((z(5, 3, 4), (H, z(1, 4, 17))), "cx batch"),
    ((z(5, 3, 4), (H, z(2, 3, 17))), "cx layers"),
    ((z(5, 3, 4), (H, z(1, 3, 16))), "cx size"),
    ((z(5, 3, 4), (z(1, 3, 16), C)), "hx size, cx right"),
    ((z(5, 3, 4), (H, z(3, 17))), "cx 2-D"),
    ((z(5, 3, 4), (z(3, 17), C)), "hx 2-D, cx 3-D"),
    ((z(5, 4), (z(1, 17), C)), "cx 3-D"),
    ((z(5, 3, 4), (z(1, 3, 17, dtype=torch.float32), C)), "hx dtype, cx right"),
    ((PACKED, H), "packed, one state"),
    ((z(5, 3, 4), z(2, 1, 3, 17)), "both in one tensor"),
    ((z(5, 3, 4), z(3, 1, 3, 17)), "three in one tensor"),
    ((z(5, 3, 4), z(2, 1, 3, 16)), "both in one tensor, hx size"),
    ((pack_padded_sequence(z(5, 3, 4), [5, 3, 1]), z(2, 1, 3, 17)), "packed, both in one tensor"),
    ((PACKED, (H, z(1, 3, 16))), "packed, cx size"),
]


def given_to(cell, args):
    """hx as a pair where the cell has two states."""
    return (args[0], (args[1], args[1])) if cell == "LSTM" and len(args) == 2 else args


CASES = [(cell, given_to(cell, args), name) for cell in ("RNN", *GATED) for args, name in BAD_INPUTS]
CASES += [("LSTM", args, name) for args, name in BAD_PAIRS]
CASES = {f"{cell}, {name}": (cell, args) for cell, args, name in CASES if (cell, name) != ("LSTM", DTYPE_OF_PACKED)}


@pytest.mark.parametrize("case", ["none", "every", "hidden"])
@pytest.mark.parametrize("cell, args", CASES.values(), ids=CASES)
def test_bad_inputs(cell, args, case):
    rnn = make_rnn(cell, **{"none": {}, "hidden": dict(hidden_dropout=0.3), "every": every_kind(cell)}[case])
    mine, theirs = message(rnn, *args), message(rnn.to_torch(), *args)
    assert theirs is not None
    assert mine[0] is theirs[0], (mine, theirs)
    if mine[0] in (RuntimeError, ValueError):  # the same words, or words about the same thing
        assert mine[1] == theirs[1] or {"size", "dtype", "sequence"} & set(re.findall("[a-z]+", mine[1])), (mine, theirs)
    before = [p.clone() for p in rnn.parameters()]
    assert draws_nothing(lambda: error_of(rnn, *args)) is theirs[0]
    assert all(map(torch.equal, before, rnn.parameters()))


@pytest.mark.parametrize("rates", [dict(), dict(hidden_dropout=0.3)], ids=["none", "hidden"])
def test_both_states_in_one_tensor_are_taken_where_torch_takes_them_apart(rates):
    """Of unbatched input, and of packed data that was not sorted."""
    rnn, x = make_rnn("LSTM", **rates), torch.randn(5, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, [3, 5, 1], enforce_sorted=False)
    for given, both in ((x[:, 0], torch.randn(2, 1, 17).double()), (packed, torch.randn(2, 1, 3, 17).double())):
        assert_equal(flat(rnn(given, both, seed=1)), flat(rnn(given, (both[0], both[1]), seed=1)))
        assert_equal(flat(rnn.eval()(given, both)), flat(rnn.to_torch()(given, both)))
        rnn.train()


@pytest.mark.parametrize("rates", [dict(), dict(hidden_dropout=0.3)], ids=["none", "hidden"])
def test_what_only_torchs_lstm_takes_or_finds_late(rates):
    """A cell state of another dtype, which cuDNN refuses too; of packed data another size, which its kernels meet."""
    rnn = make_rnn("LSTM", **rates)
    with pytest.raises(RuntimeError, match=r"^expected input and cx to have the same dtype, got torch\.float64"):
        draws_nothing(lambda: rnn(z(5, 3, 4), (H, C.float())))
    with pytest.raises(RuntimeError, match=r"^Expected hidden\[1\] size \(1, 3, 17\), got \[3, 3\]$"):
        draws_nothing(lambda: rnn(PACKED, (H, z(3, 17))))
    with pytest.raises(ValueError, match=r"^RNN input dtype"):
        draws_nothing(lambda: rnn(pack_padded_sequence(z(5, 3, 4), [5, 3, 1]).to(torch.float32)))


@each_cell
@pytest.mark.parametrize("case", ["none", "inside", "between", "every"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_of_no_sequences_is_as_in_torch(cell, case, bidirectional):
    rates = dict(inside=INSIDE, between=dict(num_layers=2, dropout=0.5), every=dict(num_layers=2, **every_kind(cell)))
    rnn = make_rnn(cell, bidirectional=bidirectional, **rates.get(case, {}))
    for steps in (5, 1):
        x = z(steps, 0, 4).requires_grad_()
        for mine, theirs in zip(flat(rnn(x)), flat(rnn.to_torch()(x)), strict=True):
            assert mine.shape == theirs.shape
        assert torch.autograd.grad(rnn(x)[0].sum(), x)[0].shape == x.shape
