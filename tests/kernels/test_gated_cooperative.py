from types import SimpleNamespace

import pytest
import torch
import triton

from rnndrop.cell import CELLS
from rnndrop.kernels import gated_cooperative, launch
from rnndrop.kernels.launch import A100
from rnndrop.kernels.plan import plan_gated_cooperative
from tests import triton_driver
from tests.triton_driver import backend

from . import gated_sequences
from .gated_sequences import Case

BF16, FP16 = torch.bfloat16, torch.float16
PRESENT = {
    cell: dict.fromkeys(CELLS[cell].kinds, 16384) | {kind: 24576 for kind in CELLS[cell].kinds if "zoneout" in kind}
    for cell in ("LSTM", "GRU")
}
CASES = [
    *[Case(cell, H=40, dtype=dtype) for cell in PRESENT for dtype in (torch.float32, BF16, FP16)],
    *[Case(cell, H=33, thresholds=PRESENT[cell], reverse=reverse) for cell in PRESENT for reverse in (False, True)],
    *[Case(cell, H=40, thresholds=PRESENT[cell], once=("hidden", "candidate")) for cell in PRESENT],
    *[Case(cell, H=36, thresholds=PRESENT[cell], once=("recurrent", "cell"), dtype=BF16) for cell in PRESENT],
    Case("LSTM", T=2, B=17, H=65, thresholds={}, tf32=True),
    Case("GRU", T=2, B=3, H=264, dtype=BF16, thresholds={"recurrent": 16384}),  # several chunks
    Case("GRU", H=40, bias=False),
    Case("LSTM", T=1, H=8, thresholds={"hidden": 65536, "cell": 65536, "candidate": 16384}),
    Case("LSTM", H=24, thresholds={"zoneout": 65536, "cell_zoneout": 0}),
    Case("GRU", H=24, thresholds={"zoneout": 65536}),
]
# Sequences that begin and end at every step, batch tiles that do, and steps of equal size.
PACKED = [
    *[Case(cell, H=24, sizes=(5, 5, 3, 1), reverse=reverse) for cell in PRESENT for reverse in (False, True)],
    *[
        Case(cell, H=33, dtype=BF16, thresholds=PRESENT[cell], once=("hidden",), sizes=(17, 16, 5), reverse=reverse)
        for cell, reverse in (("LSTM", True), ("GRU", False))
    ],
]


@pytest.mark.parametrize("case", CASES + PACKED, ids=str)
def test_against_float64(case, device):
    gated_sequences.against_float64(gated_cooperative, case, device)


@pytest.mark.parametrize("cell", PRESENT)
def test_gradient_has_the_mask_of_the_output(cell, device):
    gated_sequences.gradient_has_the_mask_of_the_output(gated_cooperative, Case(cell, H=40), device)


@pytest.mark.parametrize("cell", PRESENT)
def test_without_gradients_of_the_states(cell, device):
    gated_sequences.without_gradients_of_the_states(gated_cooperative, Case(cell, T=2, H=24), device)


@pytest.mark.parametrize(
    "case",
    [
        Case("LSTM", H=33),
        Case("GRU", H=24, dtype=FP16),
        Case("LSTM", H=24, sizes=(4, 3, 1), thresholds={"recurrent": 16384}, reverse=True),
    ],
    ids=str,
)
def test_expectation_of_zoneout(case, device):
    gated_sequences.expectation_of_zoneout(gated_cooperative, case, device)


def test_zoneout_chooses(device):
    gated_sequences.zoneout_chooses(gated_cooperative, Case(H=40), device)


@pytest.mark.parametrize("cell", PRESENT)
def test_not_a_number(cell, device):
    kinds = {kind: 16384 for kind in ("hidden", "candidate", "cell") if kind in CELLS[cell].kinds}
    gated_sequences.not_a_number(gated_cooperative, Case(cell, B=4, H=40, thresholds=kinds), device)


@pytest.mark.skipif(backend() in ("interpreter", "cuda"), reason="only a --triton-driver takes programs in the order of a seed")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cell", PRESENT)
def test_every_order_of_programs(cell, seed, device, request):
    triton_driver.use(backend(), seed)
    case = Case(cell, B=20, H=72, dtype=BF16, thresholds=PRESENT[cell])
    gated_sequences.against_float64(gated_cooperative, case, device)
    for reverse in (False, True):
        gated_sequences.against_float64(gated_cooperative, case._replace(sizes=(33, 17, 1), reverse=reverse), device)
    triton_driver.use(backend(), request.config.getoption("--triton-driver-seed"))


@pytest.fixture
def only(monkeypatch):
    """only(n): the device has n multiprocessors."""
    real = launch.device_of(torch.device("cpu" if triton_driver.device() == "cpu" else "cuda:0"))

    def set_num_sms(n):
        monkeypatch.setattr(launch, "_facts", lambda index: real._replace(num_sms=n))
        return real._replace(num_sms=n)

    return set_num_sms


@pytest.mark.parametrize("cell", PRESENT)
def test_more_batch_tiles_than_groups(cell, device, only):
    """On a device with room for one group a program takes several tiles of the batch in turn."""
    assert plan_gated_cooperative(16, 33, BF16, only(1), cell=cell).groups == 1
    for case in (
        Case(cell, T=2, B=33, H=16, dtype=BF16, thresholds=PRESENT[cell]),
        Case(cell, H=16, dtype=BF16, thresholds=PRESENT[cell], sizes=(33, 17), reverse=True),
    ):
        gated_sequences.against_float64(gated_cooperative, case, device)


