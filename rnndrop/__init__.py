"""rnndrop: RNN, LSTM and GRU with dropout inside the recurrence, at the price of PyTorch's own layers without any.

modules         RNN, LSTM, GRU and their cells, drop-ins for torch.nn's; from_torch, to_torch: those of a whole model
functional      layers and pointwise dropouts as functions
mask            the mask stream: dropout_mask
monte_carlo     dropout in evaluation, for estimates of uncertainty
reference       the plain loop that everything is tested against
"""

import torch

from . import functional
from .dropouts import Dropouts
from .explain import explain
from .mask import dropout_mask
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, from_torch, to_torch
from .monte_carlo import monte_carlo

__version__ = "0.2.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "dropout_mask",
    "explain",
    "from_torch",
    "functional",
    "monte_carlo",
    "to_torch",
]

# torch.load(weights_only=True) of a whole module makes these.
torch.serialization.add_safe_globals([RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell, Dropouts])
