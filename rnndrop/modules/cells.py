"""RNNCell, GRUCell and LSTMCell: torch.nn's, with dropout inside the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import _VF, Tensor, nn
from typing_extensions import Unpack

from ..autocast import autocasts, cast, dtype_beside
from ..cell import CELLS, Cell, Weights, rnn_mode
from ..checks import check_dtype, check_tensors
from ..dispatch import mask_form
from ..dropouts import (
    CellAttributes,
    Dropouts,
    GRUAttributes,
    GRUCellOptions,
    LSTMAttributes,
    LSTMCellOptions,
    RNNCellOptions,
    checked_options,
)
from ..functional import NONLINEARITIES, Nonlinearity
from ..layer import MaskSource, recurrent_step, seed_tensor
from ..mask import check_seed
from ..ops.eager import beyond_torch
from ..replicated import distributed, is_distributed, local
from ..steps import Steps
from .base import extra_repr, reset_parameters
from .convert import Convertible
from .leaf import call_of, is_symbolic

Seed = int | Tensor | None
States = tuple[Tensor, Tensor]


class CellBase(CellAttributes, nn.Module):
    """One step of a cell."""

    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        gates: int,
        device: Any,
        dtype: torch.dtype | None,
        dropouts: Dropouts,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self._dropouts = dropouts
        rows = gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty((rows, input_size), device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty((rows, hidden_size), device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            parameter = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @property
    def cell(self) -> Cell:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        reset_parameters(self)

    def _call(self, input: Tensor, states: Sequence[Tensor] | None, seed: Seed) -> Sequence[Tensor]:
        """The new states of what `forward` was given."""
        cell = self.cell
        if input.dim() not in (1, 2):
            raise ValueError(f"{cell.name}Cell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for number, state in enumerate(states or ()):
            if state.dim() not in (1, 2):
                which = "hidden" if len(cell.states) == 1 else f"hx[{number}]"
                raise ValueError(f"{cell.name}Cell: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
        if input.dim() == 2:
            return self._run(input, states, seed, cell)
        states = None if states is None else [state.unsqueeze(0) for state in states]
        return [state.squeeze(0) for state in self._run(input.unsqueeze(0), states, seed, cell)]

    def _run(self, input: Tensor, states: Sequence[Tensor] | None, seed: Seed, cell: Cell) -> Sequence[Tensor]:
        """The new states of a batched input."""
        if states is None:
            shape = input.size(0), self.hidden_size
            states = [torch.zeros(shape, dtype=input.dtype, device=input.device) for _ in cell.states]
        if seed is not None:
            check_seed(seed, input.size(0))
        dropouts = self._dropouts if self.training else self._dropouts.in_evaluation()
        weights = Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if not dropouts.inside and not beyond_torch():
            return _torch_step(input, states, weights, cell)
        self._check_sizes(input, states)
        beside = dtype_beside(states[-1])
        if autocasts(input.device.type):
            input, states, weights = cast(input), [cast(state) for state in states], weights.map(cast)
        given = input
        if is_distributed(given):
            input, states, weights = local(input), [local(state) for state in states], weights.map(local)
        steps, form = Steps(1, input.size(0)), mask_form("auto", input.device)
        check_tensors(input, self.input_size, steps.batch, ["hx", "cx"][: len(states)], states, weights, cell)
        check_dtype(f"{cell.name.lower()}_cell", input)
        masks = None
        if self.training and dropouts.inside:  # the seed is drawn after all that can be wrong
            masks = MaskSource(seed_tensor(seed, input.device, steps.batch), steps, form)
        new = recurrent_step(input, states, weights, dropouts, masks, cell)
        new = new if cell.name == "RNN" else [state.to(beside) for state in new]
        return [distributed(state, given) for state in new] if is_distributed(given) else new

    def _check_sizes(self, input: Tensor, states: Sequence[Tensor]) -> None:
        if input.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}")
        for number, state in enumerate(states):
            if input.size(0) != state.size(0):
                raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden{number} batch size {state.size(0)}")
            if state.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{number} has inconsistent hidden_size: got {state.size(1)}, expected {self.hidden_size}"
                )

    def extra_repr(self) -> str:
        usual = {"bias": True, "nonlinearity": "tanh"}
        changed = {name: value for name in usual if (value := getattr(self, name, usual[name])) != usual[name]}
        return extra_repr(self, changed | self._dropouts.changed())


def _torch_step(input: Tensor, states: Sequence[Tensor], weights: Weights, cell: Cell) -> Sequence[Tensor]:
    """PyTorch's own."""
    run: Any = getattr(_VF, f"{cell.mode.lower()}_cell")
    found = run(input, states if len(cell.states) > 1 else states[0], *weights[:4])
    return found if len(cell.states) > 1 else [found]


