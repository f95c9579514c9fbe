"""What a plain RNN makes of its gate, and the way back: the same two functions for every sequence kernel of it.

    gates = input projection + W_hh h'
    made = cell_forward(gates)               the new state, before its dropout
    h = keep * scale * made

CELL is a name of torch.nn's modes: "RNN_TANH" or "RNN_RELU".
"""

import triton
import triton.language as tl

from .activation import relu, relu_backward, tanh_backward, tanh_for_dtype


@triton.jit
def cell_forward(gates, CELL: tl.constexpr, DTYPE: tl.constexpr, TANH: tl.constexpr):
    """The new state in fp32, before its dropout, as accurate as a result stored as DTYPE needs it. It is 0 for gates of 0.
    TANH as in `tanh_for_dtype`."""
    if CELL == "RNN_TANH":
        return tanh_for_dtype(gates, DTYPE, TANH)
    else:
        tl.static_assert(CELL == "RNN_RELU")
        return relu(gates)


@triton.jit
def cell_backward(grad, h, scale, inverse_scale, CELL: tl.constexpr):
    """The gradient of the gates in fp32, from that of h = scale * made. It holds where h was kept; elsewhere it is 0."""
    if CELL == "RNN_TANH":
        return tanh_backward(grad, h, scale, inverse_scale)
    else:
        tl.static_assert(CELL == "RNN_RELU")
        return relu_backward(grad, h, scale)
