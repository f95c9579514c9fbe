import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton

from rnndrop.kernels import cooperative, launch
from rnndrop.kernels.grid_barrier import launch_phases
from rnndrop.kernels.launch import MaskBits
from rnndrop.kernels.plan import plan_cooperative
from tests import triton_driver
from tests.triton_driver import backend

from . import sequences
from .sequences import ONCE, STEP, Case

BF16, FP16 = torch.bfloat16, torch.float16

CASES = [
    Case(T=3, B=3, H=384, dtype=BF16),
    Case(T=3, B=16, H=512, dtype=BF16, recurrent=16384),
    Case(T=1, B=33, H=384, dtype=BF16, hidden=58982, recurrent=58982, reverse=True),
    Case(T=2, B=1, H=1024, dtype=BF16, scopes=(ONCE, ONCE), recurrent=16384, reverse=True),
    Case(T=2, B=16, H=1024, dtype=FP16),
    Case(T=3, B=3, H=512, dtype=FP16, hidden=0, recurrent=0, reverse=True),
    Case(T=3, B=3, H=384, cell="RNN_RELU", recurrent=16384),
    Case(T=2, B=16, H=512, cell="RNN_RELU", hidden=65536, recurrent=16384),
    Case(T=3, B=3, H=384, hidden=None, tf32=True),
    Case(T=2, B=33, H=384, tf32=True, recurrent=65536, scopes=(ONCE, ONCE)),
    Case(T=3, B=5, H=100, recurrent=16384),  # neither slices nor chunks divide it
    Case(T=1, B=3, H=33, dtype=BF16, reverse=True),
    Case(T=5, B=20, H=64, hidden=None),
    *[Case(T=2, B=3, H=H, dtype=BF16, recurrent=16384) for H in (65, 96, 101, 250)],
    *[Case(T=3, B=3, H=40, recurrent=16384, scopes=scopes) for scopes in ((STEP, ONCE), (ONCE, STEP))],
    *[Case(T=3, B=3, H=40, hidden=hidden, recurrent=recurrent) for hidden, recurrent in ((1, 65535), (65535, 1))],
    Case(T=3, B=3, H=40, zoneout=32768, recurrent=16384, scopes=(ONCE, ONCE)),
    Case(T=3, B=17, H=65, dtype=BF16, hidden=None, zoneout=16384, reverse=True),
    Case(T=3, B=3, H=33, dtype=FP16, zoneout=60000, cell="RNN_RELU"),
    Case(T=2, B=1, H=96, tf32=True, hidden=None, zoneout=65536),
]
# Sequences that begin and end at every step, batch tiles that do, and steps of equal size.
PACKED = [
    Case(H=40, sizes=(5, 5, 3, 1, 1)),
    Case(H=40, sizes=(5, 5, 3, 1, 1), reverse=True),
    Case(H=70, dtype=BF16, sizes=(35, 33, 17, 16, 5), recurrent=16384, scopes=(ONCE, STEP)),
    Case(H=65, dtype=FP16, sizes=(35, 17, 17, 1), recurrent=16384, zoneout=32768, scopes=(STEP, ONCE), reverse=True),
    Case(H=33, sizes=(20, 16, 3), hidden=None, zoneout=32768, cell="RNN_RELU"),
    Case(H=36, sizes=(3, 2, 1), hidden=None, zoneout=32768, tf32=True, reverse=True),
]


@pytest.mark.parametrize("case", CASES + PACKED, ids=str)
def test_against_float64(case, device):
    sequences.against_float64(cooperative, case, device)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_has_the_mask_of_the_output(reverse, device):
    sequences.gradient_has_the_mask_of_the_output(cooperative, Case(T=4, B=3, H=100, dtype=BF16, reverse=reverse), device)


@pytest.mark.parametrize("case", [Case(T=3, B=3, H=33), Case(H=40, sizes=(4, 3, 3, 1), recurrent=16384, reverse=True)], ids=str)
def test_expectation_of_zoneout(case, device):
    sequences.expectation_of_zoneout(cooperative, case, device)


def test_zoneout_chooses(device):
    sequences.zoneout_chooses(cooperative, Case(T=2, B=3, H=40, zoneout=32768), device)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_not_a_number(dtype, device):
    sequences.not_a_number(cooperative, Case(B=4, H=100, dtype=dtype), device)


