import pytest
import torch

from rnndrop.kernels import gated_stepwise

from . import gated_sequences
from .gated_sequences import Case, every_kind

CASES = [
    case
    for cell in ("LSTM", "GRU")
    for case in (
        Case(cell, T=17, B=3, H=33),
        Case(cell, T=5, B=9, H=100, thresholds={}, reverse=True, bias=False),
        Case(cell, T=4, B=3, H=40, thresholds=every_kind(cell)),
        Case(
            cell, T=4, B=3, H=40, thresholds=every_kind(cell), once=("hidden", "recurrent", "candidate", "cell"), reverse=True
        ),
        Case(cell, T=3, B=3, H=16, thresholds={"recurrent": 65536, "candidate": 65536, "hidden": 0}),
        Case(cell, T=1, B=3, H=300, thresholds={"hidden": 58982, "recurrent": 58982}),
        Case(cell, T=4, B=1, H=1, thresholds=every_kind(cell, hidden=0)),
        Case(cell, T=5, B=5, H=64, dtype=torch.float16, thresholds=every_kind(cell)),
        Case(cell, T=5, B=5, H=64, dtype=torch.bfloat16, thresholds=every_kind(cell), once=("candidate",)),
        *[
            Case(cell, H=40, sizes=(5, 5, 3, 1, 1), thresholds=thresholds, once=once, reverse=reverse)
            for reverse in (False, True)
            for thresholds, once in (({}, ()), (every_kind(cell), ()), (every_kind(cell), ("hidden", "recurrent", "candidate")))
        ],
    )
]
CASES += [Case("LSTM", T=4, B=3, H=40, thresholds=dict.fromkeys(["cell", "zoneout"], 65536))]
CASES += [Case("LSTM", T=4, B=3, H=40, thresholds={kind: 20000}) for kind in ("candidate", "cell", "zoneout", "cell_zoneout")]
CASES += [Case("GRU", T=4, B=3, H=40, thresholds={kind: 20000}) for kind in ("candidate", "recurrent", "zoneout")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, device):
    gated_sequences.against_float64(gated_stepwise, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gradient_has_the_mask_of_the_output(cell, device):
    for case in (Case(cell, T=4, B=5, H=33), Case(cell, H=40, sizes=(4, 4, 2, 1), reverse=True)):
        gated_sequences.gradient_has_the_mask_of_the_output(gated_stepwise, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_expectation_of_zoneout(cell, device):
    for case in (Case(cell, T=4, B=3, H=33), Case(cell, H=40, sizes=(5, 3, 3, 1), reverse=True)):
        gated_sequences.expectation_of_zoneout(gated_stepwise, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_without_gradients_of_the_states(cell, device):
    gated_sequences.without_gradients_of_the_states(gated_stepwise, Case(cell, T=3, B=3, H=20), device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_not_a_number(cell, device):
    thresholds = {"hidden": 20000, "candidate": 20000} | ({"cell": 20000} if cell == "LSTM" else {})
    gated_sequences.not_a_number(gated_stepwise, Case(cell, B=4, H=50, thresholds=thresholds), device)


def test_zoneout_chooses(device):
    gated_sequences.zoneout_chooses(gated_stepwise, Case(B=3, H=40), device)


def test_refusals(device):
    x = torch.zeros(2, 2, 64, dtype=torch.float64, device=device)
    h = x.new_zeros(2, 16)
    with pytest.raises(ValueError, match=r"'stepwise' cannot run: torch\.float64 is none of"):
        gated_stepwise.forward(x, [h, h], x.new_zeros(64, 16), {}, cell="LSTM")
