"""A sequence has the same mask packed and padded, in whatever order it was packed."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import rnndrop
from tests.helpers import EACH_KIND, EVERY_KIND

LENGTHS = [2, 5, 3, 5, 1]
KINDS = EACH_KIND | {"all": EVERY_KIND}


@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_as_padded(kind, bidirectional, mask_scope):
    """Every sequence alone, cut to its length out of the padded batch, whose other rows do not matter."""
    rnn = rnndrop.RNN(3, 20, 2, bidirectional=bidirectional, mask_scope=mask_scope, dtype=torch.float64, **KINDS[kind])
    x, hx = torch.randn(5, 5, 3, dtype=torch.float64), torch.randn(4 if bidirectional else 2, 5, 20, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    output, lengths = pad_packed_sequence(rnn(packed, hx, seed=3)[0])
    h_n = rnn(packed, hx, seed=3)[1]
    assert lengths.tolist() == LENGTHS
    for b, length in enumerate(LENGTHS):
        expected, last = rnn(x[:length], hx, seed=3)  # whose rows t*B + b are those of the whole
        torch.testing.assert_close(output[:length, b], expected[:, b])
        torch.testing.assert_close(h_n[:, b], last[:, b])
    assert (output != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_packing_does_not_matter(kind):
    rnn = rnndrop.RNN(3, 20, 2, **KINDS[kind])
    sequences = [torch.randn(length, 3) for length in (5, 5, 3, 2, 1)]
    plain, sorted_ = pack_sequence(sequences), pack_sequence(sequences, enforce_sorted=False)
    assert plain.sorted_indices is None and sorted_.sorted_indices is not None
    torch.testing.assert_close(rnn(sorted_, seed=3)[0].data, rnn(plain, seed=3)[0].data)


def test_gradients_of_packed_sequences():
    rnn = rnndrop.RNN(3, 20, hidden_dropout=0.4, recurrent_dropout=0.4, dtype=torch.float64)
    x = torch.randn(5, 5, 3, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    found = torch.autograd.grad(rnn(packed, seed=3)[0].data.sin().sum(), [x, *rnn.parameters()])
    padded = rnn(x, seed=3)[0]
    inside = torch.arange(5)[:, None] < torch.tensor(LENGTHS)
    expected = torch.autograd.grad(padded[inside].sin().sum(), [x, *rnn.parameters()])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
