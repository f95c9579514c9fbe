"""RNNCell: torch.nn's, with dropout of its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import _VF, Tensor, nn
from typing_extensions import Unpack

from ..autocast import autocasts, cast
from ..cell import CELLS, Weights, rnn_mode
from ..checks import check_dtype, check_tensors
from ..dispatch import mask_form
from ..dropouts import CellAttributes, RNNCellOptions, checked_options
from ..functional import NONLINEARITIES, Nonlinearity
from ..layer import MaskSource, recurrent_step, seed_tensor
from ..mask import check_seed
from ..steps import Steps
from .base import extra_repr, reset_parameters
from .convert import copied


class RNNCell(CellAttributes, nn.Module):
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

    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

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
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.nonlinearity = nonlinearity
        self._dropouts = checked_options("RNNCell.__init__()", dropouts, RNNCellOptions)
        self.weight_ih = nn.Parameter(torch.empty((hidden_size, input_size), device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty((hidden_size, hidden_size), device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            parameter = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @classmethod
    def from_torch(cls, cell: nn.RNNCell, **dropouts: Any) -> RNNCell:
        """A copy of an ``nn.RNNCell``, its weights, device, dtype and mode, with this module's dropouts.

        Args:
            cell: the ``nn.RNNCell`` to copy.
            dropouts: ``hidden_dropout``, ``recurrent_dropout``, ``zoneout``.

        Raises:
            TypeError: `cell` is no ``nn.RNNCell``, or an argument is unknown.
        """
        if not isinstance(cell, nn.RNNCell):
            raise TypeError(f"cell should be a torch.nn.RNNCell, got {type(cell).__name__}")
        return copied(cell, cls, **dropouts)

    def to_torch(self) -> nn.RNNCell:
        """A copy as ``nn.RNNCell``: the same function in evaluation, zoneout apart; without dropout in training."""
        return copied(self, nn.RNNCell)

    def reset_parameters(self) -> None:
        reset_parameters(self)

    def forward(self, input: Tensor, hx: Tensor | None = None, *, seed: int | Tensor | None = None) -> Tensor:
        if input.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if self.nonlinearity not in NONLINEARITIES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        if input.dim() == 1:
            return self._run(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), seed).squeeze(0)
        return self._run(input, hx, seed)

    if TYPE_CHECKING:
        __call__ = forward  # whose result nn.Module calls Any

    def _run(self, input: Tensor, hx: Tensor | None, seed: int | Tensor | None) -> Tensor:
        """The new state of a batched input."""
        if hx is None:
            hx = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
        if seed is not None:
            check_seed(seed, input.size(0))
        dropouts = self._dropouts if self.training else self._dropouts.in_evaluation()
        if not dropouts.inside:
            run = _VF.rnn_tanh_cell if self.nonlinearity == "tanh" else _VF.rnn_relu_cell
            return run(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        self._check_sizes(input, hx)
        weights = Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if autocasts(input.device.type):
            input, hx, weights = cast(input), cast(hx), weights.map(cast)
        cell = CELLS[rnn_mode(self.nonlinearity)]
        steps, form = Steps(1, input.size(0)), mask_form("auto", input.device)
        check_tensors(input, self.input_size, steps.batch, ["hx"], [hx], weights, cell)
        check_dtype("rnn_cell", input)
        masks = None
        if self.training:  # the seed is drawn after all that can be wrong
            masks = MaskSource(seed_tensor(seed, input.device, steps.batch), steps, form)
        return recurrent_step(input, [hx], weights, dropouts, masks, cell)[0]

    def _check_sizes(self, input: Tensor, hx: Tensor) -> None:
        if input.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}")
        if input.size(0) != hx.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}")
        if hx.size(1) != self.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {self.hidden_size}")

    def extra_repr(self) -> str:
        usual = {"bias": True, "nonlinearity": "tanh"}
        changed = {name: value for name in usual if (value := getattr(self, name)) != usual[name]}
        return extra_repr(self, changed | self._dropouts.changed())
