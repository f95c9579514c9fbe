"""Mistakes that other libraries shipped, planted here: the checks of the real kernels must see each one."""

import pytest
import torch

from rnndrop.kernels import activation_dropout
from tests import stream as mask_stream

from . import checks

CHECKS = [checks.against_float64, checks.steps_are_rows]


def forward(x, seed, threshold, scale, stream, **options):
    return activation_dropout.forward(x, seed, threshold, scale, stream, **options)


def backward(grad, y, seed, threshold, scale, stream, **options):
    return activation_dropout.backward(grad, y, seed, threshold, scale, stream, **options)


def repeated_over_rows(x, *rest, row_start=0, **options):
    """One row's mask for all (xformers)."""
    return torch.cat([forward(row[None], *rest, row_start=row_start, **options) for row in x])


def first_step_always(x, *rest, row_start=0, **options):
    """Step 0's mask for every step; planted in backward, this was haste's."""
    return forward(x, *rest, row_start=0, **options)


def backward_first_step_always(grad, y, *rest, row_start=0, **options):
    return backward(grad, y, *rest, row_start=0, **options)


def no_dropout(x, seed, threshold, scale, stream, **options):
    """The rate accepted and ignored (Keras's SimpleRNN)."""
    return forward(x, seed, 0, 1.0, stream, **options)


def backward_no_dropout(grad, y, seed, threshold, scale, stream, **options):
    return backward(grad, y, seed, 0, 1.0, stream, **options)


def mask_from_zeros(grad, y, seed, threshold, scale, stream, **options):
    """Dropped is where the output is 0: wrong where tanh itself is 0."""
    return torch.where(y == 0, 0.0, grad * (scale - y * y / scale)).to(y.dtype)


def mask_from_sign(grad, y, seed, threshold, scale, stream, **options):
    """Kept is where the output is positive (trident)."""
    return torch.where(y > 0, grad * (scale - y * y / scale), 0.0).to(y.dtype)


def unscaled(x, seed, threshold, scale, stream, **options):
    return forward(x, seed, threshold, 1.0, stream, **options)


def multiplied(x, seed, threshold, scale, stream, row_start=0, **options):
    """A product with the mask instead of a choice: NaN and infinity survive being dropped."""
    keep = mask_stream.keep(int(seed), *x.shape, threshold, stream, row_start).to(x.device)
    return (torch.tanh(x.float()) * keep * scale).to(x.dtype) + x * 0


def without_stream(x, seed, threshold, scale, stream, **options):
    """The same mask for every layer."""
    return forward(x, seed, threshold, scale, 0, **options)


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
