"""The layer of an LSTM that PyTorch's own runs on a CPU, oneDNN's, for a compiled graph that is differentiated.

PyTorch's layers as one operator would run again in the backward pass, since an operator keeps no graph. This one returns
what oneDNN needs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operator import operator

MaybeTensor = Tensor | None
HAS_ONEDNN = torch.backends.mkldnn.is_available()  # which the compiler does not trace


def takes(mode: str, input: Tensor, states: Sequence[Tensor], batch_sizes: MaybeTensor) -> bool:
    """Whether PyTorch's own layers are oneDNN's."""
    padded_lstm = mode == "LSTM" and batch_sizes is None and states[0].shape == states[1].shape  # not projected
    return padded_lstm and input.dtype == torch.float32 and input.numel() > 0 and HAS_ONEDNN


def layers(
    input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], bias: bool, num_layers: int, bidirectional: bool
) -> tuple[Tensor, list[Tensor]]:
    """The output and the states at the end of input (T, B, I) and states (L*D, B, H); `weights` as in torch_layers."""
    directions, each = 1 + bidirectional, 4 if bias else 2
    x, ends = input, []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            w_ih, w_hh, *biases = weights[number * each : (number + 1) * each]
            b_ih, b_hh = biases or [w_ih.new_zeros(w_ih.shape[0])] * 2
            tensors = x, w_ih, w_hh, b_ih, b_hh, *(state[number] for state in states)
            output, *last, _ = _operator(*(tensor.contiguous() for tensor in tensors), direction == 1)
            outputs.append(output)
            ends.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return x, [torch.stack(every) for every in zip(*ends, strict=True)]


# PyTorch's arguments: mode 2 is an LSTM's; one layer, no batch sizes, all for training.


def _forward(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, h: Tensor, c: Tensor, reverse: bool) -> Any:
    with torch.enable_grad():  # without, nothing is kept for the backward pass
        return torch.ops.aten.mkldnn_rnn_layer.default(
            x, w_ih, w_hh, b_ih, b_hh, h, c, reverse, [], 2, h.shape[-1], 1, True, False, False, True
        )


def _backward(tensors: Sequence[Tensor], grads: Sequence[MaybeTensor], reverse: bool, workspace: Tensor) -> list[Tensor]:
    """The gradients of the tensors that `_forward` takes: the first of `tensors`, before those that it gives."""
    found = torch.ops.aten.mkldnn_rnn_layer_backward.default(
        *tensors, *grads, reverse, 2, tensors[2].shape[1], 1, True, True, False, [], False, workspace
    )
    return [*found]


def _fake(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, h: Tensor, c: Tensor, reverse: bool
) -> tuple[Tensor, ...]:
    size = torch.library.get_ctx().new_dynamic_size()
    output = x.new_empty(*x.shape[:-1], h.shape[-1])
    return output, h.new_empty(h.shape), c.new_empty(c.shape), x.new_empty(size, dtype=torch.uint8)


def _backward_fake(tensors: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors[:7]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, ctx.reverse = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(*given, *output)


def _gradients(ctx: Any, *grads: MaybeTensor) -> tuple[MaybeTensor, ...]:
    *tensors, workspace = ctx.saved_tensors
    return (*_backward_operator(tensors, list(grads[:3]), ctx.reverse, workspace), None)


_TENSORS = "Tensor x, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, Tensor h, Tensor c"
_SCHEMA = f"({_TENSORS}, bool reverse) -> (Tensor, Tensor, Tensor, Tensor)"
_BACKWARD_SCHEMA = "(Tensor[] tensors, Tensor?[] grads, bool reverse, Tensor workspace) -> Tensor[]"
_operator = operator("onednn_lstm", _SCHEMA, _forward, _fake, _gradients, _save)
_backward_operator = operator("onednn_lstm_backward", _BACKWARD_SCHEMA, _backward, _backward_fake)
