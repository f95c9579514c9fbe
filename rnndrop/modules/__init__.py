"""torch.nn's recurrent modules, with dropout inside the recurrence."""

from .cells import RNNCell
from .rnn import RNN

__all__ = ["RNN", "RNNCell"]
