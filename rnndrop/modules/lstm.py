"""LSTM: torch.nn's, with dropout inside the recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack

from ..dropouts import LSTMAttributes, LSTMOptions, checked_options
from .base import Call, RNNBase
from .convert import Convertible
from .leaf import call_of, is_symbolic

Seed = int | Tensor | None
States = tuple[Tensor, Tensor]


class LSTM(RNNBase, LSTMAttributes, Convertible[nn.LSTM]):
    r"""Apply a multi-layer long short-term memory (LSTM) RNN to an input sequence, with dropout of every kind.

    For each element in the input sequence, each layer computes the following function:

    .. math::
        \begin{aligned}
            h' &= r_t \odot h_{t-1} \\
            i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h' + b_{hi}) \\
            f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h' + b_{hf}) \\
            g_t &= u_t \odot \tanh(W_{ig} x_t + b_{ig} + W_{hg} h' + b_{hg}) \\
            o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h' + b_{ho}) \\
            c' &= d_t \odot (f_t \odot c_{t-1} + i_t \odot g_t) \\
            c_t &= l_t \odot c_{t-1} + (1 - l_t) \odot c' \\
            h_t &= k_t \odot h_{t-1} + (1 - k_t) \odot m_t \odot o_t \odot \tanh(c')
        \end{aligned}

    where :math:`h_t` is the hidden state at time `t`, :math:`c_t` is the cell state at time `t`, :math:`x_t` is the input at
    time `t`, :math:`h_{t-1}` is the hidden state of the layer at the step before or the initial hidden state, and :math:`i_t`,
    :math:`f_t`, :math:`g_t`, :math:`o_t` are the input, forget, cell, and output gates, respectively. The masks: an element of
    :math:`m_t` is 0 with probability :attr:`hidden_dropout` and else :math:`1/(1-p)`; likewise :math:`r_t` with
    :attr:`recurrent_dropout`, :math:`d_t` with :attr:`cell_dropout` and :math:`u_t` with :attr:`candidate_dropout`;
    :attr:`weight_dropout` drops elements of :math:`W_{hi}, W_{hf}, W_{hg}, W_{ho}`. An element of :math:`k_t` is 1 with
    probability :attr:`zoneout` and else 0, without a scale; likewise :math:`l_t` with :attr:`cell_zoneout`. Masks of the first
    form multiply the input (:attr:`input_dropout`), the output between layers (:attr:`dropout`) and the output
    (:attr:`output_dropout`).

    In evaluation, and where every probability is 0, this is :class:`torch.nn.LSTM`, and PyTorch's own code runs; but zoneout is
    its expectation then: :math:`k_t` and :math:`l_t` are the probabilities themselves. Where nothing is dropped inside the
    recurrence (hidden, recurrent, cell, candidate, both zoneouts), PyTorch's own code runs it in training too, cuDNN's on CUDA.

    If ``proj_size > 0``, the hidden state is projected: :math:`h_t` is made of :math:`W_{hr} (o_t \odot \tanh(c'))` instead,
    with `proj_size` features, and the masks of the hidden state are as wide (Sak et al. 2014, https://arxiv.org/abs/1402.1128).
    With dropout inside the recurrence a plain loop of PyTorch's operations runs it.

    Args:
        input_size: The number of expected features in the input `x`
        hidden_size: The number of features in the hidden state `h`
        num_layers: Number of recurrent layers. E.g., setting ``num_layers=2`` would mean stacking two LSTMs together to form a
            `stacked LSTM`, with the second LSTM taking in outputs of the first LSTM and computing the final results. Default: 1
        bias: If ``False``, then the layer does not use bias weights `b_ih` and `b_hh`. Default: ``True``
        batch_first: If ``True``, then the input and output tensors are provided as `(batch, seq, feature)` instead of
            `(seq, batch, feature)`. Note that this does not apply to hidden or cell states. Default: ``False``
        dropout: If non-zero, introduces a dropout on the outputs of each LSTM layer except the last layer, with dropout
            probability equal to :attr:`dropout`. Default: 0
        bidirectional: If ``True``, becomes a bidirectional LSTM. Default: ``False``
        proj_size: If ``> 0``, will use LSTM with projections of corresponding size. Default: 0
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
            `state_dict` stay what they are in :class:`torch.nn.LSTM`. Default: 0
        zoneout: The probability of an element of :math:`h_t` to stay :math:`h_{t-1}`, always drawn at every step (Krueger et
            al. 2016, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations"). Default: 0
        cell_dropout: The probability of an element of the new cell state to be zeroed, kept and shown (Moon et al. 2015,
            "RNNDROP: A Novel Dropout for RNNs in ASR", with one mask a sequence). Default: 0
        cell_zoneout: The probability of an element of :math:`c_t` to stay :math:`c_{t-1}`, always drawn at every step; the new
            hidden state is made of the new cell state (Krueger et al. 2016). Default: 0
        candidate_dropout: The probability of an element of the candidate :math:`g_t` to be zeroed: what the state has stored is
            not lost (Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss"). Default: 0
        mask_scope: ``'step'``, a fresh mask at every step, so that a dropped unit comes back at the next; or ``'sequence'``,
            the same mask at every step of a sequence (variational dropout; Gal and Ghahramani 2016). One word for all, or a
            mapping from kind to word: ``'hidden'``, ``'recurrent'``, ``'cell'``, ``'candidate'``, ``'between'`` (the layers:
            :attr:`dropout`), ``'input'``, ``'output'``; kinds not named are ``'step'``. Default: ``'step'``

    Inputs: input, (h_0, c_0), seed
        * **input**: tensor of shape :math:`(L, H_{in})` for unbatched input, :math:`(L, N, H_{in})` when
          ``batch_first=False`` or :math:`(N, L, H_{in})` when ``batch_first=True`` containing the features of the input
          sequence. The input can also be a packed variable length sequence. See
          :func:`torch.nn.utils.rnn.pack_padded_sequence` or :func:`torch.nn.utils.rnn.pack_sequence` for details.
        * **h_0**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the initial hidden state for each element in the input
          sequence. Defaults to zeros if (h_0, c_0) is not provided.
        * **c_0**: tensor of shape :math:`(D * \text{num\_layers}, H_{cell})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{cell})` containing the initial cell state for each element in the input
          sequence. Defaults to zeros if (h_0, c_0) is not provided.
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
                H_{cell} ={} & \text{hidden\_size} \\
                H_{out} ={} & \text{proj\_size if } \text{proj\_size}>0 \text{ otherwise hidden\_size}
            \end{aligned}

    Outputs: output, (h_n, c_n)
        * **output**: tensor of shape :math:`(L, D * H_{out})` for unbatched input, :math:`(L, N, D * H_{out})` when
          ``batch_first=False`` or :math:`(N, L, D * H_{out})` when ``batch_first=True`` containing the output features
          `(h_t)` from the last layer of the LSTM, for each `t`, its :math:`m_t` and the mask of the output included. If a
          :class:`torch.nn.utils.rnn.PackedSequence` has been given as the input, the output will also be a packed sequence.
        * **h_n**: tensor of shape :math:`(D * \text{num\_layers}, H_{out})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{out})` containing the final hidden state for each element in the batch. It
          shares no memory with the output.
        * **c_n**: tensor of shape :math:`(D * \text{num\_layers}, H_{cell})` for unbatched input or
          :math:`(D * \text{num\_layers}, N, H_{cell})` containing the final cell state for each element in the batch.

    Attributes:
        weight_ih_l[k]: the learnable input-hidden weights of the k-th layer (W_ii|W_if|W_ig|W_io), of shape
            `(4*hidden_size, input_size)` for `k = 0`. Otherwise, the shape is `(4*hidden_size, num_directions * H_out)`
        weight_hh_l[k]: the learnable hidden-hidden weights of the k-th layer (W_hi|W_hf|W_hg|W_ho), of shape
            `(4*hidden_size, H_out)`
        bias_ih_l[k]: the learnable input-hidden bias of the k-th layer (b_ii|b_if|b_ig|b_io), of shape `(4*hidden_size)`
        bias_hh_l[k]: the learnable hidden-hidden bias of the k-th layer (b_hi|b_hf|b_hg|b_ho), of shape `(4*hidden_size)`
        weight_hr_l[k]: the learnable projection weights of the k-th layer, of shape `(proj_size, hidden_size)`. Only present
            when ``proj_size > 0`` was specified
        dropout, input_dropout, hidden_dropout, recurrent_dropout, output_dropout, weight_dropout: as given
        zoneout, cell_dropout, cell_zoneout, candidate_dropout, mask_scope: as given; all may be set between calls

    Raises:
        ValueError: a probability outside [0, 1] or not a number, or a `mask_scope` with an unknown word or a kind that has none
            (weight, both zoneouts), here or when the attribute is set; a size not above zero; a `proj_size` below zero or not
            below `hidden_size`; in `forward`, an input of another dtype than the weights or of neither 2 nor 3 dimensions, or a
            `seed` of another shape.
        TypeError: a size that is no int or a flag that is no bool; an unknown argument; in `forward`, a `seed` that is neither
            an int nor an int64 tensor.
        RuntimeError: in `forward`, shapes of `input` or `hx` that do not match.

    .. note::
        All the weights and biases are initialized from :math:`\mathcal{U}(-\sqrt{k}, \sqrt{k})` where
        :math:`k = \frac{1}{\text{hidden\_size}}`, in the order of :class:`torch.nn.LSTM`: the same generator state gives the
        same weights.

    .. note::
        For bidirectional LSTMs, forward and backward are directions 0 and 1 respectively. Example of splitting the output
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

        >>> rnn = rnndrop.LSTM(10, 20, 2, weight_dropout=0.5, cell_zoneout=0.1)
        >>> input = torch.randn(5, 3, 10)
        >>> h0 = torch.randn(2, 3, 20)
        >>> c0 = torch.randn(2, 3, 20)
        >>> output, (hn, cn) = rnn(input, (h0, c0))
    """

    _counterpart = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **dropouts: Unpack[LSTMOptions],
    ) -> None:
        dropping = checked_options("LSTM.__init__()", dropouts, LSTMOptions, dropout=dropout)
        options = bias, batch_first, bidirectional, device, dtype, dropping, proj_size
        super().__init__("LSTM", input_size, hidden_size, num_layers, *options)

    @overload  # type: ignore[override]
    def forward(self, input: Tensor, hx: States | None = None, seed: Seed = None) -> tuple[Tensor, States]: ...

    @overload
    def forward(self, input: PackedSequence, hx: States | None = None, seed: Seed = None) -> tuple[PackedSequence, States]: ...

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None, seed: Seed = None
    ) -> tuple[Tensor | PackedSequence, States]:
        if is_symbolic(input):
            return call_of(self, input, hx, seed)
        given: Any = hx
        states: Any = None if given is None else (given[0], given[1])
        if isinstance(given, Tensor):  # both in one
            states = given[:2]
        elif given is not None and len(given) > 2:
            raise RuntimeError("lstm expects two hidden states")
        output, (h_n, c_n) = self._run(input, states, seed)
        return output, (h_n, c_n)

    if TYPE_CHECKING:
        __call__: Call[States]  # type: ignore[assignment]

    # What heirs of nn.LSTM call and override.

    def check_forward_args(self, input: Tensor, hidden: States, batch_sizes: Tensor | None) -> None:
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for number, (state, size) in enumerate(zip(hidden, expected, strict=True)):
            self.check_hidden_size(state, size, f"Expected hidden[{number}] size {{}}, got {{}}")

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        return self._sizes(self._batch(input, batch_sizes))[1]

    def permute_hidden(self, hx: States, permutation: Tensor | None) -> States:
        return hx if permutation is None else (hx[0].index_select(1, permutation), hx[1].index_select(1, permutation))