@pytest.mark.parametrize("hidden", [None, 32768])
def test_relu_stops_not_a_number(hidden, device):
    sequences.relu_stops_not_a_number(cooperative, Case(T=2, H=48, hidden=hidden), device)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_addresses_past_32_bits(kernel, device, tmp_path):
    """The last steps of more than 2**31 elements, of which only these are touched, against the same steps alone."""
    T, B, H = 2**21 + 3, 16, 64
    count = itertools.count()

    def sparse(*shape, dtype=torch.float16):
        if device != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        kind = np.float16 if dtype == torch.float16 else np.int32
        return torch.from_numpy(np.memmap(tmp_path / str(next(count)), kind, "w+", shape=shape))

    x, y, bits = sparse(T, B, H), sparse(T, B, H), sparse(T * B, 2, dtype=torch.int32)
    x[-3:], bits[-3 * B :] = torch.randn(3, B, H), torch.randint(2**31, (3 * B, 2))
    h_0, w = torch.zeros(B, H, dtype=x.dtype, device=device), (torch.randn(H, H) / 8).to(x).to(device)
    last = x[-3:].clone()
    masks, masks_of_last = ({"hidden": MaskBits(b, 4 / 3)} for b in (bits, bits[-3 * B :].clone()))
    plan, shape, constexprs = cooperative._plan(x, masks, False)
    arguments = dict.fromkeys(("recurrent_ptr", "zoneout_ptr")) | {
        "w_hh_ptr": w, "hidden_ptr": bits, "output_ptr": y, "hidden_scale": 4 / 3, "recurrent_scale": 1.0,
        "CELL": "RNN_TANH", "REVERSE": False,
    }  # fmt: skip
    if kernel == "forward":
        arguments |= {"input_projection_ptr": x, "h_0_ptr": h_0, "exchange_ptr": None, "old_share": None}
        phases, expected = range(T - 2, T + 1), cooperative.forward(last, h_0, w, masks_of_last, cell="RNN_TANH")
    else:
        arguments |= {"grad_output_ptr": x, "grad_h_n_ptr": None, "output_ptr": x, "carry_ptr": None, "grad_gates_ptr": y}
        arguments |= {"grad_h_0_ptr": h_0, "inverse_scale": 3 / 4}
        phases, (expected, _) = range(3), cooperative.backward(last, None, last, w, masks_of_last, cell="RNN_TANH")
    of_kernel = getattr(cooperative, f"{kernel}_kernel")
    launch_phases(of_kernel, arguments | constexprs, shape, phases, plan, x.device)
    assert expected.any() and torch.equal(y[-3:], expected)


@pytest.mark.skipif(backend() in ("interpreter", "cuda"), reason="only a --triton-driver takes programs in the order of a seed")
@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_programs(seed, device, request):
    triton_driver.use(backend(), seed)
    sequences.against_float64(cooperative, Case(T=3, B=20, H=96, dtype=BF16, recurrent=16384, zoneout=16384), device)
    for reverse in (False, True):
        sequences.against_float64(cooperative, Case(H=96, dtype=BF16, sizes=(33, 17, 1), reverse=reverse), device)
    triton_driver.use(backend(), request.config.getoption("--triton-driver-seed"))


@pytest.fixture
def only(monkeypatch):
    """only(n): the device has n multiprocessors."""
    real = launch.device_of(torch.device("cpu" if triton_driver.device() == "cpu" else "cuda:0"))

    def set_num_sms(n):
        monkeypatch.setattr(launch, "_facts", lambda index: real._replace(num_sms=n))
        return real._replace(num_sms=n)

    return set_num_sms


def test_more_batch_tiles_than_groups(device, only):
    """On a device with room for one group a program takes several tiles of the batch in turn."""
    case = Case(T=3, B=40, H=96, dtype=BF16, recurrent=16384)
    assert plan_cooperative(96, 40, BF16, only(3)).groups == 1
    sequences.against_float64(cooperative, case, device)
    for reverse in (False, True):
        sequences.against_float64(
            cooperative, Case(H=96, sizes=(40, 33, 16), dtype=BF16, zoneout=16384, reverse=reverse), device
        )


@pytest.mark.parametrize("H", [65, 80, 96])
def test_slices_of_64_that_end_in_half_a_slice(H, device, only):
    """The bits of the columns past the half are not there."""
    assert plan_cooperative(H, 3, BF16, only(2)).slice == 64
    sequences.against_float64(cooperative, Case(T=2, B=3, H=H, dtype=BF16, recurrent=16384), device)