class RNNCell(CellBase, Convertible[nn.RNNCell]):
    r"""An Elman RNN cell with tanh or ReLU non-linearity and dropout of its hidden state.

    .. math::

        n = m \odot \tanh(W_{ih} x + b_{ih}  +  W_{hh} (r \odot h) + b_{hh}), \qquad h' = z \odot h + (1 - z) \odot n

    If :attr:`nonlinearity` is `'relu'`, then ReLU is used in place of tanh. An element of the mask :math:`m` is 0 with
    probability :attr:`hidden_dropout` and else :math:`1/(1-p)`, one of :math:`r` is 0 with probability
    :attr:`recurrent_dropout`; an element of :math:`z` is 1 with probability :attr:`zoneout` and else 0. In evaluation, and
    where all are 0, this is :class:`torch.nn.RNNCell`; but zoneout is its expectation then: :math:`z` is the probability.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        nonlinearity: The non-linearity to use. Can be either ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        hidden_dropout: The probability of an element of :math:`n` to be zeroed. Default: 0
        recurrent_dropout: The probability of an element of :math:`h` to be zeroed where it enters :math:`W_{hh}`. Default: 0
        zoneout: The probability of an element of :math:`h'` to stay that of :math:`h` (Krueger et al. 2016). Default: 0

    Inputs: input, hidden, seed
        - **input**: tensor containing input features
        - **hidden**: tensor containing the initial hidden state. Defaults to zero if not provided.
        - **seed** (keyword): an int or an int64 tensor of one element, which all masks follow from: row `b` of
          ``dropout_mask(seed, N, hidden_size, p)`` is that of the hidden mask for sequence `b`; with ``kind="recurrent"`` or
          ``"zoneout"``, of these. Or an int64 tensor of shape :math:`(N)`, one for each sequence, which then has row 0 of its
          own. The same seed in each call of a loop gives the same masks. By default one is drawn from PyTorch's generator of
          the input's device; evaluation draws none, and ignores one that is given.

    Outputs: h'
        - **h'** of shape `(batch, hidden_size)`: tensor containing the next hidden state for each element in the batch

    Shape:
        - input: :math:`(N, H_{in})` or :math:`(H_{in})` tensor containing input features where :math:`H_{in}` = `input_size`.
        - hidden: :math:`(N, H_{out})` or :math:`(H_{out})` tensor containing the initial hidden state where
          :math:`H_{out}` = `hidden_size`. Defaults to zero if not provided.
        - output: :math:`(N, H_{out})` or :math:`(H_{out})` tensor containing the next hidden state.

    Attributes:
        weight_ih: the learnable input-hidden weights, of shape `(hidden_size, input_size)`
        weight_hh: the learnable hidden-hidden weights, of shape `(hidden_size, hidden_size)`
        bias_ih: the learnable input-hidden bias, of shape `(hidden_size)`
        bias_hh: the learnable hidden-hidden bias, of shape `(hidden_size)`

    Raises:
        ValueError: a probability outside [0, 1] or not a number, here or when the attribute is set; in `forward`, tensors of
            neither 1 nor 2 dimensions, or a `seed` of another shape.
        RuntimeError: in `forward`, an unknown `nonlinearity`, or shapes that do not match.
        TypeError: an unknown argument; in `forward`, a `seed` that is neither an int nor an int64 tensor.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`

    Examples::

        >>> rnn = rnndrop.RNNCell(10, 20, hidden_dropout=0.2)
        >>> input = torch.randn(6, 3, 10)
        >>> hx = torch.randn(3, 20)
        >>> output = []
        >>> for i in range(6):
        ...     hx = rnn(input[i], hx)
        ...     output.append(hx)
    """

    _counterpart = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        **dropouts: Unpack[RNNCellOptions],
    ) -> None:
        dropping = checked_options("RNNCell.__init__()", dropouts, RNNCellOptions)
        super().__init__(input_size, hidden_size, bias, 1, device, dtype, dropping)
        self.nonlinearity = nonlinearity  # checked in forward, as nn.RNNCell does

    @property
    def cell(self) -> Cell:
        if self.nonlinearity not in NONLINEARITIES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return CELLS[rnn_mode(self.nonlinearity)]

    def forward(self, input: Tensor, hx: Tensor | None = None, seed: Seed = None) -> Tensor:
        if is_symbolic(input):
            return call_of(self, input, hx, seed)
        return self._call(input, None if hx is None else [hx], seed)[0]

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None, *, seed: Seed = None) -> Tensor: ...


