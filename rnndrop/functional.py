"""The layers and the pointwise dropouts as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from . import dispatch
from .autocast import autocasts, cast
from .cell import CELLS, Cell, Weights, rnn_mode
from .checks import check_dtype, check_gates, check_length, check_tensors
from .dropouts import Dropouts, GRUOptions, LSTMOptions, RNNOptions, check_choice, checked_options
from .layer import MaskSource, outside_dropout, recurrent_layer, resolved, seed_tensor, weight_dropout
from .mask import check_probability, check_seed, stream
from .ops import gated_cell as gated_cell_operator
from .ops import tanh_dropout as tanh_dropout_operator
from .steps import Steps, checked_batch_sizes

Nonlinearity = Literal["tanh", "relu"]
NONLINEARITIES: tuple[str, ...] = get_args(Nonlinearity)
PointwiseStrategy = Literal["auto", "cpu", "triton", "reference"]
POINTWISE_STRATEGIES: tuple[str, ...] = get_args(PointwiseStrategy)
GatedStrategy = Literal["auto", "triton", "reference"]
GATED_STRATEGIES: tuple[str, ...] = get_args(GatedStrategy)


def tanh_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | Tensor | None = None,
    strategy: PointwiseStrategy = "auto",
) -> Tensor:
    r"""``dropout(tanh(x))`` in one pass.

    .. math::
        y = m \odot \tanh(x), \quad m_i \in \{0, 1/(1-p)\}

    Args:
        x: tensor of any shape; its rows, all dimensions but the last, number the rows of the mask.
        p: probability of an element to be zeroed. Default: 0.5
        training: drop if ``True``, else return ``tanh(x)``. Default: ``True``
        seed: an int or an int64 tensor of one element. ``None`` draws one from the generator of x's device. The mask is
            ``rnndrop.dropout_mask(seed, rows, columns, p)``.
        strategy: ``"cpu"``, ``"triton"`` (one kernel, masks made in registers), ``"reference"`` (plain PyTorch operations) or
            ``"auto"``, by x's device. Default: ``"auto"``

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ValueError: p outside [0, 1] or not a number; an unknown strategy, or one that cannot run; a seed tensor of more than
            one element.
        TypeError: a seed that is neither an int nor an int64 tensor.

    Examples::

        >>> y = rnndrop.functional.tanh_dropout(torch.randn(3, 5), p=0.2)
    """
    p = check_probability("p", p)
    check_choice("strategy", strategy, POINTWISE_STRATEGIES)
    if seed is not None:
        check_seed(seed)
    if not training or p == 0:
        return torch.tanh(x)
    if not (x.is_floating_point() or x.is_complex()):
        x = x.to(torch.get_default_dtype())  # as torch.tanh does
    check_dtype("tanh_dropout", x)
    if x.numel() == 0:
        return torch.tanh(x)
    if not torch.compiler.is_compiling():  # then the operator checks, where it runs
        dispatch.check_pointwise(strategy, x)
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    seed = seed_tensor(seed, x.device)
    return tanh_dropout_operator.tanh_dropout(rows, seed, p, stream("hidden"), strategy).view(x.shape)


def lstm_cell_dropout(
    input_gates: Tensor,
    hidden_gates: Tensor,
    c: Tensor,
    *,
    hidden_dropout: float = 0.0,
    cell_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
    strategy: GatedStrategy = "auto",
) -> tuple[Tensor, Tensor]:
    r"""What an LSTM makes of its gates in one step, with dropout, for a loop of your own.

    .. math::
        \begin{aligned}
            i, f, g, o &= a^x + a^h \\
            c' &= d \odot (\sigma(f) \odot c + \sigma(i) \odot u \odot \tanh(g)) \\
            h' &= m \odot \sigma(o) \odot \tanh(c')
        \end{aligned}

    Args:
        input_gates: :math:`a^x`, (B, 4*H): the product with the input, and its bias.
        hidden_gates: :math:`a^h`, (B, 4*H): the product with the state, and its bias.
        c: (B, H), the old cell state.
        hidden_dropout, cell_dropout, candidate_dropout: probability of an element of m, d and u to be 0; it is
            :math:`1/(1-p)` else. Default: 0
        training: drop if ``True``. Default: ``True``
        seed: an int or an int64 tensor of one element. ``None`` draws one from the generator of the input's device. The masks
            are ``rnndrop.dropout_mask(seed, B, H, p, kind=...)`` of the kinds ``"hidden"``, ``"cell"`` and ``"candidate"``.
        strategy: ``"triton"`` (one kernel, masks made in registers), ``"reference"`` (plain PyTorch operations) or ``"auto"``,
            by the input's device. Default: ``"auto"``

    Returns:
        h' and c', (B, H) each.

    Raises:
        ValueError: a probability outside [0, 1] or not a number; an unknown strategy, or one that cannot run; a seed tensor of
            more than one element.
        RuntimeError: shapes, dtypes or devices that do not match.
        TypeError: a seed that is neither an int nor an int64 tensor.

    Examples::

        >>> h, c = torch.zeros(2, 3, 8)
        >>> input_gates, w_hh = torch.randn(3, 32), torch.randn(32, 8)
        >>> h, c = rnndrop.functional.lstm_cell_dropout(input_gates, h @ w_hh.t(), c, cell_dropout=0.2)
    """
    rates = dict(hidden_dropout=hidden_dropout, cell_dropout=cell_dropout, candidate_dropout=candidate_dropout)
    h, c = _gated_cell("lstm_cell_dropout", "LSTM", input_gates, hidden_gates, c, rates, training, seed, strategy)
    return h, c


def gru_cell_dropout(
    input_gates: Tensor,
    hidden_gates: Tensor,
    h: Tensor,
    *,
    hidden_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
    strategy: GatedStrategy = "auto",
) -> Tensor:
    r"""What a GRU makes of its gates in one step, with dropout, for a loop of your own.

    .. math::
        \begin{aligned}
            r, z &= \sigma(a^x_r + a^h_r), \sigma(a^x_z + a^h_z) \\
            n &= \tanh(a^x_n + r \odot a^h_n) \\
            h' &= m \odot ((1 - z) \odot u \odot n + z \odot h)
        \end{aligned}

    Args:
        input_gates: :math:`a^x`, (B, 3*H): the product with the input, and its bias.
        hidden_gates: :math:`a^h`, (B, 3*H): the product with the state, and its bias.
        h: (B, H), the old state.
        hidden_dropout, candidate_dropout: probability of an element of m and u to be 0; it is :math:`1/(1-p)` else.
            Default: 0
        training, seed, strategy: as of :func:`lstm_cell_dropout`.

    Returns:
        h', (B, H).

    Raises:
        ValueError, RuntimeError, TypeError: as :func:`lstm_cell_dropout`.

    Examples::

        >>> h, w_hh = torch.zeros(3, 8), torch.randn(24, 8)
        >>> h = rnndrop.functional.gru_cell_dropout(torch.randn(3, 24), h @ w_hh.t(), h, hidden_dropout=0.2)
    """
    rates = dict(hidden_dropout=hidden_dropout, cell_dropout=0.0, candidate_dropout=candidate_dropout)
    (h,) = _gated_cell("gru_cell_dropout", "GRU", input_gates, hidden_gates, h, rates, training, seed, strategy)
    return h


def _gated_cell(
    function: str,
    cell: str,
    input_gates: Tensor,
    hidden_gates: Tensor,
    before: Tensor,
    probabilities: Mapping[str, float],
    training: bool,
    seed: int | Tensor | None,
    strategy: str,
) -> Sequence[Tensor]:
    """The states after a step; `probabilities` in the order of the operator's kinds."""
    rates = [check_probability(name, p) * training for name, p in probabilities.items()]
    check_choice("strategy", strategy, GATED_STRATEGIES)
    if seed is not None:
        check_seed(seed)
    if autocasts(before.device.type):
        input_gates, hidden_gates, before = cast(input_gates), cast(hidden_gates), cast(before)
    check_gates(before, ["input_gates", "hidden_gates"], [input_gates, hidden_gates], CELLS[cell])
    check_dtype(function, before)
    if not torch.compiler.is_compiling():  # then the operator checks, where it runs
        dispatch.check_pointwise(strategy, before)
    drawn = seed_tensor(seed, before.device) if any(rates) else None
    return gated_cell_operator.gated_cell(input_gates, hidden_gates, before, drawn, rates, cell, strategy)


