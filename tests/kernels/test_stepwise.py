import math
from types import SimpleNamespace

import pytest
import torch

from rnndrop.kernels import stepwise

from . import sequences
from .sequences import Case

CASES = [
    Case(T=33, B=16, H=64),
    Case(T=33, B=3, H=33, recurrent=16384),
    Case(T=5, B=33, H=100, hidden=None, recurrent=16384, reverse=True),
    Case(T=4, B=1, H=1, hidden=None),
    Case(T=1, B=3, H=300, hidden=58982, recurrent=58982, mask_scope="sequence"),
    Case(T=6, B=16, H=128, hidden=0, recurrent=0, nonlinearity="relu"),
    Case(T=6, B=3, H=16, hidden=65536, recurrent=16384, nonlinearity="relu", reverse=True),
    Case(T=6, B=3, H=48, recurrent=65536, mask_scope="sequence", reverse=True),
    Case(T=9, B=3, H=64, dtype=torch.float16, recurrent=16384),
    Case(T=9, B=3, H=64, dtype=torch.bfloat16, recurrent=16384, mask_scope="sequence"),
    Case(T=3, B=3, H=64, dtype=torch.bfloat16, hidden=58982, reverse=True),
]
PACKED = [
    Case(H=40, batch_sizes=(5, 5, 3, 1, 1), recurrent=recurrent, mask_scope=scope, reverse=reverse)
    for recurrent in (None, 16384)
    for scope, reverse in (("step", False), ("sequence", True), ("step", True))
]


@pytest.mark.parametrize("case", CASES + PACKED, ids=str)
def test_against_float64(case, device):
    sequences.against_float64(stepwise, case, device)


@pytest.mark.parametrize("case", [Case(T=4, B=5, H=33), Case(H=40, batch_sizes=(4, 4, 2, 1), reverse=True)], ids=str)
def test_gradient_has_the_mask_of_the_output(case, device):
    sequences.gradient_has_the_mask_of_the_output(stepwise, case, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_not_a_number(dtype, device):
    sequences.not_a_number(stepwise, Case(B=4, H=50, dtype=dtype), device)


def test_relu_stops_not_a_number(device):
    sequences.relu_stops_not_a_number(stepwise, Case(T=2, H=48, hidden=32768), device)


def test_a_packed_batch_is_its_sequences(device):
    """Equal lengths packed or not: the same bits of the result."""
    case = Case(T=4, B=3, H=40, recurrent=16384)
    given = sequences.inputs(case)
    flat = given._replace(xw=given.xw.view(12, 40), grad_output=given.grad_output.view(12, 40))
    for a, b in zip(
        sequences.run(stepwise, case, given, device),
        sequences.run(stepwise, case._replace(batch_sizes=(3,) * 4), flat, device),
        strict=True,
    ):
        assert torch.equal(a.view(-1), b.view(-1))


def test_without_a_gradient_of_h_n(device):
    case = Case(T=3, B=2, H=20, hidden=None)
    given = sequences.inputs(case)
    given.grad_h_n.zero_()
    output, grad_a, grad_h0 = sequences.run(stepwise, case, given, device)
    grad_output, output, w_hh = (v.to(device) for v in (given.grad_output, output, given.w_hh))
    again = stepwise.backward(grad_output, None, output, w_hh, None, None, 1.0, 1.0)
    assert torch.equal(again[0].cpu(), grad_a) and torch.equal(again[1].cpu(), grad_h0)


def test_transposed_tensors(device):
    """batch_first callers hand over views."""
    given = sequences.inputs(Case(T=3, B=4, H=24))
    bits = sequences.pack(given.keeps[0]).to(device)
    xw, h0, w = (v.to(device) for v in given[:3])
    viewed = xw.transpose(0, 1).contiguous().transpose(0, 1)
    a, b = (stepwise.forward(x, h0, w, bits, None, 4 / 3, 1.0) for x in (xw, viewed))
    assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graph():
    given = sequences.inputs(Case(T=5, B=8, H=64))
    xw, h0, w = (v.cuda() for v in given[:3])
    bits = sequences.pack(given.keeps[0]).cuda()
    expected = stepwise.forward(xw, h0, w, bits, None, 4 / 3, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = stepwise.forward(xw, h0, w, bits, None, 4 / 3, 1.0)
    output.fill_(math.nan)
    graph.replay()
    assert torch.equal(output, expected)


# ---------------------------------------------------------------- planted bugs


def _first_step_only(bits, rows):
    return bits if bits is None else bits[:rows].repeat(len(bits) // rows, 1)


def backward_first_step_always(grad_output, grad_h_n, output, w_hh, hidden_bits, recurrent_bits, *scales, **options):
    """Step 0's mask for all steps (haste)."""
    bits = [_first_step_only(b, output.shape[1]) for b in (hidden_bits, recurrent_bits)]
    return stepwise.backward(grad_output, grad_h_n, output, w_hh, *bits, *scales, **options)


def forward_repeated_over_rows(xw, h0, w_hh, hidden_bits, recurrent_bits, *scales, **options):
    """One row's mask for all rows (xformers)."""
    return stepwise.forward(xw, h0, w_hh, _first_step_only(hidden_bits, 1), recurrent_bits, *scales, **options)


def forward_without_recurrent(xw, h0, w_hh, hidden_bits, recurrent_bits, *scales, **options):
    """recurrent_dropout accepted and ignored (Keras)."""
    return stepwise.forward(xw, h0, w_hh, hidden_bits, None, *scales, **options)


def backward_mask_from_sign(grad_output, grad_h_n, output, w_hh, hidden_bits, *rest, **options):
    """Kept is where the output is positive (trident)."""
    positive = sequences.pack(output.view(-1, output.shape[-1]).cpu() > 0).to(output.device)
    return stepwise.backward(grad_output, grad_h_n, output, w_hh, positive, *rest, **options)


@pytest.mark.parametrize(
    "bug", [backward_first_step_always, forward_repeated_over_rows, forward_without_recurrent, backward_mask_from_sign]
)
def test_planted(bug, device):
    parts = {"forward": stepwise.forward, "backward": stepwise.backward}
    broken = SimpleNamespace(**parts | {bug.__name__.split("_")[0]: bug})
    case = Case(T=4, B=3, H=40, recurrent=16384)
    sequences.against_float64(stepwise, case, device)
    with pytest.raises(AssertionError):
        sequences.against_float64(broken, case, device)
