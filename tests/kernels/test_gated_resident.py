"""The resident kernels of a GRU and an LSTM against the plain loop in float64: outputs, what is saved, all gradients."""

import pytest
import torch

from rnndrop.kernels import gated_resident

from . import gated_sequences
from .gated_sequences import Case, every_kind

FP16, BF16 = torch.float16, torch.bfloat16
ONCE = ("hidden", "recurrent", "candidate", "cell")

CASES = [
    case
    for cell in ("LSTM", "GRU")
    for case in (
        Case(cell, T=17, B=3, H=33, dtype=BF16),
        Case(cell, T=3, B=33, H=5, thresholds=every_kind(cell), reverse=True),
        Case(cell, T=1, B=1, H=1, thresholds=every_kind(cell, hidden=0)),
        Case(cell, T=4, B=3, H=16, thresholds={}, reverse=True, bias=False),
        Case(cell, T=4, B=3, H=20, thresholds=every_kind(cell)),
        Case(cell, T=4, B=3, H=20, thresholds=every_kind(cell), once=ONCE, reverse=True),
        Case(cell, T=3, B=3, H=16, thresholds={"recurrent": 65536, "candidate": 65536, "hidden": 0}),
        Case(cell, T=4, B=3, H=33, thresholds=every_kind(cell), tf32=True, once=("candidate",)),
        Case(cell, T=4, B=2, H=64, dtype=FP16, thresholds=every_kind(cell), once=("recurrent",)),
        Case(cell, T=3, B=2, H=128, dtype=BF16, thresholds=dict.fromkeys(("hidden", "recurrent"), 16384)),
        Case(cell, T=3, B=2, H=101, dtype=BF16, thresholds=dict.fromkeys(("hidden", "candidate", "zoneout"), 16384)),
        *[
            Case(cell, H=20, sizes=(18, 18, 9, 2, 1), thresholds=thresholds, once=once, reverse=reverse)
            for reverse in (False, True)
            for thresholds, once in (({}, ()), (every_kind(cell), ()), (every_kind(cell), ONCE))
        ],
        Case(cell, H=101, sizes=(3, 2, 2, 1), dtype=BF16, thresholds=dict.fromkeys(("hidden", "recurrent"), 16384)),
    )
]
CASES += [Case("LSTM", T=4, B=3, H=20, thresholds=dict.fromkeys(["cell", "zoneout"], 65536))]
CASES += [Case("LSTM", T=4, B=3, H=20, thresholds={kind: 20000}) for kind in ("candidate", "cell", "zoneout", "cell_zoneout")]
CASES += [Case("GRU", T=4, B=3, H=20, thresholds={kind: 20000}) for kind in ("candidate", "recurrent", "zoneout")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, device):
    gated_sequences.against_float64(gated_resident, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gradient_has_the_mask_of_the_output(cell, device):
    for case in (Case(cell, T=4, B=5, H=16), Case(cell, H=33, dtype=BF16, sizes=(4, 4, 2, 1), reverse=True)):
        gated_sequences.gradient_has_the_mask_of_the_output(gated_resident, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_expectation_of_zoneout(cell, device):
    for case in (Case(cell, T=4, B=3, H=33, dtype=BF16), Case(cell, H=20, sizes=(5, 3, 3, 1), reverse=True)):
        gated_sequences.expectation_of_zoneout(gated_resident, case, device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_without_gradients_of_the_states(cell, device):
    gated_sequences.without_gradients_of_the_states(gated_resident, Case(cell, T=3, B=3, H=20), device)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_not_a_number(cell, device):
    thresholds = {"hidden": 20000, "candidate": 20000} | ({"cell": 20000} if cell == "LSTM" else {})
    gated_sequences.not_a_number(gated_resident, Case(cell, B=4, H=20, thresholds=thresholds), device)


def test_zoneout_chooses(device):
    gated_sequences.zoneout_chooses(gated_resident, Case(B=3, H=20), device)
