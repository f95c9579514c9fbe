"""The resident kernels against the plain loop in float64: outputs and all that the gradients are made of."""

import numpy as np
import pytest
import torch

from rnndrop.kernels import resident as both_directions
from rnndrop.kernels.launch import MaskBits
from tests.triton_driver import backend

from . import sequences
from .sequences import ONCE, STEP, Case, resident

FP16, BF16 = torch.float16, torch.bfloat16
BOTH = {"hidden": 16384, "recurrent": 16384}

SHAPES = [(1, 1, 3), (16, 3, 33), (33, 16, 5), (64, 33, 4), (100, 17, 3), (128, 3, 9), (256, 1, 3)]
RATES = [(None, None), (16384, None), (None, 16384), (58982, 16384), (16384, 58982), (65536, None), (None, 65536), (65536,) * 2]
EXTREME = [(1, 65535), (65535, 1)]
CASES = [
    *[
        Case(T, B, H, BF16 if H == 256 else torch.float32, **BOTH, cell=cell)
        for H, B, T in SHAPES
        for cell in ("RNN_TANH", "RNN_RELU")
        if (H, cell) != (256, "RNN_RELU")  # rounding of h moves some units across relu's kink
    ],
    *[
        Case(4, 3, 48, hidden=hidden, recurrent=recurrent, scopes=scopes, reverse=scopes[0] == STEP)
        for hidden, recurrent in RATES + EXTREME
        for scopes in ((STEP, STEP), (ONCE, ONCE))
    ],
    *[Case(4, 3, 48, **BOTH, scopes=scopes) for scopes in ((STEP, ONCE), (ONCE, STEP), (STEP, STEP))],
    Case(4, 3, 48, **BOTH, scopes=(ONCE, ONCE), reverse=True),
    *[
        Case(5, 2, H, dtype, **BOTH, tf32=tf32)
        for H in (16, 33, 128)
        for dtype, tf32 in ((torch.float32, True), (FP16, False), (BF16, False))
    ],
    Case(33, 2, 64, **BOTH),  # a long sequence
    *[Case(2, 3, H, **BOTH) for H in (65, 96)],  # tile columns whose word of the mask is not there
    *[Case(2, 3, H, BF16, **BOTH) for H in (129, 224)],
    *[Case(2, 3, H, BF16, **BOTH) for H in (101, 250)],  # padded in memory
    Case(4, 17, 33, **BOTH, zoneout=32768, scopes=(ONCE, STEP), reverse=True),
    Case(4, 3, 101, BF16, **BOTH, zoneout=16384),
    Case(3, 2, 256, FP16, hidden=None, zoneout=16384),
    Case(4, 3, 65, zoneout=49152, cell="RNN_RELU", tf32=True),
    *[Case(3, 3, 20, **BOTH, zoneout=zoneout, scopes=(STEP, ONCE)) for zoneout in (0, 65536)],
    *[Case(H=33, **BOTH, sizes=(17, 17, 9, 2, 1), reverse=reverse) for reverse in (False, True)],
    Case(H=48, hidden=None, zoneout=16384, sizes=(3, 3, 2, 1), reverse=True),
    Case(H=101, dtype=BF16, **BOTH, sizes=(3, 2, 2, 1), scopes=(ONCE, ONCE), reverse=True),
    Case(H=20, dtype=FP16, hidden=None, sizes=(3, 1), cell="RNN_RELU"),
    Case(H=256, dtype=BF16, zoneout=16384, sizes=(2, 2, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, device):
    sequences.against_float64(resident, case, device)


@pytest.mark.parametrize(
    "case",
    [
        Case(T=3, B=17, H=33, **BOTH, zoneout=16384, scopes=(STEP, ONCE)),
        Case(T=3, B=2, H=64, dtype=BF16, **BOTH, reverse=True),
        Case(H=40, **BOTH, zoneout=16384, sizes=(4, 3, 3, 1), scopes=(ONCE, STEP)),
        Case(H=20, dtype=BF16, hidden=None, sizes=(2, 1), reverse=True),
    ],
    ids=str,
)
def test_both_directions_in_one_launch(case, device):
    """They are, bit for bit, two launches of one; direction 1 runs opposite to direction 0."""
    given = sequences.inputs(case)
    cases = case, case._replace(reverse=not case.reverse)
    each = [given, given._replace(**{name: getattr(given, name).flip(-1) for name in given._fields[:5]})]
    each[1] = each[1]._replace(keeps={kind: keep.flip(0) for kind, keep in given.keeps.items()})
    expected = [sequences.run(resident, case, one, device) for case, one in zip(cases, each, strict=True)]

    def both(name, axis):
        return torch.stack([getattr(one, name) for one in each], axis).to(device)

    bits = [sequences.masks(case, one.keeps, device) for one in each]
    masks = {k: MaskBits(torch.stack([b[k].bits for b in bits]), bits[0][k].scale) for k in bits[0]}
    w = both("w_hh", 0)
    output = both_directions.forward(both("input_projection", -2), both("h_0", 0), w, masks, **case.options)
    grad, grad_h_n = both("grad_output", -2), both("grad_h_n", 0)
    gates, grad_h_0 = both_directions.backward(grad, grad_h_n, output, w, masks, **case.options)
    for found, parts, axis in zip((output, gates, grad_h_0), zip(*expected, strict=True), (-2, -2, 0), strict=True):
        assert torch.equal(found.cpu(), torch.stack(parts, axis))


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_there_in_packed_data_is_not_touched(reverse, device):
    """Rows of other sequences may hold anything: NaN stays in the sequence that has it, and goes into no state."""
    case = Case(H=33, **BOTH, sizes=(3, 3, 1), reverse=reverse)
    given = sequences.inputs(case)
    clean = sequences.run(resident, case, given, device)
    given.input_projection[6] = float("nan")  # sequence 0 alone has the last step
    given.grad_output[6] = float("nan")
    given.grad_h_n[0] = float("nan")
    output, gates, grad_h_0 = sequences.run(resident, case, given, device)
    others = [1, 2, 4, 5]
    assert torch.equal(output[others], clean[0][others]) and torch.equal(gates[others], clean[1][others])
    assert torch.equal(grad_h_0[1:], clean[2][1:]) and grad_h_0[0].isnan().any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("H", [33, 64])
def test_gradient_has_the_mask_of_the_output(H, reverse, device):
    sequences.gradient_has_the_mask_of_the_output(resident, Case(T=4, B=3, H=H, reverse=reverse), device)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_not_a_number(dtype, device):
    sequences.not_a_number(resident, Case(B=4, H=33, dtype=dtype), device)


@pytest.mark.parametrize("hidden", [None, 32768])
def test_relu_stops_not_a_number(hidden, device):
    sequences.relu_stops_not_a_number(resident, Case(T=2, H=48, hidden=hidden), device)


@pytest.mark.parametrize(
    "case",
    [Case(T=4, B=3, H=48, dtype=BF16, hidden=None), Case(H=33, sizes=(4, 3, 3, 1), recurrent=16384, reverse=True)],
    ids=str,
)
def test_expectation_of_zoneout(case, device):
    sequences.expectation_of_zoneout(resident, case, device)


def test_zoneout_chooses(device):
    sequences.zoneout_chooses(resident, Case(T=2, B=3, H=33, zoneout=32768), device)


@pytest.mark.parametrize("reverse", [False, True])
def test_addresses_past_32_bits(reverse, device, tmp_path):
    """Steps 2**30 elements apart: nothing else between them is touched."""
    if device != "cpu":
        pytest.skip("a sparse file is memory of the CPU")
    case = Case(T=3, B=2, H=32, dtype=FP16, reverse=reverse)
    given = sequences.inputs(case)
    near = sequences.run(resident, case, given, device)
    far = {}
    for name in ("input_projection", "grad_output"):
        file = np.memmap(tmp_path / name, np.float16, "w+", shape=2**31 + 64)
        far[name] = torch.from_numpy(file).as_strided(case.shape, (2**30, 32, 1)).copy_(getattr(given, name))
    for a, b in zip(sequences.run(resident, case, given._replace(**far), device), near, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("H", [33, 40])
def test_a_dropped_infinity_does_not_spread(H, device):
    """Infinity in the last real column meets the zeros of the padding; what does not enter W_hh must not come back."""
    case = Case(T=4, B=1, H=H, hidden=None, recurrent=32768, cell="RNN_RELU")
    given = sequences.inputs(case)
    given.keeps["recurrent"][:] = False
    given.keeps["recurrent"][2, H - 1] = True
    given.w_hh.zero_()
    given.input_projection[1, 0, H - 1] = float("inf")
    output = sequences.run(resident, case, given, device)[0]
    assert output[2].isnan().all() and not output[3].isnan().any()


@pytest.mark.parametrize("masks", [{"hidden": None}, {"hidden": 0}, {"hidden": None, "zoneout": 0}])
@pytest.mark.parametrize("H", [33, 40])
def test_infinity_stays_infinity(masks, H, device):
    """The padding's products with it are NaN, which must not come back into the real columns."""
    case = Case(T=3, B=1, H=H, **masks, cell="RNN_RELU")
    given = sequences.inputs(case)
    given.w_hh.abs_().clamp_(min=1e-3)
    given.input_projection.abs_()
    given.h_0.abs_()[0, 0] = float("inf")
    output = sequences.run(resident, case, given, device)[0]
    assert (output == float("inf")).all()


def test_kept_zero_passes_the_gradient(device):
    """The planted bug of reading the mask from the output: a kept unit whose tanh is 0 has slope 1."""
    case = Case(T=2, B=1, H=16, hidden=32768)
    given = sequences.inputs(case)
    given.input_projection.zero_()
    given.h_0.zero_()
    _, grad_gates, _ = sequences.run(resident, case, given, device)
    kept = given.keeps["hidden"].view(2, 1, 16)
    assert grad_gates[kept].all() and not grad_gates[~kept].any()


def test_one_compilation_for_all_lengths_and_batches(device):
    if backend() == "interpreter":
        pytest.skip("the interpreter compiles nothing")
    kernels = resident.forward_kernel, resident.backward_kernel

    def compiled():
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    for H in (1, 33, 64):
        run_once(Case(T=2, B=3, H=H), device)
        before = compiled()
        for T, B in ((3, 16), (2, 17), (16, 2)):
            run_once(Case(T=T, B=B, H=H), device)
        assert compiled() == before


def run_once(case, device):
    sequences.run(resident, case, sequences.inputs(case), device)


def test_refusals(device):
    x = torch.zeros(2, 2, 512, device=device)
    with pytest.raises(ValueError, match=r"'resident' cannot run: W_hh of H = 512.* registers"):
        resident.forward(x, x[0], x.new_zeros(512, 512), {}, cell="RNN_TANH")
    x = torch.zeros(2, 2, 128, device=device)
    with pytest.raises(ValueError, match=r"'resident' cannot run: .* no room for sequences of different lengths"):
        resident.backward(x[0], None, x[0], x.new_zeros(128, 128), {}, cell="RNN_TANH", sizes=(1, 1))
    bits = {"zoneout": MaskBits(torch.zeros(4, 4, dtype=torch.int32, device=device), 1.0)}
    with pytest.raises(ValueError, match=r"'resident' cannot run: .* no room for zoneout"):
        resident.forward(x, x[0], x.new_zeros(128, 128), bits, cell="RNN_TANH")
    x = torch.zeros(0, 2, 16, device=device)
    with pytest.raises(ValueError, match="at least one step"):
        resident.forward(x, x.new_zeros(2, 16), x.new_zeros(16, 16), {}, cell="RNN_TANH")
    with pytest.raises(ValueError, match="at least one step"):
        resident.forward(x[:, 0], x.new_zeros(2, 16), x.new_zeros(16, 16), {}, cell="RNN_TANH", sizes=())
    x = torch.zeros(2, 2, 16, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="float64 is none of"):
        resident.backward(x, None, x, x.new_zeros(16, 16), {}, cell="RNN_TANH")


def test_masks_that_do_not_fit_are_refused(device):
    x, w = torch.zeros(2, 3, 16, device=device), torch.zeros(16, 16, device=device)

    def masks(kind, *shape):
        return {kind: MaskBits(torch.zeros(shape, dtype=torch.int32, device=device), 1.0)}

    with pytest.raises(ValueError, match="no kernel for its gradient"):
        resident.backward(x, None, x, w, masks("zoneout", 0, 1), cell="RNN_TANH")
    with pytest.raises(ValueError, match=r"a packed mask should be \(6, 1\), got \(3, 1\)"):
        resident.forward(x, x[0], w, masks("zoneout", 3, 1), cell="RNN_TANH")
    with pytest.raises(ValueError, match=r"of 2 directions, got \[\(1, 6, 1\)\]"):
        both = x.unsqueeze(2).expand(2, 3, 2, 16)
        both_directions.forward(both, both[0], w.expand(2, 16, 16), masks("hidden", 1, 6, 1), cell="RNN_TANH")