class GRUCell(CellBase, GRUAttributes, Convertible[nn.GRUCell]):
    r"""A gated recurrent unit (GRU) cell with dropout inside the recurrence.

    .. math::

        \begin{aligned}
            r &= \sigma(W_{ir} x + b_{ir} + W_{hr} (d \odot h) + b_{hr}) \\
            z &= \sigma(W_{iz} x + b_{iz} + W_{hz} (d \odot h) + b_{hz}) \\
            n &= u \odot \tanh(W_{in} x + b_{in} + r \odot (W_{hn} (d \odot h) + b_{hn})) \\
            h' &= k \odot h + (1 - k) \odot m \odot ((1 - z) \odot n + z \odot h)
        \end{aligned}

    An element of the mask :math:`m` is 0 with probability :attr:`hidden_dropout` and else :math:`1/(1-p)`, one of :math:`d` is
    0 with probability :attr:`recurrent_dropout`, one of :math:`u` with probability :attr:`candidate_dropout`; an element of
    :math:`k` is 1 with probability :attr:`zoneout` and else 0. In evaluation, and where all are 0, this is
    :class:`torch.nn.GRUCell`; but zoneout is its expectation then: :math:`k` is the probability.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        hidden_dropout: The probability of an element of the new state to be zeroed. Default: 0
        recurrent_dropout: The probability of an element of :math:`h` to be zeroed where it enters the weights. Default: 0
        zoneout: The probability of an element of :math:`h'` to stay that of :math:`h` (Krueger et al. 2016). Default: 0
        candidate_dropout: The probability of an element of :math:`n` to be zeroed (Semeniuta et al. 2016). Default: 0

    Inputs: input, hidden, seed
        - **input**: tensor containing input features
        - **hidden**: tensor containing the initial hidden state. Defaults to zero if not provided.
        - **seed** (keyword): an int or an int64 tensor of one element, which all masks follow from: row `b` of
          ``dropout_mask(seed, N, hidden_size, p)`` is that of the hidden mask for sequence `b`; with another ``kind``, of that
          mask. Or an int64 tensor of shape :math:`(N)`, one for each sequence, which then has row 0 of its own. The same seed
          in each call of a loop gives the same masks. By default one is drawn from PyTorch's generator of the input's device;
          evaluation draws none, and ignores one that is given.

    Outputs: h'
        - **h'**: tensor containing the next hidden state for each element in the batch

    Shape:
        - input: :math:`(N, H_{in})` or :math:`(H_{in})` tensor containing input features where :math:`H_{in}` = `input_size`.
        - hidden: :math:`(N, H_{out})` or :math:`(H_{out})` tensor containing the initial hidden state where
          :math:`H_{out}` = `hidden_size`. Defaults to zero if not provided.
        - output: :math:`(N, H_{out})` or :math:`(H_{out})` tensor containing the next hidden state.

    Attributes:
        weight_ih: the learnable input-hidden weights, of shape `(3*hidden_size, input_size)`
        weight_hh: the learnable hidden-hidden weights, of shape `(3*hidden_size, hidden_size)`
        bias_ih: the learnable input-hidden bias, of shape `(3*hidden_size)`
        bias_hh: the learnable hidden-hidden bias, of shape `(3*hidden_size)`

    Raises:
        ValueError: a probability outside [0, 1] or not a number, here or when the attribute is set; in `forward`, tensors of
            neither 1 nor 2 dimensions, or a `seed` of another shape.
        RuntimeError: in `forward`, shapes that do not match.
        TypeError: an unknown argument; in `forward`, a `seed` that is neither an int nor an int64 tensor.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`

    Examples::

        >>> rnn = rnndrop.GRUCell(10, 20, candidate_dropout=0.2)
        >>> input = torch.randn(6, 3, 10)
        >>> hx = torch.randn(3, 20)
        >>> output = []
        >>> for i in range(6):
        ...     hx = rnn(input[i], hx)
        ...     output.append(hx)
    """

    _counterpart = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **dropouts: Unpack[GRUCellOptions],
    ) -> None:
        dropping = checked_options("GRUCell.__init__()", dropouts, GRUCellOptions)
        super().__init__(input_size, hidden_size, bias, 3, device, dtype, dropping)

    @property
    def cell(self) -> Cell:
        return CELLS["GRU"]

    def forward(self, input: Tensor, hx: Tensor | None = None, seed: Seed = None) -> Tensor:
        if is_symbolic(input):
            return call_of(self, input, hx, seed)
        return self._call(input, None if hx is None else [hx], seed)[0]

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None, *, seed: Seed = None) -> Tensor: ...


