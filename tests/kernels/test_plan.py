"""Tiles and the choice of a strategy, for devices that need not be here."""

import pytest
import torch

from rnndrop.kernels.activation import way_of_tanh
from rnndrop.kernels.launch import A100, Device
from rnndrop.kernels.plan import (
    PLAIN,
    WAVES,
    Extras,
    choose,
    plan_cooperative,
    plan_gated_resident,
    plan_resident,
    refusal,
    takes_both_directions,
)

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
H100 = Device(132, 232448, capability=90)
RTX3090 = Device(82, 101376, capability=86)
RTX5090 = Device(170, 101376, capability=120)
T4 = Device(40, 65536, capability=75)
MI300X = Device(304, 65536, warp_size=64, capability=0, backend="hip")
DEVICES = {"A100": A100, "H100": H100, "RTX 3090": RTX3090, "RTX 5090": RTX5090, "MI300X": MI300X}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_cooperative_fits_the_device(device, dtype):
    for H in (1, 33, 250, 256, 384, 512, 768, 1000, 1024, 1536, 2048):
        for B in (1, 16, 33, 256, 5000):
            p = plan_cooperative(H, B, dtype, device)
            if p.reason:
                continue
            assert p.slices * p.slice >= p.width >= H and (p.slices - 1) * p.slice < H and p.width % 4 == 0
            assert p.slices * p.groups <= device.num_sms and 1 <= p.groups <= -(-B // p.rows)
            assert p.slice * H * dtype.itemsize <= p.shared <= device.max_shared_mem


def test_cooperative_runs_what_it_should_and_says_why_not():
    assert not any(plan_cooperative(H, 64, BF16, d).reason for H in (256, 512, 1024, 2048) for d in (A100, H100))
    assert plan_cooperative(512, 16, BF16, A100)[:7] == (32, 16, 512, 512, 4, 16, 1)
    assert plan_cooperative(1024, 256, BF16, A100)[:7] == (64, 16, 1024, 1024, 4, 16, 6)
    assert "shared memory" in plan_cooperative(8192, 1, BF16, H100).reason
    assert "multiprocessors" in plan_cooperative(2048, 1, BF16, RTX3090).reason
    assert "float64" in plan_cooperative(256, 1, torch.float64, A100).reason


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_no_more_programs_than_multiprocessors(dtype):
    """One slice more than the device has multiprocessors would wait for ever for a program that never starts."""
    slice = plan_cooperative(512, 1, dtype, A100).slice
    for slices in range(1, 20):
        H = 16 * slices
        for num_sms in (slices - 1, slices, slices + 1):
            p = plan_cooperative(H, 1, dtype, A100._replace(num_sms=num_sms))
            assert p.reason or p.slices <= num_sms
    assert plan_cooperative(16 * slice, 1, dtype, A100._replace(num_sms=15)).slice != slice
    assert "7 multiprocessors" in plan_cooperative(64 * 8, 1, BF16, A100._replace(num_sms=7)).reason
    assert not plan_cooperative(64 * 8, 1, BF16, A100._replace(num_sms=8)).reason


def test_resident():
    assert plan_resident(100, 33, BF16, A100) == (16, 100, 128, 1, 8, 3, 36864, 4096, "")
    assert plan_resident(256, 16, FP16, A100).repeats == 2
    assert [plan_resident(H, 1, BF16, A100).width for H in (1, 4, 33, 101, 250)] == [4, 4, 36, 104, 252]
    assert "registers" in plan_resident(129, 1, FP32, A100).reason
    assert "float64" in plan_resident(16, 1, torch.float64, A100).reason
    assert "shared memory" in plan_resident(128, 1, FP32, A100._replace(max_shared_mem=8192)).reason


@pytest.mark.parametrize(
    "extras, words",
    [
        (Extras(("zoneout",)), "zoneout"),
        (Extras(packed=True), "sequences of different lengths"),
        (Extras(directions=2), "both directions at once"),
        (Extras(("zoneout",), True, 2), "zoneout, sequences of different lengths, both directions at once"),
    ],
)
def test_what_takes_registers_beside_a_weight_that_has_all_it_may(extras, words):
    """Exact fp32 of 65 to 128 units; every other shape leaves enough for everything."""
    for H in (65, 128):
        assert plan_resident(H, 16, FP32, H100, extras=extras).reason.endswith(
            f"takes 128 registers a thread: no room for {words}"
        )
        assert refusal("resident", H, 16, FP32, H100, extras=extras) and not refusal(
            "cooperative", H, 16, FP32, H100, extras=extras
        )
        choice = choose(H, 16, FP32, H100, extras=extras)
        assert choice.strategy == "cooperative" and choice.rejected["resident"].endswith(words)
        assert not plan_resident(H, 16, FP32, H100, tf32=True, extras=extras).reason
    assert not any(plan_resident(H, 16, BF16, H100, extras=extras).reason for H in (128, 256))
    assert not plan_resident(64, 16, FP32, H100, extras=extras).reason


def test_gated_resident():
    def plan(H, dtype=BF16, device=A100, cell="LSTM", kinds=(), packed=False, tf32=False):
        return plan_gated_resident(H, 33, dtype, device, cell=cell, tf32=tf32, extras=Extras(kinds, packed))

    both, every = ("hidden", "recurrent"), ("hidden", "recurrent", "cell", "candidate")
    zoneouts = ("zoneout", "cell_zoneout")
    assert plan(100) == (16, 100, 128, 1, 8, 3, 4 * 128 * 128 * 2 + 16 * 128 * 2, 4096, "")
    assert plan(100, cell="GRU").on_chip == 3 * 128 * 128 * 2 + 16 * 128 * 2
    for device in (A100, H100, RTX3090, RTX5090):
        for cell in ("LSTM", "GRU"):
            assert not plan(128, device=device, cell=cell, kinds=both).reason
            assert not plan(128, device=device, cell=cell, kinds=both, packed=True).reason
            assert not plan(64, device=device, cell=cell, kinds=(*every, *zoneouts), packed=True).reason
            assert not plan(16, FP32, device, cell, (*every, *zoneouts), packed=True).reason
            assert "registers" in plan(129, device=device, cell=cell).reason
        assert not plan(128, device=device, kinds=every).reason
        assert not plan(64, FP32, device, tf32=True, kinds=both).reason
        assert not plan(32, FP32, device, "GRU", both, packed=True).reason
        assert plan(32, FP32, device).reason.endswith("no room for the operands of exact fp32")
        assert plan(32, FP32, device, "GRU", ("zoneout",)).reason.endswith("no room for zoneout")
        assert plan(128, device=device, kinds=zoneouts).reason.endswith("no room for zoneout and cell_zoneout")
        assert plan(101, device=device, kinds=both).reason.endswith("no room for 2 masks")
        assert plan(128, device=device, kinds=every, packed=True).reason.endswith(
            "no room for 4 masks of sequences of different lengths"
        )
    assert "wavefronts" in plan(128, device=MI300X).reason and not plan(64, FP32, MI300X, kinds=zoneouts).reason
    assert "shared memory" in plan(128, device=RTX3090._replace(triton_version=(3, 6))).reason
    assert not plan(128, device=A100._replace(triton_version=(3, 6))).reason
    choice = choose(128, 16, BF16, A100, cell="LSTM", extras=Extras(both))
    assert choice.strategy == "resident" and not refusal("resident", 128, 16, BF16, A100, cell="LSTM")


def test_both_directions_at_once_or_one_after_the_other():
    def at_once(strategy, H, dtype, extras=PLAIN):
        return takes_both_directions(strategy, H=H, B=16, dtype=dtype, device=A100, tf32=False, cell="RNN_TANH", extras=extras)

    assert at_once("resident", 64, FP32) and at_once("resident", 128, BF16, Extras(("zoneout",), packed=True))
    assert not at_once("resident", 128, FP32) and choose(128, 16, FP32, A100).strategy == "resident"
    assert not at_once("cooperative", 512, BF16) and not at_once("stepwise", 64, FP32)


@pytest.mark.parametrize(
    "device", [A100, A100._replace(triton_version=(3, 6)), MI300X._replace(max_shared_mem=2**20)], ids=["3.9", "3.6", "AMD"]
)
@pytest.mark.parametrize("dtype, size", [(FP32, 8), (BF16, 2)])
def test_bytes_on_chip_are_counted_once(device, dtype, size):
    """Wherever W_hh is kept or passes through. On NVIDIA's tensor cores exact fp32 is two numbers of tf32."""
    size = 4 if dtype == FP32 and device.backend == "hip" else size
    assert plan_resident(128, 1, dtype, device).on_chip == (128 + 16) * 128 * size


@pytest.mark.parametrize("version, fits", [((3, 4), False), ((3, 6), False), ((3, 7), True), ((3, 9), True), ((4, 0), True)])
@pytest.mark.parametrize("H, dtype, least", [(128, FP32, 147456), (256, BF16, 143360), (250, FP16, 143360)])
def test_resident_where_triton_keeps_the_weight_in_shared_memory(H, dtype, least, version, fits):
    """`least` is what Triton 3.6 compiled to."""
    small, large = (device._replace(triton_version=version) for device in (RTX3090, A100))
    assert (not plan_resident(H, 16, dtype, small).reason) == fits
    p = plan_resident(H, 16, dtype, large)
    assert not p.reason and (fits or least <= p.shared <= large.max_shared_mem)
    assert not plan_resident(64, 16, dtype, small).reason
    assert choose(H, 16, dtype, small).strategy == ("resident" if fits else "cooperative")


def test_tensor_cores_older_than_sm_80_are_refused():
    for H in (64, 512):
        choice = choose(H, 16, FP16, T4)
        assert choice.strategy == "stepwise"
        assert all("sm_80 or newer, the device is sm_75" in choice.rejected[name] for name in ("resident", "cooperative"))
    assert choose(64, 16, FP16, T4._replace(capability=80)).strategy == "resident"
    assert choose(64, 16, FP16, RTX5090).strategy == choose(64, 16, FP16, MI300X).strategy == "resident"


def test_the_choice_follows_shape_dtype_and_device():
    def chosen(H, B=16, dtype=BF16, **options):
        choice = choose(H, B, dtype, A100, **options)
        assert choice.reason
        return choice.strategy, set(choice.rejected)

    assert chosen(128) == ("resident", set())
    assert chosen(1024) == ("cooperative", {"resident"})
    assert chosen(16384) == ("stepwise", {"resident", "cooperative"})
    assert chosen(128, B=10**6) == ("stepwise", {"resident", "cooperative"})
    assert chosen(128, dtype=torch.float64) == chosen(128, B=0) == chosen(128, cell="CfC") == ("reference", set())
    assert chosen(128, cell="RNN_RELU") == ("resident", set())
    assert chosen(512, dtype=FP32, tf32=True)[0] == "cooperative"


@pytest.mark.parametrize("H, strategy", [(128, "resident"), (512, "cooperative")])
def test_the_last_batch_before_one_wave_too_many(H, strategy):
    """Each program takes at most WAVES batch tiles."""
    side_by_side = A100.num_sms if strategy == "resident" else A100.num_sms // plan_cooperative(H, 10**6, BF16, A100).slices
    most = side_by_side * 16 * WAVES
    assert choose(H, most, BF16, A100).strategy == strategy
    over = choose(H, most + 1, BF16, A100)
    assert over.strategy != strategy and f"{WAVES + 1} batch tiles" in over.rejected[strategy]


def test_asking_again_costs_nothing():
    before = choose.cache_info().hits, plan_resident.cache_info().hits
    for _ in range(3):
        choose(77, 5, BF16, A100)
        plan_resident(77, 5, BF16, A100)
    assert choose.cache_info().hits >= before[0] + 2 and plan_resident.cache_info().hits >= before[1] + 2


def test_tanh_by_one_instruction_only_where_rounding_hides_it():
    assert way_of_tanh(BF16, "cuda") == "hardware"
    others = [(FP32, "cuda"), (FP16, "cuda"), (BF16, "hip"), (BF16, "interpreter"), (FP32, "hip")]
    assert {way_of_tanh(dtype, backend) for dtype, backend in others} == {"exact"}


def test_precision_of_the_products():
    """Exact fp32 unless tf32 is allowed; that is three products of tf32 on NVIDIA's tensor cores."""
    from rnndrop.kernels.product import precision

    assert precision(FP32, False, "cuda") == "tf32x3" and precision(FP32, True, "cuda") == "tf32"
    assert precision(FP32, True, "hip") == precision(BF16, True, "cuda") == precision(FP16, False, "cuda") == "ieee"
    assert precision(BF16, False, "interpreter") == precision(FP32, True, "interpreter") == "wide"
