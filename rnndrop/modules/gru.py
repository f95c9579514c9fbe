"""GRU: torch.nn's, with dropout inside the recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from ..dropouts import GRUAttributes, GRUOptions, checked_options
from .base import RNNBase
from .convert import Convertible


class GRU(RNNBase, GRUAttributes, Convertible[nn.GRU]):
    r"""Apply a multi-layer gated recurrent unit (GRU) RNN to an input sequence, with dropout of every kind.

    For each element in the input sequence, each layer computes the following function:

    .. math::
        \begin{aligned}
            h' &= d_t \odot h_{t-1} \\
            r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h' + b_{hr}) \\
            z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h' + b_{hz}) \\
            n_t &= u_t \odot \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h' + b_{hn})) \\
            \tilde h_t &= m_t \odot ((1 - z_t) \odot n_t + z_t \odot h_{t-1}) \\
            h_t &= k_t \odot h_{t-1} + (1 - k_t) \odot \tilde h_t
        \end{aligned}

    where :math:`h_t` is the hidden state at time `t`, :math:`x_t` is the input at time `t`, :math:`h_{t-1}` is this layer's
    state at the step before, or the initial state, and :math:`r_t`, :math:`z_t`, :math:`n_t` are the reset and update gates and
    the candidate. The masks: an element of :math:`m_t` is 0 with probability :attr:`hidden_dropout` and else :math:`1/(1-p)`;
    likewise :math:`d_t` with :attr:`recurrent_dropout` and :math:`u_t` with :attr:`candidate_dropout`; :attr:`weight_dropout`
    drops elements of :math:`W_{hr}, W_{hz}, W_{hn}`. An element of :math:`k_t` is 1 with probability :attr:`zoneout` and else
    0, without a scale. Masks of the first form multiply the input (:attr:`input_dropout`), the output between layers
    (:attr:`dropout`) and the output (:attr:`output_dropout`).

    In evaluation, and where every probability is 0, this is :class:`torch.nn.GRU`, and PyTorch's own code runs; but zoneout is
    its expectation then: :math:`k_t` is the probability itself. Where nothing is dropped inside the recurrence (hidden,
    recurrent, candidate, zoneout), PyTorch's own code runs it in training too, cuDNN's on CUDA.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        num_layers: Number of recurrent layers. E.g., setting ``num_layers=2`` would mean stacking two GRUs together to form a
            `stacked GRU`, with the second GRU taking in outputs of the first GRU and computing the final results. Default: 1
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        batch_first: If ``True``, then the input and output tensors are provided as `(batch, seq, feature)` instead of
            `(seq, batch, feature)`. Note that this does not apply to hidden states. Default: ``False``
        dropout: If non-zero, introduces a dropout on the outputs of each GRU layer except the last layer, with dropout
            probability equal to :attr:`dropout`. Default: 0
        bidirectional: If ``True``, becomes a bidirectional GRU. Default: ``False``
        device, dtype: Of the parameters. float32, float64, bfloat16 or float16.
        input_dropout: The probability of an element of the input to be zeroed, the same elements for both directions (Zaremba
            et al. 2014, "Recurrent Neural Network Regularization"). Default: 0
        hidden_dropout: The probability of an element of the new state to be zeroed, for the output and for the next step.
            Default: 0
        recurrent_dropout: The probability of an element of :math:`h_{t-1}` to be zeroed where it enters the weights, one mask
            for all gates; the output is not dropped (Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout
            in Recurrent Neural Networks"). Default: 0
        output_dropout: The probability of an element of the last layer's output to be zeroed; `h_n` is not dropped (Pham et
            al. 2014, "Dropout Improves Recurrent Neural Networks for Handwriting Recognition"). Default: 0
        weight_dropout: The probability of an element of each hidden-hidden weight to be zeroed, the same elements for all steps
            and sequences of a call (DropConnect; Wan et al. 2013, "Regularization of Neural Networks using DropConnect"; Merity
            et al. 2017, "Regularizing and Optimizing LSTM Language Models"). The parameter itself, its gradient and the
            `state_dict` stay what they are in :class:`torch.nn.GRU`. Default: 0
        zoneout: The probability of an element of :math:`h_t` to stay :math:`h_{t-1}`, always drawn at every step (Krueger et
            al. 2016, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations"). Default: 0
        candidate_dropout: The probability of an element of the candidate :math:`n_t` to be zeroed: what the state has stored is
            not lost (Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss"). Default: 0
        mask_scope: ``'step'``, a fresh mask at every step, so that a dropped unit comes back at the next; or ``'sequence'``,
            the same mask at every step of a sequence (variational dropout; Gal and Ghahramani 2016). One word for all, or a
            mapping from kind to word: ``'hidden'``, ``'recurrent'``, ``'candidate'``, ``'between'`` (the layers:
            :attr:`dropout`), ``'input'``, ``'output'``; kinds not named are ``'step'``. Default: ``'step'``

    Inputs: input, hx, seed
        * **input**: tensor of shape :math:`(L, H_{in})` for unbatched input, :math:`(L, N, H_{in})` when
          ``batch_first=False`` or :math:`(N, L, H_{in})` when ``batch_first=True`` containing the features of the input
          sequence. The input can also be a packed variable length sequence. See
          :func:`torch.nn.utils.rnn.pack_padded_sequence` or :func:`torch.nn.utils.rnn.pack_sequence` for details.
        * **hx**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the initial hidden state for the input sequence batch.
          Defaults to zeros if not provided.
        * **seed** (keyword): an int or an int64 tensor of one element, which all masks of the call follow from, on every
          device alike. Or an int64 tensor of shape :math:`(N)`: sequence `b` has the masks that it would have alone with
          ``seed[b]``, whatever batch it stands in; :attr:`weight_dropout` takes ``seed[0]``. By default one is drawn from
          PyTorch's generator of the input's device. Evaluation, and training in which nothing is dropped, draw none and ignore
          one that is given.

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
          `(h_t)` from the last layer of the GRU, for each `t`, its :math:`m_t` and the mask of the output included. If a
          :class:`torch.nn.utils.rnn.PackedSequence` has been given as the input, the output will also be a packed sequence.
        * **h_n**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the final hidden state for each element in the batch. It
          shares no memory with the output.

    Attributes:
        weight_ih_l[k]: the learnable input-hidden weights of the k-th layer (W_ir|W_iz|W_in), of shape
            `(3*hidden_size, input_size)` for `k = 0`. Otherwise, the shape is `(3*hidden_size, num_directions * hidden_size)`
        weight_hh_l[k]: the learnable hidden-hidden weights of the k-th layer (W_hr|W_hz|W_hn), of shape
            `(3*hidden_size, hidden_size)`
        bias_ih_l[k]: the learnable input-hidden bias of the k-th layer (b_ir|b_iz|b_in), of shape `(3*hidden_size)`
        bias_hh_l[k]: the learnable hidden-hidden bias of the k-th layer (b_hr|b_hz|b_hn), of shape `(3*hidden_size)`
        dropout, input_dropout, hidden_dropout, recurrent_dropout, output_dropout, weight_dropout: as given
        zoneout, candidate_dropout, mask_scope: as given; all may be set between calls

    Raises:
        ValueError: a probability outside [0, 1] or not a number, or a `mask_scope` with an unknown word or a kind that has none
            (weight, zoneout), here or when the attribute is set; a size not above zero; a `proj_size`; in `forward`, an
            input of another dtype than the weights or of neither 2 nor 3 dimensions, or a `seed` of another shape.
        TypeError: a size that is no int or a flag that is no bool; an unknown argument; in `forward`, a `seed` that is neither
            an int nor an int64 tensor.
        RuntimeError: in `forward`, shapes of `input` or `hx` that do not match.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`, in the order of :class:`torch.nn.GRU`: the same generator state gives the
        same weights.

    .. note::
        For bidirectional GRUs, forward and backward are directions 0 and 1 respectively. Example of splitting the output
        layers when ``batch_first=False``: ``output.view(seq_len, batch, num_directions, hidden_size)``. Each direction has
        masks of its own, but for the input.

    .. note::
        ``batch_first`` argument is ignored for unbatched inputs.

    .. note::
        In training with dropout inside, the output of more than one step is kept for the backward pass, as by cuDNN: to change
        it in place (``nn.Dropout(inplace=True)``, ``relu_``) is an error in backward; change ``output.clone()``.

    .. note::
        ``torch.func`` works: ``vmap`` (each element of its axis has the masks that it has alone with its seed; without one,
        ``randomness="same"`` or ``"different"``), derivatives of any order, and forward mode, by a plain loop.

    .. note::
        The ranks of ``DistributedDataParallel`` that have the same seed draw the same masks, as with :class:`torch.nn.Dropout`.
        ``torch.manual_seed(seed + rank)`` after wrapping gives each its own.

    Examples::

        >>> rnn = rnndrop.GRU(10, 20, 2, recurrent_dropout=0.2, mask_scope="sequence")
        >>> input = torch.randn(5, 3, 10)
        >>> h0 = torch.randn(2, 3, 20)
        >>> output, hn = rnn(input, h0)
    """

    _counterpart = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int | None = None,
        **dropouts: Unpack[GRUOptions],
    ) -> None:
        if proj_size is not None:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        dropping = checked_options("GRU.__init__()", dropouts, GRUOptions, dropout=dropout)
        super().__init__("GRU", input_size, hidden_size, num_layers, bias, batch_first, bidirectional, device, dtype, dropping)
