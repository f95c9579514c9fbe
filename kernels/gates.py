"""What a GRU and an LSTM make of their gates in a step, and the way back: the same functions for every kernel of either.

    LSTM    i, f, g, o      candidate = u * tanh(g)     c' = d * (f * c_before + i * candidate)     made = o * tanh(c')
    GRU     hn, r, z, n     candidate = u * tanh(x_n + r * hn)      made = (1 - z) * candidate + z * h_before

Everything is fp32, of any one shape. A mask is booleans, where its kind keeps, and a scale; None drops nothing. What acts on a
state as it is (the hidden and the recurrent mask, both zoneouts) is the kernels' own: `dropped` and `zoned` are of use there.
"""

import triton
import triton.language as tl

from .activation import sigmoid_backward, sigmoid_for_dtype, tanh_for_dtype


@triton.jit
def dropped(x, keep, scale):
    """x times the scale where kept, 0 elsewhere, NaN or not."""
    if keep is None:
        return x
    else:
        return tl.where(keep, x * scale, 0.0)


@triton.jit
def zoned(old, new, keep, old_share):
    """The new state where zoneout keeps it, elsewhere the old one; without a mask the expectation, if there is a share."""
    if keep is not None:
        return tl.where(keep, new, old)
    elif old_share is not None:
        return old_share * old + (1.0 - old_share) * new
    else:
        return new


@triton.jit
def zoned_backward(grad, keep):
    """The gradient of the old state and that of the new one."""
    if keep is None:
        return tl.zeros_like(grad), grad
    else:
        return tl.where(keep, 0.0, grad), tl.where(keep, grad, 0.0)


@triton.jit
def lstm_forward(
    i,
    f,
    g,
    o,
    c_before,
    candidate_keep,
    candidate_scale,
    cell_keep,
    cell_scale,
    DTYPE: tl.constexpr,  # of what is stored
    TANH: tl.constexpr,  # as in tanh_for_dtype
):
    """i, f, g and o after their activations, c' and made, from their pre-activations."""
    i, f, o = sigmoid_for_dtype(i, DTYPE, TANH), sigmoid_for_dtype(f, DTYPE, TANH), sigmoid_for_dtype(o, DTYPE, TANH)
    g = tanh_for_dtype(g, DTYPE, TANH)
    c = lstm_cell_state(i, f, g, c_before, candidate_keep, candidate_scale, cell_keep, cell_scale)
    return i, f, g, o, c, o * tanh_for_dtype(c, DTYPE, TANH)


@triton.jit
def lstm_cell_state(i, f, g, c_before, candidate_keep, candidate_scale, cell_keep, cell_scale):
    """c', from the gates after their activations; a backward pass with zoneout of the cell state needs it again."""
    return dropped(f * c_before + i * dropped(g, candidate_keep, candidate_scale), cell_keep, cell_scale)


@triton.jit
def lstm_backward(
    grad_made,
    grad_c,  # of c' by all ways but made
    i,  # and the other gates, after their activations
    f,
    g,
    o,
    c_before,
    c,  # c'
    candidate_keep,
    candidate_scale,
    cell_keep,
    cell_scale,
    DTYPE: tl.constexpr,
    TANH: tl.constexpr,
):
    """The gradients of the pre-activations of i, f, g and o, and of c_before by way of c'."""
    tanh_c = tanh_for_dtype(c, DTYPE, TANH)
    grad_o = sigmoid_backward(grad_made * tanh_c, o)
    grad_c = dropped(grad_c + grad_made * o * (1.0 - tanh_c * tanh_c), cell_keep, cell_scale)
    grad_i = sigmoid_backward(grad_c * dropped(g, candidate_keep, candidate_scale), i)
    grad_f = sigmoid_backward(grad_c * c_before, f)
    grad_g = dropped(grad_c * i * (1.0 - g * g), candidate_keep, candidate_scale)
    return grad_i, grad_f, grad_g, grad_o, grad_c * f


@triton.jit
def gru_forward(
    r,  # of x and of h, as z is
    z,
    x_n,
    hn,  # of h, with its bias
    h_before,
    candidate_keep,
    candidate_scale,
    DTYPE: tl.constexpr,  # of what is stored
    TANH: tl.constexpr,  # as in tanh_for_dtype
):
    """r, z and n after their activations, and made, from their pre-activations."""
    r, z = sigmoid_for_dtype(r, DTYPE, TANH), sigmoid_for_dtype(z, DTYPE, TANH)
    n = tanh_for_dtype(x_n + r * hn, DTYPE, TANH)
    candidate = dropped(n, candidate_keep, candidate_scale)
    return r, z, n, candidate + z * (h_before - candidate)


@triton.jit
def gru_backward(
    grad_made,
    hn,
    r,  # and z and n, after their activations
    z,
    n,
    h_before,
    candidate_keep,
    candidate_scale,
):
    """The gradients of hn, of the pre-activations of r, z and n, and of h_before by the carry z * h_before."""
    grad_z = sigmoid_backward(grad_made * (h_before - dropped(n, candidate_keep, candidate_scale)), z)
    grad_n = dropped(grad_made * (1.0 - z) * (1.0 - n * n), candidate_keep, candidate_scale)
    return grad_n * r, sigmoid_backward(grad_n * hn, r), grad_z, grad_n, grad_made * z