class LSTMCell(CellBase, LSTMAttributes, Convertible[nn.LSTMCell]):
    r"""A long short-term memory (LSTM) cell with dropout inside the recurrence.

    .. math::

        \begin{aligned}
            i &= \sigma(W_{ii} x + b_{ii} + W_{hi} (r \odot h) + b_{hi}) \\
            f &= \sigma(W_{if} x + b_{if} + W_{hf} (r \odot h) + b_{hf}) \\
            g &= u \odot \tanh(W_{ig} x + b_{ig} + W_{hg} (r \odot h) + b_{hg}) \\
            o &= \sigma(W_{io} x + b_{io} + W_{ho} (r \odot h) + b_{ho}) \\
            n &= d \odot (f \odot c + i \odot g) \\
            c' &= l \odot c + (1 - l) \odot n \\
            h' &= k \odot h + (1 - k) \odot m \odot o \odot \tanh(n)
        \end{aligned}

    An element of the mask :math:`m` is 0 with probability :attr:`hidden_dropout` and else :math:`1/(1-p)`; likewise :math:`r`
    with :attr:`recurrent_dropout`, :math:`d` with :attr:`cell_dropout` and :math:`u` with :attr:`candidate_dropout`. An element
    of :math:`k` is 1 with probability :attr:`zoneout` and else 0; likewise :math:`l` with :attr:`cell_zoneout`. In evaluation,
    and where all are 0, this is :class:`torch.nn.LSTMCell`; but zoneout is its expectation then: :math:`k` and :math:`l` are
    the probabilities.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        hidden_dropout: The probability of an element of the new hidden state to be zeroed. Default: 0
        recurrent_dropout: The probability of an element of :math:`h` to be zeroed where it enters the weights. Default: 0
        zoneout: The probability of an element of :math:`h'` to stay that of :math:`h` (Krueger et al. 2016). Default: 0
        cell_dropout: The probability of an element of the new cell state to be zeroed (Moon et al. 2015). Default: 0
        cell_zoneout: The probability of an element of :math:`c'` to stay that of :math:`c` (Krueger et al. 2016). Default: 0
        candidate_dropout: The probability of an element of :math:`g` to be zeroed (Semeniuta et al. 2016). Default: 0

    Inputs: input, (h_0, c_0), seed
        - **input**: tensor containing input features
        - **h_0**: tensor containing the initial hidden state. Defaults to zero if (h_0, c_0) is not provided.
        - **c_0**: tensor containing the initial cell state. Defaults to zero if (h_0, c_0) is not provided.
        - **seed** (keyword): an int or an int64 tensor of one element, which all masks follow from: row `b` of
          ``dropout_mask(seed, N, hidden_size, p)`` is that of the hidden mask for sequence `b`; with another ``kind``, of that
          mask. Or an int64 tensor of shape :math:`(N)`, one for each sequence, which then has row 0 of its own. The same seed
          in each call of a loop gives the same masks. By default one is drawn from PyTorch's generator of the input's device;
          evaluation draws none, and ignores one that is given.

    Outputs: (h_1, c_1)
        - **h_1**: tensor containing the next hidden state for each element in the batch
        - **c_1**: tensor containing the next cell state for each element in the batch

    Shape:
        - input: :math:`(N, H_{in})` or :math:`(H_{in})` tensor containing input features where :math:`H_{in}` = `input_size`.
        - h_0, c_0: :math:`(N, H_{out})` or :math:`(H_{out})` where :math:`H_{out}` = `hidden_size`.
        - h_1, c_1: the same.

    Attributes:
        weight_ih: the learnable input-hidden weights, of shape `(4*hidden_size, input_size)`
        weight_hh: the learnable hidden-hidden weights, of shape `(4*hidden_size, hidden_size)`
        bias_ih: the learnable input-hidden bias, of shape `(4*hidden_size)`
        bias_hh: the learnable hidden-hidden bias, of shape `(4*hidden_size)`

    Raises:
        ValueError: a probability outside [0, 1] or not a number, here or when the attribute is set; in `forward`, tensors of
            neither 1 nor 2 dimensions, or a `seed` of another shape.
        RuntimeError: in `forward`, shapes that do not match.
        TypeError: an unknown argument; in `forward`, a `seed` that is neither an int nor an int64 tensor.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`

    Examples::

        >>> rnn = rnndrop.LSTMCell(10, 20, recurrent_dropout=0.2)
        >>> input = torch.randn(2, 3, 10)  # (time_steps, batch, input_size)
        >>> hx = torch.randn(3, 20)
        >>> cx = torch.randn(3, 20)
        >>> output = []
        >>> for i in range(input.size()[0]):
        ...     hx, cx = rnn(input[i], (hx, cx))
        ...     output.append(hx)
    """

    _counterpart = nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **dropouts: Unpack[LSTMCellOptions],
    ) -> None:
        dropping = checked_options("LSTMCell.__init__()", dropouts, LSTMCellOptions)
        super().__init__(input_size, hidden_size, bias, 4, device, dtype, dropping)

    @property
    def cell(self) -> Cell:
        return CELLS["LSTM"]

    def forward(self, input: Tensor, hx: States | None = None, seed: Seed = None) -> States:
        if is_symbolic(input):
            return call_of(self, input, hx, seed)
        if isinstance(hx, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' must be tuple of Tensors, not Tensor")
        if hx is not None and len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        h, c = self._call(input, hx, seed)
        return h, c

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: States | None = None, *, seed: Seed = None) -> States: ...
