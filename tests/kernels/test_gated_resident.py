"""The resident kernels of a GRU and an LSTM against the plain loop in float64: outputs, what is saved, all gradients."""

import pytest
import torch

from rnndrop.cell import CELLS
from rnndrop.kernels import gated_resident
from rnndrop.kernels.launch import MaskBits
from tests.triton_driver import backend

from . import gated_sequences
from .gated_sequences import Case, every_kind

FP16, BF16 = torch.float16, torch.bfloat16
ONCE = ("hidden", "recurrent", "candidate", "cell")

CASES = [
    case
    for cell in ("LSTM", "GRU")
    for case in (
        Case(cell, T=6, B=3, H=33, dtype=BF16),
        Case(cell, T=2, B=33, H=5, thresholds=every_kind(cell), reverse=True),
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
            Case(cell, H=20, sizes=(18, 9, 9, 1), thresholds=thresholds, once=once, reverse=reverse)
            for reverse in (False, True)
            for thresholds, once in (({}, ()), (every_kind(cell), ONCE if reverse else ()))
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


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_there_in_packed_data_is_not_touched(reverse, cell, device):
    """Rows of other sequences may hold anything: NaN stays in the sequence that has it, and goes into no state."""
    case = Case(cell, H=20, thresholds={"recurrent": 16384}, sizes=(3, 3, 1), reverse=reverse)
    given = gated_sequences.inputs(case)
    clean = gated_sequences.run(gated_resident, case, given, device)
    for tensor in (given.input_projection[6], given.grad_output[6], *[grad[0] for grad in given.grad_states]):
        tensor.fill_(float("nan"))  # sequence 0 alone has the last step
    found = gated_sequences.run(gated_resident, case, given, device)
    others = [1, 2, 4, 5]
    for (name, a), (_, b) in zip(found.named(), clean.named(), strict=True):
        rows = slice(1, None) if name.endswith("_0") else others
        assert torch.equal(a[rows], b[rows]), name
    assert found.grad_states[0][0].isnan().any()


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("H", [17, 20])
def test_what_meets_the_zeros_of_the_padding_does_not_come_back(H, cell, device):
    """An infinite state saturates the gates and nothing else; an infinite gradient stays in what it came from."""
    case = Case(cell, T=2, B=1, H=H, thresholds={"zoneout": 0})
    given = gated_sequences.inputs(case)
    given.w_hh.abs_().clamp_(min=1e-3)
    given.states[0].abs_()[0, 0] = float("inf")
    output = gated_sequences.run(gated_resident, case, given, device).output
    assert not output[:, :, 1:].isnan().any()
    assert cell == "GRU" or not output.isnan().any()
    given.states[0][0, 0] = 0.0
    given.grad_output[1, 0, 0] = float("inf")
    given.w_hh.zero_()
    gates = gated_sequences.run(gated_resident, case, given, device).grad_gates.view(2, 1, 4, H)
    assert not gates[1, :, :, 1:].isnan().any()


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_inputs_of_any_strides(cell, device):
    """Batch first, and rows that are no whole rows apart."""
    case = Case(cell, T=3, B=4, H=16)
    given = gated_sequences.inputs(case)
    expected = gated_sequences.run(gated_resident, case, given, device)

    def batch_first(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def wide(x):
        return torch.cat([x, x[..., :3]], -1)[..., : x.shape[-1]]

    for change in (batch_first, wide):
        other = given._replace(input_projection=change(given.input_projection), grad_output=change(given.grad_output))
        for (name, a), (_, b) in zip(
            gated_sequences.run(gated_resident, case, other, device).named(), expected.named(), strict=True
        ):
            assert torch.equal(a, b), name


def test_one_compilation_for_all_lengths_and_batches(device):
    if backend() == "interpreter":
        pytest.skip("the interpreter compiles nothing")
    kernels = gated_resident.forward_kernel, gated_resident.backward_kernel

    def compiled():
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    def run(T, B):
        case = Case("GRU", T=T, B=B, H=16)
        gated_sequences.run(gated_resident, case, gated_sequences.inputs(case), device)

    run(2, 3)
    before = compiled()
    for T, B in ((1, 1), (3, 16), (2, 17), (16, 2)):
        run(T, B)
    assert compiled() == before


def zeros(cell, T, B, H, device, dtype=torch.float32):
    """Arguments of forward, without masks."""
    row = CELLS[cell]
    x = torch.zeros(T, B, row.gates * H, dtype=dtype, device=device)
    return x, [x.new_zeros(B, H) for _ in row.states], x.new_zeros(row.gates * H, H)


def test_refusals(device):
    for cell in ("LSTM", "GRU"):
        with pytest.raises(ValueError, match=r"'resident' cannot run: W_hh of H = 256.* registers"):
            gated_resident.forward(*zeros(cell, 2, 2, 256, device), {}, cell=cell)
        with pytest.raises(ValueError, match="at least one step"):
            gated_resident.forward(*zeros(cell, 0, 2, 16, device), {}, cell=cell)
        with pytest.raises(ValueError, match="float64 is none of"):
            gated_resident.forward(*zeros(cell, 2, 2, 16, device, torch.float64), {}, cell=cell)
    bits = {"zoneout": MaskBits(torch.zeros(4, 4, dtype=torch.int32, device=device), 1.0)}
    with pytest.raises(ValueError, match=r"'resident' cannot run: .* no room for"):
        gated_resident.forward(*zeros("LSTM", 2, 2, 128, device, BF16), bits, cell="LSTM")


def test_masks_that_do_not_fit_are_refused(device):
    x, states, w = zeros("LSTM", 2, 3, 16, device)
    y = x[..., :16].contiguous()

    def masks(kind, *shape):
        return {kind: MaskBits(torch.zeros(shape, dtype=torch.int32, device=device), 1.0)}

    for kind in ("zoneout", "cell_zoneout"):
        with pytest.raises(ValueError, match="no kernel for its gradient"):
            gated_resident.backward(y, [None, None], states, y, [x, y], w, masks(kind, 0, 1), cell="LSTM")
        with pytest.raises(ValueError, match=r"a packed mask should be \(6, 1\), got \(3, 1\)"):
            gated_resident.forward(x, states, w, masks(kind, 3, 1), cell="LSTM")
    with pytest.raises(ValueError, match=r"a packed mask should be \(6 or 3, 1\), got \(4, 1\)"):
        gated_resident.forward(x, states, w, masks("candidate", 4, 1), cell="LSTM")