def rnn_layer(
    input: Tensor,
    h_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: Nonlinearity = "tanh",
    seed: int | Tensor | None = None,
    layer: int = 0,
    direction: int = 0,
    strategy: dispatch.StrategyName = "auto",
    batch_sizes: Sequence[int] | Tensor | None = None,
    **dropouts: Unpack[RNNOptions],
) -> tuple[Tensor, Tensor]:
    r"""One Elman layer in one direction in training, with dropout of every kind.

    .. math::
        \begin{aligned}
            a_t &= W_{ih} (i_t \odot x_t) + b_{ih} + (w \odot W_{hh}) (r_t \odot h_{t-1}) + b_{hh} \\
            h_t &= z_t \odot h_{t-1} + (1 - z_t) \odot m_t \odot f(a_t), \qquad y_t = o_t \odot h_t
        \end{aligned}

    Args:
        input: (T, B, I), or the (N, I) data of a packed sequence, with `batch_sizes`.
        h_0: (B, H), the initial state.
        w_ih, w_hh: (H, I) and (H, H).
        b_ih, b_hh: of shape (H), or ``None``.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        seed: an int or an int64 tensor of one element, or of shape (B), one for each sequence: it has the masks that it would
            have alone; `weight_dropout` takes the first. ``None`` draws one from the generator of the input's device.
        layer, direction: numbers that the masks depend on; those of the input on `layer` only. Direction 1 runs from the last
            step to the first.
        strategy: ``"cpu"``, ``"resident"``, ``"cooperative"`` or ``"stepwise"`` (Triton kernels), ``"reference"`` (the plain
            loop) or ``"auto"``, by device, shape and dtype. Default: ``"auto"``
        batch_sizes: the rows of each step of packed data, never increasing; ints or an int64 tensor.
        input_dropout: probability of an element of x_t to be zeroed. Default: 0
        hidden_dropout: probability of an element of f(a_t) to be zeroed, for the output and the next step. Default: 0
        recurrent_dropout: probability of an element of h_{t-1} to be zeroed where it enters W_hh. Default: 0
        output_dropout: probability of an element of the output to be zeroed, but not of h_n. Default: 0
        weight_dropout: probability of an element of W_hh to be zeroed, for all steps and sequences. Default: 0
        zoneout: probability of an element of h_t to stay that of h_{t-1}. Default: 0
        mask_scope: ``"step"``, a fresh mask at every step, or ``"sequence"``, the same at all; or a mapping from kind
            (``"input"``, ``"hidden"``, ``"recurrent"``, ``"output"``) to one of these. Sources: :class:`rnndrop.RNN`.
            Default: ``"step"``

    Returns:
        output, (T, B, H) or (N, H), and h_n, (B, H), of the input's dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: a probability outside [0, 1]; an unknown nonlinearity, mask scope or strategy; a strategy asked for by
            name that cannot run, with the reason; a seed tensor of another shape.
        RuntimeError: shapes, dtypes or devices that do not match.
        TypeError: a seed that is neither an int nor an int64 tensor; an unknown argument.
    """
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    dropping = checked_options("rnn_layer()", dropouts, RNNOptions)
    weights, where = Weights(w_ih, w_hh, b_ih, b_hh), (seed, layer, direction, strategy, batch_sizes)
    output, (h_n,) = _layer("rnn_layer", CELLS[rnn_mode(nonlinearity)], input, [h_0], weights, dropping, *where)
    return output, h_n


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    layer: int = 0,
    direction: int = 0,
    strategy: dispatch.StrategyName = "auto",
    batch_sizes: Sequence[int] | Tensor | None = None,
    **dropouts: Unpack[LSTMOptions],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""One LSTM layer in one direction in training, with dropout of every kind: the equations of :class:`rnndrop.LSTM`.

    Args:
        input: (T, B, I), or the (N, I) data of a packed sequence, with `batch_sizes`.
        h_0, c_0: (B, H) each, the initial states.
        w_ih, w_hh: (4*H, I) and (4*H, H), the gates in PyTorch's order.
        b_ih, b_hh: (4*H) or ``None``.
        seed, layer, direction, batch_sizes: as of :func:`rnn_layer`.
        strategy: as of :func:`rnn_layer`. Default: ``"auto"``
        input_dropout, hidden_dropout, recurrent_dropout, output_dropout, weight_dropout, zoneout, mask_scope: as of
            :func:`rnn_layer`.
        cell_dropout, cell_zoneout, candidate_dropout: as of :class:`rnndrop.LSTM`. Default: 0

    Returns:
        output, (T, B, H) or (N, H), and (h_n, c_n), (B, H) each, of the input's dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError, RuntimeError, TypeError: as :func:`rnn_layer`.
    """
    dropping = checked_options("lstm_layer()", dropouts, LSTMOptions)
    weights, where = Weights(w_ih, w_hh, b_ih, b_hh), (seed, layer, direction, strategy, batch_sizes)
    output, (h_n, c_n) = _layer("lstm_layer", CELLS["LSTM"], input, [h_0, c_0], weights, dropping, *where)
    return output, (h_n, c_n)


def gru_layer(
    input: Tensor,
    h_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    layer: int = 0,
    direction: int = 0,
    strategy: dispatch.StrategyName = "auto",
    batch_sizes: Sequence[int] | Tensor | None = None,
    **dropouts: Unpack[GRUOptions],
) -> tuple[Tensor, Tensor]:
    r"""One GRU layer in one direction in training, with dropout of every kind: the equations of :class:`rnndrop.GRU`.

    Args:
        input: (T, B, I), or the (N, I) data of a packed sequence, with `batch_sizes`.
        h_0: (B, H), the initial state.
        w_ih, w_hh: (3*H, I) and (3*H, H), the gates in PyTorch's order.
        b_ih, b_hh: (3*H) or ``None``.
        seed, layer, direction, batch_sizes: as of :func:`rnn_layer`.
        strategy: as of :func:`rnn_layer`. Default: ``"auto"``
        input_dropout, hidden_dropout, recurrent_dropout, output_dropout, weight_dropout, zoneout, mask_scope: as of
            :func:`rnn_layer`.
        candidate_dropout: as of :class:`rnndrop.GRU`. Default: 0

    Returns:
        output, (T, B, H) or (N, H), and h_n, (B, H), of the input's dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError, RuntimeError, TypeError: as :func:`rnn_layer`.
    """
    dropping = checked_options("gru_layer()", dropouts, GRUOptions)
    weights, where = Weights(w_ih, w_hh, b_ih, b_hh), (seed, layer, direction, strategy, batch_sizes)
    output, (h_n,) = _layer("gru_layer", CELLS["GRU"], input, [h_0], weights, dropping, *where)
    return output, h_n


def _layer(
    function: str,
    cell: Cell,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Weights,
    dropouts: Dropouts,
    seed: int | Tensor | None,
    layer: int,
    direction: int,
    strategy: str,
    batch_sizes: Sequence[int] | Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The output and the states at the end of one layer in one direction."""
    check_choice("strategy", strategy, dispatch.STRATEGIES)
    stream("hidden", layer, direction)
    if autocasts(input.device.type):
        input, states, weights = cast(input), [cast(state) for state in states], weights.map(cast)
    steps = _steps(input, batch_sizes, bool(direction))
    check_tensors(input, input.shape[-1], steps.batch, ["h_0", "c_0"][: len(states)], states, weights, cell)
    check_dtype(function, input)
    if seed is not None:
        check_seed(seed, steps.batch)
    runs = resolved(strategy, input, steps, states[-1].shape[1], cell, dropouts.inside)
    if not dropouts.any(1):
        return recurrent_layer(input, states, weights, dropouts, None, steps, cell, runs)
    form = dispatch.mask_form(runs, input.device)
    masks = MaskSource(seed_tensor(seed, input.device, steps.batch), steps, form, layer, direction)
    if "input" in dropouts.on:
        input = outside_dropout(input, "input", dropouts, masks._replace(direction=0))
    if "weight" in dropouts.on:
        weights = weight_dropout(weights, dropouts, masks)
    output, last = recurrent_layer(input, states, weights, dropouts, masks, steps, cell, runs)
    if "output" in dropouts.on:
        output = outside_dropout(output, "output", dropouts, masks)
    return output, last


def _steps(input: Tensor, batch_sizes: Sequence[int] | Tensor | None, reverse: bool) -> Steps:
    """Those of the input. RuntimeError where it has none."""
    dims = 3 if batch_sizes is None else 2
    if input.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
    check_length(input.shape[0])
    if batch_sizes is None:
        return Steps(input.shape[0], input.shape[1], reverse=reverse)
    sizes = checked_batch_sizes(batch_sizes, input.shape[0])
    return Steps(sizes.shape[0], int(sizes[0]), sizes, reverse)
