import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton

from rnndrop.kernels import cooperative, sequence
from tests import triton_driver
from tests.triton_driver import backend

from . import sequences
from .sequences import Case

BF16, FP16 = torch.bfloat16, torch.float16
A100 = sequence.A100
RTX3090 = {"multiprocessor_count": 82, "max_shared_mem": 101376}
H100 = {"multiprocessor_count": 132, "max_shared_mem": 232448}

CASES = [
    Case(T=3, B=3, H=384, dtype=BF16),
    Case(T=3, B=16, H=512, dtype=BF16, recurrent=16384),
    Case(T=1, B=33, H=384, dtype=BF16, hidden=58982, recurrent=58982, reverse=True),
    Case(T=2, B=1, H=1024, dtype=BF16, mask_scope="sequence", recurrent=16384, reverse=True),
    Case(T=2, B=16, H=1024, dtype=FP16),
    Case(T=3, B=3, H=512, dtype=FP16, hidden=0, recurrent=0, reverse=True),
    Case(T=3, B=3, H=384, nonlinearity="relu", recurrent=16384),
    Case(T=2, B=16, H=512, nonlinearity="relu", hidden=65536, recurrent=16384),
    Case(T=3, B=3, H=384, hidden=None, tf32=True),
    Case(T=2, B=33, H=384, tf32=True, recurrent=65536, mask_scope="sequence"),
    Case(T=3, B=5, H=100, recurrent=16384),  # neither slices nor chunks divide it
    Case(T=1, B=3, H=33, dtype=BF16, reverse=True),
    Case(T=5, B=20, H=64, hidden=None),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, device):
    sequences.against_float64(cooperative, case, device)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_has_the_mask_of_the_output(reverse, device):
    sequences.gradient_has_the_mask_of_the_output(cooperative, Case(T=4, B=3, H=100, dtype=BF16, reverse=reverse), device)


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
    h0, w = torch.zeros(B, H, dtype=x.dtype, device=device), (torch.randn(H, H) / 8).to(x).to(device)
    last = x[-3:].clone(), bits[-3 * B :].clone()
    if kernel == "forward":
        launch = cooperative.forward_kernel, (x, h0, w, bits, None, y, None), range(T - 2, T + 1), (4 / 3, 1.0)
        expected = cooperative.forward(last[0], h0, w, last[1], None, 4 / 3, 1.0)
    else:
        launch = cooperative.backward_kernel, (x, None, x, w, bits, None, y, h0), range(3), (4 / 3, 3 / 4, 1.0)
        expected, _ = cooperative.backward(last[0], None, last[0], w, last[1], None, 4 / 3, 1.0)
    cooperative._launch(*launch, "tanh", "step", False, False)
    assert expected.any() and torch.equal(y[-3:], expected)


@pytest.mark.skipif(backend() in ("interpreter", "cuda"), reason="only a --triton-driver takes programs in the order of a seed")
@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_programs(seed, device, request):
    triton_driver.use(backend(), seed)
    sequences.against_float64(cooperative, Case(T=3, B=20, H=96, dtype=BF16, recurrent=16384), device)
    triton_driver.use(backend(), request.config.getoption("--triton-driver-seed"))


def test_more_batch_tiles_than_groups(device, monkeypatch):
    """On a device with room for one group a program takes several tiles of the batch in turn."""
    small = {"multiprocessor_count": 3, "max_shared_mem": A100["max_shared_mem"]}
    monkeypatch.setattr(cooperative, "device_properties", lambda: small)
    case = Case(T=3, B=40, H=96, dtype=BF16, recurrent=16384)
    assert cooperative.plan(96, 40, BF16, small).groups == 1
    sequences.against_float64(cooperative, case, device)


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


# ---------------------------------------------------------------- plan


