"""The layer and the pointwise dropout as functions: validation, seeds, autocast and the choice of a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import autograd, reference
from .mask import check_probability, check_seed, scale, site

STRATEGIES = ("auto", "torch", "reference", "resident", "cooperative", "stepwise")
POINTWISE_STRATEGIES = ("auto", "torch", "reference", "triton")
KERNELS = ("resident", "cooperative", "stepwise", "triton")
MASK_SCOPES = ("step", "sequence")
NONLINEARITIES = ("tanh", "relu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tanh_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, *, seed: int | Tensor | None = None, strategy: str = "auto"
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
        strategy: ``"torch"`` (the CPU path), ``"triton"`` (one kernel, masks made in registers), ``"reference"`` (plain
            PyTorch operations) or ``"auto"``, by x's device. Default: ``"auto"``

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ValueError: p outside [0, 1] or not a number; an unknown strategy; a seed tensor of more than one element.
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
    _check_dtype("tanh_dropout", x)
    return activation_dropout(x, "tanh", p, seed_tensor(seed, x.device), site("hidden"), strategy)


def rnn_layer(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    hidden_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    mask_scope: str = "step",
    seed: int | Tensor | None = None,
    layer: int = 0,
    direction: int = 0,
    strategy: str = "auto",
    batch_sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One Elman layer in one direction, with dropout inside the recurrence.

    .. math::
        a_t = W_{ih} x_t + b_{ih} + W_{hh} (r_t \odot h_{t-1}) + b_{hh}, \qquad h_t = m_t \odot f(a_t)

    Args:
        input: (T, B, I), or the (N, I) data of a packed sequence, with `batch_sizes`.
        h0: (B, H), the initial state.
        w_ih, w_hh: (H, I) and (H, H).
        b_ih, b_hh: (H) or ``None``.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        hidden_dropout: probability of an element of h_t to be zeroed, for the output and the next step. Default: 0
        recurrent_dropout: probability of an element of h_{t-1} to be zeroed where it enters W_hh. Default: 0
        mask_scope: ``"step"``, a fresh mask at every step, or ``"sequence"``, the same at all (Gal and Ghahramani
            2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks"). Default: ``"step"``
        seed: an int or an int64 tensor of one element. ``None`` draws one from the generator of the input's device.
        layer, direction: numbers that the masks depend on. Direction 1 runs from the last step to the first.
        strategy: ``"torch"`` (the CPU path), ``"resident"``, ``"cooperative"`` or ``"stepwise"`` (Triton kernels),
            ``"reference"`` (the plain loop) or ``"auto"``, by device, shape and dtype. Default: ``"auto"``
        batch_sizes: the rows of each step of packed data, never increasing.

    Returns:
        output, (T, B, H) or (N, H), and h_n, (B, H), of the input's dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: a probability outside [0, 1]; an unknown nonlinearity, mask scope or strategy; a strategy asked for by
            name that cannot run, with the reason.
        RuntimeError: shapes, dtypes or devices that do not match.
        TypeError: a seed that is neither an int nor an int64 tensor.
    """
    rates = check_probability("hidden_dropout", hidden_dropout), check_probability("recurrent_dropout", recurrent_dropout)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_choice("mask_scope", mask_scope, MASK_SCOPES)
    check_choice("strategy", strategy, STRATEGIES)
    site("hidden", layer, direction)
    if seed is not None:
        check_seed(seed)
    tensors = _autocast(input, h0, w_ih, w_hh, b_ih, b_hh)
    _check_shapes(*tensors, batch_sizes=batch_sizes)
    seed = seed_tensor(seed, input.device) if any(rates) else torch.zeros(1, dtype=torch.int64, device=input.device)
    chosen = choose_strategy(strategy, tensors[0], len(w_hh), len(h0), packed=batch_sizes is not None)
    options = autograd.Layer(batch_sizes, nonlinearity, *rates, mask_scope, layer, direction, chosen)
    if chosen == "reference":
        options = options._replace(strategy="stepwise" if input.is_cuda else "torch")  # whose masks it takes
        return autograd.reference_layer(tensors, options, options.masks(*options.keeps(seed, tensors[0], len(w_hh))))
    return autograd.layer(*tensors, seed, *options)


def activation_dropout(x: Tensor, nonlinearity: str, p: float, seed: Tensor, where: int, strategy: str = "auto") -> Tensor:
    """dropout(f(x)) of x (..., H); f may be the identity. `where` is the :func:`site` of the mask."""
    if x.numel() == 0:
        return reference.ACTIVATIONS[nonlinearity](x)
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    _check_device(strategy, x.device)
    if strategy == "auto":
        strategy = {"cpu": "torch", "meta": "torch", "cuda": "triton"}.get(x.device.type, "reference")
        strategy = strategy if strategy != "triton" or x.dtype != torch.float64 else "reference"
    if strategy == "reference":
        masks = autograd.backend("triton" if x.is_cuda else "torch")
        keep = masks.unpack(masks.keep(seed, *rows.shape, p, where), rows.shape[1]).to(x.device)
        return reference.dropout(rows, keep, scale(p), nonlinearity=nonlinearity).view(x.shape)
    return autograd.dropout(rows, seed, nonlinearity, p, where, strategy).view(x.shape)


