"""PyTorch's own layer: without any dropout, and with dropout of its output."""

from __future__ import annotations

from torch import nn

from ..cases import Case
from .base import BASELINE, Contender, Model, Wrapped


def copy_of(rnn: nn.RNN, dropout: float = 0.0) -> nn.RNN:
    weight = rnn.weight_ih_l0
    options = {"bidirectional": rnn.bidirectional, "device": weight.device, "dtype": weight.dtype}
    copy = type(rnn)(rnn.input_size, rnn.hidden_size, rnn.num_layers, dropout=dropout, **options)
    copy.load_state_dict(rnn.state_dict())
    return copy


def _plain(case: Case, rnn: nn.RNN) -> Model:
    return Wrapped(copy_of(rnn))


def _dropped(case: Case, rnn: nn.RNN) -> Model:
    return Wrapped(copy_of(rnn, case.rate("dropout")), nn.Dropout(case.rate("hidden_dropout")))


def _needs_hidden(case: Case, device: str) -> str:
    return "" if case.rate("hidden_dropout") else "nn.Dropout on the output is no recurrent dropout"


PLAIN = Contender(BASELINE, _plain)
DROPPED = Contender("nn.RNN + nn.Dropout", _dropped, ("dropout", "hidden_dropout"), cannot=_needs_hidden)
