import math

import pytest
import torch

from rnndrop.kernels import stepwise

from . import sequences
from .sequences import ONCE, STEP, Case

CASES = [
    Case(T=33, B=16, H=64),
    Case(T=33, B=3, H=33, recurrent=16384),
    Case(T=5, B=33, H=100, hidden=None, recurrent=16384, reverse=True),
    Case(T=4, B=1, H=1, hidden=None),
    Case(T=1, B=3, H=300, hidden=58982, recurrent=58982, scopes=(ONCE, ONCE)),
    Case(T=6, B=16, H=128, hidden=0, recurrent=0, cell="RNN_RELU"),
    Case(T=6, B=3, H=16, hidden=65536, recurrent=16384, cell="RNN_RELU", reverse=True),
    Case(T=6, B=3, H=48, recurrent=65536, scopes=(ONCE, ONCE), reverse=True),
    Case(T=9, B=3, H=64, dtype=torch.float16, recurrent=16384),
    Case(T=9, B=3, H=64, dtype=torch.bfloat16, recurrent=16384, scopes=(ONCE, ONCE)),
    Case(T=3, B=3, H=64, dtype=torch.bfloat16, hidden=58982, reverse=True),
    *[Case(T=4, B=3, H=40, recurrent=16384, scopes=scopes) for scopes in ((STEP, ONCE), (ONCE, STEP))],
    *[Case(T=4, B=3, H=40, hidden=hidden, recurrent=recurrent) for hidden, recurrent in ((1, 65535), (65535, 1))],
    Case(T=4, B=3, H=40, zoneout=16384, recurrent=16384, scopes=(ONCE, ONCE)),
    Case(T=3, B=33, H=33, dtype=torch.bfloat16, hidden=None, zoneout=32768, reverse=True),
    Case(T=5, B=3, H=50, dtype=torch.float16, zoneout=60000, cell="RNN_RELU"),
    Case(T=3, B=3, H=16, hidden=None, zoneout=65536),
]
PACKED = [
    Case(H=40, sizes=(5, 5, 3, 1, 1), recurrent=recurrent, scopes=scopes, reverse=reverse)
    for recurrent in (None, 16384)
    for scopes in ((STEP, STEP), (ONCE, ONCE), (STEP, ONCE), (ONCE, STEP))
    for reverse in (False, True)
]
PACKED += [Case(H=40, sizes=(5, 5, 3, 1, 1), zoneout=32768, recurrent=16384, reverse=reverse) for reverse in (False, True)]


@pytest.mark.parametrize("case", CASES + PACKED, ids=str)
def test_against_float64(case, device):
    sequences.against_float64(stepwise, case, device)


@pytest.mark.parametrize("case", [Case(T=4, B=5, H=33), Case(H=40, sizes=(4, 4, 2, 1), reverse=True)], ids=str)
def test_gradient_has_the_mask_of_the_output(case, device):
    sequences.gradient_has_the_mask_of_the_output(stepwise, case, device)


@pytest.mark.parametrize("case", [Case(T=4, B=3, H=33), Case(H=40, sizes=(5, 3, 3, 1), recurrent=16384, reverse=True)], ids=str)
def test_expectation_of_zoneout(case, device):
    sequences.expectation_of_zoneout(stepwise, case, device)


def test_zoneout_chooses(device):
    sequences.zoneout_chooses(stepwise, Case(T=2, B=3, H=40, zoneout=32768), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_not_a_number(dtype, device):
    sequences.not_a_number(stepwise, Case(B=4, H=50, dtype=dtype), device)


def test_relu_stops_not_a_number(device):
    sequences.relu_stops_not_a_number(stepwise, Case(T=2, H=48, hidden=32768), device)


def test_a_packed_batch_is_its_sequences(device):
    """Equal lengths packed or not: the same bits of the result."""
    case = Case(T=4, B=3, H=40, recurrent=16384)
    given = sequences.inputs(case)
    flat = given._replace(input_projection=given.input_projection.view(12, 40), grad_output=given.grad_output.view(12, 40))
    for a, b in zip(
        sequences.run(stepwise, case, given, device),
        sequences.run(stepwise, case._replace(sizes=(3,) * 4), flat, device),
        strict=True,
    ):
        assert torch.equal(a.view(-1), b.view(-1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graph():
    case = Case(T=5, B=8, H=64)
    given = sequences.inputs(case)
    x, h_0, w = (v.cuda() for v in given[:3])
    masks = sequences.masks(case, given.keeps, "cuda")
    expected = stepwise.forward(x, h_0, w, masks, cell="RNN_TANH")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = stepwise.forward(x, h_0, w, masks, cell="RNN_TANH")
    output.fill_(math.nan)
    graph.replay()
    assert torch.equal(output, expected)


def test_refusals(device):
    x = torch.zeros(2, 2, 16, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"'stepwise' cannot run: torch\.float64 is none of"):
        stepwise.forward(x, x[0], x.new_zeros(16, 16), {}, cell="RNN_TANH")
    with pytest.raises(ValueError, match="at least one step"):
        stepwise.forward(x[:0].float(), x[0].float(), x.new_zeros(16, 16).float(), {}, cell="RNN_TANH")
