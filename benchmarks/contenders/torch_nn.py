"""PyTorch's own layer: without any dropout, and with dropout around it, fresh at every step."""

from __future__ import annotations

from torch import nn

from ..cases import Case
from .base import BASELINE, Contender, Model, Wrapped


def copy_of(rnn: nn.RNNBase, dropout: float = 0.0) -> nn.RNNBase:
    weight = rnn.weight_ih_l0
    options = {"bidirectional": rnn.bidirectional, "device": weight.device, "dtype": weight.dtype}
    copy = type(rnn)(rnn.input_size, rnn.hidden_size, rnn.num_layers, dropout=dropout, **options)
    copy.load_state_dict(rnn.state_dict())
    return copy


def _plain(case: Case, rnn: nn.RNNBase) -> Model:
    return Wrapped(case, copy_of(rnn))


def _dropped(case: Case, rnn: nn.RNNBase) -> Model:
    before, after = case.rate("input_dropout"), case.rate("output_dropout") or case.rate("hidden_dropout")
    return Wrapped(case, copy_of(rnn, case.rate("dropout")), nn.Dropout(before), nn.Dropout(after))


def _nothing_of(case: Case, device: str) -> str:
    return "" if DROPPED.rates(case) else f"around torch.nn's layer there is no {' and no '.join(case.dropouts)}"


PLAIN = Contender(BASELINE, _plain, packs=True)
DROPPED = Contender(
    "torch.nn + nn.Dropout",
    _dropped,
    kinds=("dropout", "input_dropout", "output_dropout"),
    instead={"hidden_dropout": "output_dropout"},
    packs=True,
    cannot=_nothing_of,
)