@pytest.mark.parametrize("masks", [{"hidden": None}, {"hidden": 0}, {"hidden": None, "recurrent": 0}])
def test_infinity_stays_infinity(masks, device):
    """Its products with the padding of H = 33 are NaN, which must not come back into the real columns."""
    case = Case(T=3, B=1, H=33, **masks, cell="RNN_RELU")
    given = sequences.inputs(case)
    given.w_hh.abs_().clamp_(min=1e-3)
    given.input_projection.abs_()
    given.h_0.abs_()[0, 0] = float("inf")
    output = sequences.run(cooperative, case, given, device)[0]
    assert (output == float("inf")).all()


def test_one_launch_after_another(device):
    """Each launch has counters of its own: the second gives what the first gave."""
    case = Case(T=3, B=3, H=96, recurrent=16384)
    given = sequences.inputs(case)
    first, second = (sequences.run(cooperative, case, given, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(backend() == "interpreter", reason="the interpreter compiles nothing")
def test_a_new_length_or_batch_compiles_nothing(device):
    sequences.against_float64(cooperative, Case(T=2, B=3, H=64), device)
    before = _compiled(cooperative.forward_kernel)
    for T, B in ((1, 1), (3, 16), (4, 20)):
        sequences.against_float64(cooperative, Case(T=T, B=B, H=64), device)
    assert _compiled(cooperative.forward_kernel) == before


def _compiled(kernel):
    return sum(len(caches[0]) for caches in kernel.device_caches.values())


# ---------------------------------------------------------------- planted bugs


def _broken(**kernels):
    """The module with other kernels in place of its own."""

    def call(launcher):
        def launch(*args, **options):
            with pytest.MonkeyPatch.context() as patch:
                for name, kernel in kernels.items():
                    patch.setattr(cooperative, name, kernel)
                return launcher(*args, **options)

        return launch

    return SimpleNamespace(forward=call(cooperative.forward), backward=call(cooperative.backward))


def _without(kernel, *lines):
    """The kernel with these parts of its source replaced."""
    source = kernel.src if hasattr(kernel, "src") else None
    assert source, "needs a compiled kernel"
    for old, new in lines:
        assert old in source, old
        source = source.replace(old, new)
    broken = triton.JITFunction(kernel.fn, do_not_specialize=kernel.do_not_specialize)
    broken._unsafe_update_src(source)
    return broken


@pytest.mark.skipif(backend() in ("interpreter", "cuda"), reason="finding a race takes a machine that looks for it")
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize("what", ["wait", "arrive"])
def test_planted_missing_barrier(name, what, device):
    """Without the wait programs read what others have not written; without the arrival they wait for ever."""
    kernel = getattr(cooperative, name)
    lines = {
        "wait": ("grid_barrier_wait(barrier_ptr, (phase - begin) * tl.num_programs(0))", "pass"),
        "arrive": ("        grid_barrier_arrive(barrier_ptr)\n", "        pass\n"),
    }
    case = Case(T=3, B=3, H=64, dtype=BF16)
    with pytest.raises(Exception, match="race" if what == "wait" else "waits for ever"):
        sequences.against_float64(_broken(**{name: _without(kernel, lines[what])}), case, device)


@pytest.mark.skipif(backend() == "interpreter", reason="changes the source of a compiled kernel")
@pytest.mark.parametrize(
    "name, old, new",
    [
        ("backward_kernel", "(hidden_ptr, start + b if HIDDEN_PER_STEP else b", "(hidden_ptr, b"),  # haste
        ("backward_kernel", "first_row = start_after + b if RECURRENT_PER_STEP else b", "first_row = b"),
        ("forward_kernel", "first_row = start_after + b if RECURRENT_PER_STEP else b", "first_row = start + b"),
        ("forward_kernel", "(zoneout_ptr, start + b", "(zoneout_ptr, b"),
        ("backward_kernel", "(zoneout_ptr, start + b", "(zoneout_ptr, b"),
        ("backward_kernel", "dh += carry", "pass"),
        ("backward_kernel", "tl.where(new, 0.0, dh)", "dh"),
    ],
)
def test_planted_wrong_step(name, old, new, device):
    case = Case(T=3, B=3, H=64, recurrent=16384, zoneout=32768)
    sequences.against_float64(cooperative, case, device)
    with pytest.raises(AssertionError):
        sequences.against_float64(_broken(**{name: _without(getattr(cooperative, name), (old, new))}), case, device)