@pytest.mark.parametrize("device", [RTX3090, A100, H100], ids=["RTX 3090", "A100", "H100"])
@pytest.mark.parametrize("dtype", [torch.float32, FP16, BF16])
def test_plan_fits_the_device(device, dtype):
    for H in (1, 33, 256, 384, 512, 768, 1000, 1024, 1536, 2048):
        for B in (1, 16, 33, 256, 5000):
            p = cooperative.plan(H, B, dtype, device)
            if p.reason:
                continue
            assert p.slices * p.slice >= H and (p.slices - 1) * p.slice < H
            assert p.slices * p.groups <= device["multiprocessor_count"] and 1 <= p.groups <= triton.cdiv(B, p.rows)
            assert p.shared <= device["max_shared_mem"]
            assert p.shared >= p.slice * H * dtype.itemsize


def test_plan_runs_what_it_should_and_says_why_not():
    assert not any(cooperative.plan(H, 64, BF16, d).reason for H in (256, 512, 1024, 2048) for d in (A100, H100))
    assert cooperative.plan(512, 16, BF16, A100)[:6] == (32, 16, 512, 4, 16, 1)
    assert cooperative.plan(1024, 256, BF16, A100)[:6] == (64, 16, 1024, 4, 16, 6)
    assert "shared memory" in cooperative.plan(8192, 1, BF16, H100).reason
    assert "multiprocessors" in cooperative.plan(2048, 1, BF16, RTX3090).reason
    assert "float64" in cooperative.plan(256, 1, torch.float64, A100).reason


def test_a_shape_that_cannot_run_says_why(device):
    x = torch.zeros(1, 1, 8192, device=device)
    with pytest.raises(ValueError, match=r"'cooperative' cannot run: .* shared memory"):
        cooperative.forward(x, x[0], x.expand(1, 8192, 8192)[0], None, None, 1.0, 1.0)


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
@pytest.mark.parametrize("what", ["meet", "arrive"])
def test_planted_missing_barrier(name, what, device):
    """Without the wait programs read what others have not written; without the arrival they wait for ever."""
    kernel = getattr(cooperative, name)
    lines = {
        "meet": ("meet(arrived, (phase - begin) * tl.num_programs(0))", "pass"),
        "arrive": ("        arrive(arrived)\n", "        pass\n"),
    }
    case = Case(T=3, B=3, H=64, dtype=BF16)
    with pytest.raises(Exception, match="race" if what == "meet" else "waits for ever"):
        sequences.against_float64(_broken(**{name: _without(kernel, lines[what])}), case, device)


@pytest.mark.skipif(backend() == "interpreter", reason="changes the source of a compiled kernel")
@pytest.mark.parametrize(
    "name, old, new",
    [
        ("backward_kernel", "kept(hidden_bits, t * B + b if PER_STEP else b", "kept(hidden_bits, b"),  # haste
        ("backward_kernel", "kept(recurrent_bits, after * B + b if PER_STEP else b", "kept(recurrent_bits, b"),
        ("forward_kernel", "kept(recurrent_bits, after * B + b if PER_STEP else b", "kept(recurrent_bits, t * B + b"),
    ],
)
def test_planted_wrong_step(name, old, new, device):
    case = Case(T=3, B=3, H=64, recurrent=16384)
    sequences.against_float64(cooperative, case, device)
    with pytest.raises(AssertionError):
        sequences.against_float64(_broken(**{name: _without(getattr(cooperative, name), (old, new))}), case, device)


def test_planted_mask_repeated_over_rows(device):
    """One row's mask for all (xformers), and the mask of the first step for all (haste)."""
    case = Case(T=3, B=3, H=64)
    for rows in (1, 3):

        def repeated(module_backward, rows=rows):
            def launch(grad_output, grad_h_n, output, w_hh, hidden_bits, *rest, **options):
                bits = hidden_bits[:rows].repeat(len(hidden_bits) // rows, 1)
                return module_backward(grad_output, grad_h_n, output, w_hh, bits, *rest, **options)

            return launch

        broken = SimpleNamespace(forward=cooperative.forward, backward=repeated(cooperative.backward))
        for check in (sequences.against_float64, sequences.gradient_has_the_mask_of_the_output):
            check(cooperative, case, device)
            with pytest.raises(AssertionError):
                check(broken, case, device)
