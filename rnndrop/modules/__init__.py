"""torch.nn's recurrent modules, with dropout inside the recurrence."""

from .cells import GRUCell, LSTMCell, RNNCell
from .convert import from_torch, to_torch
from .gru import GRU
from .lstm import LSTM
from .rnn import RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "from_torch", "to_torch"]
