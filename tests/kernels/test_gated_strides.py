"""Launchers of a GRU and an LSTM take tensors as callers have them: any strides and alignment, gradients nobody stored."""

import pytest
import torch

from rnndrop.backends.triton import GATED_RECURRENCES

from . import gated_sequences
from .gated_sequences import Case

both_cells = pytest.mark.parametrize("cell", ["LSTM", "GRU"])
every_strategy = pytest.mark.parametrize("strategy", GATED_RECURRENCES.values(), ids=GATED_RECURRENCES)


@both_cells
@every_strategy
def test_any_strides(strategy, cell, device):
    """Tensors whose axes are exchanged, that are part of wider rows, or off the boundary of vector accesses."""
    case = Case(cell, T=2, B=2, H=33)
    given = gated_sequences.inputs(case)
    expected = gated_sequences.run(strategy, case, given, device)
    for stride in (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.cat([x, x[..., :5]], -1)[..., : x.shape[-1]],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ):
        strided = given._replace(
            input_projection=stride(given.input_projection),
            states=[stride(state) for state in given.states],
            w_hh=stride(given.w_hh),
            grad_output=stride(given.grad_output),
            grad_states=[stride(grad) for grad in given.grad_states],
        )
        found = gated_sequences.run(strategy, case, strided, device)
        for (name, x), (_, y) in zip(found.named(), expected.named(), strict=True):
            gated_sequences.assert_near(case, name, x, y)


@both_cells
@every_strategy
def test_a_gradient_of_one_number(strategy, cell, device):
    """output.sum().backward() hands over one number, expanded."""
    case = Case(cell, T=2, B=2, H=33)
    given = gated_sequences.inputs(case)
    given = given._replace(grad_output=torch.tensor(0.5).expand(case.shape(1)))
    found, expected = gated_sequences.run(strategy, case, given, device), gated_sequences.oracle(case, given)
    for (name, x), (_, y) in zip(found.named(), expected.named(), strict=True):
        gated_sequences.assert_near(case, name, x, y)