@pytest.mark.skipif(backend() == "interpreter", reason="the interpreter compiles nothing")
def test_a_new_length_or_batch_compiles_nothing(device):
    gated_sequences.against_float64(gated_cooperative, Case(T=2, H=40), device)
    before = _compiled(gated_cooperative.forward_kernel)
    for T, B in ((1, 1), (3, 16), (4, 20)):
        gated_sequences.against_float64(gated_cooperative, Case(T=T, B=B, H=40), device)
    assert _compiled(gated_cooperative.forward_kernel) == before


def _compiled(kernel):
    return sum(len(caches[0]) for caches in kernel.device_caches.values())


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("cell", PRESENT)
def test_plan_of_an_a100(cell):
    for H, dtype, tf32, slice in ((1024, BF16, False, 16), (650, FP16, False, 16), (512, torch.float32, True, 16)):
        plan = plan_gated_cooperative(H, 16, dtype, A100, cell=cell, tf32=tf32)
        assert plan.reason == "" and plan.slice == slice and plan.slices * plan.slice >= H
        assert plan.slices * plan.groups <= A100.num_sms and plan.chunk % plan.warps == 0
    assert plan_gated_cooperative(256, 64, torch.float32, A100, cell=cell).groups == 4  # of 6 that there is room for
    assert plan_gated_cooperative(512, 16, torch.float32, A100, cell=cell).slice == 8  # exact fp32
    assert "registers" in plan_gated_cooperative(1024, 16, torch.float32, A100, cell=cell).reason
    assert "multiprocessors" in plan_gated_cooperative(2048, 16, BF16, A100, cell=cell).reason


# ---------------------------------------------------------------- planted bugs


def _broken(name, *lines):
    """The module with a kernel in which these parts of the source are replaced."""
    kernel = getattr(gated_cooperative, name)
    if backend() == "interpreter":
        raise NotImplementedError
    source = kernel.src
    for old, new in lines:
        assert old in source, old
        source = source.replace(old, new)
    broken = triton.JITFunction(kernel.fn, do_not_specialize=kernel.do_not_specialize)
    broken._unsafe_update_src(source)

    def call(launcher):
        def launch(*args, **options):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gated_cooperative, name, broken)
                return launcher(*args, **options)

        return launch

    return SimpleNamespace(forward=call(gated_cooperative.forward), backward=call(gated_cooperative.backward))


@pytest.mark.skipif(backend() in ("interpreter", "cuda"), reason="finding a race takes a machine that looks for it")
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize("what", ["wait", "arrive"])
def test_planted_missing_barrier(name, what, device):
    """Without the wait programs read what others have not written; without the arrival they wait for ever."""
    lines = {
        "wait": ("grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))", "pass"),
        "arrive": ("        grid_barrier_arrive(barrier_ptr)\n", "        pass\n"),
    }
    with pytest.raises(Exception, match="race" if what == "wait" else "waits for ever"):
        gated_sequences.against_float64(_broken(name, lines[what]), Case(H=40, dtype=BF16), device)


PLANTED = [
    ("forward_kernel", "gates = (i, f, g, o)", "gates = (i, g, f, o)"),
    ("forward_kernel", "second + x[1]", "second + x[2]"),
    ("forward_kernel", "hn += b_hn", "x = (x[0], x[1], x[2] + b_hn)"),  # outside of r
    ("forward_kernel", "first_row = start_after + b if RECURRENT_PER_STEP else b", "first_row = start + b"),
    ("forward_kernel", "load_words(cell_zoneout_ptr, here,", "load_words(cell_zoneout_ptr, b,"),
    ("forward_kernel", "c = zoned(c_before, c,", "made = zoned(c_before, c,"),
    ("forward_kernel", "load_before(cells_ptr, c_0_ptr, start_before", "load_before(cells_ptr, c_0_ptr, start"),
    ("backward_kernel", "(hidden_ptr, here if HIDDEN_PER_STEP else b", "(hidden_ptr, b"),  # haste
    ("backward_kernel", "(candidate_ptr, here if CANDIDATE_PER_STEP else b", "(candidate_ptr, b"),
    ("backward_kernel", "start_after + b if RECURRENT_PER_STEP else b", "b"),
    ("backward_kernel", "grad_h += passing_h", "pass"),
    ("backward_kernel", "old_c + grad_c, mask", "grad_c, mask"),
    ("backward_kernel", "old_h += grad_h", "pass"),  # z * h of a GRU
    ("backward_kernel", "if cell_zoneout_ptr is None:", "if True:"),  # c_t is taken for c'
    ("backward_kernel", "passing_c_ptr + of_tile, mask", "passing_c_ptr + of_tile + 1, mask"),  # of another column
]


@pytest.mark.skipif(backend() == "interpreter", reason="changes the source of a compiled kernel")
@pytest.mark.parametrize("name, old, new", PLANTED)
def test_planted_wrong_line(name, old, new, device):
    seen = 0
    for cell, kinds in PRESENT.items():
        try:
            gated_sequences.against_float64(_broken(name, (old, new)), Case(cell, H=40, thresholds=kinds), device)
        except AssertionError as error:
            seen += "differs by" in str(error) or "drops" in str(error)
        except Exception as error:  # an address outside, or a race
            seen += 1
            assert "Ptx" in type(error).__name__, error
    assert seen