def dropout_between(
    x: Tensor, p: float, seed: Tensor, layer: int, directions: int, batch_sizes: Sequence[int] | None
) -> Tensor:
    """The dropout between `layer` and the next, on its output (T, B, D*H), or (N, D*H) packed; per step, a mask a direction."""
    index = None if batch_sizes is None else _padded_rows(batch_sizes).to(x.device)
    rows = 0 if batch_sizes is None else len(batch_sizes) * batch_sizes[0]
    dropped = []
    for direction, part in enumerate(x.chunk(directions, -1)):
        if index is not None:  # rows are numbered as if all sequences were of one length
            part = part.new_zeros(rows, part.shape[1]).index_copy(0, index, part)
        part = activation_dropout(part, "identity", p, seed, site("between", layer, direction))
        dropped.append(part if index is None else part.index_select(0, index))
    return dropped[0] if directions == 1 else torch.cat(dropped, -1)


def _padded_rows(batch_sizes: Sequence[int]) -> Tensor:
    """The row t*B + b of a padded batch for each row of a packed one."""
    return torch.cat([torch.arange(t * batch_sizes[0], t * batch_sizes[0] + size) for t, size in enumerate(batch_sizes)])


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed of a call as an int64 tensor of shape (1) on `device`, drawn from that device's generator if None."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    seed = check_seed(seed)
    if isinstance(seed, Tensor):
        return seed if seed.shape == (1,) and seed.device == device else seed.reshape(1).to(device)
    return torch.tensor([(seed + 2**63) % 2**64 - 2**63], dtype=torch.int64, device=device)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        listed = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
        raise ValueError(f"Unknown {name} {value!r}. Select from {listed}.")


def choose_strategy(strategy: str, input: Tensor, H: int, B: int, *, packed: bool) -> str:
    """The strategy that runs a layer of H units on B sequences."""
    kind = input.device.type
    _check_device(strategy, input.device)
    if strategy != "auto":
        return strategy
    if kind != "cuda":
        return "torch" if kind in ("cpu", "meta") else "reference"
    from .gpu import choose

    return choose(input.device, H, B, input.dtype, packed=packed).strategy


def _check_device(strategy: str, device: torch.device) -> None:
    """Raises ValueError, with the reason, where a strategy asked for by name cannot run."""
    if strategy == "torch" and device.type not in ("cpu", "meta"):
        raise ValueError(f"strategy 'torch' cannot run: it computes in NumPy, and the input is on {device}")
    if strategy in KERNELS:
        try:
            from .kernels import sequence

            sequence.backend()
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"strategy {strategy!r} cannot run: {error}") from error


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for this kind of device; the meta device has none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of x for nn.RNN's products."""
    if not x.is_floating_point() or x.dtype == torch.float64 or not autocasts(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def _autocast(*tensors: Any) -> Sequence[Any]:
    if not autocasts(tensors[0].device.type):
        return tensors
    return [None if x is None else x.to(compute_dtype(x)) for x in tensors]


def _check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise NotImplementedError(f'"{name}" not implemented for {x.dtype}')


def _check_shapes(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    *,
    batch_sizes: Sequence[int] | None,
) -> None:
    dims = 3 if batch_sizes is None else 2
    if input.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
    if input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if batch_sizes is not None:
        _check_batch_sizes(batch_sizes, len(input))
    batch, hidden = input.shape[1] if batch_sizes is None else batch_sizes[0], w_hh.shape[0]
    named = {"h0": h0, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh}
    shapes = {"h0": (batch, hidden), "w_ih": (hidden, input.shape[-1]), "w_hh": (hidden, hidden)}
    for name, tensor in named.items():
        if tensor is None:
            continue
        expected = shapes.get(name, (hidden,))
        if tensor.shape != expected:
            raise RuntimeError(f"Expected {name} size {expected}, got {list(tensor.shape)}")
        if tensor.dtype != input.dtype:
            raise RuntimeError(f"expected input and {name} to have the same dtype, got {input.dtype} and {tensor.dtype}")
        if tensor.device != input.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {input.device} and {name} on {tensor.device}"
            )
    _check_dtype("rnn_layer", input)


def _check_batch_sizes(batch_sizes: Sequence[int], rows: int) -> None:
    falling = all(later <= earlier for earlier, later in pairwise(batch_sizes))
    if not falling or min(batch_sizes, default=0) < 1 or sum(batch_sizes) != rows:
        raise RuntimeError(
            f"batch_sizes should be positive, never increase and add up to the {rows} rows of input, got {list(batch_sizes)}"
        )
