"""What nn.RNN refuses is refused, with its type of exception and its words, and before a seed is drawn."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnndrop import RNN
from tests.helpers import BOTH, EVERY_KIND, draws_nothing, error_of, make_rnn

INSIDE = BOTH
EVERYWHERE = dict(num_layers=2, dropout=0.25, bidirectional=True, **INSIDE)


def message(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), re.sub(r"'|\.$", "", str(error).split(", got")[0] if "probability" in str(error) else str(error))
    return None


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
        dict(unknown=1),
    ],
    ids=str,
)
def test_bad_constructor_arguments(options):
    options = {"input_size": 3, "hidden_size": 5, **options}
    mine, theirs = message(RNN, **options), message(nn.RNN, **options)
    assert mine is not None and theirs is not None
    if "unknown" not in options:  # a TypeError too, but nn.RNN names a class of its own in it
        assert mine == theirs


def z(*shape, dtype=torch.float64, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


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
    ((pack_padded_sequence(z(5, 3, 4, dtype=torch.float32), [5, 3, 1]),), "packed dtype"),
    (("x",), "a string"),
    ((None,), "None"),
    (([1, 2],), "a list"),
    ((z(5, 3, 4), "h"), "hx a string"),
    ((), "nothing"),
]


@pytest.mark.parametrize("rates", [dict(), EVERY_KIND, dict(hidden_dropout=0.3)], ids=["none", "every", "hidden"])
@pytest.mark.parametrize("args", [args for args, _ in BAD_INPUTS], ids=[name for _, name in BAD_INPUTS])
def test_bad_inputs(rates, args):
    rnn = make_rnn(**rates)
    mine, theirs = message(rnn, *args), message(rnn.to_torch(), *args)
    assert theirs is not None
    assert mine[0] is theirs[0], (mine, theirs)
    if mine[0] in (RuntimeError, ValueError):  # the same words, or words about the same thing
        assert mine[1] == theirs[1] or {"size", "dtype", "sequence"} & set(re.findall("[a-z]+", mine[1])), (mine, theirs)
    before = [p.clone() for p in rnn.parameters()]
    assert draws_nothing(lambda: error_of(rnn, *args)) is theirs[0]
    assert all(map(torch.equal, before, rnn.parameters()))


@pytest.mark.parametrize(
    "rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5), dict(num_layers=2, **EVERY_KIND)], ids=lambda r: "+".join(r)
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_of_no_sequences_is_as_in_torch(rates, bidirectional):
    rnn = make_rnn(bidirectional=bidirectional, **rates)
    x = z(5, 0, 4).requires_grad_()
    for mine, theirs in zip(rnn(x), rnn.to_torch()(x), strict=True):
        assert mine.shape == theirs.shape
    assert torch.autograd.grad(rnn(x)[0].sum(), x)[0].shape == x.shape
