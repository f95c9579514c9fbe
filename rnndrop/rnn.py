"""RNN and RNNCell: torch.nn's modules, with dropout inside the recurrence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from .functional import MASK_SCOPES, NONLINEARITIES, autocasts, check_choice, seed_tensor
from .mask import check_probability, check_seed


class RNN(nn.Module):
    r"""Apply a multi-layer Elman RNN with :math:`\tanh` or :math:`\text{ReLU}` non-linearity and dropout inside the recurrence.

    For each element in the input sequence, each layer computes the following function:

    .. math::
        h_t = m_t \odot \tanh(x_t W_{ih}^T + b_{ih} + (r_t \odot h_{t-1}) W_{hh}^T + b_{hh})

    where :math:`h_t` is the hidden state at time `t`, :math:`x_t` is the input at time `t`, and :math:`h_{(t-1)}` is the hidden
    state of the previous layer at time `t-1` or the initial hidden state at time `0`. If :attr:`nonlinearity` is ``'relu'``,
    then :math:`\text{ReLU}` is used instead of :math:`\tanh`. An element of the mask :math:`m_t` is 0 with probability
    :attr:`hidden_dropout` and else :math:`1/(1-p)`, one of :math:`r_t` is 0 with probability :attr:`recurrent_dropout`. In
    evaluation, and where every probability is 0, this is :class:`torch.nn.RNN`, and PyTorch's own code runs.

    .. code-block:: python

        # Efficient implementation equivalent to the following with bidirectional=False
        rnn = rnndrop.RNN(input_size, hidden_size, num_layers, hidden_dropout=p, recurrent_dropout=q, dropout=d)
        params = dict(rnn.named_parameters())
        def mask(layer, p, kind):  # one row for each step t and sequence b
            return rnndrop.dropout_mask(seed, L * N, hidden_size, p, layer=layer, kind=kind).view(L, N, hidden_size)
        def forward(x, h):  # (L, N, H_in), (num_layers, N, H_out)
            h = list(h)
            for layer in range(num_layers):
                m, r = mask(layer, p, "hidden"), mask(layer, q, "recurrent")
                output = []
                for t in range(L):
                    h[layer] = m[t] * torch.tanh(
                        x[t] @ params[f"weight_ih_l{layer}"].T
                        + (r[t] * h[layer]) @ params[f"weight_hh_l{layer}"].T
                        + params[f"bias_ih_l{layer}"]
                        + params[f"bias_hh_l{layer}"]
                    )
                    output.append(h[layer])
                x = output = torch.stack(output)
                if layer < num_layers - 1:
                    x = x * mask(layer, d, "between")
            return output, torch.stack(h)

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        num_layers: Number of recurrent layers. E.g., setting ``num_layers=2`` would mean stacking two RNNs together to form a
            `stacked RNN`, with the second RNN taking in outputs of the first RNN and computing the final results. Default: 1
        nonlinearity: The non-linearity to use. Can be either ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        batch_first: If ``True``, then the input and output tensors are provided as `(batch, seq, feature)` instead of
            `(seq, batch, feature)`. Note that this does not apply to hidden states. Default: ``False``
        dropout: If non-zero, introduces a dropout on the outputs of each RNN layer except the last layer, with dropout
            probability equal to :attr:`dropout`, a fresh mask at every step. Default: 0
        bidirectional: If ``True``, becomes a bidirectional RNN. Default: ``False``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        hidden_dropout: The probability of an element of :math:`h_t` to be zeroed, for the output and for the next step.
            Default: 0
        recurrent_dropout: The probability of an element of :math:`h_{t-1}` to be zeroed where it enters :math:`W_{hh}`; the
            output is not dropped. Default: 0
        mask_scope: ``'step'``, a fresh mask at every step, so that a dropped unit comes back at the next; or ``'sequence'``,
            the same mask at every step of a sequence (variational dropout; Gal and Ghahramani 2016, "A Theoretically
            Grounded Application of Dropout in Recurrent Neural Networks"). Default: ``'step'``

    Inputs: input, hx, seed
        * **input**: tensor of shape :math:`(L, H_{in})` for unbatched input, :math:`(L, N, H_{in})` when
          ``batch_first=False`` or :math:`(N, L, H_{in})` when ``batch_first=True`` containing the features of the input
          sequence. The input can also be a packed variable length sequence. See
          :func:`torch.nn.utils.rnn.pack_padded_sequence` or :func:`torch.nn.utils.rnn.pack_sequence` for details.
        * **hx**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the initial hidden state for the input sequence batch.
          Defaults to zeros if not provided.
        * **seed** (keyword): an int or an int64 tensor of one element, which all masks of the call follow from, on every
          device alike. By default one is drawn from PyTorch's generator of the input's device; evaluation draws none.

        where:

        .. math::
            \begin{aligned}
                N ={} & \text{batch size} \\
                L ={} & \text{sequence length} \\
                D ={} & 2 \text{ if bidirectional=True otherwise } 1 \\
                H_{in} ={} & \text{input\_size} \\
                H_{out} ={} & \text{hidden\_size}
            \end{aligned}

    Outputs: output, h_n
        * **output**: tensor of shape :math:`(L, D * H_{out})` for unbatched input, :math:`(L, N, D * H_{out})` when
          ``batch_first=False`` or :math:`(N, L, D * H_{out})` when ``batch_first=True`` containing the output features
          `(h_t)` from the last layer of the RNN, for each `t`, its :math:`m_t` included. If a
          :class:`torch.nn.utils.rnn.PackedSequence` has been given as the input, the output will also be a packed sequence.
        * **h_n**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the final hidden state for each element in the batch. It
          shares no memory with the output.

    Attributes:
        weight_ih_l[k]: the learnable input-hidden weights of the k-th layer, of shape `(hidden_size, input_size)` for
            `k = 0`. Otherwise, the shape is `(hidden_size, num_directions * hidden_size)`
        weight_hh_l[k]: the learnable hidden-hidden weights of the k-th layer, of shape `(hidden_size, hidden_size)`
        bias_ih_l[k]: the learnable input-hidden bias of the k-th layer, of shape `(hidden_size)`
        bias_hh_l[k]: the learnable hidden-hidden bias of the k-th layer, of shape `(hidden_size)`
        hidden_dropout, recurrent_dropout, dropout, mask_scope: as given; may be set between calls

    Raises:
        ValueError: a probability outside [0, 1] or not a number; an unknown `nonlinearity` or `mask_scope`; a size not above
            zero; in `forward`, an input of another dtype than the weights or of neither 2 nor 3 dimensions.
        TypeError: a size that is no int or a flag that is no bool; in `forward`, a `seed` that is neither an int nor an int64
            tensor.
        RuntimeError: in `forward`, shapes of `input` or `hx` that do not match.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`, in the order of :class:`torch.nn.RNN`: the same generator state gives the
        same weights.

    .. note::
        For bidirectional RNNs, forward and backward are directions 0 and 1 respectively. Example of splitting the output
        layers when ``batch_first=False``: ``output.view(seq_len, batch, num_directions, hidden_size)``. Each direction has
        masks of its own.

    .. note::
        ``batch_first`` argument is ignored for unbatched inputs.

    .. note::
        In training with dropout inside, the output is kept for the backward pass, as by cuDNN: to change it in place is an
        error in backward. Reverse-mode derivatives of any order work, forward-mode and vectorised ones
        (``torch.func.jvp``, ``vmap``) do not.

    Examples::

        >>> rnn = rnndrop.RNN(10, 20, 2, hidden_dropout=0.2)
        >>> input = torch.randn(5, 3, 10)
        >>> h0 = torch.randn(2, 3, 20)
        >>> output, hn = rnn(input, h0)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hidden_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_scope: str = "step",
    ) -> None:
        super().__init__()
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        check_choice("mask_scope", mask_scope, MASK_SCOPES)
        _check_arguments(input_size, hidden_size, num_layers, bias, batch_first)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = check_probability("dropout", dropout)
        self.bidirectional = bidirectional
        self.hidden_dropout = check_probability("hidden_dropout", hidden_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.mask_scope = mask_scope
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self._weight_names = _weight_names(num_layers, bidirectional, bias)
        for names in self._weight_names:
            layer_input = input_size if names[0].startswith("weight_ih_l0") else hidden_size * self._directions
            shapes = [(hidden_size, layer_input), (hidden_size, hidden_size), (hidden_size,), (hidden_size,)]
            for name, shape in zip(names, shapes, strict=False):
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.flatten_parameters()
        self.reset_parameters()

    @classmethod
    def from_torch(cls, rnn: nn.RNN, **dropouts: Any) -> RNN:
        """A copy of an ``nn.RNN``, its weights, device, dtype and mode, with this module's dropouts.

        Args:
            rnn: the ``nn.RNN`` to copy.
            dropouts: ``hidden_dropout``, ``recurrent_dropout``, ``mask_scope``, ``dropout``.

        Raises:
            TypeError: `rnn` is no ``nn.RNN``, or an argument is unknown.
        """
        if not isinstance(rnn, nn.RNN):
            raise TypeError(f"rnn should be a torch.nn.RNN, got {type(rnn).__name__}")
        return _copy(rnn, cls, **{"dropout": rnn.dropout, **dropouts})

    def to_torch(self) -> nn.RNN:
        """A copy as ``nn.RNN``: the same function in evaluation, without the dropout inside the recurrence in training."""
        return _copy(self, nn.RNN, dropout=self.dropout)

    def reset_parameters(self) -> None:
        _reset_parameters(self)

    def flatten_parameters(self) -> None:
        """Lays the weights out in one block for cuDNN, which evaluation uses on CUDA; elsewhere does nothing."""
        nn.RNNBase.flatten_parameters(self)  # type: ignore[arg-type]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        return [[getattr(self, name) for name in names] for names in self._weight_names]

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, seed: int | Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, PackedSequence):
            if hx is not None and input.sorted_indices is not None:
                hx = hx.index_select(1, input.sorted_indices)
            output, h_n = self._run(input.data, hx, seed, input.batch_sizes)
            if input.unsorted_indices is not None:
                h_n = h_n.index_select(1, input.unsorted_indices)
            return PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices), h_n
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            kind = "unbatched" if input.dim() == 2 else "batched"
            raise RuntimeError(
                f"For {kind} {input.dim()}-D input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor"
            )
        if input.dim() == 3:
            return self._run(input, hx, seed)
        batch_dim = 0 if self.batch_first else 1
        output, h_n = self._run(input.unsqueeze(batch_dim), None if hx is None else hx.unsqueeze(1), seed)
        return output.squeeze(batch_dim), h_n.squeeze(1)

    def _run(
        self, input: Tensor, hx: Tensor | None, seed: int | Tensor | None, batch_sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(output, h_n) of a batched input or of packed data."""
        self._check_input(input, batch_sizes)
        batch = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if self.batch_first else 1)
        expected = (self.num_layers * self._directions, batch, self.hidden_size)
        if hx is None:
            hx = torch.zeros(expected, dtype=input.dtype, device=input.device)
        elif hx.size() != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.size())}")
        elif hx.dtype != input.dtype and not autocasts(input.device.type):
            raise RuntimeError(f"expected input and hx to have the same dtype, got {input.dtype} and {hx.dtype}")
        if seed is not None:
            check_seed(seed)
        for name in ("dropout", "hidden_dropout", "recurrent_dropout"):
            check_probability(name, getattr(self, name))
        drops_inside = self.hidden_dropout or self.recurrent_dropout
        if not self.training or not (drops_inside or (self.dropout and self.num_layers > 1)):
            return self._torch_rnn(input, hx, self._flat_weights, batch_sizes, self.num_layers, self.batch_first)
        batch_first = batch_sizes is None and self.batch_first
        x = input.transpose(0, 1) if batch_first else input
        if len(x) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        seed = seed_tensor(seed, x.device)  # after all that can be wrong
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        states: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = functional.dropout_between(x, self.dropout, seed, layer - 1, self._directions, sizes)
            x, h_n = self._layer(x, hx, seed, layer, batch_sizes, sizes)
            states += h_n
        return x.transpose(0, 1) if batch_first else x, _stack(states)

    def _layer(
        self, x: Tensor, hx: Tensor, seed: Tensor, layer: int, batch_sizes: Tensor | None, sizes: list[int] | None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The output of one layer and the last state (B, H) of each of its directions."""
        first = layer * self._directions
        numbers = range(first, first + self._directions)
        weights = self.all_weights[first : numbers.stop]
        if not (self.hidden_dropout or self.recurrent_dropout):
            output, h_n = self._torch_rnn(x, hx[first : numbers.stop], [*chain(*weights)], batch_sizes)
            return output, h_n.unbind(0)
        results = [
            functional.rnn_layer(
                x,
                hx[number],
                *weights[direction],
                nonlinearity=self.nonlinearity,
                hidden_dropout=self.hidden_dropout,
                recurrent_dropout=self.recurrent_dropout,
                mask_scope=self.mask_scope,
                seed=seed,
                layer=layer,
                direction=direction,
                batch_sizes=sizes,
            )
            for direction, number in enumerate(numbers)
        ]
        outputs, states = zip(*results, strict=True)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), states

    def _torch_rnn(
        self,
        x: Tensor,
        hx: Tensor,
        weights: Any,
        batch_sizes: Tensor | None,
        num_layers: int = 1,
        batch_first: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """PyTorch's own layers (cuDNN's on CUDA), without dropout."""
        run = {"tanh": _VF.rnn_tanh, "relu": _VF.rnn_relu}[self.nonlinearity]
        options = self.bias, num_layers, 0.0, self.training, self.bidirectional
        if batch_sizes is None:
            return run(x, hx, weights, *options, batch_first)
        return run(x, batch_sizes, hx, weights, *options)

    def _check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        dtype = self.weight_ih_l0.dtype
        if input.dtype != dtype and not autocasts(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dims = 3 if batch_sizes is None else 2
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}")

    def extra_repr(self) -> str:
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        return _extra_repr(self, {**usual, "hidden_dropout": 0, "recurrent_dropout": 0, "mask_scope": "step"})

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    # What flatten_parameters of nn.RNNBase reads.
    proj_size = 0

    @property
    def mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"

    @property
    def _flat_weights_names(self) -> list[str]:
        return [*chain(*self._weight_names)]

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def _apply(self, fn: Any, recurse: bool = True) -> RNN:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self


class RNNCell(nn.Module):
    r"""An Elman RNN cell with tanh or ReLU non-linearity and dropout of its hidden state.

    .. math::

        h' = m \odot \tanh(W_{ih} x + b_{ih}  +  W_{hh} (r \odot h) + b_{hh})

    If :attr:`nonlinearity` is `'relu'`, then ReLU is used in place of tanh. An element of the mask :math:`m` is 0 with
    probability :attr:`hidden_dropout` and else :math:`1/(1-p)`, one of :math:`r` is 0 with probability
    :attr:`recurrent_dropout`. In evaluation, and where both are 0, this is :class:`torch.nn.RNNCell`.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        nonlinearity: The non-linearity to use. Can be either ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        hidden_dropout: The probability of an element of :math:`h'` to be zeroed. Default: 0
        recurrent_dropout: The probability of an element of :math:`h` to be zeroed where it enters :math:`W_{hh}`. Default: 0

    Inputs: input, hidden, seed
        - **input**: tensor containing input features
        - **hidden**: tensor containing the initial hidden state. Defaults to zero if not provided.
        - **seed** (keyword): an int or an int64 tensor of one element, which both masks follow from: row `b` of
          ``dropout_mask(seed, N, hidden_size, p)`` is that of sequence `b`. By default one is drawn from PyTorch's generator
          of the input's device; evaluation draws none.

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
        ValueError: a probability outside [0, 1] or not a number; in `forward`, tensors of neither 1 nor 2 dimensions.
        RuntimeError: in `forward`, an unknown `nonlinearity`, or shapes that do not match.
        TypeError: in `forward`, a `seed` that is neither an int nor an int64 tensor.

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

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hidden_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.nonlinearity = nonlinearity
        self.hidden_dropout = check_probability("hidden_dropout", hidden_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.weight_ih = nn.Parameter(torch.empty((hidden_size, input_size), device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty((hidden_size, hidden_size), device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            parameter = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _reset_parameters(self)

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

    def _run(self, input: Tensor, hx: Tensor | None, seed: int | Tensor | None) -> Tensor:
        """The new state of a batched input."""
        if hx is None:
            hx = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
        if seed is not None:
            check_seed(seed)
        weights: Any = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        if not self.training or not (self.hidden_dropout or self.recurrent_dropout):
            return (_VF.rnn_tanh_cell if self.nonlinearity == "tanh" else _VF.rnn_relu_cell)(input, hx, *weights)
        self._check_sizes(input, hx)
        output, _ = functional.rnn_layer(
            input.unsqueeze(0),
            hx,
            *weights,
            nonlinearity=self.nonlinearity,
            hidden_dropout=self.hidden_dropout,
            recurrent_dropout=self.recurrent_dropout,
            seed=seed,
        )
        return output.squeeze(0)

    def _check_sizes(self, input: Tensor, hx: Tensor) -> None:
        if input.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}")
        if input.size(0) != hx.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}")
        if hx.size(1) != self.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {self.hidden_size}")

    def extra_repr(self) -> str:
        return _extra_repr(self, {"bias": True, "nonlinearity": "tanh", "hidden_dropout": 0, "recurrent_dropout": 0})


def _weight_names(num_layers: int, bidirectional: bool, bias: bool) -> list[list[str]]:
    """The names of the parameters of each layer and direction, in nn.RNN's order."""
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bias
    ends = [f"_l{layer}{end}" for layer in range(num_layers) for end in ("", "_reverse")[: 1 + bidirectional]]
    return [[kind + end for kind in kinds] for end in ends]


def _stack(states: list[Tensor]) -> Tensor:
    return states[0].unsqueeze(0) if len(states) == 1 else torch.stack(states)


def _reset_parameters(rnn: RNN | RNNCell) -> None:
    bound = 1.0 / math.sqrt(rnn.hidden_size) if rnn.hidden_size > 0 else 0.0
    for weight in rnn.parameters():
        nn.init.uniform_(weight, -bound, bound)


def _extra_repr(rnn: RNN | RNNCell, usual: dict[str, Any]) -> str:
    """The sizes, and what is not as usual."""
    given = {name: getattr(rnn, name) for name in usual}
    changed = [f"{name}={value}" for name, value in given.items() if value != usual[name]]
    return ", ".join([str(rnn.input_size), str(rnn.hidden_size), *changed])


def _check_arguments(input_size: Any, hidden_size: Any, num_layers: Any, bias: Any, batch_first: Any) -> None:
    typed: list[tuple[str, Any, type]] = [("bias", bias, bool), ("batch_first", batch_first, bool)]
    typed += [("input_size", input_size, int), ("hidden_size", hidden_size, int)]
    for name, value, kind in typed:
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero")


def _copy(rnn: Any, kind: type, **dropouts: Any) -> Any:
    """A `kind` with the configuration, weights and mode of `rnn`."""
    weight = rnn.weight_ih_l0
    names = "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "bidirectional"
    with warnings.catch_warnings():  # about dropout of a single layer: the original has given it
        warnings.simplefilter("ignore")
        copy = kind(**{name: getattr(rnn, name) for name in names}, device=weight.device, dtype=weight.dtype, **dropouts)
    for name, mine in copy.named_parameters():  # by name: theirs may be shared or parametrised
        theirs = getattr(rnn, name)
        mine.data.copy_(theirs.detach())
        mine.requires_grad_(theirs.requires_grad)
    return copy.train(rnn.training)
