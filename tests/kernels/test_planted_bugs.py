"""Mistakes that other libraries shipped, planted here: the checks of the real kernels must see each one."""

import pytest
import torch

from rnndrop.kernels.activation_dropout import backward, forward
from tests import stream as mask_stream

from . import checks

CHECKS = [checks.against_float64, checks.same_mask_in_both]
BATCH = 3  # rows of a step


def repeated_over_rows(x, *rest):
    """One row's mask for all (xformers)."""
    return torch.cat([forward(row, *rest) for row in x.split(1)])


def first_step_always(x, *rest):
    """Step 0's mask for every step; planted in backward, this was haste's."""
    return torch.cat([forward(step, *rest) for step in x.split(BATCH)])


def backward_first_step_always(grad, y, *rest):
    steps = zip(grad.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([backward(grad_step, y_step, *rest) for grad_step, y_step in steps])


def no_dropout(x, seed, threshold, scale, stream):
    """The rate accepted and ignored (Keras's SimpleRNN)."""
    return forward(x, seed, 0, 1.0, stream)


def backward_no_dropout(grad, y, seed, threshold, scale, stream):
    return backward(grad, y, seed, 0, 1.0, stream)


def mask_from_zeros(grad, y, seed, threshold, scale, stream):
    """Dropped is where the output is 0: wrong where tanh itself is 0."""
    return torch.where(y == 0, 0.0, grad * (scale - y * y / scale)).to(y.dtype)


def mask_from_sign(grad, y, seed, threshold, scale, stream):
    """Kept is where the output is positive (trident)."""
    return torch.where(y > 0, grad * (scale - y * y / scale), 0.0).to(y.dtype)


def unscaled(x, seed, threshold, scale, stream):
    return forward(x, seed, threshold, 1.0, stream)


def multiplied(x, seed, threshold, scale, stream):
    """A product with the mask instead of a choice: NaN and infinity survive being dropped."""
    keep = mask_stream.keep(int(seed), *x.shape, threshold, stream).to(x.device)
    return (torch.tanh(x.float()) * keep * scale).to(x.dtype) + x * 0


def without_stream(x, seed, threshold, scale, stream):
    """The same mask for every layer."""
    return forward(x, seed, threshold, scale, 0)


BUGS = [
    (repeated_over_rows, backward),
    (first_step_always, backward),
    (forward, backward_first_step_always),
    (no_dropout, backward_no_dropout),
    (no_dropout, backward),
    (forward, backward_no_dropout),
    (forward, mask_from_zeros),
    (forward, mask_from_sign),
    (unscaled, backward),
    (multiplied, backward),
    (without_stream, backward),
]


def seen_by(forward, backward, device):
    seen = []
    for check in CHECKS:
        try:
            check(forward, backward, device)
        except AssertionError:
            seen.append(check.__name__)
    return seen


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: "-".join(f.__name__ for f in bug))
def test_a_planted_bug_is_seen(bug, device):
    assert seen_by(*bug, device)


def test_nothing_is_seen_without_a_bug(device):
    assert not seen_by(forward, backward, device)
